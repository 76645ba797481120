"""Who may write which number: a lease is a run that is alive and a row that names it.

A run's heartbeat moves its expiry on. A run that has died, seen by its expiry or, on the same
machine, by its process, is closed as abandoned by the next one; with that its leases are void,
and a write of a process that only slept is refused.
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
    """This process, as another on the same machine can check it: boot, PID namespace, PID, start.

    A PID means something only within one boot and one namespace, and is used again later. Where
    there is no /proc the identity is empty, and only the expiry tells.
    """
    try:
        return f"{_pid_space()} {os.getpid()} {_start_ticks(os.getpid())}"
    except OSError:
        return ""


def is_dead(owner: str) -> bool:
    """Whether that process is sure to have ended; False where it cannot be seen from here."""
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
        return False  # It runs, and /proc does not show it to everybody.


def dead_runs(connection: Connection, now: datetime) -> list[int]:
    """The runs that are not closed although their process has ended, or their lease."""
    running = connection.execute(
        select(sync_runs.c.id, sync_runs.c.owner, sync_runs.c.lease_expires_at).where(
            sync_runs.c.status == "running"
        )
    )
    return [row.id for row in running if row.lease_expires_at <= now or is_dead(row.owner)]


def take(
    connection: Connection, run_id: int, wanted: Collection[str]
) -> dict[str, Row[tuple[object, ...]]]:
    """Lease the free ones of `wanted` to the run; return the others and the run that holds each."""
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
    """Move the run's expiry on. Raises LeaseLost if it was closed meanwhile."""
    renewed = connection.execute(
        update(sync_runs)
        .where(sync_runs.c.id == run_id, sync_runs.c.status == "running")
        .values(lease_expires_at=expires_at)
    )
    if not renewed.rowcount:
        raise LeaseLostError(_LOST)


def ensure_held(connection: Connection, run_id: int, numbers: Iterable[str]) -> None:
    """Keep the leases through this transaction. Raises LeaseLost if one is no longer the run's."""
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
    """Give back the run's leases on `numbers`, or all of them."""
    mine = delete(number_leases).where(number_leases.c.run_id == run_id)
    connection.execute(
        mine if numbers is None else mine.where(number_leases.c.phone_number.in_(numbers))
    )


def expiry(now: datetime, lease_seconds: int) -> datetime:
    """Until when a lease holds that is taken or renewed now."""
    return now + timedelta(seconds=lease_seconds)


_LOST = (
    "this run was taken for dead and closed while its process was stalled, so it writes nothing "
    "more; another run goes on with its numbers"
)


def _pid_space() -> str:
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"


def _start_ticks(pid: int) -> str:
    """The process's start since boot; empty for a zombie, which has ended (proc(5), stat)."""
    # The second field, the program's name, may hold anything, so count from behind it.
    fields = (_PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()
    return "" if fields[0] in {"Z", "X"} else fields[19]
