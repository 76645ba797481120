"""The database's URL: what hosts and secrets hand out, and what SQLAlchemy reads."""

import ssl
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from etl.config.database_url import normalised
from etl.db.backends import mysql
from etl.db.engine import describe, missing_file, open_engine
from etl.errors import ConfigError
from tests.support.command import call, select

SECRET = "hunter2"


def parameters(url: str) -> dict[str, str | int | None]:
    """What libpq is given, without what the program adds."""
    engine = open_engine(normalised(url))
    _, given = engine.dialect.create_connect_args(engine.url)
    given.pop("context", None)
    psycopg.conninfo.make_conninfo(**given)
    return {key: value for key, value in given.items() if value is not None}


def connect_arguments(url: str) -> dict[str, Any]:
    """What PyMySQL is given."""
    engine = open_engine(normalised(url))
    given: dict[str, Any] = {}

    def catch(**arguments: Any) -> None:
        given.update(arguments)
        raise ConnectionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mysql, "connect", catch)
        with pytest.raises(ConnectionError):
            engine.connect()
    return given


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://u:p@h:5433/db", {"user": "u", "password": "p", "host": "h", "port": 5433}),
        ("postgresql+psycopg://u@h/db", {"user": "u", "host": "h"}),
        (" \tpostgresql://u@h/db\r\n", {"user": "u", "host": "h"}),
        ("postgresql://u:p%40s%2Fs%25@h/db", {"user": "u", "password": "p@s/s%", "host": "h"}),
        ("postgresql://u:p@ss@h/db", {"user": "u", "password": "p@ss", "host": "h"}),
        ("postgresql://u:100%@h:/db", {"user": "u", "password": "100%", "host": "h"}),
        ("postgresql://u@%2Fvar%2Frun/db", {"user": "u", "host": "/var/run"}),
        ("postgresql://%2Frun:5433/db", {"host": "/run", "port": "5433"}),
        ("postgresql:///db?host=/var/run", {"host": "/var/run"}),
        ("postgresql://[::1]:5433/db", {"host": "::1", "port": 5433}),
        ("postgresql://[fe80::1%25eth0]/db", {"host": "fe80::1%eth0"}),
        (
            "postgresql://u:p@h1:5432,h2:5433/db?target_session_attrs=read-write",
            {
                "user": "u",
                "password": "p",
                "host": "h1,h2",
                "port": "5432,5433",
                "target_session_attrs": "read-write",
            },
        ),
        (
            "postgres://u:p@h/db?sslmode=require&channel_binding=prefer&options=endpoint%3Dep-cool",
            {
                "user": "u",
                "password": "p",
                "host": "h",
                "sslmode": "require",
                "channel_binding": "prefer",
                "options": "endpoint=ep-cool",
            },
        ),
        (
            "postgres://u.ref:p@h:6543/db",
            {"user": "u.ref", "password": "p", "host": "h", "port": 6543},
        ),
        ("postgres://u%40server@h/db", {"user": "u@server", "host": "h"}),
        ("postgresql://u@/db?host=/cloudsql/p:r:i", {"user": "u", "host": "/cloudsql/p:r:i"}),
        ("postgresql://h1,h2:1/db", {"host": "h1,h2", "port": "5432,1"}),
        ("postgresql://h1,h2/db", {"host": "h1,h2", "port": ","}),
        ("postgresql://[::1]:1,[::2]:2/db", {"host": "::1,::2", "port": "1,2"}),
        ("postgresql:///db?host=h1:1&host=h2:2", {"host": "h1,h2", "port": "1,2"}),
    ],
)
def test_a_postgresql_url(url: str, expected: dict[str, str | int]) -> None:
    """It means to SQLAlchemy what it means to libpq."""
    assert parameters(url) == {"dbname": "db", **expected}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mysql://u:p@h:3307/db", {"user": "u", "password": b"p", "host": "h", "port": 3307}),
        ("mariadb://u@h/db", {"user": "u", "host": "h"}),
        ("mysql+pymysql://u:p%40s%2Fs%25@h/db", {"user": "u", "password": b"p@s/s%", "host": "h"}),
        (
            "mysql://u:p\u00e4ss\u20ac@h/db",
            {"password": "p\u00e4ss\u20ac".encode(), "user": "u", "host": "h"},
        ),
        ("mysql://[::1]:3307/db", {"host": "::1", "port": 3307}),
        ("mysql://u@localhost/db?unix_socket=/run/s", {"unix_socket": "/run/s", "user": "u"}),
        ("mysql://u@/db?socket=/run/s", {"unix_socket": "/run/s", "user": "u"}),
        ("mysql://h/db?ssl-mode=disabled", {"ssl_disabled": True, "host": "h"}),
    ],
)
def test_a_mysql_url(url: str, expected: dict[str, object]) -> None:
    """The driver gets what MySQL's own clients would understand."""
    arguments = connect_arguments(url)
    assert arguments["database"] == "db"
    assert {name: arguments[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("mode", "verify", "hostname"),
    [
        ("REQUIRED", ssl.CERT_NONE, False),
        ("VERIFY_CA", ssl.CERT_REQUIRED, False),
        ("VERIFY_IDENTITY", ssl.CERT_REQUIRED, True),
    ],
)
def test_encryption_to_a_mysql_server(mode: str, verify: ssl.VerifyMode, hostname: bool) -> None:
    """As in MySQL's own clients. Without ssl-mode, it is encrypted if the server can."""
    context = connect_arguments(f"mysql://h/db?ssl-mode={mode}")["ssl"]
    assert (context.verify_mode, context.check_hostname) == (verify, hostname)
    assert "ssl" not in connect_arguments("mysql://h/db")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///linq.db", "linq.db"),
        ("sqlite:////var/lib/linq.db\n", "/var/lib/linq.db"),
        ("sqlite:///my%20data/100%25.db", "my data/100%.db"),
        ("sqlite:///my data.db", "my data.db"),
        ("sqlite:///100%.db", "100%.db"),
        ("sqlite:///./~/linq.db", "./~/linq.db"),
        ("sqlite:///Zoë.db", "Zoë.db"),
    ],
)
def test_a_sqlite_url(url: str, path: str) -> None:
    """Everything after the three slashes is the path, percent-decoded."""
    assert make_url(normalised(url)).database == path
    assert str(missing_file(normalised(url))) == path.removeprefix("./")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///~/linq.db", "a path without ~, which is not expanded"),
        *((f"postgresql://u@h:{port}/db", "a port from 1 to 65535") for port in ("0", "65536")),
        *((f"postgresql://u@h:{port}/db", "a port from 1 to 65535") for port in ("x", "\u0663")),
        *((f"mysql://u@h:{port}/db", "a port from 1 to 65535") for port in ("0", "x")),
        ("postgresql://h1:1,h2:99999/db", "a port from 1 to 65535"),
        ("postgresql:///db?host=h&port=70000", "a port from 1 to 65535"),
        *(
            (
                f"{scheme}://u:{SECRET}{character}x@h/db",
                "a URL whose password has %2F for /, %3F for ? and %40 for @",
            )
            for character in "/?"
            for scheme in ("postgresql", "mysql")
        ),
        *(
            (
                url,
                '"sqlite:///FILE.db", "postgresql://USER@HOST/DATABASE" or '
                '"mysql://USER@HOST/DATABASE"',
            )
            for url in (
                f"mssql://root:{SECRET}@h/db",
                "mysql://h",
                "mysql://h/",
                "mysql://h1,h2/db",
                "jdbc:postgresql://h/db",
                "sqlite:///a%00b.db",
                "sqlite:///a\nb.db",
                "sqlite:///%3Amemory%3A",
                "sqlite:///a%ff.db",
                "sqlite:///a\udcff.db",
                f"postgresql://u:{SECRET}%0A@h/db",
                "postgresql://[::1/db",
                "'sqlite:///linq.db'",
            )
        ),
    ],
)
def test_an_invalid_url(url: str, expected: str) -> None:
    """The error says what is expected; it does not show the URL, which may hold a password."""
    with pytest.raises(ValueError, match=r"^") as caught:
        normalised(url)
    assert type(caught.value) is ValueError
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://h/db?sslmod=require", "libpq does not know the parameter sslmod"),
        ("postgresql://h/db?plugin=x&pool_size=5", "does not know the parameter plugin, pool_size"),
        (f"postgresql://h/db?{SECRET}=x", "libpq does not know the parameter (not shown)"),
        ("postgresql:///db?host=a,b&port=1,2,3", "give each host one port, or none"),
        (f"mysql://h/db?{SECRET}=x", "has no parameters but ssl-ca, ssl-cert, ssl-key, ssl-mode"),
        ("mysql://h/db?ssl-mode=yes", "ssl-mode is one of DISABLED, PREFERRED, REQUIRED"),
        ("mysql://h/db?ssl-ca=/nowhere", "cannot read its ssl-ca, ssl-cert or ssl-key"),
    ],
)
def test_parameters_that_nobody_knows(url: str, says: str) -> None:
    """Exit code 2 with their names, before a connection is tried."""
    with pytest.raises(ConfigError) as caught:
        open_engine(normalised(url))
    assert says in str(caught.value)
    refused = call("status", env={"LINQ_ETL_DATABASE__URL": url})
    assert (refused.code, refused.stdout) == (2, "")
    assert says in refused.stderr
    assert SECRET not in refused.stderr


def test_several_hosts_are_described_without_the_password() -> None:
    """So that a message says where nobody answered."""
    engine = open_engine(normalised(f"postgresql://u:{SECRET}@h1:1,h2:2/db?sslpassword={SECRET}"))
    assert describe(engine) == "postgresql+psycopg://u:***@/db?host=h1%2Ch2&port=1%2C2"


def test_every_command_opens_the_same_file() -> None:
    """Whatever the path has in it."""
    env = {"LINQ_ETL_DATABASE__URL": "sqlite:///my%20data%25.db\n"}
    assert call("db", "upgrade", env=env).code == 0
    assert call("status", env=env).code == 0
    assert select("sqlite:///my data%.db", "SELECT count(*) FROM chats") == [(0,)]
