"""Memory for the answers of a run that wait for their turn, whatever their size.

Room for a page is reserved by the largest page seen so far. One that turns out larger and does not
fit is dropped, and read again when it is next. Then it is the only one without room. The answer to
Get Chat is a page of one chat.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self, TypeVar

from etl.api.models import Page

T = TypeVar("T")
Read = Callable[[], Awaitable[Page]]

ROOM_BYTES = 48 * 1024 * 1024


class Room:
    """Bytes for the pages of all numbers of a run, from their requests until they are queued.

    Whoever holds `alone` may read a page for which there is no room.
    """

    def __init__(self, free: int = ROOM_BYTES) -> None:
        self._free = free
        self.alone = asyncio.Lock()

    def take(self, size: int) -> bool:
        """Reserve so many bytes, if they are free."""
        fits = size <= self._free
        self._free -= size if fits else 0
        return fits

    def release(self, size: int) -> None:
        """Give back what was taken."""
        self._free += size

    def ahead(self, expected: int, read: Read) -> "Reading | None":
        """Start to read a page of the expected size; None if there is no room for it."""
        return Reading(self, expected, read) if self.take(expected) else None

    async def use(
        self,
        reading: "Reading | None",
        use: Callable[[Page], Awaitable[T]],
        *,
        read: Read,
        again: Read,
    ) -> T:
        """Use a page whose turn it is. One without room is read alone: `again` if it was read."""
        if reading:
            async with reading:
                if page := await reading.page():
                    return await use(page)
        async with self.alone:
            return await use(await (again if reading else read)())


class Reading:
    """A page that is read ahead of its turn. Ended by `close`, or by leaving the `with` block.

    It takes over `reserved` bytes of room.
    """

    def __init__(self, room: Room, reserved: int, read: Read) -> None:
        self._room = room
        self._taken = reserved
        self._task = asyncio.ensure_future(self._read(read))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def page(self) -> Page | None:
        """The page; None if there was no room for it."""
        return await self._task

    async def close(self) -> None:
        """Stop reading and free the room."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._resize(0)

    async def _read(self, read: Read) -> Page | None:
        page = await read()
        return page if self._resize(page.size) else None

    def _resize(self, size: int) -> bool:
        self._room.release(self._taken)
        fits = self._room.take(size)
        self._taken = size if fits else 0
        return fits
