"""Decode the API's bytes into models, or say why they are no answer.

Together with records.py and models.py, the only file that knows the API's field names and error
shapes.
"""

import re
from codecs import BOM_UTF8
from datetime import datetime
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Raw, Struct
from msgspec.structs import astuple

from etl.api.models import Chat, LinqNumber, Page, Rejected, memory_size
from etl.api.records import (
    MAX_VALUES,
    decode_record,
    exceeded_bound,
    in_one_step,
    move_to_utc,
    parse,
)
from etl.api.scan import split_items, split_members

MAX_ROWS: Final = 200  # twice the most that can be asked for; the API may ignore what was asked
MAX_NUMBERS: Final = 100_000
MAX_COUNT: Final = 10**9
_MAX_MEMBERS: Final = 100
_MAX_ERROR: Final = 64 * 1024
_NO_JSON: Final = "an answer that is not JSON, or is cut short"

_Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]


class BadAnswerError(Exception):
    """Not an answer to this request: HTML, truncated, of another shape or for another page."""


class EmptyPageError(BadAnswerError):
    """A page without rows that `meta` counts among the pages; `page` is that page."""

    def __init__(self, reason: str, page: Page) -> None:
        super().__init__(reason)
        self.page = page


class _WireMeta(Struct):
    page: _Count | None = None
    total_pages: _Count | None = None
    total_count: _Count | None = None
    per_page: _Count | None = None


class _PlainPage(Struct):
    data: Annotated[tuple[Chat, ...], Meta(max_length=MAX_ROWS)]
    meta: _WireMeta | None = None


class _PhoneNumbers(Struct):
    phone_numbers: Annotated[list[LinqNumber], Meta(max_length=MAX_NUMBERS)]


# The bytes of each row. A list would have to be built whole before it could be called too long.
_RawRows = msgspec.defstruct(
    "_RawRows",
    [(f"row_{number}", Raw, None) for number in range(MAX_ROWS)],
    array_like=True,
    forbid_unknown_fields=True,
)
_RawPage = msgspec.defstruct("_RawPage", [("data", _RawRows), ("meta", Raw, Raw(b"null"))])


def decode_page(body: bytes, page_number: int, observed_at: datetime) -> Page:
    """Decode the answer to List Chats for this page. Raises BadAnswerError."""
    records = _plain_records(body) or _tolerant_records(body)
    meta, rows = records.meta, len(records.chats) + len(records.rejected)
    if meta.page not in (None, page_number):
        raise BadAnswerError(f"an answer for page {meta.page} to a request for page {page_number}")
    extent = _extent(meta, page_number, rows=rows)
    page = Page(
        page_number=page_number,
        per_page=meta.per_page or rows,
        total_count=extent.total_count,
        last_page=extent.last_page,
        chats=records.chats,
        rejected=records.rejected,
        texts_cleaned=records.texts_cleaned,
        observed_at=observed_at,
        size=memory_size(body),
        is_gap=extent.is_gap,
    )
    if page.is_gap:
        raise EmptyPageError(f"an empty page {page_number} of {extent.full_pages}", page)
    return page


class _Records(NamedTuple):
    meta: _WireMeta
    chats: tuple[Chat, ...]
    rejected: tuple[Rejected, ...] = ()
    texts_cleaned: int = 0


def _plain_records(body: bytes) -> _Records | None:
    """Decode the whole page in one step."""
    if len(body) > MAX_VALUES and body.count(b",") > MAX_VALUES:
        return None
    page = in_one_step(_decode_plain_page, body)
    if page is None or not move_to_utc(page.data):
        return None
    return _Records(page.meta or _WireMeta(), page.data)


def _tolerant_records(body: bytes) -> _Records:
    """Decode record by record, so that none can spoil another."""
    try:
        rows, meta = _split_page(body.removeprefix(BOM_UTF8))
        records = [decode_record(row) for row in rows]
    except ValueError:
        raise BadAnswerError(_NO_JSON) from None
    chats = tuple(record for record, _ in records if isinstance(record, Chat))
    if (participants := sum(len(chat.handles or ()) for chat in chats)) > MAX_VALUES:
        raise BadAnswerError(f"a page with {participants} participants; lower api.per_page")
    return _Records(
        _meta(meta),
        chats,
        tuple(record for record, _ in records if isinstance(record, Rejected)),
        sum(cleaned for _, cleaned in records),
    )


def _split_page(body: bytes) -> tuple[list[bytes], bytes]:
    """The bytes of each row, and those of `meta`."""
    try:
        rows, meta = astuple(_decode_raw_page(body))
        return [bytes(row) for row in astuple(rows) if row is not None], bytes(meta)
    except msgspec.ValidationError as error:
        raise BadAnswerError(f"JSON of another shape ({error})") from None
    except (msgspec.DecodeError, RecursionError):
        members = _members(body, "data")
        return split_items(members["data"], MAX_ROWS), members.get("meta", b"null")


def _members(body: bytes, name: str) -> dict[str, bytes]:
    """The members of the answer, `name` among them. Raises ValueError if it is not JSON."""
    members = split_members(body, _MAX_MEMBERS)
    if name not in members:
        raise BadAnswerError(f"JSON of another shape (missing `{name}`)")
    return members


def _parse(text: bytes) -> Any:
    if reason := exceeded_bound(text):
        raise BadAnswerError(f"an answer that is too large ({reason})")
    try:
        return parse(text)[0]
    except ValueError:
        raise BadAnswerError(_NO_JSON) from None


def _meta(text: bytes) -> _WireMeta:
    found = _parse(text)
    if found is None:
        return _WireMeta()
    if not isinstance(found, dict):
        raise BadAnswerError("JSON of another shape (`meta` is no object)")
    return _WireMeta(**{name: _count(found.get(name)) for name in _WireMeta.__struct_fields__})


def _count(value: Any) -> int | None:
    """A number that `meta` may say, also as `5.0` or `"5"`; None for anything else."""
    if (isinstance(value, float) and value.is_integer()) or (
        isinstance(value, str) and re.fullmatch(r"[0-9]{1,16}", value)
    ):
        value = int(value)
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None


class _Extent(NamedTuple):
    """Length of the list and its last page, None if unknown; `full_pages` have rows."""

    total_count: int | None = None
    last_page: int | None = None
    full_pages: int | None = None
    is_gap: bool = False


def _extent(meta: _WireMeta, page_number: int, *, rows: int) -> _Extent:
    """What `meta` says, unless it contradicts the rows."""
    too_short = meta.total_count is not None and rows > meta.total_count
    if too_short or (rows and meta.total_pages == 0):
        return _Extent()
    last_page = full_pages = meta.total_pages
    if meta.total_count is not None:
        # Pages may be shorter than the reported `per_page`, so the larger page count is used; no
        # page is empty, so there are at most `total_count` of them.
        by_count = -(-meta.total_count // meta.per_page) if meta.per_page else 0
        last_page = min(max(last_page or 0, by_count), meta.total_count) or None
        full_pages = by_count or last_page
    is_gap = rows == 0 and full_pages is not None and page_number <= full_pages
    unknown = last_page is None and meta.total_count is None
    return _Extent(meta.total_count, None if unknown else last_page or 1, full_pages, is_gap)


def decode_chat(body: bytes, chat_id: int) -> Chat | Rejected:
    """Decode the answer to Get Chat for this chat. Raises BadAnswerError."""
    try:
        data = _members(body.removeprefix(BOM_UTF8), "data")["data"].strip()
        record = decode_record(data)[0] if data.startswith(b"{") else None
    except ValueError:
        raise BadAnswerError(_NO_JSON) from None
    if record is None:
        raise BadAnswerError("JSON of another shape (`data` is no object)")
    if record.id not in (None, chat_id):
        raise BadAnswerError("an answer for another chat")
    return record


def decode_phone_numbers(body: bytes) -> tuple[LinqNumber, ...]:
    """Decode the answer to List Phone Numbers. Raises BadAnswerError."""
    plain = in_one_step(_decode_phone_numbers, body)
    if plain:
        return tuple(plain.phone_numbers)
    try:
        members = _members(body.removeprefix(BOM_UTF8), "phone_numbers")
        items = [_parse(item) for item in split_items(members["phone_numbers"], MAX_NUMBERS)]
        return msgspec.convert(items, tuple[LinqNumber, ...])
    except msgspec.ValidationError as error:
        raise BadAnswerError(f"JSON of another shape ({error})") from None
    except ValueError:
        raise BadAnswerError(_NO_JSON) from None


def error_code(body: bytes) -> str | None:
    """The code of the first error in the body, if it is a short name and not free text."""
    if len(body) > _MAX_ERROR:
        return None
    try:
        code = _parse(body.removeprefix(BOM_UTF8))["errors"][0]["code"]
    except (BadAnswerError, LookupError, TypeError):
        return None
    safe = isinstance(code, str) and re.fullmatch(r"[a-z_]{1,40}", code)
    return code if safe else None


_decode_plain_page = msgspec.json.Decoder(_PlainPage).decode
_decode_raw_page = msgspec.json.Decoder(_RawPage).decode
_decode_phone_numbers = msgspec.json.Decoder(_PhoneNumbers).decode
