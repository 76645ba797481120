"""Chats that were known and not seen in a walk are asked for one by one: absence proves nothing.

The API's 404 means gone, its 200 alive, anything else unknown; what is not asked for is unknown
too. What is gone in suspicious numbers is not believed: rather a fault on the way than a purge.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from etl.api.decode import Chat, Rejected
from etl.errors import (
    AccessDeniedError,
    ApiUnavailableError,
    RequestRefusedError,
    TokenRefusedError,
)

Ask = Callable[[int], Awaitable[Chat | Rejected | None]]

SUSPICIOUS_COUNT = 10
SUSPICIOUS_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Confirmations:
    """What the API said of the chats that it was asked for."""

    gone: tuple[int, ...]
    alive: tuple[Chat, ...]


def suspicious(removed: int, known: int) -> bool:
    """Whether so many removals should not be believed."""
    return removed > SUSPICIOUS_COUNT and removed > SUSPICIOUS_SHARE * known


async def confirm_missing(
    chat_ids: Sequence[int], ask: Ask, *, width: int, enough: Callable[[int], bool]
) -> Confirmations:
    """Ask for each chat, `width` of them at a time, until the API is unavailable.

    Stops also when `enough` says so of the number that are gone. Raises TokenRefused if the API
    refuses the token.
    """
    remaining = iter(chat_ids)
    gone: list[int] = []
    alive: list[Chat] = []
    unavailable = False

    async def worker() -> None:
        nonlocal unavailable
        for chat_id in remaining:
            if unavailable or enough(len(gone)):
                return
            try:
                chat = await ask(chat_id)
            except (RequestRefusedError, AccessDeniedError):
                continue
            except ApiUnavailableError:
                unavailable = True
                return
            if chat is None:
                gone.append(chat_id)
            elif isinstance(chat, Chat) and chat.id == chat_id:
                alive.append(chat)

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(width, len(chat_ids))):
                workers.create_task(worker())
    except* TokenRefusedError as group:
        raise group.exceptions[0] from None
    return Confirmations(tuple(gone), tuple(alive))
