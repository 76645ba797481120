"""The run log, what the API sent that cannot be stored, and what runs need among themselves."""

from typing import Final, Literal

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, Integer, Table

from etl.db.tables.base import NUMBER_LENGTH, STATUS_LENGTH, metadata
from etl.db.tables.chats import phone_numbers
from etl.db.types import BigKey, JsonText, LongText, ShortText, UtcDateTime

Status = Literal["running", "succeeded", "partial", "failed", "interrupted", "abandoned"]
Mode = Literal["full", "quick", "dry-run"]
Completeness = Literal["proved", "consistent", "unproved", "quick"]
# Of a reading of the whole list.
FULL: Final[tuple[Completeness, ...]] = ("proved", "consistent", "unproved")

COUNTS: Final = {
    "requests": "HTTP requests sent, including retries.",
    "retries": "Requests repeated after a transient failure.",
    "throttled": "429 responses: the API asked for fewer requests.",
    "pages": "List pages stored.",
    "chats_seen": "Chats on those pages. A chat that was read twice counts twice.",
    "chats_inserted": "Chats stored for the first time.",
    "chats_updated": "Chats whose row changed.",
    "chats_unchanged": "Chats read without a change. Nothing was written for them.",
    "chats_removed": "Chats marked as removed.",
    "handles_inserted": "Participants stored for the first time.",
    "handles_updated": "Participants whose row changed, including those who came back.",
    "handles_removed": "Participants marked as removed.",
    "rejected": "Records that could not be stored. See rejected_records.",
    "texts_cleaned": "Texts in which NUL or a lone surrogate was replaced by U+FFFD.",
}


def _counts() -> list[Column[int]]:
    return [
        Column(name, BigInteger, nullable=False, server_default="0", comment=comment)
        for name, comment in COUNTS.items()
    ]


sync_runs = Table(
    "sync_runs",
    metadata,
    Column("id", BigKey, primary_key=True, comment="Ascending: a later run has a higher id."),
    Column("command", LongText, nullable=False, comment="The command: sync or backfill."),
    Column(
        "mode",
        ShortText(STATUS_LENGTH),
        nullable=False,
        server_default="full",
        comment="full: lists are read to their end, or as far as a backfill was asked to. quick: "
        "read only where changes are likely. dry-run: as full, but no data is written; the counts "
        "are what a sync would have written.",
    ),
    Column(
        "status",
        ShortText(STATUS_LENGTH),
        nullable=False,
        index=True,
        comment="running, succeeded, partial, failed, interrupted (by a signal) or abandoned "
        "(its process died).",
    ),
    Column("started_at", UtcDateTime, nullable=False, comment="Before the first request."),
    Column("finished_at", UtcDateTime, comment="Null while the run is in progress."),
    Column("version", LongText, nullable=False, comment="Version of linq-etl."),
    Column("host", LongText, nullable=False, comment="Name of the machine."),
    Column(
        "owner",
        LongText,
        nullable=False,
        comment="Internal: identity of the process, so that a run on the same machine can detect "
        "its death.",
    ),
    Column(
        "lease_expires_at",
        UtcDateTime,
        nullable=False,
        comment="Internal: when the run counts as dead, unless its heartbeat renews this time.",
    ),
    Column("numbers_total", Integer, nullable=False, comment="Phone numbers to sync."),
    Column("numbers_failed", Integer, nullable=False, comment="Phone numbers that failed."),
    *_counts(),
    Column(
        "error_kind",
        LongText,
        comment="The kind of error: config, refused, token, unavailable, throttled, database, "
        "schema, busy, lease_lost, interrupted or unexpected.",
    ),
    Column("error_detail", LongText, comment="The error as a sentence."),
    comment="The run log: one row per run, written before its first request.",
)

sync_run_numbers = Table(
    "sync_run_numbers",
    metadata,
    Column(
        "run_id",
        BigKey,
        ForeignKey(sync_runs.c.id),
        primary_key=True,
        autoincrement=False,
        comment="The run.",
    ),
    Column(
        "phone_number",
        ShortText(NUMBER_LENGTH),
        ForeignKey(phone_numbers.c.phone_number),
        primary_key=True,
        comment="The configured number.",
    ),
    Column(
        "status",
        ShortText(STATUS_LENGTH),
        nullable=False,
        comment="As in sync_runs, for this number.",
    ),
    Column("finished_at", UtcDateTime, comment="Null while the number is being synced."),
    Column(
        "completeness",
        ShortText(STATUS_LENGTH),
        comment="proved: exactly the list as it was when the walk ended. consistent: complete, "
        "unless chats came and went in pairs between the same two requests. unproved: neither; see "
        "reason. quick: only where changes are likely. Null if the list was not read, or if the "
        "budget ended the reading.",
    ),
    Column(
        "reason",
        LongText,
        comment="Why the list is unproved or was not read to its end, why removals were withheld, "
        "or why a quick sync read all of it. Begins with budget if the requests ran out.",
    ),
    Column("first_page", BigInteger, comment="The first page of a backfill. Null for a sync."),
    Column("passes", Integer, nullable=False, server_default="0", comment="Passes over the list."),
    Column("total_count", BigInteger, comment="The API's last count of chats in the list."),
    Column("first_total_count", BigInteger, comment="The API's first count of chats in the list."),
    Column("distinct_ids", BigInteger, comment="Different chats seen in the last pass."),
    Column("duplicates", BigInteger, comment="Chats read again, over all passes."),
    Column("shrinkages", BigInteger, comment="How often the API's count dropped during the walk."),
    Column(
        "missing",
        BigInteger,
        comment="Stored chats that the walk did not see and whose removal is not confirmed. Null "
        "if the walk did not reach the list's end.",
    ),
    *_counts(),
    Column(
        "quick_hits",
        BigInteger,
        comment="As in quick_recall, for message counts. Null unless the whole list was read.",
    ),
    Column(
        "quick_misses",
        BigInteger,
        comment="As in quick_recall, for message counts. Null unless the whole list was read.",
    ),
    Column(
        "quick_recall_lower",
        Double,
        comment="The lower bound in quick_recall, for message counts: at least this share of the "
        "changes is found by quick readings. Null unless the whole list was read.",
    ),
    Column("error_kind", LongText, comment="As in sync_runs, for this number."),
    Column("error_detail", LongText, comment="The error as a sentence."),
    Index(None, "phone_number", "run_id"),
    Index(None, "phone_number", "completeness", "run_id"),
    comment="The run log per phone number, and how completely its list was read.",
)

rejected_records = Table(
    "rejected_records",
    metadata,
    Column("id", BigKey, primary_key=True, comment="Ascending in the order of storing."),
    Column("run_id", BigKey, ForeignKey(sync_runs.c.id), nullable=False, comment="Its run."),
    Column(
        "phone_number",
        ShortText(NUMBER_LENGTH),
        comment="The configured number whose list held the record.",
    ),
    Column("page", BigInteger, comment="Its page of the list. Null if it was requested by its id."),
    Column("reason", LongText, nullable=False, comment="What is wrong with the record, and where."),
    Column(
        "payload",
        JsonText,
        comment="The record as the API sent it, as JSON. Where participants are hashed or dropped, "
        "or if it names someone who was forgotten, without its texts and numbers.",
    ),
    Column(
        "digest",
        BigInteger,
        nullable=False,
        comment="Internal: hash of the record, which is stored once per run.",
    ),
    Index(None, "run_id", "digest"),
    comment="Records from the API that could not be stored, at most 10,000 per run.",
)

number_leases = Table(
    "number_leases",
    metadata,
    Column(
        "phone_number",
        ShortText(NUMBER_LENGTH),
        ForeignKey(phone_numbers.c.phone_number),
        primary_key=True,
        comment="The configured number.",
    ),
    Column(
        "run_id",
        BigKey,
        ForeignKey(sync_runs.c.id),
        nullable=False,
        comment="The only run that may write this number, as long as that run is alive.",
    ),
    comment="Internal: which run holds which number.",
)

# No foreign key to sync_runs: a lock on the run's row would make its heartbeat wait for its batch.
run_fences = Table(
    "run_fences",
    metadata,
    Column(
        "run_id",
        BigKey,
        primary_key=True,
        autoincrement=False,
        comment="A run that is not closed; 0 is the lock that lets one run write at a time.",
    ),
    Column("fence", BigInteger, nullable=False, comment="Batches that the run has committed."),
    comment="Internal: each batch moves its run's fence, which fails once the run is closed.",
)

api_pace = Table(
    "api_pace",
    metadata,
    Column(
        "fingerprint",
        ShortText(32),
        primary_key=True,
        comment="Hash of api.base_url and the token, from which the token cannot be derived.",
    ),
    Column(
        "requests_per_second",
        Double,
        comment="What the API allowed the token at the end of a run. Null if it never throttled.",
    ),
    Column("observed_at", UtcDateTime, comment="The end of the last run that observed the rate."),
    Column(
        "numbers_listed_at",
        UtcDateTime,
        comment="When the API was last asked which numbers the token reaches.",
    ),
    comment="Internal: what is known of a token. The next run begins with its rate.",
)
