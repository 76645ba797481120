"""sandbox and demo."""

import re
import signal
from pathlib import Path

import pytest

from etl.cli.demo import QUERIES
from tests.support.command import call, ended, linq_etl, running, select


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


@pytest.mark.parametrize("width", ["40", "80", "200"])
def test_the_demo(width: str) -> None:
    """It leaves a database, replacing an older one; its queries are whole at any width."""
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
