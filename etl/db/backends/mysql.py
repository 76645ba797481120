"""MariaDB 10.6 or newer and MySQL 8.0.19 or newer, through PyMySQL.

PyMySQL is written in Python: for each parameter and each row that it converts, the other threads
wait. So rows go in as one JSON text, which the server takes apart with JSON_TABLE, and fixed-size
columns come out as one JSON text each. The columns of JSON_TABLE are texts, because it cuts a value
that does not fit its type; the tables' columns refuse it.
"""

import json
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import Any, Final

import msgspec
import pymysql
from sqlalchemy import (
    VARCHAR,
    BigInteger,
    Boolean,
    Column,
    ColumnClause,
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    Select,
    Subquery,
    Table,
    Text,
    TypeDecorator,
    bindparam,
    column,
    event,
    func,
    select,
    text,
)
from sqlalchemy import create_engine as create_sqlalchemy_engine
from sqlalchemy.dialects.mysql import DATETIME, LONGTEXT, Insert, insert
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError
from sqlalchemy.types import TypeEngine

from etl.db.backends import Encoders, Examination, Row
from etl.db.backends.mysql_errors import (
    TO_CREATE,
    TO_WRITE,
    explain,  # noqa: F401  # of this backend
    may_not_use,
    outage,  # noqa: F401  # of this backend
)
from etl.db.backends.mysql_tls import connection_arguments
from etl.db.types import Json, LongText, UtcDateTime
from etl.errors import DatabaseUnavailableError


class _Json(TypeDecorator[Any]):
    """JSON as text: MariaDB's own type refuses more than 32 levels of nesting."""

    impl = LONGTEXT
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002
        return None if value is None else json.loads(value)


KEY_TYPE: Final[TypeEngine[Any]] = BigInteger()
JSON_TYPE: Final[TypeEngine[Any]] = _Json()
TEXT_TYPE: Final[TypeEngine[Any]] = LONGTEXT()
TIME_TYPE: Final[TypeEngine[Any]] = DATETIME(fsp=6)
TRANSACTIONAL_DDL: Final = False

_MIGRATION_SECONDS: Final = 60
_LOCK_SECONDS: Final = 10
# A writer suspended between two statements must not block the others for ever.
_IDLE_SECONDS: Final = 30
_PACKET_BYTES: Final = 16 * 1024 * 1024  # a row can be nearly as long: three texts of 4 MiB
_STATEMENT_BYTES: Final = 4 * 1024 * 1024
_STATEMENT_ROWS: Final = 4000
_READ_SECONDS: Final = 600  # for the answer to one statement; keep-alive notices a lost server
_WRITE_SECONDS: Final = 60
_KEEPALIVE: Final = {
    socket.TCP_KEEPIDLE: 15,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 6,
    socket.TCP_USER_TIMEOUT: 45_000,
}
# Strict, and a backslash is no escape: escaping then is only the doubling of quotes.
_SQL_MODE: Final = "TRADITIONAL,NO_BACKSLASH_ESCAPES"
_SESSION: Final = (
    "SET SESSION time_zone = '+00:00', group_concat_max_len = 1073741824, "
    f"innodb_lock_wait_timeout = {_LOCK_SECONDS}, lock_wait_timeout = {_MIGRATION_SECONDS}"
)
# What MySQL does not have, by a variable that shows it.
_MARIADB: Final = {
    "idle_transaction_timeout": f"SET SESSION idle_transaction_timeout = {_IDLE_SECONDS}",
    # Between the nodes of a Galera cluster, a read waits for what other nodes have committed.
    "wsrep_sync_wait": "SET SESSION wsrep_sync_wait = 1",
}


def short_text(length: int) -> TypeEngine[Any]:
    """An index of InnoDB holds up to 3,072 bytes."""
    return VARCHAR(length)


def create_engine(url: URL) -> Engine:
    """An engine that connects lazily. Raises ConfigError if the URL's parameters are invalid."""
    arguments = connection_arguments(url)
    if url.password is not None:
        arguments["password"] = str(url.password).encode()  # PyMySQL would encode it as Latin-1
    engine = create_sqlalchemy_engine(
        url.set(drivername="mysql+pymysql", query={}),
        hide_parameters=True,
        pool_pre_ping=True,
        isolation_level="READ COMMITTED",
        connect_args={
            "charset": "utf8mb4",
            "sql_mode": _SQL_MODE,
            "connect_timeout": 10,
            "read_timeout": _READ_SECONDS,
            "write_timeout": _WRITE_SECONDS,
            "program_name": "linq-etl",
            **arguments,
        },
    )
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "reset", _release_locks)
    return engine


def _connect(_dialect: Any, _record: Any, _args: Any, arguments: dict[str, Any]) -> Any:
    driver: Any = pymysql.connect(**arguments)
    driver.arguments = arguments  # of another connection, which ends a statement of this one
    return driver


def _prepare(driver: Any, _record: Any) -> None:
    if driver.unix_socket is None:
        driver._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            driver._sock.setsockopt(socket.IPPROTO_TCP, option, value)
    with driver.cursor() as cursor:
        cursor.execute(_SESSION)
        cursor.execute("SHOW VARIABLES WHERE Variable_name IN %s", (list(_MARIADB),))
        for name, _ in cursor.fetchall():
            cursor.execute(_MARIADB[name])


def _release_locks(driver: Any, record: Any, _state: Any) -> None:
    if record.info.pop("has_locks", False):
        with suppress(pymysql.Error), driver.cursor() as cursor:
            cursor.execute("DO RELEASE_ALL_LOCKS()")


def missing_file(url: URL) -> None:
    """The server has the files."""


def risks(url: URL) -> list[str]:  # noqa: ARG001
    """The server looks after its files."""
    return []


def begin_writing(connection: Connection, name: str) -> None:
    """Show the transaction by a lock of its name: MySQL has no other name that others can see.

    The session's id is part of it, because only one session can hold a lock.
    """
    connection.info["has_locks"] = True
    connection.execute(select(func.get_lock(_lock_of(name, func.connection_id()), 0)))


def _lock_of(name: Any, session_id: Any) -> ColumnElement[str]:
    return func.concat(name, "/", session_id)


def begin_report(connection: Connection) -> None:
    """It needs none: rows are looked up by index."""


def begin_migrating(connection: Connection) -> None:
    """Take a lock that outlives the commits of CREATE and ALTER; it ends with the transaction.

    Such a statement may take longer than any other.
    """
    from etl.db.backends import mysql_migrations  # noqa: F401, PLC0415  # imports Alembic

    connection.info["has_locks"] = True
    name = func.concat("linq-etl upgrade/", func.sha1(func.database()))
    lock = func.get_lock(name, _MIGRATION_SECONDS)
    if connection.execute(select(lock)).scalar_one() != 1:
        raise DatabaseUnavailableError(
            f"another program has upgraded this database for more than {_MIGRATION_SECONDS} s"
        )
    driver: Any = connection.connection.driver_connection
    driver._read_timeout = None


_PROPERTIES: Final = text("""
    SELECT @@version, @@max_allowed_packet, @@log_bin AND @@binlog_format = 'STATEMENT'
""")


def unusable(connection: Connection) -> str | None:
    """By the server's version and settings."""
    version, packet, by_statement = connection.execute(_PROPERTIES).one()
    dialect: Any = connection.dialect
    oldest, name = ((10, 6), "MariaDB") if dialect.is_mariadb else ((8, 0, 19), "MySQL")
    if dialect.server_version_info < oldest:
        needed = ".".join(map(str, oldest))
        return f"The server is {version}. linq-etl needs {name} {needed} or newer."
    if packet < _PACKET_BYTES:
        return (
            f"The server's max_allowed_packet is {packet} bytes, and a row can be longer. "
            f"Run: SET GLOBAL max_allowed_packet = {_PACKET_BYTES}; and set it in my.cnf."
        )
    if by_statement:
        return (
            "The server's binlog_format is STATEMENT, which does not work with READ COMMITTED. "
            "Run: SET GLOBAL binlog_format = 'ROW'; and set it in my.cnf."
        )
    return None


def examine(connection: Connection, tables: Collection[str], *, creates: bool) -> Examination:
    """By the catalog: whether the server is writable, and the account's privileges."""
    read_only, role, database, account = connection.execute(_ACCOUNT).one()
    user, _, host = str(account).rpartition("@")
    rows = connection.execute(_PRIVILEGES, {"grantee": f"'{user}'@'{host}'"}).all()
    held = {(row.name, row.privilege) for row in rows}
    everywhere = {privilege for name, privilege in held if name is None}
    problems = []
    if read_only and not everywhere & {"SUPER", "READ_ONLY ADMIN"}:
        problems.append("The server is read-only. Connect to the primary.")
    if role not in {None, "NONE"}:
        return Examination(problems, f"did not examine the privileges of role {role}")
    needed = _TO_WRITE | (_TO_CREATE if creates else set())
    for name in tables or ("",):
        if needed - everywhere - {privilege for each, privilege in held if each == name}:
            problems.append(may_not_use(str(database), user, host, creates=creates))
            break
    return Examination(problems)


_TO_WRITE: Final = set(TO_WRITE.split(", "))
_TO_CREATE: Final = set(TO_CREATE.split(", "))
_ACCOUNT: Final = text("SELECT @@global.read_only, current_role(), database(), current_user()")
_PRIVILEGES: Final = text(r"""
    SELECT NULL AS name, privilege_type AS privilege FROM information_schema.user_privileges
    WHERE grantee = :grantee
    UNION SELECT NULL, privilege_type FROM information_schema.schema_privileges
    WHERE grantee = :grantee AND database() LIKE table_schema ESCAPE '\'
    UNION SELECT table_name, privilege_type FROM information_schema.table_privileges
    WHERE grantee = :grantee AND table_schema = database()
""")


def comment_on_views(connection: Connection, views: Iterable[Table]) -> None:
    """MySQL has no comments on views."""


def server_time(connection: Connection) -> datetime:
    """In UTC, whatever the server's time zone."""
    now: datetime = connection.execute(select(func.utc_timestamp(text("6")))).scalar_one()
    return now.replace(tzinfo=UTC)


def cancel(driver: Any) -> None:
    """By another connection. The server would finish the statement of a closed one."""
    with suppress(pymysql.Error, OSError):
        arguments = driver.arguments | {"connect_timeout": 1, "read_timeout": 1}
        with pymysql.connect(**arguments) as other, other.cursor() as cursor:
            cursor.execute("KILL QUERY %s", (driver.thread_id(),))


def disconnect(driver: Any) -> None:
    """Shut the socket down, which wakes the thread that reads from it."""
    with suppress(OSError, AttributeError):
        driver._sock.shutdown(socket.SHUT_RDWR)


# Without the privilege PROCESS, an account sees its own sessions.
_SESSIONS: Final = text("""
    SELECT s.id, f.run_id FROM information_schema.processlist s, run_fences f
    WHERE s.db = database() AND s.id <> connection_id()
        AND is_used_lock(concat('linq-etl/', f.run_id, '/', s.id)) = s.id
""")


def end_sessions(connection: Connection, name: str) -> list[int]:
    """An account may end its own sessions."""
    found = connection.execute(_SESSIONS).all()
    sessions = [session for session, run_id in found if name == f"linq-etl/{run_id}"]
    for session in sessions:
        with suppress(OperationalError):  # It has ended meanwhile.
            connection.execute(text("KILL :session"), {"session": session})
    return sessions


def lock_holders(connection: Connection) -> list[str]:
    """By the lock that begin_writing takes for its transaction."""
    found = connection.execute(_SESSIONS)
    return [f"linq-etl/{run_id} (server session {session})" for session, run_id in found]


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
        texts = connection.execute(select(*(func.json_arrayagg(each) for each in found.c))).one()
        with suppress(msgspec.DecodeError):  # The server cut it off at max_allowed_packet.
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
    keys = set(table.primary_key.columns.keys())
    updated = {name: statement.inserted[name] for name in names if name not in keys.union(kept)}
    _execute_in_parts(connection, statement.on_duplicate_key_update(updated), rows)


def _execute_in_parts(connection: Connection, statement: Insert, rows: Iterable[Row]) -> None:
    source = iter(rows)
    while some := list(islice(source, _STATEMENT_ROWS)):
        for part in _parts(some):
            connection.execute(statement, {"rows": part})


def _parts(rows: list[Row]) -> Iterator[str]:
    """The rows as JSON texts of a bounded size; a longer row is a text of its own."""
    encoded = msgspec.json.encode(rows)
    if len(encoded) <= _STATEMENT_BYTES or len(rows) == 1:
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
