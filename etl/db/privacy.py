"""How the database holds participants, and whom it has forgotten."""

from typing import NamedTuple

from sqlalchemy import Connection, select

from etl.config import Participants
from etl.db.backends import backend
from etl.db.tables import chats, forgotten, phone_numbers, privacy, rejected_records
from etl.errors import ConfigError

_ROW = 1  # the only one
_NEW_DATABASE = "or use a new database"


class PrivacyState(NamedTuple):
    """How participants are stored, by which key, and how often people were forgotten."""

    participants: str = "plain"
    key_fingerprint: str | None = None
    generation: int = 0

    @property
    def needs_key(self) -> bool:
        return self.participants == "hashed" or self.generation > 0


def read_state(connection: Connection) -> PrivacyState:
    """The state; that of a database without a row is the default."""
    columns = (privacy.c[name] for name in PrivacyState._fields)
    row = connection.execute(select(*columns).where(privacy.c.id == _ROW)).first()
    return PrivacyState(*row) if row else PrivacyState()


def lock_state(connection: Connection) -> None:
    """End this transaction if another node of a cluster changes the state meanwhile."""
    backend(connection.dialect).lock_rows(connection, privacy, [_ROW])


def write_state(connection: Connection, state: PrivacyState) -> None:
    """Store the state."""
    names = ("id", *PrivacyState._fields)
    backend(connection.dialect).upsert_rows(connection, privacy, names, [(_ROW, *state)])


def read_forgotten(connection: Connection) -> frozenset[str]:
    """The marks of all who were forgotten."""
    return frozenset(connection.execute(select(forgotten.c.mark)).scalars())


def read_own_numbers(connection: Connection) -> frozenset[str]:
    """Every phone number that was ever configured."""
    return frozenset(connection.execute(select(phone_numbers.c.phone_number)).scalars())


def agreed_state(
    connection: Connection, participants: Participants, fingerprint: str | None
) -> PrivacyState:
    """The state to go on with, by the configured mode and key.

    Raises ConfigError if the database was filled by others, or if a key is missing.
    """
    stored = read_state(connection)
    is_filled = any(
        connection.execute(select(table.c.id).limit(1)).first()
        for table in (chats, rejected_records)
    )
    if is_filled and stored.participants != participants:
        raise ConfigError(
            f"privacy.participants is {participants}, but this database was filled with "
            f"{stored.participants} participants: set it to {stored.participants}, {_NEW_DATABASE}."
        )
    wanted = stored._replace(participants=participants)
    if not wanted.needs_key:
        return wanted._replace(key_fingerprint=None)
    if fingerprint is None:
        raise ConfigError(
            "privacy.key_file: there is no key, but people were forgotten in this database: set "
            f"$LINQ_ETL_PRIVACY_KEY or privacy.key_file to its key, {_NEW_DATABASE}."
        )
    is_used = stored.generation > 0 or (is_filled and stored.needs_key)
    if is_used and fingerprint != stored.key_fingerprint:
        raise ConfigError(
            "The privacy key is not the one that this database was filled with: set "
            f"$LINQ_ETL_PRIVACY_KEY or privacy.key_file to that one, {_NEW_DATABASE}."
        )
    return wanted._replace(key_fingerprint=fingerprint)
