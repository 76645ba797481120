"""What the API's answers are decoded into, and what they cost.

Fields are named as in the API, except where `field(name=...)` holds the API's own name.
"""

import json
from datetime import datetime
from hashlib import blake2b
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

MAX_TEXT: Final = 2**20  # characters, not bytes, like every bound of a text here
MAX_PARTICIPANT: Final = 255

Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Participant = Annotated[str, Meta(max_length=MAX_PARTICIPANT)]

# The key of `extra` beside the API's field names: a code point that is no character. Records that
# contain it are decoded tolerantly, so that a key of the API cannot collide with it.
EXTRA: Final = "\U0010ffff"


class Handle(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A participant. A field that the API left out is UNSET; one that it sent as null is None.

    `joined_at` is in UTC. `extra` holds the fields that this version does not know, as canonical
    JSON.
    """

    id: Id
    phone_number: Participant | UnsetType | None = UNSET
    service: Text | UnsetType | None = UNSET
    joined_at: datetime | UnsetType | None = UNSET
    extra: str | None = field(default=None, name=EXTRA)


class Chat(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A chat; UNSET and `extra` as in Handle. `handles` is None if the API sent no participants."""

    id: Id
    display_name: Text | UnsetType | None = UNSET
    service: Text | UnsetType | None = UNSET
    is_group: bool | UnsetType | None = field(default=UNSET, name="group")
    message_count: Id | UnsetType | None = UNSET
    extra: str | None = field(default=None, name=EXTRA)
    handles: tuple[Handle, ...] | None = field(default=None, name="chat_handles")

    @property
    def digest(self) -> int:
        """Hash of the whole content, a signed 64-bit integer."""
        return hash64(_encode(self))

    @property
    def size(self) -> int:
        """Roughly the most bytes that it takes in memory."""
        return memory_size(_encode(self))


class Rejected(Struct, frozen=True):
    """A record that cannot be stored as a chat.

    `payload` is its canonical JSON, or `{"truncated": true, "head": ...}` if that would be too
    long; `digest` is a hash of the whole record.
    """

    id: int | None
    reason: str
    payload: str
    digest: int

    @property
    def key(self) -> int:
        """The id, else a negative number computed from the whole record."""
        return self.id if self.id is not None else ~(self.digest & (2**56 - 1))


class Withheld(Struct, frozen=True):
    """A chat that must not be stored, because the person in it was forgotten."""

    id: int


class Page(Struct, frozen=True):
    """One page of a number's list, requested at `observed_at`.

    `total_count` and `last_page` are None if the API sent neither or contradicted its own rows.
    `size` is roughly the most bytes that the records take in memory. A gap is a page without rows
    that the API counts among its pages. `withheld` are the ids of chats that must not be stored;
    `contacts` has a hash of the name of each one-to-one chat, by chat id, if names are hashed.
    """

    page_number: int
    per_page: int
    total_count: int | None
    last_page: int | None
    chats: tuple[Chat, ...]
    rejected: tuple[Rejected, ...]
    texts_cleaned: int
    observed_at: datetime
    size: int = 0
    is_gap: bool = False
    withheld: tuple[int, ...] = ()
    contacts: tuple[tuple[int, int], ...] = ()

    @property
    def ids(self) -> list[int]:
        """One id per record: the chats in the list's order, then the rejected ones and others."""
        stored = [chat.id for chat in self.chats]
        return [*stored, *(record.key for record in self.rejected), *self.withheld]


class LinqNumber(Struct, frozen=True):
    """A phone number that a token reaches, as the API writes it."""

    phone_number: Participant
    forwarding_number: Participant | None = None


class ApiUsage(Struct, frozen=True):
    """What was spent on the API; `requests` includes the retries."""

    requests: int = 0
    retries: int = 0
    throttled: int = 0

    def __add__(self, other: "ApiUsage") -> "ApiUsage":
        return ApiUsage(
            self.requests + other.requests,
            self.retries + other.retries,
            self.throttled + other.throttled,
        )


_VALUE_BYTES: Final = 100  # in memory, besides its text
_encode = msgspec.json.Encoder().encode
_encode_canonical = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":")
).encode


def hash64(content: bytes) -> int:
    """A signed 64-bit hash, the same in every process."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), signed=True)


def memory_size(text: bytes) -> int:
    """Roughly the most bytes that JSON takes in memory once it is decoded."""
    # Python stores each character of a text in 4 bytes if one of them needs as many.
    width = 1 if text.isascii() and rb"\u" not in text else 4
    return width * len(text) + _VALUE_BYTES * text.count(b",")


def canonical_json(value: Any) -> str:
    """JSON that is equal for equal values: keys sorted, no white space."""
    return _encode_canonical(value)
