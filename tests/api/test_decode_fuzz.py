"""Mutated answers: whatever comes, it is decoded, rejected or no answer, and nothing else."""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

from etl.api.decode import (
    BadAnswerError,
    decode_chat,
    decode_page,
    decode_phone_numbers,
    error_code,
)
from etl.api.models import Chat, Page, Rejected
from tests.support.builders import NOON
from tests.support.decoding import only_chat, tolerated

PAGE: dict[str, Any] = {
    "data": [
        {
            "id": 45,
            "display_name": "Zoë, Bo 😀",
            "service": "iMessage",
            "group": True,
            "message_count": 25,
            "chat_handles": [
                {
                    "id": 1,
                    "phone_number": "+13125550001",
                    "service": "SMS",
                    "joined_at": "2025-05-21T15:30:00.000-05:00",
                },
                {
                    "id": 2,
                    "phone_number": None,
                    "joined_at": "2025-05-21T15:30:00Z",
                    "role": "admin",
                },
            ],
        },
        {"id": 46, "display_name": None, "chat_handles": []},
        {"id": 47, "muted": [True, 1.5, {"a": "b"}]},
    ],
    "meta": {"page": 1, "total_pages": 1, "total_count": 3, "per_page": 100},
    "phone_numbers": [{"phone_number": "+13125550100", "forwarding_number": None}],
    "errors": [{"status": 404, "code": "not_found"}],
}
VALUES = [
    "null", "true", "-1", "0", "-0.0", "1.5", "1e16", "1e23", "1e400", "-1e400", "NaN", "Infinity",
    "9223372036854775807", "9223372036854775808", "1" * 400, "1" * 4299, "1" * 5000, '""', '"a"',
    r'"\u0000"', r'"\ud800"', r'"\udbff\udfff"', '"\U0010ffff"', '"' + "a" * 300 + '"', "[]", "{}",
    "[" * 300 + "]" * 300, "[" * 958 + "]" * 958, '{"a":' * 2000 + "1" + "}" * 2000,
    '"0001-01-01T00:00:00+14:00"', '"9999-12-31T23:59:59.999999-14:00"', '"2025-05-21"',
    '"2025-05-21T15:30:00.123456789+02:00"', '"2025-05-21T15:30:00+00:00:01"', '"20250521T153000"',
]  # fmt: skip
NAMES = ["id", "data", "meta", "extra", r"\u0000", r"\ud800", "\U0010ffff", "", "a" * 300]
PIECES = [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\0", b"\xff", b"\xf4", b"\xed\xa0\x80",
          b"\\u", b"NaN", b"\xef\xbb\xbf", b" ", b"\n", b"-", b"e9"]  # fmt: skip


def spelled(value: Any, chance: random.Random) -> str:
    """JSON with a few values and names replaced, and members repeated."""
    if chance.random() < 0.04:
        return chance.choice(VALUES)
    if isinstance(value, list):
        return "[" + ",".join(spelled(item, chance) for item in value) + "]"
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=chance.random() < 0.5)
    members = list(value.items())
    if members and chance.random() < 0.1:
        members.append(chance.choice(members))
    names = [chance.choice(NAMES) if chance.random() < 0.03 else name for name, _ in members]
    items = [spelled(item, chance) for _, item in members]
    return "{" + ",".join(f'"{n}":{item}' for n, item in zip(names, items, strict=True)) + "}"


def mutated(body: bytes, chance: random.Random) -> bytes:
    """The body with a few bytes changed, put in or cut out."""
    for _ in range(chance.choice([0, 0, 1, 1, 2, 5])):
        at = chance.randrange(len(body) + 1)
        put_in = chance.choice([chance.randbytes(1), chance.choice(PIECES), b""])
        body = body[:at] + put_in + body[at + chance.choice([0, 1, 1, 1, 40]) :]
    return body


def bodies(seed: int, count: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    chat = {**PAGE, "data": PAGE["data"][0]}
    for number in range(count):
        document = chat if number % 4 == 0 else PAGE
        text = spelled(document, chance).encode("utf-8", "surrogatepass")
        yield mutated(text, chance)


def check(body: bytes) -> None:
    """Decode the body in every way; what comes out can be stored."""
    found: list[Chat | Rejected] = []
    for decode in (page_records, chat_record):
        try:
            found += decode(body)
        except BadAnswerError as error:
            str(error).encode()
    try:
        for number in decode_phone_numbers(body):
            str(number).encode()
    except BadAnswerError:
        pass
    error_code(body)
    for record in found:
        check_record(record)


def page_records(body: bytes) -> list[Chat | Rejected]:
    page: Page = decode_page(body, 1, NOON)
    assert len(page.ids) == len(page.chats) + len(page.rejected)
    assert all(-(2**63) <= each < 2**63 for each in page.ids)
    assert max(page.per_page, page.total_count or 0, page.last_page or 0) <= 10**9
    return [*page.chats, *page.rejected]


def chat_record(body: bytes) -> list[Chat | Rejected]:
    return [decode_chat(body, 45)]


def check_record(record: Chat | Rejected) -> None:
    """Texts hold no NUL and no surrogate, times are in UTC, JSON can be read."""
    texts: list[Any]
    if isinstance(record, Rejected):
        texts = [record.reason, record.payload]
        json.loads(record.payload)
    else:
        assert -(2**63) <= record.digest < 2**63
        handles = record.handles or ()
        texts = [record.display_name, record.service, record.extra]
        texts += [
            text for each in handles for text in (each.phone_number, each.service, each.extra)
        ]
        times = [each.joined_at for each in handles if each.joined_at]
        assert all(str(time.tzinfo) == "UTC" for time in times)
        for extra in [record.extra, *(each.extra for each in handles)]:
            assert extra is None or isinstance(json.loads(extra), dict)
    for text in texts:
        assert not isinstance(text, str) or not re.search("[\0\ud800-\udfff]", text)


def test_mutated_answers() -> None:
    """Nothing but BadAnswerError is raised, and what is decoded can be stored."""
    for body in bodies(seed=9, count=3000):
        check(body)


def test_both_ways_of_decoding_agree() -> None:
    """A chat has the same content and digest, decoded in one step or tolerantly."""
    chance = random.Random(9)
    for _ in range(3000):
        item = spelled(PAGE["data"][0], chance)
        page = decode_page(f'{{"data":[{item}]}}'.encode("utf-8", "surrogatepass"), 1, NOON)
        for chat in page.chats:
            again = only_chat(tolerated(item))
            assert (again, again.digest) == (chat, chat.digest)
