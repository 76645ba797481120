"""The sandbox's faults: throttles, errors, HTML, drops, cuts and latency."""

from collections import Counter
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from etl.sandbox import Faults, Motion, Request, Sandbox, World
from etl.sandbox.faults import FaultSource
from tests.support.builders import A
from tests.support.sandbox import CHATS, connect


@pytest.mark.parametrize("style", ["none", "seconds", "date"])
def test_throttled(sandbox: Sandbox, client: httpx.Client, style: Any) -> None:
    """A request over the rate gets a 429, with Retry-After as configured."""
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
    """At two requests per second, a burst of two is allowed, then one per half second."""
    now = iter([0, 0, 0, 0.25, 0.5, 0.5, 9, 9, 9, 9])
    source = FaultSource(Faults(rate_limit=2), clock=lambda: next(now))
    throttled = [source.next_fault() is not None for _ in range(9)]

    assert throttled == [False, False, True, False, True, False, False, True, True]


def test_a_rate_of_zero_throttles_everything(world: World) -> None:
    """A rate of 0 allows no request."""
    with Sandbox(world, faults=Faults(rate_limit=0)) as sandbox, connect(sandbox) as client:
        assert [client.get("/").status_code for _ in range(2)] == [429, 429]


def test_server_errors_are_json(sandbox: Sandbox, client: httpx.Client) -> None:
    """A server error has one of three statuses and the API's error format."""
    sandbox.faults = Faults(server_error=1)
    answers = [client.get(CHATS, params={"phone_number": A}) for _ in range(20)]

    assert {answer.status_code for answer in answers} == {500, 502, 503}
    assert all(answer.json()["errors"][0]["status"] == answer.status_code for answer in answers)


def test_html_comes_with_either_status(sandbox: Sandbox, client: httpx.Client) -> None:
    """An HTML page comes with status 502 or 200."""
    sandbox.faults = Faults(html=1)
    answers = [client.get(CHATS, params={"phone_number": A}) for _ in range(20)]

    assert {answer.status_code for answer in answers} == {200, 502}
    assert all(answer.text.startswith("<!DOCTYPE html>") for answer in answers)


def test_a_dropped_connection_has_no_answer(sandbox: Sandbox, client: httpx.Client) -> None:
    """A dropped request gets no answer and is recorded with status 0."""
    sandbox.faults = Faults(drop=1)
    with pytest.raises(httpx.RemoteProtocolError):
        client.get(CHATS)

    assert list(sandbox.requests) == [Request("GET", CHATS, {}, 0)]


def test_a_cut_answer_breaks_in_two_ways(sandbox: Sandbox, client: httpx.Client) -> None:
    """A cut answer is shorter than its Content-Length, or has none and is not valid JSON."""
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


def test_faults_are_seeded_and_move_no_list(world: World) -> None:
    """A seed gives the same faults again, at about the set rates; a fault moves no list."""
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
    """An answer takes at least the latency."""
    with Sandbox(world, faults=Faults(latency=0.02)) as sandbox, connect(sandbox) as client:
        assert client.get(f"{CHATS}/1").elapsed.total_seconds() >= 0.02
