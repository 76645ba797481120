"""The processes of this machine, by /proc: which are below another, and how to kill them all."""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class RunningSync:
    """A `linq-etl sync` of one number: its process, and the one that started it."""

    pid: int
    parent: int
    number: str


def tree(pid: int) -> list[int]:
    """The process, its children, theirs, and so on."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents().items():
        children.setdefault(parent, []).append(child)
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def stop_tree(pid: int) -> set[int]:
    """Halt the process and all that it started; return them."""
    stopped: set[int] = set()
    while running := set(tree(pid)) - stopped:  # One that is not halted yet may start another.
        for each in running:
            send(each, signal.SIGSTOP)
        stopped |= running
    return stopped


def kill_tree(pid: int) -> int:
    """Kill the process and all that it started, as if its machine died; return how many."""
    stopped = stop_tree(pid)
    for each in stopped:
        send(each, signal.SIGKILL)
    return len(stopped)


def send(pid: int, signal_number: int) -> None:
    """Send the signal, if the process still runs."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal_number)


def running_syncs(command: Path, *, below: int | None = None) -> list[RunningSync]:
    """The syncs that run, each of a number, by that installed command; all, or those of a tree."""
    parents = _parents()
    found = []
    for pid in parents if below is None else tree(below):
        arguments = _command_line(pid)
        if str(command) in arguments and "--phone-number" in arguments:
            number = arguments[arguments.index("--phone-number") + 1]
            found.append(RunningSync(pid, parents.get(pid, 0), number))
    return found


def _parents() -> dict[int, int]:
    """The parent of each process that has not ended."""
    found = {}
    for entry in PROC.glob("[0-9]*"):
        with suppress(OSError):
            # The second field, the program's name, may hold spaces and parentheses.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in {"Z", "X"}:
                found[int(entry.name)] = int(parent)
    return found


def _command_line(pid: int) -> list[str]:
    with suppress(OSError):
        return (PROC / f"{pid}/cmdline").read_text().split("\0")[:-1]
    return []
