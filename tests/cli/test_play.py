"""sandbox and demo."""

import re
import signal
from pathlib import Path

import pytest

from etl.cli.demo import QUERIES
from etl.sandbox import Faults, Motion, Sandbox
from tests.support.command import A, call, ended, linq_etl, running, select


def test_the_sandbox_command() -> None:
    """It prints how to use it, serves what it announces, and ends with Ctrl-C."""
    with running("sandbox", "--port", "0", "--chats", "5") as process:
        lines = iter(process.stdout or ())
        exports = [next(lines) for _ in range(5)][2:]
        env = dict(line.removeprefix("  export ").strip().split("=") for line in exports)
        done = linq_etl("sync", "--json", env=env)
        process.send_signal(signal.SIGINT)
        assert ended(process).code == 0
    assert (done.code, done.data["chats_seen"]) == (0, 10)


def test_the_options_of_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sets a property of the world, a fault, or a change of the lists."""
    served: list[Sandbox] = []

    def serve(server: Sandbox) -> None:
        served.append(server)
        server.stop()
        raise KeyboardInterrupt

    monkeypatch.setattr(Sandbox, "serve_forever", serve)
    world = ("--chats", "7", "--order", "id")
    faults = ("--latency", "0.5", "--rate-limit", "3", "--retry-after", "date", "--cut", "0.1")
    ended_by_hand = call("sandbox", "--port", "0", *world, *faults, "--jumps", "2", "--leaves", "1")
    assert (ended_by_hand.code, ended_by_hand.stderr) == (0, "")
    (server,) = served
    assert (server.world.order, len(server.world.listing(A))) == ("id", 7)
    assert server.faults == Faults(latency=0.5, rate_limit=3, retry_after="date", cut=0.1)
    assert server.motion == Motion(jumps=2, leaves=1)


def test_messages_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million days in a second bring messages at once; without the option, none ever come."""
    served: list[Sandbox] = []

    def serve(server: Sandbox) -> None:
        served.append(server)
        server.stop()

    monkeypatch.setattr(Sandbox, "serve_forever", serve)
    options = ("sandbox", "--port", "0", "--chats", "1")
    by_clock = ("--messages-per-day", "1000000000", "--speed", "1000000")
    assert (call(*options).code, call(*options, *by_clock).code) == (0, 0)
    still, moving = served
    assert still.traffic is None
    assert moving.traffic is not None
    moving.traffic.catch_up()
    assert len(moving.world.listing(A)) > 1


@pytest.mark.parametrize("width", ["40", "80", "200"])
def test_the_demo(width: str) -> None:
    """It leaves a database and a page, replacing older ones; its queries are whole at any width."""
    Path("linq-demo.db").write_text("an older one")
    shown = call("demo", env={"COLUMNS": width})
    assert (shown.code, shown.stderr) == (0, "")
    assert all(text in shown.stdout for text in ("First sync", "Second sync", "README.md"))
    printed = [f"{query};" for query in re.findall(r"^SELECT [^;]*", shown.stdout, re.MULTILINE)]
    assert len(printed) == len(QUERIES)
    for query in printed:
        assert all(len(line) <= 78 for line in query.splitlines())
        assert select("sqlite:///linq-demo.db", query)
    assert select("sqlite:///linq-demo.db", "SELECT status FROM sync_runs") == [("succeeded",)] * 2
    assert "<strong>Yes.</strong> 2 of 2 numbers" in Path("linq-demo.html").read_text("utf-8")


def test_a_demo_that_cannot_replace_an_older_one() -> None:
    """Exit code 6 and the system's reason."""
    Path("linq-demo.db").mkdir()
    failed = call("demo")
    assert (failed.code, failed.stdout) == (6, "")
    assert failed.stderr == "linq-etl: linq-demo.db cannot be replaced: Is a directory.\n"
