"""Which tests run: on one database only, or not without a program that is missing here."""

import os
from typing import NoReturn

import pytest

only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
only_postgres = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
only_servers = pytest.mark.parametrize("database_url", ["postgresql", "mysql"], indirect=True)
only_mysql = pytest.mark.parametrize("database_url", ["mysql"], indirect=True)
slow_on_mysql = pytest.mark.parametrize(
    "database_url",
    ["sqlite", "postgresql", pytest.param("mysql", marks=pytest.mark.slow)],
    indirect=True,
)


def cannot_run(reason: str) -> NoReturn:
    """Skip the test; in CI, where nothing may be missing, fail it."""
    stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    stop(reason)
