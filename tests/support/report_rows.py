"""Months of a made-up run log and history, for what `report` shows."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Table, insert

from etl.db.engine import writing
from etl.db.tables import (
    chat_events,
    chat_handles,
    chat_message_counts,
    chat_phone_numbers,
    chats,
    phone_numbers,
    rejected_records,
    sync_run_numbers,
    sync_runs,
)
from tests.support.builders import Row

DAY = timedelta(days=1)
_AWAY = {"error_kind": "unavailable", "error_detail": "Cannot reach the API. Try again later."}


def number(index: int) -> str:
    return f"+1312555{index:04}"


def fill(
    engine: Engine, now: datetime, *, numbers: int, days: int, labels: Sequence[str | None] = ()
) -> None:
    """Two runs a day, the last one an hour ago; each number has a chat that gains each day.

    Every 40th number fails since yesterday, every 7th list moved. Each number has the label at its
    place, if any.
    """
    began = now - days * DAY
    texts = [*labels, *([None] * (numbers - len(labels)))]
    rows: dict[Table, Iterator[Row]] = {
        phone_numbers: _numbers(texts, began),
        chats: _chats(numbers, began),
        chat_handles: _handles(numbers, began),
        chat_phone_numbers: _links(numbers, began),
        chat_message_counts: _counts(numbers, now, days),
        chat_events: _events(numbers, now, days),
        sync_runs: _runs(numbers, now, days),
        sync_run_numbers: _entries(numbers, now, days),
        rejected_records: _rejected(now, days),
    }
    with writing(engine) as connection:
        for table, made in rows.items():
            connection.execute(insert(table), [*made])


def _numbers(labels: Sequence[str | None], began: datetime) -> Iterator[Row]:
    for index, label in enumerate(labels):
        times = {"first_seen_at": began, "first_loaded_at": began}
        yield {"phone_number": number(index), "label": label, **times}


def _chats(numbers: int, began: datetime) -> Iterator[Row]:
    for index in range(numbers):
        said = {"display_name": f"SecretChat {index}", "service": "iMessage", "is_group": False}
        yield {"id": index, **said, "message_count": 1, "first_seen_at": began, "changed_at": began}


def _handles(numbers: int, began: datetime) -> Iterator[Row]:
    for index in range(numbers):
        key = {"chat_id": index, "id": index, "phone_number": f"secret{index}@example.org"}
        yield {**key, "first_seen_at": began, "changed_at": began}


def _links(numbers: int, began: datetime) -> Iterator[Row]:
    for index in range(numbers):
        yield {"phone_number": number(index), "chat_id": index, "first_seen_at": began}


def _counts(numbers: int, now: datetime, days: int) -> Iterator[Row]:
    for run, at in _days(now, days):
        for index in range(numbers):
            gained = 1 + (index * 7 + run * 3) % 90
            at_most = {"gained": gained, "gained_since": at - DAY, "spread_days": 2}
            key = {"chat_id": index, "observed_at": at, "observed_on": at.astimezone(UTC).date()}
            yield {**key, "message_count": run * 100, "run_id": run, **at_most}


def _events(numbers: int, now: datetime, days: int) -> Iterator[Row]:
    kinds = ("created", "renamed", "joined", "left", "joined")
    for run, at in _days(now, days):
        happened = {"run_id": run, "observed_at": at, "chat_id": run % numbers}
        yield {**happened, "kind": kinds[run % len(kinds)], "new_value": "SecretChat"}


def _runs(numbers: int, now: datetime, days: int) -> Iterator[Row]:
    for run, at in _days(now, days):
        for half in (0, 1):
            failed = half == 0 and run % 5 == 0
            yield {
                "id": run * 10 + half,
                "command": "sync",
                "status": "failed" if failed else "partial" if run % 3 else "succeeded",
                "started_at": at - timedelta(hours=6) * (1 - half),
                "finished_at": at,
                "version": "0.1.0",
                "host": "secret-host",
                "owner": "o",
                "lease_expires_at": at,
                "numbers_total": numbers,
                "numbers_failed": numbers * failed,
                **_spent(run),
                **(_AWAY if failed else {"error_kind": None, "error_detail": None}),
            }


def _spent(run: int) -> dict[str, Any]:
    sent = {"requests": 300 + run, "retries": run % 4, "throttled": run % 3, "rejected": run % 2}
    return {**sent, "chats_seen": 1000, "chats_inserted": run % 9, "chats_updated": 20 + run}


def _entries(numbers: int, now: datetime, days: int) -> Iterator[Row]:
    for run, at in _days(now, days):
        for index in range(numbers):
            fails = index % 40 == 0 and at >= now - DAY
            moved = index % 7 == 0
            ended = {"status": "failed" if fails else "partial" if moved else "succeeded"}
            completeness = "unproved" if moved else "consistent"
            read = {"completeness": completeness, "total_count": 1, "missing": 0}
            nothing = {"completeness": None, "total_count": None, "missing": None}
            why = {"reason": "the list moved" if moved and not fails else None}
            yield {
                "run_id": run * 10 + 1,
                "phone_number": number(index),
                "finished_at": at,
                **ended,
                **(nothing if fails else read),
                **why,
                "requests": 1 + index % 5,
                "rejected": 0,
                **(_AWAY if fails else {"error_kind": None, "error_detail": None}),
            }


def _rejected(now: datetime, days: int) -> Iterator[Row]:
    for run, _ in _days(now, days):
        if run % 2:
            where = {"run_id": run * 10 + 1, "phone_number": number(1), "page": 1}
            why = {"reason": "message_count: not a whole number", "digest": run}
            yield {**where, **why, "payload": '{"name": "SecretChat"}'}


def _days(now: datetime, days: int) -> Iterator[tuple[int, datetime]]:
    """Runs from 1, and when the second one of their day ended."""
    for ago in reversed(range(days)):
        yield days - ago, now - ago * DAY - timedelta(hours=1)
