"""PostgreSQL for the tests: the server they are pointed to, else a private one for the session.

The private server is started from installed binaries, listens on a socket in a temporary folder,
and ends with this process, even if that is killed. No other server is touched.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

URL_VARIABLE = "LINQ_ETL_TEST_POSTGRES_URL"
ROLE_PASSWORD = "test"  # for a server that asks for one

# $1 is the folder of the binaries, $2 the server's. The server runs until standard input is closed,
# which happens when the tests end, also by a signal.
_SERVE = """
exec 3>&1 >"$2/log" 2>&1
"$1/initdb" -D "$2/data" -U postgres -A trust -E UTF8 --locale=C --no-sync &&
"$1/pg_ctl" -D "$2/data" -l "$2/log" -w start 3>&- \\
    -o "-c listen_addresses='' -c unix_socket_directories='$2' -c fsync=off" &&
echo started >&3 && {
    read -r _
    "$1/pg_ctl" -D "$2/data" -m immediate stop
    rm -rf "$2"
}
"""


class NoPostgresError(Exception):
    """There is no PostgreSQL to test with; the message says why."""


@contextmanager
def server(given_url: str | None) -> Iterator[str]:
    """The URL of a server where databases may be created. Raises NoPostgresError."""
    if given_url:
        yield given_url
        return
    folder = make_folder()
    try:
        with _running(_binaries(), folder):
            yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def database(server_url: str, *, encoding: str = "UTF8") -> Iterator[str]:
    """The URL of a new, empty database, which is dropped at the end."""
    name = f"linq_etl_test_{uuid.uuid4().hex}"
    like = f"TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    _execute(server_url, f"CREATE DATABASE {{}} {like}", name)
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        _execute(server_url, "DROP DATABASE {} WITH (FORCE)", name)


@contextmanager
def role(server_url: str) -> Iterator[str]:
    """The name of a new role that may only log in; drop its databases before this ends."""
    name = f"linq_etl_test_{uuid.uuid4().hex}"
    _execute(server_url, f"CREATE ROLE {{}} LOGIN PASSWORD '{ROLE_PASSWORD}'", name)
    try:
        yield name
    finally:
        _execute(server_url, "DROP ROLE {}", name)


def _execute(server_url: str, statement: str, name: str) -> None:
    url = make_url(server_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(sql.Identifier(name)))


def _binaries() -> Path:
    """The folder with initdb: the one on PATH, else the newest installed."""
    if on_path := shutil.which("initdb"):
        return Path(on_path).resolve().parent
    installed = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    versions = {float(path.parts[-3]): path.parent for path in installed}
    if not versions:
        raise NoPostgresError(f"{URL_VARIABLE} is not set and initdb is not installed")
    return versions[max(versions)]


def make_folder() -> Path:
    """A folder for a server's socket, which belongs to the user that runs the server."""
    # In /tmp: a socket's path must be short, and the server may run as another user.
    user = account()
    folder = Path(tempfile.mkdtemp(prefix="linq-etl-", dir="/tmp"))
    if user:
        os.chown(folder, user["user"], user["group"])
    return folder


def account() -> dict[str, Any]:
    """Arguments of Popen: the user that runs a server, if this is root, whom servers refuse."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise NoPostgresError("a server refuses root, and there is no user postgres or nobody")


@contextmanager
def _running(binaries: Path, folder: Path) -> Iterator[None]:
    with subprocess.Popen(
        ["/bin/sh", "-c", _SERVE, "sh", binaries, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,
        env={"PATH": os.defpath, "LC_ALL": "C"},
        start_new_session=True,  # Ctrl-C goes to the tests, which then close standard input.
        **account(),
    ) as process:
        assert process.stdout
        if not process.stdout.readline():
            raise NoPostgresError(f"initdb or pg_ctl failed: {(folder / 'log').read_text()[-500:]}")
        yield
