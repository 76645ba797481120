"""Chosen numbers, databases that cannot be opened, interrupted jobs."""

import asyncio
import os
import platform
import signal
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from etl.cli.context import GlobalOptions, run_interruptible
from etl.errors import RunInterruptedError
from tests.support.command import (
    CLOSED_PORT,
    A,
    call,
    ended,
    environment,
    running,
    select,
)

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def _signal_handlers() -> Iterator[None]:
    """Restores the handlers that an interrupted job leaves at their defaults."""
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        ("nobody", "--phone-number: that is not a phone number; write it with country code"),
        ("+12025550199", "--phone-number: add +12025550199 to sync.phone_numbers first"),
    ],
)
@pytest.mark.parametrize("command", ["sync", "backfill"])
def test_only_configured_numbers_can_be_chosen(command: str, number: str, says: str) -> None:
    """Exit code 2 for any other text, before anything is opened."""
    env = environment(CLOSED_PORT, "sqlite:///linq.db")
    refused = call(command, "--phone-number", number, env=env)
    assert (refused.code, refused.stdout) == (2, "")
    assert says in refused.stderr
    assert not Path("linq.db").exists()


@pytest.mark.parametrize("command", [["runs"], ["status"], ["db", "current"], ["db", "check"]])
def test_a_database_file_that_does_not_exist(command: list[str]) -> None:
    """Exit code 6; a command that only looks does not create the file."""
    failed = call(*command)
    assert (failed.code, failed.stdout) == (6, "")
    assert failed.stderr == (
        "linq-etl: There is no database file linq.db. Run `linq-etl sync` first, or "
        "`linq-etl db upgrade` for an empty database.\n"
    )
    assert not Path("linq.db").exists()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://me:hunter2@127.0.0.1:1/linq", "the database is unavailable"),
        ("sqlite:///no/such/folder/linq.db", "cannot create the database file"),
        ("sqlite:///notes.txt", "sqlite:///notes.txt"),
    ],
)
def test_a_database_that_cannot_be_opened(url: str, says: str) -> None:
    """Exit code 6 before the first request; the error shows no password."""
    Path("notes.txt").write_text("Milk, eggs, bread and the rest of what is needed.\n" * 20)
    failed = call("sync", env=environment(CLOSED_PORT, url))
    assert (failed.code, failed.stdout) == (6, "")
    assert says in failed.stderr
    assert "hunter2" not in failed.stderr


@pytest.mark.usefixtures("_signal_handlers")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)]
)
def test_a_signal_cancels_the_job(number: signal.Signals, code: int) -> None:
    """The job cleans up first; a second signal, whichever, would kill the process."""
    cleaned_up: list[Any] = []

    async def job() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.sleep(30)
        finally:
            cleaned_up.extend(map(signal.getsignal, ENDING))

    with pytest.raises(RunInterruptedError) as raised:
        run_interruptible(job())
    assert raised.value.exit_code == code
    assert cleaned_up == [signal.SIG_DFL] * 3


@pytest.mark.usefixtures("_signal_handlers")
def test_a_job_under_nohup_ignores_the_hangup() -> None:
    """It was ignored at the start, and stays so; the job leaves all handlers as they were."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before = [*map(signal.getsignal, ENDING)]

    async def job() -> str:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0)
        return "done"

    assert run_interruptible(job()) == "done"
    assert [*map(signal.getsignal, ENDING)] == before


STUCK_LOOKUP = """
import os, signal, socket, threading

def look_up(*_, **__):
    os.write(int(os.environ["LOOKING_UP"]), b".")
    threading.Event().wait()

socket.getaddrinfo = look_up
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "codes"),
    [
        ([signal.SIGTERM], {143}),
        ([signal.SIGHUP], {143}),
        ([signal.SIGINT], {130}),
        ([signal.SIGTERM, signal.SIGTERM], {143, -signal.SIGTERM}),
    ],
)
def test_a_stuck_thread_does_not_hold_up_the_end(
    numbers: list[signal.Signals], codes: set[int]
) -> None:
    """A look-up of a name can take minutes, and cannot be broken off."""
    Path("sitecustomize.py").write_text(STUCK_LOOKUP)
    reader, writer = os.pipe()
    looking_up = {"PYTHONPATH": str(Path.cwd()), "LOOKING_UP": str(writer)}
    env = environment("https://api.example.org", "sqlite:///linq.db", A, **looking_up)
    with running("sync", env=env, pass_fds=[writer]) as process:
        assert os.read(reader, 1) == b"."
        for number in numbers:
            process.send_signal(number)
        assert ended(process, within=5).code in codes
    os.close(reader)
    os.close(writer)
    assert select("sqlite:///linq.db", "SELECT status FROM sync_runs") in (
        [("interrupted",)],
        [("running",)] if len(numbers) == 2 else [],
    )


def test_global_options_load_the_configuration() -> None:
    """An offline command needs neither token nor numbers."""
    Path("mine.toml").write_text(f'[sync]\nphone_numbers = ["{A}"]')
    config = GlobalOptions(Path("mine.toml")).load_config(offline=True)
    assert [number.e164 for number in config.sync.phone_numbers] == [A]
    assert config.token is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told so")
def test_a_job_returns_the_memory_of_large_texts() -> None:
    """Also if what lies between them stays, and after one that was larger."""
    with get_context("spawn").Pool(1) as process:  # This one has memory that it can use again.
        assert process.apply(memory_given_back) >= 80_000_000


def memory_given_back() -> int:
    """How many bytes of address space twenty texts of 4 MB give back."""

    def address_space() -> int:
        # Not the resident pages, some of which the system may have taken back already.
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def job() -> int:
        b"x" * int("30_000_000")  # Computed, or Python keeps it as a constant.
        kept, large = [], []
        for number in range(20):
            large.append(number.to_bytes(1) * 4_000_000)
            kept.append(number.to_bytes(1) * 500_000)
        before = address_space()
        large.clear()
        return before - address_space()

    return run_interruptible(job())
