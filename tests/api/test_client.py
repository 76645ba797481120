"""LinqClient over real sockets: what it sends, what it returns, what its errors say."""

import asyncio
import errno
import gzip
import socket
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any

import pytest

from etl.api.client import LinqClient, RequestContext
from etl.api.models import ApiUsage, Chat, LinqNumber, Page, Rejected, Withheld
from etl.api.transport import MAX_BODY_BYTES
from etl.config import Token
from etl.errors import ApiUnavailableError, EtlError, RequestRefusedError, TokenRefusedError
from etl.sandbox import Faults, Sandbox, build_world
from tests.support.api_server import (
    CHATS,
    CUT,
    DROP,
    HTML,
    OK,
    PEOPLE,
    TOKEN,
    Answer,
    Caller,
    Server,
    error,
)
from tests.support.builders import NOON, A, B

DATA = Path(__file__).parent / "data"


async def list_chats(client: LinqClient, context: RequestContext) -> Page:
    return await client.list_chats(context, 1)


async def get_chat(
    client: LinqClient, context: RequestContext
) -> Chat | Rejected | Withheld | None:
    return await client.get_chat(context, 5)


async def list_phone_numbers(client: LinqClient, context: RequestContext) -> tuple[LinqNumber, ...]:
    return await client.list_phone_numbers(context)


# Requests and answers


def test_list_chats_sends_number_page_and_token(server: Server, caller: Caller) -> None:
    """The number goes as digits, with the page and its size; the token goes in its header."""
    server.answers = [Answer(body=b'{"data":[],"meta":{"page":3}}')]

    caller.call(server.url, lambda client, context: client.list_chats(context, 3), per_page=50)

    assert server.targets == [f"{CHATS}?phone_number=13343284472&page=3&per_page=50"]
    assert server.tokens == [TOKEN]
    assert caller.usage == ApiUsage(requests=1)


def test_list_chats_returns_the_page(server: Server, caller: Caller) -> None:
    """The page holds the decoded answer and the time of the request."""
    answer = Answer(body=b'{"data":[{"id":1},{"id":2}],"meta":{"total_count":2}}')
    server.answers = [answer]

    assert caller.call(server.url, list_chats) == Page(
        page_number=1,
        per_page=2,
        total_count=2,
        last_page=1,
        chats=(Chat(1), Chat(2)),
        rejected=(),
        texts_cleaned=0,
        observed_at=NOON,
        size=len(answer.body) + 200,
    )


def test_a_page_that_is_read_again_counts_as_a_retry(server: Server, caller: Caller) -> None:
    """The caller dropped it; its own retries count too."""
    server.answers = [Answer(503), OK]

    caller.call(server.url, lambda client, context: client.list_chats(context, 1, again=True))

    assert caller.usage == ApiUsage(requests=2, retries=2)


def test_list_chats_needs_a_phone_number(server: Server, caller: Caller) -> None:
    """A context of the run has no list: ValueError, and no request."""

    async def without_number(client: LinqClient, context: RequestContext) -> None:
        with pytest.raises(ValueError, match="needs a phone number"):
            await client.list_chats(RequestContext(None, context.token), 1)

    caller.call(server.url, without_number)

    assert server.targets == []


@pytest.mark.parametrize("base", ["", "/", "/linq", "/linq/"])
def test_the_base_url_may_have_a_path(server: Server, caller: Caller, base: str) -> None:
    """Requests go below the path of base_url, with or without a slash at its end."""
    server.answers = [Answer(body=b'{"data":{"id":5}}')]

    caller.call(server.url + base, get_chat)

    assert server.targets == [f"{base.rstrip('/')}{CHATS}/5"]


def test_list_phone_numbers(server: Server, caller: Caller) -> None:
    """List Phone Numbers returns every number that the token reaches."""
    server.answers = [Answer(body=(DATA / "list_phone_numbers.json").read_bytes())]

    assert caller.call(server.url, list_phone_numbers) == (
        LinqNumber("+13343284472"),
        LinqNumber("+13125550100", "+13125550101"),
    )
    assert server.targets == ["/api/partner/v2/phone_numbers"]


def test_get_chat(server: Server, caller: Caller) -> None:
    """Get Chat requests one chat by id."""
    server.answers = [Answer(body=b'{"data":{"id":5}}')]

    assert caller.call(server.url, get_chat) == Chat(5)
    assert server.targets == [f"{CHATS}/5"]


def test_a_chat_that_cannot_be_stored_is_rejected(server: Server, caller: Caller) -> None:
    """A chat with a malformed field exists: it is returned as rejected, without a retry."""
    server.answers = [Answer(body=b'{"data":{"group":"no","id":5}}')]

    rejected = caller.call(server.url, get_chat)

    assert isinstance(rejected, Rejected)
    assert (rejected.id, caller.usage) == (5, ApiUsage(requests=1))


def test_a_chat_that_is_gone_is_none(server: Server, caller: Caller) -> None:
    """404 with the code not_found means that the chat does not exist."""
    server.answers = [Answer(404, (DATA / "not_found.json").read_bytes())]

    assert caller.call(server.url, get_chat) is None
    assert caller.usage == ApiUsage(requests=1)


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
    """Another status or code is an error: the chat may still exist."""
    server.answers = [answer]

    refused = caller.fail(server.url, get_chat)

    assert isinstance(refused, RequestRefusedError)
    assert (refused.status, refused.code) == (status, code)


def test_usage_is_counted_per_number(server: Server, caller: Caller) -> None:
    """Requests, retries and throttles count for the context's number, or for the run under None."""
    server.answers = [error(429, Retry_After="0"), OK, OK, Answer(body=b'{"phone_numbers":[]}')]

    async def three_contexts(
        client: LinqClient, context: RequestContext
    ) -> dict[str | None, ApiUsage]:
        await client.list_chats(context, 1)
        await client.list_chats(RequestContext(B, context.token), 1)
        await client.list_phone_numbers(RequestContext(None, context.token))
        return dict(client.usage)

    assert caller.call(server.url, three_contexts) == {
        A: ApiUsage(requests=2, retries=1, throttled=1),
        B: ApiUsage(requests=1),
        None: ApiUsage(requests=1),
    }


def test_an_answer_that_is_too_large_is_not_read(server: Server, caller: Caller) -> None:
    """Reading stops at the limit, which counts decompressed bytes."""
    bomb = gzip.compress(b" " * (MAX_BODY_BYTES + 1), compresslevel=1)
    server.answers = [Answer(200, bomb, {"Content-Encoding": "gzip"})]

    unavailable = caller.fail(server.url, list_chats, max_attempts=1)

    assert "(an answer larger than 8 MiB)" in str(unavailable)


def test_a_large_answer_is_read(server: Server, caller: Caller) -> None:
    """An answer of exactly the limit is read."""
    body = gzip.compress(OK.body.ljust(MAX_BODY_BYTES), compresslevel=1)
    server.answers = [Answer(200, body, {"Content-Encoding": "gzip"})]

    assert caller.call(server.url, list_chats).chats == (Chat(1),)


# Tokens


def test_a_wrong_token_costs_one_request(server: Server, caller: Caller) -> None:
    """Ten concurrent calls with a wrong token make a single request, and all are refused."""
    server.answers = [error(401, "unauthorized")]

    async def ten_calls(client: LinqClient, context: RequestContext) -> list[Any]:
        calls = [client.list_chats(context, page) for page in range(1, 11)]
        return await asyncio.gather(*calls, return_exceptions=True)

    results = caller.call(server.url, ten_calls)

    assert {type(result) for result in results} == {TokenRefusedError}
    assert len(server.targets) == caller.usage.requests == 1


def test_a_second_wrong_token_costs_one_request(server: Server, caller: Caller) -> None:
    """The first request of each token goes alone, even when another token has proved good."""
    server.answers = [*[OK] * 8, error(401, "unauthorized")]

    async def two_tokens(client: LinqClient, context: RequestContext) -> list[Any]:
        for page in range(8):
            await client.list_chats(context, page + 1)
        wrong = RequestContext(B, Token("wrong"))
        calls = [client.list_chats(wrong, page) for page in range(1, 11)]
        return await asyncio.gather(*calls, return_exceptions=True)

    results = caller.call(server.url, two_tokens, max_concurrency=8)

    assert {type(result) for result in results} == {TokenRefusedError}
    assert server.tokens == [*[TOKEN] * 8, "wrong"]


def test_a_first_request_that_fails_lets_the_others_go(server: Server, caller: Caller) -> None:
    """Once a token's first request was answered, even by an error, the others no longer wait."""
    server.answers = [error(503), OK]

    async def three_calls(client: LinqClient, context: RequestContext) -> list[Page]:
        return await asyncio.gather(*(client.list_chats(context, 1) for _ in range(3)))

    pages = caller.call(server.url, three_calls)

    assert [page.chats for page in pages] == [(Chat(1),)] * 3
    assert caller.usage == ApiUsage(requests=4, retries=1)


def test_a_wrong_token_leaves_the_others(server: Server, caller: Caller) -> None:
    """After one token is refused, another one still works."""
    server.answers = [error(401, "unauthorized"), OK]

    async def two_tokens(client: LinqClient, context: RequestContext) -> Page:
        with pytest.raises(TokenRefusedError):
            await client.list_chats(context, 1)
        return await client.list_chats(RequestContext(A, Token("good")), 1)

    assert caller.call(server.url, two_tokens).chats == (Chat(1),)
    assert server.tokens == [TOKEN, "good"]


def test_cookies_are_not_sent_back(server: Server, caller: Caller) -> None:
    """A cookie set for one token is in no later request, whichever token it has."""
    server.answers = [Answer(headers={"Set-Cookie": f"session={TOKEN}; Path=/"})]

    async def two_tokens(client: LinqClient, context: RequestContext) -> None:
        await client.list_chats(context, 1)
        await client.list_chats(context, 2)
        await client.list_chats(RequestContext(A, Token("other")), 1)

    caller.call(server.url, two_tokens)

    assert server.cookies == [None, None, None]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(
    server: Server, open_server: Callable[[], Server], caller: Caller, status: int
) -> None:
    """The token goes to no host but the configured one."""
    elsewhere = open_server()
    server.answers = [error(status, Location=f"{elsewhere.url}{CHATS}")]

    refused = caller.fail(server.url, list_chats)

    assert isinstance(refused, RequestRefusedError)
    assert (refused.status, elsewhere.targets) == (status, [])


def test_no_proxy_sees_a_loopback_token(
    server: Server,
    open_server: Callable[[], Server],
    caller: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Requests to loopback ignore the environment's proxy."""
    proxy = open_server()
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, proxy.url)

    caller.call(server.url, list_chats)

    assert (len(server.targets), proxy.targets) == (1, [])


def test_other_hosts_are_reached_through_the_proxy(
    open_server: Callable[[], Server], caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other requests use the environment's proxy, whose address may lack a scheme."""
    proxy = open_server()
    monkeypatch.setenv("http_proxy", proxy.url.removeprefix("http://"))

    caller.call("http://api.example.org", list_chats)

    assert [target.partition("?")[0] for target in proxy.targets] == [
        f"http://api.example.org{CHATS}"
    ]


# Errors


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_refused_connection(caller: Caller, host: str) -> None:
    """The message names the host and the system's reason, and nothing of the request."""
    with ThreadingTCPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_address[1]

    unavailable = caller.fail(f"http://{host}:{port}", list_chats, max_attempts=2)

    assert type(unavailable) is ApiUnavailableError
    assert str(unavailable) == (f"Cannot reach {host} (connection refused), gave up after 2 tries.")
    assert caller.usage == ApiUsage(requests=2, retries=1)


def test_a_host_that_does_not_speak_tls(server: Server, caller: Caller) -> None:
    """A server without TLS is reported as such."""
    url = server.url.replace("http:", "https:")

    assert str(caller.fail(url, list_chats, max_attempts=1)) == (
        "Cannot reach 127.0.0.1 (TLS: wrong version number), gave up after 1 try."
    )


def test_a_host_that_does_not_answer_the_handshake(caller: Caller) -> None:
    """A connect that hangs is told from an answer that does not come."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        unavailable = caller.fail(url, list_chats, timeout_seconds=0.2, max_attempts=1)

    assert str(unavailable) == "Cannot reach 127.0.0.1 (timed out), gave up after 1 try."


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name not known"), "name not known"),
        (OSError(errno.ENETUNREACH, "Connect call failed"), "network is unreachable"),
        (OSError("All connection attempts failed"), "no connection"),
    ],
)
def test_why_there_is_no_connection(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, failure: OSError, reason: str
) -> None:
    """The message has the system's reason in words; a text that only wraps it says nothing."""

    def fail(*args: object, **kwargs: object) -> None:
        raise failure

    monkeypatch.setattr(socket, "getaddrinfo", fail)

    assert str(caller.fail("http://localhost:1", list_chats, max_attempts=1)) == (
        f"Cannot reach localhost ({reason}), gave up after 1 try."
    )


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            error(400, "bad_request"),
            "The API refused the request (HTTP 400, code bad_request). Check that `linq-etl "
            "phone-numbers` lists the number, and check api.base_url.",
        ),
        (
            error(401),
            "The API refused the token (401). Put a valid integration token in "
            "$LINQ_INTEGRATION_TOKEN, api.token_file or the variable that token_env names.",
        ),
        (
            error(403),
            "The API does not let this token read that (403). Use the token that the number "
            "belongs to (token_env), or ask Linq.",
        ),
        (
            error(302, Location="/"),
            "The API redirects (HTTP 302); redirects are not followed. Fix api.base_url.",
        ),
    ],
)
def test_a_refusal_says_what_to_do(
    server: Server, caller: Caller, answer: Answer, message: str
) -> None:
    """The message has the status, and the setting or command that helps."""
    server.answers = [answer]

    assert str(caller.fail(server.url, list_chats)) == message


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
    """Neither an error nor its causes hold the number, the token, the query or the API's texts."""
    server.answers = [answer]

    async def every_request(client: LinqClient, context: RequestContext) -> list[Any]:
        calls: list[Awaitable[Any]] = [
            list_chats(client, context),
            get_chat(client, context),
            list_phone_numbers(client, context),
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    errors = caller.call(server.url, every_request, max_attempts=2)

    everything = "".join(line for error in errors for line in traceback.format_exception(error))
    secrets = (TOKEN, "3343284472", "3125550100", "Jane", "phone_number=", "per_page=")
    assert [isinstance(error, EtlError) for error in errors] == [True, True, True]
    assert [secret for secret in secrets if secret in everything] == []


# Against the sandbox


def test_a_troubled_list_is_read_to_its_end(caller: Caller) -> None:
    """Despite errors, HTML, drops and cuts every page arrives, and every request is counted."""
    world = build_world(numbers=[A], chats_per_number=300)
    faults = Faults(server_error=0.1, html=0.1, drop=0.1, cut=0.1, seed=3)

    async def read_all(client: LinqClient, context: RequestContext) -> list[Page]:
        return await asyncio.gather(*(client.list_chats(context, page) for page in range(1, 31)))

    with Sandbox(world, token=TOKEN, faults=faults) as sandbox:
        pages = caller.call(sandbox.url, read_all, per_page=10, max_attempts=20)
        statuses = Counter(request.status for request in sandbox.requests)

    assert [chat_id for page in pages for chat_id in page.ids] == list(world.listing(A))
    assert caller.usage == ApiUsage(
        requests=sandbox.request_count, retries=sandbox.request_count - 30, throttled=0
    )
    assert set(statuses) > {0, 200, 502}


def test_get_chat_knows_which_chats_exist(caller: Caller) -> None:
    """Get Chat finds a chat that exists, and returns None for a deleted one."""
    world = build_world(numbers=[A], chats_per_number=3)
    present, gone, _ = world.listing(A)
    world.delete(gone)

    async def both(client: LinqClient, context: RequestContext) -> list[bool]:
        return [await client.get_chat(context, chat_id) is not None for chat_id in (present, gone)]

    with Sandbox(world, token=TOKEN) as sandbox:
        assert caller.call(sandbox.url, both) == [True, False]
