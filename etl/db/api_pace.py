"""The rate that the API allows each token, from one run to the next."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Final

from sqlalchemy import Connection, select

from etl.config import Token
from etl.db.backends import backend
from etl.db.tables import api_pace

LONGEST_USE: Final = timedelta(days=7)  # the provider may have changed the limit since


def read_rates(
    connection: Connection, base_url: str, tokens: Collection[Token], now: datetime
) -> dict[Token, float]:
    """Requests a second for each of the tokens that a run of the last week was throttled with."""
    known = {
        row.fingerprint: row.requests_per_second
        for row in connection.execute(select(api_pace))
        if now - LONGEST_USE < row.observed_at
    }
    named = {token: _fingerprint(base_url, token) for token in tokens}
    return {token: known[name] for token, name in named.items() if name in known}


def write_rates(
    connection: Connection, base_url: str, rates: Mapping[Token, float], now: datetime
) -> None:
    """Store these rates in the place of those that are known of the tokens."""
    if not rates:
        return
    database = backend(connection.dialect)
    time = database.encoders().time(now)
    # In the order of keys, so that two runs that end together do not deadlock.
    rows = sorted((_fingerprint(base_url, token), rate, time) for token, rate in rates.items())
    database.upsert_rows(connection, api_pace, [*api_pace.c.keys()], rows)


def _fingerprint(base_url: str, token: Token) -> str:
    """Tokens are random and long, so that their hash cannot be reversed by trying them."""
    return blake2b(f"{base_url}\n{token.value}".encode(), digest_size=16).hexdigest()
