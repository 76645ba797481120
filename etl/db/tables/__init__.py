"""The tables, and the values of their status columns.

The comments are the data dictionary that analysts read in the database and in the documentation.
"""

from etl.db.tables.base import REVISION, VERSION_TABLE, is_internal, metadata
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
from etl.db.tables.quick import (
    CHANGE_KINDS,
    ChangeKind,
    ListOrder,
    list_orders,
    list_walks,
    quick_recall,
)
from etl.db.tables.runs import (
    COUNTS,
    FULL,
    Completeness,
    Mode,
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
    "CHANGE_KINDS",
    "COUNTS",
    "FULL",
    "REVISION",
    "VERSION_TABLE",
    "ChangeKind",
    "Completeness",
    "EventKind",
    "ListOrder",
    "Mode",
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
    "is_internal",
    "list_orders",
    "list_walks",
    "metadata",
    "number_leases",
    "number_status",
    "phone_numbers",
    "privacy",
    "quick_recall",
    "rejected_records",
    "run_fences",
    "sync_run_numbers",
    "sync_runs",
    "views",
]
