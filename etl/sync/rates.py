"""What a token's throttles teach one run, told to the runs that share the token's rate."""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from etl.api.client import LinqClient
from etl.config import Token
from etl.db.tokens import read_rates, write_rates
from etl.db.transactions import Transactions
from etl.errors import DatabaseError

EVERY: Final = 5.0  # seconds
RECENT: Final = timedelta(seconds=2 * EVERY)  # Older lessons are known; a rate may rise again.


@dataclass(eq=False)
class SharedRates:
    """The rates of one run's tokens."""

    client: LinqClient
    transactions: Transactions
    base_url: str
    clock: Callable[[], datetime]
    _told: dict[Token, int] = field(default_factory=dict)  # throttles that others know of

    async def begin(self, tokens: Collection[Token]) -> None:
        """Start each token with the rate that an earlier run learned."""
        read = partial(read_rates, base_url=self.base_url, tokens=tokens, now=self.clock())
        for token, rate in (await self.transactions.read(read)).items():
            self.client.set_rate(token, rate)

    async def run(self) -> None:
        """Tell and learn, until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            # The writer reports a database that is gone.
            with suppress(DatabaseError):
                await self.exchange()

    async def exchange(self) -> None:
        """Store the rates of tokens that were throttled since; slow the others down as told."""
        now, throttles = self.clock(), self.client.throttles()
        new = {token for token, count in throttles.items() if count > self._told.get(token, 0)}
        learned = {token: rate for token, rate in self.client.rates().items() if token in new}
        if learned:
            store = partial(write_rates, base_url=self.base_url, rates=learned, now=now)
            await self.transactions.write(store)
            self._told |= {token: throttles[token] for token in learned}
        if others := throttles.keys() - new:
            read = partial(
                read_rates, base_url=self.base_url, tokens=others, now=now, within=RECENT
            )
            for token, rate in (await self.transactions.read(read)).items():
                self.client.lower_rate(token, rate)
