"""The last attempt to sync each phone number, and the last run of each command; no dry runs."""

from collections.abc import Callable, Iterable
from typing import Final

from sqlalchemy import Connection, func, select

from etl.db.chunks import chunks
from etl.db.number_status import number_status
from etl.db.run_log import Record
from etl.db.tables import phone_numbers, sync_run_numbers, sync_runs

_RECENT_RUNS: Final = 10_000
_CHUNK: Final = 50  # rows that one statement looks up: at most 50 x 50 probes of the index


def number_attempts(connection: Connection) -> list[Record]:
    """The rows of `number_status`, each with its last attempt's start, requests and throttles.

    In the order in which the numbers came.
    """
    numbers = sorted(number_status(connection), key=_order(connection))
    keys = {(each["last_run_id"], each["phone_number"]) for each in numbers if each["last_run_id"]}
    entries = _entries(connection, keys)
    unknown: Record = dict.fromkeys(("started_at", "requests", "throttled"))
    found = []
    for each in numbers:
        last = entries.get((each["last_run_id"], each["phone_number"]), unknown)
        found.append({**each, **{f"last_{name}": last[name] for name in unknown}})
    return found


def _order(connection: Connection) -> Callable[[Record], int]:
    numbers = phone_numbers.c
    ordered = select(numbers.phone_number).order_by(numbers.first_seen_at, numbers.phone_number)
    places = {number: place for place, number in enumerate(connection.execute(ordered).scalars())}
    return lambda row: places[row["phone_number"]]


def last_runs(connection: Connection) -> list[Record]:
    """The last run of each command that has ended, if it is among the recent ones."""
    newest = connection.execute(select(func.max(sync_runs.c.id))).scalar() or 0
    found: list[Record] = []
    for command in ("backfill", "sync"):
        row = connection.execute(
            select(sync_runs)
            .where(sync_runs.c.id > newest - _RECENT_RUNS, sync_runs.c.command == command)
            .where(sync_runs.c.finished_at.is_not(None), sync_runs.c.mode != "dry-run")
            .order_by(sync_runs.c.id.desc())
            .limit(1)
        )
        found += [dict(each) for each in row.mappings()]
    return found


def _entries(
    connection: Connection, keys: Iterable[tuple[int, str]]
) -> dict[tuple[int, str], Record]:
    """These rows of the run log, with the starts of their runs."""
    found: dict[tuple[int, str], Record] = {}
    entry = sync_run_numbers.c
    wanted = set(keys)
    for chunk in chunks(sorted(wanted), _CHUNK):
        # Not as (run_id, phone_number) IN …, for which SQLite reads the whole table, nor as pairs
        # joined by OR, for which PostgreSQL does so without bitmap scans.
        runs, numbers = {run for run, _ in chunk}, {number for _, number in chunk}
        rows = connection.execute(
            select(sync_run_numbers, sync_runs.c.started_at)
            .join(sync_runs)
            .where(entry.run_id.in_(sorted(runs)), entry.phone_number.in_(sorted(numbers)))
        )
        found |= {(row["run_id"], row["phone_number"]): dict(row) for row in rows.mappings()}
    return {key: found[key] for key in wanted & found.keys()}
