"""The log on stderr: its handler, and its two formats, text and JSON."""

import json
import logging
import sys
from datetime import UTC, datetime

from etl.log import LOGGER


def configure_log(*, as_json: bool, quiet: bool = False) -> None:
    """Send the program's own log, and no library's, to stderr; if `quiet`, only problems."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter())
    LOGGER.handlers = [handler]
    # Without a handler at the root, Python prints the libraries' warnings, tracebacks included.
    if not logging.root.handlers:
        logging.root.addHandler(logging.NullHandler())
    LOGGER.propagate = False
    LOGGER.setLevel(logging.WARNING if quiet else logging.INFO)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            **getattr(record, "fields", {}),
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        return _json(line)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        pairs = (
            f"{key}={_quoted(str(value))}" for key, value in fields.items() if value is not None
        )
        return " ".join((_time(record), record.levelname.lower(), record.getMessage(), *pairs))


def _quoted(value: str) -> str:
    """The value, in quotes if it could be mistaken for several fields or for a line of its own."""
    plain = value.isprintable() and not set(value) & {" ", '"', "="}
    return value if plain else _json(value)


def _json(value: object) -> str:
    """JSON on one line, in which letters are not escaped if stderr can write them."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stderr, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, default=str)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
