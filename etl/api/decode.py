"""From the API's bytes to typed values, and to a reason where they make none.

The only file that knows the API's field names and error shapes.
"""

import json
import math
import re
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from operator import attrgetter
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

T = TypeVar("T")


class BadAnswerError(Exception):
    """Not an answer to this request: HTML, cut short, of another shape or for another page."""


class Instant(datetime):
    """A time in UTC; `text` is the same in ISO 8601."""

    text: str


class Extra(str):
    """Fields that this version does not know, as canonical JSON."""

    __slots__ = ()

    @property
    def text(self) -> str:
        """Itself, as nothing but a text."""
        return str(self)


Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_EXTRA = "what linq-etl does not know"  # beside the names of the API's fields


class Handle(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A participant; a field that the API left out is UNSET, which is not None."""

    id: Id
    phone_number: str | UnsetType | None = UNSET
    service: str | UnsetType | None = UNSET
    joined_at: Instant | UnsetType | None = UNSET
    extra: Extra | None = field(default=None, name=_EXTRA)


class Chat(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A chat; UNSET as in Handle. `handles` is None where the API gave no list of them."""

    id: Id
    display_name: str | UnsetType | None = UNSET
    service: str | UnsetType | None = UNSET
    is_group: bool | UnsetType | None = field(default=UNSET, name="group")
    message_count: Id | UnsetType | None = UNSET
    extra: Extra | None = field(default=None, name=_EXTRA)
    handles: tuple[Handle, ...] | None = field(default=None, name="chat_handles")

    @property
    def digest(self) -> int:
        """The same number, of 64 bits with a sign, for the same content and for no other."""
        return int.from_bytes(blake2b(_encode(self), digest_size=8).digest(), signed=True)


class Rejected(Struct, frozen=True):
    """A record that is no chat: why, and its canonical JSON text; its id if it has one."""

    id: int | None
    reason: str
    payload: str

    @property
    def key(self) -> int:
        """Its id, else a negative number that the same record has whenever it is read."""
        if self.id is not None:
            return self.id
        return ~int.from_bytes(blake2b(self.payload.encode(), digest_size=7).digest())


class Page(Struct, frozen=True):
    """One page of a number's list, as it was at `observed_at`, when it was asked for.

    `total_count` and `last_page` are None where the API did not say, or contradicted its rows.
    """

    page_number: int
    per_page: int
    total_count: int | None
    last_page: int | None
    chats: tuple[Chat, ...]
    rejected: tuple[Rejected, ...]
    texts_cleaned: int
    observed_at: datetime

    @property
    def ids(self) -> list[int]:
        """An id for each record in the list's order, those that were rejected last."""
        return [chat.id for chat in self.chats] + [record.key for record in self.rejected]


class LinqNumber(Struct, frozen=True):
    """A number that a token reaches."""

    phone_number: str
    forwarding_number: str | None = None


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
_CHAT_FIELDS = frozenset(Chat.__struct_encode_fields__) - {_EXTRA}
_HANDLE_FIELDS = frozenset(Handle.__struct_encode_fields__) - {_EXTRA}
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_UNSTORABLE_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


def page(body: bytes, number: int, observed_at: datetime) -> Page:
    """The answer to List Chats for that page. Raises BadAnswer if it is none."""
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
    if meta.page not in (None, number):
        raise BadAnswerError(f"an answer for page {meta.page} to a request for page {number}")
    rows = len(records or chats)
    total_count, last_page = _extent(meta, number, rows=rows)
    return Page(
        page_number=number,
        per_page=meta.per_page or rows,
        total_count=total_count,
        last_page=last_page,
        chats=chats,
        rejected=tuple(record for record in records if isinstance(record, Rejected)),
        texts_cleaned=cleaned,
        observed_at=observed_at,
    )


def _plain_page(body: bytes) -> _PlainPage | None:
    """The page, decoded at once, if there is nothing on it that takes a closer look."""
    if _UNSTORABLE_ESCAPE.search(body):
        return None
    try:
        return _decode_plain_page(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _extent(meta: _WireMeta, number: int, *, rows: int) -> tuple[int | None, int | None]:
    """Length of the list and its last page, as far as `meta` and the rows agree on them."""
    too_short = meta.total_count is not None and rows > meta.total_count
    if too_short or (rows and meta.total_pages == 0):
        return None, None
    last_page = full_pages = meta.total_pages
    if meta.total_count is not None:
        # A server may say that its pages are longer than they are, but none of them is empty.
        by_count = math.ceil(meta.total_count / meta.per_page) if meta.per_page else 0
        last_page = min(max(last_page or 0, by_count), meta.total_count) or None
        full_pages = by_count or last_page
    if rows == 0 and full_pages is not None and number <= full_pages:
        raise BadAnswerError(f"an empty page {number} of {full_pages}")
    unknown = last_page is None and meta.total_count is None
    return meta.total_count, None if unknown else last_page or 1


def single_chat(body: bytes, chat_id: int) -> Chat | Rejected:
    """The answer to Get Chat for that chat. Raises BadAnswer if it is none."""
    document, _ = _json(body)
    record = _record(_convert(document, _WireSingle).data)
    if record.id not in (None, chat_id):
        raise BadAnswerError("an answer for another chat")
    return record


def phone_numbers(body: bytes) -> tuple[LinqNumber, ...]:
    """The answer to List Phone Numbers. Raises BadAnswer if it is none."""
    document, _ = _json(body)
    return tuple(_convert(document, _WirePhoneNumbers).phone_numbers)


def _convert(document: Any, shape: type[T]) -> T:
    try:
        return msgspec.convert(document, shape, strict=False)
    except msgspec.ValidationError as error:
        raise BadAnswerError(f"JSON of another shape ({error})") from None


def _json(body: bytes) -> tuple[Any, int]:
    """Parse, make every text storable, and count the texts that were changed for it."""
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
    """Parse what msgspec will not: lone surrogates, stray bytes, numbers beyond a float."""
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
    # Python refuses to parse longer ones; as a text it is rejected where a number should be.
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
        return Rejected(chat_id if known else None, str(error), json_text(item))


def _chat(item: Any) -> Chat:
    record = _plain(item, _CHAT_FIELDS)
    if isinstance(record, dict) and isinstance(handles := record.get("chat_handles"), list):
        # A copy, because a record that is rejected is kept as it was sent.
        record = {**record, "chat_handles": [_plain(h, _HANDLE_FIELDS) for h in handles]}
    return msgspec.convert(record, Chat, dec_hook=_convert_value)


def _plain(record: Any, fields: frozenset[str]) -> Any:
    """The record, with what this version does not know of it as one text."""
    if not isinstance(record, dict) or record.keys() <= fields:
        return record
    unknown = {name: record[name] for name in record.keys() - fields}
    known = {name: value for name, value in record.items() if name in fields}
    return known | {_EXTRA: Extra(json_text(unknown))}


def _convert_value(kind: type, value: Any) -> Instant | Extra:
    """What msgspec leaves to us: times, and no field of an answer but our own `extra`."""
    if kind is Instant and isinstance(value, str):
        return _utc(value)
    if isinstance(value, Extra):
        return value
    raise TypeError("Not a text")


@lru_cache(maxsize=1024)  # Those who are in a chat have mostly joined at once.
def _utc(text: str) -> Instant:
    """An ISO 8601 time with any offset and fraction; UTC where it names no offset."""
    try:
        moment = Instant.fromisoformat(text.strip().upper())
        instant = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        # Not the parser's own words, which repeat the text.
        raise ValueError("Not a time") from None
    instant.text = instant.isoformat()
    return instant


_decode_plain_page = msgspec.json.Decoder(_PlainPage, dec_hook=_convert_value).decode
_encode = msgspec.json.Encoder(enc_hook=attrgetter("text")).encode


def json_text(value: Any) -> str:
    """JSON, canonical, so that a field that did not change compares as equal."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def error_code(body: bytes) -> str | None:
    """The code of an error of the API, if the body holds one that is safe to repeat."""
    try:
        code = _json(body)[0]["errors"][0]["code"]
    except (BadAnswerError, LookupError, TypeError):
        return None
    safe = isinstance(code, str) and re.fullmatch(r"[a-z_]{1,40}", code)
    return code if safe else None
