"""How each phone number stands, by index probes that do not read the whole run log."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, ScalarSelect, and_, func, select

from etl.db.backends import backend
from etl.db.run_log import GOOD, Record
from etl.db.schema import columns_of
from etl.db.tables import FULL, phone_numbers, sync_run_numbers, sync_runs
from etl.db.tables import number_status as view
from etl.errors import SchemaError


def number_status(connection: Connection) -> list[Record]:
    """For each number ever configured: its last good sync, its last attempt, since when it fails.

    From an older schema, without the view, only the last good sync.
    """
    backend(connection.dialect).begin_report(connection)
    try:
        status = select(*columns_of(connection, view).values()).order_by(view.c.phone_number)
    except SchemaError:
        return _last_good_syncs(connection)
    return [dict(row) for row in connection.execute(status).mappings()]


def _last_good_syncs(connection: Connection) -> list[Record]:
    table, columns = sync_run_numbers, columns_of(connection, sync_run_numbers)
    last = (
        select(table.c.phone_number, func.max(table.c.run_id).label("run_id"))
        .where(columns["status"].in_(GOOD), columns["completeness"].in_(FULL))
        .group_by(table.c.phone_number)
        .subquery()
    )
    entry = and_(table.c.run_id == last.c.run_id, table.c.phone_number == last.c.phone_number)
    rows = connection.execute(
        select(
            phone_numbers.c.phone_number,
            columns_of(connection, phone_numbers)["label"],
            table.c.run_id,
            columns["finished_at"].label("last_good_sync"),
            columns["finished_at"].label("fresh_as_of"),
            *(columns[name] for name in ("completeness", "reason", "total_count")),
        )
        .outerjoin(last, last.c.phone_number == phone_numbers.c.phone_number)
        .outerjoin(table, entry)
        .order_by(phone_numbers.c.phone_number)
    )
    return [dict.fromkeys(view.columns.keys()) | dict(row) for row in rows.mappings()]


def last_reads(connection: Connection, numbers: Collection[str]) -> dict[str, datetime]:
    """By number, when the last run began that read its whole list."""
    runs = select(phone_numbers.c.phone_number, *map(_newest_run, FULL))
    given = runs.where(phone_numbers.c.phone_number.in_(sorted(numbers)))
    newest = {row[0]: max(filter(None, row[1:]), default=0) for row in connection.execute(given)}
    begun = select(sync_runs.c.id, sync_runs.c.started_at).where(
        sync_runs.c.id.in_(sorted({*newest.values()}))
    )
    started: dict[int, datetime] = {row[0]: row[1] for row in connection.execute(begun)}
    return {number: started[run] for number, run in newest.items() if run in started}


def _newest_run(completeness: str) -> ScalarSelect[Any]:
    """The number's newest run whose list was so complete."""
    entry = sync_run_numbers.c
    return (
        # Not max(), for which MariaDB would read all of the number's entries.
        select(entry.run_id)
        .where(entry.phone_number == phone_numbers.c.phone_number)
        .where(entry.completeness == completeness)
        .order_by(entry.run_id.desc())
        .limit(1)
        .correlate(phone_numbers)
        .scalar_subquery()
    )
