"""What full walks and quick readings teach about the order of a number's list."""

from typing import Final, Literal, get_args

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Integer, Table

from etl.db.tables.base import NUMBER_LENGTH, STATUS_LENGTH, metadata
from etl.db.tables.chats import phone_numbers
from etl.db.types import BigKey, JsonText, LongText, ShortText, UtcDateTime

ListOrder = Literal["recency", "id", "id-desc", "unknown"]
ChangeKind = Literal["messages", "new", "names", "participants"]
CHANGE_KINDS: Final[tuple[ChangeKind, ...]] = get_args(ChangeKind)

_NAMES: Final = {
    "messages": "chats with another message count",
    "new": "new chats",
    "names": "renamed chats",
    "participants": "chats with other participants",
}


def _number(*, primary_key: bool) -> Column[str]:
    key = ForeignKey(phone_numbers.c.phone_number)
    comment = "The configured number."
    return Column(
        "phone_number", ShortText(NUMBER_LENGTH), key, primary_key=primary_key, comment=comment
    )


def _run() -> Column[int]:
    return Column(
        "run_id",
        BigKey,
        primary_key=True,
        autoincrement=False,
        comment="The run of the full walk.",
    )


list_orders = Table(
    "list_orders",
    metadata,
    _number(primary_key=True),
    Column(
        "list_order",
        ShortText(STATUS_LENGTH),
        nullable=False,
        comment="How the API orders the list, as measured: recency, id, id-desc or unknown.",
    ),
    Column(
        "quick_off",
        LongText,
        comment="Why quick syncs read the whole list. Null if they read only where changes are "
        "likely.",
    ),
    Column(
        "fresh_as_of",
        UtcDateTime,
        comment="When the last reading began that finds the changes: a full walk, or a quick "
        "reading of a list whose quick readings are known to find them.",
    ),
    Column("walk_run_id", BigKey, nullable=False, comment="The run of the last full walk."),
    Column("walked_at", UtcDateTime, nullable=False, comment="When the last full walk ended."),
    Column(
        "quick_run_id",
        BigKey,
        comment="The run of the last quick reading. Null if there was none since the last full "
        "walk.",
    ),
    Column(
        "quick_runs",
        Integer,
        nullable=False,
        comment="Quick readings since the last full walk.",
    ),
    Column(
        "partial_runs",
        Integer,
        nullable=False,
        comment="Quick readings among them that a budget ended.",
    ),
    Column("total_count", BigInteger, comment="The API's count of chats in the last reading."),
    Column("per_page", Integer, nullable=False, comment="Chats on a full page of the list."),
    Column(
        "head_read_at",
        UtcDateTime,
        nullable=False,
        comment="When the first page of the list was last read.",
    ),
    Column(
        "caught",
        JsonText,
        nullable=False,
        comment="Changes that quick readings found since the last full walk, as JSON: by kind, how "
        "many by the rule and how many only by an audit page.",
    ),
    Column(
        "page_reads",
        JsonText,
        nullable=False,
        comment="When quick readings with a budget last read each page, as a JSON list of seconds "
        "since 1970, null where none did since the last full walk. By id-desc the last page is "
        "the first entry.",
    ),
    comment="Internal: what quick syncs know of each number's list.",
)

list_walks = Table(
    "list_walks",
    metadata,
    _number(primary_key=True),
    _run(),
    Column("pages", BigInteger, nullable=False, comment="Pages of the list."),
    Column("total_count", BigInteger, comment="The API's count of chats in the list."),
    Column(
        "pairs", BigInteger, nullable=False, comment="Pairs of neighbours in the list, as read."
    ),
    Column(
        "ascending",
        BigInteger,
        nullable=False,
        comment="Pairs whose second chat has the higher id: nearly all in a list by id, nearly "
        "none by id-desc, about half otherwise.",
    ),
    Column(
        "changed",
        BigInteger,
        nullable=False,
        comment="Chats that were new or had changed since they were last read.",
    ),
    Column(
        "deepest_changed",
        BigInteger,
        comment="The last page with a changed chat. Null if there was none.",
    ),
    Column("deepest_new", BigInteger, comment="The last page with a new chat. Null if none."),
    Column(
        "shares",
        JsonText,
        nullable=False,
        comment="Changed chats by place, as a JSON list: one count for each twentieth of the list.",
    ),
    *(
        column
        for kind in CHANGE_KINDS
        for column in (
            Column(
                f"{kind}_hits",
                BigInteger,
                nullable=False,
                comment=f"Of the {_NAMES[kind]} since the full walk before: those that quick "
                "readings found, or one would have found instead of this walk.",
            ),
            Column(
                f"{kind}_misses",
                BigInteger,
                nullable=False,
                comment=f"The other {_NAMES[kind]}.",
            ),
        )
    ),
    comment="Where each full walk found the changed chats of a number's list. Walks without "
    "changes have no row. Only the newest are kept, as many as decide on quick readings.",
)

quick_recall = Table(
    "quick_recall",
    metadata,
    _run(),
    _number(primary_key=True),
    Column(
        "kind",
        ShortText(STATUS_LENGTH),
        primary_key=True,
        comment="messages, new, names or participants: what had changed.",
    ),
    Column(
        "hits",
        BigInteger,
        nullable=False,
        comment="Changed chats that quick readings found, or would have found, in the walks that "
        "are the evidence: this one and those before it.",
    ),
    Column(
        "misses",
        BigInteger,
        nullable=False,
        comment="Changed chats that quick readings missed, or would have missed, in these walks.",
    ),
    Column(
        "lower_bound",
        Double,
        nullable=False,
        comment="The exact one-sided 95 % lower bound (Clopper-Pearson) of the share of hits.",
    ),
    comment="What share of the changes quick readings find, as each full walk measured it. Message "
    "counts decide whether quick readings are used.",
)
