"""Decoding of odd input: characters, numbers and nesting that a database or JSON cannot hold."""

import json
from typing import Any

import pytest

from etl.api.decode import BadAnswerError, decode_page
from etl.api.models import Chat, Handle
from tests.support.builders import NOON
from tests.support.decoding import only_chat, read_page

NO_JSON = "an answer that is not JSON, or is cut short"


def test_names_are_any_text() -> None:
    """Emoji, control characters and very long names are kept unchanged."""
    name = "👩‍👩‍👧‍👦 Zoë\u200f\n\t\x7f\u2028\uffff " + "x" * 100_000

    found = read_page(json.dumps([{"id": 1, "display_name": name}]))

    assert (found.chats, found.texts_cleaned) == ((Chat(1, display_name=name),), 0)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (rb"a\u0000b", "a\ufffdb"),
        (b"a\x00b", "a\ufffdb"),
        (rb"a\ud800b", "a\ufffdb"),
        (rb"a\uDFFFb", "a\ufffdb"),
        (rb"\udc00\ud800", "\ufffd\ufffd"),
        (rb"\ud83d\ude00\ud83d", "😀\ufffd"),
        (b"a\xffb", "a\ufffdb"),
        (b"a\xc3", "a\ufffd"),
        (b"a\xed\xa0\x80b", "a\ufffd\ufffd\ufffdb"),
        (rb"\u0000\u0000", "\ufffd\ufffd"),
    ],
)
def test_characters_that_no_database_holds_are_replaced(written: bytes, text: str) -> None:
    """NUL, lone surrogates and invalid UTF-8 become U+FFFD; each text counts once."""
    found = read_page(b'[{"id":1,"display_name":"' + written + b'"},{"id":2,"display_name":"b"}]')

    assert found.chats == (Chat(1, display_name=text), Chat(2, display_name="b"))
    assert found.texts_cleaned == 1


@pytest.mark.parametrize("written", [r"\ud83d\ude00", "😀"])
def test_a_pair_of_surrogates_is_a_character(written: str) -> None:
    """A surrogate pair is one character, escaped or not."""
    found = read_page(f'[{{"id":1,"display_name":"{written}"}}]')

    assert (found.chats[0].display_name, found.texts_cleaned) == ("😀", 0)


def test_an_escaped_backslash_is_no_escape() -> None:
    """An escaped backslash before `u0000` is no NUL."""
    found = read_page(r'[{"id":1,"display_name":"a\\u0000b"}]')

    assert (found.chats[0].display_name, found.texts_cleaned) == (r"a\u0000b", 0)


def test_every_text_is_cleaned() -> None:
    """Keys, nested texts and rejected payloads are cleaned and counted too."""
    found = read_page(
        rb'[{"id":1,"x\u0000":[{"k\ud800":["\u0000", "fine"]}],'
        rb'"chat_handles":[{"id":2,"phone_number":"\udfff"}]},{"id":"\u0000"}]'
    )

    assert found.chats == (
        Chat(
            1,
            extra='{"x\ufffd":[{"k\ufffd":["\ufffd","fine"]}]}',
            handles=(Handle(2, phone_number="\ufffd"),),
        ),
    )
    assert [rejected.payload for rejected in found.rejected] == ['{"id":"\ufffd"}']
    assert found.texts_cleaned == 5


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("NaN", '"NaN"'),
        ("[Infinity,-Infinity]", '["Infinity","-Infinity"]'),
        ("1e400", '"1e400"'),
        ("-1e999", '"-1e999"'),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
    ],
)
def test_numbers_beyond_a_float_are_kept(written: str, kept: str) -> None:
    """In `extra`, a number that JSON or a float cannot hold is kept as text."""
    extra = only_chat(f'{{"id":1,"x":{written}}}').extra

    assert extra == f'{{"x":{kept}}}'


def test_a_bad_number_does_not_spoil_its_page() -> None:
    """NaN in place of an integer rejects only that record."""
    found = read_page('[{"id":1},{"id":2,"message_count":NaN},{"id":1e400}]')

    assert found.chats == (Chat(1),)
    assert [rejected.payload for rejected in found.rejected] == [
        '{"id":2,"message_count":"NaN"}',
        '{"id":"1e400"}',
    ]


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("field", ["id", "message_count"])
def test_a_very_long_integer_does_not_spoil_its_page(field: str, sign: str) -> None:
    """An integer with too many digits to parse rejects only that record."""
    long = sign + "1" * 5000
    found = read_page(f'[{{"id":1}},{{"{field}":{long}}},{{"id":3}}]')

    assert found.chats == (Chat(1), Chat(3))
    assert [rejected.payload for rejected in found.rejected] == [f'{{"{field}":"{long}"}}']


def test_a_very_long_integer_is_kept() -> None:
    """In an unknown field, an integer with too many digits is kept as text."""
    long = "1" * 5000

    assert only_chat(f'{{"id":1,"x":{long}}}').extra == f'{{"x":"{long}"}}'


@pytest.mark.parametrize("odd", ["1", r'"\u0000"', "NaN"])
@pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"a":', "}")])
def test_nesting_is_kept(left: str, right: str, odd: str) -> None:
    """Unknown fields may be nested in 399 levels, also if they must be cleaned."""
    nested = left * 399 + odd + right * 399
    kept = nested.replace(r"\u0000", "\ufffd").replace("NaN", '"NaN"')

    assert only_chat(f'{{"id":1,"x":{nested}}}').extra == f'{{"x":{kept}}}'


@pytest.mark.parametrize("odd", ["", r'"\u0000"', "NaN", "1e400", "1" * 5000])
@pytest.mark.parametrize("depth", [400, 958, 1100, 100_000])
@pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"a":', "}")])
def test_a_record_that_is_nested_too_deeply(left: str, right: str, depth: int, odd: str) -> None:
    """It is rejected alone, and its text is kept."""
    item = f'{{"id":2,"x":{left * depth}{odd or 1}{right * depth}}}'
    found = read_page(f'[{{"id":1}},{item},{{"id":3}}]')

    assert found.chats == (Chat(1), Chat(3))
    assert [each.reason for each in found.rejected] == ["More than 400 levels of nesting"]
    kept = {"truncated": True, "head": item[:4096]}
    assert [json.loads(each.payload) for each in found.rejected] == [kept]


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"data":' * 100_000, b'{"data":[' * 100_000])
def test_nesting_without_an_end_is_no_answer(body: bytes) -> None:
    """Brackets that are never closed raise BadAnswerError."""
    with pytest.raises(BadAnswerError):
        decode_page(body, 1, NOON)


def test_a_byte_order_mark_is_skipped() -> None:
    """A byte order mark before the JSON is ignored."""
    assert decode_page(b'\xef\xbb\xbf{"data":[{"id":1}]}', 1, NOON).chats == (Chat(1),)


ORDINARY = [
    {
        "id": 45,
        "display_name": "Ada, Bo",
        "service": "iMessage",
        "group": False,
        "message_count": 25,
        "chat_handles": [
            {"id": 1, "phone_number": "+13125550001", "joined_at": "2025-05-21T15:30:00-05:00"},
            {"id": 2, "phone_number": None, "service": "SMS", "joined_at": None},
        ],
    },
    {"id": 46, "display_name": None, "chat_handles": []},
    {"id": 47},
]
ODD = {
    "no chat": "no chat",
    "an unknown field": {"id": 48, "muted": True},
    "a NUL": {"id": 48, "display_name": "\0"},
    "a lone surrogate": {"id": 48, "display_name": "\ud800"},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_an_odd_record_leaves_the_others_unchanged(odd: Any) -> None:
    """Beside an odd record, the other chats are decoded the same, with the same digests."""
    plain = read_page(json.dumps(ORDINARY)).chats
    beside = read_page(json.dumps([*ORDINARY, odd])).chats[: len(ORDINARY)]

    assert beside == plain
    assert [each.digest for each in beside] == [each.digest for each in plain]
