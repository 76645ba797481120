"""The API client over real sockets: what it asks, what it takes, what it tries again."""

import asyncio
import contextlib
import gzip
import re
import threading
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any, TypeVar

import pytest
from msgspec import UNSET

from etl.api.client import MAX_BODY_BYTES, MAX_WAIT_SECONDS, LinqClient, RequestContext
from etl.api.decode import Chat, LinqNumber, Page, Rejected
from etl.api.pace import ApiUsage, Pace
from etl.config import Api, Token
from etl.errors import (
    ApiThrottledError,
    ApiUnavailableError,
    EtlError,
    RequestRefusedError,
    TokenRefusedError,
)
from etl.sandbox import Faults, Sandbox, build_world

DATA = Path(__file__).parent / "data"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NUMBER, TOKEN = "+13343284472", "sk-live-4f9aSECRET"
PEOPLE = "No chat with Jane Smith, call +13125550100"
CHATS = "/api/partner/v2/chats"

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What the server sends; with `length`, it says so in place of the body's own."""

    status: int = 200
    body: bytes = b'{"data":[{"id":1}]}'
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    stalls: bool = False
    drips: bool = False


OK = Answer()
DROP = None
CUT = Answer(length=1000, headers={"Connection": "close"})
HTML = b"<!DOCTYPE html><html><body>Bad Gateway</body></html>"


def error(status: int, code: str = "some_code", **headers: str) -> Answer:
    """An error in the API's words, which hold what must not reach a log."""
    body = (
        f'{{"errors":[{{"status":{status},"code":"{code}","title":"{PEOPLE}",'
        f'"detail":"{PEOPLE} {TOKEN} phone_number=13343284472"}}]}}'
    )
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, body.encode(), names)


class Server(ThreadingTCPServer):
    """Gives its answers in order, the last of them for ever, and keeps what it was asked."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[Answer | None] = [OK]
        self.asked: list[str] = []
        self.tokens: list[str | None] = []
        self.cookies: list[str | None] = []
        self.times: list[float] = []
        self.clock: Callable[[], float] = float
        self.closing = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_answer(self, target: str, token: str | None, cookie: str | None) -> Answer | None:
        with self._lock:
            self.asked.append(target)
            self.tokens.append(token)
            self.cookies.append(cookie)
            self.times.append(self.clock())
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        answer = self.server.next_answer(
            self.path, self.headers["X-LINQ-INTEGRATION-TOKEN"], self.headers["Cookie"]
        )
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(answer.length or len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)
        if answer.length:
            self.close_connection = True
        if answer.stalls:
            self.server.closing.wait()
        with contextlib.suppress(ConnectionError):
            while answer.drips and not self.server.closing.wait(0.02):
                self.wfile.write(b" ")

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def open_server() -> Iterator[Callable[[], Server]]:
    """Starts servers, and stops them in the end."""
    running: list[tuple[Server, threading.Thread]] = []

    def start() -> Server:
        server = Server()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server(open_server: Callable[[], Server]) -> Server:
    return open_server()


class FakeTime:
    """Time that passes by being slept through."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@dataclass
class Caller:
    """Somebody who calls the API: the waits between tries, the pace's time, the bill."""

    retry_time: FakeTime = field(default_factory=FakeTime)
    pace_time: FakeTime = field(default_factory=FakeTime)
    traffic: ApiUsage = field(default_factory=ApiUsage)
    token: str = TOKEN
    now: Callable[[], datetime] = lambda: NOW

    def call(
        self,
        url: str,
        request: Callable[[LinqClient, RequestContext], Awaitable[T]],
        **settings: Any,
    ) -> T:
        """Make this request, or whatever else `request` does with the client."""

        async def run() -> T:
            api = Api(base_url=url, **settings)
            pace = Pace(api.max_concurrency, clock=self.pace_time.clock, sleep=self.pace_time.sleep)
            line = RequestContext(NUMBER, Token(self.token), self.traffic)
            async with LinqClient(api, pace, now=self.now, sleep=self.retry_time.sleep) as linq:
                return await request(linq, line)

        return asyncio.run(run())

    def fail(
        self,
        url: str,
        request: Callable[[LinqClient, RequestContext], Awaitable[Any]],
        **settings: Any,
    ) -> EtlError:
        """Make this request, and return its error."""
        with pytest.raises(EtlError) as raised:
            self.call(url, request, **settings)
        return raised.value


@pytest.fixture
def caller() -> Caller:
    return Caller()


async def list_chats(linq: LinqClient, line: RequestContext) -> Page:
    return await linq.list_chats(line, 1)


async def get_chat(linq: LinqClient, line: RequestContext) -> Chat | Rejected | None:
    return await linq.get_chat(line, 5)


async def list_phone_numbers(linq: LinqClient, line: RequestContext) -> tuple[LinqNumber, ...]:
    return await linq.list_phone_numbers(line)


def chat(chat_id: int) -> Chat:
    return Chat(chat_id, UNSET, UNSET, UNSET, UNSET, None, None)


def test_list_chats_asks_for_a_page(server: Server, caller: Caller) -> None:
    """The number is sent as digits, with the page, the page size, and the token in its header."""
    server.answers = [Answer(body=b'{"data":[],"meta":{"page":3}}')]

    caller.call(server.url, lambda linq, line: linq.list_chats(line, 3), per_page=50)

    assert server.asked == [f"{CHATS}?phone_number=13343284472&page=3&per_page=50"]
    assert server.tokens == [TOKEN]
    assert caller.traffic == ApiUsage(requests=1, retries=0, throttled=0)


def test_list_chats_returns_the_page(server: Server, caller: Caller) -> None:
    """The page is what the API answered, with the time at which it was asked for."""
    server.answers = [Answer(body=b'{"data":[{"id":1},{"id":2}],"meta":{"total_count":2}}')]

    assert caller.call(server.url, list_chats) == Page(
        page_number=1,
        per_page=2,
        total_count=2,
        last_page=1,
        chats=(chat(1), chat(2)),
        rejected=(),
        texts_cleaned=0,
        observed_at=NOW,
    )


def test_a_page_is_as_it_was_at_its_last_try(server: Server, caller: Caller) -> None:
    """A page's time is that of the try that was answered, not of those before it."""
    server.answers = [error(503, Retry_After="7"), error(503, Retry_After="20"), OK]
    caller.now = lambda: NOW + timedelta(seconds=caller.retry_time.now)

    assert caller.call(server.url, list_chats).observed_at == NOW + timedelta(seconds=27)


@pytest.mark.parametrize("base", ["", "/", "/linq", "/linq/"])
def test_the_base_url_may_have_a_path(server: Server, caller: Caller, base: str) -> None:
    """The API may live below another path; a slash at its end does not matter."""
    server.answers = [Answer(body=b'{"data":{"id":5}}')]

    caller.call(server.url + base, get_chat)

    assert server.asked == [f"{base.rstrip('/')}{CHATS}/5"]


def test_list_phone_numbers(server: Server, caller: Caller) -> None:
    """List Phone Numbers tells what the token reaches."""
    server.answers = [Answer(body=(DATA / "list_phone_numbers.json").read_bytes())]

    assert caller.call(server.url, list_phone_numbers) == (
        LinqNumber("+13343284472"),
        LinqNumber("+13125550100", "+13125550101"),
    )
    assert server.asked == ["/api/partner/v2/phone_numbers"]


def test_get_chat(server: Server, caller: Caller) -> None:
    """Get Chat asks for one chat by id."""
    server.answers = [Answer(body=b'{"data":{"id":5}}')]

    assert caller.call(server.url, get_chat) == chat(5)
    assert server.asked == [f"{CHATS}/5"]


def test_a_chat_that_cannot_be_stored_is_there(server: Server, caller: Caller) -> None:
    """A chat that cannot be stored is rejected, not asked for again: it is not gone."""
    server.answers = [Answer(body=b'{"data":{"group":"no","id":5}}')]

    rejected = caller.call(server.url, get_chat)

    assert isinstance(rejected, Rejected)
    assert (rejected.id, caller.traffic) == (5, ApiUsage(requests=1))


def test_another_chat_is_asked_for_again(server: Server, caller: Caller) -> None:
    """An answer that holds another chat costs a retry, and is not taken for the one asked for."""
    server.answers = [Answer(body=b'{"data":{"id":6}}'), Answer(body=b'{"data":{"id":5}}')]

    assert caller.call(server.url, get_chat) == chat(5)
    assert caller.traffic == ApiUsage(requests=2, retries=1)


def test_a_chat_that_is_gone_is_none(server: Server, caller: Caller) -> None:
    """404 with the code not_found, and nothing else, says that there is no such chat."""
    server.answers = [Answer(404, (DATA / "not_found.json").read_bytes())]

    assert caller.call(server.url, get_chat) is None
    assert caller.traffic == ApiUsage(requests=1)


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (Answer(404, b""), 404, None),
        (Answer(404, HTML), 404, None),
        (Answer(404, b'{"status":404,"error_code":"not_found"}'), 404, None),
        (error(404, "route_not_found"), 404, "route_not_found"),
        (error(410, "not_found"), 410, "not_found"),
        (error(400, "not_found"), 400, "not_found"),
    ],
)
def test_any_other_refusal_proves_nothing(
    server: Server, caller: Caller, answer: Answer, status: int, code: str | None
) -> None:
    """Another status or code is an error: the chat may well exist."""
    server.answers = [answer]

    refused = caller.fail(server.url, get_chat)

    assert isinstance(refused, RequestRefusedError)
    assert (refused.status, refused.code) == (status, code)


@pytest.mark.parametrize("status", [201, 204, 304, 400, 404, 405, 409, 410, 418, 422, 451])
def test_a_refusal_is_not_tried_again(server: Server, caller: Caller, status: int) -> None:
    """What will not be better next time is asked once, and tells status and code."""
    server.answers = [Answer(204, b"") if status in {204, 304} else error(status)]

    refused = caller.fail(server.url, list_chats)

    assert isinstance(refused, RequestRefusedError)
    assert refused.exit_code == 3
    assert caller.traffic == ApiUsage(requests=1)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_not_tried_again(server: Server, caller: Caller, status: int) -> None:
    """A token that is not accepted is sent once."""
    server.answers = [error(status, "unauthorized")]

    refused = caller.fail(server.url, list_chats)

    assert isinstance(refused, TokenRefusedError)
    assert refused.exit_code == 4
    assert f"({status})" in str(refused)
    assert caller.traffic == ApiUsage(requests=1)


def test_a_wrong_token_costs_one_request(server: Server, caller: Caller) -> None:
    """Ten calls at once with a wrong token make a single request, and all are refused."""
    server.answers = [error(401, "unauthorized")]

    async def ten_calls(linq: LinqClient, line: RequestContext) -> list[Any]:
        calls = [linq.list_chats(line, page) for page in range(1, 11)]
        return await asyncio.gather(*calls, return_exceptions=True)

    results = caller.call(server.url, ten_calls)

    assert {type(result) for result in results} == {TokenRefusedError}
    assert len(server.asked) == caller.traffic.requests == 1


def test_a_second_wrong_token_costs_one_request(server: Server, caller: Caller) -> None:
    """Also when another token is read side by side, a new one's first request goes alone."""
    server.answers = [*[OK] * 8, error(401, "unauthorized")]

    async def two_tokens(linq: LinqClient, line: RequestContext) -> list[Any]:
        for page in range(8):
            await linq.list_chats(line, page + 1)
        wrong = RequestContext("+13125550100", Token("wrong"), ApiUsage())
        calls = [linq.list_chats(wrong, page) for page in range(1, 11)]
        return await asyncio.gather(*calls, return_exceptions=True)

    results = caller.call(server.url, two_tokens, max_concurrency=8)

    assert {type(result) for result in results} == {TokenRefusedError}
    assert server.tokens == [*[TOKEN] * 8, "wrong"]


def test_a_first_request_that_fails_lets_the_others_go(server: Server, caller: Caller) -> None:
    """A token whose first request was answered by an error is not waited for any longer."""
    server.answers = [error(503), OK]

    async def three_calls(linq: LinqClient, line: RequestContext) -> list[Page]:
        return await asyncio.gather(*(linq.list_chats(line, 1) for _ in range(3)))

    pages = caller.call(server.url, three_calls)

    assert [page.chats for page in pages] == [(chat(1),)] * 3
    assert caller.traffic == ApiUsage(requests=4, retries=1)


def test_cookies_are_not_sent_back(server: Server, caller: Caller) -> None:
    """What one token's answer sets is in no later request, of whichever token."""
    server.answers = [Answer(headers={"Set-Cookie": f"session={TOKEN}; Path=/"})]

    async def two_tokens(linq: LinqClient, line: RequestContext) -> None:
        await linq.list_chats(line, 1)
        await linq.list_chats(line, 2)
        await linq.list_chats(RequestContext(NUMBER, Token("other"), line.traffic), 1)

    caller.call(server.url, two_tokens)

    assert server.cookies == [None, None, None]


def test_a_wrong_token_leaves_the_others(server: Server, caller: Caller) -> None:
    """A refused token does not keep another one from working."""
    server.answers = [error(401, "unauthorized"), OK]

    async def two_tokens(linq: LinqClient, line: RequestContext) -> Page:
        with pytest.raises(TokenRefusedError):
            await linq.list_chats(line, 1)
        return await linq.list_chats(RequestContext(NUMBER, Token("good"), line.traffic), 1)

    assert caller.call(server.url, two_tokens).chats == (chat(1),)
    assert server.tokens == [TOKEN, "good"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(
    server: Server, open_server: Callable[[], Server], caller: Caller, status: int
) -> None:
    """The token goes to no other place than the configured one."""
    elsewhere = open_server()
    server.answers = [error(status, Location=f"{elsewhere.url}{CHATS}")]

    refused = caller.fail(server.url, list_chats)

    assert isinstance(refused, RequestRefusedError)
    assert (refused.status, elsewhere.asked) == (status, [])


def test_no_proxy_sees_a_loopback_token(
    server: Server,
    open_server: Callable[[], Server],
    caller: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy in the environment is not asked for what is on this machine."""
    proxy = open_server()
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, proxy.url)

    caller.call(server.url, list_chats)

    assert (len(server.asked), proxy.asked) == (1, [])


def test_the_environments_proxy_is_asked(
    open_server: Callable[[], Server], caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what is elsewhere; its address may stand there without a scheme."""
    proxy = open_server()
    monkeypatch.setenv("http_proxy", proxy.url.removeprefix("http://"))

    caller.call("http://api.example.org", list_chats)

    assert [target.partition("?")[0] for target in proxy.asked] == [
        f"http://api.example.org{CHATS}"
    ]


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
def test_what_may_pass_is_tried_again(
    server: Server, caller: Caller, failure: Answer | None
) -> None:
    """A failure that may pass costs a retry, and the answer is as good as any."""
    server.answers = [failure, failure, OK]

    assert caller.call(server.url, list_chats).chats == (chat(1),)
    throttled = 2 * (failure == TRANSIENT["429"])
    assert caller.traffic == ApiUsage(requests=3, retries=2, throttled=throttled)
    assert len(caller.retry_time.waits) == 2


@pytest.mark.parametrize(
    ("failure", "request_"),
    [
        (Answer(200, b'{"data":{"id":6}}'), get_chat),
        (Answer(200, b'{"data":[]}'), list_phone_numbers),
    ],
)
def test_every_request_is_tried_again(
    server: Server,
    caller: Caller,
    failure: Answer,
    request_: Callable[[LinqClient, RequestContext], Any],
) -> None:
    """Get Chat and List Phone Numbers are tried as often as List Chats."""
    server.answers = [failure]

    assert type(caller.fail(server.url, request_, max_attempts=3)) is ApiUnavailableError
    assert caller.traffic == ApiUsage(requests=3, retries=2)


@pytest.mark.parametrize("tries", [1, 2, 5])
def test_tries_are_counted(server: Server, caller: Caller, tries: int) -> None:
    """After `max_attempts` tries the API is unavailable: exit code 5, with the last reason."""
    server.answers = [*[error(500)] * (tries - 1), error(503)]

    unavailable = caller.fail(server.url, list_chats, max_attempts=tries)

    assert (type(unavailable), unavailable.exit_code) == (ApiUnavailableError, 5)
    assert re.fullmatch(
        rf"the API is unavailable after {tries} tries in \d+ s: HTTP 503; run again later",
        str(unavailable),
    )
    assert caller.traffic == ApiUsage(requests=tries, retries=tries - 1)


def test_a_throttle_that_does_not_end(server: Server, caller: Caller) -> None:
    """429 to the end is an error of its own, which says what to set."""
    server.answers = [error(429, Retry_After="1")]

    throttled = caller.fail(server.url, list_chats, max_attempts=3)

    assert (type(throttled), throttled.exit_code, throttled.kind) == (
        ApiThrottledError,
        5,
        "throttled",
    )
    assert re.fullmatch(
        r"the API is throttling after 3 tries in \d+ s; run again later, "
        r"or set api\.max_requests_per_second lower",
        str(throttled),
    )
    assert caller.traffic == ApiUsage(requests=3, retries=2, throttled=3)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("280", 280),
        ("Fri, 02 Jan 2026 03:04:15 GMT", 10),
        ("Friday, 02-Jan-26 03:04:15 GMT", 10),
        ("Thu, 01 Jan 2026 23:04:35 -0400", 30),
        ("Thu, 01 Jan 2026 23:04:35 -0401", 90),
        ("Thu, 01 Jan 2026 00:00:00 GMT", 0),
    ],
)
def test_retry_after_is_obeyed(server: Server, caller: Caller, header: str, seconds: float) -> None:
    """The API's own wait, in seconds or as a date, is the wait before the next try."""
    server.answers = [error(429, Retry_After=header), OK]

    caller.call(server.url, list_chats)

    assert caller.retry_time.waits == [seconds]


@pytest.mark.parametrize("header", ["", "soon", "-5", "1.5", "1e3", "9" * 400, "Wed, 99 Jan 2026"])
def test_an_unreadable_retry_after_is_ignored(server: Server, caller: Caller, header: str) -> None:
    """Where the header makes no sense, the wait is as if there were none."""
    server.answers = [error(429, Retry_After=header), OK]

    caller.call(server.url, list_chats)

    (wait,) = caller.retry_time.waits
    assert 0 <= wait <= 0.5


@pytest.mark.parametrize("header", ["300", "86400", "Fri, 02 Jan 2026 04:04:05 GMT"])
def test_too_long_a_wait_is_not_begun(server: Server, caller: Caller, header: str) -> None:
    """If the API asks for more than a request may take, the run ends at once and says so."""
    server.answers = [error(429, Retry_After=header)]

    throttled = caller.fail(server.url, list_chats)

    assert type(throttled) is ApiThrottledError
    assert "asked to wait" in str(throttled)
    assert "too long for one run" in str(throttled)
    assert (caller.traffic.requests, caller.retry_time.waits) == (1, [])


def test_waits_grow_to_a_limit(server: Server) -> None:
    """Without Retry-After the waits are random, in a window that doubles up to its limit."""
    server.answers = [error(503)]
    runs = [Caller() for _ in range(4)]

    for run in runs:
        run.fail(server.url, list_chats, max_attempts=20)

    windows = [min(0.5 * 2**number, MAX_WAIT_SECONDS) for number in range(19)]
    waits = [run.retry_time.waits for run in runs]
    assert all(0 <= w <= window for each in waits for w, window in zip(each, windows, strict=True))
    assert len({wait for each in waits for wait in each}) == 4 * 19
    # One in 2**48 that all of these are in the lower half of their window.
    assert max(wait for each in waits for wait in each[7:]) > MAX_WAIT_SECONDS / 2


def test_a_throttle_pauses_every_call(server: Server, caller: Caller) -> None:
    """After a 429 no call goes out before the time that the API asked for."""
    server.answers = [error(429, Retry_After="7"), OK]
    server.clock = caller.pace_time.clock

    async def three_calls(linq: LinqClient, line: RequestContext) -> None:
        await asyncio.gather(*(linq.list_chats(line, 1) for _ in range(3)))

    caller.call(server.url, three_calls)

    assert server.times[:2] == [0, 7]
    assert [time >= 7 for time in server.times[2:]] == [True, True]


def test_the_last_throttle_pauses_the_others(server: Server, caller: Caller) -> None:
    """Who gives up after a 429 still passes on the time that the API asked for."""
    server.answers = [error(429, Retry_After="7"), OK]
    server.clock = caller.pace_time.clock

    async def three_calls(linq: LinqClient, line: RequestContext) -> list[Any]:
        calls = [linq.list_chats(line, 1) for _ in range(3)]
        return await asyncio.gather(*calls, return_exceptions=True)

    results = caller.call(server.url, three_calls, max_attempts=1)

    assert [type(result) for result in results] == [ApiThrottledError, Page, Page]
    assert server.times[:2] == [0, 7]
    assert [time >= 7 for time in server.times[2:]] == [True]


def test_another_failure_pauses_nobody(server: Server, caller: Caller) -> None:
    """A 503 is one request's matter: only its own next try waits."""
    server.answers = [error(503, Retry_After="7"), OK]
    server.clock = caller.pace_time.clock

    async def three_calls(linq: LinqClient, line: RequestContext) -> None:
        await asyncio.gather(*(linq.list_chats(line, 1) for _ in range(3)))

    caller.call(server.url, three_calls)

    assert (server.times, caller.retry_time.waits) == ([0, 0, 0, 0], [7])


def test_the_bill_is_the_lines_own(server: Server, caller: Caller) -> None:
    """What a request costs is added to the line on whose behalf it was made."""
    server.answers = [error(429, Retry_After="0"), OK]
    other = ApiUsage()

    async def two_lines(linq: LinqClient, line: RequestContext) -> None:
        await linq.list_chats(line, 1)
        await linq.list_chats(RequestContext("+13125550100", line.token, other), 1)

    caller.call(server.url, two_lines)

    assert caller.traffic == ApiUsage(requests=2, retries=1, throttled=1)
    assert other == ApiUsage(requests=1)


def test_the_size_of_an_answer_is_bounded(server: Server, caller: Caller) -> None:
    """An answer that grows too large, compressed or not, is not read to its end."""
    bomb = gzip.compress(b" " * (MAX_BODY_BYTES + 1), compresslevel=1)
    server.answers = [Answer(200, bomb, {"Content-Encoding": "gzip"})]

    unavailable = caller.fail(server.url, list_chats, max_attempts=1)

    assert "an answer of more than 32 MiB" in str(unavailable)


def test_a_large_answer_is_read(server: Server, caller: Caller) -> None:
    """An answer within the bound is an answer."""
    body = b'{"data":[{"id":1}]}'.ljust(MAX_BODY_BYTES)
    server.answers = [
        Answer(200, gzip.compress(body, compresslevel=1), {"Content-Encoding": "gzip"})
    ]

    assert caller.call(server.url, list_chats).chats == (chat(1),)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"", length=1000, stalls=True),
        Answer(200, b'{"data":[', length=1000, stalls=True),
        Answer(200, b'{"data":[', length=1000, drips=True),
    ],
    ids=["no body", "half a body", "drops"],
)
def test_a_slow_answer_is_bounded(server: Server, caller: Caller, answer: Answer) -> None:
    """A request as a whole takes no longer than `timeout_seconds`, wherever it hangs."""
    server.answers = [answer]

    unavailable = caller.fail(server.url, list_chats, timeout_seconds=0.2, max_attempts=1)

    assert str(unavailable).endswith(": no answer in 0.2 s; run again later")


def test_a_slow_answer_is_tried_again(server: Server, caller: Caller) -> None:
    """A request that hangs once may be answered the next time."""
    server.answers = [Answer(200, b"", length=1000, stalls=True), OK]

    assert caller.call(server.url, list_chats, timeout_seconds=0.2).chats == (chat(1),)
    assert caller.traffic == ApiUsage(requests=2, retries=1)


def test_nobody_listens(caller: Caller) -> None:
    """Where no server is, the API is unavailable, and the error names the host."""
    with ThreadingTCPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as gone:
        url = f"http://127.0.0.1:{gone.server_address[1]}"

    unavailable = caller.fail(url, list_chats, max_attempts=2)

    assert type(unavailable) is ApiUnavailableError
    assert ": no connection to 127.0.0.1: " in str(unavailable)
    assert caller.traffic == ApiUsage(requests=2, retries=1)


@pytest.mark.parametrize(
    "answer",
    [
        *(error(status) for status in (302, 400, 401, 403, 404, 422, 429, 500)),
        Answer(200, error(200).body),
        Answer(200, f"<html>{PEOPLE} {TOKEN}".encode()),
        Answer(404, f'{{"errors":[{{"code":"{PEOPLE}"}}]}}'.encode()),
        Answer(404, b'{"errors":[{"code":"13343284472"}]}'),
        CUT,
        DROP,
    ],
    ids=lambda answer: f"{answer.status} {answer.body[:12]!r}" if answer else "dropped",
)
def test_errors_keep_secrets(server: Server, caller: Caller, answer: Answer | None) -> None:
    """No error holds the number, the token, the query or the API's text, not in its causes."""
    server.answers = [answer]

    async def every_request(linq: LinqClient, line: RequestContext) -> list[Any]:
        requests = (list_chats, get_chat, list_phone_numbers)
        calls = [request(linq, line) for request in requests]
        return await asyncio.gather(*calls, return_exceptions=True)

    errors = caller.call(server.url, every_request, max_attempts=2)

    everything = "".join(line for error in errors for line in traceback.format_exception(error))
    secrets = (TOKEN, "3343284472", "3125550100", "Jane", "phone_number=", "per_page=")
    assert [isinstance(error, EtlError) for error in errors] == [True, True, True]
    assert [secret for secret in secrets if secret in everything] == []


def test_a_troubled_list_is_read_to_its_end(caller: Caller) -> None:
    """Through errors, HTML, drops and cuts every page arrives, and every request is counted."""
    world = build_world(numbers=[NUMBER], chats_per_number=300)
    faults = Faults(server_error=0.1, html=0.1, drop=0.1, cut=0.1, seed=3)

    async def read_all(linq: LinqClient, line: RequestContext) -> list[Page]:
        return await asyncio.gather(*(linq.list_chats(line, page) for page in range(1, 31)))

    with Sandbox(world, token=TOKEN, faults=faults) as sandbox:
        pages = caller.call(sandbox.url, read_all, per_page=10, max_attempts=20)
        statuses = Counter(request.status for request in sandbox.requests)

    assert [chat_id for page in pages for chat_id in page.ids] == list(world.listing(NUMBER))
    assert caller.traffic == ApiUsage(
        requests=sandbox.request_count, retries=sandbox.request_count - 30, throttled=0
    )
    assert set(statuses) > {0, 200, 502}


def test_the_sandbox_knows_a_chat_or_not(caller: Caller) -> None:
    """Get Chat tells a chat that is there from one that is gone."""
    world = build_world(numbers=[NUMBER], chats_per_number=3)
    present, gone, _ = world.listing(NUMBER)
    world.delete(gone)

    async def both(linq: LinqClient, line: RequestContext) -> list[bool]:
        return [await linq.get_chat(line, chat_id) is not None for chat_id in (present, gone)]

    with Sandbox(world, token=TOKEN) as sandbox:
        assert caller.call(sandbox.url, both) == [True, False]
