"""Rows on their way into PostgreSQL and out of it: COPY for new ones, one JSON text for others."""

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from psycopg import sql
from psycopg.types.json import Jsonb
from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    Select,
    Subquery,
    Table,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import Insert, insert

from etl.db.backends import Encoders, Row, updated_names


def _same(value: Any) -> Any:
    return value


def encoders() -> Encoders:
    """psycopg encodes times and dates itself."""
    return Encoders(time=_same, date=_same, json=lambda text: Jsonb(text, dumps=str))


def id_table(ids: Iterable[int]) -> Subquery:
    """The ids as one JSON text, which psycopg passes on faster than an array."""
    text = literal(msgspec.json.encode(list(ids)).decode(), Text)
    elements = func.json_array_elements_text(cast(text, JSON)).column_valued("given")
    return select(cast(elements, BigInteger).label("id")).subquery()


def lock_rows(connection: Connection, table: Table, ids: Iterable[int]) -> None:
    """Only one server of a cluster can be written."""


def fetch_rows(connection: Connection, query: Select[Any]) -> list[Row]:
    """psycopg's own rows: it converts in C, and the connection's time zone is UTC."""
    result = connection.execute(query)
    cursor: Any = result.cursor
    rows: list[Row] = cursor.fetchall()
    result.close()
    return rows


def insert_rows(
    connection: Connection, table: Table, names: Sequence[str], rows: Iterable[Row]
) -> None:
    """Insert by COPY: PostgreSQL stores the first rows while `rows` still makes the next."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(table.name), sql.SQL(",").join(map(sql.Identifier, names))
    )
    types = [str(table.c[name].type.compile(connection.dialect)).lower() for name in names]
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row(row)


def upsert_rows(
    connection: Connection,
    table: Table,
    names: Sequence[str],
    rows: Collection[Row],
    *,
    kept: Collection[str] = (),
) -> None:
    """Upsert by one statement, with the rows as one JSON text."""
    if rows:
        objects = [dict(zip(names, row, strict=True)) for row in rows]
        text = _encode(objects).decode()
        connection.execute(_upsert(table, tuple(names), frozenset(kept)), {"rows": text})


def _json_value(value: Any) -> Any:
    """A value that msgspec does not encode: JSON text, or a subclass of datetime."""
    return msgspec.Raw(value.obj.encode()) if isinstance(value, Jsonb) else value.isoformat()


_encode = msgspec.json.Encoder(enc_hook=_json_value).encode


@lru_cache(maxsize=16)
def _upsert(table: Table, names: tuple[str, ...], kept: frozenset[str]) -> Insert:
    columns = (column(name, table.c[name].type) for name in names)
    rows = func.json_to_recordset(cast(bindparam("rows", type_=Text), JSON))
    given = rows.table_valued(*columns, name="given").render_derived(with_types=True)
    statement = insert(table).from_select(list(names), select(given))
    return statement.on_conflict_do_update(
        index_elements=table.primary_key,
        set_={name: statement.excluded[name] for name in updated_names(table, names, kept)},
    )
