"""Pace: requests in flight, their spacing, and pauses after a throttle. Time is simulated."""

import asyncio
import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from etl.api.pace import RATE_SHARE, SHORTEST_PAUSE, Pace

WARM_UP = 100  # clean answers
GAP = 1 / (RATE_SHARE * WARM_UP)  # the widest spacing after a warm-up and one throttle


class FakeTime:
    """Time that jumps to the next wake-up once every task sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        wake = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self.now + seconds, self._count, wake))
        await wake

    def run(self, *coroutines: Coroutine[Any, Any, None]) -> None:
        """Run them concurrently to their end."""
        asyncio.run(self._run(coroutines))

    async def settle(self) -> None:
        """Let every task run until it sleeps."""
        for _ in range(50):
            await asyncio.sleep(0)

    async def _run(self, coroutines: tuple[Coroutine[Any, Any, None], ...]) -> None:
        tasks = asyncio.gather(*coroutines)
        await self.settle()
        while not tasks.done():
            assert self._sleepers, "a task waits forever"
            self.now, _, wake = heapq.heappop(self._sleepers)
            if not wake.done():
                wake.set_result(None)
            await self.settle()
        await tasks


class Workers:
    """Requests of equal latency under a pace; records their starts and the most in flight."""

    def __init__(
        self, max_concurrency: int, max_per_second: float | None = None, *, latency: float = 1
    ) -> None:
        self.time = FakeTime()
        self.latency = latency
        self.pace = Pace(
            max_concurrency, max_per_second, clock=self.time.clock, sleep=self.time.sleep
        )
        self.starts: list[float] = []
        self.in_flight = 0
        self.most_in_flight = 0

    async def work(self, *, answered: bool = True) -> None:
        async with self.pace.turn():
            self.starts.append(self.time.now)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            await self.time.sleep(self.latency)
            self.in_flight -= 1
            if answered:
                self.pace.answered()

    async def at(self, seconds: float, coroutine: Coroutine[Any, Any, None]) -> None:
        await self.time.sleep(seconds)
        await coroutine

    async def throttle(self, seconds: float) -> None:
        self.pace.throttled(seconds)

    def warm_up(self) -> None:
        """Record many clean answers."""
        for _ in range(WARM_UP):
            self.pace.answered()

    async def answer(self, per_second: int, seconds: int) -> None:
        """Record clean answers at an even rate."""
        await self.time.sleep(0.5 / per_second)
        for _ in range(per_second * seconds):
            self.pace.answered()
            await self.time.sleep(1 / per_second)

    def gaps(self) -> list[float]:
        """Times between one start and the next."""
        return [later - start for start, later in itertools.pairwise(self.starts)]


def sliding_window(allowance: int) -> Callable[[float], bool]:
    """Allow a request unless `allowance` requests were allowed in the last second."""
    allowed: deque[float] = deque(maxlen=allowance)

    def allows(now: float) -> bool:
        if len(allowed) == allowance and allowed[0] > now - 1:
            return False
        allowed.append(now)
        return True

    return allows


def token_bucket(allowance: int) -> Callable[[float], bool]:
    """Allow a request per token; `allowance` tokens arrive per second, and as many are kept."""
    tokens, filled_at = float(allowance), 0.0

    def allows(now: float) -> bool:
        nonlocal tokens, filled_at
        tokens = min(tokens + (now - filled_at) * allowance, allowance)
        filled_at = now
        if tokens < 1:
            return False
        tokens -= 1
        return True

    return allows


class LimitedApi:
    """An API that answers 429 without Retry-After, and its clients; records each answer."""

    def __init__(self, allows: Callable[[float], bool], latency: float, seed: int = 1) -> None:
        self.time = FakeTime()
        self.pace = Pace(16, clock=self.time.clock, sleep=self.time.sleep)
        self.allows = allows
        self.latency = latency
        self.random = random.Random(seed)
        self.allowed: list[float] = []
        self.refused: list[float] = []

    def run(self, clients: int, seconds: float) -> None:
        """Let each client make one request after another."""
        self.time.run(*(self._ask_until(seconds) for _ in range(clients)))

    async def _ask_until(self, end: float) -> None:
        while self.time.now < end:
            for attempt in itertools.count():
                if await self._ask():
                    break
                longest = min(0.5 * 2**attempt, 30)
                self.pace.throttled(self.random.uniform(0, longest))
                await self.time.sleep(self.random.uniform(0, longest))

    async def _ask(self) -> bool:
        async with self.pace.turn():
            await self.time.sleep(self.latency / 2)
            allowed = self.allows(self.time.now)
            (self.allowed if allowed else self.refused).append(self.time.now)
            await self.time.sleep(self.latency / 2)
            if allowed:
                self.pace.answered()
            return allowed


def test_it_starts_with_one_request() -> None:
    """Until the first clean answer, one request is in flight at a time."""
    workers = Workers(8)

    workers.time.run(*(workers.work(answered=False) for _ in range(4)))

    assert workers.starts == [0, 1, 2, 3]


def test_each_answer_allows_two_more() -> None:
    """One request in flight, then three, then nine, up to the ceiling."""
    workers = Workers(12)

    workers.time.run(*(workers.work() for _ in range(37)))

    assert workers.starts == [0, *[1] * 3, *[2] * 9, *[3] * 12, *[4] * 12]


@pytest.mark.parametrize("ceiling", [1, 3, 8])
def test_the_ceiling_holds(ceiling: int) -> None:
    """The requests in flight reach `max_concurrency` and never exceed it."""
    workers = Workers(ceiling)

    workers.time.run(*(workers.work() for _ in range(50)))

    assert workers.most_in_flight == ceiling


def test_starts_are_spaced_evenly() -> None:
    """`max_per_second` spaces the starts, however many requests may be in flight."""
    workers = Workers(8, max_per_second=4)
    workers.warm_up()

    workers.time.run(*(workers.work() for _ in range(5)))

    assert workers.starts == [0, 0.25, 0.5, 0.75, 1]


def test_idle_time_does_not_allow_a_burst() -> None:
    """After an idle time the starts are spaced as before."""
    workers = Workers(8, max_per_second=2)
    workers.warm_up()

    workers.time.run(*(workers.at(10, workers.work()) for _ in range(3)))

    assert workers.starts == [10, 10.5, 11]


def test_a_throttle_pauses_all_requests() -> None:
    """During a pause no request starts, neither one that waits already nor a later one."""
    workers = Workers(8)
    workers.warm_up()

    workers.time.run(
        workers.throttle(30), workers.work(), workers.work(), workers.at(5, workers.work())
    )

    assert workers.starts[0] == 30
    assert all(0 < gap < GAP + 1e-9 for gap in workers.gaps())
    assert len(workers.starts) == 3


def test_a_pause_delays_requests_that_already_wait() -> None:
    """A request that waits for its spaced start waits for the pause as well."""
    workers = Workers(8, max_per_second=0.5)
    workers.warm_up()

    workers.time.run(workers.work(), workers.work(), workers.at(1, workers.throttle(9)))

    assert workers.starts == [0, 10]


def test_the_longest_pause_counts() -> None:
    """A shorter pause does not end a longer one."""
    workers = Workers(8)

    workers.time.run(workers.throttle(30), workers.throttle(5), workers.work())

    assert workers.starts == [30]


def test_starts_are_spaced_after_a_pause() -> None:
    """Requests that waited for the end of a pause do not start all at once."""
    workers = Workers(8, max_per_second=2)
    workers.warm_up()

    workers.time.run(
        *(workers.work() for _ in range(4)),
        workers.throttle(10),
    )

    assert workers.starts == [0, 10, 10.5, 11]


def test_throttles_of_one_moment_are_one() -> None:
    """Simultaneous throttles halve the limit once, even without a time to wait."""
    workers = Workers(8)
    workers.warm_up()

    workers.time.run(
        *(workers.throttle(0) for _ in range(8)),
        *(workers.work(answered=False) for _ in range(8)),
    )

    at_once = [start for start in workers.starts if start < 1]
    assert len(at_once) == 4


def test_throttles_of_two_moments_are_two() -> None:
    """A later throttle halves the limit again, even without a time to wait."""
    workers = Workers(8)
    workers.warm_up()

    workers.time.run(
        *(workers.at(step, workers.throttle(0)) for step in range(2)),
        *(workers.at(10, workers.work(answered=False)) for _ in range(4)),
    )

    assert min(workers.starts) == 10
    assert workers.starts == pytest.approx([10, 10, 11, 11], abs=2 * GAP)
    assert all(gap > 0 for gap in workers.gaps())


def test_a_throttle_halves_the_limit_once_a_pause() -> None:
    """Several throttles during one pause halve the limit once; afterwards it grows slowly."""
    workers = Workers(8)
    workers.warm_up()

    workers.time.run(
        workers.throttle(10),
        workers.throttle(10),
        workers.throttle(10),
        *(workers.work() for _ in range(4 + 4 + 5)),
    )

    assert min(workers.starts) == 10
    assert workers.starts == pytest.approx([*[10] * 4, *[11] * 4, *[12] * 5], abs=5 * GAP)
    assert all(gap > 0 for gap in workers.gaps())


def test_a_second_pause_halves_again_down_to_one() -> None:
    """Repeated throttles leave one request in flight, never none."""
    workers = Workers(4)
    workers.warm_up()

    workers.time.run(
        *(workers.at(2 * step, workers.throttle(1)) for step in range(5)),
        *(workers.at(20, workers.work(answered=False)) for _ in range(3)),
    )

    assert workers.starts == [20, 21, 22]


def test_a_throttle_sets_the_rate_below_what_was_answered() -> None:
    """After a throttle the rate is 95 % of the answers of the last second."""
    workers = Workers(16, latency=0.01)

    workers.time.run(
        workers.answer(40, seconds=3),
        workers.at(3, workers.throttle(0)),
        *(workers.at(3, workers.work()) for _ in range(10)),
    )

    assert workers.starts[0] == pytest.approx(3 + SHORTEST_PAUSE)
    assert workers.gaps() == pytest.approx([1 / 38] * 9, rel=0.01)


def test_a_throttle_soon_after_another_lowers_the_rate_by_a_quarter_at_most() -> None:
    """Answers missing because of a pause do not lower the rate further."""
    workers = Workers(16, latency=0.01)

    workers.time.run(
        workers.answer(40, seconds=1),
        *(workers.at(seconds, workers.throttle(1)) for seconds in (1, 2.5)),
        *(workers.at(3, workers.work()) for _ in range(5)),
    )

    assert workers.starts[0] == 3.5
    assert workers.gaps() == pytest.approx([1 / (38 * 0.8 * 0.95)] * 4, rel=0.02)


def test_a_single_throttle_costs_little() -> None:
    """Without another throttle, the rate exceeds its old value after five seconds."""
    workers = Workers(16, latency=0.01)

    workers.time.run(
        workers.answer(40, seconds=1),
        workers.at(1, workers.throttle(0)),
        *(workers.at(1, workers.work()) for _ in range(300)),
    )

    starts = Counter(int(start) - 1 for start in workers.starts)
    assert 35 <= starts[0] <= 38
    assert starts[5] > 40
    assert sum(starts[second] for second in range(5)) > 0.95 * 40 * 5
    assert all(later <= gap + 1e-9 for gap, later in itertools.pairwise(workers.gaps()))


@pytest.mark.parametrize("pause", [0, 30])
def test_the_ceiling_of_the_rate_holds_after_a_throttle(pause: float) -> None:
    """The rate grows back to `max_per_second` and no further."""
    workers = Workers(16, max_per_second=20, latency=0.01)

    workers.time.run(
        workers.answer(40, seconds=1),
        workers.at(1, workers.throttle(pause)),
        *(workers.at(1, workers.work()) for _ in range(150)),
    )

    assert min(workers.gaps()) == pytest.approx(1 / 20)
    assert workers.gaps()[-50:] == pytest.approx([1 / 20] * 50)


@pytest.mark.parametrize("latency", [0.002, 0.1])
@pytest.mark.parametrize("limiter", [sliding_window, token_bucket])
def test_an_allowance_is_used_with_few_throttles(
    limiter: Callable[[int], Callable[[float], bool]], latency: float
) -> None:
    """At least 85 % of 50 requests a second are used; at most 5 % of requests are throttled."""
    api = LimitedApi(limiter(50), latency)

    api.run(clients=16, seconds=20)

    used = sum(time < 20 for time in api.allowed)
    assert used >= 0.85 * 50 * 20
    assert len(api.refused) <= 0.05 * (len(api.allowed) + len(api.refused))


def test_a_turn_that_fails_is_given_back() -> None:
    """After an error inside a turn, the next request starts."""
    workers = Workers(1)

    async def fail() -> None:
        with pytest.raises(RuntimeError):
            async with workers.pace.turn():
                raise RuntimeError

    workers.time.run(fail(), workers.work())

    assert workers.starts == [0]


def test_a_cancelled_wait_is_given_back() -> None:
    """A request cancelled while it waits does not block the others."""
    workers = Workers(1)

    async def give_up() -> None:
        waiting = asyncio.ensure_future(workers.work())
        await workers.time.settle()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    workers.time.run(workers.throttle(60), give_up(), workers.at(1, workers.work()))

    assert workers.starts == [60]
