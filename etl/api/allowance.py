"""What the API allows one token, estimated from its throttles. No clock, no waiting.

A token bucket, a window of requests and a limit on requests in flight all answer 429, and
Retry-After is in whole seconds or missing. So the rate is searched. The rate in use when a throttle
comes bounds it from above; the requests allowed before, divided by the time until the API allows
the next one, bound it from below. The search goes on between the bounds and rises to the upper one,
slower after each throttle; without another throttle it then rises faster and faster. Requests in
flight are limited to those that the API accepted beside the first one that it refused, and that
limit rises too. All figures below were chosen with `python -m tests.support.limited_api`.
"""

import math
from collections import deque
from typing import Final

from msgspec import Struct

# After a throttle, the rate is this share of the upper bound if the bounds are near each other or
# the next throttle will be cheap, else a weighted mean of both.
SHARE: Final = 0.97
NEAR: Final = 1.1  # upper bound / lower bound
UPPER_WEIGHT: Final = 0.65
LEARNED_SHARE: Final = 0.985  # of the rate that an earlier run learned
PROVED_SHARE: Final = 0.75  # of a rate that went well: a throttle does not go below it
SLOWEST: Final = 0.8  # requests a second
FEW: Final = 4  # fewer requests show no rate
RECENT: Final = 20  # starts that show the rate in use
LONGEST_WINDOW: Final = 60.0  # seconds over which the requests of a window are spread
SHORTEST_PAUSE: Final = 0.1  # seconds without Retry-After; doubled while requests are refused
LONGEST_PAUSE: Final = 15.0
LONGEST_PATIENCE: Final = 120.0
LONGEST_LIMIT_PATIENCE: Final = 60.0
SHORTEST_DOUBLING: Final = 30.0  # seconds in which the rate doubles if nothing is throttled
LIMIT_BLAMED_ALONE: Final = 2  # throttles in a row; for a third one the rate is lowered too


class Start(Struct, frozen=True):
    """A request that has started. `number` and `cycle` count from the last throttle."""

    at: float
    cycle: int
    number: int
    in_flight: int
    rate: float


class _Throttle(Struct):
    """The first request refused, and what followed until the API allowed one again."""

    start: Start
    accepted: int  # requests in flight with it, less those that were refused too
    pause: float
    refused_at: float
    retry_after: float | None
    refused: int = 1


class Allowance:
    """Rate and requests in flight for one token.

    `learned` is the rate (requests a second) of an earlier run. Without it, requests in flight
    begin with one and grow by two per answer until the first throttle, and the rate is not limited.
    """

    def __init__(self, max_concurrency: int, learned: float | None = None) -> None:
        self._ceiling = max_concurrency
        self._throttle: _Throttle | None = None  # until the API allows a request again
        self._throttles = 0
        self._paused_until = 0.0
        # The rate
        self._base = self._upper = math.inf
        self._patience = LONGEST_PATIENCE  # seconds to rise to `_upper`
        self._risen = 0.0  # seconds
        if learned:
            self._start_below(learned)
        self._proved = 0.0  # a rate that went well
        self._short_cycles = 0  # throttles in a row after few starts
        self._next_start = 0.0
        # The limit on requests in flight
        self._limit = 1
        self._slow_start = True
        self._raised = False  # since the last throttle
        self._blamed_limit = 0  # for so many throttles in a row
        self._limit_patience = 1.0  # seconds of waiting at the limit before it rises
        self._waited = 0.0  # at the limit, seconds
        self._waits = self._starts_at_limit = 0
        self._latency: float | None = None
        # The starts since the last throttle
        self._cycle = self._started = 0
        self._began = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)

    @property
    def limit(self) -> int:
        """How many requests may be in flight: after a throttle, one until it is answered."""
        return 1 if self._throttle else self._limit

    @property
    def rate(self) -> float:
        """Requests a second; infinite before the first throttle."""
        if math.isinf(self._base):
            return math.inf
        # First to the upper bound, then faster and faster.
        bounded = math.pow(self._upper / self._base, min(self._risen / self._patience, 1))
        scale = max(SHORTEST_DOUBLING, self._patience)
        return self._base * bounded * (1 + (self._risen / scale) ** 3)

    def wait(self, now: float) -> float:
        """Seconds until the next request may start; not positive if it may."""
        return max(self._next_start, self._paused_until) - now

    def lower(self, learned: float) -> None:
        """Go on just below the rate that another process learned, unless this one is slower."""
        if learned < self.rate and not self._throttle:
            self._start_below(learned)

    def _start_below(self, learned: float) -> None:
        self._throttles = max(self._throttles, 3)
        self._base, self._upper = LEARNED_SHARE * learned, learned
        self._patience = max(LONGEST_PATIENCE, 80 / self._base)
        self._risen = 0.0

    # Events

    def start(self, now: float, in_flight: int, *, spaced: bool, limited: bool) -> Start:
        """Record a start, counted in `in_flight`; what it waited for: `spaced` is the rate."""
        rate = self.rate
        if limited:
            self._count_wait(now)
        if spaced:
            self._risen += 1 / rate
        self._starts_at_limit += in_flight >= self._limit
        # Timers are late. The next start makes up for it, but never for more than one interval.
        due = max(self._next_start, now - 1 / rate) if spaced else now
        self._next_start = due + 1 / rate
        if not self._started:
            self._began = now
        start = Start(now, self._cycle, self._started, in_flight, min(rate, self._used_rate(now)))
        self._recent.append(now)
        self._started += 1
        return start

    def answered(self, start: Start, now: float) -> None:
        """Record that the API allowed the request."""
        seconds = now - start.at
        self._latency = seconds if self._latency is None else 0.9 * self._latency + 0.1 * seconds
        if self._throttle:
            if start.cycle == self._cycle:
                self._resume(self._throttle, start.at)
        elif self._slow_start:
            enough = math.inf if math.isinf(self._base) else math.ceil(self._base * self._latency)
            self._limit = max(self._limit, int(min(self._limit + 2, self._ceiling, enough)))

    def throttled(
        self, start: Start, now: float, retry_after: float | None, *, in_flight: int
    ) -> None:
        """Record a throttle, its request counted in `in_flight`: no request starts for a time."""
        pause = 0.0
        if start.cycle == self._cycle:
            pause = self._note_throttle(start, retry_after, in_flight)
            self._cycle += 1
        elif self._throttle:
            # Sent before the throttle was known: it tells nothing new about the rate.
            self._throttle.accepted -= 1
        self._paused_until = max(self._paused_until, now + max(pause, retry_after or 0.0))

    def _note_throttle(self, start: Start, retry_after: float | None, in_flight: int) -> float:
        """Return the seconds to pause, if the API asks for no longer."""
        throttle = self._throttle
        if throttle:
            throttle.pause = min(2 * throttle.pause, LONGEST_PAUSE)
            throttle.refused_at = start.at
            throttle.retry_after = retry_after
            throttle.refused += 1
        else:
            pause = min(max(SHORTEST_PAUSE, (start.at - self._began) / 50), 1.0)
            throttle = _Throttle(start, in_flight - 1, pause, start.at, retry_after)
            self._throttle = throttle
        return throttle.pause

    def _used_rate(self, now: float) -> float:
        """The rate of the last starts, if there are enough of them; else infinite."""
        enough = 5 if math.isinf(self._base) else RECENT
        if len(self._recent) < enough:
            return math.inf
        return 1.05 * len(self._recent) / max(now - self._recent[0], 0.001)

    def _count_wait(self, now: float) -> None:
        """Raise the limit if requests have waited for it long enough."""
        if math.isinf(self._base) or self._limit >= self._ceiling or not self._recent:
            return
        self._waited += now - self._recent[-1]
        self._waits += 1
        if self._waited > self._limit_patience and self._waits >= 5:
            self._limit += 1
            self._raised = True
            self._waited = 0.0
            self._waits = self._starts_at_limit = 0

    # The end of a throttle

    def _resume(self, throttle: _Throttle, now: float) -> None:
        """The request that started now was allowed: derive rate and limit, count starts anew."""
        self._throttle = None
        self._throttles += 1
        recovered = now - throttle.start.at
        still_refused = throttle.refused_at - throttle.start.at
        unsure = 0.0  # by how much the API may have recovered earlier than it asked to wait
        if throttle.retry_after:
            still_refused = max(still_refused, recovered - min(1.0, throttle.retry_after))
            unsure = recovered - still_refused
        if self._throttles == 1 and throttle.start.number < FEW and recovered > 5:
            self._limit = 1  # It shows nothing: start as before the first throttle.
        else:
            self._learn(throttle, recovered, still_refused, unsure)
            self._next_start = max(self._next_start, now + 1 / self._base)
        self._recent.clear()
        self._recent.append(now)
        self._began, self._started = now, 1

    def _learn(
        self, throttle: _Throttle, recovered: float, still_refused: float, unsure: float
    ) -> None:
        too_many = self._had_too_many_in_flight(throttle)
        self._blamed_limit = self._blamed_limit + 1 if too_many else 0
        if not 1 <= self._blamed_limit <= LIMIT_BLAMED_ALONE:
            self._set_rate(throttle, recovered, still_refused)
            self._set_patience(throttle, unsure)
        self._set_limit(throttle, unsure, too_many=too_many)

    def _set_rate(self, throttle: _Throttle, recovered: float, still_refused: float) -> None:
        first = throttle.start
        seconds = max(first.at - self._began, 0.001)
        rate = first.number / seconds if math.isinf(first.rate) else first.rate
        lower = max(first.number, 1) / (seconds + recovered)
        self._upper = max(lower, rate * seconds / (seconds + still_refused))
        cheap = self._throttles == 1 and not throttle.retry_after
        if cheap or self._upper < NEAR * lower:
            self._base = SHARE * self._upper
        else:
            self._base = lower * math.pow(self._upper / lower, UPPER_WEIGHT)
        self._note_proved(first.number, lower)
        lowest = max(PROVED_SHARE * self._proved, first.number / LONGEST_WINDOW, SLOWEST)
        self._base = max(self._base, lowest)
        self._upper = max(self._upper, self._base / SHARE)
        self._risen = 0.0

    def _note_proved(self, number: int, lower: float) -> None:
        """Remember the rate of a cycle, until most requests are refused.

        An API that refuses requests at random, at any rate, would else be asked ever more slowly.
        """
        if self._throttles > 1 and number >= FEW:
            self._proved = max(self._proved, lower)
            self._short_cycles = 0
            return
        self._short_cycles += 1
        if self._short_cycles >= 4:
            self._proved = 0.0

    def _set_patience(self, throttle: _Throttle, unsure: float) -> None:
        """Rise slower the more a throttle costs, and twice as slowly after each one."""
        first = max(1 + 2 * unsure, 6 / self._base)
        patience = min(first * 2 ** min(self._throttles - 1, 10), LONGEST_PATIENCE)
        self._patience = patience
        if throttle.start.number >= FEW:
            self._patience = max(patience, 20 * throttle.refused / self._base)

    def _had_too_many_in_flight(self, throttle: _Throttle) -> bool:
        """Whether the first requests at a limit that was just raised were refused."""
        if self._slow_start:
            return not math.isinf(self._base)
        at_limit = throttle.start.in_flight >= self._limit
        return self._raised and at_limit and self._starts_at_limit <= 8

    def _set_limit(self, throttle: _Throttle, unsure: float, *, too_many: bool) -> None:
        if self._slow_start:
            self._slow_start = False
            self._limit = max(throttle.accepted, 1)
            self._limit_patience = max(0.25, (unsure or 0.2) * self._limit)
        elif too_many:
            self._limit -= 1
            self._limit_patience = min(4 * self._limit_patience, LONGEST_LIMIT_PATIENCE)
        self._raised = False
        self._waited = 0.0
