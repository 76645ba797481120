"""The Linq Partner API v2: one request, retried, answered by typed values."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
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
from etl.api import decode as wire
from etl.api.decode import Chat, LinqNumber, Page, Rejected
from etl.api.pace import ApiUsage, Pace
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
RETRY_SECONDS: Final = 300.0  # for one request, all its tries and waits together
MAX_WAIT_SECONDS: Final = 30.0  # the exponential back-off grows to this
MAX_BODY_BYTES: Final = 32 * 1024 * 1024

_PATH = "/api/partner/v2"
_HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "User-Agent": f"linq-etl/{__version__}",
}
T = TypeVar("T")
Decode = Callable[[bytes, datetime], T]  # from a body and when it was asked for


@dataclass(frozen=True, slots=True)
class RequestContext:
    """On whose behalf a request is made: a number, the token that reaches it, and its bill."""

    phone_number: str
    token: Token
    traffic: ApiUsage


class LinqClient:
    """Connections and a pace, shared by every number and token of this process.

    `now` gives the time that is recorded, `sleep` makes the waits between tries. An async context
    manager. Its methods raise TokenRefused, RequestRefused, ApiThrottled or ApiUnavailable.
    """

    def __init__(
        self,
        config: Api,
        pace: Pace,
        *,
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._config = config
        self._pace = pace
        self._now = now
        self._sleep = sleep
        self._decoding = asyncio.Lock()
        self._first_try: dict[Token, asyncio.Lock] = {}
        self._tried: set[Token] = set()
        self._refused: set[Token] = set()
        self._shut_out: _TransientError | None = None  # once the API has asked to wait for too long
        self._url = httpx.URL(config.base_url.rstrip("/") + _PATH)
        self._timeout = httpx.Timeout(config.timeout_seconds).as_dict()
        self._tls = httpx.create_ssl_context()
        self._idle: list[httpx.AsyncHTTPTransport] = []

    async def __aenter__(self) -> "LinqClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        for transport in self._idle:
            await transport.aclose()

    async def list_chats(self, line: RequestContext, page: int) -> Page:
        """Read one page, counted from 1, of the number's list."""
        params: dict[str, str | int] = {
            "phone_number": to_digits(line.phone_number),
            "page": page,
            "per_page": self._config.per_page,
        }

        return await self._get(
            line, "/chats", lambda body, sent_at: wire.page(body, page, sent_at), params=params
        )

    async def get_chat(self, line: RequestContext, chat_id: int) -> Chat | Rejected | None:
        """Read one chat; None where the API says that there is none (404, code not_found)."""
        try:
            return await self._get(
                line, f"/chats/{chat_id}", lambda body, _: wire.single_chat(body, chat_id)
            )
        except RequestRefusedError as error:
            if (error.status, error.code) == (404, "not_found"):
                return None
            raise

    async def list_phone_numbers(self, line: RequestContext) -> tuple[LinqNumber, ...]:
        """The numbers that the line's token reaches."""
        return await self._get(line, "/phone_numbers", lambda body, _: wire.phone_numbers(body))

    async def _get(
        self,
        line: RequestContext,
        path: str,
        decode: Decode[T],
        *,
        params: Mapping[str, str | int] | None = None,
    ) -> T:
        def after(state: RetryCallState) -> None:
            failure = _failure(state)
            if _too_long(failure):
                self._shut_out = failure
            elif failure.throttled:
                self._pace.throttled(_wait(state))

        def before_sleep(_: RetryCallState) -> None:
            line.traffic.retries += 1

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_TransientError),
            stop=stop_after_attempt(self._config.max_attempts) | stop_before_delay(RETRY_SECONDS),
            wait=_wait,
            sleep=self._sleep,
            after=after,
            before_sleep=before_sleep,
            retry_error_callback=_give_up,
        )
        return await retrying(self._try, line, path, decode, params)

    async def _try(
        self,
        line: RequestContext,
        path: str,
        decode: Decode[T],
        params: Mapping[str, str | int] | None,
    ) -> T:
        # A token's first request goes alone, so that one that is refused costs no more.
        if line.token not in self._tried:
            async with self._first_try.setdefault(line.token, asyncio.Lock()):
                if line.token not in self._tried:
                    try:
                        return await self._ask(line, path, decode, params)
                    finally:
                        self._tried.add(line.token)
        return await self._ask(line, path, decode, params)

    async def _ask(
        self,
        line: RequestContext,
        path: str,
        decode: Decode[T],
        params: Mapping[str, str | int] | None,
    ) -> T:
        async with self._pace.turn():
            if line.token in self._refused:
                raise TokenRefusedError(_REFUSED_401)
            if self._shut_out:
                raise self._shut_out
            line.traffic.requests += 1
            sent_at = self._now()
            response, body = await self._send(line.token, path, params)
            if response.status_code == 401:
                self._refused.add(line.token)
            line.traffic.throttled += response.status_code == 429
            _check_status(response, body, self._now())
            self._pace.answered()
        # Answers come in bursts: between one and the next that is decoded, requests go out.
        async with self._decoding:
            await asyncio.sleep(0)
            try:
                return decode(body, sent_at)
            except wire.BadAnswerError as error:
                raise _TransientError(str(error)) from None

    async def _send(
        self, token: Token, path: str, params: Mapping[str, str | int] | None
    ) -> tuple[httpx.Response, bytes]:
        # A transport for each request that is under way, used again, and no client around it: that
        # looks after cookies, redirects and logins, which this API has not, for half as long as
        # the request takes, and through all its connections several times per request.
        transport = self._idle.pop() if self._idle else self._transport()
        request = self._request(token, path, params)
        try:
            # httpx bounds each read; this bounds the request, should the body come in drops.
            async with asyncio.timeout(self._config.timeout_seconds):
                response = await transport.handle_async_request(request)
                try:
                    return response, await _body(response)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.TimeoutException):
            raise _TransientError(f"no answer in {self._config.timeout_seconds:g} s") from None
        except httpx.ConnectError as error:
            raise _TransientError(f"no connection to {request.url.host}: {error}") from None
        except httpx.RequestError as error:
            # Its text may hold the URL, and with it the phone number.
            raise _TransientError(f"the connection broke ({type(error).__name__})") from None
        finally:
            self._idle.append(transport)

    def _request(
        self, token: Token, path: str, params: Mapping[str, str | int] | None
    ) -> httpx.Request:
        query = f"?{urlencode(params)}" if params else ""
        return httpx.Request(
            "GET",
            self._url.copy_with(raw_path=self._url.raw_path + f"{path}{query}".encode()),
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
    """A failure that may pass; `retry_after` in seconds where the API named a time."""

    def __init__(
        self, reason: str, *, throttled: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(reason)
        self.throttled = throttled
        self.retry_after = retry_after


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
    failure = _failure(state)
    tries = f"after {state.attempt_number} tries in {state.seconds_since_start or 0:.0f} s"
    if _too_long(failure):
        tries = f"and asked to wait {failure.retry_after:.0f} s, which is too long for one run"
    if failure.throttled:
        raise ApiThrottledError(
            f"the API is throttling {tries}; run again later, or set "
            "api.max_requests_per_second lower"
        ) from failure
    raise ApiUnavailableError(
        f"the API is unavailable {tries}: {failure}; run again later"
    ) from failure


_REFUSED_401 = (
    "the API refused the token (401); get a valid integration token from Linq and set "
    "$LINQ_INTEGRATION_TOKEN or api.token_file"
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
            "the API does not let this token read that (403); use the token that the number "
            "belongs to (token_env), or ask Linq"
        )
    code = wire.error_code(body)
    if response.is_redirect:
        raise RequestRefusedError(
            f"the API redirects (HTTP {status}), which is not followed; see api.base_url",
            status=status,
            code=code,
        )
    # Only status and code: the rest of an error may repeat the phone number.
    raise RequestRefusedError(
        f"the API refused the request (HTTP {status}, code {code or 'none'}); see that the number "
        "is one of `linq-etl phone-numbers`, and api.base_url",
        status=status,
        code=code,
    )


def _proxy(base_url: str) -> str | None:
    """The environment's proxy for that URL; none may see a token that is meant for loopback."""
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
            raise _TransientError(f"an answer of more than {MAX_BODY_BYTES >> 20} MiB")
    return b"".join(chunks)


def _retry_after(header: str | None, now: datetime) -> float | None:
    """Seconds to wait from either form of the header (RFC 9110, 10.2.3); None if unreadable."""
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
