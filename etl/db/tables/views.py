"""The views."""

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, MetaData, Table, Text

from etl.db.types import UtcDateTime

# By name. The migrations hold their SQL.
VIEWS: Final = {
    "messages_per_day": "Messages gained per configured number and UTC day. The count at a "
    "number's first load is not a gain.",
    "current_participants": "Current participants of current chats, for each number that lists "
    "the chat. Nothing marked as removed.",
    "number_status": "For each number ever configured: its last good sync, its last attempt and "
    "error, and since when it fails. Attempts that found the number busy do not count.",
}

# Not among the tables that Alembic compares.
number_status = Table(
    "number_status",
    MetaData(),
    Column("phone_number", Text),
    Column("label", Text),
    Column("run_id", BigInteger),
    Column("last_good_sync", UtcDateTime),
    Column("completeness", Text),
    Column("reason", Text),
    Column("total_count", BigInteger),
    Column("last_attempt_at", UtcDateTime),
    Column("last_status", Text),
    Column("last_error_kind", Text),
    Column("last_error_detail", Text),
    Column("failing_since", UtcDateTime),
    Column("always_empty", Boolean),
)
