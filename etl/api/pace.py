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
    """What all tokens share: at most `max_concurrency` in flight and `max_per_second` starts.

    Of each rate, this process uses its `share`; others use the rest. Requests in flight are not
    shared: a process cannot use what another one leaves.
    """

    def __init__(
        self,
        max_concurrency: int,
        max_per_second: float | None = None,
        *,
        share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.max_concurrency = max_concurrency
        self.share = share
        self.in_flight = 0
        self.in_line = 0  # requests that wait for their turn
        self.next_start = 0.0
        self.interval = 1 / (share * (max_per_second or math.inf))
        self.clock = clock
        self.sleep = sleep
        self.error: EtlError | None = None
        self.stopped = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []

    def lane(self, learned: float | None = None) -> "Lane":
        """The requests of one token; `learned` is the whole rate that an earlier run learned."""
        usable = self.share * learned if learned and SLOWEST <= learned <= FASTEST else None
        return Lane(self, Allowance(self.max_concurrency, usable))

    @property
    def spare(self) -> int:
        """How many more requests could start now; 0 if one waits for its turn."""
        return 0 if self.in_line else max(self.max_concurrency - self.in_flight, 0)

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
        self.throttles = 0
        self._first_in_line = asyncio.Lock()

    @property
    def rate(self) -> float | None:
        """Requests a second that the API allows all processes; None if it has not throttled."""
        rate = self._allowance.rate
        return None if math.isinf(rate) else rate / self._pace.share

    def lower(self, rate: float) -> None:
        """Go on just below a rate that another process learned, unless this one is slower."""
        if SLOWEST <= rate <= FASTEST:
            self._allowance.lower(self._pace.share * rate)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator["Turn"]:
        """Wait until a request may start; the block lasts until its answer."""
        pace = self._pace
        pace.in_line += 1
        try:
            async with self._first_in_line:
                start = await self._wait_for_start()
        finally:
            pace.in_line -= 1
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
        self.throttles += 1
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
