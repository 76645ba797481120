"""Decode the API's bytes into models, or say why they are no answer.

Together with models.py, the only file that knows the API's field names and error shapes.
"""

import json
import math
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from etl.api.models import (
    EXTRA,
    Chat,
    Extra,
    Handle,
    Instant,
    LinqNumber,
    Page,
    Rejected,
    canonical_json,
)

T = TypeVar("T")


class BadAnswerError(Exception):
    """Not an answer to this request: HTML, truncated, of another shape or for another page."""


class _WireMeta(Struct):
    page: int | None = None
    total_pages: Annotated[int, Meta(ge=0)] | None = None
    total_count: Annotated[int, Meta(ge=0)] | None = None
    per_page: Annotated[int, Meta(ge=1)] | None = None


class _WirePage(Struct):
    data: list[Any]
    meta: _WireMeta | None = None


class _PlainPage(Struct):
    data: tuple[Chat, ...]
    meta: _WireMeta | None = None


class _WireSingle(Struct):
    data: dict[str, Any]


class _WirePhoneNumbers(Struct):
    phone_numbers: list[LinqNumber]


_TOO_DEEP = "JSON that is nested too deeply"
_CHAT_FIELDS = frozenset(Chat.__struct_encode_fields__) - {EXTRA}
_HANDLE_FIELDS = frozenset(Handle.__struct_encode_fields__) - {EXTRA}
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_UNSTORABLE_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


def decode_page(body: bytes, page_number: int, observed_at: datetime) -> Page:
    """Decode the answer to List Chats for this page. Raises BadAnswerError."""
    plain = _plain_page(body)
    if plain:
        records: list[Chat | Rejected] = []
        meta, chats, cleaned = plain.meta, plain.data, 0
    else:
        document, cleaned = _json(body)
        wire = _convert(document, _WirePage)
        records = [_record(item) for item in wire.data]
        meta, chats = wire.meta, tuple(record for record in records if isinstance(record, Chat))
    meta = meta or _WireMeta()
    if meta.page not in (None, page_number):
        raise BadAnswerError(f"an answer for page {meta.page} to a request for page {page_number}")
    rows = len(records or chats)
    total_count, last_page = _extent(meta, page_number, rows=rows)
    return Page(
        page_number=page_number,
        per_page=meta.per_page or rows,
        total_count=total_count,
        last_page=last_page,
        chats=chats,
        rejected=tuple(record for record in records if isinstance(record, Rejected)),
        texts_cleaned=cleaned,
        observed_at=observed_at,
    )


def _plain_page(body: bytes) -> _PlainPage | None:
    """Decode the page in one step; None if it needs cleaning, `extra` or rejections."""
    if _UNSTORABLE_ESCAPE.search(body):
        return None
    try:
        return _decode_plain_page(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _extent(meta: _WireMeta, page_number: int, *, rows: int) -> tuple[int | None, int | None]:
    """Length of the list and its last page; None where `meta` is silent or contradicts the rows."""
    too_short = meta.total_count is not None and rows > meta.total_count
    if too_short or (rows and meta.total_pages == 0):
        return None, None
    last_page = full_pages = meta.total_pages
    if meta.total_count is not None:
        # Pages may be shorter than the reported `per_page`, so the larger page count is used; no
        # page is empty, so there are at most `total_count` of them.
        by_count = math.ceil(meta.total_count / meta.per_page) if meta.per_page else 0
        last_page = min(max(last_page or 0, by_count), meta.total_count) or None
        full_pages = by_count or last_page
    if rows == 0 and full_pages is not None and page_number <= full_pages:
        raise BadAnswerError(f"an empty page {page_number} of {full_pages}")
    unknown = last_page is None and meta.total_count is None
    return meta.total_count, None if unknown else last_page or 1


def decode_chat(body: bytes, chat_id: int) -> Chat | Rejected:
    """Decode the answer to Get Chat for this chat. Raises BadAnswerError."""
    document, _ = _json(body)
    record = _record(_convert(document, _WireSingle).data)
    if record.id not in (None, chat_id):
        raise BadAnswerError("an answer for another chat")
    return record


def decode_phone_numbers(body: bytes) -> tuple[LinqNumber, ...]:
    """Decode the answer to List Phone Numbers. Raises BadAnswerError."""
    document, _ = _json(body)
    return tuple(_convert(document, _WirePhoneNumbers).phone_numbers)


def _convert(document: Any, shape: type[T]) -> T:
    try:
        return msgspec.convert(document, shape, strict=False)
    except msgspec.ValidationError as error:
        raise BadAnswerError(f"JSON of another shape ({error})") from None


def _json(body: bytes) -> tuple[Any, int]:
    """Parse, replace what a database cannot hold, and count the texts changed."""
    try:
        document = msgspec.json.decode(body)
        dirty = bool(_UNSTORABLE_ESCAPE.search(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document, dirty = _lenient_json(body), True
    try:
        return _clean(document) if dirty else (document, 0)
    except RecursionError:
        raise BadAnswerError(_TOO_DEEP) from None


def _lenient_json(body: bytes) -> Any:
    """Parse what msgspec refuses: lone surrogates, invalid UTF-8, numbers beyond a float."""
    try:
        return json.loads(
            body.decode("utf-8-sig", "surrogateescape"),
            strict=False,
            parse_float=_finite,
            parse_int=_integer,
            parse_constant=str,
        )
    except (ValueError, RecursionError):
        raise BadAnswerError("an answer that is not JSON, or is cut short") from None


def _finite(text: str) -> float | str:
    return number if math.isfinite(number := float(text)) else text


def _integer(text: str) -> int | str:
    # int() refuses longer ones. As a text, it fails the type check of an id or a count.
    return int(text) if len(text) < 4000 else text


def _clean(value: Any) -> tuple[Any, int]:
    if isinstance(value, str):
        text, found = _UNSTORABLE.subn("\ufffd", value)
        return text, min(found, 1)
    if isinstance(value, list):
        items = [_clean(item) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    if isinstance(value, dict):
        pairs = [(_clean(key), _clean(item)) for key, item in value.items()]
        return {k: v for (k, _), (v, _) in pairs}, sum(n + m for (_, n), (_, m) in pairs)
    return value, 0


def _record(item: Any) -> Chat | Rejected:
    try:
        return _chat(item)
    except RecursionError:
        raise BadAnswerError(_TOO_DEEP) from None
    except ValueError as error:
        chat_id = item.get("id") if isinstance(item, dict) else None
        known = type(chat_id) is int and -(2**63) <= chat_id < 2**63
        return Rejected(chat_id if known else None, str(error), canonical_json(item))


def _chat(item: Any) -> Chat:
    record = _fold_unknown(item, _CHAT_FIELDS)
    if isinstance(record, dict) and isinstance(handles := record.get("chat_handles"), list):
        # Copied, because a rejected record is stored as it was sent.
        record = {**record, "chat_handles": [_fold_unknown(h, _HANDLE_FIELDS) for h in handles]}
    return msgspec.convert(record, Chat, dec_hook=_convert_value)


def _fold_unknown(record: Any, fields: frozenset[str]) -> Any:
    """Move the fields that this version does not know into one canonical text."""
    if not isinstance(record, dict) or record.keys() <= fields:
        return record
    unknown = {name: record[name] for name in record.keys() - fields}
    known = {name: value for name, value in record.items() if name in fields}
    return known | {EXTRA: Extra(canonical_json(unknown))}


def _convert_value(kind: type, value: Any) -> Instant | Extra:
    """Parse times for msgspec; refuse an `extra` that was not made by `_fold_unknown`."""
    if kind is Instant and isinstance(value, str):
        return _utc(value)
    if isinstance(value, Extra):
        return value
    raise TypeError("Not a text")


@lru_cache(maxsize=1024)  # The participants of a chat have mostly joined at the same time.
def _utc(text: str) -> Instant:
    """Parse an ISO 8601 time with any offset and fraction; without an offset it is UTC."""
    try:
        moment = Instant.fromisoformat(text.strip().upper())
        instant = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        # The parser's own message repeats the text.
        raise ValueError("Not a time") from None
    instant.text = instant.isoformat()
    return instant


_decode_plain_page = msgspec.json.Decoder(_PlainPage, dec_hook=_convert_value).decode


def error_code(body: bytes) -> str | None:
    """The code of the first error in the body, if it is a short name and not free text."""
    try:
        code = _json(body)[0]["errors"][0]["code"]
    except (BadAnswerError, LookupError, TypeError):
        return None
    safe = isinstance(code, str) and re.fullmatch(r"[a-z_]{1,40}", code)
    return code if safe else None
