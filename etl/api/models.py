"""What the API's answers are decoded into, and what they cost.

Fields are named as in the API, except where `field(name=...)` holds the API's own name.
"""

import json
from datetime import datetime
from hashlib import blake2b
from operator import attrgetter
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field


class Instant(datetime):
    """A time in UTC; `text` is the same in ISO 8601."""

    text: str


class Extra(str):
    """The fields that this version does not know, as canonical JSON."""

    __slots__ = ()

    @property
    def text(self) -> str:
        """The same as a plain str: msgspec encodes no subclass of it."""
        return str(self)


Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
EXTRA = "what linq-etl does not know"  # the key of `extra`, beside the API's field names


class Handle(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A participant. A field that the API left out is UNSET; one that it sent as null is None."""

    id: Id
    phone_number: str | UnsetType | None = UNSET
    service: str | UnsetType | None = UNSET
    joined_at: Instant | UnsetType | None = UNSET
    extra: Extra | None = field(default=None, name=EXTRA)


class Chat(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A chat; UNSET as in Handle. `handles` is None if the API sent no list of participants."""

    id: Id
    display_name: str | UnsetType | None = UNSET
    service: str | UnsetType | None = UNSET
    is_group: bool | UnsetType | None = field(default=UNSET, name="group")
    message_count: Id | UnsetType | None = UNSET
    extra: Extra | None = field(default=None, name=EXTRA)
    handles: tuple[Handle, ...] | None = field(default=None, name="chat_handles")

    @property
    def digest(self) -> int:
        """Hash of the whole content, a signed 64-bit integer."""
        return int.from_bytes(blake2b(_encode(self), digest_size=8).digest(), signed=True)


class Rejected(Struct, frozen=True):
    """A record that cannot be stored as a chat; `payload` is its canonical JSON."""

    id: int | None
    reason: str
    payload: str

    @property
    def key(self) -> int:
        """The id, else a negative number computed from the payload."""
        if self.id is not None:
            return self.id
        return ~int.from_bytes(blake2b(self.payload.encode(), digest_size=7).digest())


class Page(Struct, frozen=True):
    """One page of a number's list, requested at `observed_at`.

    `total_count` and `last_page` are None if the API sent neither or contradicted its own rows.
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
        """One id per record: the chats in the list's order, then the rejected records."""
        return [chat.id for chat in self.chats] + [record.key for record in self.rejected]


class LinqNumber(Struct, frozen=True):
    """A phone number that a token reaches, as the API writes it."""

    phone_number: str
    forwarding_number: str | None = None


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


_encode = msgspec.json.Encoder(enc_hook=attrgetter("text")).encode


def canonical_json(value: Any) -> str:
    """JSON that is equal for equal values: keys sorted, no white space."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
