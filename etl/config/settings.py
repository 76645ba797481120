"""The settings: each declared once, as an annotated field, with its bounds and its description.

msgspec checks type and bounds; the description completes the error message "invalid value;
expected ...".
"""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Literal

from msgspec import Meta, Struct

from etl.config import database_url, time_span


@dataclass(frozen=True, slots=True)
class Token:
    """An integration token; no repr, log or error shows its value."""

    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PrivacyKey:
    """The key of the hashes of participants; no repr, log or error shows its value."""

    value: bytes = field(repr=False)


# Not a dataclass, which msgspec would expect to be written as a table.
class SecretUrl:
    """A URL that is a secret; no repr, log or error shows its value."""

    __slots__ = ("value",)

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "SecretUrl()"


@dataclass(frozen=True, slots=True)
class PhoneNumber:
    """A configured number in E.164; `token` is set if token_env gives it a token of its own."""

    e164: str
    label: str | None = None
    token: Token | None = None


class Api(Struct, frozen=True):
    """Section [api]."""

    base_url: Annotated[
        str,
        Meta(description='an https URL, e.g. "https://api.linqapp.com" (http on loopback only)'),
    ] = "https://api.linqapp.com"
    per_page: Annotated[int, Meta(ge=1, le=100, description="a whole number from 1 to 100")] = 100
    timeout_seconds: Annotated[
        float, Meta(ge=0.1, le=600, description="seconds for one whole request, 0.1 to 600")
    ] = 30
    max_attempts: Annotated[
        int, Meta(ge=1, le=20, description="tries per request, a whole number from 1 to 20")
    ] = 8
    max_concurrency: Annotated[
        int, Meta(ge=1, le=64, description="requests at a time, a whole number from 1 to 64")
    ] = 8
    max_requests_per_second: Annotated[
        Annotated[float, Meta(ge=0.001, le=100_000)] | None,
        Meta(description="a number from 0.001 to 100000, or leave it out for no limit"),
    ] = None
    token_file: Annotated[
        str | None, Meta(description='a path, e.g. "/run/secrets/linq_token"')
    ] = None


class Database(Struct, frozen=True):
    """Section [database]."""

    url: Annotated[str, Meta(description=database_url.SHAPES)] = "sqlite:///linq.db"
    schema: Annotated[
        str | None,
        Meta(description='the name of a PostgreSQL schema, at most 63 bytes, e.g. "linq"'),
    ] = None
    auto_upgrade: Annotated[bool, Meta(description="true or false")] = True
    patience: Annotated[
        float,
        Meta(ge=0, le=3600, description="seconds to wait for a lost database, 0 to 3600"),
    ] = 60


class Sync(Struct, frozen=True):
    """Section [sync]."""

    phone_numbers: tuple[PhoneNumber, ...] = ()
    all_phone_numbers: Annotated[bool, Meta(description="true or false")] = False
    max_passes: Annotated[
        int, Meta(ge=1, le=10, description="passes over a moving list, a whole number from 1 to 10")
    ] = 3
    max_confirmations: Annotated[
        int, Meta(ge=0, le=1_000_000, description="missing chats asked for, 0 to 1000000")
    ] = 2000
    max_requests: Annotated[
        Annotated[int, Meta(ge=1, le=10**9)] | None,
        Meta(description="requests of a whole run, 1 to 1000000000, or leave it out"),
    ] = None
    full_every: Annotated[
        str, Meta(pattern=time_span.PATTERN, description='a time span, e.g. "24h", "90m" or "7d"')
    ] = "24h"
    quick_recall: Annotated[
        float, Meta(ge=0, le=0.9999, description="a share of changes, 0 to 0.9999")
    ] = 0.99
    lease_seconds: Annotated[
        int, Meta(ge=10, le=3600, description="a whole number of seconds from 10 to 3600")
    ] = 60

    @property
    def full_every_span(self) -> timedelta:
        """`full_every` as a time span."""
        return time_span.to_timedelta(self.full_every)


Participants = Literal["plain", "hashed", "dropped"]


class Privacy(Struct, frozen=True):
    """Section [privacy]."""

    participants: Annotated[Participants, Meta(description='"plain", "hashed" or "dropped"')] = (
        "plain"
    )
    key_file: Annotated[
        str | None, Meta(description="a path to a file that holds the key, 32 characters or more")
    ] = None


class Monitoring(Struct, frozen=True):
    """Section [monitoring]. Of `ping_url` and `ping_url_file`, a loaded one has the first."""

    ping_url: Annotated[
        SecretUrl | None,
        Meta(description='an http or https URL, e.g. "https://hc-ping.com/UUID"'),
    ] = None
    ping_url_file: Annotated[
        str | None, Meta(description="a path to a file that holds the ping URL")
    ] = None
    metrics_file: Annotated[
        str | None, Meta(description="a path that ends in .prom, in a folder that may be written")
    ] = None


class Log(Struct, frozen=True):
    """Section [log]."""

    json: Annotated[bool, Meta(description="true or false")] = False


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration; `token` is for numbers without one of their own."""

    api: Api
    database: Database
    sync: Sync
    privacy: Privacy
    monitoring: Monitoring
    log: Log
    token: Token | None
    privacy_key: PrivacyKey | None = None


SECTIONS: dict[str, type[Struct]] = {
    "api": Api,
    "database": Database,
    "sync": Sync,
    "privacy": Privacy,
    "monitoring": Monitoring,
    "log": Log,
}
