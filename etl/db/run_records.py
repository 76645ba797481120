"""Runs as people read them: the latest ones, or one with its numbers; also of older schemas."""

from sqlalchemy import Connection, RowMapping, select

from etl.db.run_log import Record
from etl.db.schema import columns_of
from etl.db.tables import sync_run_numbers, sync_runs


def list_runs(connection: Connection, limit: int) -> list[Record]:
    """The latest runs, newest first."""
    runs = select(*columns_of(connection, sync_runs).values()).order_by(sync_runs.c.id.desc())
    return [_public(row) for row in connection.execute(runs.limit(limit)).mappings()]


def get_run(connection: Connection, run_id: int) -> Record | None:
    """A run with its numbers under `numbers`; None if there is no such run."""
    columns = columns_of(connection, sync_runs).values()
    run = connection.execute(select(*columns).where(sync_runs.c.id == run_id)).mappings().first()
    if run is None:
        return None
    table = sync_run_numbers
    of_run = select(*columns_of(connection, table).values()).where(table.c.run_id == run_id)
    numbers = connection.execute(of_run.order_by(table.c.phone_number)).mappings()
    return {**_public(run), "numbers": [dict(row) for row in numbers]}


def _public(row: RowMapping) -> Record:
    """A run without its internal lease columns."""
    return {key: value for key, value in row.items() if key not in {"owner", "lease_expires_at"}}
