"""URLs as providers hand them out, on a server that wants TLS and passwords."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from psycopg import sql
from sqlalchemy import text

from etl.config.database_url import normalised
from etl.db.engine import open_engine, reading
from tests.support import postgres
from tests.support.command import CLOSED_PORT, call, environment, execute
from tests.support.marks import cannot_run

pytestmark = pytest.mark.slow  # It starts a server.

USER = "ada.ref@db"
PASSWORD = "p@ss:w/rd?100%25 #+&=é"
# Where Google's proxy puts the sockets of an instance.
INSTANCE = "project:europe-west1:linq"
HBA = """
local all postgres trust
local all all scram-sha-256
hostssl all all all scram-sha-256
"""


@dataclass(frozen=True)
class TlsServer:
    """Its port, the folder of its second socket, and its certificate, for the name localhost."""

    port: int
    sockets: Path
    certificate: Path

    def url(self, form: str) -> str:
        """The form with user, password and the rest filled in."""
        return form.format(
            credentials=f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}",
            port=self.port,
            sockets=self.sockets,
            encoded_sockets=quote(str(self.sockets), safe=""),
            certificate=self.certificate,
        )


@pytest.fixture(scope="module")
def tls_server() -> Iterator[TlsServer]:
    """A server with one role, who must give the password, and TLS unless through a socket."""
    if shutil.which("openssl") is None:
        cannot_run("openssl is not installed")
    try:
        folder = postgres.make_folder()
        server = TlsServer(free_port(), folder / INSTANCE, folder / "server.crt")
        server.sockets.mkdir()
        (folder / "pg_hba.conf").write_text(HBA)
        make_certificate(folder)
        for path in (server.sockets, folder / "server.key"):
            give(path)
        with postgres.private_server(
            folder=folder,
            listen_addresses="localhost",
            port=str(server.port),
            unix_socket_directories=f"{folder}, {server.sockets}",
            hba_file=f"{folder}/pg_hba.conf",
            ssl="on",
            ssl_cert_file=str(server.certificate),
            ssl_key_file=f"{folder}/server.key",
        ) as started:
            admin = f"{started.url}&port={server.port}"
            create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
            execute(admin, create.format(sql.Identifier(USER), PASSWORD).as_string())
            grant = sql.SQL("GRANT CREATE ON SCHEMA public TO {}")
            execute(admin, grant.format(sql.Identifier(USER)).as_string())
            yield server
    except postgres.NoPostgresError as reason:
        cannot_run(f"no PostgreSQL: {reason}")


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        port: int = listening.getsockname()[1]
        return port


def make_certificate(folder: Path) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    files = ["-keyout", f"{folder}/server.key", "-out", f"{folder}/server.crt"]
    names = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command.split(), *files, *names], check=True, capture_output=True)


def give(path: Path) -> None:
    """To the user that runs the server."""
    if user := postgres.account():
        os.chown(path, user["user"], user["group"])
    path.chmod(0o700 if path.is_dir() else 0o600)


@pytest.mark.parametrize(
    ("form", "encrypted"),
    [
        ("postgres://{credentials}@localhost:{port}/postgres", True),
        ("postgres://{credentials}@localhost:{port}/postgres?sslmode=require", True),
        (
            "postgresql://{credentials}@localhost:{port}/postgres"
            "?sslmode=require&channel_binding=require",
            True,
        ),
        (
            "postgresql://{credentials}@localhost:{port}/postgres"
            "?sslmode=require&channel_binding=prefer&connect_timeout=5",
            True,
        ),
        (
            "postgresql://{credentials}@localhost:{port}/postgres"
            "?sslmode=verify-full&sslrootcert={certificate}",
            True,
        ),
        (
            "postgresql://{credentials}@localhost:{port}/postgres"
            "?options=-c%20statement_timeout%3D60s%20-csearch_path%3Dpublic",
            True,
        ),
        (
            "postgresql://{credentials}@127.0.0.1:1,localhost:{port}/postgres"
            "?target_session_attrs=read-write",
            True,
        ),
        ("postgresql://{credentials}@/postgres?host={sockets}&port={port}", False),
        ("postgresql://{credentials}@/postgres?port={port}&host={encoded_sockets}", False),
        ("postgresql://{credentials}@{encoded_sockets}:{port}/postgres", False),
    ],
)
def test_a_url_of_a_provider(tls_server: TlsServer, form: str, encrypted: bool) -> None:
    """It connects as that role, and encrypted unless through a socket."""
    url = tls_server.url(form)
    engine = open_engine(normalised(url))
    with reading(engine) as connection:
        query = "SELECT current_user, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert connection.execute(text(query)).one() == (USER, encrypted)
    engine.dispose()
    upgraded = call("db", "upgrade", env=environment(CLOSED_PORT, url))
    assert (upgraded.code, upgraded.stderr) == (0, "")


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("postgres://{credentials}@localhost:{port}/postgres?sslmode=disable", "no encryption"),
        (
            "postgres://{credentials}@127.0.0.1:{port}/postgres"
            "?sslmode=verify-full&sslrootcert={certificate}",
            'does not match host name "127.0.0.1"',
        ),
        (
            "postgres://{credentials}@localhost:{port}/postgres?sslmode=verify-full",
            "root certificate file",
        ),
        ("postgres://{credentials}x@localhost:{port}/postgres", "password authentication failed"),
    ],
)
def test_a_connection_that_is_refused(tls_server: TlsServer, form: str, says: str) -> None:
    """Exit code 6 at once, with what libpq says and without the password."""
    url = tls_server.url(form)
    refused = call("status", env=environment(CLOSED_PORT, url))
    assert (refused.code, refused.stdout) == (6, "")
    assert says in refused.stderr
    for shown in (PASSWORD, quote(PASSWORD, safe="")):
        assert shown not in refused.stderr
