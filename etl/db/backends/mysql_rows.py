"""Rows on their way into MariaDB or MySQL and out of it.

PyMySQL is written in Python: for each parameter and each row that it converts, the other threads
wait. So rows go in as one JSON text, which the server takes apart with JSON_TABLE, and fixed-size
columns come out as one JSON text each. The columns of JSON_TABLE are texts, because it cuts a value
that does not fit its type; the tables' columns refuse it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import Any, Final

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnClause,
    ColumnElement,
    Connection,
    Select,
    Subquery,
    Table,
    Text,
    bindparam,
    column,
    func,
    select,
    text,
)
from sqlalchemy.dialects.mysql import Insert, insert

from etl.db.backends import Encoders, Row, updated_names
from etl.db.types import Json, LongText, UtcDateTime

STATEMENT_BYTES: Final = 4 * 1024 * 1024
STATEMENT_ROWS: Final = 4000


def encoders() -> Encoders:
    """Texts, which become part of a JSON text."""
    return Encoders(time=_time_text, date=str, json=str)


def _time_text(time: datetime) -> str:
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def id_table(ids: Iterable[int]) -> Subquery:
    """The ids as one JSON text."""
    given = bindparam("ids", msgspec.json.encode(list(ids)).decode(), Text, unique=True)
    return _ID_TABLE.bindparams(given).columns(column("id", BigInteger)).subquery()


_ID_TABLE: Final = text("SELECT id FROM JSON_TABLE(:ids, '$[*]' COLUMNS (id BIGINT PATH '$')) g")


def lock_rows(connection: Connection, table: Table, ids: Iterable[int]) -> None:
    """A commit of another Galera node that changes a locked row ends this transaction.

    It would not end it for a row that this one has only read and is about to write.
    """
    given = id_table(ids)
    rows = select(func.count()).select_from(given.join(table, table.c.id == given.c.id))
    connection.execute(rows.with_for_update())


def fetch_rows(connection: Connection, query: Select[Any]) -> list[Row]:
    """Each column as one JSON text, unless a column holds texts without a bound."""
    found = query.subquery()
    if not any(isinstance(each.type, (LongText, Json)) for each in found.c):
        result = connection.execute(select(*(func.json_arrayagg(each) for each in found.c)))
        cursor: Any = result.cursor
        texts = result.one()
        # The server cuts a text at max_allowed_packet, warns, and may leave valid JSON.
        if not cursor.warning_count:
            return list(zip(*map(_values, found.c, texts), strict=True))
    return [tuple(row) for row in connection.execute(query)]


def _values(of_column: ColumnElement[Any], text: str | None) -> list[Any]:
    """The values of a column from its JSON text, which is null if there is no row."""
    values: list[Any] = msgspec.json.decode(text) if text else []
    convert = _CONVERTERS.get(type(of_column.type))
    return [value if value is None else convert(value) for value in values] if convert else values


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


_CONVERTERS: Final[dict[type, Callable[[Any], Any]]] = {UtcDateTime: _time, Boolean: bool}


def insert_rows(
    connection: Connection, table: Table, names: Sequence[str], rows: Iterable[Row]
) -> None:
    """Insert by JSON texts of a bounded size."""
    _execute_in_parts(connection, _statement(table, tuple(names)), rows)


def upsert_rows(
    connection: Connection,
    table: Table,
    names: Sequence[str],
    rows: Collection[Row],
    *,
    kept: Collection[str] = (),
) -> None:
    """Upsert by JSON texts of a bounded size."""
    statement = _statement(table, tuple(names))
    updated = {name: statement.inserted[name] for name in updated_names(table, names, kept)}
    _execute_in_parts(connection, statement.on_duplicate_key_update(updated), rows)


def _execute_in_parts(connection: Connection, statement: Insert, rows: Iterable[Row]) -> None:
    source = iter(rows)
    while some := list(islice(source, STATEMENT_ROWS)):
        for part in _parts(some):
            connection.execute(statement, {"rows": part})


def _parts(rows: list[Row]) -> Iterator[str]:
    """The rows as JSON texts of a bounded size; a longer row is a text of its own."""
    encoded = msgspec.json.encode(rows)
    if len(encoded) <= STATEMENT_BYTES or len(rows) == 1:
        yield encoded.decode()
        return
    half = len(rows) // 2
    yield from _parts(rows[:half])
    yield from _parts(rows[half:])


@lru_cache(maxsize=32)
def _statement(table: Table, names: tuple[str, ...]) -> Insert:
    # MariaDB would take the database's character set, and store ? for what that does not have.
    kind = "LONGTEXT CHARACTER SET utf8mb4"
    paths = ", ".join(f"c{i} {kind} PATH '$[{i}]'" for i in range(len(names)))
    given = text(f"JSON_TABLE(:rows, '$[*]' COLUMNS ({paths})) given")
    values = (_typed(column(f"c{i}", Text), table.c[name]) for i, name in enumerate(names))
    return insert(table).from_select(list(names), select(*values).select_from(given))


def _typed(value: ColumnClause[str], target: Column[Any]) -> ColumnElement[Any]:
    return value == "true" if isinstance(target.type, Boolean) else value
