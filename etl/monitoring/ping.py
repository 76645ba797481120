"""Pings in the convention of healthchecks.io: a service waits for them and alerts if they stop.

A ping never fails a run. Its URL is a secret: neither a log nor an error has any part of it.
"""

import threading
import time
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import httpx

from etl import __version__
from etl.api.retry import RETRY_STATUSES
from etl.api.transport import connect_failure, proxy_for, tls_context
from etl.config import SecretUrl
from etl.errors import BusyError
from etl.monitoring.bounded import Bounded, ReportError

SECONDS: Final = 5.0  # that pings delay the end of a run, at most
_START_SECONDS: Final = 2.0  # of them, for a ping of the start that has not ended yet
_TRY_SECONDS: Final = 2.0  # for each step of a try
_PAUSES: Final = (0.0, 0.3, 0.6)  # before each try
_MAX_BODY_BYTES: Final = 10_000
_HEADERS: Final = {
    "Content-Type": "text/plain; charset=utf-8",
    "User-Agent": f"linq-etl/{__version__}",
}


class Pinger:
    """Reports the start of a run and its end."""

    def __init__(self, url: SecretUrl) -> None:
        self._url = url
        self._ending = threading.Event()
        self._start = Bounded("ping_failed", lambda: self._post("start", "", SECONDS), ping="start")

    def end(self, exit_code: int, sentence: str) -> None:
        """Report the end, with a sentence as the body."""
        self._ending.set()
        self._start.wait(_START_SECONDS)
        name = name_of(exit_code)
        seconds = SECONDS - _START_SECONDS
        ping = Bounded("ping_failed", lambda: self._post(name, sentence, seconds), ping=name)
        ping.wait(seconds)

    def _post(self, name: str, body: str, seconds: float) -> None:
        """Try a few times. Raises ReportError without a cause, whose text may hold the URL."""
        until = time.monotonic() + seconds
        target = address(self._url, name)
        failure = ""
        # The ping of the start is not repeated once the run ends, or it could come last.
        superseded = self._ending if name == "start" else threading.Event()
        with httpx.Client(
            verify=tls_context(),
            proxy=proxy_for(target),
            trust_env=False,
            timeout=_TRY_SECONDS,
            headers=_HEADERS,
        ) as client:
            for pause in _PAUSES:
                if failure and (superseded.wait(pause) or time.monotonic() > until):
                    break
                status, failure = _send(client, target, body)
                if not failure:
                    return
                if status and status not in RETRY_STATUSES:
                    break
        raise ReportError(failure)


def name_of(exit_code: int) -> str:
    """Which ping reports a run that ended like this.

    Another run is at work if this one was `busy`: that is neither a success nor a failure.
    """
    if exit_code == BusyError.exit_code:
        return "log"
    return "fail" if exit_code else "success"


def address(url: SecretUrl, name: str) -> str:
    """Where to send a ping: its name comes after the path and before the query."""
    parts = urlsplit(url.value)
    suffix = "" if name == "success" else f"/{name}"
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + suffix))


def _send(client: httpx.Client, target: str, body: str) -> tuple[int | None, str]:
    """One try: the status, if there was an answer, and what failed, if something did."""
    content = body.encode("utf-8", "replace")[:_MAX_BODY_BYTES]
    try:
        with client.stream("POST", target, content=content) as response:
            status = response.status_code
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        return None, connect_failure(error)
    except httpx.TimeoutException:
        return None, f"no answer in {_TRY_SECONDS:g} s"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return None, type(error).__name__
    if response.is_success:
        return status, ""
    redirects = "; redirects are not followed" if response.is_redirect else ""
    return status, f"HTTP {status}{redirects}"
