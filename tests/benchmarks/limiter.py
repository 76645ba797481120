"""The rate limits of the benchmark's server. All times are seconds since the first request."""

import math
from typing import Literal, Protocol

from msgspec import Struct

Kind = Literal["none", "bucket", "window", "at a time"]


class Limit(Struct, frozen=True):
    """Each kind lets `rate` requests per second through.

    A bucket holds `burst` requests, and is full at first. A window of so many `seconds` allows
    `rate * seconds` requests, at any moment in it; the first begins with the first request. "at a
    time" allows `rate * latency` requests in flight.
    """

    kind: Kind = "none"
    rate: float = 0.0
    burst: float = 0.0
    seconds: float = 0.0
    retry_after: bool = False

    def allowance(self, now: float) -> float:
        """Requests that may pass until now."""
        return self.burst + self.rate * now

    def least(self, requests: int) -> float:
        """Seconds that so many requests take."""
        return max(requests - self.burst, 0.0) / self.rate


class Limiter(Protocol):
    """Counts requests."""

    def allows(self, now: float) -> bool:
        """Whether a request may pass; if so, it is counted."""

    def wait(self, now: float) -> float:
        """Seconds until the next may pass."""


class _Bucket:
    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._tokens = limit.burst
        self._filled_at = 0.0

    def allows(self, now: float) -> bool:
        gained = self._limit.rate * (now - self._filled_at)
        self._tokens = min(self._limit.burst, self._tokens + gained)
        self._filled_at = now
        allowed = self._tokens >= 1
        self._tokens -= allowed
        return allowed

    def wait(self, now: float) -> float:
        return (1 - self._tokens) / self._limit.rate


class _Windows:
    def __init__(self, limit: Limit) -> None:
        self._seconds = limit.seconds
        self._most = limit.rate * limit.seconds
        self._window = 0
        self._passed = 0

    def allows(self, now: float) -> bool:
        if (window := int(now / self._seconds)) != self._window:
            self._window, self._passed = window, 0
        allowed = self._passed < self._most
        self._passed += allowed
        return allowed

    def wait(self, now: float) -> float:
        return self._seconds - now % self._seconds


class _AtATime:
    """A request is in flight from its arrival until its answer, `latency` seconds later."""

    def __init__(self, limit: Limit, latency: float) -> None:
        self._most = round(limit.rate * latency)
        self._latency = latency
        self._answers: list[float] = []

    def allows(self, now: float) -> bool:
        self._answers = [answer for answer in self._answers if answer > now]
        allowed = len(self._answers) < self._most
        if allowed:
            self._answers.append(now + self._latency)
        return allowed

    def wait(self, now: float) -> float:
        return min(self._answers) - now


def make_limiter(limit: Limit, latency: float) -> Limiter | None:
    """None if every request may pass."""
    match limit.kind:
        case "none":
            return None
        case "bucket":
            return _Bucket(limit)
        case "window":
            return _Windows(limit)
        case "at a time":
            return _AtATime(limit, latency)


def retry_after(seconds: float) -> bytes:
    """The header, in whole seconds: it has no fractions."""
    return b"Retry-After: %d\r\n" % max(math.ceil(seconds), 1)
