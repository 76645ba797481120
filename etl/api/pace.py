"""How many requests are under way and when the next may start, and what was spent on them."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

FEW_ANSWERS = 5  # in a second tell nothing of the rate that the API allows
RATE_SHARE = 0.95  # of the rate at which the API began to throttle
SHORTEST_PAUSE = 0.05  # seconds; by it, the throttles of one moment are known as one


@dataclass(slots=True)
class ApiUsage:
    """What was spent on the API for one number so far; requests include the retries."""

    requests: int = 0
    retries: int = 0
    throttled: int = 0


class Pace:
    """One adaptive limit for all numbers and workers.

    It starts with a single request; each clean answer lets two more in, up to `max_concurrency`.
    A throttle pauses everybody, halves that limit, which then grows by one per round, and sets the
    rate to a little less than what the API has answered in the second before; from there the rate
    grows, slowly at first, so that the next throttle is far and costs few requests.
    `max_per_second` is a ceiling for the rate. Requests start evenly spaced.
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
        self._base_rate = math.inf  # where the rate began to grow again
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
                # Three, because the limit may have grown by two since this turn began.
                self._room.notify(3)

    def answered(self) -> None:
        """Say that the API answered without complaint."""
        step = 2 if self._limit < self._quick_until else 1 / self._limit
        self._limit = min(self._limit + step, self._ceiling)
        self._answers.append(self._clock())
        self._forget_old_answers()

    def throttled(self, seconds: float) -> None:
        """Say that the API asked for less: nothing starts for so many seconds."""
        now = self._clock()
        if now >= self._paused_until:
            # Once per pause: the requests that were under way bring the same news again.
            self._limit = max(self._limit / 2, 1.0)
            self._quick_until = self._limit
            self._forget_old_answers()
            self._base_rate = self._rate_below(self._rate(now))
        self._paused_until = max(self._paused_until, now + max(seconds, SHORTEST_PAUSE))

    async def _wait_for_start(self) -> None:
        # Whoever wakes first starts; the others find that the next start has moved on.
        while (wait := max(self._next_start, self._paused_until) - self._clock()) > 0:
            await self._sleep(wait)
        self._next_start = self._clock() + 1 / self._rate(self._clock())

    def _rate(self, now: float) -> float:
        """Requests a second: slowly up from the base at first, faster the longer it goes well."""
        seconds = max(now - self._paused_until, 0.0)
        return min(self._base_rate * (1 + 0.005 * seconds + 0.001 * seconds**3), self._top_rate)

    def _rate_below(self, rate: float) -> float:
        """A little less than what was answered lately, and not much less than an earlier base."""
        answered = len(self._answers)
        if math.isinf(self._base_rate):
            return RATE_SHARE * answered if answered >= FEW_ANSWERS else self._base_rate
        return RATE_SHARE * min(rate, max(answered, 0.8 * rate))

    def _forget_old_answers(self) -> None:
        while self._answers and self._answers[0] < self._clock() - 1:
            self._answers.popleft()
