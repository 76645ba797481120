"""What errors of MariaDB and MySQL mean: a sentence for the operator, and whether they pass.

The servers quote values in many messages, so only the messages of known errors are shown.
"""

import re
from contextlib import suppress
from typing import Final

import pymysql
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from etl.db.backends import Outage

TO_WRITE: Final = "SELECT, INSERT, UPDATE, DELETE"
TO_CREATE: Final = "CREATE, ALTER, DROP, INDEX, REFERENCES, CREATE VIEW, SHOW VIEW"

# Deadlock, also one that Galera found when it certified the transaction; a unique key that another
# transaction inserted first; a row that changed since it was read; a group that refused a commit.
_CONFLICTS: Final = {1213, 1062, 1020, 3101, 3572}
_LOST: Final = {2006, 2013, 2055}
# No connection is free, the server stops, a lock timeout, a session that was ended, a read-only
# server, a Galera node without its cluster.
_PASSING: Final = {
    *_LOST, 1040, 1041, 1047, 1053, 1080, 1135, 1158, 1159, 1160, 1161, 1180, 1184, 1203, 1205,
    1226, 1290, 1317, 1637, 1836, 1927, 1152, 3024, 4031,
}  # fmt: skip
_UNREACHED: Final = {2002, 2003, 2005}
_REFUSED: Final = (
    "the server refused user {user}: check the name and the password in database.url, and its "
    "ssl-mode if the server wants encryption"
)
_SETUP: Final = {
    1045: _REFUSED,
    1698: _REFUSED,
    1130: "the server does not let this host connect: create a user for it",
    2026: "the server does not encrypt connections, as the ssl-mode in database.url demands",
    3159: "the server wants encryption: set another ssl-mode in database.url",
    1049: "There is no database {database}. Run: CREATE DATABASE {database} CHARACTER SET utf8mb4;",
}
_NO_DATABASE: Final = 1044
_ACCOUNT: Final = re.compile("'(?P<user>.*)'@'(?P<host>.*)' to database")
_NO_PRIVILEGE: Final = {_NO_DATABASE, 1142, 1143, 1227, 1370}
_CONFLICT_ADVICE: Final = "other transactions won several times in a row: run again"
_LOST_ADVICE: Final = "the connection was lost: run again"
_DISK_ADVICE: Final = "free space on its disk and run again: nothing that was stored is lost"
_READ_ONLY_ADVICE: Final = "it is read-only: connect to the primary, or let the account write"
_ADVICE: Final = {
    **dict.fromkeys(_CONFLICTS - {1062}, _CONFLICT_ADVICE),
    **dict.fromkeys(_LOST, _LOST_ADVICE),
    **dict.fromkeys(_UNREACHED, "check that it runs and that database.url is right"),
    **dict.fromkeys((1021, 1030, 1114), _DISK_ADVICE),
    **dict.fromkeys((1290, 1792, 1836), _READ_ONLY_ADVICE),
    **dict.fromkeys((1040, 1041, 1203, 1226), "it has no free connection: run again later"),
    **dict.fromkeys((1053, 1927, 1317), "it ended the session: run again"),
    1047: "this node is not part of its Galera cluster: wait, or connect to another node",
    1153: "a row is longer than its max_allowed_packet: raise it to 64M",
    1180: "the commit failed: run again",
    1205: "another program has locked it for too long: wait, or end that program",
    1665: "its binlog_format is STATEMENT, which does not work with READ COMMITTED: set it to ROW",
    1969: "its max_statement_time is too short: raise it for this account",
    3024: "its max_execution_time is too short: raise it for this account",
}


def explain(error: BaseException, engine: Engine) -> str | None:
    """By the server's number of the error."""
    if not isinstance(error, pymysql.MySQLError):
        return None
    code, url = _code(error), engine.url
    if code in _NO_PRIVILEGE:
        user, host = _account(error, engine)
        return may_not_use(url.database or "", user, host, creates=code != 1143)
    if code in _SETUP:
        return _SETUP[code].format(
            user=url.username or "(none)", database=quoted(url.database or "")
        )
    if code in _PASSING or code in _ADVICE:
        advice = f"; {_ADVICE[code]}" if code in _ADVICE else ""
        return f"the database is unavailable: {error.args[1]}{advice}"
    # An unknown error is an operational one, but its message may hold values.
    operational = code and isinstance(error, pymysql.err.OperationalError)
    return f"the database refused a statement: error {code}" if operational else None


def _account(error: pymysql.MySQLError, engine: Engine) -> tuple[str, str]:
    """The user and the host of the account, which a grant must name as they are.

    Only the message about a database has both: others have the host of this end.
    """
    if _code(error) == _NO_DATABASE and (found := _ACCOUNT.search(str(error.args[1]))):
        return found["user"], found["host"]
    with suppress(SQLAlchemyError), engine.connect() as connection:
        user, _, host = connection.execute(select(func.current_user())).scalar_one().rpartition("@")
        return user, host
    return engine.url.username or "", "%"


def may_not_use(database: str, user: str, host: str, *, creates: bool) -> str:
    """One grant for all tables, so that the next run is not refused another one."""
    rights = f"{TO_WRITE}, {TO_CREATE}" if creates else TO_WRITE
    return (
        f"User {user} lacks privileges on {quoted(database)}. "
        f"Run: GRANT {rights} ON {quoted(database)}.* TO {_literal(user)}@{_literal(host)};"
    )


def _literal(text: str) -> str:
    doubled = text.replace("'", "''")
    return f"'{doubled}'"


def quoted(name: str) -> str:
    """The name as SQL needs it."""
    doubled = name.replace("`", "``")
    return f"`{doubled}`"


def outage(error: BaseException, engine: Engine) -> Outage | None:
    """By the number of the error.

    A server that was never reached is waited for only if it says that it is busy: the URL may be
    wrong.
    """
    code = _code(error)
    if code in _CONFLICTS:
        return "conflict"
    if code in _UNREACHED | _LOST or isinstance(error, pymysql.err.InterfaceError):
        reached = engine.dialect.server_version_info is not None
        return "unavailable" if reached else None
    return "unavailable" if code in _PASSING else None


def _code(error: BaseException) -> int:
    code = error.args[0] if isinstance(error, pymysql.MySQLError) and error.args else 0
    return code if isinstance(code, int) else 0
