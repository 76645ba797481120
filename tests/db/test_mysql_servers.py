"""MariaDB or MySQL with other settings than usual: what does not matter, and what is explained."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pymysql
import pytest

from etl.db import schema
from etl.db.engine import open_engine, reading
from etl.errors import DatabaseError, SchemaError
from etl.sandbox import Sandbox, build_world
from tests.db.conftest import run_main_job
from tests.db.test_examine import problems
from tests.support.builders import A
from tests.support.command import call, environment, execute, held, stored
from tests.support.marks import cannot_run
from tests.support.mysql import NoMySqlError, make_folder
from tests.support.private_mysql import PrivateServer, private_server

pytestmark = pytest.mark.slow  # Each test starts a server.

ODD_SETTINGS = {
    "SQL modes": ["--sql-mode=ANSI_QUOTES,PIPES_AS_CONCAT", "--lower-case-table-names=1"],
    "old tables": [
        "--innodb-default-row-format=redundant",
        "--default-storage-engine=Aria",
        "--character-set-server=latin1",
    ],
    "transactions": [
        "--autocommit=OFF",
        "--completion-type=CHAIN",
        "--transaction-isolation=SERIALIZABLE",
        "--innodb-snapshot-isolation=ON",
        "--innodb-rollback-on-timeout",
    ],
    "time": [
        "--default-time-zone=-09:30",
        "--wait-timeout=1",
        "--log-bin",
        "--binlog-format=MIXED",
    ],
}


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    """A server with an empty database `linq`; a test may give its options."""
    try:
        with private_server(*getattr(request, "param", ())) as started:
            started.execute("CREATE DATABASE linq")
            yield started
    except NoMySqlError as reason:
        cannot_run(f"no MariaDB or MySQL: {reason}")


@pytest.mark.parametrize("server", ODD_SETTINGS.values(), ids=ODD_SETTINGS, indirect=True)
def test_the_settings_of_a_server_do_not_matter(server: PrivateServer) -> None:
    """Load, changes, a sync that changes nothing, and removals."""
    url = f"{server.url}linq"
    run_main_job(call, url, url)
    engines = "SELECT DISTINCT engine FROM information_schema.tables WHERE table_schema = 'linq'"
    assert server.execute(f"{engines} AND table_type = 'BASE TABLE'") == [("InnoDB",)]


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (["--max-allowed-packet=4M"], "Run: SET GLOBAL max_allowed_packet = 16777216;"),
        (["--log-bin", "--binlog-format=STATEMENT"], "Run: SET GLOBAL binlog_format = 'ROW';"),
    ],
    indirect=["server"],
)
def test_a_server_that_cannot_hold_the_data_is_refused(
    server: PrivateServer, expected: str
) -> None:
    """With the statement that changes the setting; `check` says the same."""
    url = f"{server.url}linq"
    engine = open_engine(url)
    with pytest.raises(SchemaError) as caught:
        schema.upgrade(engine)
    engine.dispose()
    assert expected in str(caught.value)
    assert [problem for problem in problems(url) if expected in problem]
    execute(url, expected.removeprefix("Run: ").rstrip(";"))
    schema.upgrade(engine)
    engine.dispose()


@pytest.mark.parametrize("setting", ["read_only", "tx_read_only"])
def test_a_server_that_only_reads_is_explained(server: PrivateServer, setting: str) -> None:
    """It may be a replica."""
    server.execute("CREATE USER ada IDENTIFIED BY 'x'")
    server.execute("GRANT ALL ON linq.* TO ada")
    server.execute(f"SET GLOBAL {setting} = 1")
    engine = open_engine(f"mysql://ada:x@127.0.0.1:{server.port}/linq")
    with pytest.raises(DatabaseError, match="it is read-only: connect to the primary"):
        schema.upgrade(engine)
    engine.dispose()


@pytest.mark.parametrize(
    "server", [["--innodb-data-file-path=ibdata1:12M:autoextend:max:60M"]], indirect=True
)
def test_a_full_disk_loses_nothing(server: PrivateServer) -> None:
    """Exit code 6, also if the server ends itself, as it may with a full tablespace of its own.

    What was stored stays, and with room the next run stores the rest.
    """
    url = f"{server.url}linq"
    server.execute("SET GLOBAL innodb_file_per_table = 0")
    world = build_world(numbers=[A], chats_per_number=5)
    with Sandbox(world) as sandbox:
        env = environment(sandbox, url, A)
        assert call("sync", env=env).code == 0
        filler = "CREATE TABLE filler (a LONGTEXT) SELECT repeat('a', 100000) AS a"
        execute(url, filler)
        with suppress(pymysql.err.OperationalError):
            for _ in range(1000):
                execute(url, "INSERT INTO filler SELECT a FROM filler LIMIT 20")
        for number in range(14):
            world.edit(world.create(A), display_name="a" * 500_000, note=str(number))
        assert call("sync", env=env).code == 6
        server.end()
        server.start("--innodb-data-file-path=ibdata1:12M:autoextend")
        assert call("sync", env=env).code == 0
    assert stored(url) == held(world, [A])


# Encryption


@pytest.fixture(scope="module")
def certificates() -> Iterator[Path]:
    """An authority, its certificates for a server on loopback and for a user, another authority."""
    folder = make_folder()  # The server may run as another user.
    folder.chmod(0o755)

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "rsa:2048", "-nodes")
    for name in ("ca", "other"):
        made = ("-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
        openssl("req", "-x509", *new, *made)
    (folder / "server.names").write_text("subjectAltName=IP:127.0.0.1")
    (folder / "ada.names").write_text("subjectAltName=email:ada@example.org")
    for name in ("server", "ada"):
        made = ("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("req", *new, *made)
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", f"{name}.pem")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-extfile", f"{name}.names")
    for key in folder.glob("*.key"):
        key.chmod(0o644)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def encrypting(certificates: Path) -> Iterator[PrivateServer]:
    """A server that refuses connections without encryption."""
    options = [
        f"--ssl-{kind}={certificates}/server.{end}"
        for kind, end in (("cert", "pem"), ("key", "key"))
    ]
    options += [f"--ssl-ca={certificates}/ca.pem", "--require-secure-transport=ON"]
    try:
        with private_server(*options) as started:
            started.execute("CREATE DATABASE linq")
            yield started
    except NoMySqlError as reason:
        cannot_run(f"no MariaDB or MySQL: {reason}")


def cipher(url: str) -> str:
    engine = open_engine(url)
    with reading(engine) as connection:
        _, found = connection.exec_driver_sql("SHOW STATUS LIKE 'Ssl_cipher'").one()
    engine.dispose()
    return str(found)


def test_encryption(encrypting: PrivateServer, certificates: Path) -> None:
    """Also if nothing is asked for; the server's certificate is checked if that is."""
    url = f"{encrypting.url}linq"
    ours = f"ssl-ca={certificates}/ca.pem"
    accepted = ["", "?ssl-mode=REQUIRED", f"?{ours}", f"?{ours}&ssl-mode=VERIFY_IDENTITY"]
    assert "" not in [cipher(url + parameters) for parameters in accepted]
    refused = {
        "?ssl-mode=DISABLED": "its ssl-mode if the server wants encryption",
        "?ssl-mode=VERIFY_CA": "certificate verify failed",
        f"?ssl-ca={certificates}/other.pem": "certificate verify failed",
    }
    for parameters, message in refused.items():
        with pytest.raises(DatabaseError, match=message):
            cipher(url + parameters)


def test_a_user_with_a_certificate(encrypting: PrivateServer, certificates: Path) -> None:
    """It stands for a password."""
    encrypting.execute("CREATE USER ada REQUIRE X509")
    encrypting.execute("GRANT SELECT ON linq.* TO ada")
    url = f"mysql://ada@127.0.0.1:{encrypting.port}/linq"
    with pytest.raises(DatabaseError, match="the server refused user ada"):
        cipher(url)
    assert cipher(f"{url}?ssl-cert={certificates}/ada.pem&ssl-key={certificates}/ada.key")


def test_a_server_that_cannot_encrypt(server: PrivateServer) -> None:
    """It is used, unless ssl-mode demands encryption."""
    url = f"{server.url}linq"
    assert cipher(url) == ""
    with pytest.raises(DatabaseError, match="the server does not encrypt connections"):
        cipher(f"{url}?ssl-mode=REQUIRED")


def test_a_password_with_any_characters(server: PrivateServer) -> None:
    """Percent-encoded in the URL."""
    server.execute("CREATE USER ada IDENTIFIED BY 'pä€😀''\"%:/?#@'")
    server.execute("GRANT SELECT ON linq.* TO ada")
    password = "p%C3%A4%E2%82%AC%F0%9F%98%80%27%22%25%3A%2F%3F%23%40"
    assert cipher(f"mysql://ada:{password}@127.0.0.1:{server.port}/linq") == ""
