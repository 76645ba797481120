"""Which pages to read if a run's budget does not suffice for the whole list.

Each page is worth the sum over its chats of U(t) = 1/r - (t + 1/r) e^(-r t), where r is the chat's
rate of messages and t the time since it was read: the index by which refreshing in that order needs
no schedule and starves no page (Olston & Pandey, Recrawl Scheduling Based on Information Longevity,
2008). Where ids do not tell a chat's page, all pages are alike, and the order is plain rotation.
"""

import math
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection

from etl.api.models import Page
from etl.db.list_orders import KnownList, gains_since, listed_ids
from etl.sync.budget import BoundedFetch
from etl.sync.quick.learning import MAX_PAGE_READS, index_of
from etl.sync.room import Reading

WINDOW: Final = timedelta(days=28)
_MEMORY: Final = 7 * 86400.0  # seconds after which evidence counts 1/e
# Of the gamma prior, whose mean is that of the number's chats. Few chats get most messages.
_SHAPE: Final = 0.25


def pages_by_gain(
    connection: Connection, phone_number: str, known: KnownList, now: datetime
) -> list[int]:
    """The list's pages, the one that is worth most first; before them those with new chats."""
    ids = listed_ids(connection, phone_number)
    pages = len(known.page_reads) or min(known.pages, MAX_PAGE_READS)
    is_by_id = known.list_order in {"id", "id-desc"}
    messages: dict[int, float] = defaultdict(float)
    if is_by_id:
        for chat_id, observed_at, gained in gains_since(connection, phone_number, now - WINDOW):
            age = max((now - observed_at).total_seconds(), 0)
            messages[chat_id] += gained * math.exp(-age / _MEMORY)
    ages = [_age(known, index, now) for index in range(pages)]
    gains = page_gains(ids, messages, ages, known.per_page)
    # New chats at the head move others from one page to the next.
    ends = {"id": 1, "id-desc": 2}.get(known.list_order, 0)
    newest = {*range(pages)[pages - ends :]} if is_by_id else set[int]()
    # Pages that came since the last full walk have no chats that are known.
    newest |= {index for index in range(known.pages, pages) if known.page_reads[index] is None}
    order = sorted(range(pages), key=lambda index: (index not in newest, -gains[index], index))
    return [_page_at(index, pages, known.list_order) for index in order]


def page_gains(
    ids: Sequence[int], messages: Mapping[int, float], ages: Sequence[float], per_page: int
) -> list[float]:
    """What each page is worth. `messages` is the evidence by chat, `ages` in seconds by page."""
    mean = max(sum(messages.values()), 1.0) / max(len(ids), 1) / _MEMORY
    prior_seconds = _SHAPE / mean
    gains = [0.0] * len(ages)
    for rank, chat_id in enumerate(ids):
        index = min(rank // per_page, len(ages) - 1)
        rate = (_SHAPE + messages.get(chat_id, 0.0)) / (prior_seconds + _MEMORY)
        gains[index] += gain(rate, ages[index])
    return gains


def gain(rate: float, age: float) -> float:
    """U(t) for a rate per second and an age in seconds."""
    expected = rate * age
    if expected < 1e-4:  # The terms below would cancel each other out.
        return expected * age / 2
    return 1 / rate - (age + 1 / rate) * math.exp(-expected)


async def read_pages(
    fetch: BoundedFetch,
    deliver: Callable[[Page], Awaitable[None]],
    pages: Iterable[int],
    *,
    width: int,
) -> None:
    """Read these pages, `width` in flight at most. Raises StopReadingError, as a budget does."""
    largest = 0

    async def use(page: Page) -> None:
        nonlocal largest
        largest = max(largest, page.size)
        await deliver(page)

    async def finish(page_number: int, reading: Reading | None) -> None:
        await fetch.room.use(
            reading,
            use,
            read=lambda: fetch(page_number),
            again=lambda: fetch.again(page_number),
        )

    in_flight: deque[tuple[int, Reading | None]] = deque()
    try:
        for page_number in pages:
            if len(in_flight) == width:
                await finish(*in_flight.popleft())
            in_flight.append((page_number, fetch.ahead(page_number, largest)))
        while in_flight:
            await finish(*in_flight.popleft())
    finally:
        for _, reading in in_flight:
            if reading:
                await reading.close()


def _age(known: KnownList, index: int, now: datetime) -> float:
    read = known.page_reads[index] if index < len(known.page_reads) else None
    walked = known.walked_at.timestamp()
    return max(now.timestamp() - (walked if read is None else read), 1.0)


def _page_at(index: int, pages: int, order: str) -> int:
    return next(p for p in (pages - index, index + 1) if index_of(p, pages, order) == index)
