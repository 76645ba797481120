"""Pings: which one a run sends, and that no service, however broken, changes or delays a run."""

import signal
import threading
import time
from pathlib import Path

import pytest

from etl.config import SecretUrl
from etl.monitoring import ping
from etl.sandbox import Sandbox, build_world
from tests.support.command import (
    CLOSED_PORT,
    A,
    B,
    HoldingSandbox,
    call,
    ended,
    environment,
    linq_etl,
    running,
    wait_until,
)
from tests.support.receiver import Received, Receiver, Reply

UUID = "3f0a9c52-secret-uuid"
URL = "sqlite:///linq.db"


def world(chats: int = 5) -> Sandbox:
    return Sandbox(build_world(chats_per_number=chats))


def pinging(api: Sandbox | str, url: str, database: str = URL, **others: str) -> dict[str, str]:
    return environment(api, database, LINQ_ETL_MONITORING__PING_URL=url, **others)


def last(service: Receiver) -> tuple[str, str]:
    """The last request: its target, and its body, which is one line."""
    request = service.received[-1]
    body = request.body.decode()
    assert "\n" not in body
    return request.target, body


# Which ping


def test_a_sync_that_succeeds() -> None:
    """It pings its start without a body, then the URL itself with the run in a sentence."""
    with Receiver() as service, world() as sandbox:
        assert call("sync", env=pinging(sandbox, f"{service.url}/{UUID}")).code == 0
    assert service.targets == [f"/{UUID}/start", f"/{UUID}"]
    assert [request.method for request in service.received] == ["POST", "POST"]
    assert service.received[0].body == b""
    assert service.received[1].body.startswith(b"Run 1")
    assert service.received[1].headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("url", "start", "success"),
    [
        ("/ping/x/", "/ping/x/start", "/ping/x"),
        ("/x?rid=1&a=b%20c", "/x/start?rid=1&a=b%20c", "/x?rid=1&a=b%20c"),
        ("", "/start", "/"),
        ("/?k=1", "/start?k=1", "/?k=1"),
    ],
)
def test_the_name_of_a_ping_follows_the_path(url: str, start: str, success: str) -> None:
    """A slash at the end is not doubled, and a query stays at the end."""
    with Receiver() as service:
        pinger = ping.Pinger(SecretUrl(service.url + url))
        pinger.end(0, "All done.")
    assert service.targets == [start, success]


def test_a_password_in_the_url_is_sent_as_basic_authentication() -> None:
    """For services of one's own that are behind it."""
    with Receiver() as service:
        pinger = ping.Pinger(SecretUrl(service.url.replace("//", "//me:pass@") + "/x"))
        pinger.end(0, "All done.")
    assert service.targets == ["/x/start", "/x"]
    assert {r.headers["authorization"] for r in service.received} == {"Basic bWU6cGFzcw=="}


def test_a_partial_run_pings_a_failure() -> None:
    """Exit code 3: some numbers failed, and the sentence says how many."""
    with Receiver() as service, Sandbox(build_world(numbers=[A], chats_per_number=3)) as sandbox:
        assert call("sync", env=pinging(sandbox, service.url)).code == 3
    target, body = last(service)
    assert target == "/fail"
    assert "1 of 2" in body


def test_a_token_that_is_refused_pings_a_failure() -> None:
    """Exit code 4."""
    with Receiver() as service, world() as sandbox:
        env = pinging(sandbox, service.url, LINQ_INTEGRATION_TOKEN="stale")
        assert call("sync", env=env).code == 4
    assert last(service)[0] == "/fail"


@pytest.mark.slow
def test_a_run_that_finds_its_numbers_held_pings_neither() -> None:
    """Exit code 7: another run is at work, so this one only leaves a note."""
    holding = HoldingSandbox(build_world(chats_per_number=5), answers=0)
    with Receiver() as service, holding as sandbox:
        env = pinging(sandbox, f"{service.url}/{UUID}", LINQ_ETL_SYNC__PHONE_NUMBERS=A)
        with running("sync", env=env) as process:
            wait_until(sandbox.holding.is_set, process)
            assert call("sync", env=env).code == 7
            assert last(service)[0] == f"/{UUID}/log"
            sandbox.release()
            assert ended(process).code == 0
    assert last(service)[0] == f"/{UUID}"


@pytest.mark.slow
def test_an_interrupted_run_pings_a_failure() -> None:
    """Exit code 143, and the ping is sent before the process ends."""
    holding = HoldingSandbox(build_world(chats_per_number=5), answers=0)
    with (
        Receiver() as service,
        holding as sandbox,
        running("sync", env=pinging(sandbox, service.url)) as process,
    ):
        wait_until(sandbox.holding.is_set, process)
        process.send_signal(signal.SIGTERM)
        assert ended(process).code == 143
    target, body = last(service)
    assert (target, "(interrupted)" in body) == ("/fail", True)


@pytest.mark.parametrize(
    ("change", "arguments", "code"),
    [
        ({"LINQ_ETL_DATABASE__URL": "postgresql://etl@127.0.0.1:1/linq"}, [], 6),
        ({"LINQ_ETL_DATABASE__URL": "sqlite:////no/such/folder/linq.db"}, [], 6),
        ({"LINQ_INTEGRATION_TOKEN": ""}, [], 2),
        ({"LINQ_ETL_API__PER_PAGE": "many"}, [], 2),
        ({}, ["--phone-number", "+12025550199"], 2),
    ],
)
def test_a_run_that_dies_before_it_has_a_row(
    change: dict[str, str], arguments: list[str], code: int
) -> None:
    """It pings a failure; the body names neither the host, nor a folder, nor a number."""
    with Receiver() as service:
        env = pinging(CLOSED_PORT, f"{service.url}/{UUID}") | change
        assert call("sync", *arguments, env=env).code == code
    assert service.targets == [f"/{UUID}/start", f"/{UUID}/fail"]
    body = last(service)[1]
    assert f"exit code {code}" in body
    assert not any(private in body for private in ("127.0.0.1", "/no/such", "0199", "etl@"))


def test_a_file_that_is_not_toml_is_reported_if_the_environment_has_the_url() -> None:
    """The environment is enough to say where."""
    Path("config.toml").write_text("[api\n")
    with Receiver() as service:
        assert call("sync", env={"LINQ_ETL_MONITORING__PING_URL": service.url}).code == 2
    assert service.targets == ["/start", "/fail"]


def test_a_backfill_pings_nothing() -> None:
    """Its success would hide that the scheduled syncs have stopped."""
    with Receiver() as service, world() as sandbox:
        env = pinging(sandbox, service.url)
        assert call("backfill", "--phone-number", A, "--max-rps", "500", env=env).code == 0
        assert call("verify", env=env).code == 0
    assert service.received == []


# Services that are broken


def sync_with(service: Receiver | str, sandbox: Sandbox) -> tuple[int, str, float]:
    """Sync; the exit code, what stderr says of pings, and the seconds that it took."""
    url = service if isinstance(service, str) else f"{service.url}/{UUID}"
    began = time.monotonic()
    done = call("sync", env=pinging(sandbox, url))
    pings = [line for line in done.stderr.splitlines() if "ping" in line]
    assert UUID not in done.stderr
    assert url not in done.stderr
    return done.code, "\n".join(pings), time.monotonic() - began


@pytest.mark.slow
def test_a_service_that_is_away() -> None:
    """A warning for each ping, with the reason."""
    with world() as sandbox:
        code, warnings, seconds = sync_with(f"{CLOSED_PORT}/{UUID}", sandbox)
    assert code == 0
    assert warnings.count("warning ping_failed") == 2
    assert 'ping=success reason="connection refused"' in warnings
    assert seconds < ping.SECONDS + 5


@pytest.mark.slow
def test_a_service_that_never_answers() -> None:
    """The run ends within seconds, and says so."""
    with Receiver(Reply(after=threading.Event())) as service, world() as sandbox:
        code, warnings, seconds = sync_with(service, sandbox)
        targets = service.targets
    assert code == 0
    assert "ping=success" in warnings
    assert targets[-1] == f"/{UUID}"
    assert seconds < ping.SECONDS + 5


def test_a_service_that_fails_for_a_moment() -> None:
    """The ping of the end is sent again after an error of the server."""
    with Receiver(Reply(), Reply(503), Reply()) as service, world() as sandbox:
        assert sync_with(service, sandbox)[:2] == (0, "")
    assert service.targets == [f"/{UUID}/start"] + [f"/{UUID}"] * 2


def test_a_start_is_not_repeated_after_the_end() -> None:
    """It would look like a run that hangs."""
    with Receiver(Reply(503), Reply()) as service:
        ping.Pinger(SecretUrl(service.url)).end(0, "All done.")
    assert service.targets[-1] == "/"


@pytest.mark.parametrize("status", [404, 410])
def test_a_service_that_does_not_know_the_url(status: int) -> None:
    """It is asked once, and the warning has the status."""
    with Receiver(Reply(status)) as service, world() as sandbox:
        code, warnings, _ = sync_with(service, sandbox)
    assert (code, len(service.received)) == (0, 2)
    assert warnings.count(f"HTTP {status}") == 2


def test_a_redirect_is_not_followed() -> None:
    """The secret goes to no other server."""
    with Receiver() as other, world() as sandbox:
        redirect = Reply(302, {"Location": f"{other.url}/stolen"})
        with Receiver(redirect) as service:
            code, warnings, _ = sync_with(service, sandbox)
    assert (code, other.received) == (0, [])
    assert "HTTP 302; redirects are not followed" in warnings


def test_a_service_behind_a_proxy() -> None:
    """A remote service is reached through the environment's proxy, and one here without it."""
    with Receiver() as proxy, Receiver() as service, world() as sandbox:
        variables = {"HTTP_PROXY": proxy.url, "http_proxy": proxy.url}
        env = pinging(sandbox, "http://ping.invalid/x", **variables)
        assert call("sync", env=env).code == 0
        assert call("sync", env=pinging(sandbox, f"{service.url}/y", **variables)).code == 0
    assert proxy.targets == ["http://ping.invalid/x/start", "http://ping.invalid/x"]
    assert service.targets == ["/y/start", "/y"]


# The secret


def test_the_url_may_come_from_a_file() -> None:
    """With a newline at its end, as secrets are mounted."""
    with Receiver() as service, world() as sandbox:
        Path("url").write_text(f"{service.url}/{UUID}\n")
        env = environment(sandbox, URL, LINQ_ETL_MONITORING__PING_URL_FILE="url")
        assert call("sync", env=env).code == 0
    assert service.targets == [f"/{UUID}/start", f"/{UUID}"]


@pytest.mark.slow
def test_the_url_is_shown_nowhere(tmp_path: Path) -> None:
    """Neither on stdout nor on stderr, nor in the database, also if the service is broken."""
    with Receiver(Reply(302, {"Location": "/elsewhere"})) as service, world() as sandbox:
        env = pinging(sandbox, f"{service.url}/{UUID}?key={UUID}")
        ends = [linq_etl("--log-json", "sync", "--json", env=env), linq_etl("check", env=env)]
        stale = env | {"LINQ_INTEGRATION_TOKEN": "stale"}
        ends += [linq_etl("sync", env=stale), linq_etl("runs", "--json", env=env)]
    printed = "".join(end.stdout + end.stderr for end in ends)
    assert "ping_failed" in printed
    port = service.url.rpartition(":")[2]
    for text in (UUID, f":{port}", "elsewhere"):
        assert text not in printed
        assert text.encode() not in Path("linq.db").read_bytes()


def test_no_ping_holds_a_secret_or_a_number() -> None:
    """A service of others sees how the run ended, and nothing else."""
    with Receiver() as service, world() as sandbox:
        call("sync", env=pinging(sandbox, service.url))
        call("sync", env=pinging(sandbox, service.url, LINQ_INTEGRATION_TOKEN="stale"))
    sent = "".join(_text(request) for request in service.received)
    for private in (A[1:], B[1:], "sandbox-token", "stale", "linq.db"):
        assert private not in sent


def _text(request: Received) -> str:
    return f"{request.target} {request.headers} {request.body.decode()}"
