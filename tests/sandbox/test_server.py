"""The sandbox over a real socket: its answers, its tokens, its connections."""

import socket
import threading

import httpx
import pytest

from etl.sandbox import Motion, Request, Sandbox, World
from tests.support.builders import A, B
from tests.support.sandbox import CHATS, connect, shared_chat

UNKNOWN_CHAT = {
    "errors": [
        {"status": 404, "code": "not_found", "title": "Not Found", "detail": "Chat not found"}
    ]
}


def test_list_chats_answers_a_page(client: httpx.Client, world: World) -> None:
    """List Chats answers a slice of the number's list, with the totals."""
    answer = client.get(CHATS, params={"phone_number": A, "page": 3, "per_page": 50})

    assert answer.status_code == 200
    assert answer.json() == {
        "data": [world.chat(chat_id) for chat_id in world.listing(A)[100:]],
        "meta": {"page": 3, "total_pages": 3, "total_count": 120, "per_page": 50},
    }


def test_page_size_has_a_default_and_a_maximum(client: httpx.Client) -> None:
    """A page has 25 chats by default and at most 100."""
    default = client.get(CHATS, params={"phone_number": A}).json()
    clamped = client.get(CHATS, params={"phone_number": A, "per_page": 500}).json()

    assert len(default["data"]) == 25
    assert default["meta"] == {"page": 1, "total_pages": 5, "total_count": 120, "per_page": 25}
    assert len(clamped["data"]) == 100
    assert clamped["meta"] == {"page": 1, "total_pages": 2, "total_count": 120, "per_page": 100}


def test_a_page_beyond_the_last_is_empty(client: httpx.Client) -> None:
    """A page beyond the last one has no data and the same totals."""
    answer = client.get(CHATS, params={"phone_number": A, "page": 9})

    assert answer.json() == {
        "data": [],
        "meta": {"page": 9, "total_pages": 5, "total_count": 120, "per_page": 25},
    }


@pytest.mark.parametrize("number", ["+13343284472", "13343284472", "3343284472"])
def test_a_number_may_be_written_in_three_ways(client: httpx.Client, number: str) -> None:
    """The plus and the country code of a US number may be missing."""
    answer = client.get(CHATS, params={"phone_number": number})

    assert answer.json()["meta"]["total_count"] == 120


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("", "phone_number is missing or invalid"),
        ("phone_number=334-328-4472", "phone_number is missing or invalid"),
        ("phone_number=+13343284472", "phone_number is missing or invalid"),
        ("phone_number=13343284472&page=0", "page must be a positive integer"),
        ("phone_number=13343284472&page=two", "page must be a positive integer"),
        ("phone_number=13343284472&per_page=-1", "per_page must be a positive integer"),
    ],
)
def test_a_bad_query_is_refused(client: httpx.Client, query: str, detail: str) -> None:
    """A bad query gets a 400 that names the parameter; an unencoded plus is a space, hence bad."""
    answer = client.get(f"{CHATS}?{query}")

    assert answer.status_code == 400
    assert answer.json() == {
        "errors": [{"status": 400, "code": "bad_request", "title": "Bad Request", "detail": detail}]
    }


@pytest.mark.parametrize(
    "path", [f"{CHATS}?phone_number=13125550199", f"{CHATS}/1", "/api/partner/v2/else", "/"]
)
def test_an_unknown_target_is_not_found(client: httpx.Client, path: str) -> None:
    """An unknown number, chat or path gets a 404 in the API's error format."""
    answer = client.get(path)

    assert answer.status_code == 404
    assert answer.json()["errors"][0]["code"] == "not_found"


@pytest.mark.parametrize("headers", [{}, {"X-LINQ-INTEGRATION-TOKEN": "sandbox-tokem"}])
def test_a_wrong_token_is_unauthorized(sandbox: Sandbox, headers: dict[str, str]) -> None:
    """A missing or wrong token gets the API's 401."""
    answer = httpx.get(sandbox.url + CHATS, headers=headers, trust_env=False)

    assert answer.status_code == 401
    assert answer.json() == {
        "errors": [
            {
                "status": 401,
                "code": "unauthorized",
                "title": "Unauthorized",
                "detail": "Invalid or missing authentication token",
            }
        ]
    }


def test_get_chat_answers_one_chat(client: httpx.Client, world: World) -> None:
    """Get Chat answers the chat under `data`, and 404 once it is deleted."""
    chat_id = world.listing(A)[0]
    chat = world.chat(chat_id)

    assert client.get(f"{CHATS}/{chat_id}").json() == {"data": chat}

    world.delete(chat_id)
    gone = client.get(f"{CHATS}/{chat_id}")

    assert (gone.status_code, gone.json()) == (404, UNKNOWN_CHAT)


def test_phone_numbers_are_not_under_data(client: httpx.Client) -> None:
    """List Phone Numbers answers every number of the account."""
    common = {"forwarding_number": None, "response_rate": 0.85}

    assert client.get("/api/partner/v2/phone_numbers").json() == {
        "phone_numbers": [
            {"id": 7, "phone_number": A, **common},
            {"id": 8, "phone_number": B, **common},
        ]
    }


def test_a_further_token_reaches_its_numbers_only(world: World) -> None:
    """A further token finds its own number and that number's chats, and nothing else."""
    foreign = next(chat_id for chat_id in world.listing(A) if world.owners(chat_id) == (A,))
    with Sandbox(world, tokens={"support": [B]}) as sandbox, connect(sandbox, "support") as client:
        numbers = client.get("/api/partner/v2/phone_numbers").json()["phone_numbers"]

        assert [number["phone_number"] for number in numbers] == [B]
        assert client.get(CHATS, params={"phone_number": B}).status_code == 200
        assert client.get(CHATS, params={"phone_number": A}).status_code == 404
        assert client.get(f"{CHATS}/{foreign}").status_code == 404
        assert client.get(f"{CHATS}/{shared_chat(world)}").status_code == 200


def test_requests_are_recorded(client: httpx.Client, sandbox: Sandbox) -> None:
    """The sandbox records each request and the status of its answer."""
    client.get(CHATS, params={"phone_number": A, "page": 2})
    client.get(f"{CHATS}/1")

    assert list(sandbox.requests) == [
        Request("GET", CHATS, {"phone_number": A, "page": "2"}, 200),
        Request("GET", f"{CHATS}/1", {}, 404),
    ]
    assert sandbox.request_count == 2


def test_motion_moves_the_served_list(sandbox: Sandbox, client: httpx.Client) -> None:
    """The list moves after each answered page of it, and after no other request."""
    sandbox.motion = Motion(creates=2)
    totals = []
    for path in (CHATS, f"{CHATS}/1", "/api/partner/v2/phone_numbers", CHATS, CHATS):
        answer = client.get(path, params={"phone_number": A})
        totals += [answer.json()["meta"]["total_count"]] if path == CHATS else []

    assert totals == [120, 122, 124]


def test_one_connection_serves_many_requests(sandbox: Sandbox) -> None:
    """A connection stays open between answers."""
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    address = httpx.URL(sandbox.url)
    with socket.create_connection((address.host, address.port or 0)) as connection:
        reader = connection.makefile("rb")
        for _ in range(2):
            connection.sendall(request)
            head = iter(reader.readline, b"\r\n")
            status, *headers = [line.decode().strip() for line in head]
            lengths = [line for line in headers if line.startswith("Content-Length")]
            reader.read(int(lengths[0].split()[1]))
            assert status == "HTTP/1.1 401 Unauthorized"
        reader.close()


def test_stopping_ends_kept_connections(world: World) -> None:
    """After `stop`, open connections are closed too, and the port is free."""
    with Sandbox(world) as first, connect(first) as client:
        client.get("/")
        first.stop()
        with pytest.raises(httpx.TransportError):
            client.get("/")
        port = httpx.URL(first.url).port or 0
        with Sandbox(world, port=port) as second:
            assert second.url == first.url
            assert client.get("/").status_code == 404


def test_serving_forever_ends_with_stop(world: World) -> None:
    """`serve_forever` returns after `stop`."""
    sandbox = Sandbox(world)
    server = threading.Thread(target=sandbox.serve_forever)
    server.start()
    with connect(sandbox) as client:
        assert client.get("/").status_code == 404
    sandbox.stop()
    server.join(timeout=5)

    assert not server.is_alive()


def test_a_client_that_disconnects_is_ignored(
    sandbox: Sandbox, client: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    """A client that resets its connection leaves no traceback, and the sandbox goes on."""
    address = httpx.URL(sandbox.url)
    for _ in range(5):
        connection = socket.create_connection((address.host, address.port or 0))
        linger_zero = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        connection.close()

    assert client.get("/").status_code == 404
    assert capfd.readouterr() == ("", "")
