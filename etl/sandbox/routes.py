"""The three routes that read the account, and the format of the answers. No sockets."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from etl.sandbox.world import World

_BASE = "/api/partner/v2"
LIST_CHATS = f"{_BASE}/chats"
LIST_PHONE_NUMBERS = f"{_BASE}/phone_numbers"
_GET_CHAT = re.compile(rf"{LIST_CHATS}/([0-9]{{1,19}})")


class RefusedError(Exception):
    """The request is answered by an error with this status."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes over the wire; the headers may contradict the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def reply_text(status: int, text: str, *, content_type: str) -> Reply:
    body = text.encode()
    return Reply(status, {"Content-Type": content_type, "Content-Length": str(len(body))}, body)


def reply_json(status: int, content: object) -> Reply:
    return reply_text(status, json.dumps(content), content_type="application/json; charset=utf-8")


def reply_error(status: HTTPStatus, detail: str) -> Reply:
    """An error in the API's usual format; the code is the status in words, e.g. `not_found`."""
    code = status.phrase.lower().replace(" ", "_")
    error = {"status": status.value, "code": code, "title": status.phrase, "detail": detail}
    return reply_json(status, {"errors": [error]})


def answer(
    world: World, path: str, *, query: Mapping[str, str], reach: Collection[str]
) -> dict[str, Any]:
    """The answer's content, limited to the numbers in `reach`. Raises RefusedError."""
    if path == LIST_CHATS:
        return _list_chats(world, query, reach)
    if path == LIST_PHONE_NUMBERS:
        shown = [row for row in world.phone_numbers() if row["phone_number"] in reach]
        return {"phone_numbers": shown}
    if match := _GET_CHAT.fullmatch(path):
        return _get_chat(world, int(match[1]), reach)
    raise RefusedError(HTTPStatus.NOT_FOUND, "No such endpoint")


def requested_number(query: Mapping[str, str]) -> str:
    """The `phone_number` in E.164; ten digits are a US number. Raises RefusedError."""
    value = query.get("phone_number", "")
    if re.fullmatch(r"[0-9]{10}", value):
        return f"+1{value}"
    if re.fullmatch(r"\+?[0-9]{10,15}", value):
        return f"+{value.removeprefix('+')}"
    raise RefusedError(HTTPStatus.BAD_REQUEST, "phone_number is missing or invalid")


def _list_chats(world: World, query: Mapping[str, str], reach: Collection[str]) -> dict[str, Any]:
    number = requested_number(query)
    page = _positive(query, "page", default=1)
    per_page = min(100, _positive(query, "per_page", default=25))
    if number not in reach or number not in world.numbers:
        raise RefusedError(HTTPStatus.NOT_FOUND, "Phone number not found")
    return world.page(number, page, per_page)


def _get_chat(world: World, chat_id: int, reach: Collection[str]) -> dict[str, Any]:
    try:
        chat = world.chat(chat_id)
    except KeyError as missing:
        raise RefusedError(HTTPStatus.NOT_FOUND, "Chat not found") from missing
    if not set(world.owners(chat_id)) & set(reach):
        raise RefusedError(HTTPStatus.NOT_FOUND, "Chat not found")
    return {"data": chat}


def _positive(query: Mapping[str, str], name: str, *, default: int) -> int:
    value = query.get(name, str(default))
    if not re.fullmatch(r"[1-9][0-9]{0,8}", value):
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"{name} must be a positive integer")
    return int(value)
