"""Whether the tokens reach the configured numbers, by List Phone Numbers.

The API answers a mistyped number with an empty list, as if it had no chats. So each token is asked
which numbers it reaches, once an hour, and only after it has read a list: a token that is refused
need not be asked. `phone_numbers.unreached_since` keeps the answer for the other runs of the hour.
Of runs at the same time, one asks and the others wait for its answer.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from sqlalchemy import Connection

from etl.api.client import LinqClient, RequestContext
from etl.config import Api, Token
from etl.db.tokens import (
    LISTED_EVERY,
    begin_listing,
    last_listing,
    note_listing,
    note_unreached,
    unreached_numbers,
)
from etl.db.transactions import Transactions
from etl.errors import ApiUnavailableError, RequestRefusedError, TokenRefusedError
from etl.phone import e164_or_none
from etl.sync.budget import Budget, BudgetSpentError

EVERY: Final = LISTED_EVERY
WAIT: Final = 0.2  # seconds between two looks for the answer that another run waits for
SPARE: Final = timedelta(seconds=5)  # beyond the request, to store the answer
UNREACHED: Final = (
    "List Phone Numbers does not name this number for its token: correct sync.phone_numbers, or "
    "give the number a token that reaches it (token_env)"
)


@dataclass(eq=False)
class Reach:
    """The question of one run; `numbers` are the configured numbers with their tokens.

    A dry run keeps the answer to itself, and so asks even if another run waits for one.
    """

    client: LinqClient
    transactions: Transactions
    budget: Budget
    api: Api
    numbers: Mapping[str, Token | None]
    clock: Callable[[], datetime]
    is_dry_run: bool = False
    _locks: defaultdict[Token, asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock)
    )
    _unreached: dict[Token, frozenset[str]] = field(default_factory=dict)

    async def includes(self, phone_number: str, token: Token) -> bool:
        """Whether the token reaches the number, as far as is known; asks at most once an hour."""
        async with self._locks[token]:
            if token not in self._unreached:
                await self._ask(token)
        return phone_number not in self._unreached[token]

    async def list_numbers(self, request: RequestContext) -> frozenset[str]:
        """The numbers that the request's token reaches now. Raises as the client."""
        listed = await self.client.list_phone_numbers(request)
        reached = {e164_or_none(number.phone_number) for number in listed} - {None}
        found = frozenset(filter(None, reached))
        await self._note(request.token, self._of(request.token) - found)
        return found

    async def _ask(self, token: Token) -> None:
        """Ask the API, unless it was asked within the hour; it need not answer."""
        awaited: datetime | None = None
        while True:
            known = await self.transactions.read(partial(self._known, token=token))
            self._unreached[token], listed_at = known
            now = self.clock()
            if listed_at and now - EVERY < listed_at <= now and listed_at != awaited:
                return
            try:
                self.budget.take()
            except BudgetSpentError:
                return  # Before another run waits for an answer that does not come.
            if await self._is_mine_to_ask(token, awaited):
                break
            self.budget.give_back()
            awaited = listed_at
            await asyncio.sleep(WAIT)
        try:
            with suppress(ApiUnavailableError, TimeoutError):
                async with asyncio.timeout(self.api.timeout_seconds):
                    await self.list_numbers(RequestContext(None, token))
                    return
        except (RequestRefusedError, TokenRefusedError):
            await self._note(token, ())  # A token may list chats but not numbers.
            return
        await self._note(token, self._unreached[token])

    async def _is_mine_to_ask(self, token: Token, awaited: datetime | None) -> bool:
        """Whether no other run asked within the hour, or its answer, `awaited` by then, is late."""
        if self.is_dry_run:
            return True
        now = self.clock()
        until = now + timedelta(seconds=self.api.timeout_seconds) + SPARE
        since = awaited if awaited and awaited <= now else now - EVERY
        return await self.transactions.write(
            lambda c: begin_listing(c, self.api.base_url, token, since=since, until=until)
        )

    async def _note(self, token: Token, unreached: Collection[str]) -> None:
        self._unreached[token] = frozenset(unreached)
        if self.is_dry_run:
            return
        now = self.clock()

        def write(connection: Connection) -> None:
            note_listing(connection, self.api.base_url, token, now)
            note_unreached(connection, self._of(token), unreached, now)

        await self.transactions.write(write)

    def _known(
        self, connection: Connection, token: Token
    ) -> tuple[frozenset[str], datetime | None]:
        unreached = unreached_numbers(connection) & self._of(token)
        return unreached, last_listing(connection, self.api.base_url, token)

    def _of(self, token: Token) -> frozenset[str]:
        return frozenset(number for number, its in self.numbers.items() if its == token)
