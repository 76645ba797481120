"""Agree with the database on what is stored of people, also while some of them are forgotten."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial

from sqlalchemy import Connection

from etl.api.privacy import Privacy
from etl.config import Config
from etl.db.privacy import (
    agreed_state,
    lock_state,
    read_forgotten,
    read_own_numbers,
    read_state,
    write_state,
)
from etl.db.store.batch import ObservedPage
from etl.db.transactions import Transactions
from etl.errors import ConfigError


def read_privacy(connection: Connection, config: Config, numbers: Iterable[str] = ()) -> Privacy:
    """What is stored of people; our own numbers are the configured ones, past ones and `numbers`.

    Raises ConfigError if the database was filled otherwise.
    """
    configured = {number.e164 for number in config.sync.phone_numbers}
    own = read_own_numbers(connection) | configured | {*numbers}
    privacy = Privacy(config.privacy.participants, config.privacy_key, own)
    state = agreed_state(connection, privacy.participants, privacy.fingerprint)
    privacy.forgotten, privacy.generation = read_forgotten(connection), state.generation
    return privacy


async def agreed(
    transactions: Transactions, config: Config, numbers: Collection[str], *, writes: bool
) -> Privacy:
    """As read_privacy; if anything is written, the database notes what it is filled with."""
    read = partial(read_privacy, config=config, numbers=numbers)
    if not writes:
        return await transactions.read(read)
    return await transactions.write(lambda c: _agree(c, read(c)))


def _agree(connection: Connection, privacy: Privacy) -> Privacy:
    state = agreed_state(connection, privacy.participants, privacy.fingerprint)
    if state != read_state(connection):
        write_state(connection, state)
    return privacy


def keep_to(
    connection: Connection, privacy: Privacy, pages: Sequence[ObservedPage]
) -> Sequence[ObservedPage]:
    """The pages without people who were forgotten since the run began.

    The caller holds the writers' lock, so that nobody is forgotten meanwhile. Raises ConfigError if
    this run can no longer tell who that is.
    """
    lock_state(connection)
    state = read_state(connection)
    is_other_key = privacy.participants == "hashed" and state.key_fingerprint != privacy.fingerprint
    if state.participants != privacy.participants or is_other_key:
        raise ConfigError(
            "Another run fills this database with another privacy.participants or another key: "
            "give both runs the same."
        )
    if state.generation != privacy.generation:
        agreed_state(connection, privacy.participants, privacy.fingerprint)
        privacy.forgotten, privacy.generation = read_forgotten(connection), state.generation
        privacy.is_outdated = True
    if not privacy.is_outdated:
        return pages
    return [replace(page, page=privacy.without_forgotten(page.page)) for page in pages]
