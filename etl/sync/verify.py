"""Are the stored chats right? A random sample is read again, one by one, and compared.

A difference that something since the last sync explains makes a row stale: new messages, somebody
who joined, the chat's end. What nothing explains is wrong; a rename looks the same, so sync and
verify again. Of a sample without a wrong row, `bound` is what the share of wrong rows in the whole
database stays under, at 95 % confidence.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from msgspec import UNSET
from sqlalchemy import Connection, Engine, Row, and_, func, select

from etl.api.client import LinqClient, RequestContext
from etl.api.decode import Chat, Handle, Rejected, json_text
from etl.api.pace import ApiUsage, Pace
from etl.config import Config, Token
from etl.db.engine import database_clock, in_reading
from etl.db.store.batch import CHAT_FIELDS, HANDLE_FIELDS
from etl.db.tables import chat_handles, chat_phone_numbers, chats
from etl.errors import ConfigError, RequestRefusedError

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Stored:
    """A chat as it is stored, its participants by id, and a number in whose list it is or was."""

    chat: Row[Any]
    handles: dict[int, Row[Any]]
    phone_number: str


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The fields in which a chat differs, without values, and whether a change explains it."""

    chat_id: int
    fields: tuple[str, ...]
    explained: bool

    def __str__(self) -> str:
        kind = "stale" if self.explained else "WRONG"
        return f"{kind}  chat {self.chat_id}: {', '.join(self.fields)}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What the sample says."""

    sampled: int
    matches: int
    unknown: int
    findings: tuple[Mismatch, ...]

    def __str__(self) -> str:
        stale = len(self.findings) - self.wrong
        lines = [
            f"{self.sampled} chats read again: {self.matches} match, {stale} are stale, "
            f"{self.wrong} are wrong, {self.unknown} could not be read",
            f"at 95 % confidence less than {100 * self.bound:.2f} % of all chats are wrong",
        ]
        lines += [f"  {finding}" for finding in self.findings]
        return "\n".join(lines)

    def as_record(self) -> dict[str, Any]:
        """For machines."""
        return {**asdict(self), "wrong": self.wrong, "bound": self.bound}

    @property
    def wrong(self) -> int:
        """How many differ for no known reason."""
        return sum(not finding.explained for finding in self.findings)

    @property
    def bound(self) -> float:
        """The share of wrong rows is below this, at 95 % confidence (Clopper-Pearson)."""
        return upper_bound(self.wrong, self.sampled - self.unknown)


async def verify(config: Config, engine: Engine, sample: int) -> Verification:
    """Read `sample` random chats again and compare them; writes nothing."""
    tokens = {n.e164: n.token for n in config.sync.phone_numbers if n.token}
    stored = await in_reading(engine, lambda c: _sample(c, sample, _readable(config, tokens)))
    now = database_clock(engine)
    pace = Pace(config.api.max_concurrency, config.api.max_requests_per_second)
    findings: list[Mismatch] = []
    unknown = 0
    async with LinqClient(config.api, pace, now=now) as linq:
        for each in stored:
            token = tokens.get(each.phone_number) or config.token
            assert token  # noqa: S101  # only numbers with a token are sampled
            try:
                chat = await linq.get_chat(
                    RequestContext(each.phone_number, token, ApiUsage()), each.chat.id
                )
            except RequestRefusedError:
                unknown += 1
                continue
            finding = compare(each, chat)
            findings += [finding] if finding else []
    matches = len(stored) - unknown - len(findings)
    return Verification(len(stored), matches, unknown, tuple(findings))


def compare(stored: Stored, chat: Chat | Rejected | None) -> Mismatch | None:
    """What sets the stored chat apart from what the API says now; None if nothing."""
    row = stored.chat
    if chat is None:
        return None if row.removed_at else Mismatch(row.id, ("removed_at",), explained=True)
    if isinstance(chat, Rejected) or chat.id != row.id:
        return Mismatch(row.id, ("id",), explained=False)
    if row.removed_at:
        return Mismatch(row.id, ("removed_at",), explained=False)
    fields = [name for name in CHAT_FIELDS if _differs(row, chat, name)]
    fields += _handle_fields(stored, chat)
    return Mismatch(row.id, tuple(fields), _explained(stored, chat)) if fields else None


def upper_bound(wrong: int, sampled: int) -> float:
    """The largest share of wrong rows with which so few would be found in 1 of 20 samples."""
    if wrong >= sampled:
        return 1.0
    low, high = wrong / sampled, 1.0
    for _ in range(60):
        share = (low + high) / 2
        chance = sum(
            math.comb(sampled, k) * share**k * (1 - share) ** (sampled - k)
            for k in range(wrong + 1)
        )
        low, high = (share, high) if chance > 1 - CONFIDENCE else (low, share)
    return high


def _readable(config: Config, tokens: dict[str, Token]) -> Sequence[str] | None:
    """The numbers whose chats can be asked for; None if all."""
    if config.token:
        return None
    if not tokens:
        raise ConfigError("there is no token; set $LINQ_INTEGRATION_TOKEN or api.token_file")
    return list(tokens)


def _sample(connection: Connection, size: int, numbers: Sequence[str] | None) -> list[Stored]:
    links = chat_phone_numbers
    number = select(links.c.chat_id, func.min(links.c.phone_number).label("number"))
    if numbers is not None:
        number = number.where(links.c.phone_number.in_(numbers))
    listed = number.group_by(links.c.chat_id).subquery()
    rows = connection.execute(
        select(chats, listed.c.number)
        .join(listed, listed.c.chat_id == chats.c.id)
        .order_by(func.random())
        .limit(size)
    ).all()
    handles: dict[int, dict[int, Row[Any]]] = {row.id: {} for row in rows}
    present = and_(chat_handles.c.chat_id.in_(handles), chat_handles.c.removed_at.is_(None))
    for handle in connection.execute(select(chat_handles).where(present)):
        handles[handle.chat_id][handle.id] = handle
    return [Stored(row, handles[row.id], row.number) for row in rows]


def _differs(row: Row[Any], told: Chat | Handle, name: str) -> bool:
    value, kept = getattr(told, name), getattr(row, name)
    if name == "extra":
        kept = None if kept is None else json_text(kept)
    differs: bool = value is not UNSET and value != kept
    return differs


def _handle_fields(stored: Stored, chat: Chat) -> list[str]:
    if chat.handles is None:
        return []
    told = {handle.id: handle for handle in chat.handles}
    fields = ["chat_handles"] if told.keys() != stored.handles.keys() else []
    for handle_id in told.keys() & stored.handles.keys():
        row, handle = stored.handles[handle_id], told[handle_id]
        fields += [f"chat_handles.{n}" for n in HANDLE_FIELDS if _differs(row, handle, n)]
    return sorted(set(fields))


def _explained(stored: Stored, chat: Chat) -> bool:
    """Whether something has happened in the chat since it was read."""
    row = stored.chat
    if isinstance(chat.message_count, int) and chat.message_count > (row.message_count or 0):
        return True
    joined = [h.joined_at for h in chat.handles or () if h.id not in stored.handles]
    return any(isinstance(at, datetime) and at > row.changed_at for at in joined)
