"""The Linq Partner API v2: each request is retried, each answer a typed value."""

import asyncio
import os
import socket
import ssl
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, NoReturn, TypeVar
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
)
from tenacity.wait import wait_random_exponential

from etl import __version__
from etl.api.decode import (
    BadAnswerError,
    decode_chat,
    decode_page,
    decode_phone_numbers,
    error_code,
)
from etl.api.models import ApiUsage, Chat, LinqNumber, Page, Rejected
from etl.api.pace import Pace
from etl.config import Api, Token, is_loopback
from etl.errors import (
    AccessDeniedError,
    ApiThrottledError,
    ApiUnavailableError,
    RequestRefusedError,
    TokenRefusedError,
)
from etl.phone import to_digits

RETRY_STATUSES: Final = frozenset({408, 425, 429, *range(500, 600)})
RETRY_SECONDS: Final = 300.0  # for one request with all its tries and waits
MAX_WAIT_SECONDS: Final = 30.0  # the longest exponential back-off
MAX_BODY_BYTES: Final = 32 * 1024 * 1024

_PATH = "/api/partner/v2"
_HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "User-Agent": f"linq-etl/{__version__}",
}
T = TypeVar("T")
Decode = Callable[[bytes, datetime], T]  # takes the body and the time of the request


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Whose usage a request counts for, and its token.

    `phone_number` is None for requests that belong to the run, not to one number.
    """

    phone_number: str | None
    token: Token


class LinqClient:
    """An async context manager; one serves all phone numbers and tokens of a process.

    `usage` is what was spent per phone number, under None for the run itself. `clock` gives the
    times to record; `sleep` waits between tries. Requests raise TokenRefusedError,
    RequestRefusedError, ApiThrottledError or ApiUnavailableError.
    """

    def __init__(
        self,
        config: Api,
        pace: Pace,
        *,
        clock: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        # The values are immutable, because the writer reads them from another thread.
        self.usage: defaultdict[str | None, ApiUsage] = defaultdict(ApiUsage)
        self._config = config
        self._pace = pace
        self._clock = clock
        self._sleep = sleep
        self._decoding = asyncio.Lock()
        self._first_try: dict[Token, asyncio.Lock] = {}
        self._tried: set[Token] = set()
        self._refused: set[Token] = set()
        self._shut_out: _TransientError | None = None  # set once Retry-After exceeds the budget
        self._url = httpx.URL(config.base_url.rstrip("/") + _PATH)
        # Shorter for connecting, so that a hanging connect is not reported as a missing answer.
        self._timeout = httpx.Timeout(
            config.timeout_seconds, connect=0.9 * config.timeout_seconds
        ).as_dict()
        self._tls = httpx.create_ssl_context()
        self._idle: list[httpx.AsyncHTTPTransport] = []

    async def __aenter__(self) -> "LinqClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        for transport in self._idle:
            await transport.aclose()

    async def list_chats(self, context: RequestContext, page_number: int) -> Page:
        """Read one page of the list of the context's phone number; pages count from 1."""
        if context.phone_number is None:
            raise ValueError("List Chats needs a phone number")
        query = {
            "phone_number": to_digits(context.phone_number),
            "page": page_number,
            "per_page": self._config.per_page,
        }

        def decode(body: bytes, sent_at: datetime) -> Page:
            return decode_page(body, page_number, sent_at)

        return await self._get(context, f"/chats?{urlencode(query)}", decode)

    async def get_chat(self, context: RequestContext, chat_id: int) -> Chat | Rejected | None:
        """Read one chat; None if the API says that it does not exist (404, code not_found)."""
        try:
            return await self._get(
                context, f"/chats/{chat_id}", lambda body, _: decode_chat(body, chat_id)
            )
        except RequestRefusedError as error:
            if (error.status, error.code) == (404, "not_found"):
                return None
            raise

    async def list_phone_numbers(self, context: RequestContext) -> tuple[LinqNumber, ...]:
        """Read which phone numbers the context's token reaches."""
        return await self._get(
            context, "/phone_numbers", lambda body, _: decode_phone_numbers(body)
        )

    async def _get(self, context: RequestContext, target: str, decode: Decode[T]) -> T:
        def after(state: RetryCallState) -> None:
            failure = _failure(state)
            if _too_long(failure):
                self._shut_out = failure
            elif failure.throttled:
                self._pace.throttled(_wait(state))

        def before_sleep(_: RetryCallState) -> None:
            self.usage[context.phone_number] += ApiUsage(retries=1)

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_TransientError),
            stop=stop_after_attempt(self._config.max_attempts) | stop_before_delay(RETRY_SECONDS),
            wait=_wait,
            sleep=self._sleep,
            after=after,
            before_sleep=before_sleep,
            retry_error_callback=_give_up,
        )
        return await retrying(self._try, context, target, decode)

    async def _try(self, context: RequestContext, target: str, decode: Decode[T]) -> T:
        # A token's first request goes alone, so that a refused token costs one request.
        if context.token not in self._tried:
            async with self._first_try.setdefault(context.token, asyncio.Lock()):
                if context.token not in self._tried:
                    try:
                        return await self._ask(context, target, decode)
                    finally:
                        self._tried.add(context.token)
        return await self._ask(context, target, decode)

    async def _ask(self, context: RequestContext, target: str, decode: Decode[T]) -> T:
        async with self._pace.turn():
            if context.token in self._refused:
                raise TokenRefusedError(_REFUSED_401)
            if self._shut_out:
                raise self._shut_out
            self.usage[context.phone_number] += ApiUsage(requests=1)
            sent_at = self._clock()
            response, body = await self._send(context.token, target)
            if response.status_code == 401:
                self._refused.add(context.token)
            if response.status_code == 429:
                self.usage[context.phone_number] += ApiUsage(throttled=1)
            _check_status(response, body, self._clock())
            self._pace.answered()
        # Decode one response at a time and yield in between, so that a burst does not delay
        # requests.
        async with self._decoding:
            await asyncio.sleep(0)
            try:
                return decode(body, sent_at)
            except BadAnswerError as error:
                raise _TransientError(str(error)) from None

    async def _send(self, token: Token, target: str) -> tuple[httpx.Response, bytes]:
        # A transport per request in flight, reused, instead of an httpx client: its cookies,
        # redirects and authentication, unused here, cost half as much CPU time as the request
        # itself, and it scans all its connections several times per request.
        transport = self._idle.pop() if self._idle else self._transport()
        request = self._request(token, target)
        try:
            # httpx limits each read; this limits the whole request, whose body may trickle in.
            async with asyncio.timeout(self._config.timeout_seconds):
                response = await transport.handle_async_request(request)
                try:
                    return response, await _body(response)
                finally:
                    await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            host = request.url.host
            raise _TransientError(_connect_failure(error), unreachable_host=host) from None
        except (TimeoutError, httpx.TimeoutException):
            raise _TransientError(f"no answer in {self._config.timeout_seconds:g} s") from None
        except httpx.RequestError as error:
            # Its text may hold the URL, and with it the phone number.
            raise _TransientError(f"the connection broke: {type(error).__name__}") from None
        finally:
            self._idle.append(transport)

    def _request(self, token: Token, target: str) -> httpx.Request:
        return httpx.Request(
            "GET",
            self._url.copy_with(raw_path=self._url.raw_path + target.encode()),
            headers={**_HEADERS, "X-LINQ-INTEGRATION-TOKEN": token.value},
            extensions={"timeout": self._timeout},
        )

    def _transport(self) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(
            verify=self._tls,
            limits=httpx.Limits(max_connections=1),
            proxy=_proxy(self._config.base_url),
        )


class _TransientError(Exception):
    """A failure that may pass.

    `unreachable_host` is set if there was no connection to it, `retry_after` (seconds) if the API
    named a time.
    """

    def __init__(
        self,
        reason: str,
        *,
        throttled: bool = False,
        retry_after: float | None = None,
        unreachable_host: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.throttled = throttled
        self.retry_after = retry_after
        self.unreachable_host = unreachable_host


_backoff = wait_random_exponential(multiplier=0.5, max=MAX_WAIT_SECONDS)


def _failure(state: RetryCallState) -> _TransientError:
    failure = state.outcome.exception() if state.outcome else None
    assert isinstance(failure, _TransientError)  # noqa: S101  # nothing else is retried
    return failure


def _too_long(failure: _TransientError) -> bool:
    return failure.retry_after is not None and failure.retry_after >= RETRY_SECONDS


def _wait(state: RetryCallState) -> float:
    asked = _failure(state).retry_after
    return _backoff(state) if asked is None else asked


def _give_up(state: RetryCallState) -> NoReturn:
    failure, tries = _failure(state), state.attempt_number
    ending = f", gave up after {tries} {'try' if tries == 1 else 'tries'}."
    if _too_long(failure):
        ending = f" and asks to wait {failure.retry_after:.0f} s, longer than a run waits."
    if failure.throttled:
        raise ApiThrottledError(
            f"The API is throttling{ending} Run again later, or set a lower "
            "api.max_requests_per_second."
        ) from failure
    if failure.unreachable_host:
        raise ApiUnavailableError(
            f"Cannot reach {failure.unreachable_host} ({failure}){ending}"
        ) from failure
    raise ApiUnavailableError(
        f"The API is unavailable ({failure}){ending} Run again later."
    ) from failure


def _connect_failure(error: BaseException) -> str:
    """Why there is no connection, without the addresses that the exceptions' own texts hold."""
    cause: BaseException | None = error
    while cause:
        match cause:
            case httpx.ConnectTimeout():
                return "timed out"
            case ssl.SSLCertVerificationError():
                return f"TLS certificate: {cause.verify_message}"
            case ssl.SSLError(reason=str(reason)):
                return f"TLS: {reason.replace('_', ' ').lower()}"
            case socket.gaierror(strerror=str(reason)):
                return reason.lower()
            case OSError(errno=int(number)):
                return os.strerror(number).lower()
            case BaseExceptionGroup():  # one exception per address that was tried
                cause = cause.exceptions[0]
            case _:
                cause = cause.__cause__ or cause.__context__
    return "no connection"


_REFUSED_401 = (
    "The API refused the token (401). Put a valid integration token in $LINQ_INTEGRATION_TOKEN, "
    "api.token_file or the variable that token_env names."
)


def _check_status(response: httpx.Response, body: bytes, now: datetime) -> None:
    status = response.status_code
    if status == 200:
        return
    if status in RETRY_STATUSES:
        raise _TransientError(
            f"HTTP {status}",
            throttled=status == 429,
            retry_after=_retry_after(response.headers.get("Retry-After"), now),
        )
    if status == 401:
        raise TokenRefusedError(_REFUSED_401)
    if status == 403:
        raise AccessDeniedError(
            "The API does not let this token read that (403). Use the token that the number "
            "belongs to (token_env), or ask Linq."
        )
    code = error_code(body)
    if response.is_redirect:
        raise RequestRefusedError(
            f"The API redirects (HTTP {status}); redirects are not followed. Fix api.base_url.",
            status=status,
            code=code,
        )
    # Only status and code, because the other texts of an error may hold the phone number.
    raise RequestRefusedError(
        f"The API refused the request (HTTP {status}, code {code or 'none'}). Check that "
        "`linq-etl phone-numbers` lists the number, and check api.base_url.",
        status=status,
        code=code,
    )


def _proxy(base_url: str) -> str | None:
    """The environment's proxy for this URL; none for loopback, whose token no proxy may see."""
    url = urlsplit(base_url)
    host = url.hostname or ""
    if is_loopback(host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


async def _body(response: httpx.Response) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.aiter_bytes():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise _TransientError(f"an answer larger than {MAX_BODY_BYTES >> 20} MiB")
    return b"".join(chunks)


def _retry_after(header: str | None, now: datetime) -> float | None:
    """Seconds to wait, from either form of the header (RFC 9110, 10.2.3); None if unreadable."""
    if header is None:
        return None
    try:
        return float(int(header)) if header.strip().isdigit() else _seconds_until(header, now)
    except (ValueError, OverflowError):
        return None


def _seconds_until(date: str, now: datetime) -> float:
    moment = parsedate_to_datetime(date)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max((moment - now).total_seconds(), 0.0)
