"""LinqClient's retries over real sockets: which failures, how often, after which wait."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from etl.api.client import LinqClient, RequestContext
from etl.api.models import ApiUsage, Chat, LinqNumber, Page, Rejected, Withheld
from etl.api.retry import MAX_WAIT_SECONDS
from etl.config import Token
from etl.errors import (
    ApiThrottledError,
    ApiUnavailableError,
    RequestRefusedError,
    TokenRefusedError,
)
from tests.support.api_server import (
    CUT,
    DROP,
    HTML,
    OK,
    TOKEN,
    Answer,
    Caller,
    Server,
    error,
)
from tests.support.builders import NOON


async def list_chats(client: LinqClient, context: RequestContext) -> Page:
    return await client.list_chats(context, 1)


async def get_chat(
    client: LinqClient, context: RequestContext
) -> Chat | Rejected | Withheld | None:
    return await client.get_chat(context, 5)


async def list_phone_numbers(client: LinqClient, context: RequestContext) -> tuple[LinqNumber, ...]:
    return await client.list_phone_numbers(context)


async def three_calls(client: LinqClient, context: RequestContext) -> list[Any]:
    calls = [client.list_chats(context, 1) for _ in range(3)]
    return await asyncio.gather(*calls, return_exceptions=True)


# What is retried

TRANSIENT: dict[str, Answer | None] = {
    **{str(status): error(status) for status in (408, 425, 429, 500, 502, 503, 504, 520, 599)},
    "502 HTML": Answer(502, HTML),
    "200 HTML": Answer(200, HTML),
    "nothing": Answer(200, b""),
    "half the JSON": Answer(200, b'{"data":[{"id":1}'),
    "no page": Answer(200, b'{"chats":[]}'),
    "another page": Answer(200, b'{"data":[],"meta":{"page":2}}'),
    "an empty page": Answer(200, b'{"data":[],"meta":{"total_count":9,"total_pages":1}}'),
    "no gzip": Answer(200, HTML, {"Content-Encoding": "gzip"}),
    "cut short": CUT,
    "dropped": DROP,
}


@pytest.mark.parametrize("failure", TRANSIENT.values(), ids=TRANSIENT.keys())
def test_a_transient_failure_is_retried(
    server: Server, caller: Caller, failure: Answer | None
) -> None:
    """After two failures that may pass, the third try returns the page."""
    server.answers = [failure, failure, OK]

    assert caller.call(server.url, list_chats).chats == (Chat(1),)
    throttled = 2 * (failure == TRANSIENT["429"])
    assert caller.usage == ApiUsage(requests=3, retries=2, throttled=throttled)
    assert len(caller.retry_time.waits) == 2


@pytest.mark.parametrize(
    ("failure", "request_"),
    [
        (Answer(200, b'{"data":{"id":6}}'), get_chat),
        (Answer(200, b'{"data":[]}'), list_phone_numbers),
    ],
)
def test_every_request_is_retried(
    server: Server,
    caller: Caller,
    failure: Answer,
    request_: Callable[[LinqClient, RequestContext], Awaitable[Any]],
) -> None:
    """Get Chat and List Phone Numbers are retried like List Chats."""
    server.answers = [failure]

    assert type(caller.fail(server.url, request_, max_attempts=3)) is ApiUnavailableError
    assert caller.usage == ApiUsage(requests=3, retries=2)


def test_an_answer_with_another_chat_is_retried(server: Server, caller: Caller) -> None:
    """A chat with another id is never returned in place of the requested one."""
    server.answers = [Answer(body=b'{"data":{"id":6}}'), Answer(body=b'{"data":{"id":5}}')]

    assert caller.call(server.url, get_chat) == Chat(5)
    assert caller.usage == ApiUsage(requests=2, retries=1)


def test_a_page_has_the_time_of_its_last_try(server: Server, caller: Caller) -> None:
    """`observed_at` is the start of the try that was answered."""
    server.answers = [error(503, Retry_After="7"), error(503, Retry_After="20"), OK]
    caller.clock = lambda: NOON + timedelta(seconds=caller.retry_time.now)

    assert caller.call(server.url, list_chats).observed_at == NOON + timedelta(seconds=27)


@pytest.mark.parametrize("status", [201, 204, 304, 400, 404, 405, 409, 410, 418, 422, 451])
def test_a_refusal_is_not_retried(server: Server, caller: Caller, status: int) -> None:
    """Any other status costs one request: exit code 3."""
    server.answers = [Answer(204, b"") if status in {204, 304} else error(status)]

    refused = caller.fail(server.url, list_chats)

    assert isinstance(refused, RequestRefusedError)
    assert refused.exit_code == 3
    assert caller.usage == ApiUsage(requests=1)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_not_retried(server: Server, caller: Caller, status: int) -> None:
    """A refused token costs one request: exit code 4."""
    server.answers = [error(status, "unauthorized")]

    refused = caller.fail(server.url, list_chats)

    assert isinstance(refused, TokenRefusedError)
    assert refused.exit_code == 4
    assert f"({status})" in str(refused)
    assert caller.usage == ApiUsage(requests=1)


@pytest.mark.parametrize(("tries", "words"), [(1, "1 try"), (2, "2 tries"), (5, "5 tries")])
def test_tries_are_limited(server: Server, caller: Caller, tries: int, words: str) -> None:
    """After `max_attempts` tries the API is unavailable: exit code 5, with the last reason."""
    server.answers = [*[error(500)] * (tries - 1), error(503)]

    unavailable = caller.fail(server.url, list_chats, max_attempts=tries)

    assert (type(unavailable), unavailable.exit_code) == (ApiUnavailableError, 5)
    assert str(unavailable) == (
        f"The API is unavailable (HTTP 503), gave up after {words}. Run again later."
    )
    assert caller.usage == ApiUsage(requests=tries, retries=tries - 1)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"", length=1000, stalls=True),
        Answer(200, b'{"data":[', length=1000, stalls=True),
        Answer(200, b'{"data":[', length=1000, drips=True),
    ],
    ids=["no body", "half a body", "drips"],
)
def test_a_request_is_limited_in_time(server: Server, caller: Caller, answer: Answer) -> None:
    """`timeout_seconds` limits the whole request, even if bytes keep arriving."""
    server.answers = [answer]

    unavailable = caller.fail(server.url, list_chats, timeout_seconds=0.2, max_attempts=1)

    assert "(no answer in 0.2 s)" in str(unavailable)


def test_a_timeout_is_retried(server: Server, caller: Caller) -> None:
    """A request that hangs once is answered at the next try."""
    server.answers = [Answer(200, b"", length=1000, stalls=True), OK]

    assert caller.call(server.url, list_chats, timeout_seconds=0.2).chats == (Chat(1),)
    assert caller.usage == ApiUsage(requests=2, retries=1)


# How long it waits


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("280", 280),
        ("Sun, 01 Jun 2025 12:00:10 GMT", 10),
        ("Sunday, 01-Jun-25 12:00:10 GMT", 10),
        ("Sun, 01 Jun 2025 08:00:30 -0400", 30),
        ("Sun, 01 Jun 2025 08:00:30 -0401", 90),
    ],
)
def test_retry_after_is_obeyed(server: Server, caller: Caller, header: str, seconds: float) -> None:
    """Retry-After, in seconds or as a date, is the wait before the next try."""
    server.answers = [error(429, Retry_After=header), OK]

    caller.call(server.url, list_chats)

    assert caller.retry_time.waits == [seconds]


def test_the_wait_is_never_less_than_the_back_off(server: Server, caller: Caller) -> None:
    """`Retry-After: 0` and a date that has passed do not use up all tries at once."""
    past = "Sat, 31 May 2025 00:00:00 GMT"
    server.answers = [error(429, Retry_After=header) for header in ("0", past, "0", past)]
    server.answers += [error(429, Retry_After="0")] * 3 + [OK]

    caller.call(server.url, list_chats)

    assert len(caller.retry_time.waits) == 7
    assert sum(caller.retry_time.waits) > 2


@pytest.mark.parametrize(
    "header", ["", "soon", "-5", "1.5", "1e3", "9" * 400, "\u0665", "Wed, 99 Jan 2026"]
)
def test_an_unreadable_retry_after_is_ignored(server: Server, caller: Caller, header: str) -> None:
    """With a malformed Retry-After, the wait is the same as without the header."""
    server.answers = [error(429, Retry_After=header), OK]

    caller.call(server.url, list_chats)

    (wait,) = caller.retry_time.waits
    assert 0 <= wait <= 0.5


@pytest.mark.parametrize(
    ("status", "header", "kind", "message"),
    [
        (
            429,
            "86400",
            "throttled",
            "The API is throttling and asks to wait 86400 s, longer than a run waits. Run again "
            "later, or set a lower api.max_requests_per_second.",
        ),
        (
            429,
            "300",
            "throttled",
            "The API is throttling and asks to wait 300 s, longer than a run waits. Run again "
            "later, or set a lower api.max_requests_per_second.",
        ),
        (
            503,
            "Sun, 01 Jun 2025 13:00:00 GMT",
            "unavailable",
            "The API is unavailable (HTTP 503) and asks to wait 3600 s, longer than a run waits. "
            "Run again later.",
        ),
    ],
)
def test_too_long_a_wait_ends_the_run(
    server: Server, caller: Caller, status: int, header: str, kind: str, message: str
) -> None:
    """If Retry-After exceeds the time for one request, the request fails at once."""
    server.answers = [error(status, Retry_After=header)]

    failed = caller.fail(server.url, list_chats)

    assert isinstance(failed, ApiUnavailableError)
    assert (failed.kind, str(failed)) == (kind, message)
    assert (caller.usage.requests, caller.retry_time.waits) == (1, [])


def test_waits_grow_to_a_limit(server: Server) -> None:
    """Without Retry-After, waits are random, within a window that doubles up to a limit."""
    server.answers = [error(503)]
    callers = [Caller() for _ in range(4)]

    for caller in callers:
        caller.fail(server.url, list_chats, max_attempts=20)

    windows = [min(0.5 * 2**number, MAX_WAIT_SECONDS) for number in range(19)]
    waits = [caller.retry_time.waits for caller in callers]
    assert all(0 <= w <= window for each in waits for w, window in zip(each, windows, strict=True))
    assert len({wait for each in waits for wait in each}) == 4 * 19
    # The chance that all of these are in the lower half of their window is 1 in 2**48.
    assert max(wait for each in waits for wait in each[7:]) > MAX_WAIT_SECONDS / 2


# Throttles


def test_a_throttle_that_does_not_end(server: Server, caller: Caller) -> None:
    """If every try is throttled, the error says so and which setting helps."""
    server.answers = [error(429, Retry_After="1")]

    throttled = caller.fail(server.url, list_chats, max_attempts=3)

    assert (type(throttled), throttled.exit_code) == (ApiThrottledError, 5)
    assert str(throttled) == (
        "The API is throttling, gave up after 3 tries. Run again later, or set a lower "
        "api.max_requests_per_second."
    )
    assert caller.usage == ApiUsage(requests=3, retries=2, throttled=3)


def test_a_throttle_pauses_every_call(server: Server, caller: Caller) -> None:
    """After a 429, no call sends a request before Retry-After has passed."""
    server.answers = [error(429, Retry_After="7"), OK]
    server.clock = caller.pace_time.clock

    caller.call(server.url, three_calls)

    assert server.times[:2] == [0, 7]
    assert [time >= 7 for time in server.times[2:]] == [True, True]


def test_the_last_throttle_pauses_the_others(server: Server, caller: Caller) -> None:
    """A call that gives up after a 429 still makes the others wait."""
    server.answers = [error(429, Retry_After="7"), OK]
    server.clock = caller.pace_time.clock

    results = caller.call(server.url, three_calls, max_attempts=1)

    assert [type(result) for result in results] == [ApiThrottledError, Page, Page]
    assert server.times[:2] == [0, 7]
    assert [time >= 7 for time in server.times[2:]] == [True]


def test_a_throttle_for_too_long_ends_the_others(server: Server, caller: Caller) -> None:
    """Requests that wait for their turn end with the same error, and wait no hour for it."""
    server.answers = [error(429, Retry_After="3600"), OK]

    results = caller.call(server.url, three_calls)

    assert [type(result) for result in results] == [ApiThrottledError] * 3
    assert len({str(result) for result in results}) == 1
    assert len(server.targets) == 1
    assert sum(caller.pace_time.waits) == 0


def test_the_rate_of_a_token_is_learned(server: Server, caller: Caller) -> None:
    """After a throttle the client tells the rate, per token; a later run starts just below it."""
    server.answers = [*[OK] * 20, error(429), OK]

    async def thirty_requests(
        client: LinqClient, context: RequestContext
    ) -> tuple[dict[Token, float], dict[Token, float]]:
        client.set_rate(Token("other"), 40)
        before = client.rates()
        for page in range(30):
            await client.list_chats(context, page + 1)
        return before, client.rates()

    before, after = caller.call(server.url, thirty_requests)

    assert before == {Token("other"): pytest.approx(0.985 * 40)}
    assert after[Token(TOKEN)] > 0


def test_another_failure_pauses_nobody(server: Server, caller: Caller) -> None:
    """After a 503, only the failed request waits."""
    server.answers = [error(503, Retry_After="7"), OK]
    server.clock = caller.pace_time.clock

    caller.call(server.url, three_calls)

    assert (server.times, caller.retry_time.waits) == ([0, 0, 0, 0], [7])


@pytest.mark.parametrize(
    ("failure", "tries"),
    [
        (error(429, Retry_After="7"), 2),
        (error(429, Retry_After="3600"), 1),
        (error(503), 2),
        (error(401), 1),
    ],
)
def test_what_list_phone_numbers_fails_with_concerns_no_chat(
    server: Server, caller: Caller, failure: Answer, tries: int
) -> None:
    """Requests for chats go on at once: neither paused nor stopped, nor is their token refused."""
    server.answers = [OK, *[failure] * tries, error(401), OK]

    async def calls(client: LinqClient, context: RequestContext) -> list[Any]:
        of_run = replace(context, phone_number=None)
        return [
            *await asyncio.gather(list_chats(client, context)),
            *await asyncio.gather(list_phone_numbers(client, of_run), return_exceptions=True),
            *await asyncio.gather(list_chats(client, context), return_exceptions=True),
            *await asyncio.gather(list_chats(client, context)),
        ]

    results = caller.call(server.url, calls, max_attempts=2)

    assert [isinstance(result, Page) for result in results] == [True, False, False, True]
    assert sum(caller.pace_time.waits) == 0
