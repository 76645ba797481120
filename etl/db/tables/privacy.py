"""What is stored of people, and who was forgotten."""

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Integer, Table

from etl.db.tables.base import STATUS_LENGTH, metadata
from etl.db.types import ShortText, UtcDateTime

HASH_LENGTH: Final = 64  # hexadecimal digits

privacy = Table(
    "privacy",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, comment="Always 1."),
    Column(
        "participants",
        ShortText(STATUS_LENGTH),
        nullable=False,
        comment="How participants are stored: plain, hashed or dropped.",
    ),
    Column(
        "key_fingerprint",
        ShortText(HASH_LENGTH),
        comment="Hash of the privacy key, from which the key cannot be derived. Null if none was "
        "needed yet.",
    ),
    Column(
        "generation",
        BigInteger,
        nullable=False,
        comment="How often people were forgotten, so that a run in progress notices it.",
    ),
    comment="Internal: what is stored of people. Without a row, participants are plain.",
)

forgotten = Table(
    "forgotten",
    metadata,
    Column(
        "mark",
        ShortText(HASH_LENGTH),
        primary_key=True,
        comment="Keyed hash of a participant who was forgotten.",
    ),
    Column("forgotten_at", UtcDateTime, nullable=False, comment="When."),
    comment="Internal: people whom the command forget erased, and whom no sync stores again.",
)

chat_name_hashes = Table(
    "chat_name_hashes",
    metadata,
    Column("chat_id", BigInteger, primary_key=True, autoincrement=False, comment="The chat."),
    Column(
        "name_hash",
        BigInteger,
        primary_key=True,
        autoincrement=False,
        index=True,
        comment="Keyed hash of the name of a one-to-one chat, or of a part of a group's name.",
    ),
    Column("is_group", Boolean, comment="Whether it is a part of a group's name."),
    sqlite_with_rowid=False,
    comment="Internal: where participants are hashed, tells whether a group's name holds the name "
    "of a person.",
)
