"""Which failures of a request may pass, how long to wait for that, and when to give up."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from tenacity import RetryCallState
from tenacity.wait import wait_random_exponential

from etl.api.models import Page
from etl.errors import ApiThrottledError, ApiUnavailableError

RETRY_STATUSES: Final = frozenset({408, 425, 429, *range(500, 600)})
RETRY_SECONDS: Final = 300.0  # for one request with all its tries and waits
MAX_WAIT_SECONDS: Final = 30.0  # the longest exponential back-off
EMPTY_PAGE_TRIES: Final = 3


class TransientError(Exception):
    """A failure that may pass.

    `unreachable` names the host or proxy if there was no connection to it, `retry_after` is the
    wait in seconds that the API asked for, `empty_page` a page whose rows the API counts but does
    not send.
    """

    def __init__(
        self,
        reason: str,
        *,
        throttled: bool = False,
        retry_after: float | None = None,
        unreachable: str | None = None,
        empty_page: Page | None = None,
    ) -> None:
        super().__init__(reason)
        self.throttled = throttled
        self.retry_after = retry_after
        self.unreachable = unreachable
        self.empty_page = empty_page

    @property
    def is_too_long(self) -> bool:
        """Whether the API asked for a wait that no run spends on one request."""
        return self.retry_after is not None and self.retry_after >= RETRY_SECONDS


@dataclass(slots=True)
class Tries:
    """The tries of one request. A throttle is free while other requests get through.

    `waited` counts the seconds in which the request waited for its turn. They count for the time
    that a request may take only if the API answers nobody. A request `aside` is one whose failure
    does not concern the others.
    """

    most: int
    last_answer: Callable[[], float]
    clock: Callable[[], float]
    began: float
    since: float = -math.inf  # the last failed try
    free: int = 0
    waited: float = 0.0
    sent: int = 0
    aside: bool = False

    @property
    def nothing_answered(self) -> bool:
        """Whether no request at all has been answered since this one began."""
        return self.last_answer() < self.began

    def end(self, state: RetryCallState) -> None:
        """Note a failed try."""
        if failure_of(state).throttled and self.last_answer() >= max(self.began, self.since):
            self.free += 1
        self.since = self.clock()

    def are_spent(self, state: RetryCallState) -> bool:
        """Whether to give up."""
        failure = failure_of(state)
        if failure.empty_page and state.attempt_number >= EMPTY_PAGE_TRIES:
            return True
        seconds = self.clock() - self.began - (0 if self.nothing_answered else self.waited)
        too_late = seconds + state.upcoming_sleep >= RETRY_SECONDS
        return too_late or state.attempt_number - self.free >= self.most


_backoff = wait_random_exponential(multiplier=0.5, max=MAX_WAIT_SECONDS)


def failure_of(state: RetryCallState) -> TransientError:
    """The failure of the last try."""
    failure = state.outcome.exception() if state.outcome else None
    assert isinstance(failure, TransientError)  # noqa: S101  # nothing else is retried
    return failure


def wait(state: RetryCallState) -> float:
    """Seconds until the next try: the back-off, or longer if the API asked for it."""
    return max(failure_of(state).retry_after or 0.0, _backoff(state))


def final_error(failure: TransientError, tries: int) -> ApiUnavailableError:
    """The error of a request that gives up after this failure."""
    ending = f", gave up after {tries} {'try' if tries == 1 else 'tries'}."
    if failure.is_too_long:
        ending = f" and asks to wait {failure.retry_after:.0f} s, longer than a run waits."
    if failure.throttled:
        return ApiThrottledError(
            f"The API is throttling{ending} Run again later, or set a lower "
            "api.max_requests_per_second."
        )
    if failure.unreachable:
        return ApiUnavailableError(f"Cannot reach {failure.unreachable} ({failure}){ending}")
    return ApiUnavailableError(f"The API is unavailable ({failure}){ending} Run again later.")


def retry_after(header: str | None, now: datetime) -> float | None:
    """Seconds to wait, from either form of the header (RFC 9110, 10.2.3); None if unreadable."""
    if header is None:
        return None
    if re.fullmatch(r"\s*[0-9]{1,10}\s*", header):
        return float(header)
    try:
        return _seconds_until(header, now)
    except (ValueError, OverflowError, TypeError):
        return None


def _seconds_until(date: str, now: datetime) -> float:
    moment = parsedate_to_datetime(date)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max((moment - now).total_seconds(), 0.0)
