"""The pace: how many at once, how far apart, and who waits after a throttle. No real time."""

import asyncio
import heapq
from collections.abc import Coroutine
from typing import Any

import pytest

from etl.pace import Pace


class FakeTime:
    """Time that stands still until everybody sleeps, and then jumps to the first to wake."""

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
        """Run them side by side to their end."""
        asyncio.run(self._run(coroutines))

    async def settle(self) -> None:
        """Let everybody come as far as they can at this moment."""
        for _ in range(50):
            await asyncio.sleep(0)

    async def _run(self, coroutines: tuple[Coroutine[Any, Any, None], ...]) -> None:
        everybody = asyncio.gather(*coroutines)
        await self.settle()
        while not everybody.done():
            assert self._sleepers, "somebody waits for ever"
            self.now, _, wake = heapq.heappop(self._sleepers)
            if not wake.done():
                wake.set_result(None)
            await self.settle()
        await everybody


class Workers:
    """Requests of one second each under a pace: when each started, and how many were at once."""

    def __init__(self, max_concurrency: int, max_per_second: float | None = None) -> None:
        self.time = FakeTime()
        self.pace = Pace(
            max_concurrency, max_per_second, clock=self.time.clock, sleep=self.time.sleep
        )
        self.starts: list[float] = []
        self.active = 0
        self.most_active = 0

    async def work(self, *, answered: bool = True) -> None:
        async with self.pace.turn():
            self.starts.append(self.time.now)
            self.active += 1
            self.most_active = max(self.most_active, self.active)
            await self.time.sleep(1)
            self.active -= 1
            if answered:
                self.pace.answered()

    async def at(self, seconds: float, coroutine: Coroutine[Any, Any, None]) -> None:
        await self.time.sleep(seconds)
        await coroutine

    async def throttle(self, seconds: float) -> None:
        self.pace.throttled(seconds)

    def warm_up(self) -> None:
        """As after many clean answers."""
        for _ in range(100):
            self.pace.answered()


def test_it_starts_with_one_request() -> None:
    """While nothing has been answered cleanly, requests go one after another."""
    workers = Workers(8)

    workers.time.run(*(workers.work(answered=False) for _ in range(4)))

    assert workers.starts == [0, 1, 2, 3]


def test_each_answer_lets_one_more_in() -> None:
    """After one request come two at once, then four, until the ceiling."""
    workers = Workers(4)

    workers.time.run(*(workers.work() for _ in range(15)))

    assert workers.starts == [0, 1, 1, *[2] * 4, *[3] * 4, *[4] * 4]


@pytest.mark.parametrize("ceiling", [1, 3, 8])
def test_the_ceiling_holds(ceiling: int) -> None:
    """Never more than `max_concurrency` requests are under way, and so many in the end."""
    workers = Workers(ceiling)

    workers.time.run(*(workers.work() for _ in range(50)))

    assert workers.most_active == ceiling


def test_starts_are_spaced_evenly() -> None:
    """`max_per_second` spaces the starts, however many may be at once."""
    workers = Workers(8, max_per_second=4)
    workers.warm_up()

    workers.time.run(*(workers.work() for _ in range(5)))

    assert workers.starts == [0, 0.25, 0.5, 0.75, 1]


def test_an_idle_time_is_not_made_up_for() -> None:
    """After a silence the starts are spaced as before: there is no burst."""
    workers = Workers(8, max_per_second=2)
    workers.warm_up()

    workers.time.run(*(workers.at(10, workers.work()) for _ in range(3)))

    assert workers.starts == [10, 10.5, 11]


def test_a_throttle_pauses_everybody() -> None:
    """Nobody starts while a pause lasts, neither who waits already nor who comes later."""
    workers = Workers(8)
    workers.warm_up()

    workers.time.run(
        workers.throttle(30), workers.work(), workers.work(), workers.at(5, workers.work())
    )

    assert workers.starts == [30, 30, 30]


def test_a_pause_reaches_those_who_wait_for_their_start() -> None:
    """A request that waits for its place in the spacing waits for the pause as well."""
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
    """Those who waited for a pause to end do not start all at once after it."""
    workers = Workers(8, max_per_second=2)
    workers.warm_up()

    workers.time.run(
        *(workers.work() for _ in range(4)),
        workers.throttle(10),
    )

    assert workers.starts == [0, 10, 10.5, 11]


def test_throttles_of_one_moment_are_one() -> None:
    """Also with nothing to wait for, the same news from several requests halves the limit once."""
    workers = Workers(8)
    workers.warm_up()

    workers.time.run(
        *(workers.throttle(0) for _ in range(8)),
        *(workers.work(answered=False) for _ in range(8)),
    )

    at_once = [start for start in workers.starts if start < 1]
    assert len(at_once) == 4


def test_throttles_of_two_moments_are_two() -> None:
    """A throttle with nothing to wait for counts again a moment later."""
    workers = Workers(8)
    workers.warm_up()

    workers.time.run(
        *(workers.at(step, workers.throttle(0)) for step in range(2)),
        *(workers.at(10, workers.work(answered=False)) for _ in range(4)),
    )

    assert workers.starts == [10, 10, 11, 11]


def test_a_throttle_halves_the_limit_once_a_pause() -> None:
    """The same news from several requests halves the limit once, and it grows slowly again."""
    workers = Workers(8)
    workers.warm_up()

    workers.time.run(
        workers.throttle(10),
        workers.throttle(10),
        workers.throttle(10),
        *(workers.work() for _ in range(4 + 4 + 5)),
    )

    assert workers.starts == [*[10] * 4, *[11] * 4, *[12] * 5]


def test_a_second_pause_halves_again_down_to_one() -> None:
    """Throttle after throttle leaves one request at a time, never none."""
    workers = Workers(4)
    workers.warm_up()

    workers.time.run(
        *(workers.at(2 * step, workers.throttle(1)) for step in range(5)),
        *(workers.at(20, workers.work(answered=False)) for _ in range(3)),
    )

    assert workers.starts == [20, 21, 22]


def test_a_turn_that_fails_is_given_back() -> None:
    """An error inside a turn lets the next one in."""
    workers = Workers(1)

    async def fail() -> None:
        with pytest.raises(RuntimeError):
            async with workers.pace.turn():
                raise RuntimeError

    workers.time.run(fail(), workers.work())

    assert workers.starts == [0]


def test_a_cancelled_wait_is_given_back() -> None:
    """Who is cancelled while waiting for a start holds up nobody."""
    workers = Workers(1)

    async def give_up() -> None:
        waiting = asyncio.ensure_future(workers.work())
        await workers.time.settle()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    workers.time.run(workers.throttle(60), give_up(), workers.at(1, workers.work()))

    assert workers.starts == [60]
