"""The database's URL, as hosts and secrets hand it out -> as SQLAlchemy reads it.

A SQLite path is everything after `sqlite:///`, percent-decoded. A PostgreSQL URL may have libpq's
form: several hosts, or a socket's folder, percent-encoded, in place of a host. A MySQL URL names a
database on one host, and may begin with `mariadb`.
"""

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qsl, quote, unquote

SHAPES: Final = (
    '"sqlite:///FILE.db", "postgresql://USER@HOST/DATABASE" or "mysql://USER@HOST/DATABASE"'
)
_ESCAPES: Final = "a URL whose password has %2F for /, %3F for ? and %40 for @"
_ODD: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\ufffd]")  # Neither name nor password has it.
_POSTGRESQL: Final = re.compile(
    r"(?P<scheme>postgres|postgresql|postgresql\+psycopg)://"
    r"(?:(?P<user>[^/?]*)@)?(?P<hosts>[^/?]*)(?P<path>/[^?@]*)?(?P<query>\?[^@]*)?"
)
_MYSQL: Final = re.compile(
    r"(?:mysql|mariadb)(?:\+pymysql)?://"
    r"(?:(?P<user>[^/?]*)@)?(?P<host>[^/?@,]*)/(?P<database>[^/?@]+)(?P<query>\?[^@]*)?"
)
_HOST: Final = re.compile(r"(?P<name>\[[^\[\]@]+\]|[^:\[\]@]*)(?::(?P<port>.*))?")


def normalised(text: str) -> str:
    """The URL without blanks around it, in SQLAlchemy's spelling.

    Raises ValueError with what is expected instead, but not the URL: it may hold a password.
    """
    url = text.strip()
    if _ODD.search(unquote(url)):
        raise ValueError(SHAPES)
    if url.startswith("sqlite:"):
        return _sqlite(url)
    return _mysql(url) if url.startswith(("mysql", "mariadb")) else _postgresql(url)


def is_schema(name: str) -> bool:
    """Whether a PostgreSQL schema can have the name; the server keeps some for itself."""
    if _ODD.search(name) or name.startswith("pg_") or name in {"information_schema", "$user"}:
        return False
    return 1 <= len(name.encode()) <= 63


def _sqlite(url: str) -> str:
    path = unquote(url.removeprefix("sqlite:///"))
    # A database in memory is lost after the run.
    if not url.startswith("sqlite:///") or not path or ":memory:" in path or "?" in url:
        raise ValueError(SHAPES)
    if path.startswith("~"):
        raise ValueError("a path without ~, which is not expanded")
    return url


def _mysql(url: str) -> str:
    parts = _MYSQL.fullmatch(url)
    if parts is None:
        raise ValueError(_ESCAPES if "@" in url else SHAPES)
    (name, port), *_ = _hosts(parts["host"])
    host = f"{name}:{port}" if port else name
    if ":" in name:
        host = f"[{name}]:{port}" if port else f"[{name}]"
    user = "" if parts["user"] is None else parts["user"].replace("@", "%40") + "@"
    return f"mysql+pymysql://{user}{host}/{parts['database']}{parts['query'] or ''}"


def _postgresql(url: str) -> str:
    parts = _POSTGRESQL.fullmatch(url)
    if parts is None and re.match(r"postgres\w*://.*@", url):
        raise ValueError(_ESCAPES)
    if parts is None or not (parts["user"] or parts["hosts"] or parts["path"]):
        raise ValueError(SHAPES)
    query = parts["query"] or ""
    for name, value in parse_qsl(query[1:]):
        if name == "port":
            for port in value.split(","):
                _ensure_port(port)
    scheme = "postgresql" if parts["scheme"] == "postgres" else parts["scheme"]
    user = "" if parts["user"] is None else parts["user"].replace("@", "%40") + "@"
    hosts = list(_hosts(parts["hosts"]))
    path = parts["path"] or ""
    if len(hosts) == 1 and "%" not in parts["hosts"]:
        return f"{scheme}://{user}{parts['hosts'].removesuffix(':')}{path}{query}"
    names = ",".join(quote(unquote(name), safe="/") for name, _ in hosts)
    ports = ",".join(port or "5432" for _, port in hosts) if any(p for _, p in hosts) else ""
    given = f"host={names}&port={ports}" if ports else f"host={names}"
    return f"{scheme}://{user}{path}{query or '?'}{'&' if query else ''}{given}"


def _hosts(text: str) -> Iterator[tuple[str, str]]:
    """Each host, which may be empty, with its port or an empty one."""
    for each in text.split(","):
        parts = _HOST.fullmatch(each)
        if parts is None:
            raise ValueError(SHAPES)
        port = parts["port"] or ""
        _ensure_port(port)
        yield parts["name"].strip("[]"), port


def _ensure_port(text: str) -> None:
    if text and not (re.fullmatch(r"[0-9]{1,5}", text) and 1 <= int(text) <= 65535):
        raise ValueError("a port from 1 to 65535")
