"""The parameters of a MySQL URL -> the driver's arguments.

The names are those of MySQL's own clients, with a hyphen or an underscore: `ssl-mode`, `ssl-ca`,
`ssl-cert`, `ssl-key`, and `socket` or `unix_socket`. Without ssl-mode, the connection is encrypted
if the server can.
"""

import ssl
from functools import cache
from typing import Any, Final

import pymysql
from sqlalchemy.engine import URL

from etl.errors import ConfigError, DatabaseError

_MODES: Final = ("DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY")
_NAMES: Final = {"ssl_mode", "ssl_ca", "ssl_cert", "ssl_key", "unix_socket"}


class _Connection(pymysql.Connection):
    """Encrypts without ssl-mode, too, but does not load the system's certificates for that.

    PyMySQL loads them for each connection, which takes 50 ms, and checks nothing by them.
    """

    def _create_ssl_ctx(self, sslp: Any) -> ssl.SSLContext:
        return sslp if isinstance(sslp, ssl.SSLContext) else _unchecked()


@cache
def _unchecked() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def connect(**arguments: Any) -> "pymysql.Connection[Any]":
    """Connect. Raises DatabaseError for a kind of password that needs another package."""
    try:
        return _Connection(**arguments)
    except RuntimeError as error:  # PyMySQL names the package and the kind.
        raise DatabaseError(f"cannot log in to the database: {error}") from None


def connection_arguments(url: URL) -> dict[str, Any]:
    """PyMySQL's arguments. Raises ConfigError for a parameter that is unknown or wrong."""
    given = {name.replace("-", "_"): str(value) for name, value in url.query.items()}
    if "socket" in given:
        given["unix_socket"] = given.pop("socket")
    if given.keys() - _NAMES:
        known = ", ".join(sorted(name.replace("ssl_", "ssl-") for name in _NAMES))
        raise ConfigError(f"database.url: a MySQL URL has no parameters but {known}")
    sockets = {"unix_socket": given["unix_socket"]} if "unix_socket" in given else {}
    return sockets | _tls(given)


def _tls(given: dict[str, str]) -> dict[str, Any]:
    mode = given.get("ssl_mode", "VERIFY_CA" if "ssl_ca" in given else "PREFERRED").upper()
    if mode not in _MODES:
        raise ConfigError(f"database.url: ssl-mode is one of {', '.join(_MODES)}")
    if mode == "DISABLED":
        return {"ssl_disabled": True}
    if mode == "PREFERRED" and "ssl_cert" not in given:
        return {}
    return {"ssl": _context(given, mode)}


def _context(given: dict[str, str], mode: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=given.get("ssl_ca"))
        # The certificates that a MySQL server makes for itself do not pass the strict checks.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.check_hostname = mode == "VERIFY_IDENTITY"
        if not mode.startswith("VERIFY"):
            context.verify_mode = ssl.CERT_NONE
        if "ssl_cert" in given:
            context.load_cert_chain(given["ssl_cert"], given.get("ssl_key"))
    except OSError as error:  # SSLError is one.
        raise ConfigError(
            f"database.url: cannot read its ssl-ca, ssl-cert or ssl-key: {error.strerror}"
        ) from None
    return context
