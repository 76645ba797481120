"""Pace: requests in flight, their spacing, pauses after a throttle, and what limits allow.

Time is virtual.
"""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from etl.api.allowance import SHORTEST_PAUSE
from etl.api.pace import Lane, Pace, Turn
from etl.errors import ApiUnavailableError
from tests.support.limited_api import Bucket, InFlight, Limit, Trial, Window
from tests.support.virtual_time import clock, run

Answer = Callable[[Turn], None]


class Workers:
    """Requests of equal latency in one lane; records their starts and the most in flight."""

    def __init__(self, max_concurrency: int = 8, per_second: float | None = None) -> None:
        self.pace = Pace(max_concurrency, per_second, clock=clock)
        self.starts: list[float] = []
        self.in_flight = self.most_in_flight = 0
        self.latency = 1.0

    def run(self, *coroutines: Coroutine[Any, Any, None]) -> list[float]:
        """Run them concurrently to their end; return the starts."""

        async def run_all() -> None:
            await asyncio.gather(*coroutines)

        run(run_all())
        return self.starts

    async def work(self, lane: Lane, answer: Answer = Turn.answered) -> None:
        async with lane.turn() as turn:
            self.starts.append(clock())
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            await asyncio.sleep(self.latency)
            self.in_flight -= 1
            answer(turn)

    async def warm_up(self, lane: Lane) -> None:
        """As many answers as allow every request in flight."""
        for _ in range(8):
            async with lane.turn() as turn:
                turn.answered()

    async def after(self, seconds: float, coroutine: Coroutine[Any, Any, None]) -> None:
        await asyncio.sleep(seconds)
        await coroutine


def say_nothing(_: Turn) -> None:
    """The request failed in another way than by a throttle."""


def throttle(seconds: float | None) -> Answer:
    return lambda turn: turn.throttled(seconds)


# A share of the rate


def test_a_share_of_the_ceiling() -> None:
    """A quarter of four requests a second is one; requests in flight are not shared."""
    workers = Workers()
    workers.pace = Pace(8, 4, share=0.25, clock=clock)
    lane = workers.pace.lane()
    run(workers.warm_up(lane))
    starts = workers.run(*(workers.work(lane) for _ in range(4)))
    assert [b - a for a, b in itertools.pairwise(starts)] == [1, 1, 1]
    assert workers.pace.max_concurrency == 8


def test_a_share_of_a_learned_rate() -> None:
    """What is learned is the whole; what is used is the share."""
    whole, half = Pace(8, clock=clock), Pace(8, share=0.5, clock=clock)
    assert whole.lane(10).rate == half.lane(10).rate
    lane = half.lane(10)
    lane.lower(4)
    assert lane.rate == pytest.approx(4 * 0.985)
    lane.lower(100)
    assert lane.rate == pytest.approx(4 * 0.985)


def test_what_is_spare() -> None:
    """Nothing while a request waits for its turn; else what may be in flight beside the others."""
    workers = Workers(4)
    lane = workers.pace.lane()
    found = []

    async def look() -> None:
        for _ in range(3):
            found.append(workers.pace.spare)
            await asyncio.sleep(1.1)

    workers.run(look(), workers.work(lane), workers.work(lane))
    assert found == [4, 3, 4]


# Before the first throttle


def test_it_starts_with_one_request() -> None:
    """Until the first answer, one request is in flight at a time."""
    workers = Workers()
    lane = workers.pace.lane()
    assert workers.run(*(workers.work(lane, say_nothing) for _ in range(4))) == [0, 1, 2, 3]


def test_each_answer_allows_two_more() -> None:
    """One request in flight, then three, then nine, up to the ceiling."""
    workers = Workers(12)
    lane = workers.pace.lane()
    starts = workers.run(*(workers.work(lane) for _ in range(37)))
    assert starts == [0, *[1] * 3, *[2] * 9, *[3] * 12, *[4] * 12]


@pytest.mark.parametrize("ceiling", [1, 3, 8])
def test_the_ceiling_holds_over_all_tokens(ceiling: int) -> None:
    """The requests in flight of two tokens together reach `max_concurrency`, and no more."""
    workers = Workers(ceiling)
    lanes = [workers.pace.lane(), workers.pace.lane()]
    workers.run(*(workers.work(lanes[number % 2]) for number in range(60)))
    assert workers.most_in_flight == ceiling


def test_max_per_second_spaces_the_starts_of_all_tokens() -> None:
    """However many requests may be in flight; an idle time allows no burst."""
    workers = Workers(per_second=2)
    workers.latency = 0.01
    lanes = [workers.pace.lane(), workers.pace.lane()]
    works = [workers.work(lanes[number % 2]) for number in range(5)]
    works += [workers.after(10, workers.work(lanes[number % 2])) for number in range(3)]
    assert workers.run(*works) == [0, 0.5, 1, 1.5, 2, 10, 10.5, 11]


# After a throttle


def test_a_throttle_pauses_its_token_alone() -> None:
    """No request of the token starts meanwhile, neither a waiting one nor a later one."""
    workers = Workers()
    throttled, other = workers.pace.lane(), workers.pace.lane()
    works = [workers.work(throttled, throttle(30)), workers.work(throttled)]
    works += [workers.after(5, workers.work(throttled)), workers.after(6, workers.work(other))]
    assert workers.run(*works) == [0, 6, 31, pytest.approx(32, abs=0.5)]


def test_the_longest_pause_counts() -> None:
    """Requests in flight together report one throttle; a shorter pause ends no longer one."""
    workers = Workers()
    lane = workers.pace.lane()
    seconds = itertools.chain([5.0, 30.0, 5.0], itertools.repeat(0.0))

    async def three_throttles() -> None:
        await workers.warm_up(lane)
        answers = (workers.work(lane, throttle(next(seconds))) for _ in range(3))
        await asyncio.gather(*answers)
        await workers.work(lane)

    assert workers.run(three_throttles())[-1] == 31


def test_one_request_tries_whether_the_pause_is_over() -> None:
    """Without Retry-After the pause is short, and twice as long after each further throttle."""
    workers = Workers()
    workers.latency = 0.0
    lane = workers.pace.lane()
    answers = [*[throttle(None)] * 4, Turn.answered, Turn.answered]
    starts = workers.run(*(workers.work(lane, answer) for answer in answers))
    pauses = [later - start for start, later in itertools.pairwise(starts)][:4]
    assert pauses == pytest.approx([SHORTEST_PAUSE * 2**number for number in range(4)])
    assert workers.most_in_flight == 1


def test_a_throttle_long_ago_is_no_limit() -> None:
    """One throttle after the first requests slows no more than the next minute."""
    workers = Workers()
    workers.latency = 0.05
    lane = workers.pace.lane()
    answers = [Turn.answered, throttle(1), *[Turn.answered] * 600]
    starts = workers.run(*(workers.work(lane, answer) for answer in answers))
    in_the_second_minute = sum(60 < start < 61 for start in starts)
    assert starts[-1] < 120
    assert in_the_second_minute > 5 or starts[-1] < 60


def test_refusals_at_random_do_not_stop_the_run() -> None:
    """An API that refuses every tenth request at any rate is not asked ever more slowly."""
    workers = Workers()
    workers.latency = 0.05
    lane = workers.pace.lane()
    answers = [throttle(None) if number % 10 == 9 else Turn.answered for number in range(1000)]
    assert workers.run(*(workers.work(lane, answer) for answer in answers))[-1] < 300


def test_the_rate_is_none_without_a_throttle() -> None:
    """There is nothing to remember for the next run."""
    workers = Workers()
    lane = workers.pace.lane()
    workers.run(*(workers.work(lane) for _ in range(20)))
    assert lane.rate is None


@pytest.mark.parametrize("learned", [0.0, -1.0, float("nan"), float("inf"), 1e300, 1e-300])
def test_nonsense_is_not_learned(learned: float) -> None:
    """A rate that no run can have learned is ignored."""
    assert Workers().pace.lane(learned).rate is None


# Failures


def test_a_turn_that_fails_is_given_back() -> None:
    """After an error inside a turn, the next request starts."""
    workers = Workers(1)
    lane = workers.pace.lane()

    async def fail() -> None:
        with pytest.raises(RuntimeError):
            async with lane.turn():
                raise RuntimeError

    assert workers.run(fail(), workers.work(lane)) == [0]


def test_a_cancelled_wait_is_given_back() -> None:
    """A request cancelled while it waits does not block the others."""
    workers = Workers(1)
    lane = workers.pace.lane()

    async def give_up() -> None:
        waiting = asyncio.ensure_future(workers.work(lane))
        await asyncio.sleep(0.5)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    works = [workers.work(lane, throttle(60)), give_up(), workers.after(1, workers.work(lane))]
    assert workers.run(*works) == [0, 61]


def test_a_stop_ends_every_wait() -> None:
    """Requests that wait for a pause, for room or for others end with the error within a second."""
    workers = Workers(1)
    lane = workers.pace.lane()

    async def stop() -> None:
        await asyncio.sleep(2)
        workers.pace.stop(ApiUnavailableError("nobody is answered"))

    async def wait() -> None:
        with pytest.raises(ApiUnavailableError, match="nobody is answered"):
            await workers.work(lane)
        assert 2 <= clock() <= 3

    workers.run(workers.work(lane, throttle(250)), stop(), *(wait() for _ in range(20)))
    assert workers.starts == [0]


# Limits. `python -m tests.support.limited_api` prints many more.

RATES = (5, 20, 50)
WINDOWS = [Window(rate, seconds) for rate in RATES for seconds in (10, 60) if rate * seconds < 2000]
SHORT_WINDOWS = [Window(rate, 1, offset) for rate in RATES for offset in (0.0, 0.37)]
BUCKETS = [*(Bucket(rate, rate) for rate in RATES), Bucket(20, 4), Bucket(50, 10)]


@pytest.mark.parametrize("latency", [0.03, 0.1])
@pytest.mark.parametrize(
    ("limit", "retry_after"),
    [
        *((limit, False) for limit in (*WINDOWS, *SHORT_WINDOWS, *BUCKETS)),
        *((limit, True) for limit in WINDOWS),
    ],
    ids=str,
)
def test_what_is_allowed_is_used(limit: Limit, retry_after: bool, latency: float) -> None:
    """At least 85 % of it after a window of learning, 91 % by the next run; 6 % are refused."""
    window = limit.seconds if isinstance(limit, Window) else 0.0
    requests = max(600, int(3.4 * limit.per_second(latency) * window))
    first = Trial(limit, latency, 0.2, retry_after).run(requests)
    second = Trial(limit, latency, 0.2, retry_after, seed=2).run(requests, first.learned)
    assert first.used_after(window) >= 0.85
    assert second.used >= 0.91
    assert max(first.throttled, second.throttled) <= 0.06


@pytest.mark.parametrize("limit", [*SHORT_WINDOWS, *BUCKETS, Bucket(2, 1), Bucket(5, 1)], ids=str)
def test_a_pause_in_whole_seconds_costs_little(limit: Limit) -> None:
    """An API that recovers at once and still asks to wait for a second."""
    first = Trial(limit, 0.03, 0.2, retry_after=True).run(600)
    second = Trial(limit, 0.03, 0.2, retry_after=True, seed=2).run(600, first.learned)
    assert first.used >= 0.75
    assert second.used >= 0.88
    assert max(first.throttled, second.throttled) <= 0.05


@pytest.mark.parametrize("most", [1, 2, 3, 5])
@pytest.mark.parametrize(("retry_after", "used"), [(False, 0.75), (True, 0.6)])
def test_a_limit_on_requests_in_flight_is_learned(
    most: int, retry_after: bool, used: float
) -> None:
    """Most of it is used from the first run on, and more by the next one."""
    first = Trial(InFlight(most), 0.1, 0.2, retry_after).run(600)
    second = Trial(InFlight(most), 0.1, 0.2, retry_after, seed=2).run(600, first.learned)
    assert first.used >= used
    assert second.used >= 0.8
    assert max(first.throttled, second.throttled) <= 0.05


@pytest.mark.parametrize("rate", [1, 2, 5])
@pytest.mark.parametrize("retry_after", [False, True])
def test_a_slow_api_without_burst(rate: int, retry_after: bool) -> None:
    """One request at a time, a second or less apart: few are refused, none again and again."""
    trial = Trial(Bucket(rate, 1), 0.03, 0.2, retry_after).run(400)
    assert trial.used >= 0.85
    assert trial.throttled <= 0.06
    assert trial.most_refusals <= 5
