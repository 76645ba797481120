"""Log events and their fields; the command line decides where they go and in which format."""

import logging
import traceback
from typing import Any

LOGGER = logging.getLogger("etl")


def debug(event: str, **fields: Any) -> None:
    """Log what is only of interest while a problem is looked for."""
    LOGGER.debug(event, extra={"fields": fields})


def info(event: str, **fields: Any) -> None:
    """Log normal progress."""
    LOGGER.info(event, extra={"fields": fields})


def warning(event: str, **fields: Any) -> None:
    """Log a problem that an operator should look at."""
    LOGGER.warning(event, extra={"fields": fields})


def error(event: str, **fields: Any) -> None:
    """Log that the program failed."""
    LOGGER.error(event, extra={"fields": fields})


def crash(exception: BaseException) -> None:
    """Log an unexpected error's type and stack, but not its message: it may hold people's data."""
    frames = traceback.extract_tb(exception.__traceback__)
    stack = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    error("crash", type=name_of(exception), stack=stack)
    if isinstance(exception, BaseExceptionGroup):
        for each in exception.exceptions:
            crash(each)


def name_of(error: BaseException) -> str:
    """The error's class and its module, if that is not Python's own."""
    kind = type(error)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
