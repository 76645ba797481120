"""Which run may write which number: a lease is a row that names a live run.

A run's heartbeat renews its expiry. A run is dead when it has expired, or when its process has
ended on the same machine. Another run closes it as abandoned, which deletes its fence: if its
process was only stalled, its next batch fails, because each batch writes to the fence first. A
lease that is only read would not stop it, neither after a pause between two statements nor on
another node of a cluster.
"""

import os
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Final

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, insert, select, update

from etl.db.backends import backend
from etl.db.tables import number_leases, run_fences, sync_runs
from etl.errors import LeaseLostError

WRITERS: Final = 0  # the fence of no run: the writers' lock
LONGEST_LEASE: Final = timedelta(hours=1)  # sync.lease_seconds allows no longer one
CHUNK: Final = 5000  # numbers in one statement; SQLite may allow 32,766 and PostgreSQL 65,535
_PROC: Final = Path("/proc")


def owner_identity() -> str:
    """This process's boot id, PID namespace, PID and start time; empty without /proc.

    A PID is unique only within one boot and one namespace, and is reused; the start time tells
    such processes apart.
    """
    try:
        return f"{_pid_space()} {os.getpid()} {_start_ticks(os.getpid())}"
    except OSError:
        return ""


def is_dead(owner: str) -> bool:
    """Whether that process has ended for sure; False if it is invisible from this process."""
    try:
        space, pid, started = owner.rsplit(" ", 2)
        if space != _pid_space():
            return False
    except (ValueError, OSError):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    try:
        return _start_ticks(int(pid)) != started
    except OSError:
        return False  # It runs, but /proc is mounted with hidepid.


def dead_runs(connection: Connection, now: datetime) -> list[int]:
    """Unclosed runs that have expired or whose process has ended."""
    running = connection.execute(
        select(sync_runs.c.id, sync_runs.c.owner, sync_runs.c.lease_expires_at).where(
            sync_runs.c.status == "running"
        )
    )
    # No lease is that long: the clock was wrong when this one was written.
    impossible = now + LONGEST_LEASE
    return [
        row.id
        for row in running
        if not now < row.lease_expires_at <= impossible or is_dead(row.owner)
    ]


def lock_writers(connection: Connection) -> None:
    """Wait until no other data transaction is open, and keep others waiting until this one ends."""
    lock = select(run_fences.c.run_id).where(run_fences.c.run_id == WRITERS).with_for_update()
    if connection.execute(lock).first() is None:
        connection.execute(insert(run_fences), {"run_id": WRITERS, "fence": 0})


def open_fence(connection: Connection, run_id: int) -> None:
    """Let the run write."""
    connection.execute(insert(run_fences), {"run_id": run_id, "fence": 0})


def move_fence(connection: Connection, run_id: int, batch: int) -> bool:
    """Move the run's fence to its batch, counted from 1; False if it was committed before.

    Raises LeaseLostError if another run has closed this one.
    """
    mine = run_fences.c.run_id == run_id
    if _move(connection, and_(mine, run_fences.c.fence == batch - 1)):
        return True
    fence = connection.execute(select(run_fences.c.fence).where(mine)).scalar()
    if fence is None:
        raise LeaseLostError(_LOST)
    return False


def close_fence(connection: Connection, run_id: int) -> None:
    """Keep the run from writing; waits for a batch that it is writing now."""
    connection.execute(delete(run_fences).where(run_fences.c.run_id == run_id))


def is_writing(connection: Connection, run_id: int) -> bool:
    """Whether a batch of the run is being written, or was left open by a stalled process.

    If not, the run's fence stays locked for this transaction.
    """
    fence = select(run_fences.c.run_id).where(run_fences.c.run_id == run_id)
    if connection.execute(fence.with_for_update(skip_locked=True)).first():
        return False
    return connection.execute(fence).first() is not None


def _move(connection: Connection, which: ColumnElement[bool]) -> bool:
    moved = update(run_fences).where(which).values(fence=run_fences.c.fence + 1)
    return connection.execute(moved).rowcount > 0


def take(
    connection: Connection, run_id: int, wanted: Collection[str]
) -> dict[str, Row[tuple[object, ...]]]:
    """Lease the free numbers to the run; return the row of the run that holds each other number.

    A number that the run holds already is no other number.
    """
    held: dict[str, Row[tuple[object, ...]]] = {}
    remaining = iter(wanted)
    while chunk := list(islice(remaining, CHUNK)):
        rows = connection.execute(
            select(number_leases.c.phone_number, sync_runs)
            .join(sync_runs)
            .where(number_leases.c.phone_number.in_(chunk))
        )
        held |= {row.phone_number: row for row in rows}
    if free := [(number, run_id) for number in wanted if number not in held]:
        names = ("phone_number", "run_id")
        backend(connection.dialect).insert_rows(connection, number_leases, names, free)
    return {number: row for number, row in held.items() if row.id != run_id}


def renew(connection: Connection, run_id: int, expires_at: datetime) -> None:
    """Extend the run's leases. Raises LeaseLostError if another run has closed it."""
    renewed = connection.execute(
        update(sync_runs)
        .where(sync_runs.c.id == run_id, sync_runs.c.status == "running")
        .values(lease_expires_at=expires_at)
    )
    if not renewed.rowcount:
        raise LeaseLostError(_LOST)


def ensure_held(connection: Connection, run_id: int, numbers: Iterable[str]) -> None:
    """Raise LeaseLostError unless the run holds a lease on every number.

    The run's fence must have been moved before: then no other run closes this one meanwhile.
    """
    wanted = set(numbers)
    held = connection.execute(
        select(func.count()).where(
            number_leases.c.run_id == run_id, number_leases.c.phone_number.in_(wanted)
        )
    ).scalar_one()
    if held != len(wanted):
        raise LeaseLostError(_LOST)


def release(connection: Connection, run_id: int, numbers: Collection[str] | None = None) -> None:
    """Release the run's leases on `numbers`, or all its leases."""
    mine = delete(number_leases).where(number_leases.c.run_id == run_id)
    connection.execute(
        mine if numbers is None else mine.where(number_leases.c.phone_number.in_(numbers))
    )


def expiry(now: datetime, lease_seconds: int) -> datetime:
    """When a lease expires that is taken or renewed now."""
    return now + timedelta(seconds=lease_seconds)


_LOST = (
    "this run was taken for dead and closed while its process was stalled; it writes nothing more, "
    "and another run can take over its numbers"
)


def _pid_space() -> str:
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"


def _start_ticks(pid: int) -> str:
    """The process's start time in clock ticks since boot; empty for a zombie. See proc(5), stat."""
    # The second field is the program's name and may hold spaces and parentheses.
    fields = (_PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()
    return "" if fields[0] in {"Z", "X"} else fields[19]
