"""The Linq Partner API v2: each request is retried, each answer a typed value."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar
from urllib.parse import urlencode

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from etl.api.decode import (
    BadAnswerError,
    EmptyPageError,
    decode_chat,
    decode_page,
    decode_phone_numbers,
    error_code,
)
from etl.api.models import ApiUsage, Chat, LinqNumber, Page, Rejected, Withheld
from etl.api.pace import Lane, Pace, Turn
from etl.api.privacy import Privacy
from etl.api.retry import (
    RETRY_STATUSES,
    TransientError,
    Tries,
    failure_of,
    final_error,
    retry_after,
    wait,
)
from etl.api.transport import Response, Transport
from etl.config import Api, Token
from etl.errors import AccessDeniedError, EtlError, RequestRefusedError, TokenRefusedError
from etl.phone import to_digits

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
    times to record; `sleep` waits between tries, by the `monotonic` clock. Requests raise
    TokenRefusedError, RequestRefusedError, ApiThrottledError or ApiUnavailableError. `privacy`
    says what is stored of people; an answer holds no more.
    """

    def __init__(  # noqa: PLR0913  # what tests and telemetry replace
        self,
        config: Api,
        pace: Pace,
        *,
        clock: Callable[[], datetime],
        transport: Transport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        # The values are immutable, because the writer reads them from another thread.
        self.usage: defaultdict[str | None, ApiUsage] = defaultdict(ApiUsage)
        self.privacy = Privacy()
        self._config = config
        self._pace = pace
        self._lanes: dict[Token, Lane] = {}
        self._clock = clock
        self._sleep = sleep
        self._decoding = asyncio.Lock()
        self._first_try: dict[Token, asyncio.Lock] = {}
        self._tried: set[Token] = set()
        self._accepted: set[Token] = set()
        self._refused: set[Token] = set()
        self._refused_numbers: defaultdict[Token, set[str | None]] = defaultdict(set)
        self._monotonic = monotonic
        self._answered_at = -1.0  # when the last good answer came
        self._failures = 0  # tries that failed since
        self._transport = transport or Transport(config)

    async def __aenter__(self) -> "LinqClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.aclose()

    async def list_chats(
        self, context: RequestContext, page_number: int, *, again: bool = False
    ) -> Page:
        """Read one page of the list of the context's phone number; pages count from 1.

        `again` counts the request as a retry.
        """
        if context.phone_number is None:
            raise ValueError("List Chats needs a phone number")
        query = {
            "phone_number": to_digits(context.phone_number),
            "page": page_number,
            "per_page": self._config.per_page,
        }

        def decode(body: bytes, sent_at: datetime) -> Page:
            return self.privacy.page(decode_page(body, page_number, sent_at))

        return await self._get(context, f"/chats?{urlencode(query)}", decode, again=again)

    async def get_chat(
        self, context: RequestContext, chat_id: int, *, again: bool = False
    ) -> Chat | Rejected | Withheld | None:
        """Read one chat; None if the API says that it does not exist (404, code not_found).

        `again` counts the request as a retry.
        """

        def decode(body: bytes, _: datetime) -> Chat | Rejected | Withheld:
            return self.privacy.answer(decode_chat(body, chat_id))

        try:
            return await self._get(context, f"/chats/{chat_id}", decode, again=again)
        except RequestRefusedError as error:
            if (error.status, error.code) == (404, "not_found"):
                return None
            raise

    async def list_phone_numbers(self, context: RequestContext) -> tuple[LinqNumber, ...]:
        """Read which phone numbers the context's token reaches.

        A failure says nothing of the requests for chats, and neither stops nor pauses them.
        """
        return await self._get(
            context, "/phone_numbers", lambda body, _: decode_phone_numbers(body), aside=True
        )

    def set_rate(self, token: Token, requests_per_second: float) -> None:
        """Start just below the rate that `rates` returned for the token in an earlier run."""
        self._lanes[token] = self._pace.lane(requests_per_second)

    def rates(self) -> dict[Token, float]:
        """Requests a second that the API allows each token in all, where it has throttled."""
        return {token: lane.rate for token, lane in self._lanes.items() if lane.rate}

    def throttles(self) -> dict[Token, int]:
        """How often the API has throttled each token in this process."""
        return {token: lane.throttles for token, lane in self._lanes.items()}

    def lower_rate(self, token: Token, requests_per_second: float) -> None:
        """Go on just below that rate of another process, unless this one is slower."""
        if token in self._lanes:
            self._lanes[token].lower(requests_per_second)
        else:
            self.set_rate(token, requests_per_second)

    @property
    def spare(self) -> int:
        """How many more requests could start now."""
        return self._pace.spare

    @property
    def error(self) -> EtlError | None:
        """Why no request starts any more."""
        return self._pace.error

    async def _get(
        self,
        context: RequestContext,
        target: str,
        decode: Decode[T],
        *,
        again: bool = False,
        aside: bool = False,
    ) -> T:
        tries = Tries(
            self._config.max_attempts,
            lambda: self._answered_at,
            self._monotonic,
            self._monotonic(),
            sent=int(again),
            aside=aside,
        )

        def after(state: RetryCallState) -> None:
            self._failures += not aside
            tries.end(state)

        def spent(state: RetryCallState) -> Page:
            failure = failure_of(state)
            if failure.empty_page:
                return failure.empty_page
            error = copy(self._pace.error) or final_error(failure, state.attempt_number)
            is_down = self._failures > 1 and tries.nothing_answered and not failure.is_too_long
            if is_down and not aside:
                self._pace.stop(error)  # Nothing gets through: the other requests end too.
            raise error from failure

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(TransientError),
            stop=lambda state: self._pace.stopped.is_set() or tries.are_spent(state),
            wait=wait,
            sleep=self._sleep_until_stopped,
            after=after,
            retry_error_callback=spent,
        )
        return await retrying(self._try, context, target, decode, tries)

    async def _sleep_until_stopped(self, seconds: float) -> None:
        waits = [
            asyncio.ensure_future(self._sleep(seconds)),
            asyncio.ensure_future(self._pace.stopped.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    async def _try(
        self, context: RequestContext, target: str, decode: Decode[T], tries: Tries
    ) -> T:
        # A token's first request goes alone, so that a refused token costs one request.
        if context.token not in self._tried:
            async with self._first_try.setdefault(context.token, asyncio.Lock()):
                if context.token not in self._tried:
                    try:
                        return await self._ask(context, target, decode, tries)
                    finally:
                        self._tried.add(context.token)
        return await self._ask(context, target, decode, tries)

    async def _ask(
        self, context: RequestContext, target: str, decode: Decode[T], tries: Tries
    ) -> T:
        queued_at = self._monotonic()
        if context.token not in self._lanes:
            self._lanes[context.token] = self._pace.lane()
        async with self._lanes[context.token].turn() as turn:
            tries.waited += self._monotonic() - queued_at
            if context.token in self._refused:
                raise TokenRefusedError(_REFUSED_401)
            sent_at = self._clock()
            self.usage[context.phone_number] += ApiUsage(requests=1, retries=int(tries.sent > 0))
            tries.sent += 1
            response = await self._send(context, target, turn, aside=tries.aside)
        # Decode one response at a time and yield in between, so that a burst does not delay
        # requests.
        try:
            async with self._decoding:
                await asyncio.sleep(0)
                answer = decode(response.body, sent_at)
        except EmptyPageError as error:
            self._note_answer()
            raise TransientError(str(error), empty_page=error.page) from None
        except BadAnswerError as error:
            raise TransientError(str(error)) from None
        finally:
            self._transport.release(response)
        self._note_answer()
        return answer

    def _note_answer(self) -> None:
        self._answered_at = self._monotonic()
        self._failures = 0

    async def _send(
        self, context: RequestContext, target: str, turn: Turn, *, aside: bool
    ) -> Response:
        """One request: a status of success, whose body is to be released. Tells the pace."""
        response = await self._transport.get(context.token, target)
        if response.status not in RETRY_STATUSES:
            turn.answered()
            if response.status != 200:
                self._note_answer()
        try:
            self._check(context, response, aside=aside)
        except BaseException as error:
            self._transport.release(response)
            if isinstance(error, TransientError) and error.throttled and not aside:
                if error.is_too_long:
                    self._pace.stop(final_error(error, 1))
                else:
                    turn.throttled(error.retry_after)
            raise
        self._accepted.add(context.token)
        return response

    def _check(self, context: RequestContext, response: Response, *, aside: bool) -> None:
        if response.status == 401:
            numbers = self._refused_numbers[context.token]
            if not aside:
                numbers.add(context.phone_number)
            # One number's 401 among good answers is that number's; else the token is refused.
            if context.token not in self._accepted or len(numbers) > 1:
                self._refused.add(context.token)
        if response.status == 429:
            self.usage[context.phone_number] += ApiUsage(throttled=1)
        _check_status(response, self._clock())


_REFUSED_401 = (
    "The API refused the token (401). Put a valid integration token in $LINQ_INTEGRATION_TOKEN, "
    "api.token_file or the variable that token_env names."
)


def _check_status(response: Response, now: datetime) -> None:
    status = response.status
    if status == 200:
        return
    if status in RETRY_STATUSES:
        raise TransientError(
            f"HTTP {status}",
            throttled=status == 429,
            retry_after=retry_after(response.headers.get("Retry-After"), now),
        )
    if status == 401:
        raise TokenRefusedError(_REFUSED_401)
    if status == 403:
        raise AccessDeniedError(
            "The API does not let this token read that (403). Use the token that the number "
            "belongs to (token_env), or ask Linq."
        )
    code = error_code(response.body)
    if 300 <= status < 400:
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
