"""How many requests may be in flight, and when the next one may start."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

FEW_ANSWERS = 5  # fewer in a second do not show the API's rate limit
RATE_SHARE = 0.95  # of the rate at which the API began to throttle
SHORTEST_PAUSE = 0.05  # seconds; throttles within it count as one


class Pace:
    """One adaptive limit for all phone numbers and workers.

    It starts with one request in flight; each clean answer adds two, up to `max_concurrency`. A
    throttle pauses all requests, halves that limit, and sets the rate slightly below the answers
    of the last second. Afterwards the limit grows by one per round of requests, and the rate
    slowly at first, so that the next throttle is far off. `max_per_second` caps the rate. Requests
    start evenly spaced.
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
        self._top_rate = max_per_second or math.inf
        self._base_rate = math.inf  # the rate at the end of the last pause
        self._answers: deque[float] = deque()  # times of the clean answers of the last second
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
        """Wait until a request may start; the block lasts until its answer."""
        async with self._room:
            await self._room.wait_for(lambda: self._active < int(self._limit))
            self._active += 1
        try:
            await self._wait_for_start()
            yield
        finally:
            self._active -= 1
            async with self._room:
                # Three, because the limit may have grown by two during this turn.
                self._room.notify(3)

    def answered(self) -> None:
        """Record a clean answer."""
        step = 2 if self._limit < self._quick_until else 1 / self._limit
        self._limit = min(self._limit + step, self._ceiling)
        self._answers.append(self._clock())
        self._forget_old_answers()

    def throttled(self, seconds: float) -> None:
        """Record a throttle: no request starts for so many seconds."""
        now = self._clock()
        if now >= self._paused_until:
            # Halve once per pause; requests already in flight report the same throttle.
            self._limit = max(self._limit / 2, 1.0)
            self._quick_until = self._limit
            self._forget_old_answers()
            self._base_rate = self._rate_below(self._rate(now))
        self._paused_until = max(self._paused_until, now + max(seconds, SHORTEST_PAUSE))

    async def _wait_for_start(self) -> None:
        # The first to wake starts and moves the next start; the others wait again.
        while (wait := max(self._next_start, self._paused_until) - self._clock()) > 0:
            await self._sleep(wait)
        self._next_start = self._clock() + 1 / self._rate(self._clock())

    def _rate(self, now: float) -> float:
        """Requests per second; the growth since the pause accelerates."""
        seconds = max(now - self._paused_until, 0.0)
        return min(self._base_rate * (1 + 0.005 * seconds + 0.001 * seconds**3), self._top_rate)

    def _rate_below(self, rate: float) -> float:
        """Slightly below the answers of the last second, and at most a quarter below `rate`."""
        answered = len(self._answers)
        if math.isinf(self._base_rate):
            return RATE_SHARE * answered if answered >= FEW_ANSWERS else self._base_rate
        return RATE_SHARE * min(rate, max(answered, 0.8 * rate))

    def _forget_old_answers(self) -> None:
        while self._answers and self._answers[0] < self._clock() - 1:
            self._answers.popleft()
