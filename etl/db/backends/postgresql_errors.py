"""What PostgreSQL's errors mean: a sentence for the operator, and whether the error passes."""

import re
from contextlib import suppress
from typing import Final

import psycopg
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.dialects.postgresql import dialect
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from etl.db.backends import Outage

# SQLSTATEs.
_READ_ONLY: Final = "25006"
_FORBIDDEN: Final = "42501"
_NO_SCHEMA: Final = "3F000"
_TAKEN: Final = {"42P07", "42710"}  # the name of a relation, of a type
_CONFLICT_ADVICE: Final = "other transactions won several times in a row: run again"
_ADVICE: Final = {
    "40001": _CONFLICT_ADVICE,
    "40P01": _CONFLICT_ADVICE,
    "55P03": "another program has locked it for too long: wait, or end that program",
    "53100": "free space on its disk and run again: nothing that was stored is lost",
    _READ_ONLY: "it is read-only: connect to the primary, or let the role write",
    "25P03": "this process was suspended for more than 30 s within a transaction: run again",
}
_RIGHTS: Final = (
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}; "
    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role};"
)
# Serialization failure, deadlock, and a unique key that another transaction inserted first.
_CONFLICTS: Final = {"40001", "40P01", "23505"}
# A lock timeout, too many connections, a session that was ended.
_PASSING: Final = {"55P03", "53300", "25P03", "57P01", "57P02", "57P03", "57P05"}
# How a server, or PgBouncer, refuses connections for a while: libpq passes on no SQLSTATE of that.
_BUSY: Final = re.compile(
    "too many (clients|connections)|connection slots are reserved|the database system is |"
    "could not fork new process|no more connections allowed"
)


def schema_of(bind: Engine | Connection) -> str | None:
    """The configured schema."""
    schema: str | None = bind.get_execution_options().get("schema")
    return schema


def explain(error: BaseException, engine: Engine) -> str | None:
    """By SQLSTATE."""
    state = getattr(error, "sqlstate", None)
    message = str(error).strip().partition("\n")[0]
    if state in _ADVICE:
        return f"the database is unavailable: {message}; {_ADVICE[state]}"
    if state in _TAKEN:
        return (
            f"{message}, and this program did not create it: drop it, or set database.schema to "
            "another schema"
        )
    role, schema = _role(engine.url), schema_of(engine)
    if state == _NO_SCHEMA:
        return may_use_no_schema(role, schema)
    return _explain_forbidden(message, role, schema) if state == _FORBIDDEN else None


def _explain_forbidden(message: str, role: str, schema: str | None) -> str:
    """The server's message is `permission denied for KIND NAME` or `must be owner of KIND NAME`."""
    verb, _, subject = message.partition(" for ")
    kind, _, name = subject.partition(" ")
    if kind == "schema":
        return may_not_create(role, quoted(name))
    if kind == "database" and schema:
        return may_not_create_schema(role, quoted(schema), quoted(name))
    if kind in {"table", "view", "sequence"}:
        return may_not_use(role, subject, schema)
    if verb.startswith("must be owner of "):
        return does_not_own(role, verb.removeprefix("must be owner of "))
    return f"{message}: grant it to role {role}"


def may_use_no_schema(role: str, schema: str | None) -> str:
    """The tables may exist: without USAGE on their schema, the role does not see them."""
    if schema is None:
        return (
            f"Role {role} may use no schema of its search_path. "
            f"Run: GRANT USAGE ON SCHEMA public TO {role};"
        )
    name = quoted(schema)
    return f"Role {role} may not use schema {name}. Run: GRANT USAGE ON SCHEMA {name} TO {role};"


def may_not_create_schema(role: str, schema: str, database: str) -> str:
    """The role lacks CREATE on the database."""
    return (
        f"Role {role} may not create schema {schema}. "
        f"Run: GRANT CREATE ON DATABASE {database} TO {role};"
    )


def may_not_create(role: str, schema: str) -> str:
    """The role lacks CREATE on the schema."""
    return f"Role {role} may not create tables. Run: GRANT CREATE ON SCHEMA {schema} TO {role};"


def may_not_use(role: str, objects: str, schema: str | None) -> str:
    """One grant for all tables, so that the next run is not refused another one."""
    rights = _RIGHTS.format(role=role, schema=quoted(schema or "public"))
    return f"Role {role} may not use {objects}. Run: {rights}"


def does_not_own(role: str, objects: str) -> str:
    """Ownership cannot be granted; the tables' owner must migrate."""
    return (
        f"Role {role} may not change the schema, because it does not own {objects}. "
        "Run the `linq-etl db` commands as the role that owns it."
    )


def _role(url: URL) -> str:
    """The session's role: libpq's own choice if the URL names none."""
    role = url.username or url.query.get("user")
    if not isinstance(role, str):
        defaults = {each.keyword: each.val for each in psycopg.pq.Conninfo.get_defaults()}
        role = (defaults.get(b"user") or b"?").decode()
    return quoted(role)


def quoted(name: str) -> str:
    """The name as SQL needs it: in quotes if it is not a plain word."""
    preparer = dialect(paramstyle="named").identifier_preparer  # type: ignore[no-untyped-call]
    return str(preparer.quote(name))


def outage(error: BaseException, engine: Engine) -> Outage | None:
    """By SQLSTATE; libpq's own errors, such as a lost connection, have none.

    A server that was never reached is waited for only if it says that it is busy: what else libpq
    says may be a wrong URL.
    """
    state = getattr(error, "sqlstate", None)
    if state in _CONFLICTS:
        return "conflict"
    if state == _READ_ONLY:
        return "unavailable" if _is_standby(engine) else None
    if state is None and isinstance(error, psycopg.OperationalError):
        reached = engine.dialect.server_version_info is not None
        return "unavailable" if reached or _BUSY.search(str(error)) else None
    return "unavailable" if state in _PASSING or (state or "").startswith("08") else None


def _is_standby(engine: Engine) -> bool:
    """Whether the server may be promoted soon; a role or database that only reads stays so."""
    with suppress(SQLAlchemyError), engine.connect() as connection:
        return bool(connection.execute(select(func.pg_is_in_recovery())).scalar_one())
    return True
