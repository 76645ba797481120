"""How many requests are under way and when the next may start, and what was spent on them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

SHORTEST_PAUSE = 0.05  # seconds; by it, the throttles of one moment are known as one


@dataclass(slots=True)
class Traffic:
    """What was spent on the API for one number so far; requests include the retries."""

    requests: int = 0
    retries: int = 0
    throttled: int = 0


class Pace:
    """One adaptive limit for all numbers and workers.

    It starts with a single request, so that a refused token costs one; each clean answer lets
    one more in, up to `max_concurrency`; a throttle halves the limit and pauses everybody. After
    a throttle it grows by one per round instead. `max_per_second` spaces the starts evenly.
    """

    def __init__(
        self,
        max_concurrency: int,
        max_per_second: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ceiling = max_concurrency
        self._interval = 1 / max_per_second if max_per_second else 0.0
        self._clock = clock
        self._sleep = sleep
        self._limit = 1.0
        self._quick_until = float(max_concurrency)
        self._active = 0
        self._room = asyncio.Condition()
        self._next_start = 0.0
        self._paused_until = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until a request may start; leave when it has been answered."""
        async with self._room:
            await self._room.wait_for(lambda: self._active < int(self._limit))
            self._active += 1
        try:
            await self._wait_for_start()
            yield
        finally:
            self._active -= 1
            async with self._room:
                # Two, because the limit may have grown by one since this turn began.
                self._room.notify(2)

    def answered(self) -> None:
        """Say that the API answered without complaint."""
        step = 1 if self._limit < self._quick_until else 1 / self._limit
        self._limit = min(self._limit + step, self._ceiling)

    def throttled(self, seconds: float) -> None:
        """Say that the API asked for less: nothing starts for so many seconds."""
        now = self._clock()
        if now >= self._paused_until:
            # Once per pause: the requests that were under way bring the same news again.
            self._limit = max(self._limit / 2, 1.0)
            self._quick_until = self._limit
        self._paused_until = max(self._paused_until, now + max(seconds, SHORTEST_PAUSE))

    async def _wait_for_start(self) -> None:
        # Whoever wakes first starts; the others find that the next start has moved on.
        while (wait := max(self._next_start, self._paused_until) - self._clock()) > 0:
            await self._sleep(wait)
        self._next_start = self._clock() + self._interval
