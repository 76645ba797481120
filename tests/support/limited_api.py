"""APIs that limit requests, simulated, and how much of the limit a Pace uses.

`python -m tests.support.limited_api` prints a table over many limits and latencies.
"""

import asyncio
import copy
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from etl.api.pace import Lane, Pace
from tests.support.virtual_time import clock, run

WORKERS = 16


class Limit(Protocol):
    """Allows requests; `per_second` is what it allows in the long run at this latency."""

    def enter(self, now: float) -> float | None:
        """None if the request is allowed, else the seconds until one will be."""

    def leave(self) -> None:
        """An allowed request was answered."""

    def per_second(self, latency: float) -> float:
        """Requests a second."""


@dataclass
class Bucket:
    """A token bucket, full at first."""

    rate: float
    burst: float
    filled_at: float = field(default=0.0, repr=False)
    tokens: float = field(default=-1.0, repr=False)

    def enter(self, now: float) -> float | None:
        if self.tokens < 0:
            self.tokens, self.filled_at = self.burst, now
        self.tokens = min(self.burst, self.tokens + (now - self.filled_at) * self.rate)
        self.filled_at = now
        if self.tokens < 1 - 1e-9:
            return (1 - self.tokens) / self.rate
        self.tokens -= 1
        return None

    def leave(self) -> None:
        pass

    def per_second(self, latency: float) -> float:
        return self.rate


@dataclass
class Window:
    """So many requests in each window; the first one began `offset` seconds before the run."""

    rate: float
    seconds: float
    offset: float = 0.0
    number: int = field(default=-1, repr=False)
    allowed: int = field(default=0, repr=False)

    def enter(self, now: float) -> float | None:
        number = math.floor((now + self.offset) / self.seconds)
        if number != self.number:
            self.number, self.allowed = number, 0
        if self.allowed >= round(self.rate * self.seconds):
            return (number + 1) * self.seconds - self.offset - now
        self.allowed += 1
        return None

    def leave(self) -> None:
        pass

    def per_second(self, latency: float) -> float:
        return self.rate


@dataclass
class InFlight:
    """So many requests at a time."""

    most: int
    now: int = field(default=0, repr=False)

    def enter(self, now: float) -> float | None:
        if self.now >= self.most:
            return 1.0
        self.now += 1
        return None

    def leave(self) -> None:
        self.now -= 1

    def per_second(self, latency: float) -> float:
        return self.most / latency


@dataclass
class Trial:
    """A run of many requests against a limit, and when they were answered and refused."""

    limit: Limit
    latency: float
    jitter: float = 0.3
    retry_after: bool = False
    seed: int = 1
    answered: list[float] = field(default_factory=list)
    refused: int = 0
    most_refusals: int = 0  # of one request
    learned: float | None = None

    def run(self, requests: int, learned: float | None = None) -> "Trial":
        """Make the requests; `learned` is the rate that an earlier run learned."""
        self.limit = copy.copy(self.limit)  # unused so far
        run(self._run(requests, learned))
        return self

    @property
    def used(self) -> float:
        """The share of the allowance that was used, from the first request to the last."""
        return len(self.answered) / (self.limit.per_second(self.latency) * self.answered[-1])

    def used_after(self, seconds: float) -> float:
        """The same without as many seconds of learning."""
        rest = max(self.answered[-1] - seconds, 1e-9)
        return max(self.used, len(self.answered) / (self.limit.per_second(self.latency) * rest))

    @property
    def throttled(self) -> float:
        """The share of the requests that were refused."""
        return self.refused / (self.refused + len(self.answered))

    async def _run(self, requests: int, learned: float | None) -> None:
        lane = Pace(8, clock=clock).lane(learned)
        draw = random.Random(self.seed)
        remaining = iter(range(requests))

        async def work() -> None:
            for _ in remaining:
                for attempt in itertools.count():
                    wait = await self._request(lane, draw)
                    if wait is None:
                        break
                    self.most_refusals = max(self.most_refusals, attempt + 1)
                    # As the client does: the back-off, or longer if the API asks for it.
                    await asyncio.sleep(max(wait, draw.uniform(0, min(0.5 * 2**attempt, 30))))

        await asyncio.gather(*(work() for _ in range(WORKERS)))
        self.learned = lane.rate

    async def _request(self, lane: Lane, draw: random.Random) -> float | None:
        """None if it was answered, else the seconds that Retry-After asked to wait."""
        async with lane.turn() as turn:
            latency = self.latency * draw.uniform(1 - self.jitter, 1 + self.jitter)
            await asyncio.sleep(0.1 * latency)
            wait = self.limit.enter(clock())
            if wait is None:
                await asyncio.sleep(0.85 * latency)
                self.limit.leave()
                await asyncio.sleep(0.05 * latency)
                self.answered.append(clock())
                turn.answered()
                return None
            await asyncio.sleep(0.15 * latency)
            self.refused += 1
            asked = float(math.ceil(wait)) if self.retry_after else None
            turn.throttled(asked)
            return asked or 0.0


def limits(rates: tuple[float, ...]) -> Iterator[Limit]:
    """Limits of every kind."""
    for rate in rates:
        for burst in sorted({1.0, max(1.0, rate / 5), rate}):
            yield Bucket(rate, burst)
        for seconds in (1, 10, 60):
            yield Window(rate, seconds)
            yield Window(rate, seconds, 0.37 * seconds)
    for most in (1, 2, 3, 5):
        yield InFlight(most)


def main() -> None:
    """Print what two runs used, and how many of their requests were refused."""
    settings = itertools.product((0.005, 0.03, 0.1, 0.5), (0.0, 0.5), (False, True))
    for latency, jitter, retry_after in settings:
        print(f"latency {latency} s, jitter {jitter}, Retry-After: {retry_after}")
        for limit in limits((2, 5, 20, 50, 200)):
            rate = limit.per_second(latency)
            if rate > 0.8 * 8 / latency or (isinstance(limit, InFlight) and latency < 0.03):
                continue
            window = limit.seconds if isinstance(limit, Window) else 0.0
            requests = max(600, int(3.4 * rate * window))
            if requests > 5000:
                continue
            first = Trial(limit, latency, jitter, retry_after).run(requests)
            second = Trial(limit, latency, jitter, retry_after, 2).run(requests, first.learned)
            print(
                f"  {limit!s:44}  first {first.used_after(window):4.0%} {first.throttled:5.1%}"
                f"  second {second.used:4.0%} {second.throttled:5.1%}"
            )


if __name__ == "__main__":
    main()
