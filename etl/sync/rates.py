"""What a token's throttles teach one run, told to the runs that share the token's rate."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Final

from etl.config import Token
from etl.db.tokens import read_rates, write_rates
from etl.errors import DatabaseError
from etl.sync.number import RunContext

EVERY: Final = 5.0  # seconds
RECENT: Final = timedelta(seconds=2 * EVERY)  # Older lessons are known; a rate may rise again.


async def share_rates(context: RunContext) -> None:
    """Until cancelled, store what this run learned, and take over what others did."""
    told: dict[Token, int] = {}
    while True:
        await asyncio.sleep(EVERY)
        # The writer reports a database that is gone.
        with suppress(DatabaseError):
            await exchange_rates(context, told)


async def exchange_rates(context: RunContext, told: dict[Token, int]) -> None:
    """Store the rates of tokens that were throttled since; of the others, slow down as others did.

    `told` has each token's count of throttles when its rate was last stored.
    """
    client, base_url, now = context.client, context.config.api.base_url, context.clock()
    throttles = client.throttles()
    new = {token for token, count in throttles.items() if count > told.get(token, 0)}
    learned = {token: rate for token, rate in client.rates().items() if token in new}
    if learned:
        await context.transactions.write(lambda c: write_rates(c, base_url, learned, now))
        told |= {token: throttles[token] for token in learned}
    if others := throttles.keys() - new:
        lessons = await context.transactions.read(
            lambda c: read_rates(c, base_url, others, now, within=RECENT)
        )
        for token, rate in lessons.items():
            client.lower_rate(token, rate)
