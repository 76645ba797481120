"""MariaDB or MySQL for the tests: the server they are pointed to, else a private one.

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
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pymysql
from sqlalchemy.engine import URL, make_url

URL_VARIABLE = "LINQ_ETL_TEST_MYSQL_URL"
ROLE_PASSWORD = "test"
SBIN = "/usr/sbin"  # Debian's place for servers, not on everybody's PATH

# $1 is the folder, $2 the installer, $3 the server, $4 and $5 their options. The server runs until
# standard input is closed, which happens when the tests end, also by a signal.
_SERVE = """
folder=$1
exec 3>&1 >"$folder/log" 2>&1
"$2" $4 || exit
"$3" $5 3>&- <&- &
until [ -S "$folder/socket" ] && [ -s "$folder/pid" ]; do kill -0 $! || exit; sleep 0.02; done
echo started >&3
read -r _
kill -KILL $!
wait
rm -rf "$folder"
"""


class NoMySqlError(Exception):
    """There is no MariaDB or MySQL to test with; the message says why."""


class Binaries(NamedTuple):
    """The server's binary, and the program that makes its folder: the same one in MySQL."""

    server: str
    installer: str


@contextmanager
def server(given_url: str | None) -> Iterator[str]:
    """The URL of a server where databases may be created. Raises NoMySqlError."""
    if given_url:
        yield given_url
        return
    binaries = installed()
    folder = make_folder()
    try:
        with _running(binaries, folder):
            yield f"mysql://root@localhost/?unix_socket={folder}/socket"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def database(server_url: str, *, collation: str | None = None) -> Iterator[str]:
    """The URL of a new, empty database, which is dropped at the end.

    It has the server's default collation, unless another is given.
    """
    name = f"linq_etl_test_{uuid.uuid4().hex}"
    execute(server_url, f"CREATE DATABASE {name}" + (f" COLLATE {collation}" if collation else ""))
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        end_sessions(server_url, name)
        execute(server_url, f"DROP DATABASE {name}")


@contextmanager
def role(server_url: str) -> Iterator[str]:
    """A new account with a password, which may only log in, from this machine: 'name'@'host'."""
    name = f"linq_etl_test_{uuid.uuid4().hex[:16]}"  # MySQL's names have up to 32 characters.
    account = f"'{name}'@'{make_url(server_url).host}'"
    execute(server_url, f"CREATE USER {account} IDENTIFIED BY '{ROLE_PASSWORD}'")
    try:
        yield account
    finally:
        execute(server_url, f"DROP USER {account}")


def connect(url: str | URL, **options: Any) -> "pymysql.Connection[Any]":
    """A connection of the driver, which commits each statement."""
    parts = make_url(url)
    given = {
        "host": parts.host,
        "port": parts.port,
        "user": parts.username,
        "password": parts.password,
        "database": parts.database,
        "unix_socket": parts.query.get("unix_socket"),
    }
    arguments: dict[str, Any] = {name: value for name, value in given.items() if value}
    # For encryption, PyMySQL would load the system's certificates each time.
    options = {"ssl_disabled": True, "charset": "utf8mb4", "autocommit": True, **options}
    return pymysql.connect(**arguments, **options)


def execute(url: str | URL, statement: str) -> list[tuple[Any, ...]]:
    """Execute a statement in a session of its own, and return its rows."""
    with closing(connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def end_sessions(url: str | URL, database_name: str) -> None:
    """End all other sessions on the database."""
    with closing(connect(url)) as connection, connection.cursor() as cursor:
        # In MySQL, information_schema.processlist fails while a statement has an emoji in it.
        cursor.execute("SELECT CONNECTION_ID()")
        ((own,),) = cursor.fetchall()
        cursor.execute("SHOW PROCESSLIST")
        for session, _, _, name, *_ in cursor.fetchall():
            if name != database_name or session == own:
                continue
            with suppress(pymysql.err.OperationalError):  # It has ended meanwhile.
                cursor.execute("KILL %s", (session,))


def installed() -> Binaries:
    """MariaDB, else MySQL. Raises NoMySqlError."""
    mariadb, installer = find("mariadbd"), find("mariadb-install-db")
    if mariadb and installer:
        return Binaries(mariadb, installer)
    if mysql := find("mysqld"):
        return Binaries(mysql, mysql)
    raise NoMySqlError(f"{URL_VARIABLE} is not set, and neither mariadbd nor mysqld is installed")


def find(program: str) -> str | None:
    """The program's path."""
    return shutil.which(program, path=f"{os.environ['PATH']}:{SBIN}")


def make_folder() -> Path:
    """A folder for a server's data and socket, which belongs to the user that runs the server."""
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
    for name in ("mysql", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise NoMySqlError("a server refuses root, and there is no user mysql or nobody")


def data_options(folder: Path) -> str:
    """Options for a small server whose folder this is, and which installs it too.

    A server that starts deletes the temporary tables of others in the same folder.
    """
    return (
        f"--no-defaults --datadir={folder} --tmpdir={folder.parent} --innodb-buffer-pool-size=64M "
    )


def install_options(binaries: Binaries) -> str:
    """Options for the installer: root logs in without a password, and there is no test database."""
    if binaries.installer == binaries.server:
        return "--initialize-insecure"
    return (
        "--innodb-log-file-size=16M --auth-root-authentication-method=normal --skip-test-db "
        "--skip-name-resolve"
    )


def _serve_options(binaries: Binaries, folder: Path) -> str:
    options = (
        f"--socket={folder}/socket --pid-file={folder}/pid --skip-networking "
        "--performance-schema=OFF --innodb-flush-log-at-trx-commit=0 --skip-log-bin "
    )
    if binaries.installer == binaries.server:
        return f"{options} --mysqlx=OFF --secure-file-priv=NULL"
    return f"{options} --innodb-log-file-size=16M --skip-name-resolve"


@contextmanager
def _running(binaries: Binaries, folder: Path) -> Iterator[None]:
    data = data_options(folder / "data")
    with subprocess.Popen(
        [
            *("/bin/sh", "-c", _SERVE, "sh", folder),
            *(binaries.installer, binaries.server),
            *(data + install_options(binaries), data + _serve_options(binaries, folder)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,
        env={"PATH": f"{os.defpath}:{SBIN}", "LC_ALL": "C"},
        start_new_session=True,  # Ctrl-C goes to the tests, which then close standard input.
        **account(),
    ) as process:
        assert process.stdout
        if not process.stdout.readline():
            raise NoMySqlError(f"it does not start: {(folder / 'log').read_text()[-500:]}")
        yield
