"""One request and its connection: bounded bytes, broken-off answers, proxies, certificates."""

import asyncio
import gzip
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from tenacity import RetryCallState, Retrying

from etl.api.client import LinqClient, RequestContext
from etl.api.models import ApiUsage, Chat, Page
from etl.api.pace import Pace
from etl.api.retry import TransientError, Tries
from etl.api.transport import Transport
from etl.config import Api, Token
from etl.errors import ApiUnavailableError, ConfigError, RequestRefusedError, TokenRefusedError
from tests.support.api_server import OK, TOKEN, Answer, Caller, Server, error
from tests.support.builders import A, B

REMOTE = "https://api.example.org"


async def list_chats(client: LinqClient, context: RequestContext) -> Page:
    return await client.list_chats(context, 1)


def encoded(body: bytes, encoding: str) -> Answer:
    return Answer(200, body, {"Content-Encoding": encoding})


# Bytes


@pytest.mark.parametrize(
    ("compress", "encoding"),
    [
        (gzip.compress, "gzip"),
        (gzip.compress, "X-GZIP"),
        (zlib.compress, "deflate"),
        (bytes, "identity"),
    ],
)
def test_one_encoding_is_read(
    server: Server, caller: Caller, compress: Callable[[bytes], bytes], encoding: str
) -> None:
    """gzip and deflate were asked for; identity is none."""
    server.answers = [encoded(compress(OK.body), encoding)]
    assert caller.call(server.url, list_chats).chats == (Chat(1),)


@pytest.mark.parametrize("encoding", ["gzip, gzip", "gzip,deflate", "br", "zstd", "nonsense"])
def test_other_and_nested_encodings_are_refused(
    server: Server, caller: Caller, encoding: str
) -> None:
    """Nested encodings could grow without bound at each step."""
    server.answers = [encoded(gzip.compress(gzip.compress(OK.body)), encoding)]
    failed = caller.fail(server.url, list_chats, max_attempts=1)
    assert "an encoding that was not asked for" in str(failed)


@pytest.mark.parametrize(
    "body",
    [gzip.compress(OK.body)[:-3], b"not gzip", gzip.compress(OK.body)[:5], b""],
    ids=["cut", "damaged", "head", "nothing"],  # gzip's head holds the time
)
def test_a_damaged_encoding_is_tried_again(server: Server, caller: Caller, body: bytes) -> None:
    """Compressed data that is cut short or damaged is no answer."""
    server.answers = [encoded(body, "gzip"), OK]
    assert caller.call(server.url, list_chats).chats == (Chat(1),)
    assert caller.usage == ApiUsage(requests=2, retries=1)


def test_large_answers_are_bounded_together(server: Server) -> None:
    """However many requests are in flight, their bodies take no more than the bound."""
    server.answers = [Answer(body=b" " * (7 * 1024 * 1024))]

    async def read_many() -> list[object]:
        transport = Transport(Api(base_url=server.url))
        try:
            gets = (transport.get(Token(TOKEN), "/chats") for _ in range(12))
            return await asyncio.gather(*gets, return_exceptions=True)
        finally:
            await transport.aclose()

    failed = [each for each in asyncio.run(read_many()) if isinstance(each, TransientError)]
    assert [str(each) for each in failed] == ["too many large answers at a time"] * 3


# A process that was suspended


def test_a_suspension_costs_no_answer_but_the_present_one(server: Server, caller: Caller) -> None:
    """Time-out and answer are ready at once; each later request gets a connection of its own."""

    async def suspended(client: LinqClient, context: RequestContext) -> list[Page]:
        pages = []
        for number in range(5):
            request = asyncio.ensure_future(client.list_chats(context, number + 1))
            await asyncio.sleep(0.02)
            time.sleep(0.4)  # noqa: ASYNC251  # the whole process stands still
            pages.append(await request)
        return pages

    server.answers = [Answer(delay=0.1)]
    pages = caller.call(server.url, suspended, timeout_seconds=0.3, max_attempts=3)
    assert [page.chats for page in pages] == [(Chat(1),)] * 5


def test_after_a_failure_no_old_connection_is_used(caller: Caller) -> None:
    """If one connection has gone silent, the idle ones have as well: the next try opens another."""
    body = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(OK.body), OK.body)
    asked_twice = 0
    connections: set[asyncio.Task[None] | None] = set()

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked_twice
        connections.add(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.05)
        writer.write(body)
        if await reader.read(1):
            asked_twice += 1
            await reader.read()
        writer.close()
        await writer.wait_closed()

    async def read_all() -> ApiUsage:
        async with await asyncio.start_server(answer_once, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            api = Api(base_url=url, timeout_seconds=0.3, max_attempts=2)
            context = RequestContext(A, Token(TOKEN))
            async with LinqClient(api, Pace(8), clock=caller.clock) as client:
                await list_chats(client, context)
                three = (list_chats(client, context) for _ in range(3))
                await asyncio.gather(*three)
                await list_chats(client, context)
                usage = client.usage[A]
            await asyncio.gather(*filter(None, connections))
            return usage

    usage = asyncio.run(read_all())
    assert asked_twice == usage.retries == 2


# An API that answers nobody


def test_an_api_that_answers_nobody_ends_all_requests(server: Server, caller: Caller) -> None:
    """One request has used up its tries and nothing was answered: the others end with its cause."""
    server.answers = [error(503)]

    async def ask_for_many(client: LinqClient, context: RequestContext) -> list[BaseException]:
        requests = (client.list_chats(context, page) for page in range(1, 51))
        results = await asyncio.gather(*requests, return_exceptions=True)
        return [result for result in results if isinstance(result, BaseException)]

    failures = caller.call(server.url, ask_for_many, max_attempts=3, max_concurrency=2)
    assert [type(failure) for failure in failures] == [ApiUnavailableError] * 50
    assert all("HTTP 503" in str(failure) for failure in failures)
    assert caller.usage.requests < 50 * 3
    assert len({str(failure) for failure in failures}) == 1


def test_a_long_wait_is_of_one_request(server: Server, caller: Caller) -> None:
    """A 503 that asks for an hour fails its request alone; a 429 that does fails all."""

    async def one_and_another(client: LinqClient, context: RequestContext) -> list[object]:
        first = await asyncio.gather(client.list_chats(context, 1), return_exceptions=True)
        second = await asyncio.gather(client.list_chats(context, 2), return_exceptions=True)
        return [type(each) for each in (*first, *second)]

    server.answers = [error(503, Retry_After="3600"), OK]
    assert caller.call(server.url, one_and_another) == [ApiUnavailableError, Page]
    server.answers = [error(429, Retry_After="3600"), OK]
    failed = caller.call(server.url, one_and_another)
    assert failed[0] == failed[1] != Page


def test_one_numbers_401_is_not_the_tokens(server: Server, caller: Caller) -> None:
    """Between good answers, a 401 ends its request; of a second number, it ends the token."""
    other = RequestContext(B, Token(TOKEN))

    async def ask(client: LinqClient, context: RequestContext) -> list[object]:
        contexts = (context, context, context, other, context)
        results = [
            (await asyncio.gather(client.list_chats(each, 1), return_exceptions=True))[0]
            for each in contexts
        ]
        return [type(result) for result in results]

    server.answers = [OK, error(401), OK, error(401), OK]
    assert caller.call(server.url, ask) == [
        Page,
        TokenRefusedError,
        Page,
        TokenRefusedError,
        TokenRefusedError,
    ]
    assert len(server.targets) == 4


@pytest.mark.parametrize(("others_get_through", "tries"), [(True, 20), (False, 3)])
def test_throttles_cost_no_tries_while_others_get_through(
    others_get_through: bool, tries: int
) -> None:
    """Twenty throttles between the answers of other requests do not use up three tries."""
    times = iter(range(1000))
    answered = [-1.0]
    request = Tries(3, lambda: answered[0], lambda: float(next(times)), began=0.0)
    state = RetryCallState(Retrying(), None, (), {})
    for number in range(1, 21):
        if others_get_through:
            answered[0] = float(next(times))
        state.attempt_number = number
        failure = TransientError("HTTP 429", throttled=True)
        state.set_exception((TransientError, failure, None))
        request.end(state)
        if request.are_spent(state):
            break
    assert number == tries


# Empty pages


def test_an_empty_page_within_the_lists_count_is_taken_after_three_tries(
    server: Server, caller: Caller
) -> None:
    """The count may be off by hidden chats for ever."""
    meta = b'"meta":{"page":1,"total_pages":2,"total_count":150,"per_page":100}'
    server.answers = [Answer(body=b'{"data":[],' + meta + b"}")]
    page = caller.call(server.url, list_chats)
    assert (page.is_gap, page.chats, caller.usage.requests) == (True, (), 3)


# Configuration


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HTTPS_PROXY", "socks5://127.0.0.1:1080"),
        ("HTTPS_PROXY", "http://127.0.0.1:port"),
        ("HTTPS_PROXY", "http://127.0.0.1:99999"),
        ("HTTPS_PROXY", "http://"),
        ("ALL_PROXY", "ftp://127.0.0.1:21"),
    ],
)
def test_a_proxy_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """Exit code 2, with the variable's name."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=rf"^\${variable}: not a proxy that can be used"):
        Transport(Api(base_url=REMOTE))


@pytest.mark.parametrize("bypass", ["api.example.org", "api.example.org:443", ".example.org", "*"])
def test_no_proxy_counts(monkeypatch: pytest.MonkeyPatch, bypass: str) -> None:
    """Also with a port: then the other variables are not looked at."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:port")
    monkeypatch.setenv("NO_PROXY", bypass)
    Transport(Api(base_url=REMOTE))


def test_a_dead_proxy_is_named(monkeypatch: pytest.MonkeyPatch, caller: Caller) -> None:
    """It is not the API that cannot be reached; a password of the proxy is not shown."""
    with closing(socket.create_server(("127.0.0.1", 0))) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:hunter2@127.0.0.1:{port}")
    failed = caller.fail(REMOTE, list_chats, max_attempts=1)
    assert str(failed) == (
        f"Cannot reach the proxy 127.0.0.1:{port} (connection refused), gave up after 1 try."
    )


@pytest.mark.parametrize("host", ["a" * 64 + ".org", "xn--a.example.org", "a..b"])
def test_an_impossible_host_name(host: str) -> None:
    """Exit code 2, with the setting's name."""
    with pytest.raises(ConfigError, match=r"^api\.base_url: its host name is invalid$"):
        Transport(Api(base_url=f"https://{host}"))


def test_missing_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2, with the variable's name."""
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file.pem")
    with pytest.raises(ConfigError, match=r"^\$SSL_CERT_FILE: "):
        Transport(Api(base_url=REMOTE))


# A server that sends what is no HTTP


@pytest.fixture
def speak() -> Iterator[Callable[[bytes], str]]:
    """Starts a server that sends these bytes on every connection, then closes it."""
    servers: list[socket.socket] = []

    def start(answer: bytes) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    try:
                        connection.sendall(answer)
                    except OSError:
                        continue

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff" * 50_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10_000_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
        b"HTTP/1.1 999 \xff\xff\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
    ],
)
def test_bytes_that_are_no_answer(
    speak: Callable[[bytes], str], caller: Caller, answer: bytes
) -> None:
    """A documented error, after bounded reading."""
    failed = caller.fail(speak(answer), list_chats, max_attempts=1, timeout_seconds=5)
    assert isinstance(failed, ApiUnavailableError | RequestRefusedError)
    assert A not in str(failed)
