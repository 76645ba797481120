"""Structured log lines on stderr: an event and its fields, as text or as JSON."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

_LOGGER = logging.getLogger("etl")


def configure(*, as_json: bool, quiet: bool) -> None:
    """Send the program's own log, and no library's, to stderr; if `quiet`, only its errors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter())
    _LOGGER.handlers = [handler]
    _LOGGER.propagate = False
    _LOGGER.setLevel(logging.ERROR if quiet else logging.INFO)


def info(event: str, **fields: Any) -> None:
    """Log what happened."""
    _LOGGER.info(event, extra={"fields": fields})


def warning(event: str, **fields: Any) -> None:
    """Log what somebody should look at."""
    _LOGGER.warning(event, extra={"fields": fields})


def crash(error: BaseException) -> None:
    """Log where something unexpected happened; not its message, which may hold people's data."""
    frames = traceback.extract_tb(error.__traceback__)
    stack = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    _LOGGER.error("crash", extra={"fields": {"type": type(error).__name__, "stack": stack}})


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            **getattr(record, "fields", {}),
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        return json.dumps(line, default=str)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        pairs = (
            f"{key}={_quoted(str(value))}" for key, value in fields.items() if value is not None
        )
        return " ".join((_time(record), record.levelname.lower(), record.getMessage(), *pairs))


def _quoted(value: str) -> str:
    """The value, in quotes if it could be taken for more than one, or for another line."""
    plain = value.isprintable() and not set(value) & {" ", '"', "="}
    return value if plain else json.dumps(value)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
