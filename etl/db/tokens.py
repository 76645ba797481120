"""What is known of each token from one run to the next: its rate, and when it listed its numbers.

A token is stored as a hash. Tokens are random and long, so that trying all of them is hopeless.
"""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Final

from sqlalchemy import Connection, insert, or_, select, update

from etl.config import Token
from etl.db.backends import backend
from etl.db.tables import api_pace, phone_numbers

LISTED_EVERY: Final = timedelta(hours=1)
LONGEST_USE: Final = timedelta(days=7)  # the provider may have changed the rate since
_numbers = phone_numbers.c


def read_rates(
    connection: Connection,
    base_url: str,
    tokens: Collection[Token],
    now: datetime,
    *,
    within: timedelta = LONGEST_USE,
) -> dict[Token, float]:
    """Requests a second for each of the tokens that a run was throttled with, within a week."""
    known = {
        row.fingerprint: row.requests_per_second
        for row in connection.execute(select(api_pace))
        if row.observed_at and now - within < row.observed_at
    }
    named = {token: _fingerprint(base_url, token) for token in tokens}
    return {token: known[name] for token, name in named.items() if name in known}


def write_rates(
    connection: Connection, base_url: str, rates: Mapping[Token, float], now: datetime
) -> None:
    """Store these rates in the place of those that are known of the tokens."""
    time = backend(connection.dialect).encoders().time(now)
    # In the order of keys, so that two runs that end together do not deadlock.
    rows = sorted((_fingerprint(base_url, token), rate, time) for token, rate in rates.items())
    names = ("fingerprint", "requests_per_second", "observed_at")
    backend(connection.dialect).upsert_rows(connection, api_pace, names, rows)


def last_listing(connection: Connection, base_url: str, token: Token) -> datetime | None:
    """When the token was last asked which numbers it reaches."""
    mine = api_pace.c.fingerprint == _fingerprint(base_url, token)
    return connection.execute(select(api_pace.c.numbers_listed_at).where(mine)).scalar()


def begin_listing(
    connection: Connection, base_url: str, token: Token, *, since: datetime, until: datetime
) -> bool:
    """Record that this run asks now and expects the answer `until` then: a time ahead of the clock.

    False if another run has asked `since` then.
    """
    mine = api_pace.c.fingerprint == _fingerprint(base_url, token)
    found = connection.execute(select(api_pace.c.numbers_listed_at).where(mine)).first()
    if found is None:
        row = {"fingerprint": _fingerprint(base_url, token), "numbers_listed_at": until}
        connection.execute(insert(api_pace), row)
        return True
    due = api_pace.c.numbers_listed_at
    is_due = or_(due.is_(None), due <= since, due > until)
    begun = connection.execute(update(api_pace).where(mine, is_due).values(numbers_listed_at=until))
    return begun.rowcount > 0 or found.numbers_listed_at == until  # whose commit was not answered


def note_listing(connection: Connection, base_url: str, token: Token, now: datetime) -> None:
    """Record that the token was asked now which numbers it reaches."""
    database = backend(connection.dialect)
    row = (_fingerprint(base_url, token), database.encoders().time(now))
    database.upsert_rows(connection, api_pace, ("fingerprint", "numbers_listed_at"), [row])


def unreached_numbers(connection: Connection) -> frozenset[str]:
    """The configured numbers that their token does not reach, as far as is known."""
    unreached = select(_numbers.phone_number).where(_numbers.unreached_since.is_not(None))
    return frozenset(connection.execute(unreached).scalars())


def note_unreached(
    connection: Connection, numbers: Collection[str], unreached: Collection[str], now: datetime
) -> None:
    """Mark the unreached ones of a token's numbers, and the others no more."""
    marked, others = sorted(unreached), sorted(set(numbers) - set(unreached))
    mark = update(phone_numbers).where(
        _numbers.phone_number.in_(marked), _numbers.unreached_since.is_(None)
    )
    connection.execute(mark.values(unreached_since=now))
    unmark = update(phone_numbers).where(
        _numbers.phone_number.in_(others), _numbers.unreached_since.is_not(None)
    )
    connection.execute(unmark.values(unreached_since=None))


def _fingerprint(base_url: str, token: Token) -> str:
    return blake2b(f"{base_url}\n{token.value}".encode(), digest_size=16).hexdigest()
