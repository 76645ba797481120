"""The stand-in API: its answers over a real socket, its invented account, its faults and motion."""

import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from etl.sandbox import Faults, Motion, Request, Sandbox, World, build_world
from etl.sandbox.faults import FaultSource

A, B = "+13343284472", "+13125550100"
CHATS = "/api/partner/v2/chats"
UNKNOWN_CHAT = {
    "errors": [
        {"status": 404, "code": "not_found", "title": "Not Found", "detail": "Chat not found"}
    ]
}


@pytest.fixture
def world() -> World:
    return build_world()


@pytest.fixture
def sandbox(world: World) -> Iterator[Sandbox]:
    with Sandbox(world) as running:
        yield running


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[httpx.Client]:
    with connect(sandbox) as connected:
        yield connected


def connect(sandbox: Sandbox, token: str = "sandbox-token") -> httpx.Client:
    headers = {"X-LINQ-INTEGRATION-TOKEN": token}
    return httpx.Client(base_url=sandbox.url, headers=headers, trust_env=False)


def all_chats(world: World) -> list[dict[str, Any]]:
    ids = {chat_id for number in world.numbers for chat_id in world.listing(number)}
    return [world.chat(chat_id) for chat_id in sorted(ids)]


def all_handles(world: World) -> list[dict[str, Any]]:
    return [handle for chat in all_chats(world) for handle in chat.get("chat_handles", ())]


def shared_chat(world: World) -> int:
    return next(chat_id for chat_id in world.listing(A) if chat_id in world.listing(B))


def test_list_chats_answers_a_page(client: httpx.Client, world: World) -> None:
    """List Chats answers the asked slice of the number's list, with the totals."""
    answer = client.get(CHATS, params={"phone_number": A, "page": 3, "per_page": 50})

    assert answer.status_code == 200
    assert answer.json() == {
        "data": [world.chat(chat_id) for chat_id in world.listing(A)[100:]],
        "meta": {"page": 3, "total_pages": 3, "total_count": 120, "per_page": 50},
    }


def test_page_size_has_a_default_and_a_maximum(client: httpx.Client) -> None:
    """Without per_page there are 25 chats on page 1, and never more than 100."""
    default = client.get(CHATS, params={"phone_number": A}).json()
    clamped = client.get(CHATS, params={"phone_number": A, "per_page": 500}).json()

    assert len(default["data"]) == 25
    assert default["meta"] == {"page": 1, "total_pages": 5, "total_count": 120, "per_page": 25}
    assert len(clamped["data"]) == 100
    assert clamped["meta"] == {"page": 1, "total_pages": 2, "total_count": 120, "per_page": 100}


def test_a_page_beyond_the_last_is_empty(client: httpx.Client) -> None:
    """Beyond the last page there is no data, and the totals are the same."""
    answer = client.get(CHATS, params={"phone_number": A, "page": 9})

    assert answer.json() == {
        "data": [],
        "meta": {"page": 9, "total_pages": 5, "total_count": 120, "per_page": 25},
    }


@pytest.mark.parametrize("number", ["+13343284472", "13343284472", "3343284472"])
def test_a_number_may_be_written_in_three_ways(client: httpx.Client, number: str) -> None:
    """The plus may be missing, and the country code of a US number too."""
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
    """A bad query is a 400 that names the parameter; a plus not encoded is a space, so bad too."""
    answer = client.get(f"{CHATS}?{query}")

    assert answer.status_code == 400
    assert answer.json() == {
        "errors": [{"status": 400, "code": "bad_request", "title": "Bad Request", "detail": detail}]
    }


@pytest.mark.parametrize(
    "path", [f"{CHATS}?phone_number=13125550199", f"{CHATS}/1", "/api/partner/v2/else", "/"]
)
def test_what_is_not_there_is_not_found(client: httpx.Client, path: str) -> None:
    """An unknown number, chat or path answers 404 in the API's error shape."""
    answer = client.get(path)

    assert answer.status_code == 404
    assert answer.json()["errors"][0]["code"] == "not_found"


@pytest.mark.parametrize("headers", [{}, {"X-LINQ-INTEGRATION-TOKEN": "sandbox-tokem"}])
def test_a_wrong_token_is_unauthorized(sandbox: Sandbox, headers: dict[str, str]) -> None:
    """Without the right token every path answers the API's 401."""
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
    """Get Chat answers the chat under data, and 404 once it is deleted."""
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
    """To a token for one number, the other number and its own chats are not found."""
    foreign = next(chat_id for chat_id in world.listing(A) if world.owners(chat_id) == (A,))
    with Sandbox(world, tokens={"support": [B]}) as sandbox, connect(sandbox, "support") as client:
        numbers = client.get("/api/partner/v2/phone_numbers").json()["phone_numbers"]

        assert [number["phone_number"] for number in numbers] == [B]
        assert client.get(CHATS, params={"phone_number": B}).status_code == 200
        assert client.get(CHATS, params={"phone_number": A}).status_code == 404
        assert client.get(f"{CHATS}/{foreign}").status_code == 404
        assert client.get(f"{CHATS}/{shared_chat(world)}").status_code == 200


def test_requests_are_recorded(client: httpx.Client, sandbox: Sandbox) -> None:
    """The sandbox keeps what it was asked and how it answered."""
    client.get(CHATS, params={"phone_number": A, "page": 2})
    client.get(f"{CHATS}/1")

    assert list(sandbox.requests) == [
        Request("GET", CHATS, {"phone_number": A, "page": "2"}, 200),
        Request("GET", f"{CHATS}/1", {}, 404),
    ]
    assert sandbox.request_count == 2


def test_the_same_seed_invents_the_same_account() -> None:
    """A seed decides everything: the chats, their order, and how they move."""
    worlds = [build_world(seed=seed) for seed in (5, 5, 6)]
    for world in worlds:
        world.move(Motion(jumps=9, creates=2, deletes=2, renames=2, joins=2, leaves=2), A)
    first, again, other = (world.page(A, 1, 100) for world in worlds)

    assert first == again
    assert first != other


def test_lists_have_the_asked_length_and_share_chats() -> None:
    """Each number lists as many chats as asked, a tenth of them together with another number."""
    world = build_world(chats_per_number=50, numbers=("+1", "+2", "+3"))
    first, second, third = (set(world.listing(number)) for number in world.numbers)
    shared = first & second

    assert (len(first), len(second), len(third)) == (50, 50, 50)
    assert (len(shared), len(third & (first | second))) == (5, 0)
    assert {world.owners(chat_id) for chat_id in shared} == {("+1", "+2")}


def test_an_account_may_be_empty() -> None:
    """A number without chats has no pages."""
    meta = {"page": 1, "total_pages": 0, "total_count": 0, "per_page": 25}

    assert build_world(chats_per_number=0).page(A, 1, 25) == {"data": [], "meta": meta}


def test_chats_are_lifelike(world: World) -> None:
    """The default account already holds what a careless reader trips over."""
    chats = all_chats(world)
    ids = [chat["id"] for chat in chats]
    names = [chat.get("display_name", "missing") for chat in chats]
    keys = {"id", "display_name", "service", "group", "message_count", "chat_handles"}

    assert {chat.get("service") for chat in chats} >= {"iMessage", "SMS", "RCS"}
    assert {chat.get("group") for chat in chats} >= {True, False}
    assert any(chat.keys() < keys for chat in chats)
    assert None in names
    assert max(len(name or "") for name in names) > 400
    assert any("⚽" in (name or "") for name in names)
    assert min(chat.get("message_count", 9) for chat in chats) == 1
    assert max(chat.get("message_count", 9) for chat in chats) > 1000
    assert len([chat_id for chat_id in ids if chat_id > 2**31]) == 5
    assert [chat_id for chat_id in ids if chat_id > 2**53] == [2**53 + 1]


def test_handles_are_lifelike(world: World) -> None:
    """Addresses, joining times and repeated ids vary as in an account; nobody is real."""
    handles = all_handles(world)
    addresses = [handle["phone_number"] for handle in handles if "phone_number" in handle]
    mail = [address for address in addresses if "@" in address]
    joined = [handle.get("joined_at", "missing") for handle in handles]
    times = [re.fullmatch(r"\S+T[\d:]{8}(\.\d+)?(.+)", at or "") for at in joined]
    fractions = {len(time[1] or "") for time in times if time}
    ids = [handle["id"] for handle in handles]

    assert 0.02 < len(mail) / len(addresses) < 0.1
    assert {address.rpartition("@")[2] for address in mail} == {"example.com", "example.org"}
    assert {address[:8] for address in addresses if "@" not in address} == {A[:8], "+1312555"}
    assert {None, "missing"} < set(joined)
    assert fractions == {0, 4, 7}
    assert {time[2] for time in times if time} >= {"Z", "-05:00", "+05:30"}
    assert len(set(ids)) < len(ids)


def test_both_numbers_take_part_in_a_shared_chat(world: World) -> None:
    """A chat that two numbers list has a handle for each of them."""
    handles = world.chat(shared_chat(world))["chat_handles"]
    addresses = [handle["phone_number"] for handle in handles]

    assert {A, B} < set(addresses)


def test_recency_puts_news_at_the_head() -> None:
    """A new chat and a chat with a new message go to the head of every list that shows them."""
    world = build_world(order="recency")
    before = world.listing(A)
    moved = world.jump(shared_chat(world))
    created = world.create(A)

    assert world.listing(A) == (created, moved, *(kept for kept in before if kept != moved))
    assert world.listing(B)[0] == moved
    assert world.chat(created)["message_count"] == 1


@pytest.mark.parametrize(("order", "descending"), [("id", False), ("id-desc", True)])
def test_order_by_id_ignores_activity(order: Any, descending: bool) -> None:
    """Ordered by id, a new message moves nothing, and a new chat has the highest id."""
    world = build_world(order=order)
    before = world.listing(A)
    world.jump(before[60])
    created = world.create(A)

    assert world.listing(A) == tuple(sorted((*before, created), reverse=descending))
    assert created > max(before)


def test_shuffled_is_another_order_at_every_request() -> None:
    """Shuffled, the same page holds other chats each time, and none of them twice."""
    world = build_world(order="shuffled")
    first, again = ([chat["id"] for chat in world.page(A, 2, 50)["data"]] for _ in range(2))

    assert first != again
    assert len(set(first)) == len(set(again)) == 50


def test_a_message_counts(world: World) -> None:
    """A new message raises the count by one, and leaves an earlier answer as it was."""
    before = world.chat(world.create(A))
    after = world.chat(world.jump(before["id"]))

    assert before["message_count"] == 1
    assert after == before | {"message_count": 2}


def test_a_chat_can_leave_one_list(world: World, client: httpx.Client) -> None:
    """A chat that one number no longer lists is still there for Get Chat and the other number."""
    chat_id = world.leave_list(A, shared_chat(world))
    world.jump(chat_id)

    assert chat_id not in world.listing(A)
    assert chat_id in world.listing(B)
    assert client.get(f"{CHATS}/{chat_id}").status_code == 200


def test_a_deleted_chat_can_come_back(world: World) -> None:
    """Restoring undoes a deletion: the same chat at the same places."""
    chat_id = shared_chat(world)
    before = (world.chat(chat_id), world.listing(A), world.listing(B))
    world.delete(chat_id)

    assert chat_id not in {*world.listing(A), *world.listing(B)}

    world.restore(chat_id)

    assert (world.chat(chat_id), world.listing(A), world.listing(B)) == before


@pytest.mark.parametrize(
    ("change", "field"), [(World.rename, "display_name"), (World.change_service, "service")]
)
def test_a_field_changes_alone(
    world: World, change: Callable[[World, int], int], field: str
) -> None:
    """A rename or a change of service changes that one field, always to another value."""
    before = world.chat(world.create(A))
    after = world.chat(change(world, before["id"]))

    assert after[field] != before[field]
    assert after == before | {field: after[field]}


def test_fields_can_be_set(world: World) -> None:
    """Names, services and fields that no version knows can be given."""
    chat_id = world.change_service(world.rename(world.create(A), "Book\x00club"), "Pigeon")
    chat = world.chat(world.edit(chat_id, mood="calm"))

    assert (chat["display_name"], chat["service"], chat["mood"]) == (
        "Book\x00club",
        "Pigeon",
        "calm",
    )


def test_participants_join_and_leave(world: World) -> None:
    """Somebody joins, others leave until the account is alone, and one comes back."""
    chat_id = world.create(A)
    before = world.chat(chat_id)["chat_handles"]
    joined = world.chat(world.join(chat_id))["chat_handles"]
    for _ in joined:
        world.leave(chat_id)
    alone = world.chat(chat_id)["chat_handles"]

    assert joined[:-1] == before
    assert alone == [before[0]]
    assert world.chat(world.join(chat_id, joined[-1]))["chat_handles"] == [before[0], joined[-1]]


def test_what_does_not_exist_is_a_key_error(world: World) -> None:
    """Unknown numbers and chats raise KeyError, from every operation."""
    for operate in (world.chat, world.delete, world.restore, world.jump, world.rename, world.join):
        with pytest.raises(KeyError):
            operate(1)
    with pytest.raises(KeyError):
        world.leave_list(A, 1)
    with pytest.raises(KeyError):
        world.page("+13125550199", 1, 25)


def test_fractions_of_motion_add_up(world: World) -> None:
    """A tenth of a change happens once in ten requests, a half in every second."""
    motion = Motion(creates=0.1, deletes=0.5)
    lengths = []
    for _ in range(10):
        world.move(motion, A)
        lengths.append(len(world.listing(A)))

    assert lengths == [120, 119, 119, 118, 118, 117, 117, 116, 116, 116]


def test_motion_moves_the_served_list(sandbox: Sandbox, client: httpx.Client) -> None:
    """The list moves after a page of it was answered, and after no other request."""
    sandbox.motion = Motion(creates=2)
    totals = []
    for path in (CHATS, f"{CHATS}/1", "/api/partner/v2/phone_numbers", CHATS, CHATS):
        answer = client.get(path, params={"phone_number": A})
        totals += [answer.json()["meta"]["total_count"]] if path == CHATS else []

    assert totals == [120, 122, 124]


def test_an_emptied_list_can_still_move(world: World) -> None:
    """Motion on an empty list does what is left to do."""
    for chat_id in world.listing(A):
        world.delete(chat_id)
    world.move(Motion(jumps=1, deletes=1, renames=1, joins=1, leaves=1), A)

    assert world.listing(A) == ()


@pytest.mark.parametrize("style", ["none", "seconds", "date"])
def test_throttled(sandbox: Sandbox, client: httpx.Client, style: Any) -> None:
    """Over its rate a request gets a 429, with as much about the wait as is asked for."""
    sandbox.faults = Faults(rate_limit=0.01, retry_after=style)
    first, second = (client.get(CHATS, params={"phone_number": A}) for _ in range(2))
    hint = second.headers.get("Retry-After")

    assert (first.status_code, second.status_code) == (200, 429)
    assert second.json()["errors"][0]["code"] == "too_many_requests"
    if style == "none":
        assert hint is None
    elif style == "seconds":
        assert 90 <= int(hint or 0) <= 100
    else:
        at, sent = (parsedate_to_datetime(second.headers[name]) for name in ("Retry-After", "Date"))
        assert 90 <= (at - sent).total_seconds() <= 102


def test_the_rate_limit_is_a_budget_that_refills() -> None:
    """Two requests a second: a burst of two, then one more for every half second."""
    now = iter([0, 0, 0, 0.25, 0.5, 0.5, 9, 9, 9, 9])
    source = FaultSource(Faults(rate_limit=2), clock=lambda: next(now))
    throttled = [source.next_fault() is not None for _ in range(9)]

    assert throttled == [False, False, True, False, True, False, False, True, True]


def test_a_rate_of_zero_throttles_everything(world: World) -> None:
    """With a rate of 0 no request is let through."""
    with Sandbox(world, faults=Faults(rate_limit=0)) as sandbox, connect(sandbox) as client:
        assert [client.get("/").status_code for _ in range(2)] == [429, 429]


def test_server_errors_are_json(sandbox: Sandbox, client: httpx.Client) -> None:
    """A server error has one of three statuses and the API's error shape."""
    sandbox.faults = Faults(server_error=1)
    answers = [client.get(CHATS, params={"phone_number": A}) for _ in range(20)]

    assert {answer.status_code for answer in answers} == {500, 502, 503}
    assert all(answer.json()["errors"][0]["status"] == answer.status_code for answer in answers)


def test_html_comes_with_either_status(sandbox: Sandbox, client: httpx.Client) -> None:
    """A front end's HTML page comes as a 502 and even as a 200."""
    sandbox.faults = Faults(html=1)
    answers = [client.get(CHATS, params={"phone_number": A}) for _ in range(20)]

    assert {answer.status_code for answer in answers} == {200, 502}
    assert all(answer.text.startswith("<!DOCTYPE html>") for answer in answers)


def test_a_dropped_connection_has_no_answer(sandbox: Sandbox, client: httpx.Client) -> None:
    """A dropped request gets no answer, and is recorded with status 0."""
    sandbox.faults = Faults(drop=1)
    with pytest.raises(httpx.RemoteProtocolError):
        client.get(CHATS)

    assert list(sandbox.requests) == [Request("GET", CHATS, {}, 0)]


def test_a_cut_answer_breaks_in_two_ways(sandbox: Sandbox, client: httpx.Client) -> None:
    """A cut answer contradicts its length, or says none and is not JSON."""
    sandbox.faults = Faults(cut=1)
    seen: Counter[str] = Counter()
    for _ in range(20):
        try:
            answer = client.get(CHATS, params={"phone_number": A})
            assert answer.status_code == 200
            with pytest.raises(ValueError, match="line 1"):
                answer.json()
            seen["open"] += 1
        except httpx.RemoteProtocolError:
            seen["short"] += 1

    assert min(seen["open"], seen["short"]) >= 5


def test_faults_are_seeded_and_move_nothing(world: World) -> None:
    """The same seed gives the same faults, in about the asked shares, and the list stays still."""
    faults = Faults(server_error=0.2, html=0.2, drop=0.2, cut=0.2, seed=3)
    statuses = []
    for _ in range(2):
        with Sandbox(world, faults=faults, motion=Motion(creates=1)) as sandbox:
            target = f"{CHATS}?phone_number=13343284472"
            replies = [sandbox.respond(target, "sandbox-token") for _ in range(100)]
            statuses.append([reply and reply.status for reply in replies])
            whole = [reply for reply in replies if reply and is_whole(reply.headers, reply.body)]

    assert statuses[0] == statuses[1]
    assert 10 <= len(whole) <= 30
    assert len(world.listing(A)) == 120 + 2 * len(whole)


def is_whole(headers: Any, body: bytes) -> bool:
    return body.startswith(b'{"data"') and headers.get("Content-Length") == str(len(body))


def test_latency_delays_the_answer(world: World) -> None:
    """With latency, an answer takes at least so long."""
    with Sandbox(world, faults=Faults(latency=0.02)) as sandbox, connect(sandbox) as client:
        assert client.get(f"{CHATS}/1").elapsed.total_seconds() >= 0.02


def test_one_connection_serves_many_requests(sandbox: Sandbox) -> None:
    """A connection is kept alive between answers."""
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
    """After a stop nobody answers, not even on an open connection, and the port is free again."""
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
    """The call for a command line serves until somebody stops it."""
    sandbox = Sandbox(world)
    server = threading.Thread(target=sandbox.serve_forever)
    server.start()
    with connect(sandbox) as client:
        assert client.get("/").status_code == 404
    sandbox.stop()
    server.join(timeout=5)

    assert not server.is_alive()


def test_a_client_that_goes_away_is_no_news(
    sandbox: Sandbox, client: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    """Clients that reset the connection leave no traceback, and the sandbox goes on."""
    address = httpx.URL(sandbox.url)
    for _ in range(5):
        connection = socket.create_connection((address.host, address.port or 0))
        linger_zero = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        connection.close()

    assert client.get("/").status_code == 404
    assert capfd.readouterr() == ("", "")
