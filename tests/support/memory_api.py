"""The API without a socket, for histories in which something changes before every request."""

import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from etl.api import decode as wire
from etl.api.client import RequestContext
from etl.api.decode import Chat, LinqNumber, Page, Rejected
from etl.sandbox import World

Change = Callable[[World], None]


def change(number: str, kind: str, position: int, world: World) -> None:
    """Something happens to the chat at that position of the list, or a chat is created."""
    listing = world.listing(number)
    if kind == "create":
        world.create(number)
    elif listing:
        getattr(world, kind)(listing[position % len(listing)])


class MemoryLinq:
    """Answers from a world as etl.linq.Linq does; before each request the next changes happen.

    `sent` has what was last told of each chat, `lists` what the number's list was at each instant,
    in the order of time. `delays` shuffle requests that are under way at once.
    """

    def __init__(self, world: World, number: str, *, per_page: int) -> None:
        self.world = world
        self.number = number
        self.per_page = per_page
        self.changes: list[Sequence[Change]] = []
        self.delays: list[int] = []
        self.requests = 0
        self.sent: dict[int, dict[str, Any]] = {}
        self.lists: list[frozenset[int]] = []
        self._time = datetime.now(UTC)

    def now(self) -> datetime:
        self._time = max(self._time + timedelta(microseconds=1), datetime.now(UTC))
        return self._time

    async def list_chats(self, line: RequestContext, page: int) -> Page:
        await self._before_answer()
        answer = self.world.page(self.number, page, self.per_page)
        self.sent |= {chat["id"]: chat for chat in answer["data"]}
        return wire.page(json.dumps(answer).encode(), page, self.now())

    async def get_chat(self, line: RequestContext, chat_id: int) -> Chat | Rejected | None:
        await self._before_answer()
        try:
            chat = self.world.chat(chat_id)
        except KeyError:
            return None
        self.sent[chat_id] = chat
        return wire.single_chat(json.dumps({"data": chat}).encode(), chat_id)

    async def list_phone_numbers(self, line: RequestContext) -> tuple[LinqNumber, ...]:
        await self._before_answer()
        return tuple(LinqNumber(number) for number in self.world.numbers)

    async def _before_answer(self) -> None:
        for _ in range(self.delays.pop() if self.delays else 0):
            await asyncio.sleep(0)
        self.requests += 1
        self._note()
        for change in self.changes.pop(0) if self.changes else ():
            change(self.world)
            self._note()

    def _note(self) -> None:
        self.lists.append(frozenset(self.world.listing(self.number)))
