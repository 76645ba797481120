"""Time spans as people write them: 90s, 15m, 2h or 1d."""

import re
from datetime import timedelta
from typing import Final

PATTERN: Final = "^[0-9]{1,6}[smhd]$"
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def to_timedelta(text: str) -> timedelta:
    """Raises ValueError for a text of another form."""
    if not re.fullmatch(PATTERN, text):
        raise ValueError
    return timedelta(**{_UNITS[text[-1]]: int(text[:-1])})
