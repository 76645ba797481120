"""Keep a run's lease alive, and close the runs that died without closing themselves."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from functools import partial

from sqlalchemy import Connection

from etl import log
from etl.db import leases, run_log
from etl.db.backends import backend
from etl.db.transactions import Transactions
from etl.errors import DatabaseError


class LeaseKeeper:
    """Renews the lease of a run that lasts `lease_seconds`; a dry run closes no others."""

    def __init__(
        self,
        transactions: Transactions,
        clock: Callable[[], datetime],
        lease_seconds: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        *,
        closes_others: bool = True,
    ) -> None:
        self._transactions = transactions
        self._clock = clock
        self._seconds = lease_seconds
        self._sleep = sleep
        self._closes_others = closes_others

    async def run(self, run_id: int) -> None:
        """Renew the lease three times within its duration, until cancelled.

        Raises LeaseLostError if another run has closed this one. A stalled run can block the
        writers' lock, so dead runs are looked for each time.
        """
        expires_at = leases.expiry(self._clock(), self._seconds)
        while True:
            await self._sleep(self._seconds / 3)
            # The writer reports a database that is gone.
            with suppress(DatabaseError):
                await self._transactions.write(partial(self._renew, run_id=run_id))
                expired = self._clock() >= expires_at
                expires_at = leases.expiry(self._clock(), self._seconds)
                # After an outage, other living runs have yet to renew their leases.
                if not expired:
                    await self.close_dead_runs()

    async def close_dead_runs(self) -> None:
        """Close them as abandoned; end the session of a process that stalled within a batch."""
        if not self._closes_others:
            return
        dead = await self._transactions.read(lambda c: leases.dead_runs(c, self._clock()))
        for run_id in dead:
            closed = await self._transactions.write(partial(self._abandon, run_id=run_id))
            if not closed:
                ended = await self._transactions.write(partial(_end_sessions, run_id=run_id))
                log.warning("stalled_run", run=run_id, ended_sessions=ended or None)
                if ended:
                    await self._transactions.write(partial(self._abandon, run_id=run_id))

    def _renew(self, connection: Connection, run_id: int) -> None:
        leases.renew(connection, run_id, leases.expiry(self._clock(), self._seconds))

    def _abandon(self, connection: Connection, run_id: int) -> bool:
        return run_log.abandon(connection, run_id, self._clock())


def _end_sessions(connection: Connection, run_id: int) -> list[int]:
    return backend(connection.dialect).end_sessions(connection, f"linq-etl/{run_id}")
