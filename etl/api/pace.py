"""How many requests may be in flight, and when the next one may start."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from copy import copy

from etl.api.allowance import Allowance, Start
from etl.errors import EtlError

SLOWEST, FASTEST = 0.01, 10_000.0  # requests a second that can have been learned
LONGEST_SLEEP = 1.0  # seconds until a waiting request notices that all were stopped


class Pace:
    """What all tokens share: at most `max_concurrency` in flight and `max_per_second` starts."""

    def __init__(
        self,
        max_concurrency: int,
        max_per_second: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.max_concurrency = max_concurrency
        self.in_flight = 0
        self.next_start = 0.0
        self.interval = 1 / (max_per_second or math.inf)
        self.clock = clock
        self.sleep = sleep
        self.error: EtlError | None = None
        self.stopped = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []

    def lane(self, learned: float | None = None) -> "Lane":
        """The requests of one token; `learned` is the rate that an earlier run learned."""
        usable = learned if learned and SLOWEST <= learned <= FASTEST else None
        return Lane(self, Allowance(self.max_concurrency, usable))

    def stop(self, error: EtlError) -> None:
        """From now on no request starts: each raises this error."""
        self.error = self.error or error
        self.stopped.set()
        self.wake()

    async def wait_for_room(self) -> None:
        """Wait until a request has ended, or all are stopped."""
        room = asyncio.get_running_loop().create_future()
        self._waiting.append(room)
        await room

    def wake(self) -> None:
        """End each `wait_for_room`."""
        for room in self._waiting:
            if not room.done():
                room.set_result(None)
        self._waiting.clear()


class Lane:
    """The requests of one token start in the order of their `turn`, evenly spaced."""

    def __init__(self, pace: Pace, allowance: Allowance) -> None:
        self._pace = pace
        self._allowance = allowance
        self._in_flight = 0
        self._first_in_line = asyncio.Lock()

    @property
    def rate(self) -> float | None:
        """Requests a second that the API allows; None if it has not throttled."""
        rate = self._allowance.rate
        return None if math.isinf(rate) else rate

    @asynccontextmanager
    async def turn(self) -> AsyncIterator["Turn"]:
        """Wait until a request may start; the block lasts until its answer."""
        pace = self._pace
        async with self._first_in_line:
            start = await self._wait_for_start()
        try:
            yield Turn(self, start)
        finally:
            self._in_flight -= 1
            pace.in_flight -= 1
            pace.wake()

    async def _wait_for_start(self) -> Start:
        pace, allowance = self._pace, self._allowance
        spaced = limited = capped = False
        while True:
            if pace.error:
                raise copy(pace.error)  # Each raise adds to a traceback.
            now = pace.clock()
            wait = max(allowance.wait(now), pace.next_start - now)
            full = self._in_flight >= allowance.limit
            if full or pace.in_flight >= pace.max_concurrency:
                limited, spaced, capped = full, False, False
                await pace.wait_for_room()
            elif wait > 0:
                capped = pace.next_start - now >= wait
                spaced = not capped
                await pace.sleep(min(wait, LONGEST_SLEEP))
            else:
                break
        self._in_flight += 1
        pace.in_flight += 1
        due = max(pace.next_start, now - pace.interval) if capped else now
        pace.next_start = due + pace.interval
        return allowance.start(now, self._in_flight, spaced=spaced, limited=limited)

    def answered(self, start: Start) -> None:
        """See Turn."""
        self._allowance.answered(start, self._pace.clock())

    def throttled(self, start: Start, retry_after: float | None) -> None:
        """See Turn."""
        now = self._pace.clock()
        self._allowance.throttled(start, now, retry_after, in_flight=self._in_flight)


class Turn:
    """A request that has started."""

    def __init__(self, lane: Lane, start: Start) -> None:
        self._lane = lane
        self._start = start

    def answered(self) -> None:
        """Record that the API allowed the request."""
        self._lane.answered(self._start)

    def throttled(self, retry_after: float | None) -> None:
        """Record a throttle; no request of the token starts for so many seconds, or a few."""
        self._lane.throttled(self._start, retry_after)
