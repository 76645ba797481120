"""The tables, and the values of their status columns.

The comments are the data dictionary that analysts read in the database and in the documentation.
"""

from etl.db.tables.base import REVISION, VERSION_TABLE, metadata
from etl.db.tables.chats import (
    EventKind,
    chat_events,
    chat_handles,
    chat_message_counts,
    chat_phone_numbers,
    chats,
    phone_numbers,
)
from etl.db.tables.privacy import chat_name_hashes, forgotten, privacy
from etl.db.tables.runs import (
    COUNTS,
    Completeness,
    Status,
    api_pace,
    number_leases,
    rejected_records,
    run_fences,
    sync_run_numbers,
    sync_runs,
)
from etl.db.tables.views import data_dictionary, number_status, views

__all__ = [
    "COUNTS",
    "REVISION",
    "VERSION_TABLE",
    "Completeness",
    "EventKind",
    "Status",
    "api_pace",
    "chat_events",
    "chat_handles",
    "chat_message_counts",
    "chat_name_hashes",
    "chat_phone_numbers",
    "chats",
    "data_dictionary",
    "forgotten",
    "metadata",
    "number_leases",
    "number_status",
    "phone_numbers",
    "privacy",
    "rejected_records",
    "run_fences",
    "sync_run_numbers",
    "sync_runs",
    "views",
]
