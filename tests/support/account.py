"""An account in memory, a database that follows it, and one sync after another."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from etl.api.client import RequestContext
from etl.api.models import Chat, LinqNumber, Page, Rejected
from etl.config import PhoneNumber
from etl.db.tables import chat_events, chat_phone_numbers, chats, sync_run_numbers
from etl.errors import ApiUnavailableError, RequestRefusedError
from etl.sandbox import World
from etl.sandbox.world import Order
from etl.sync.context import RunOptions
from etl.sync.progress import LogProgress
from etl.sync.run import RunResult, sync
from tests.support.builders import A, B, Row, Rows, config_with
from tests.support.memory_api import MemoryClient

UNLIMITED = 10_000


class Api(MemoryClient):
    """The API at the present time; it can fail after so many pages or answers."""

    def __init__(self, world: World) -> None:
        super().__init__(world, A, per_page=4)
        self.asked: list[int] = []
        self.reached = world.numbers
        self.listings = 0  # of phone numbers
        self.refuses_numbers = False
        self.hides_numbers = False
        self.good_pages = UNLIMITED
        self.good_answers = UNLIMITED
        self.refused_chats: set[int] = set()
        self.interrupted: asyncio.Task[RunResult] | None = None

    def clock(self) -> datetime:
        return datetime.now(UTC)

    async def list_chats(
        self, context: RequestContext, page_number: int, *, again: bool = False
    ) -> Page:
        self.good_pages -= 1
        if self.good_pages < 0:
            if self.interrupted:
                self.interrupted.cancel()
                await asyncio.Event().wait()
            raise ApiUnavailableError("the API is down")
        return await super().list_chats(context, page_number, again=again)

    async def get_chat(
        self, context: RequestContext, chat_id: int, *, again: bool = False
    ) -> Chat | Rejected | None:
        self.asked.append(chat_id)
        if len(self.asked) > self.good_answers:
            raise ApiUnavailableError("the API is down")
        if chat_id in self.refused_chats:
            raise RequestRefusedError("forbidden", status=403, code="forbidden")
        return await super().get_chat(context, chat_id, again=again)

    async def list_phone_numbers(self, context: RequestContext) -> tuple[LinqNumber, ...]:
        self.listings += 1
        await super().list_phone_numbers(context)
        if self.refuses_numbers:
            raise RequestRefusedError("forbidden", status=403, code="forbidden")
        if self.hides_numbers:
            raise ApiUnavailableError("the API is down")
        return tuple(LinqNumber(number) for number in self.reached)


class Account:
    """An account, a database that follows it, and one sync after another."""

    def __init__(self, engine: Engine, rows: Rows) -> None:
        self.engine = engine
        self.rows = rows
        self.populate(12)

    def populate(self, size: int, *, order: Order = "recency", shared: int = 0) -> None:
        self.world = World((A, B), order=order)
        self.world.populate([(A, B)] * shared + [(A,)] * (size - shared))
        self.api = Api(self.world)

    @property
    def listed(self) -> tuple[int, ...]:
        return self.world.listing(A)

    async def run(
        self,
        number: str = A,
        *,
        max_concurrency: int = 1,
        max_confirmations: int = 2000,
        max_passes: int = 3,
        max_requests: int | None = None,
        patience: float = 60,
        full_every: str = "24h",
        clock: Callable[[], datetime] | None = None,
        **options: Any,
    ) -> RunResult:
        ceiling = {"SYNC__MAX_REQUESTS": max_requests} if max_requests else {}
        config = config_with(
            API__MAX_CONCURRENCY=max_concurrency,
            DATABASE__PATIENCE=patience,
            SYNC__MAX_CONFIRMATIONS=max_confirmations,
            SYNC__MAX_PASSES=max_passes,
            SYNC__FULL_EVERY=full_every,
            **ceiling,
        )
        self.api.number, self.api.asked = number, []
        client: Any = self.api
        asked_for = RunOptions((PhoneNumber(number),), **options)
        return await sync(
            config, self.engine, client, options=asked_for, progress=LogProgress(), clock=clock
        )

    def sync(self, number: str = A, **options: Any) -> RunResult:
        return asyncio.run(self.run(number, **options))

    def interrupt(self, *, after_pages: int) -> None:
        async def run() -> None:
            self.api.good_pages = after_pages
            self.api.interrupted = asyncio.ensure_future(self.run())
            with suppress(asyncio.CancelledError):
                await self.api.interrupted
            self.api.interrupted, self.api.good_pages = None, UNLIMITED

        asyncio.run(run())

    def chat(self, chat_id: int) -> Row:
        return next(row for row in self.rows(chats) if row["id"] == chat_id)

    def link(self, chat_id: int, number: str = A) -> Row:
        keys = {"phone_number": number, "chat_id": chat_id}
        return next(row for row in self.rows(chat_phone_numbers) if keys.items() <= row.items())

    def links(self) -> tuple[list[Row], list[Row]]:
        """Every chat, and which number lists it."""
        return self.rows(chats), self.rows(chat_phone_numbers)

    def removed(self) -> set[int]:
        return {row["id"] for row in self.rows(chats) if row["removed_at"]}

    def absent(self) -> set[int]:
        """The chats whose link is removed or missing."""
        links = self.rows(chat_phone_numbers)
        return {row["chat_id"] for row in links if row["removed_at"] or row["missing_since"]}

    def events(self) -> list[tuple[Any, ...]]:
        wanted = ("run_id", "chat_id", "kind", "old_value", "new_value")
        return [tuple(row[name] for name in wanted) for row in self.rows(chat_events)]

    def completeness(self) -> list[str | None]:
        return [row["completeness"] for row in self.rows(sync_run_numbers)]


def number_in(result: RunResult) -> Row:
    (number,) = result.record["numbers"]
    return dict(number)
