"""The API's bytes and what is made of them: whole values, kept records, answers that are none."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from etl.api.decode import (
    BadAnswerError,
    Chat,
    Handle,
    LinqNumber,
    Page,
    Rejected,
    error_code,
    page,
    phone_numbers,
    single_chat,
)

DATA = Path(__file__).parent / "data"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NO_JSON = "an answer that is not JSON, or is cut short"
MAX_ID, MIN_ID = 2**63 - 1, -(2**63)


def read(data: str | bytes, meta: str = "null", *, number: int = 1) -> Page:
    """The page made of this list of chats and this `meta`, both as the API wrote them."""
    body = data if isinstance(data, bytes) else data.encode()
    return page(b'{"data":' + body + b',"meta":' + meta.encode() + b"}", number, NOW)


def meta(**fields: Any) -> str:
    return json.dumps({"page": 1, "total_pages": 3, "total_count": 65, "per_page": 25} | fields)


def only_chat(item: str | bytes) -> Chat:
    body = item if isinstance(item, bytes) else item.encode()
    (chat,) = read(b"[" + body + b"]").chats
    return chat


def only_handle(item: str) -> Handle:
    (handle,) = only_chat(f'{{"id":1,"chat_handles":[{item}]}}').handles or ()
    return handle


def only_rejected(item: str) -> Rejected:
    (rejected,) = read(f"[{item}]").rejected
    return rejected


def chat(chat_id: int, **fields: Any) -> Chat:
    """A chat of which the API sent nothing but its id and these fields."""
    nothing = {
        "display_name": UNSET,
        "service": UNSET,
        "is_group": UNSET,
        "message_count": UNSET,
        "extra": None,
        "handles": None,
    }
    return Chat(id=chat_id, **nothing | fields)


def handle(handle_id: int, **fields: Any) -> Handle:
    """A handle of which the API sent nothing but its id and these fields."""
    nothing = {"phone_number": UNSET, "service": UNSET, "joined_at": UNSET, "extra": None}
    return Handle(id=handle_id, **nothing | fields)


def test_a_page_as_the_api_documents_it() -> None:
    """The documented answer becomes one whole page, its times in UTC."""
    joined_at = datetime(2025, 5, 21, 20, 30, tzinfo=UTC)

    assert page((DATA / "list_chats.json").read_bytes(), 1, NOW) == Page(
        page_number=1,
        per_page=25,
        total_count=65,
        last_page=3,
        chats=(
            Chat(
                id=45,
                display_name="John Doe, Jane Smith",
                service="iMessage",
                is_group=False,
                message_count=25,
                extra=None,
                handles=(
                    Handle(123, "+15551234567", "iMessage", joined_at, None),
                    Handle(124, "jane@example.com", "iMessage", joined_at, None),
                ),
            ),
        ),
        rejected=(),
        texts_cleaned=0,
        observed_at=NOW,
    )


def test_a_field_left_out_is_not_a_null() -> None:
    """A missing key, a null and a value stay three different things."""
    nulls = (
        '{"id":1,"display_name":null,"service":null,"group":null,"message_count":null,'
        '"chat_handles":null}'
    )

    assert only_chat('{"id":1}') == chat(1)
    assert only_chat(nulls) == chat(
        1, display_name=None, service=None, is_group=None, message_count=None
    )
    assert only_chat('{"id":1,"display_name":"","message_count":0,"chat_handles":[]}') == chat(
        1, display_name="", message_count=0, handles=()
    )


def test_a_handles_field_left_out_is_not_a_null() -> None:
    """The same holds for a participant."""
    assert only_handle('{"id":2}') == handle(2)
    assert only_handle('{"id":2,"phone_number":null,"service":null,"joined_at":null}') == handle(
        2, phone_number=None, service=None, joined_at=None
    )


def test_unknown_fields_are_kept() -> None:
    """Fields that this version does not know are kept in `extra`, of chats and of handles."""
    found = only_chat('{"id":1,"muted":true,"chat_handles":[{"id":2,"role":"admin"}]}')

    assert found == chat(1, extra='{"muted":true}', handles=(handle(2, extra='{"role":"admin"}'),))


def test_extra_is_canonical() -> None:
    """The same fields in another order and spelling are the same text."""
    one = only_chat('{"z":[1, 2.50], "id":1, "a":{"y":null, "b":"\\u00e9\\ud83d\\ude00"}}')
    other = only_chat('{"a":{"b":"é😀","y":null},"id":1,"z":[1,2.5]}')

    assert one.extra == other.extra == '{"a":{"b":"é😀","y":null},"z":[1,2.5]}'


def test_unknown_services_and_mail_addresses_are_values() -> None:
    """A service is any text, and so is a handle's number."""
    found = only_handle('{"id":2,"phone_number":"Zoë@Example.COM","service":"Threads"}')

    assert found == handle(2, phone_number="Zoë@Example.COM", service="Threads")


@pytest.mark.parametrize("edge", [MAX_ID, MIN_ID, 2**53 + 1, 0])
def test_ids_and_counts_have_64_bits(edge: int) -> None:
    """Every 64-bit integer is stored exactly."""
    assert only_chat(f'{{"id":{edge},"message_count":{edge}}}') == chat(edge, message_count=edge)
    assert only_handle(f'{{"id":{edge}}}') == handle(edge)


@pytest.mark.parametrize("beyond", [MAX_ID + 1, MIN_ID - 1, 2**64, 10**400])
def test_ids_beyond_64_bits_are_rejected(beyond: int) -> None:
    """An id that no BIGINT holds makes a rejected record, with the id in its payload."""
    rejected = only_rejected(f'{{"id":{beyond}}}')

    assert (rejected.id, rejected.payload) == (None, f'{{"id":{beyond}}}')
    assert rejected.reason.startswith("Expected `int`")


def test_a_bad_handle_rejects_its_chat() -> None:
    """A chat is stored with all its handles or not at all: its id and its payload are kept."""
    item = '{"chat_handles":[{"id":2},{"id":9223372036854775808}],"id":1}'

    assert only_rejected(item) == Rejected(
        id=1,
        reason="Expected `int` <= 9223372036854775807 - at `$.chat_handles[1].id`",
        payload=item,
    )


@pytest.mark.parametrize(
    ("item", "chat_id", "reason"),
    [
        ("null", None, "Expected `object`, got `null`"),
        ("7", None, "Expected `object`, got `int`"),
        ('"chat"', None, "Expected `object`, got `str`"),
        ("[]", None, "Expected `object`, got `array`"),
        ("{}", None, "Object missing required field `id`"),
        ('{"id":null}', None, "Expected `int`, got `null` - at `$.id`"),
        ('{"id":"1"}', None, "Expected `int`, got `str` - at `$.id`"),
        ('{"id":1.5}', None, "Expected `int`, got `float` - at `$.id`"),
        ('{"id":true}', None, "Expected `int`, got `bool` - at `$.id`"),
        ('{"display_name":5,"id":1}', 1, "Expected `str | null`, got `int` - at `$.display_name`"),
        ('{"group":"no","id":1}', 1, "Expected `bool | null`, got `str` - at `$.group`"),
        ('{"id":1,"service":{}}', 1, "Expected `str | null`, got `object` - at `$.service`"),
        (
            '{"id":1,"message_count":"25"}',
            1,
            "Expected `int | null`, got `str` - at `$.message_count`",
        ),
        (
            '{"chat_handles":{},"id":1}',
            1,
            "Expected `array | null`, got `object` - at `$.chat_handles`",
        ),
        (
            '{"chat_handles":[null],"id":1}',
            1,
            "Expected `object`, got `null` - at `$.chat_handles[0]`",
        ),
        (
            '{"chat_handles":[{"phone_number":"x"}],"id":1}',
            1,
            "Object missing required field `id` - at `$.chat_handles[0]`",
        ),
    ],
)
def test_what_is_no_chat_is_rejected(item: str, chat_id: int | None, reason: str) -> None:
    """A record that cannot be stored keeps its id if it has one, the reason and its payload."""
    assert only_rejected(item) == Rejected(chat_id, reason, item)


def test_the_others_of_its_page_are_kept() -> None:
    """Rejected records lose nothing of their page, whose ids are all accounted for."""
    found = read('[{"id":1},{"id":"x"},{"group":5,"id":3},{"id":4}]')

    assert found.chats == (chat(1), chat(4))
    assert [rejected.id for rejected in found.rejected] == [None, 3]
    assert [chat_id for chat_id in found.ids if chat_id > 0] == [1, 4, 3]
    again = read('[{"id":"x"},{"group":5,"id":3}]')
    assert [i for i in found.ids if i < 0] == [i for i in again.ids if i < 0] != []


def test_duplicates_are_handed_on() -> None:
    """The same chat or handle twice is shown twice, in order: which one counts is not for here."""
    found = read('[{"id":1,"chat_handles":[{"id":2,"service":"a"},{"id":2}]},{"id":1}]')

    assert found.chats == (chat(1, handles=(handle(2, service="a"), handle(2))), chat(1))
    assert found.ids == [1, 1]


@pytest.mark.parametrize(
    ("written", "utc"),
    [
        ("2025-05-21T15:30:00.000-05:00", "2025-05-21T20:30:00"),
        ("2025-05-21T15:30:00Z", "2025-05-21T15:30:00"),
        ("2025-05-21t15:30:00z", "2025-05-21T15:30:00"),
        (" 2025-05-21T15:30:00Z ", "2025-05-21T15:30:00"),
        ("2025-05-21 15:30:00+05:30", "2025-05-21T10:00:00"),
        ("2025-05-21T15:30:00+0545", "2025-05-21T09:45:00"),
        ("2025-05-21T15:30:00+14", "2025-05-21T01:30:00"),
        ("2025-05-21T15:30:00-12:00", "2025-05-22T03:30:00"),
        ("2025-05-21T15:30:00-00:00", "2025-05-21T15:30:00"),
        ("2025-05-21T15:30:00+00:00:01", "2025-05-21T15:29:59"),
        ("2025-05-21T15:30:00.1Z", "2025-05-21T15:30:00.100000"),
        ("2025-05-21T15:30:00,25Z", "2025-05-21T15:30:00.250000"),
        ("2025-05-21T15:30:00.123456Z", "2025-05-21T15:30:00.123456"),
        ("2025-05-21T15:30:00.123456789+02:00", "2025-05-21T13:30:00.123456"),
        ("2025-12-31T23:59:59.999999-05:00", "2026-01-01T04:59:59.999999"),
        ("2025-05-21T15:30Z", "2025-05-21T15:30:00"),
        ("20250521T153000Z", "2025-05-21T15:30:00"),
        ("2025-05-21T15:30:00", "2025-05-21T15:30:00"),
        ("2025-05-21", "2025-05-21T00:00:00"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999"),
    ],
)
def test_joined_at_becomes_utc(written: str, utc: str) -> None:
    """Any offset and fraction becomes UTC to the microsecond; without an offset it is UTC."""
    joined_at = only_handle(json.dumps({"id": 2, "joined_at": written})).joined_at

    assert isinstance(joined_at, datetime)
    assert joined_at.utcoffset() == timedelta(0)
    assert joined_at.replace(tzinfo=None) == datetime.fromisoformat(utc)


@pytest.fixture
def _far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose own time zone is another one."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-5:45")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_far_from_utc")
def test_a_time_without_offset_is_utc_everywhere() -> None:
    """The machine's own time zone does not matter."""
    joined_at = only_handle('{"id":2,"joined_at":"2025-05-21T15:30:00"}').joined_at

    assert joined_at == datetime(2025, 5, 21, 15, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "written",
    [
        '""',
        '"yesterday"',
        '"2025-02-30T00:00:00Z"',
        '"2025-05-21T25:00:00Z"',
        '"2025-05-21T15:30:00+24:00"',
        '"0001-01-01T00:00:00+01:00"',
        '"9999-12-31T23:59:59-01:00"',
        '"10000-01-01T00:00:00Z"',
        "1716305400",
        "true",
        "{}",
    ],
)
def test_what_is_no_time_rejects_its_chat(written: str) -> None:
    """A time that does not exist or does not fit is kept in a rejected record's payload."""
    item = f'{{"chat_handles":[{{"id":2,"joined_at":{written}}}],"id":1}}'
    rejected = only_rejected(item)

    assert (rejected.id, rejected.payload) == (1, item)


@pytest.mark.parametrize("written", ["", "call +13125550100", "2025-02-30T00:00:00Z"])
def test_a_reason_does_not_repeat_the_text(written: str) -> None:
    """What stands in a time's place may be people's text: the reason only says that it is none."""
    rejected = only_rejected(f'{{"id":1,"chat_handles":[{{"id":2,"joined_at":"{written}"}}]}}')

    assert rejected.reason == "Not a time - at `$.chat_handles[0].joined_at`"


def test_names_are_any_text() -> None:
    """Emoji, control characters and very long names come through unchanged."""
    name = "👩‍👩‍👧‍👦 Zoë\u200f\n\t\x7f\u2028\uffff " + "x" * 100_000

    found = read(json.dumps([{"id": 1, "display_name": name}]))

    assert (found.chats, found.texts_cleaned) == ((chat(1, display_name=name),), 0)


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
def test_what_a_database_cannot_hold_is_replaced(written: bytes, text: str) -> None:
    """NUL, lone surrogates and stray bytes become U+FFFD, and the text is counted once."""
    found = read(b'[{"id":1,"display_name":"' + written + b'"},{"id":2,"display_name":"b"}]')

    assert found.chats == (chat(1, display_name=text), chat(2, display_name="b"))
    assert found.texts_cleaned == 1


@pytest.mark.parametrize("written", [r"\ud83d\ude00", "😀"])
def test_a_pair_of_surrogates_is_a_character(written: str) -> None:
    """An emoji is whole, escaped or not."""
    found = read(f'[{{"id":1,"display_name":"{written}"}}]')

    assert (found.chats[0].display_name, found.texts_cleaned) == ("😀", 0)


def test_an_escaped_backslash_is_no_escape() -> None:
    """A text that only looks like an escaped NUL is not changed."""
    found = read(r'[{"id":1,"display_name":"a\\u0000b"}]')

    assert (found.chats[0].display_name, found.texts_cleaned) == (r"a\u0000b", 0)


def test_every_text_is_cleaned() -> None:
    """Also keys, what is nested, and rejected payloads: each is counted."""
    found = read(
        rb'[{"id":1,"x\u0000":[{"k\ud800":["\u0000", "fine"]}],'
        rb'"chat_handles":[{"id":2,"phone_number":"\udfff"}]},{"id":"\u0000"}]'
    )

    assert found.chats == (
        chat(
            1,
            extra='{"x\ufffd":[{"k\ufffd":["\ufffd","fine"]}]}',
            handles=(handle(2, phone_number="\ufffd"),),
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
    """`extra` is always valid JSON: a number that no JSON or float holds is kept as text."""
    extra = only_chat(f'{{"id":1,"x":{written}}}').extra

    assert extra == f'{{"x":{kept}}}'


def test_a_bad_number_does_not_spoil_its_page() -> None:
    """NaN where an integer belongs rejects that record alone."""
    found = read('[{"id":1},{"id":2,"message_count":NaN},{"id":1e400}]')

    assert found.chats == (chat(1),)
    assert [rejected.payload for rejected in found.rejected] == [
        '{"id":2,"message_count":"NaN"}',
        '{"id":"1e400"}',
    ]


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("field", ["id", "message_count"])
def test_a_very_long_integer_does_not_spoil_its_page(field: str, sign: str) -> None:
    """An integer of more digits than are parsed rejects that record alone, and is kept as text."""
    long = sign + "1" * 5000
    found = read(f'[{{"id":1}},{{"{field}":{long}}},{{"id":3}}]')

    assert found.chats == (chat(1), chat(3))
    assert [rejected.payload for rejected in found.rejected] == [f'{{"{field}":"{long}"}}']


def test_a_very_long_integer_is_kept() -> None:
    """In a field that this version does not know, it is kept as text."""
    long = "1" * 5000

    assert only_chat(f'{{"id":1,"x":{long}}}').extra == f'{{"x":"{long}"}}'


def test_nesting_is_kept() -> None:
    """An unknown field may be nested deeply."""
    nested = "[" * 300 + "]" * 300

    assert only_chat(f'{{"id":1,"x":{nested}}}').extra == f'{{"x":{nested}}}'


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"data":' * 100_000])
def test_nesting_without_an_end_is_no_answer(body: bytes) -> None:
    """Nesting that no parser takes is an answer that is none, not a crash."""
    with pytest.raises(BadAnswerError, match=NO_JSON):
        page(body, 1, NOW)


@pytest.mark.parametrize("odd", [r'"\u0000"', "NaN", "1e400", "1" * 5000])
@pytest.mark.parametrize("depth", [700, 900, 1100, 5000])
def test_deep_nesting_with_an_odd_value_is_no_answer(depth: int, odd: str) -> None:
    """A value that has to be changed, nested more deeply than can be, is no crash either."""
    nested = "[" * depth + odd + "]" * depth

    with pytest.raises(BadAnswerError):
        read(f'[{{"id":1,"x":{nested}}}]')


def test_a_byte_order_mark_is_skipped() -> None:
    """A BOM before the JSON does no harm."""
    assert page(b'\xef\xbb\xbf{"data":[{"id":1}]}', 1, NOW).chats == (chat(1),)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"<!DOCTYPE html><html><body><h1>Bad Gateway</h1></body></html>",
        b'{"data":[{"id":1},{"id"',
        b'{"data":[],"meta":{}',
        b'{"data":[]}{"data":[]}',
        b'{"data":[]} OK',
        b"{'data': []}",
        b"\x1f\x8b\x08\x00",
        '{"data":[]}'.encode("utf-16"),
    ],
)
def test_what_is_not_json_is_no_answer(body: bytes) -> None:
    """HTML, nothing, half of it or too much of it is no answer."""
    with pytest.raises(BadAnswerError, match=NO_JSON):
        page(body, 1, NOW)


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b"[]",
        b'"data"',
        b"{}",
        b'{"data":null}',
        b'{"data":{}}',
        b'{"chats":[]}',
        b'{"errors":[{"status":401}]}',
        b'{"data":[],"meta":[]}',
        b'{"data":[],"meta":{"page":"one"}}',
        b'{"data":[],"meta":{"total_count":-1}}',
        b'{"data":[],"meta":{"total_pages":-1}}',
        b'{"data":[],"meta":{"per_page":0}}',
        b'{"data":[],"meta":{"total_count":1.5}}',
    ],
)
def test_json_of_another_shape_is_no_answer(body: bytes) -> None:
    """JSON that is no page of chats is no answer."""
    with pytest.raises(BadAnswerError, match="JSON of another shape"):
        page(body, 1, NOW)


@pytest.mark.parametrize("asked", [1, 3])
def test_another_page_is_no_answer(asked: int) -> None:
    """An answer that says it is for another page is not taken for the one asked for."""
    with pytest.raises(
        BadAnswerError, match=f"^an answer for page 2 to a request for page {asked}$"
    ):
        read('[{"id":1}]', meta(page=2), number=asked)


@pytest.mark.parametrize(
    ("fields", "extent"),
    [
        ({}, (25, 65, 3)),
        ({"per_page": 100, "total_pages": 1}, (100, 65, 1)),
        ({"page": "1", "total_pages": "3", "total_count": "65", "per_page": "25"}, (25, 65, 3)),
        ({"page": None}, (25, 65, 3)),
        ({"total_pages": None}, (25, 65, 3)),
        ({"total_pages": 2}, (25, 65, 3)),
        ({"total_pages": 9}, (25, 65, 9)),
        ({"total_pages": 99}, (25, 65, 65)),
        ({"per_page": None}, (2, 65, 3)),
        ({"per_page": 10}, (10, 65, 7)),
        ({"total_count": 1, "total_pages": 1}, (25, None, None)),
        ({"total_count": None}, (25, None, 3)),
        ({"total_count": None, "per_page": None}, (2, None, 3)),
        ({"total_count": None, "total_pages": None}, (25, None, None)),
        ({"total_count": None, "total_pages": 0}, (25, None, None)),
        ({"total_pages": 0}, (25, None, None)),
        ({"total_count": 0}, (25, None, None)),
        ({"total_count": 0, "total_pages": 0}, (25, None, None)),
    ],
)
def test_the_extent_of_the_list(
    fields: dict[str, Any], extent: tuple[int, int | None, int | None]
) -> None:
    """`meta` tells page size, length and last page: the larger of two, but none without a row."""
    found = read('[{"id":1},{"id":2}]', meta(**fields))

    assert (found.per_page, found.total_count, found.last_page) == extent


@pytest.mark.parametrize("written", ["null", "{}"])
def test_a_missing_meta_says_nothing(written: str) -> None:
    """Without `meta` the page's rows are all that is known."""
    found = read('[{"id":1},{"id":2}]', written, number=4)

    assert (found.page_number, found.per_page, found.total_count, found.last_page) == (
        4,
        2,
        None,
        None,
    )
    assert found.ids == [1, 2]


def test_a_page_without_meta_at_all() -> None:
    """The key may be missing too."""
    found = page(b'{"data":[]}', 4, NOW)

    assert (found.per_page, found.total_count, found.last_page, found.ids) == (0, None, None, [])


def test_an_empty_list() -> None:
    """A number without chats has one page, which is empty."""
    found = read("[]", meta(total_pages=0, total_count=0))

    assert (found.total_count, found.last_page, found.ids) == (0, 1, [])


@pytest.mark.parametrize(
    ("fields", "total"),
    [
        ({"total_pages": 1, "total_count": 0}, 0),
        ({"total_pages": None, "total_count": 0}, 0),
        ({"total_pages": 0, "total_count": None}, None),
    ],
)
def test_an_empty_list_by_one_word(fields: dict[str, Any], total: int | None) -> None:
    """Either the length or the number of pages is enough to say that the list is empty."""
    found = read("[]", meta(**fields))

    assert (found.total_count, found.last_page, found.ids) == (total, 1, [])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_empty_page_before_the_end_is_no_answer(number: int) -> None:
    """No rows where `meta` says that there are some is not the end of the list."""
    with pytest.raises(BadAnswerError, match=f"^an empty page {number} of 3$"):
        read("[]", meta(page=number), number=number)


def test_an_empty_page_before_the_last_is_no_answer() -> None:
    """The number of pages alone is enough to know that there should be rows."""
    with pytest.raises(BadAnswerError, match=r"^an empty page 2 of 3$"):
        read("[]", meta(page=2, total_count=None), number=2)


def test_an_empty_page_beyond_the_end() -> None:
    """Beyond the last page there are no rows, as it should be."""
    found = read("[]", meta(page=4), number=4)

    assert (found.total_count, found.last_page, found.ids) == (65, 3, [])


def test_a_single_chat() -> None:
    """Get Chat's answer is the chat, cleaned as in a list."""
    body = rb'{"data":{"id":5,"display_name":"a\u0000","pinned":1}}'

    assert single_chat(body, 5) == chat(5, display_name="a\ufffd", extra='{"pinned":1}')


@pytest.mark.parametrize(
    ("data", "chat_id", "reason"),
    [
        ('{"group":"no","id":5}', 5, "Expected `bool | null`, got `str` - at `$.group`"),
        ('{"id":"5"}', None, "Expected `int`, got `str` - at `$.id`"),
    ],
)
def test_a_single_chat_that_cannot_be_stored(data: str, chat_id: int | None, reason: str) -> None:
    """A chat that Get Chat tells and that cannot be stored is there, and rejected as in a list."""
    rejected = single_chat(f'{{"data":{data}}}'.encode(), 5)

    assert rejected == Rejected(chat_id, reason, data)


@pytest.mark.parametrize("data", ['{"id":6}', '{"id":6,"group":"no"}'])
def test_another_chat_is_no_answer(data: str) -> None:
    """An answer for another chat, stored or rejected, is not taken for the one asked for."""
    with pytest.raises(BadAnswerError, match=r"^an answer for another chat$"):
        single_chat(f'{{"data":{data}}}'.encode(), 5)


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"id":5}', b'{"data":null}', b'{"data":[]}'])
def test_what_is_no_single_chat(body: bytes) -> None:
    """Anything else is no answer to Get Chat."""
    with pytest.raises(BadAnswerError):
        single_chat(body, 5)


def test_phone_numbers() -> None:
    """List Phone Numbers tells the numbers, and ignores what this version does not use."""
    assert phone_numbers((DATA / "list_phone_numbers.json").read_bytes()) == (
        LinqNumber("+13343284472"),
        LinqNumber("+13125550100", "+13125550101"),
    )


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"{}", b'{"data":[]}', b'{"phone_numbers":[{"id":7}]}']
)
def test_what_is_no_list_of_phone_numbers(body: bytes) -> None:
    """Anything else is no answer to List Phone Numbers."""
    with pytest.raises(BadAnswerError):
        phone_numbers(body)


def test_the_code_of_an_error() -> None:
    """The code is that of the first error."""
    assert error_code((DATA / "not_found.json").read_bytes()) == "not_found"


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"errors":[{"code":"not_found"}]}',
        b'{"errors":[{"code":"not_found"},"text",null,{"code":5}]}',
        b'{"errors":[{"code":"not_found","status":NaN,"title":"\xff"}],"status":1e400}',
    ],
)
def test_the_code_of_an_odd_error(body: bytes) -> None:
    """A BOM, other entries of any shape and odd values do not hide the first error's code."""
    assert error_code(body) == "not_found"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff",
        b"null",
        b"5",
        b'"errors"',
        b'{"errors":"code"}',
        b'{"errors":{"code":"not_found"}}',
        b'{"errors":["code",{"code":"not_found"}]}',
        b'{"errors":[{"code":["not_found"]}]}',
        b"[" * 100_000,
        b"{}",
        b'{"errors":[]}',
        b'{"errors":["Chat not found"]}',
        b'{"errors":[{"status":404}]}',
        b'{"errors":[{"code":null}]}',
        b'{"errors":[{"code":"No chat for +13343284472"}]}',
        b'{"errors":[{"code":"not_found\\n"}]}',
        b'{"errors":[{"code":"%s"}]}' % (b"x" * 41),
        b'{"status":404,"error_code":"not_found","message":"","errors":["text"]}',
    ],
)
def test_an_error_without_a_code(body: bytes) -> None:
    """What is not a short name in the known place is no code: it may be people's text."""
    assert error_code(body) is None


def test_rows_that_exceed_the_total_make_it_unknown() -> None:
    """A total that is smaller than the page's own rows is no reason to stop there."""
    rows = ",".join(f'{{"id":{number}}}' for number in range(100))
    found = read(f"[{rows}]", meta(total_count=5, total_pages=1, per_page=100))

    assert (found.total_count, found.last_page) == (None, None)


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
def test_something_odd_beside_them_changes_no_chat(odd: Any) -> None:
    """The others of its page are the same chats, with the same digests, as without it."""
    plain = read(json.dumps(ORDINARY)).chats
    beside = read(json.dumps([*ORDINARY, odd])).chats[: len(ORDINARY)]

    assert beside == plain
    assert [each.digest for each in beside] == [each.digest for each in plain]


def test_a_rejected_record_is_kept_as_it_was_sent() -> None:
    """Also where a participant has fields that this version does not know."""
    item = '{"chat_handles":[{"id":2,"role":"admin"},{"id":"3"}],"id":1}'

    assert only_rejected(item).payload == item


@pytest.mark.parametrize("value", ["null", '"{}"', '{"a":1}'])
def test_no_name_of_a_field_is_reserved(value: str) -> None:
    """A field with the name under which unknown fields are kept is an unknown field."""
    found = only_chat(f'{{"id":1,"what linq-etl does not know":{value},"muted":true}}')

    assert found == chat(1, extra=f'{{"muted":true,"what linq-etl does not know":{value}}}')


@pytest.mark.parametrize(
    "spelled",
    [
        '{"display_name":"Zo\\u00eb","id":1,"chat_handles":[{"joined_at":"2025-01-01T00:00Z","id":2}]}',
        '{ "id": 1, "chat_handles": [{"id": 2, "joined_at": "2024-12-31T19:00:00-05:00"}],'
        ' "display_name": "Zoë"}',
    ],
)
def test_the_digest_is_of_the_content(spelled: str) -> None:
    """The order of fields, white space, escapes and a time's offset do not matter."""
    handles = '[{"id":2,"joined_at":"2025-01-01T00:00:00Z"}]'
    first = only_chat(f'{{"id":1,"display_name":"Zoë","chat_handles":{handles}}}')

    assert only_chat(spelled).digest == first.digest


def test_what_is_not_the_same_has_another_digest() -> None:
    """Any field of the chat or of a participant counts, left out and null are two things."""
    told = [
        '{"id":1}',
        '{"id":2}',
        '{"id":1,"display_name":null}',
        '{"id":1,"display_name":"a"}',
        '{"id":1,"service":"a"}',
        '{"id":1,"group":false}',
        '{"id":1,"message_count":0}',
        '{"id":1,"mood":"a"}',
        '{"id":1,"chat_handles":[]}',
        '{"id":1,"chat_handles":[{"id":1}]}',
        '{"id":1,"chat_handles":[{"id":1,"phone_number":"a"}]}',
        '{"id":1,"chat_handles":[{"id":1,"service":"a"}]}',
        '{"id":1,"chat_handles":[{"id":1,"joined_at":null}]}',
        '{"id":1,"chat_handles":[{"id":1,"joined_at":"2025-01-01"}]}',
        '{"id":1,"chat_handles":[{"id":1,"mood":"a"}]}',
        '{"id":1,"chat_handles":[{"id":1},{"id":2}]}',
        '{"id":1,"chat_handles":[{"id":2},{"id":1}]}',
    ]

    assert len({only_chat(each).digest for each in told}) == len(told)


def test_digests_stay_the_same() -> None:
    """They are stored: another version of the program that makes others compares all chats once."""
    item = '{"id":1,"display_name":"Ada","chat_handles":[{"id":2,"joined_at":"2025-01-01"}],"x":1}'

    assert only_chat(item).digest == 6545277631856519117
