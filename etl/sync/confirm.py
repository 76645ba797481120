"""Ask the API for chats that a walk did not see, one by one: absence from a list proves nothing.

A 404 means gone and a 200 alive; anything else, or no request at all, leaves a chat unknown. Too
many removals at once are treated as an upstream fault and withheld.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from etl.errors import (
    AccessDeniedError,
    ApiUnavailableError,
    RequestRefusedError,
    TokenRefusedError,
)
from etl.sync.budget import BudgetSpentError

Ask = Callable[[int], Awaitable[bool | None]]

SUSPICIOUS_COUNT = 10
SUSPICIOUS_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Confirmations:
    """The ids of the chats of which the API gave a clear answer."""

    gone: tuple[int, ...]
    alive: tuple[int, ...]


def suspicious(removed: int, known: int) -> bool:
    """Whether so many removals look like an upstream fault: over 10, and over 10 % of `known`."""
    return removed > SUSPICIOUS_COUNT and removed > SUSPICIOUS_SHARE * known


async def confirm_missing(
    chat_ids: Sequence[int],
    ask: Ask,
    *,
    width: int,
    stop_when: Callable[[int], bool],
) -> Confirmations:
    """Ask for each chat, `width` at a time, until the API is unavailable or the budget spent.

    `ask` tells whether a chat is alive, or None if the answer is not clear. `stop_when` gets the
    number of chats found gone so far, and stops the rest if it returns true. Raises
    TokenRefusedError.
    """
    remaining = iter(chat_ids)
    gone: list[int] = []
    alive: list[int] = []
    unavailable = False

    async def worker() -> None:
        nonlocal unavailable
        for chat_id in remaining:
            if unavailable or stop_when(len(gone)):
                return
            try:
                is_alive = await ask(chat_id)
            except (RequestRefusedError, AccessDeniedError):
                continue
            except (ApiUnavailableError, BudgetSpentError):
                unavailable = True
                return
            if is_alive is not None:
                (alive if is_alive else gone).append(chat_id)

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(width, len(chat_ids))):
                workers.create_task(worker())
    except* TokenRefusedError as group:
        raise group.exceptions[0] from None
    return Confirmations(tuple(gone), tuple(alive))
