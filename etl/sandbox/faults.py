"""Faults: which one a request gets, and how it changes the reply."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from random import Random
from typing import Literal

from etl.sandbox.routes import Reply, reply_error, reply_text

# Changes a reply; None closes the connection without an answer.
Fault = Callable[[Reply], Reply | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """`latency` in seconds, `rate_limit` in requests per second, the others as probabilities.

    `cut` truncates the answer, half the time below its Content-Length, else without one. A
    `rate_limit` below 1 allows one request in several seconds; 0 throttles every request.
    """

    latency: float = 0.0
    rate_limit: float | None = None
    retry_after: Literal["none", "seconds", "date"] = "none"
    server_error: float = 0.0
    html: float = 0.0
    drop: float = 0.0
    cut: float = 0.0
    seed: int = 1


class FaultSource:
    """Draws a fault per request, from the seed and a token bucket; `clock` gives Unix time."""

    def __init__(self, faults: Faults, clock: Callable[[], float] = time.time) -> None:
        rate = faults.rate_limit
        self._faults = faults
        self._clock = clock
        self._rng = Random(faults.seed)
        self._filled_at = clock()
        self._burst = max(1.0, rate) if rate else 0.0
        self._budget = self._burst

    def next_fault(self) -> Fault | None:
        now = self._clock()
        if wait := self._throttle(now):
            return partial(_throttled, retry_after=self._retry_after(now, wait))
        roll = self._rng.random()
        choices: tuple[tuple[float, tuple[Fault, ...]], ...] = (
            (self._faults.server_error, _SERVER_ERRORS),
            (self._faults.html, _HTML_PAGES),
            (self._faults.drop, (_drop,)),
            (self._faults.cut, (_cut_short, _cut_open)),
        )
        for probability, faults in choices:
            if roll < probability:
                return self._rng.choice(faults)
            roll -= probability
        return None

    def _throttle(self, now: float) -> float:
        """Seconds until the next request is allowed; 0 allows this one and counts it."""
        rate = self._faults.rate_limit
        if rate is None:
            return 0.0
        self._budget = min(self._burst, self._budget + (now - self._filled_at) * rate)
        self._filled_at = now
        if self._budget < 1:
            return (1 - self._budget) / rate if rate else 1.0
        self._budget -= 1
        return 0.0

    def _retry_after(self, now: float, wait: float) -> str | None:
        match self._faults.retry_after:
            case "none":
                return None
            case "seconds":
                return str(math.ceil(wait))
            case "date":
                return formatdate(math.ceil(now + wait), usegmt=True)


def _throttled(_: Reply, *, retry_after: str | None) -> Reply:
    reply = reply_error(HTTPStatus.TOO_MANY_REQUESTS, "Rate limit exceeded")
    if retry_after is None:
        return reply
    return replace(reply, headers={**reply.headers, "Retry-After": retry_after})


def _server_error(_: Reply, *, status: HTTPStatus) -> Reply:
    return reply_error(status, "Please try again later")


def _html_page(_: Reply, *, status: HTTPStatus) -> Reply:
    page = f"<!DOCTYPE html><html><body><h1>{status.phrase}</h1></body></html>"
    return reply_text(status, page, content_type="text/html; charset=utf-8")


def _drop(_: Reply) -> None:
    return None


def _cut_short(reply: Reply) -> Reply:
    headers = {**reply.headers, "Connection": "close"}
    return replace(reply, headers=headers, body=reply.body[: len(reply.body) // 2])


def _cut_open(reply: Reply) -> Reply:
    cut = _cut_short(reply)
    unsized = {name: value for name, value in cut.headers.items() if name != "Content-Length"}
    return replace(cut, headers=unsized)


_SERVER_ERRORS = tuple(partial(_server_error, status=HTTPStatus(code)) for code in (500, 502, 503))
_HTML_PAGES = tuple(partial(_html_page, status=HTTPStatus(code)) for code in (200, 502))
