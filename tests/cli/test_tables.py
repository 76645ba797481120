"""Tables as lines: they fit a terminal, and nothing in them is broken or lost."""

from datetime import UTC, datetime, timedelta

import pytest

from etl.cli.tables import Column, as_text, folded, layout, one_line
from tests.support.builders import A

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
COLUMNS = (Column("number"), Column("label", cut_to=6), Column("chats", "total", right=True))
ROW = {"number": A, "label": "Support in Chicago", "chats": 1_234_567}


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (None, [f"{A}  Support in Chicago  1234567"]),
        (41, [f"{A}  Support in Chicago  1234567"]),
        (40, [f"{A}  Support in Chica…  1234567"]),
        (29, [f"{A}  Suppo…  1234567"]),
    ],
)
def test_a_label_is_cut_and_a_number_is_not(width: int | None, lines: list[str]) -> None:
    """As far as the column allows; a number keeps its digits and is aligned to the right."""
    table = layout([ROW], COLUMNS, width)
    assert [line for row in table.rows for line in row] == lines
    assert table.head[0].split() == ["number", "label", "total"]


def test_what_does_not_fit_has_a_line_for_each_value() -> None:
    """On a terminal that is too narrow even for that, a value has a line of its own."""
    table = layout([ROW, ROW], COLUMNS, 28)
    block = (f"number  {A}", "label   Support in Chicago", "total   1234567", "")
    assert (table.head, table.rows) == ((), (block, block))
    narrow = layout([ROW], COLUMNS, 12).rows[0]
    assert narrow == ("number", A, "label", "Support in Chicago", "total", "1234567", "")


def test_wide_letters_take_two_cells() -> None:
    """Columns stay aligned, cut or not."""
    rows = [ROW | {"label": "美咲美咲美咲"}, ROW]
    assert [row[0] for row in layout(rows, COLUMNS, 34).rows] == [
        f"{A}  美咲美咲美…  1234567",
        f"{A}  Support in…  1234567",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        ("[red] a\nb\tc", "[red] a b c"),
        ("a\x1b[2J\x9b\u2028b", "a [2J  b"),
        ("family 👩\u200d👧", "family 👩\u200d👧"),
        ("", ""),
    ],
)
def test_a_text_stays_on_its_line(text: str, line: str) -> None:
    """Line breaks and commands to the terminal become blanks; markup is shown as it is."""
    assert one_line(text) == line


def test_a_text_is_folded_between_words() -> None:
    """A phone number is not broken."""
    assert folded(f"a b {A} {A}", 22) == [f"a b {A}", A]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0, "0"),
        (timedelta(hours=2), "2:00:00"),
        (NOON.replace(microsecond=5), "2025-06-01 12:00:00+00:00"),
        ("a\nb", "a b"),
    ],
)
def test_a_value_as_people_read_it(value: object, text: str) -> None:
    """Times are to the second, and null is empty."""
    assert as_text(value) == text
