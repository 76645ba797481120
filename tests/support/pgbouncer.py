"""A private PgBouncer in transaction pooling, between the tests and one PostgreSQL database.

It is started from the installed binary, listens on a socket in a temporary folder, and ends with
this process, even if that is killed.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import URL, make_url

from tests.support.postgres import account, make_folder

# With auth_type "any", every client becomes the user that the database line names.
_SETTINGS = """
[databases]
pooled = {server}
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {folder}
auth_type = any
pool_mode = transaction
default_pool_size = {pool_size}
server_reset_query =
"""

# $1 is the binary, $2 the folder. The pooler runs until standard input is closed.
_SERVE = """
"$1" -q "$2/pgbouncer.ini" >"$2/log" 2>&1 &
until [ -S "$2/.s.PGSQL.6432" ]; do kill -0 $! || exit; sleep 0.01; done
echo started
read -r _
kill $! && wait
rm -rf "$2"
"""


class NoPgBouncerError(Exception):
    """There is no PgBouncer to test with; the message says why."""


@contextmanager
def pooled(database_url: str, *, pool_size: int) -> Iterator[str]:
    """The URL of the database behind a new PgBouncer, which opens so many connections to it.

    Raises NoPgBouncerError.
    """
    binary = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if binary is None:
        raise NoPgBouncerError("pgbouncer is not installed")
    folder = make_folder()
    server = _server(make_url(database_url))
    try:
        (folder / "pgbouncer.ini").write_text(
            _SETTINGS.format(server=server, folder=folder, pool_size=pool_size)
        )
        with _running(binary, folder):
            yield f"postgresql://anyone@/pooled?host={folder}&port=6432"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _server(url: URL) -> str:
    """The right-hand side of PgBouncer's database line."""
    parts = {
        "host": url.host or url.query["host"],
        "port": url.port or url.query.get("port") or 5432,
        "dbname": url.database,
        "user": url.username,
        "password": url.password,
    }
    quoted = {key: str(part).replace("'", "''") for key, part in parts.items() if part}
    return " ".join(f"{key}='{part}'" for key, part in quoted.items())


@contextmanager
def _running(binary: str, folder: Path) -> Iterator[None]:
    with subprocess.Popen(
        ["/bin/sh", "-c", _SERVE, "sh", binary, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,
        env={"PATH": os.defpath},
        start_new_session=True,  # Ctrl-C goes to the tests, which then close standard input.
        **account(),
    ) as process:
        assert process.stdout
        if not process.stdout.readline():
            raise NoPgBouncerError(f"it does not start: {(folder / 'log').read_text()[-500:]}")
        yield
