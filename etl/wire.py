"""From the API's bytes to typed values, and to a reason where they make none.

The only file that knows the API's field names and error shapes.
"""

import json
import math
import re
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

T = TypeVar("T")


class BadAnswer(Exception):
    """Not an answer to this request: HTML, cut short, of another shape or for another page."""


class Handle(Struct, frozen=True, gc=False):
    """A participant; a field that the API left out is UNSET, which is not None."""

    id: int
    phone_number: str | UnsetType | None
    service: str | UnsetType | None
    joined_at: datetime | UnsetType | None
    extra: str | None


class Chat(Struct, frozen=True):
    """A chat; UNSET as in Handle. `handles` is None where the API gave no list of them.

    `extra` is canonical JSON text of the fields that this version does not know.
    """

    id: int
    display_name: str | UnsetType | None
    service: str | UnsetType | None
    is_group: bool | UnsetType | None
    message_count: int | UnsetType | None
    extra: str | None
    handles: tuple[Handle, ...] | None


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

    number: int
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


Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class _WireHandle(Struct):
    id: Id
    phone_number: str | UnsetType | None = UNSET
    service: str | UnsetType | None = UNSET
    joined_at: str | UnsetType | None = UNSET


class _WireChat(Struct):
    id: Id
    display_name: str | UnsetType | None = UNSET
    service: str | UnsetType | None = UNSET
    group: bool | UnsetType | None = UNSET
    message_count: Id | UnsetType | None = UNSET
    chat_handles: list[_WireHandle] | UnsetType | None = UNSET


class _WireMeta(Struct):
    page: int | None = None
    total_pages: Annotated[int, Meta(ge=0)] | None = None
    total_count: Annotated[int, Meta(ge=0)] | None = None
    per_page: Annotated[int, Meta(ge=1)] | None = None


class _WirePage(Struct):
    data: list[Any]
    meta: _WireMeta | None = None


class _WireSingle(Struct):
    data: dict[str, Any]


class _WirePhoneNumbers(Struct):
    phone_numbers: list[LinqNumber]


_TOO_DEEP = "JSON that is nested too deeply"
_CHAT_FIELDS = frozenset(_WireChat.__struct_fields__)
_HANDLE_FIELDS = frozenset(_WireHandle.__struct_fields__)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_UNSTORABLE_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


def page(body: bytes, number: int, observed_at: datetime) -> Page:
    """The answer to List Chats for that page. Raises BadAnswer if it is none."""
    document, cleaned = _json(body)
    wire = _convert(document, _WirePage)
    meta = wire.meta or _WireMeta()
    if meta.page not in (None, number):
        raise BadAnswer(f"an answer for page {meta.page} to a request for page {number}")
    total_count, last_page = _extent(meta, number, rows=len(wire.data))
    records = [_record(item) for item in wire.data]
    return Page(
        number=number,
        per_page=meta.per_page or len(wire.data),
        total_count=total_count,
        last_page=last_page,
        chats=tuple(record for record in records if isinstance(record, Chat)),
        rejected=tuple(record for record in records if isinstance(record, Rejected)),
        texts_cleaned=cleaned,
        observed_at=observed_at,
    )


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
        raise BadAnswer(f"an empty page {number} of {full_pages}")
    unknown = last_page is None and meta.total_count is None
    return meta.total_count, None if unknown else last_page or 1


def single_chat(body: bytes, chat_id: int) -> Chat | Rejected:
    """The answer to Get Chat for that chat. Raises BadAnswer if it is none."""
    document, _ = _json(body)
    record = _record(_convert(document, _WireSingle).data)
    if record.id not in (None, chat_id):
        raise BadAnswer("an answer for another chat")
    return record


def phone_numbers(body: bytes) -> tuple[LinqNumber, ...]:
    """The answer to List Phone Numbers. Raises BadAnswer if it is none."""
    document, _ = _json(body)
    return tuple(_convert(document, _WirePhoneNumbers).phone_numbers)


def _convert(document: Any, shape: type[T]) -> T:
    try:
        return msgspec.convert(document, shape, strict=False)
    except msgspec.ValidationError as error:
        raise BadAnswer(f"JSON of another shape ({error})") from None


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
        raise BadAnswer(_TOO_DEEP) from None


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
        raise BadAnswer("an answer that is not JSON, or is cut short") from None


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
        raise BadAnswer(_TOO_DEEP) from None
    except (ValueError, OverflowError) as error:
        chat_id = item.get("id") if isinstance(item, dict) else None
        known = type(chat_id) is int and -(2**63) <= chat_id < 2**63
        return Rejected(chat_id if known else None, str(error), json_text(item))


def _chat(item: Any) -> Chat:
    wire = msgspec.convert(item, _WireChat)
    handles = None
    if wire.chat_handles:
        handles = tuple(map(_handle, wire.chat_handles, item["chat_handles"]))
    elif wire.chat_handles == []:
        handles = ()
    return Chat(
        id=wire.id,
        display_name=wire.display_name,
        service=wire.service,
        is_group=wire.group,
        message_count=wire.message_count,
        extra=_extra(item, _CHAT_FIELDS),
        handles=handles,
    )


def _handle(wire: _WireHandle, item: dict[str, Any]) -> Handle:
    joined_at = wire.joined_at
    return Handle(
        id=wire.id,
        phone_number=wire.phone_number,
        service=wire.service,
        joined_at=_utc(joined_at) if isinstance(joined_at, str) else joined_at,
        extra=_extra(item, _HANDLE_FIELDS),
    )


@lru_cache(maxsize=1024)  # Those who are in a chat have mostly joined at once.
def _utc(text: str) -> datetime:
    """An ISO 8601 time with any offset and fraction; UTC where it names no offset."""
    try:
        moment = datetime.fromisoformat(text.strip().upper())
    except ValueError:
        # Not the parser's own words, which repeat the text.
        raise ValueError("joined_at is not a time") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def _extra(item: dict[str, Any], known: frozenset[str]) -> str | None:
    if item.keys() <= known:
        return None
    return json_text({key: item[key] for key in item.keys() - known})


def json_text(value: Any) -> str:
    """JSON, canonical, so that a field that did not change compares as equal."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def error_code(body: bytes) -> str | None:
    """The code of an error of the API, if the body holds one that is safe to repeat."""
    try:
        code = _json(body)[0]["errors"][0]["code"]
    except (BadAnswer, LookupError, TypeError):
        return None
    safe = isinstance(code, str) and re.fullmatch(r"[a-z_]{1,40}", code)
    return code if safe else None
