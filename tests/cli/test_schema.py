"""The db commands."""

import os
import pty
from pathlib import Path

import pytest

from tests.support.command import call, ended, execute, running, select

URL = "sqlite:///linq.db"
ENV = {"LINQ_ETL_DATABASE__URL": URL}


def test_the_schema_goes_up_and_down() -> None:
    """upgrade creates the tables, check compares them, downgrade drops them, current tells."""
    up = call("db", "upgrade", env=ENV)
    head = up.stdout.split()[-1]
    assert (up.code, up.stdout) == (0, f"the schema is at revision {head}\n")
    same = call("db", "check", env=ENV)
    assert (same.code, same.stdout) == (0, "the schema is as expected\n")
    execute(URL, "ALTER TABLE chats ADD COLUMN mood TEXT")
    differs = call("db", "check", env=ENV)
    assert (differs.code, "mood" in differs.stderr) == (6, True)
    execute(URL, "ALTER TABLE chats DROP COLUMN mood")
    down = call("db", "downgrade", "base", "--yes", env=ENV)
    assert (down.code, down.stdout) == (0, "the schema is at revision base\n")
    now = call("db", "current", env=ENV)
    assert (now.code, now.stdout) == (0, f"empty (this program needs {head})\n")


@pytest.mark.parametrize(
    ("revision", "dropped"), [("base", "every table"), ("0002", "everything added after 0002")]
)
def test_a_downgrade_without_a_terminal_needs_yes(revision: str, dropped: str) -> None:
    """Exit code 2, and nothing is changed."""
    assert call("db", "upgrade", env=ENV).code == 0
    refused = call("db", "downgrade", revision, env=ENV)
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"linq-etl: This drops {dropped}, with its data. Without a terminal, confirm with --yes.\n"
    )
    assert select(URL, "SELECT * FROM chats") == []


@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 2), (b"\x04", 130), (b"y\n", 0)])
def test_a_downgrade_asks_at_a_terminal(answer: bytes, code: int) -> None:
    """Only `y` drops the tables; Ctrl-D counts as an interruption."""
    assert call("db", "upgrade", env=ENV).code == 0
    ours, theirs = pty.openpty()
    with running("db", "downgrade", "base", env=ENV, stdin=theirs) as process:
        os.close(theirs)
        os.write(ours, answer)
        done = ended(process)
    os.close(ours)
    assert done.code == code
    assert "This drops every table, with its data. Continue? [y/N]" in done.stdout
    tables = select(URL, "SELECT count(*) FROM sqlite_schema WHERE name = 'chats'")
    assert tables == [(0 if code == 0 else 1,)]


def test_an_unknown_revision() -> None:
    """Exit code 6."""
    assert call("db", "upgrade", env=ENV).code == 0
    refused = call("db", "downgrade", "1234", "--yes", env=ENV)
    assert (refused.code, refused.stdout) == (6, "")
    assert "1234" in refused.stderr
    assert Path("linq.db").exists()
