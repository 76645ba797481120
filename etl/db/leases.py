"""Which run may write which number: a lease is a row that names a live run.

A run's heartbeat renews its expiry. A run is dead when it has expired, or when its process has
ended on the same machine. The next run closes it as abandoned, which voids its leases: if its
process was only stalled, its next write fails.
"""

import os
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from etl.db.tables import number_leases, sync_runs
from etl.errors import LeaseLostError

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
    return [row.id for row in running if row.lease_expires_at <= now or is_dead(row.owner)]


def take(
    connection: Connection, run_id: int, wanted: Collection[str]
) -> dict[str, Row[tuple[object, ...]]]:
    """Lease the free numbers to the run; return the row of the run that holds each other number."""
    held = {
        row.phone_number: row
        for row in connection.execute(
            select(number_leases.c.phone_number, sync_runs)
            .join(sync_runs)
            .where(number_leases.c.phone_number.in_(wanted))
        )
    }
    free = [{"phone_number": n, "run_id": run_id} for n in wanted if n not in held]
    if free:
        connection.execute(insert(number_leases), free)
    return held


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

    Writing transactions run one at a time, so the leases hold until this one ends.
    """
    wanted = set(numbers)
    held = connection.execute(
        select(func.count())
        .select_from(number_leases.join(sync_runs))
        .where(
            sync_runs.c.id == run_id,
            sync_runs.c.status == "running",
            number_leases.c.phone_number.in_(wanted),
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
