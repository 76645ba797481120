"""Log events and their fields; the command line decides where they go and in which format."""

import logging
import traceback
from typing import Any

LOGGER = logging.getLogger("etl")


def info(event: str, **fields: Any) -> None:
    """Log normal progress."""
    LOGGER.info(event, extra={"fields": fields})


def warning(event: str, **fields: Any) -> None:
    """Log a problem that an operator should look at."""
    LOGGER.warning(event, extra={"fields": fields})


def crash(error: BaseException) -> None:
    """Log an unexpected error's type and stack, but not its message: it may hold people's data."""
    frames = traceback.extract_tb(error.__traceback__)
    stack = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    LOGGER.error("crash", extra={"fields": {"type": name_of(error), "stack": stack}})
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            crash(each)


def name_of(error: BaseException) -> str:
    """The error's class and its module, if that is not Python's own."""
    kind = type(error)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
