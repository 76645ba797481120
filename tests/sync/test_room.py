"""Answers that wait for their turn take bounded memory, however large they become."""

import asyncio
from weakref import ref

import pytest
from msgspec import structs
from sqlalchemy import Engine

from etl.api.client import RequestContext
from etl.api.models import Chat, Page, Rejected
from etl.errors import ApiUnavailableError
from etl.sandbox import World
from etl.sync.budget import BoundedFetch
from etl.sync.room import ROOM_BYTES, Room
from etl.sync.seen import ChatIds
from etl.sync.walk import Verdict, walk
from tests.support.account import Account, Api
from tests.support.builders import A, Rows
from tests.support.memory_api import page_of

ROOM, LARGE = 1000, 900
PAGES, WIDTH = 40, 8


class WatchedPage(Page, frozen=True, weakref=True):
    """A page of which the list notices when it is dropped."""


class GrowingList:
    """Its pages are small until `small` of them were read; then each takes LARGE bytes."""

    def __init__(self, room: Room, *, small: int) -> None:
        self.room = room
        self.small = small
        self.fails_at = 0
        self.asked: list[int] = []
        self.asked_again: list[int] = []
        self.delivered: list[int] = []
        self._pages: list[ref[WatchedPage]] = []

    @property
    def bytes_in_memory(self) -> int:
        return sum(page.size for each in self._pages if (page := each()))

    async def fetch(self, number: int) -> Page:
        self.asked.append(number)
        return await self._answer(number)

    async def fetch_again(self, number: int) -> Page:
        self.asked_again.append(number)
        return await self._answer(number)

    async def _answer(self, number: int) -> Page:
        await asyncio.sleep(0)
        ids = range(2 * number, 2 * number + 2)
        plain = page_of(ids, number, total_count=2 * PAGES, last_page=PAGES)
        size = LARGE if len(self.asked) > self.small else 1
        page = WatchedPage(**structs.asdict(structs.replace(plain, size=size)))
        self._pages.append(ref(page))
        return page

    async def deliver(self, page: Page) -> None:
        if page.page_number == self.fails_at:
            raise ApiUnavailableError("down")
        self.delivered.append(page.page_number)
        for _ in range(3):
            await asyncio.sleep(0)

    async def walk(self) -> Verdict:
        bounded = BoundedFetch(
            self.fetch, max_passes=1, fetch_again=self.fetch_again, room=self.room
        )
        with ChatIds() as ids:
            return await walk(bounded, self.deliver, ids, width=WIDTH)


@pytest.mark.parametrize("numbers", [1, 5])
def test_lists_whose_pages_grow_suddenly_fit_into_memory(numbers: int) -> None:
    """All lists together hold no more than the room, a page without room and one just read."""
    most = 0

    async def run() -> list[Verdict]:
        nonlocal most
        room = Room(ROOM)
        lists = [GrowingList(room, small=20) for _ in range(numbers)]
        walks = asyncio.gather(*(each.walk() for each in lists))
        while not walks.done():
            await asyncio.sleep(0)
            most = max(most, sum(each.bytes_in_memory for each in lists))
        return await walks

    verdicts = asyncio.run(run())
    assert {verdict.completeness for verdict in verdicts} == {"consistent"}
    assert most <= ROOM + 2 * LARGE


def test_a_page_without_room_is_read_again_in_its_turn() -> None:
    """Every page is delivered once and in order; the repeated requests do not count."""
    growing = GrowingList(Room(ROOM), small=20)
    asyncio.run(growing.walk())
    in_order = [*range(2, PAGES + 1)]
    assert [number for number in growing.delivered if number != 1][-PAGES + 1 :] == in_order
    assert 0 < len(growing.asked_again) <= WIDTH
    assert set(growing.asked_again) < set(growing.asked)
    assert len(growing.asked) == PAGES + 2


def test_a_walk_that_fails_leaves_its_room() -> None:
    """The other numbers of the run have it then."""
    room = Room(ROOM)

    async def fail() -> None:
        growing = GrowingList(room, small=0)
        growing.fails_at = 5
        with pytest.raises(ApiUnavailableError):
            await growing.walk()

    asyncio.run(fail())
    assert room.take(ROOM)


class LargeChat(Chat, frozen=True, gc=True, weakref=True):
    """A chat of which the API notices when it is dropped."""

    @property
    def size(self) -> int:
        return ROOM_BYTES // 2


class LargeChatsApi(Api):
    """Its chats are large when they are asked for one by one."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.asked_again: list[int] = []
        self.most_in_memory = 0
        self._chats: list[ref[LargeChat]] = []

    async def get_chat(
        self, context: RequestContext, chat_id: int, *, again: bool = False
    ) -> Chat | Rejected | None:
        if again:
            self.asked_again.append(chat_id)
        plain = await super().get_chat(context, chat_id, again=again)
        assert isinstance(plain, Chat)
        chat = LargeChat(**structs.asdict(plain))
        self._chats.append(ref(chat))
        self.most_in_memory = max(self.most_in_memory, sum(bool(each()) for each in self._chats))
        return chat


def test_missing_chats_that_are_large_fit_into_memory(engine: Engine, rows: Rows) -> None:
    """Two fill the room. Beside them: one without room, one just read and one being written."""
    account = Account(engine, rows)
    account.populate(40)
    account.api = api = LargeChatsApi(account.world)
    account.sync()
    missing = account.listed[:30]
    for chat_id in missing:
        account.world.leave_list(A, chat_id)
    assert account.sync(max_concurrency=16).exit_code == 0
    assert account.absent() == set(missing) == set(api.asked)
    assert 0 < len(api.asked_again) <= 16
    assert api.most_in_memory <= 5
