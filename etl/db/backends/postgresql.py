"""PostgreSQL 12 or newer, through psycopg 3.

Nothing here needs a session: PgBouncer in transaction mode may hand each transaction another
connection. The startup packet names what PgBouncer keeps with a client (encoding, DateStyle, time
zone, application name); everything else is set for one transaction, also the configured schema.
"""

import os
import re
import socket
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import sql
from sqlalchemy import (
    BigInteger,
    Connection,
    DateTime,
    Engine,
    Table,
    Text,
    bindparam,
    event,
    func,
    select,
    text,
)
from sqlalchemy import create_engine as create_sqlalchemy_engine
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError
from sqlalchemy.schema import CreateSchema
from sqlalchemy.types import TypeEngine

from etl.db.backends import Examination
from etl.db.backends.postgresql_errors import (
    does_not_own,
    explain,  # noqa: F401  # of this backend
    may_not_create,
    may_not_create_schema,
    may_not_use,
    may_use_no_schema,
    outage,  # noqa: F401  # of this backend
    quoted,
    schema_of,
)
from etl.db.backends.postgresql_rows import (  # of this backend
    encoders,  # noqa: F401
    fetch_rows,  # noqa: F401
    id_table,  # noqa: F401
    insert_rows,  # noqa: F401
    lock_rows,  # noqa: F401
    upsert_rows,  # noqa: F401
)
from etl.errors import ConfigError

KEY_TYPE: Final[TypeEngine[Any]] = BigInteger()
# PostgreSQL compares jsonb values; it cannot compare json.
JSON_TYPE: Final[TypeEngine[Any]] = JSONB(none_as_null=True)
TEXT_TYPE: Final[TypeEngine[Any]] = Text()
TIME_TYPE: Final[TypeEngine[Any]] = DateTime(timezone=True)
_MIGRATION_LOCK: Final = 0x6C696E71  # "linq" in ASCII: the advisory lock's key
_MIGRATION_TIMEOUT: Final = "60s"
# Both ends notice a silent network within a minute; on this end, libpq's names differ.
_TCP: Final = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 6}
_TCP_USER_TIMEOUT_MS: Final = 45_000
_PLANNER: Final = {
    # PostgreSQL overestimates the batch and would hash-join whole tables.
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
    "enable_bitmapscan": "off",
    # Compiling the larger statements takes ten times as long as running them.
    "jit": "off",
}
_SETTINGS: Final = {
    "lock_timeout": "10s",
    # A writer suspended between two statements must not block the others for ever.
    "idle_in_transaction_session_timeout": "30s",
    **{f"tcp_{name}": str(value) for name, value in _TCP.items()},
    "tcp_user_timeout": str(_TCP_USER_TIMEOUT_MS),
    **_PLANNER,
}


def short_text(length: int) -> TypeEngine[Any]:  # noqa: ARG001
    """No index needs to know the length."""
    return TEXT_TYPE


def create_engine(url: URL) -> Engine:
    """An engine that connects lazily. Raises ConfigError if the URL's parameters are invalid."""
    known = {each.keyword.decode() for each in psycopg.pq.Conninfo.get_defaults()}
    if unknown := sorted(url.query.keys() - known):
        names = ", ".join(n for n in unknown if re.fullmatch(r"[a-z_]{1,40}", n)) or "(not shown)"
        raise ConfigError(f"database.url: libpq does not know the parameter {names}")
    # libpq puts these two in the startup packet, and takes them from the environment only.
    os.environ["PGDATESTYLE"], os.environ["PGTZ"] = "ISO", "UTC"
    try:
        engine = create_sqlalchemy_engine(
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
                # A prepared statement belongs to one server connection, and keeps a plan from when
                # its table was small.
                "prepare_threshold": None,
            },
        )
    except ArgumentError:
        raise ConfigError("database.url: give each host one port, or none") from None
    event.listen(engine, "begin", _enter_schema)
    return engine


def _enter_schema(connection: Connection) -> None:
    """Find and create all tables in the configured schema, and nowhere else."""
    if schema := schema_of(connection):
        path = func.set_config("search_path", func.quote_ident(schema), True)
        # A connection that streams its results would open a cursor, and set nothing yet.
        connection.execute(select(path), execution_options={"yield_per": None}).scalar()


def missing_file(url: URL) -> None:
    """The server has the files."""


def risks(url: URL) -> list[str]:  # noqa: ARG001
    """The server looks after its files."""
    return []


def begin_writing(connection: Connection, name: str) -> None:
    """The settings end with the transaction."""
    _set(connection, _SETTINGS | {"application_name": name})


def begin_report(connection: Connection) -> None:
    """The settings end with the transaction."""
    _set(connection, _PLANNER)


def _set(connection: Connection, settings: Mapping[str, str]) -> None:
    # As text: to compose a dozen functions takes longer than the server's answer.
    calls = ", ".join(f"set_config('{name}', :{name}, true)" for name in settings)
    connection.execute(text(f"SELECT {calls}"), settings)


def begin_migrating(connection: Connection) -> None:
    """Take an advisory lock, which ends with the transaction."""
    wait = func.set_config("lock_timeout", bindparam("wait", type_=Text), True)
    connection.execute(select(wait), {"wait": _MIGRATION_TIMEOUT})
    connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
    connection.execute(select(wait), {"wait": _SETTINGS["lock_timeout"]})


def create_schema(connection: Connection) -> None:
    """Unless it exists: a role that may use a schema need not be allowed to create one."""
    schema = schema_of(connection)
    if schema and not _exists(connection, schema):
        connection.execute(CreateSchema(schema, if_not_exists=True))


def _exists(connection: Connection, schema: str) -> bool:
    """Also if the role may not use it."""
    return bool(connection.execute(_SCHEMA_EXISTS, {"name": schema}).scalar())


_SCHEMA_EXISTS: Final = text("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :name)")


def unusable(connection: Connection) -> str | None:
    """Only UTF8 holds every text."""
    encoding, name = connection.execute(
        select(func.current_setting("server_encoding"), func.current_database())
    ).one()
    if encoding == "UTF8":
        return None
    return (
        f"Database {name} is encoded in {encoding}, which cannot hold every text. Use another one: "
        f"CREATE DATABASE {quoted(f'{name}_utf8')} TEMPLATE template0 ENCODING 'UTF8' "
        "LC_COLLATE 'C' LC_CTYPE 'C';"
    )


def occupied(connection: Connection, names: Collection[str]) -> str | None:
    """Relations of all kinds share their names; a table needs the name of a type, too."""
    if found := connection.execute(_OCCUPIED, {"names": list(names)}).scalars().all():
        return (
            "the database has objects of another program with the names that this one needs "
            f"({', '.join(found)}): set database.schema to another schema, or use another database"
        )
    return None


_OCCUPIED: Final = text("""
    SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'v' THEN 'view'
        WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' WHEN 'S' THEN 'sequence'
        WHEN 'c' THEN 'type' ELSE 'index' END || ' ' || quote_ident(n.nspname) || '.' || c.relname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = ANY(:names) AND pg_table_is_visible(c.oid)
    UNION ALL
    SELECT 'type ' || quote_ident(n.nspname) || '.' || t.typname
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE t.typname = ANY(:names) AND pg_type_is_visible(t.oid) AND t.typrelid = 0
    ORDER BY 1
""")


def examine(connection: Connection, tables: Collection[str], *, creates: bool) -> Examination:
    """By the catalog: whether the server and the role write, and the role's privileges."""
    standby, read_only, role, namespace, may_create = connection.execute(_ROLE).one()
    schema = schema_of(connection)
    problems = []
    if standby:
        problems.append("The server is a standby, which cannot be written. Connect to the primary.")
    elif read_only == "on":
        problems.append(
            f"Role {role} may only read. Run: "
            f"ALTER ROLE {role} SET default_transaction_read_only = off;"
        )
    if schema and not _exists(connection, schema):
        database, may_create = connection.execute(_DATABASE).one()
        if creates and not may_create:
            problems.append(may_not_create_schema(role, quoted(schema), database))
    elif namespace is None:
        problems.append(may_use_no_schema(role, schema))
    elif creates and not may_create:
        problems.append(may_not_create(role, namespace))
    rows = connection.execute(_PRIVILEGES, {"names": list(tables)}).all()
    if denied := [row.name for row in rows if not row.may_write]:
        problems.append(may_not_use(role, ", ".join(denied), schema))
    if creates and (foreign := [row.name for row in rows if not row.is_owner]):
        problems.append(does_not_own(role, ", ".join(foreign)))
    return Examination(problems)


_ROLE: Final = text("""
    SELECT pg_is_in_recovery(), current_setting('transaction_read_only'), quote_ident(current_user),
        quote_ident(current_schema()), has_schema_privilege(current_schema(), 'CREATE')
""")
_DATABASE: Final = text("""
    SELECT quote_ident(current_database()), has_database_privilege(current_database(), 'CREATE')
""")
_PRIVILEGES: Final = text("""
    SELECT t.relname AS name, pg_has_role(t.relowner, 'USAGE') AS is_owner,
        has_table_privilege(t.oid, 'SELECT') AND has_table_privilege(t.oid, 'INSERT')
        AND has_table_privilege(t.oid, 'UPDATE') AND has_table_privilege(t.oid, 'DELETE')
        AND coalesce(bool_and(has_sequence_privilege(s.oid, 'USAGE')), true) AS may_write
    FROM pg_class t
    LEFT JOIN pg_depend d ON d.refobjid = t.oid AND d.deptype = 'a'
        AND d.refclassid = 'pg_class'::regclass
    LEFT JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
    WHERE t.relname = ANY(:names) AND t.relkind IN ('r', 'p') AND pg_table_is_visible(t.oid)
    GROUP BY t.oid, t.relname, t.relowner
    ORDER BY t.relname
""")


def server_time(connection: Connection) -> datetime:
    """Not the transaction's start, but now."""
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return now


def cancel(driver: Any) -> None:
    """By another connection. The server would finish the statement of a closed one."""
    with suppress(psycopg.Error):
        driver.cancel_safe(timeout=1)


def disconnect(driver: Any) -> None:
    """Shut the socket down, which wakes the thread that reads from it."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(driver.fileno())) as other:
        other.shutdown(socket.SHUT_RDWR)


def end_sessions(connection: Connection, name: str) -> list[int]:
    """A role may end its own sessions."""
    sessions = connection.execute(_SESSIONS)
    mine = [each.pid for each in sessions if each.is_mine and each.name == name]
    return [
        pid for pid in mine if connection.execute(select(func.pg_terminate_backend(pid))).scalar()
    ]


def lock_holders(connection: Connection) -> list[str]:
    """By application name, which begin_writing sets for its transaction."""
    found = connection.execute(_SESSIONS)
    return [f"{each.name} (server process {each.pid})" for each in found]


# A run's id is that of another run in another database of the server, or in another schema. Which
# schema a session writes shows in its locks alone: a search_path is known to the session only.
_SESSIONS: Final = text("""
    SELECT a.pid, a.application_name AS name, a.usename = current_user AS is_mine
    FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
        AND a.application_name LIKE 'linq-etl/%' AND EXISTS (
            SELECT FROM pg_locks l JOIN pg_class locked ON locked.oid = l.relation
            JOIN pg_class ours ON ours.relnamespace = locked.relnamespace
            WHERE l.pid = a.pid AND l.database = a.datid AND l.granted
                AND ours.oid = to_regclass('run_fences')
        )
    ORDER BY a.pid
""")


def comment_on_views(connection: Connection, views: Iterable[Table]) -> None:
    """Comments are literals, because COMMENT takes no parameters."""
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor:
        for view in views:
            name = sql.Identifier(view.name)
            on_view = sql.SQL("COMMENT ON VIEW {} IS {}")
            cursor.execute(on_view.format(name, sql.Literal(view.comment)))
            on_column = sql.SQL("COMMENT ON COLUMN {}.{} IS {}")
            for each in view.columns:
                column_name, comment = sql.Identifier(each.name), sql.Literal(each.comment)
                cursor.execute(on_column.format(name, column_name, comment))


def overwrite_deleted(connection: Connection) -> None:
    """Only VACUUM removes what was deleted."""


def scrub(engine: Engine, tables: Iterable[Table]) -> str | None:
    """VACUUM, as far as this role owns the tables."""
    schema = schema_of(engine)
    names = [sql.Identifier(*filter(None, (schema, table.name))) for table in tables]
    connection = engine.raw_connection()
    try:
        driver: Any = connection.driver_connection
        driver.autocommit = True
        notices: list[str] = []
        driver.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        driver.execute(sql.SQL("VACUUM {}").format(sql.SQL(", ").join(names)))
    finally:
        connection.invalidate()
    if not notices:
        return None
    return "this role may not VACUUM all tables: let their owner do it"
