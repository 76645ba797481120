"""Read a random sample of stored chats again and compare them.

A difference is explained by a visible change since the last sync: new messages, a participant who
joined, the chat's end. Any other difference is wrong; a rename looks the same, so sync and verify
again. The bound holds for all chats of the database, at 95 % confidence.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, func, select

from etl.api.client import LinqClient, RequestContext
from etl.api.models import Chat, Rejected, Withheld
from etl.api.pace import Pace
from etl.api.privacy import Privacy
from etl.config import Config, Token
from etl.db.engine import clock_of
from etl.db.store.batch import Observation
from etl.db.store.diff import StoredChat, diff
from etl.db.store.names import with_settled_name
from etl.db.store.read import portions, read_chats
from etl.db.store.watch import UNWATCHED
from etl.db.tables import chat_phone_numbers, chats
from etl.db.transactions import Transactions
from etl.errors import ConfigError, EtlError, RequestRefusedError
from etl.sync.budget import Budget, BudgetSpentError
from etl.sync.privacy import read_privacy

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The columns in which a chat differs, without values; `explained` by a visible change."""

    chat_id: int
    fields: tuple[str, ...]
    explained: bool

    def __str__(self) -> str:
        kind = "stale" if self.explained else "WRONG"
        return f"{kind}  chat {self.chat_id}: {', '.join(self.fields)}"


@dataclass(frozen=True, slots=True)
class Verification:
    """The result for a sample; `unknown` chats could not be read."""

    sampled: int
    matches: int
    unknown: int
    findings: tuple[Mismatch, ...]

    def __str__(self) -> str:
        stale = len(self.findings) - self.wrong
        lines = [
            f"{self.sampled} chats read again: {self.matches} match, {stale} stale, "
            f"{self.wrong} wrong, {self.unknown} could not be read",
            f"at 95 % confidence, less than {100 * self.bound:.2f} % of all chats are wrong",
        ]
        lines += [f"  {mismatch}" for mismatch in self.findings]
        return "\n".join(lines)

    def as_record(self) -> dict[str, Any]:
        """The result for `--json`."""
        return {**asdict(self), "wrong": self.wrong, "bound": self.bound}

    @property
    def wrong(self) -> int:
        """How many chats differ without a visible change."""
        return sum(not mismatch.explained for mismatch in self.findings)

    @property
    def bound(self) -> float:
        """The upper bound for the share of wrong chats, at 95 % confidence."""
        return upper_bound(self.wrong, self.sampled - self.unknown)


async def verify(config: Config, engine: Engine, sample: int) -> Verification:
    """Read `sample` random chats again, side by side, and compare them; writes nothing.

    With sync.max_requests, the sample is no larger; chats that retries leave no request for are
    unknown. The stored chats are read in portions and the answers compared as they come, because
    each may take 32 MiB.
    """
    tokens = {n.e164: n.token for n in config.sync.phone_numbers if n.token}
    readable = _readable_numbers(config, tokens)
    transactions = Transactions(engine, patience=config.database.patience)
    budget = Budget(config.sync.max_requests)
    size = min(sample, budget.limit or sample)
    drawn = await transactions.read(lambda c: _sample(c, size, readable))
    clock = await transactions.read(clock_of)
    pace = Pace(config.api.max_concurrency, config.api.max_requests_per_second)
    findings: list[Mismatch] = []
    unknown: list[int] = []

    async with LinqClient(config.api, pace, clock=clock) as client:
        client.privacy = await transactions.read(partial(read_privacy, config=config))

        async def check(phone_number: str, stored: StoredChat) -> None:
            token = tokens.get(phone_number) or config.token
            assert token  # noqa: S101  # only numbers with a token are sampled
            try:
                budget.take(retries=budget.new_retries(client.usage))
                chat = await client.get_chat(RequestContext(phone_number, token), stored.row.id)
            except (RequestRefusedError, BudgetSpentError):
                unknown.append(stored.row.id)
            else:
                chat = await _settled(transactions, client.privacy, chat)
                findings.extend(compare(stored, chat, phone_number, clock()))

        async def check_all(portion: Mapping[int, str]) -> None:
            stored = await transactions.read(partial(read_chats, chat_ids=portion))
            unknown.extend(portion.keys() - stored.keys())
            pairs = [(portion[chat_id], chat) for chat_id, chat in stored.items()]
            await _side_by_side(check, pairs, width=config.api.max_concurrency)

        for portion in drawn:
            await check_all(portion)
    sampled = sum(map(len, drawn))
    matches = sampled - len(unknown) - len(findings)
    ordered = tuple(sorted(findings, key=lambda mismatch: mismatch.chat_id))
    return Verification(sampled, matches, len(unknown), ordered)


async def _settled(
    transactions: Transactions, privacy: Privacy, chat: Chat | Rejected | Withheld | None
) -> Chat | Rejected | Withheld | None:
    """The answer, without the name of a group that names a person."""
    if privacy.participants != "hashed" or not isinstance(chat, Chat):
        return chat
    settle = partial(with_settled_name, chat=chat, hashes_of=privacy.name_hashes)
    return await transactions.read(settle)


async def _side_by_side(
    check: Callable[[str, StoredChat], Awaitable[None]],
    pairs: Iterable[tuple[str, StoredChat]],
    *,
    width: int,
) -> None:
    remaining = iter(pairs)

    async def work() -> None:
        for pair in remaining:
            await check(*pair)

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(width):
                workers.create_task(work())
    except* EtlError as group:
        raise group.exceptions[0] from None


def compare(
    stored: StoredChat, chat: Chat | Rejected | Withheld | None, phone_number: str, now: datetime
) -> Iterator[Mismatch]:
    """Yield the mismatch between the stored chat and the API's answer, if there is one."""
    row = stored.row
    if isinstance(chat, Withheld):
        return
    if chat is None:
        if not row.removed_at:
            yield Mismatch(row.id, ("removed_at",), explained=True)
    elif isinstance(chat, Rejected) or chat.id != row.id:
        yield Mismatch(row.id, ("id",), explained=False)
    elif row.removed_at:
        yield Mismatch(row.id, ("removed_at",), explained=False)
    elif fields := diff(stored, _observation(chat, phone_number, now), UNWATCHED).fields:
        yield Mismatch(row.id, tuple(fields), _is_explained(stored, chat))


def upper_bound(wrong: int, sampled: int) -> float:
    """The largest share of wrong chats that still shows so few in 1 of 20 samples.

    This is the one-sided bound of Clopper and Pearson. Terms are summed as logarithms: binomial
    coefficients exceed a float.
    """
    if wrong >= sampled:
        return 1.0
    coefficients = [_log_coefficient(sampled, k) for k in range(wrong + 1)]
    low, high = wrong / sampled, 1.0
    for _ in range(50):
        share = (low + high) / 2
        if share >= 1.0:
            break
        logs = math.log(share), math.log1p(-share)
        chance = math.fsum(
            math.exp(coefficient + k * logs[0] + (sampled - k) * logs[1])
            for k, coefficient in enumerate(coefficients)
        )
        low, high = (share, high) if chance > 1 - CONFIDENCE else (low, share)
    return high


def _log_coefficient(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _observation(chat: Chat, phone_number: str, now: datetime) -> Observation:
    return Observation(chat, chat.digest, phone_number, observed_at=now)


def _readable_numbers(config: Config, tokens: Mapping[str, Token]) -> Sequence[str] | None:
    """The numbers whose chats a token reaches; None for all numbers."""
    if config.token:
        return None
    if not tokens:
        raise ConfigError("there is no token: set $LINQ_INTEGRATION_TOKEN or api.token_file")
    return list(tokens)


def _sample(
    connection: Connection, size: int, numbers: Sequence[str] | None
) -> list[dict[int, str]]:
    """Random stored chats in portions, each with a number that lists or listed it."""
    links = chat_phone_numbers
    number = select(links.c.chat_id, func.min(links.c.phone_number).label("number"))
    if numbers is not None:
        number = number.where(links.c.phone_number.in_(numbers))
    listed = number.group_by(links.c.chat_id).subquery()
    drawn = connection.execute(
        select(chats.c.id, listed.c.number)
        .join(listed, listed.c.chat_id == chats.c.id)
        .order_by(func.random())
        .limit(size)
    ).all()
    found: dict[int, str] = {row.id: row.number for row in drawn}
    return [{each: found[each] for each in ids} for ids in portions(connection, [*found])]


def _is_explained(stored: StoredChat, chat: Chat) -> bool:
    """Whether the chat has new messages, or a participant who joined after the last change."""
    row = stored.row
    if isinstance(chat.message_count, int) and chat.message_count > (row.message_count or 0):
        return True
    present = {handle.id for handle in stored.handles.values() if handle.removed_at is None}
    joined = [handle.joined_at for handle in chat.handles or () if handle.id not in present]
    return any(isinstance(at, datetime) and at > row.changed_at for at in joined)
