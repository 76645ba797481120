"""Many rows at once: into a table, into a query, and out of one.

Into a table by COPY in PostgreSQL and long lists of VALUES in SQLite; in and out of a query as one
JSON text. That is not a matter of taste: SQLite's driver hands the interpreter's lock back and
forth with whoever decodes the next pages, once for each row that it takes or gives, which made a
statement a row 37 times slower beside a busy thread.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import chain, islice
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Subquery,
    Table,
    Text,
    and_,
    cast,
    func,
    insert,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB

Row = tuple[Any, ...]

_decode_list = msgspec.json.Decoder(list[Any]).decode

# Rows in one statement in SQLite: a few sizes, so that few statements are prepared and kept. The
# largest keeps every table far below the 32,766 parameters that are SQLite's own limit.
_SIZES = (1000, 200, 40, 8, 1)


def insert_rows(
    connection: Connection, table: Table, names: Sequence[str], rows: Iterable[Row]
) -> None:
    """Insert rows: a value for each of these columns, which are in the table's order.

    Times and JSON texts are in the database's `forms`. PostgreSQL stores the first rows while the
    next are still being made, if `rows` makes them one by one.
    """
    if connection.dialect.name == "postgresql":
        _copy(connection, table, names, rows)
    else:
        _insert_values(connection, table, tuple(names), rows)


class Encoders(NamedTuple):
    """What makes of a time, and of a JSON text, the value with which `insert_rows` stores it."""

    time: Callable[[datetime], Any]
    json: Callable[[str], Any]


def encoders(connection: Connection) -> Encoders:
    """The forms of values in this database."""
    if connection.dialect.name == "sqlite":
        return Encoders(time=_sqlite_time, json=str)
    # Imported here because with SQLite the driver is not needed.
    from psycopg.types.json import Jsonb  # noqa: PLC0415

    return Encoders(time=lambda time: time, json=lambda text: Jsonb(text, dumps=str))


def id_table(connection: Connection, ids: Iterable[int]) -> Subquery:
    """These ids as a table with the one column `id`."""
    text = literal(msgspec.json.encode(list(ids)).decode(), Text)
    value: ColumnElement[int]
    if connection.dialect.name == "sqlite":
        value = func.json_each(text).table_valued("value", name="given").c.value
    else:
        texts = func.jsonb_array_elements_text(cast(text, JSONB))
        value = cast(texts.column_valued("given"), BigInteger)
    return select(value.label("id")).subquery()


def lookup_by_id(
    connection: Connection,
    ids: Iterable[int],
    key: Column[int],
    value: ColumnElement[Any],
    *conditions: ColumnElement[bool],
) -> dict[int, int | None]:
    """Of these ids those that `key` has where the conditions hold, each with its integer `value`.

    The join is an outer one so that the ids are gone through and looked up in the key's index,
    never the other way round.
    """
    given = id_table(connection, ids)
    rows = given.outerjoin(key.table, and_(key == given.c.id, *conditions))
    found = select(key.label("key"), value.label("value")).select_from(rows).subquery()
    collect = func.json_group_array if connection.dialect.name == "sqlite" else func.json_agg
    lists = (cast(collect(c).filter(found.c.key.is_not(None)), Text) for c in found.columns)
    keys, values = (_decode_list(text or "[]") for text in connection.execute(select(*lists)).one())
    return dict(zip(keys, values, strict=True))


@lru_cache(maxsize=1024)  # Those who are in a chat have mostly joined at once.
def _sqlite_time(time: datetime) -> str:
    """The form in which SQLAlchemy stores and reads a time."""
    return time.replace(tzinfo=None).isoformat(" ", "microseconds")


def _insert_values(
    connection: Connection, table: Table, names: tuple[str, ...], rows: Iterable[Row]
) -> None:
    source = iter(rows)
    while some := list(islice(source, _SIZES[0])):
        for size in _SIZES:
            while len(some) >= size:
                statement = _statement(connection.dialect, table, names, size)
                connection.exec_driver_sql(statement, tuple(chain.from_iterable(some[:size])))
                del some[:size]


@lru_cache(maxsize=64)
def _statement(dialect: Dialect, table: Table, names: tuple[str, ...], size: int) -> str:
    """An INSERT of so many rows, as SQLAlchemy writes it for one."""
    one = insert(table).compile(dialect=dialect, column_keys=list(names))
    assert tuple(one.positiontup or ()) == names  # noqa: S101  # it takes the table's order
    head, values, row = str(one).partition(" VALUES ")
    return head + values + ", ".join([row] * size)


def _copy(connection: Connection, table: Table, names: Sequence[str], rows: Iterable[Row]) -> None:
    from psycopg import sql  # noqa: PLC0415

    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(table.name), sql.SQL(",").join(map(sql.Identifier, names))
    )
    types = [str(table.c[name].type.compile(connection.dialect)).lower() for name in names]
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row(row)
