"""Decoding: the API's JSON becomes whole values, rejected records or BadAnswerError."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from etl.api.decode import (
    BadAnswerError,
    EmptyPageError,
    decode_chat,
    decode_page,
    decode_phone_numbers,
    error_code,
)
from etl.api.models import Chat, Handle, LinqNumber, Page, canonical_json
from tests.support.builders import NOON
from tests.support.decoding import (
    only_chat,
    only_handle,
    only_rejected,
    page_meta,
    read_page,
    rejected,
)

DATA = Path(__file__).parent / "data"
NO_JSON = "an answer that is not JSON, or is cut short"
MAX_ID, MIN_ID = 2**63 - 1, -(2**63)


# Chats and handles


def test_the_documented_page() -> None:
    """The documented answer becomes one whole page, its times in UTC."""
    joined_at = datetime(2025, 5, 21, 20, 30, tzinfo=UTC)
    body = (DATA / "list_chats.json").read_bytes()

    assert structs.replace(decode_page(body, 1, NOON), size=0) == Page(
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
        observed_at=NOON,
        size=0,
    )


def test_a_field_left_out_is_not_a_null() -> None:
    """A missing key, a null and a value are decoded as three different values."""
    nulls = (
        '{"id":1,"display_name":null,"service":null,"group":null,"message_count":null,'
        '"chat_handles":null}'
    )

    assert only_chat('{"id":1}') == Chat(1)
    assert only_chat(nulls) == Chat(
        1, display_name=None, service=None, is_group=None, message_count=None
    )
    assert only_chat('{"id":1,"display_name":"","message_count":0,"chat_handles":[]}') == Chat(
        1, display_name="", message_count=0, handles=()
    )


def test_a_handles_field_left_out_is_not_a_null() -> None:
    """The same holds for the fields of a participant."""
    assert only_handle('{"id":2}') == Handle(2)
    assert only_handle('{"id":2,"phone_number":null,"service":null,"joined_at":null}') == Handle(
        2, phone_number=None, service=None, joined_at=None
    )


def test_unknown_fields_are_kept() -> None:
    """Unknown fields of chats and of handles are kept in `extra`."""
    found = only_chat('{"id":1,"muted":true,"chat_handles":[{"id":2,"role":"admin"}]}')

    assert found == Chat(1, extra='{"muted":true}', handles=(Handle(2, extra='{"role":"admin"}'),))


def test_extra_is_canonical() -> None:
    """Unknown fields in another order and spelling give the same text."""
    one = only_chat('{"z":[1, 2.50], "id":1, "a":{"y":null, "b":"\\u00e9\\ud83d\\ude00"}}')
    other = only_chat('{"a":{"b":"é😀","y":null},"id":1,"z":[1,2.5]}')

    assert one.extra == other.extra == '{"a":{"b":"é😀","y":null},"z":[1,2.5]}'


def test_unknown_services_and_mail_addresses_are_values() -> None:
    """Services and addresses are any text, stored verbatim."""
    found = only_handle('{"id":2,"phone_number":"Zoë@Example.COM","service":"Threads"}')

    assert found == Handle(2, phone_number="Zoë@Example.COM", service="Threads")


@pytest.mark.parametrize("edge", [MAX_ID, MIN_ID, 2**53 + 1, 0])
def test_ids_and_counts_have_64_bits(edge: int) -> None:
    """Every signed 64-bit integer is decoded exactly."""
    assert only_chat(f'{{"id":{edge},"message_count":{edge}}}') == Chat(edge, message_count=edge)
    assert only_handle(f'{{"id":{edge}}}') == Handle(edge)


def test_duplicates_are_kept() -> None:
    """Duplicate chats and handles are kept, in order: db/store decides which one counts."""
    found = read_page('[{"id":1,"chat_handles":[{"id":2,"service":"a"},{"id":2}]},{"id":1}]')

    assert found.chats == (Chat(1, handles=(Handle(2, service="a"), Handle(2))), Chat(1))
    assert found.ids == [1, 1]


@pytest.mark.parametrize(
    "key", ["\U0010ffff", r"\uDBFF\udfff", "extra", "what linq-etl does not know"]
)
@pytest.mark.parametrize("value", ["null", '"{}"', '{"a":1}'])
@pytest.mark.parametrize("others", ["", ',"muted":true'])
def test_no_name_of_a_field_is_reserved(key: str, value: str, others: str) -> None:
    """The key that holds unknown fields may itself be an unknown field, however it is spelled."""
    name = json.loads(f'"{key}"')
    item = f'{{"id":1,"{key}":{value}{others}}}'
    unknown = {name: json.loads(value)} | ({"muted": True} if others else {})
    extra = canonical_json(unknown)

    assert only_chat(item) == Chat(1, extra=extra)
    assert only_handle(item) == Handle(1, extra=extra)


# Rejected records


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
def test_a_malformed_chat_is_rejected(item: str, chat_id: int | None, reason: str) -> None:
    """A rejected record has the reason, its payload, and its id if that is valid."""
    assert only_rejected(item) == rejected(chat_id, reason, item)


def test_a_bad_handle_rejects_its_chat() -> None:
    """A chat with a malformed handle is rejected as a whole, with its id and its payload."""
    item = '{"chat_handles":[{"id":2},{"id":9223372036854775808}],"id":1}'

    reason = "Expected `int` <= 9223372036854775807 - at `$.chat_handles[1].id`"
    assert only_rejected(item) == rejected(1, reason, item)


@pytest.mark.parametrize("beyond", [MAX_ID + 1, MIN_ID - 1, 2**64, 10**400])
def test_ids_beyond_64_bits_are_rejected(beyond: int) -> None:
    """An id that does not fit a BIGINT rejects the record, which keeps it in its payload."""
    found = only_rejected(f'{{"id":{beyond}}}')

    assert (found.id, found.payload) == (None, f'{{"id":{beyond}}}')
    assert found.reason.startswith("Expected `int`")


def test_a_rejected_record_is_kept_as_it_was_sent() -> None:
    """The payload of a rejected record is unchanged, also where a handle has unknown fields."""
    item = '{"chat_handles":[{"id":2,"role":"admin"},{"id":"3"}],"id":1}'

    assert only_rejected(item).payload == item


def test_a_rejected_record_leaves_the_others() -> None:
    """A rejected record does not affect the other chats of its page."""
    found = read_page('[{"id":1},{"id":"x"},{"group":5,"id":3},{"id":4}]')

    assert found.chats == (Chat(1), Chat(4))
    assert [each.id for each in found.rejected] == [None, 3]


# Times


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
    """Times with any offset and fraction become UTC, to the microsecond."""
    joined_at = only_handle(json.dumps({"id": 2, "joined_at": written})).joined_at

    assert isinstance(joined_at, datetime)
    assert joined_at.utcoffset() == timedelta(0)
    assert joined_at.replace(tzinfo=None) == datetime.fromisoformat(utc)


@pytest.fixture
def _far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A local time zone that differs from UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-5:45")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_far_from_utc")
def test_a_time_without_offset_is_utc_everywhere() -> None:
    """A time without an offset is UTC, whatever the local time zone is."""
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
        '"0001-01-01T00:00:00.000+14:00"',
        '"0001-01-01T05:44+05:45"',
        '"9999-12-31T23:59:59-01:00"',
        '"10000-01-01T00:00:00Z"',
        "1716305400",
        "true",
        "{}",
    ],
)
def test_a_malformed_time_rejects_its_chat(written: str) -> None:
    """A malformed or impossible time rejects the chat."""
    item = f'{{"chat_handles":[{{"id":2,"joined_at":{written}}}],"id":1}}'
    found = only_rejected(item)

    assert (found.id, found.payload) == (1, item)


@pytest.mark.parametrize("written", ["", "call +13125550100", "2025-02-30T00:00:00Z"])
def test_a_reason_does_not_repeat_the_text(written: str) -> None:
    """The reason does not repeat a malformed time, which may be personal text."""
    found = only_rejected(f'{{"id":1,"chat_handles":[{{"id":2,"joined_at":"{written}"}}]}}')

    assert found.reason == "Not a time - at `$.chat_handles[0].joined_at`"


# Pages


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
def test_an_answer_must_be_json(body: bytes) -> None:
    """HTML, an empty body, truncated JSON or trailing text raises BadAnswerError."""
    with pytest.raises(BadAnswerError, match=NO_JSON):
        decode_page(body, 1, NOON)


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
    ],
)
def test_an_answer_must_have_the_shape_of_a_page(body: bytes) -> None:
    """JSON that is not a page of chats raises BadAnswerError."""
    with pytest.raises(BadAnswerError, match="JSON of another shape"):
        decode_page(body, 1, NOON)


@pytest.mark.parametrize("asked", [1, 3])
def test_an_answer_must_be_for_the_requested_page(asked: int) -> None:
    """An answer for another page than the requested one raises BadAnswerError."""
    with pytest.raises(
        BadAnswerError, match=f"^an answer for page 2 to a request for page {asked}$"
    ):
        read_page('[{"id":1}]', page_meta(page=2), page_number=asked)


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
    """Page size, length and last page come from `meta`, as far as it agrees with the rows."""
    found = read_page('[{"id":1},{"id":2}]', page_meta(**fields))

    assert (found.per_page, found.total_count, found.last_page) == extent


@pytest.mark.parametrize(
    "written",
    [
        "-1",
        "1.5",
        "9007199254740993",
        "9223372036854775808",
        "10000000000000000000",
        "1e400",
        "-1e400",
        "1e30",
        "NaN",
        "true",
        "[]",
        "{}",
        '"many"',
        '"-1"',
        '"1e3"',
        '"٣"',
        '"99999999999999999999"',
        "1" * 5000,
    ],
)
@pytest.mark.parametrize("field", ["page", "per_page", "total_pages", "total_count"])
def test_what_is_no_count_was_not_said(field: str, written: str) -> None:
    """In `meta`, only integers from 0 to 10**9 count; the other fields stay valid."""
    others = page_meta(**{field: None})
    odd = others.replace(f'"{field}": null', f'"{field}": {written}')

    found, expected = read_page('[{"id":1}]', odd), read_page('[{"id":1}]', others)
    assert structs.replace(found, size=expected.size) == expected


@pytest.mark.parametrize(("written", "count"), [("3.0", 3), ('"3"', 3), ("2e2", 200), ("-0.0", 0)])
def test_other_spellings_of_a_count(written: str, count: int) -> None:
    """Whole floats and digits in a text are counts too."""
    found = read_page("[]", f'{{"total_count":{written},"per_page":100}}', page_number=9)

    assert found.total_count == count


def test_the_largest_count() -> None:
    """The largest count that `meta` may say is 10**9."""
    found = read_page('[{"id":1}]', page_meta(total_count=10**9, total_pages=10**9, per_page=1))

    assert (found.total_count, found.last_page) == (10**9, 10**9)


@pytest.mark.parametrize("written", ["null", "{}"])
def test_a_missing_meta_says_nothing(written: str) -> None:
    """Without `meta`, length and last page are None."""
    found = read_page('[{"id":1},{"id":2}]', written, page_number=4)

    assert (found.page_number, found.per_page, found.total_count, found.last_page) == (
        4,
        2,
        None,
        None,
    )
    assert found.ids == [1, 2]


def test_a_page_without_meta_at_all() -> None:
    """The key `meta` may be missing."""
    found = decode_page(b'{"data":[]}', 4, NOON)

    assert (found.per_page, found.total_count, found.last_page, found.ids) == (0, None, None, [])


def test_rows_that_exceed_the_total_make_it_unknown() -> None:
    """A total smaller than the page's own rows is ignored, and so is the last page."""
    rows = ",".join(f'{{"id":{number}}}' for number in range(100))
    found = read_page(f"[{rows}]", page_meta(total_count=5, total_pages=1, per_page=100))

    assert (found.total_count, found.last_page) == (None, None)


def test_an_empty_list() -> None:
    """An empty list has one page, which is empty."""
    found = read_page("[]", page_meta(total_pages=0, total_count=0))

    assert (found.total_count, found.last_page, found.ids) == (0, 1, [])


@pytest.mark.parametrize(
    ("fields", "total"),
    [
        ({"total_pages": 1, "total_count": 0}, 0),
        ({"total_pages": None, "total_count": 0}, 0),
        ({"total_pages": 0, "total_count": None}, None),
    ],
)
def test_an_empty_list_with_half_a_meta(fields: dict[str, Any], total: int | None) -> None:
    """A total of 0 or a page count of 0 is enough for an empty list."""
    found = read_page("[]", page_meta(**fields))

    assert (found.total_count, found.last_page, found.ids) == (total, 1, [])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_page_before_the_end_must_not_be_empty(number: int) -> None:
    """A page without rows that `meta` counts among the pages raises EmptyPageError."""
    with pytest.raises(EmptyPageError, match=f"^an empty page {number} of 3$") as raised:
        read_page("[]", page_meta(page=number), page_number=number)

    page = raised.value.page
    assert (page.page_number, page.ids, page.is_gap) == (number, [], True)
    assert (page.total_count, page.last_page) == (65, 3)


def test_a_counted_page_must_not_be_empty() -> None:
    """The page count alone is enough to know that a page has rows."""
    with pytest.raises(EmptyPageError, match=r"^an empty page 2 of 3$"):
        read_page("[]", page_meta(page=2, total_count=None), page_number=2)


def test_an_empty_page_beyond_the_end() -> None:
    """A page beyond the last one is empty."""
    found = read_page("[]", page_meta(page=4), page_number=4)

    assert (found.total_count, found.last_page, found.ids) == (65, 3, [])
    assert not found.is_gap


# Other answers


def test_a_single_chat() -> None:
    """The answer to Get Chat is decoded and cleaned like a chat of a page."""
    body = rb'{"data":{"id":5,"display_name":"a\u0000","pinned":1}}'

    assert decode_chat(body, 5) == Chat(5, display_name="a\ufffd", extra='{"pinned":1}')


@pytest.mark.parametrize(
    ("data", "chat_id", "reason"),
    [
        ('{"group":"no","id":5}', 5, "Expected `bool | null`, got `str` - at `$.group`"),
        ('{"id":"5"}', None, "Expected `int`, got `str` - at `$.id`"),
    ],
)
def test_a_single_chat_that_cannot_be_stored(data: str, chat_id: int | None, reason: str) -> None:
    """A malformed chat is rejected, as on a page."""
    assert decode_chat(f'{{"data":{data}}}'.encode(), 5) == rejected(chat_id, reason, data)


@pytest.mark.parametrize("data", ['{"id":6}', '{"id":6,"group":"no"}'])
def test_an_answer_must_be_for_the_requested_chat(data: str) -> None:
    """A chat with another id than the requested one raises BadAnswerError."""
    with pytest.raises(BadAnswerError, match=r"^an answer for another chat$"):
        decode_chat(f'{{"data":{data}}}'.encode(), 5)


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"id":5}', b'{"data":null}', b'{"data":[]}'])
def test_an_answer_without_a_chat(body: bytes) -> None:
    """An answer to Get Chat without a chat raises BadAnswerError."""
    with pytest.raises(BadAnswerError):
        decode_chat(body, 5)


def test_the_documented_phone_numbers() -> None:
    """The phone numbers are decoded; unused fields are ignored."""
    assert decode_phone_numbers((DATA / "list_phone_numbers.json").read_bytes()) == (
        LinqNumber("+13343284472"),
        LinqNumber("+13125550100", "+13125550101"),
    )


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"{}", b'{"data":[]}', b'{"phone_numbers":[{"id":7}]}']
)
def test_an_answer_without_phone_numbers(body: bytes) -> None:
    """An answer to List Phone Numbers of another shape raises BadAnswerError."""
    with pytest.raises(BadAnswerError):
        decode_phone_numbers(body)


def test_the_code_of_an_error() -> None:
    """The code of the first error is returned."""
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
    """A byte order mark, further errors and odd values do not hide the code."""
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
        b'{"errors":[{"code":"not_found"}],"x":"%s"}' % (b"x" * 65_536),
        b'{"status":404,"error_code":"not_found","message":"","errors":["text"]}',
    ],
)
def test_an_error_without_a_code(body: bytes) -> None:
    """Anything but a short name in the usual place is no code: it may be personal text."""
    assert error_code(body) is None
