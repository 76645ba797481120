"""A virtual day of runs, in this process: its requests, and how long changes stay unseen.

The sandbox's messages, the job and its client share one clock. It moves with each request and from
the end of one run to the beginning of the next, so a day takes as long as its requests.
"""

import asyncio
import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import httpx
from sqlalchemy import Engine, select

from etl.api.client import LinqClient
from etl.api.pace import Pace
from etl.api.transport import PATH, Response, Transport
from etl.config import PhoneNumber, Token
from etl.db.engine import reading
from etl.db.run_log import Record
from etl.db.tables import chat_message_counts
from etl.sandbox import Message, Sandbox, Traffic, build_world
from etl.sandbox.world import Order
from etl.sync.context import RunOptions
from etl.sync.progress import LogProgress
from etl.sync.run import sync
from tests.support.builders import A, config_with

ScheduleMode = Literal["full", "quick"]

PER_PAGE: Final = 100
LATENCY: Final = 0.025  # virtual seconds of a request: 8 at a time, 200 ms each
FULL_EVERY, QUICK_EVERY = timedelta(minutes=15), timedelta(minutes=5)
_MIDNIGHT = datetime(2025, 6, 2, tzinfo=UTC)
_WARM_UP = timedelta(days=7)  # of messages before the first run, so that the busy chats lead
_LEAST_WALKS, _LEAST_CHANGED = 6, 300

# When the message was found; None if it was not.
FoundAt = Callable[[Message], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A run begins `every` so often; it may make `max_requests`."""

    every: timedelta
    mode: ScheduleMode
    max_requests: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Staleness:
    """Of all messages: the mean of found minus happened, and how many were found."""

    messages: int
    found: int
    mean_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """What a day of runs brought, and what rotation brings for as many requests.

    `rotation` reads the next pages of the list in turn; only in the order of ids does a chat keep
    its page.
    """

    runs: int
    full_walks: int
    requests: int
    pages: int
    staleness: Staleness
    rotation: Staleness | None


def schedule(mode: ScheduleMode, order: Order, pages: int) -> Schedule:
    """In order of ids, a day of quick runs makes about as many requests as one of full runs."""
    if mode == "full":
        return Schedule(every=FULL_EVERY, mode=mode)
    limit = math.ceil(pages * (QUICK_EVERY / FULL_EVERY)) if order == "id" else None
    return Schedule(every=QUICK_EVERY, mode=mode, max_requests=limit)


class Clock:
    """The virtual time."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def seconds(self) -> float:
        return self.now.timestamp()

    def wait_until(self, moment: datetime) -> None:
        self.now = max(self.now, moment)


class _InProcess(Transport):
    """The sandbox without its socket."""

    def __init__(self, sandbox: Sandbox, clock: Clock) -> None:
        # Not Transport's own __init__, which loads the TLS certificates.
        self._sandbox = sandbox
        self._clock = clock

    async def get(self, token: Token, target: str) -> Response:
        reply = self._sandbox.respond(PATH + target, token.value)
        assert reply
        self._clock.now += timedelta(seconds=LATENCY)
        return Response(reply.status, httpx.Headers(dict(reply.headers)), reply.body)

    def release(self, response: Response) -> None:
        pass

    async def aclose(self) -> None:
        pass


@dataclass
class VirtualAccount:
    """An account with one number, whose messages arrive by the virtual clock, and its database."""

    engine: Engine
    order: Order
    chats: int = 9_000  # and a thousand more that begin before the first run
    messages_per_day: float = 7000
    clock: Clock = field(default_factory=lambda: Clock(_MIDNIGHT - _WARM_UP))
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world = build_world(numbers=(A,), chats_per_number=self.chats, order=self.order)
        self._traffic = Traffic(
            self.world,
            self.messages_per_day,
            clock=self.clock.seconds,
            observe=self.messages.append,
        )

    @contextmanager
    def serving(self) -> Iterator["VirtualAccount"]:
        self._sandbox = Sandbox(self.world, token="t", traffic=self._traffic)
        try:
            yield self
        finally:
            self._sandbox.stop()

    def wait_until(self, moment: datetime) -> None:
        """Let the messages arrive until then, a few at a time."""
        while self.clock.now < moment:
            self.clock.wait_until(min(moment, self.clock.now + timedelta(minutes=15)))
            self._traffic.catch_up()

    async def sync(self, mode: ScheduleMode = "full", max_requests: int | None = None) -> Record:
        """One run at the virtual time; its record."""
        limit = {"SYNC__MAX_REQUESTS": max_requests} if max_requests else {}
        config = config_with(API__PER_PAGE=PER_PAGE, **limit)
        pace = Pace(config.api.max_concurrency)
        transport = _InProcess(self._sandbox, self.clock)
        async with LinqClient(config.api, pace, clock=self.clock, transport=transport) as client:
            result = await sync(
                config,
                self.engine,
                client,
                options=RunOptions((PhoneNumber(A),), mode=mode),
                progress=LogProgress(),
                clock=self.clock,
            )
        return result.record

    async def learn(self) -> None:
        """Load the list and walk it in full, until the order can be known."""
        self.wait_until(_MIDNIGHT)
        await self.sync()
        walks = changed = 0
        while walks < _LEAST_WALKS or changed < _LEAST_CHANGED:
            self.wait_until(_MIDNIGHT + (walks + 1) * FULL_EVERY)
            record = await self.sync()
            walks, changed = walks + 1, changed + record["chats_updated"]
        self.wait_until(_MIDNIGHT + (walks + 1) * FULL_EVERY)

    async def day(self, schedule: Schedule, *, runs: int | None = None) -> Day:
        """A day of runs, or fewer of them; the day ends when the next run would begin."""
        runs = runs or timedelta(days=1) // schedule.every
        begin = self.clock.now
        before = self.world.listing(A)
        self.messages.clear()
        records = []
        for run in range(runs):
            self.wait_until(begin + run * schedule.every)
            records.append(await self.sync(schedule.mode, schedule.max_requests))
        self.wait_until(begin + runs * schedule.every)
        requests = sum(record["requests"] for record in records)
        rotation = None
        if self.order == "id":
            begins = [(begin + run * schedule.every).timestamp() for run in range(runs)]
            listed = self.world.listing(A)
            rotation = self._staleness(rotate(before, listed, self.messages, begins, requests))
        return Day(
            runs=runs,
            full_walks=sum(record["numbers"][0]["completeness"] != "quick" for record in records),
            requests=requests,
            pages=sum(record["pages"] for record in records),
            staleness=self._staleness(self._stored()),
            rotation=rotation,
        )

    def _staleness(self, found_at: FoundAt) -> Staleness:
        return staleness(self.messages, found_at, self.clock.seconds())

    def _stored(self) -> FoundAt:
        """When the database had a count that includes the message."""
        table = chat_message_counts.c
        stored = select(table.chat_id, table.observed_at, table.message_count)
        counts: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
        with reading(self.engine) as connection:
            for chat_id, observed_at, count in connection.execute(
                stored.order_by(table.observed_at)
            ):
                counts[chat_id].append((count or 0, observed_at.timestamp()))

        def found_at(message: Message) -> float | None:
            of_chat = counts[message.chat_id]
            at = bisect_left(of_chat, (message.message_count,))
            return of_chat[at][1] if at < len(of_chat) else None

        return found_at


def staleness(messages: Sequence[Message], found_at: FoundAt, end: float) -> Staleness:
    """A message that is not found counts until the end."""
    found = 0
    seconds = 0.0
    for message in messages:
        at = found_at(message)
        found += at is not None
        # A request sees what happened before its answer, also after it was sent.
        seconds += max((end if at is None else at) - message.at, 0)
    mean = seconds / max(len(messages), 1)
    return Staleness(messages=len(messages), found=found, mean_seconds=mean)


def rotate(
    before: Sequence[int],
    after: Sequence[int],
    messages: Sequence[Message],
    begins: Sequence[float],
    requests: int,
) -> FoundAt:
    """Runs that share the requests evenly and read page after page of a list in order of ids.

    `after` is the list at the end: `before`, and the chats that the messages began.
    """
    page_of = {chat_id: index // PER_PAGE for index, chat_id in enumerate(after)}
    known, begun = {*before}, []
    for message in messages:
        if message.chat_id not in known:
            known.add(message.chat_id)
            begun.append(message.at)
    reads: defaultdict[int, list[float]] = defaultdict(list)
    page = 0
    for run, begin in enumerate(begins):
        share = requests * (run + 1) // len(begins) - requests * run // len(begins)
        for request in range(share):
            at = begin + request * LATENCY
            reads[page].append(at)
            length = len(before) + bisect_right(begun, at)
            page = page + 1 if (page + 1) * PER_PAGE < length else 0

    def found_at(message: Message) -> float | None:
        of_page = reads[page_of[message.chat_id]]
        at = bisect_left(of_page, message.at)
        return of_page[at] if at < len(of_page) else None

    return found_at


def run_day(engine: Engine, mode: ScheduleMode, order: Order) -> Day:
    """A day after a phase in which the order is learned, in a new database."""

    async def run() -> Day:
        with VirtualAccount(engine, order).serving() as account:
            await account.learn()
            pages = -(-len(account.world.listing(A)) // PER_PAGE)
            return await account.day(schedule(mode, order, pages))

    return asyncio.run(run())
