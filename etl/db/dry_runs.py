"""What a dry run commits beside its row in the run log: its leases."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, select, update

from etl.config import PhoneNumber
from etl.db import leases
from etl.db.run_log import Claim, LeaseHolder
from etl.db.tables import phone_numbers, sync_runs


def claim(
    connection: Connection, run_id: int, numbers: Sequence[PhoneNumber], now: datetime
) -> Claim:
    """Lease the free ones of the numbers that have a row, without which there can be no lease.

    A number without a row has no data that another run could change. A dead run, which the next
    sync closes, holds no number.
    """
    wanted = [number.e164 for number in numbers]
    known = {*connection.execute(select(phone_numbers.c.phone_number)).scalars()}
    holders = leases.take(connection, run_id, [number for number in wanted if number in known])
    dead = leases.dead_runs(connection, now)
    busy = {
        number: LeaseHolder(row.id, row.host, row.started_at)
        for number, row in holders.items()
        if row.id not in dead
    }
    total = update(sync_runs).where(sync_runs.c.id == run_id).values(numbers_total=len(wanted))
    connection.execute(total)
    return Claim(held=frozenset(wanted) - busy.keys(), busy=busy)
