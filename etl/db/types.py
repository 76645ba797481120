"""Column types whose database type each backend chooses."""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Text, TypeDecorator
from sqlalchemy.types import TypeEngine

from etl.db.backends import backend


class UtcDateTime(TypeDecorator[datetime]):
    """An instant in UTC, with microseconds.

    `timestamptz` in PostgreSQL, `datetime(6)` in MySQL, `YYYY-MM-DD HH:MM:SS.ffffff` in SQLite.
    """

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(backend(dialect).TIME_TYPE)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return value if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        instant: datetime = value
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


class BigKey(TypeDecorator[int]):
    """A key of 64 bits, in the backend's type."""

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(backend(dialect).KEY_TYPE)


class ShortText(TypeDecorator[str]):
    """A text that an index can hold: at most `length` characters where the backend needs that."""

    impl = Text
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return backend(dialect).short_text(self.length)


class LongText(TypeDecorator[str]):
    """A text of any length, in the backend's type."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return backend(dialect).TEXT_TYPE


class JsonText(TypeDecorator[Any]):
    """JSON in a text column, which keeps it exactly: written as text, read as values."""

    impl = LongText
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002
        return None if value is None else json.loads(value)


class Json(TypeDecorator[Any]):
    """JSON in the backend's type; None is the database's null."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(backend(dialect).JSON_TYPE)
