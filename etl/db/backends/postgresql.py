"""PostgreSQL 12 or newer, through psycopg 3.

Nothing here needs a session: PgBouncer in transaction mode may hand each transaction another
connection. The startup packet names what PgBouncer keeps with a client (encoding, DateStyle, time
zone, application name); everything else is set for one transaction.
"""

import os
import socket
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

import msgspec
import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb
from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    Engine,
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
    table,
)
from sqlalchemy import create_engine as create_sqlalchemy_engine
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.engine import URL
from sqlalchemy.types import TypeEngine

from etl.db.backends import Encoders, Outage, Row

KEY_TYPE: Final[TypeEngine[Any]] = BigInteger()
# PostgreSQL compares jsonb values; it cannot compare json.
JSON_TYPE: Final[TypeEngine[Any]] = JSONB(none_as_null=True)
_MIGRATION_LOCK: Final = 0x6C696E71  # "linq" in ASCII: the advisory lock's key
# Both ends notice a silent network within a minute; on this end, libpq's names differ.
_TCP: Final = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 6}
_TCP_USER_TIMEOUT_MS: Final = 45_000
_SETTINGS: Final = {
    "lock_timeout": "10s",
    # A writer suspended between two statements must not block the others for ever.
    "idle_in_transaction_session_timeout": "30s",
    **{f"tcp_{name}": str(value) for name, value in _TCP.items()},
    "tcp_user_timeout": str(_TCP_USER_TIMEOUT_MS),
    # PostgreSQL overestimates the batch and would hash-join whole tables.
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
    "enable_bitmapscan": "off",
    # Compiling the larger statements takes ten times as long as running them.
    "jit": "off",
}

# By SQLSTATE.
_ADVICE: Final = {
    "55P03": "another program has locked it for too long: wait, or end that program",
    "53100": "free space on its disk and run again: nothing that was stored is lost",
    "25006": "it is read-only: connect to the primary, or let the role write",
}
_FORBIDDEN: Final = "42501"
_RIGHTS: Final = {
    "table": "SELECT, INSERT, UPDATE, DELETE ON",
    "view": "SELECT ON",
    "sequence": "USAGE ON SEQUENCE",
}
# Serialization failure, deadlock, and a unique key that another transaction inserted first.
_CONFLICTS: Final = {"40001", "40P01", "23505"}
# A lock timeout, too many connections, a standby before its promotion, a session that was ended.
_PASSING: Final = {"55P03", "53300", "25006", "25P03", "57P01", "57P02", "57P03", "57P05"}


def create_engine(url: URL) -> Engine:
    """An engine that connects lazily."""
    # libpq puts these two in the startup packet, and takes them from the environment only.
    os.environ["PGDATESTYLE"], os.environ["PGTZ"] = "ISO", "UTC"
    return create_sqlalchemy_engine(
        url.set(drivername="postgresql+psycopg"),
        hide_parameters=True,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": 10,
            "application_name": "linq-etl",
            "client_encoding": "UTF8",
            "keepalives": 1,
            **_TCP,
            "tcp_user_timeout": _TCP_USER_TIMEOUT_MS,
            # A prepared statement belongs to one server connection, and keeps a plan from when its
            # table was small.
            "prepare_threshold": None,
        },
    )


def begin_writing(connection: Connection, name: str) -> None:
    """The settings end with the transaction."""
    settings = _SETTINGS | {"application_name": name}
    connection.execute(select(*(func.set_config(*item, True) for item in settings.items())))


def begin_migrating(connection: Connection) -> None:
    """Take an advisory lock, which ends with the transaction."""
    connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))


def server_time(connection: Connection) -> datetime:
    """Not the transaction's start, but now."""
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return now


def explain(error: BaseException, url: URL) -> str | None:
    """By SQLSTATE."""
    state = getattr(error, "sqlstate", None)
    message = str(error).strip().partition("\n")[0]
    if state in _ADVICE:
        return f"the database is unavailable: {message}; {_ADVICE[state]}"
    if state != _FORBIDDEN:
        return None
    role, (kind, _, name) = url.username or "?", message.rpartition(" for ")[2].partition(" ")
    if kind == "schema":
        return f"Role {role} may not create tables. Run: GRANT CREATE ON SCHEMA {name} TO {role};"
    if rights := _RIGHTS.get(kind):
        return f"Role {role} may not use {kind} {name}. Run: GRANT {rights} {name} TO {role};"
    return f"{message}: grant it to role {role}"


def outage(error: BaseException) -> Outage | None:
    """By SQLSTATE; libpq's own errors, such as a lost connection, have none."""
    state = getattr(error, "sqlstate", None)
    if state in _CONFLICTS:
        return "conflict"
    lost = state is None and isinstance(error, psycopg.OperationalError)
    return "unavailable" if lost or state in _PASSING or (state or "").startswith("08") else None


def interrupt(connection: Connection) -> None:
    """Shut the socket down: a server that does not answer would not answer a cancel request."""
    driver: Any = connection.connection.driver_connection
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(driver.fileno())) as other:
        other.shutdown(socket.SHUT_RDWR)


def end_sessions(connection: Connection, name: str) -> list[int]:
    """A role may end its own sessions."""
    found = _ACTIVITY.c.application_name == name
    mine = _ACTIVITY.c.usename == func.current_user()
    ended = func.pg_terminate_backend(_ACTIVITY.c.pid)
    query = select(_ACTIVITY.c.pid, ended).where(found, mine, _OTHER_SESSION)
    return [pid for pid, was_ended in connection.execute(query) if was_ended]


def lock_holders(connection: Connection) -> list[str]:
    """By application name, which begin_writing sets for its transaction."""
    ours = _ACTIVITY.c.application_name.like("linq-etl/%")
    open_since = _ACTIVITY.c.xact_start.is_not(None)
    query = select(_ACTIVITY.c.application_name, _ACTIVITY.c.pid)
    found = connection.execute(query.where(ours, open_since, _OTHER_SESSION))
    return [f"{name} (server process {pid})" for name, pid in found]


_ACTIVITY = table(
    "pg_stat_activity",
    column("pid", BigInteger),
    column("usename"),
    column("application_name", Text),
    column("xact_start"),
    schema="pg_catalog",
)
_OTHER_SESSION = _ACTIVITY.c.pid != func.pg_backend_pid()


def encoders() -> Encoders:
    """psycopg encodes times itself."""
    return Encoders(time=lambda time: time, json=lambda text: Jsonb(text, dumps=str))


def id_table(ids: Iterable[int]) -> Subquery:
    """The ids as one JSON text, which psycopg passes on faster than an array."""
    text = literal(msgspec.json.encode(list(ids)).decode(), Text)
    elements = func.json_array_elements_text(cast(text, JSON)).column_valued("given")
    return select(cast(elements, BigInteger).label("id")).subquery()


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
    keys = set(table.primary_key.columns.keys())
    return statement.on_conflict_do_update(
        index_elements=table.primary_key,
        set_={name: statement.excluded[name] for name in names if name not in keys | kept},
    )
