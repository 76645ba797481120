"""The API without a socket, for histories in which something changes before every request."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from etl.api.client import LinqClient, RequestContext
from etl.api.decode import decode_chat, decode_page
from etl.api.models import ApiUsage, Chat, LinqNumber, Page, Rejected
from etl.sandbox import World
from tests.support.builders import NOON

Change = Callable[[World], object]


def change(number: str, kind: str, position: int, world: World) -> None:
    """Change the chat at that position of the number's list, or create one."""
    listing = world.listing(number)
    if kind == "create":
        world.create(number)
    elif listing:
        getattr(world, kind)(listing[position % len(listing)])


def page_of(
    ids: Sequence[int],
    page_number: int,
    *,
    per_page: int = 2,
    total_count: int | None = None,
    last_page: int | None = None,
    is_gap: bool = False,
) -> Page:
    """A page of chats with these ids, as decoded; by default the API does not count the list."""
    return Page(
        page_number=page_number,
        per_page=per_page,
        total_count=total_count,
        last_page=last_page,
        chats=tuple(map(Chat, ids)),
        rejected=(),
        texts_cleaned=0,
        observed_at=NOON,
        size=0,
        is_gap=is_gap,
    )


class MemoryClient(LinqClient):
    """A client that answers from a world; before each request the next of `changes` happen.

    `sent` holds each chat as last sent; `lists` holds the ids on the number's list after each
    change, in order. `delays` reorder requests that are in flight together.
    """

    def __init__(self, world: World, number: str, *, per_page: int) -> None:
        # Not LinqClient's own __init__, which loads the TLS certificates: too slow for thousands.
        self.usage = defaultdict(ApiUsage)
        self._lanes = {}
        self.world = world
        self.number = number
        self.per_page = per_page
        self.changes: list[Sequence[Change]] = []
        self.delays: list[int] = []
        self.requests = 0
        self.sent: dict[int, dict[str, Any]] = {}
        self.lists: list[frozenset[int]] = []
        self._time = datetime.now(UTC)

    def clock(self) -> datetime:
        self._time = max(self._time + timedelta(microseconds=1), datetime.now(UTC))
        return self._time

    async def list_chats(
        self, context: RequestContext, page_number: int, *, again: bool = False
    ) -> Page:
        await self._before_answer()
        answer = self.world.page(self.number, page_number, self.per_page)
        self.sent |= {chat["id"]: chat for chat in answer["data"]}
        return decode_page(json.dumps(answer).encode(), page_number, self.clock())

    async def get_chat(
        self, context: RequestContext, chat_id: int, *, again: bool = False
    ) -> Chat | Rejected | None:
        await self._before_answer()
        try:
            chat = self.world.chat(chat_id)
        except KeyError:
            return None
        self.sent[chat_id] = chat
        return decode_chat(json.dumps({"data": chat}).encode(), chat_id)

    async def list_phone_numbers(self, context: RequestContext) -> tuple[LinqNumber, ...]:
        await self._before_answer()
        return tuple(LinqNumber(number) for number in self.world.numbers)

    async def _before_answer(self) -> None:
        for _ in range(self.delays.pop() if self.delays else 0):
            await asyncio.sleep(0)
        self.requests += 1
        self._record_list()
        for change in self.changes.pop(0) if self.changes else ():
            change(self.world)
            self._record_list()

    def _record_list(self) -> None:
        self.lists.append(frozenset(self.world.listing(self.number)))
