"""Pages and chats decoded from JSON as the API writes it."""

import json
from typing import Any

from etl.api.decode import decode_page
from etl.api.models import Chat, Handle, Page, Rejected, hash64
from tests.support.builders import NOON


def page_meta(**fields: Any) -> str:
    return json.dumps({"page": 1, "total_pages": 3, "total_count": 65, "per_page": 25} | fields)


def read_page(data: str | bytes, meta: str = "null", *, page_number: int = 1) -> Page:
    """Decode the page with this JSON array of records."""
    records = data if isinstance(data, bytes) else data.encode()
    body = b'{"data":' + records + b',"meta":' + meta.encode() + b"}"
    return decode_page(body, page_number, NOON)


def only_chat(record: str) -> Chat:
    (chat,) = read_page(f"[{record}]").chats
    return chat


def only_handle(record: str) -> Handle:
    (handle,) = only_chat(f'{{"id":1,"chat_handles":[{record}]}}').handles or ()
    return handle


def only_rejected(record: str) -> Rejected:
    (rejected,) = read_page(f"[{record}]").rejected
    return rejected


def rejected(chat_id: int | None, reason: str, payload: str) -> Rejected:
    """The rejected record that was sent with this canonical JSON."""
    return Rejected(chat_id, reason, payload, hash64(payload.encode()))


def tolerated(record: str) -> str:
    """The same record, spelled so that it cannot be decoded in one step: its last id counts."""
    return r'{"id":"\u0000",' + record.removeprefix("{")
