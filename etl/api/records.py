"""Decode one record: a chat, or the reason why it cannot be stored."""

import json
import math
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec
from msgspec.structs import force_setattr

from etl.api.models import EXTRA, MAX_TEXT, Chat, Handle, Rejected, canonical_json, hash64
from etl.api.scan import has_more_values, is_deeper

T = TypeVar("T")

# Bounds of one record.
MAX_VALUES: Final = 100_000  # a parsed one takes up to 250 bytes
MAX_DEPTH: Final = 400  # comparing takes two of Python's 1000 frames per level
MAX_PAYLOAD: Final = 64 * 1024  # bytes of a rejected record; of a longer one only the head is kept
HEAD: Final = 4096
MAX_TIME: Final = 64  # characters

_CHAT_FIELDS: Final = frozenset(Chat.__struct_encode_fields__) - {EXTRA}
_HANDLE_FIELDS: Final = frozenset(Handle.__struct_encode_fields__) - {EXTRA}
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
_NUL: Final = rb"\u0000"
# Either spelling of EXTRA: in UTF-8 it begins with a byte that hardly any text has.
_EXTRA_BYTE: Final = EXTRA.encode()[0]
_ODD_ESCAPE: Final = re.compile(rb"\\u(?:0000|[dD][bB][fF][fF])")
_LONG_FRACTION: Final = re.compile(rb"\.\d{7}")  # msgspec rounds it, Python cuts it off


def in_one_step(decode: Callable[[bytes], T], text: bytes) -> T | None:
    """Decode what needs no tolerance; None if it must be cleaned, has unknown fields or is wrong.

    The times of the result keep the API's offset, see `move_to_utc`.
    """
    if _EXTRA_BYTE in text or _ODD_ESCAPE.search(text) or _LONG_FRACTION.search(text):
        return None
    try:
        return decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def move_to_utc(chats: Iterable[Chat]) -> bool:
    """Express the times in UTC, in place; False if one then lies outside the years 1 to 9999."""
    try:
        for chat in chats:
            for handle in chat.handles or ():
                at = handle.joined_at
                if at and at.tzinfo is not UTC:
                    force_setattr(handle, "joined_at", _utc(at))
    except OverflowError:
        return False
    return True


def decode_record(text: bytes) -> tuple[Chat | Rejected, int]:
    """Decode a chat, and count the texts cleaned. Raises ValueError if it is not JSON.

    A chat is the same, and so is its digest, whether it was decoded in one step or tolerantly.
    """
    if reason := exceeded_bound(text):
        return Rejected(None, reason, _head(text), hash64(text)), 0
    chat = in_one_step(_decode_chat, text)
    if chat and move_to_utc((chat,)):
        return chat, 0
    found, cleaned = _tolerant_chat(text)
    return (found if isinstance(found, Chat) else _reject(text, found)), cleaned


def exceeded_bound(text: bytes) -> str | None:
    """Why the JSON must not be parsed: nested too deeply, or with too many values."""
    opening = text.count(b"[") + text.count(b"{")
    if opening > MAX_DEPTH and is_deeper(text, MAX_DEPTH):
        return f"More than {MAX_DEPTH} levels of nesting"
    if opening + text.count(b",") >= MAX_VALUES and has_more_values(text, MAX_VALUES):
        return f"More than {MAX_VALUES} values"
    return None


def parse(text: bytes) -> tuple[Any, int]:
    """Parse, replace what a database cannot hold, and count the texts changed.

    The text must be within the bounds. Raises ValueError if it is not JSON.
    """
    try:
        document = msgspec.json.decode(text)
        dirty = _NUL in text  # msgspec refuses lone surrogates
    except ValueError:
        document, dirty = _lenient_json(text), True
    return _clean(document) if dirty or len(text) > MAX_TEXT else (document, 0)


def _lenient_json(text: bytes) -> Any:
    """Parse what msgspec refuses: lone surrogates, invalid UTF-8, numbers beyond a float."""
    return json.loads(
        text.decode("utf-8", "surrogateescape"),
        strict=False,
        parse_float=_finite,
        parse_int=_integer,
        parse_constant=str,
    )


def _finite(text: str) -> float | str:
    return number if math.isfinite(number := float(text)) else text


def _integer(text: str) -> int | str:
    # int() refuses longer ones. As a text, it fails the type check of an id or a count.
    return int(text) if len(text) < 4000 else text


def _clean(value: Any) -> tuple[Any, int]:
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            return value[: MAX_TEXT + 1], 0  # still too long, so that its record is rejected
        text, found = _UNSTORABLE.subn("\ufffd", value)
        return text, min(found, 1)
    if isinstance(value, list):
        items = [*map(_clean, value)]
        return [item for item, _ in items], sum(count for _, count in items)
    if isinstance(value, dict):
        pairs = [*zip(map(_clean, value), map(_clean, value.values()), strict=True)]
        return {k: v for (k, _), (v, _) in pairs}, sum(n + m for (_, n), (_, m) in pairs)
    return value, 0


def _tolerant_chat(text: bytes) -> tuple[Chat | str, int]:
    """A chat or the reason why it is none, and the number of texts cleaned."""
    document, cleaned = parse(text)
    try:
        return _chat(document), cleaned
    except ValueError as error:
        return str(error), cleaned


def _chat(document: Any) -> Chat:
    """Convert the document, which this changes."""
    _fold_unknown(document, _CHAT_FIELDS)
    if isinstance(document, dict) and isinstance(handles := document.get("chat_handles"), list):
        for position, handle in enumerate(handles):
            _fold_unknown(handle, _HANDLE_FIELDS)
            if isinstance(handle, dict) and isinstance(text := handle.get("joined_at"), str):
                if (time := _time(text)) is None:
                    # Without the text, which may be personal.
                    raise ValueError(f"Not a time - at `$.chat_handles[{position}].joined_at`")
                handle["joined_at"] = time
    return msgspec.convert(document, Chat)


def _fold_unknown(record: Any, fields: frozenset[str]) -> None:
    """Move the fields that this version does not know into one canonical text."""
    if not isinstance(record, dict) or record.keys() <= fields:
        return
    extra = canonical_json({name: record.pop(name) for name in record.keys() - fields})
    if len(extra) > MAX_TEXT:
        raise ValueError(f"Unknown fields of more than {MAX_TEXT} characters")
    record[EXTRA] = extra


def _time(text: str) -> datetime | None:
    """Parse an ISO 8601 time with any offset and fraction; without an offset it is UTC."""
    if len(text) > MAX_TIME:
        return None
    try:
        return _utc(datetime.fromisoformat(text.strip().upper()))
    except (ValueError, OverflowError):
        return None


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def _reject(text: bytes, reason: str) -> Rejected:
    document, _ = parse(text)
    chat_id = document.get("id") if isinstance(document, dict) else None
    known = chat_id if type(chat_id) is int and -(2**63) <= chat_id < 2**63 else None
    if len(text) > MAX_PAYLOAD:
        return Rejected(known, reason, _head(text), hash64(text))
    payload = canonical_json(document)
    return Rejected(known, reason, payload, hash64(payload.encode()))


def _head(text: bytes) -> str:
    head = _UNSTORABLE.sub("\ufffd", text[:HEAD].decode(errors="replace"))
    return canonical_json({"truncated": True, "head": head})


_decode_chat = msgspec.json.Decoder(Chat).decode
