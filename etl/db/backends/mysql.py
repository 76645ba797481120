"""MariaDB 10.6 or newer and MySQL 8.0.19 or newer, through PyMySQL."""

import json
import socket
from collections.abc import Collection, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

import pymysql
from sqlalchemy import (
    VARCHAR,
    BigInteger,
    Connection,
    Dialect,
    Engine,
    Table,
    TypeDecorator,
    bindparam,
    event,
    func,
    select,
    text,
)
from sqlalchemy import create_engine as create_sqlalchemy_engine
from sqlalchemy.dialects.mysql import DATETIME, LONGTEXT
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError
from sqlalchemy.types import TypeEngine

from etl.db.backends import Examination, taken_names
from etl.db.backends.mysql_cluster import lock_upgrade, unlock_upgrade
from etl.db.backends.mysql_errors import (
    TO_CREATE,
    TO_WRITE,
    explain,  # noqa: F401  # of this backend
    may_not_use,
    outage,  # noqa: F401  # of this backend
)
from etl.db.backends.mysql_rows import (  # of this backend
    encoders,  # noqa: F401
    fetch_rows,  # noqa: F401
    id_table,  # noqa: F401
    insert_rows,  # noqa: F401
    lock_rows,  # noqa: F401
    upsert_rows,  # noqa: F401
)
from etl.db.backends.mysql_tls import connect, connection_arguments
from etl.db.tables.base import VERSION_TABLE
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

_MIGRATION_SECONDS: Final = 60
_LOCK_SECONDS: Final = 10
# A writer suspended between two statements must not block the others for ever.
_IDLE_SECONDS: Final = 30
_PACKET_BYTES: Final = 16 * 1024 * 1024  # a row can be nearly as long: three texts of 4 MiB
# Both ends notice a silent network within a minute; not every system has each option.
_TCP: Final = {
    "TCP_KEEPIDLE": 15,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 6,
    "TCP_USER_TIMEOUT": 45_000,
}
# Strict, and a backslash is no escape: escaping then is only the doubling of quotes.
_SQL_MODE: Final = "TRADITIONAL,NO_BACKSLASH_ESCAPES"
_ARGUMENTS: Final[dict[str, Any]] = {
    "charset": "utf8mb4",
    "sql_mode": _SQL_MODE,
    "connect_timeout": 10,
    "read_timeout": 600,  # for the answer to one statement; keep-alive notices a lost server
    "write_timeout": 60,
    "program_name": "linq-etl",
}
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
    arguments = _ARGUMENTS | connection_arguments(url)
    if url.password is not None:
        arguments["password"] = str(url.password).encode()  # PyMySQL would encode it as Latin-1
    engine = create_sqlalchemy_engine(
        url.set(drivername="mysql+pymysql", query={}),
        hide_parameters=True,
        pool_pre_ping=True,
        isolation_level="READ COMMITTED",
        connect_args=arguments,
    )
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "reset", _release_locks)
    return engine


def _connect(_dialect: Any, _record: Any, _: Any, arguments: dict[str, Any]) -> Any:
    driver: Any = connect(**arguments)
    driver.arguments = arguments  # for another connection, to end a statement of this one
    return driver


def _prepare(driver: Any, _record: Any) -> None:
    if driver.unix_socket is None:
        driver._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _TCP.items():
            if option := getattr(socket, name, None):
                driver._sock.setsockopt(socket.IPPROTO_TCP, option, value)
    with driver.cursor() as cursor:
        cursor.execute(_SESSION)
        cursor.execute("SHOW VARIABLES WHERE Variable_name IN %s", (list(_MARIADB),))
        for name, _ in cursor.fetchall():
            cursor.execute(_MARIADB[name])


def _release_locks(driver: Any, record: Any, _state: Any) -> None:
    if record.info.pop("has_cluster_lock", False):
        with suppress(pymysql.Error), driver.cursor() as cursor:
            unlock_upgrade(cursor)
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
    lock = func.concat(name, "/", func.connection_id())
    connection.execute(select(func.get_lock(lock, 0)))


def begin_report(connection: Connection) -> None:
    """It needs none: rows are looked up by index."""


def begin_migrating(connection: Connection) -> None:
    """Take a lock that outlives the commits of CREATE and ALTER; it ends with the transaction.

    Such a statement may take longer than any other.
    """
    from etl.db.backends import mysql_migrations  # noqa: F401, PLC0415  # imports Alembic

    connection.info["has_locks"] = True
    # MySQL allows 64 characters, and has no SHA1 since 9.6.
    name = func.concat("linq-etl upgrade/", func.left(func.sha2(func.database(), 256), 40))
    lock = func.get_lock(name, _MIGRATION_SECONDS)
    if connection.execute(select(lock)).scalar_one() != 1:
        raise DatabaseUnavailableError(
            f"another program has upgraded this database for more than {_MIGRATION_SECONDS} s"
        )
    connection.info["has_cluster_lock"] = lock_upgrade(connection, _MIGRATION_SECONDS)
    # Alembic's own table, too, must take part in transactions.
    connection.execute(text("SET SESSION default_storage_engine = InnoDB"))
    driver: Any = connection.connection.driver_connection
    driver._read_timeout = None


def create_schema(connection: Connection) -> None:
    """The URL names the database, which an administrator creates."""


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


def occupied(connection: Connection, names: Collection[str]) -> str | None:
    """Tables and views share their names.

    A version table without a revision is of a first upgrade that was killed: the tables are ours.
    """
    if VERSION_TABLE not in names:
        return None
    return taken_names(connection.execute(_OCCUPIED, {"names": list(names)}).scalars().all())


_OCCUPIED: Final = text("""
    SELECT table_name FROM information_schema.tables
    WHERE table_schema = database() AND table_name IN :names ORDER BY table_name
""").bindparams(bindparam("names", expanding=True))


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
        with connect(**arguments) as other, other.cursor() as cursor:
            cursor.execute("KILL QUERY %s", (driver.thread_id(),))


def disconnect(driver: Any) -> None:
    """Shut the socket down, which wakes the thread that reads from it."""
    with suppress(OSError, AttributeError):
        driver._sock.shutdown(socket.SHUT_RDWR)


_WRITERS: Final = text("""
    SELECT s.id, f.run_id FROM JSON_TABLE(:ids, '$[*]' COLUMNS (id BIGINT PATH '$')) s, run_fences f
    WHERE s.id <> connection_id()
        AND is_used_lock(concat('linq-etl/', f.run_id, '/', s.id)) = s.id
""")


def _writers(connection: Connection) -> list[tuple[int, int]]:
    """The sessions that write for a run, each with it; without PROCESS, only this account's."""
    # In MySQL, information_schema.processlist fails while a statement has an emoji in it.
    sessions = connection.execute(text("SHOW PROCESSLIST")).mappings()
    database = connection.execute(select(func.database())).scalar()
    ids = [session["Id"] for session in sessions if session["db"] == database]
    found = connection.execute(_WRITERS, {"ids": json.dumps(ids)})
    return [(row.id, row.run_id) for row in found]


def end_sessions(connection: Connection, name: str) -> list[int]:
    """An account may end its own sessions."""
    sessions = [s for s, run_id in _writers(connection) if name == f"linq-etl/{run_id}"]
    for session in sessions:
        with suppress(OperationalError):  # It has ended meanwhile.
            connection.execute(text("KILL :session"), {"session": session})
    return sessions


def lock_holders(connection: Connection) -> list[str]:
    """By the lock that begin_writing takes for its transaction."""
    found = _writers(connection)
    return [f"linq-etl/{run_id} (server session {session})" for session, run_id in found]


def overwrite_deleted(connection: Connection) -> None:
    """InnoDB removes deleted rows later, in the background."""


def scrub(engine: Engine, tables: Iterable[Table]) -> str | None:  # noqa: ARG001
    """Nothing: to write a table anew can take hours, and stops a whole cluster."""
    return (
        "the files may hold remains until InnoDB uses their space again: OPTIMIZE TABLE writes a "
        "table anew"
    )
