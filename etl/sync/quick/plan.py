"""Whether a number's list is read quickly or in full."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection

from etl.api.models import hash64
from etl.db.list_orders import KnownList, known_lists

# Full walks come after so much of sync.full_every or later, at random: at every hour of the day, so
# that what they measure is not that of one hour.
_EARLIEST: Final = 0.75
IS_OLD: Final = "the last full reading is old"


def why_in_full(known: KnownList | None, now: datetime, full_every: timedelta) -> str | None:
    """Why the list is read in full; None if a quick reading is known to be good."""
    if known is None:
        return "it is short, or was not read in full before"
    if known.quick_off:
        return known.quick_off
    if known.total_count is None:
        return "the API does not count the list"
    if now - known.walked_at >= full_every * _spread(known):
        return IS_OLD
    if now < known.walked_at:
        return "the last full reading ended after now"
    return None


def known_good(
    connection: Connection, numbers: Collection[str], now: datetime, full_every: timedelta
) -> list[str]:
    """Those of the numbers whose lists are read quickly now."""
    found = known_lists(connection, numbers)
    return [each for each, known in found.items() if not why_in_full(known, now, full_every)]


def _spread(known: KnownList) -> float:
    """From _EARLIEST to 1, the same for each run after the last full walk."""
    seed = f"{known.phone_number} {known.walk_run_id}"
    random = hash64(seed.encode()) % 2**32 / 2**32
    return _EARLIEST + (1 - _EARLIEST) * random
