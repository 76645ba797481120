"""The metrics file: what the run log says, for the textfile collector of Prometheus' node_exporter.

It comes from the database alone, so that every process writes the same file.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, get_args

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from sqlalchemy import Connection

from etl.config import PhoneNumber
from etl.db.attempts import last_runs, number_attempts
from etl.db.run_log import Record
from etl.db.tables import FULL, Status
from etl.monitoring.whole_file import write_whole
from etl.phone import shortened

_NEVER_SYNCED: Final[Record] = dict.fromkeys(
    (
        *("last_good_sync", "completeness", "total_count", "failing_since"),
        *("fresh_as_of", "quick_recall_lower"),
        *("last_attempt_at", "last_status", "last_started_at", "last_requests", "last_throttled"),
    )
)
_MODE: Final = 0o644  # node_exporter runs as another user, and the file holds no secret

Value = Callable[[Record], float | None]

_OF_NUMBERS: Final[Mapping[str, tuple[str, Value]]] = {
    "last_success_timestamp_seconds": (
        "When the last good sync of the number ended; 0 if there was none.",
        lambda row: _seconds(row["last_good_sync"]),
    ),
    "fresh_timestamp_seconds": (
        "Changes until then are stored: by a full walk, or by a quick reading that finds them; 0 "
        "if there was none.",
        lambda row: _seconds(row["fresh_as_of"]),
    ),
    "quick_recall_lower": (
        "At least this share of the changes is found by quick readings; 0 if that is not known.",
        lambda row: row["quick_recall_lower"] or 0,
    ),
    "chats": (
        "Chats in the list of the number, by the last count of the API.",
        lambda row: row["total_count"],
    ),
    "failing_since_timestamp_seconds": (
        "When the first of the failed attempts in a row ended; 0 if the last attempt is good.",
        lambda row: _seconds(row["failing_since"]),
    ),
    "last_attempt_timestamp_seconds": (
        "When the last attempt of the number ended, good or not; 0 if there was none.",
        lambda row: _seconds(row["last_attempt_at"]),
    ),
    "last_attempt_duration_seconds": (
        "From the start of the run to the end of the number in it.",
        lambda row: _duration(row["last_started_at"], row["last_attempt_at"]),
    ),
    "last_attempt_requests": (
        "Requests of the last attempt of the number.",
        lambda row: row["last_requests"],
    ),
    "last_attempt_throttled": (
        "Requests of the last attempt of the number that were answered with 429.",
        lambda row: row["last_throttled"],
    ),
}
_OF_RUNS: Final[Mapping[str, tuple[str, Value]]] = {
    "run_timestamp_seconds": (
        "When the last run ended.",
        lambda run: _seconds(run["finished_at"]),
    ),
    "run_duration_seconds": (
        "How long the last run took.",
        lambda run: _duration(run["started_at"], run["finished_at"]),
    ),
    "run_requests": ("Requests of the last run.", lambda run: run["requests"]),
    "run_throttled": (
        "Requests of the last run that were answered with 429.",
        lambda run: run["throttled"],
    ),
    "run_numbers": ("Phone numbers of the last run.", lambda run: run["numbers_total"]),
    "run_numbers_failed": (
        "Phone numbers of the last run that failed.",
        lambda run: run["numbers_failed"],
    ),
}
_STATUSES: Final = tuple(status for status in get_args(Status) if status != "running")
_CHANGES: Final = ("inserted", "updated", "unchanged", "removed")


@dataclass(frozen=True)
class Metrics(Collector):
    """The metrics of phone numbers, by their names, and of the last run of each command."""

    numbers: Sequence[tuple[str, Record]]
    runs: Sequence[tuple[str, Record]]

    def collect(self) -> Iterator[Metric]:
        for name, (text, value) in _OF_NUMBERS.items():
            yield _gauge(name, text, "number", ((key, value(row)) for key, row in self.numbers))
        yield _states(
            "last_success_completeness",
            "How completely the last good sync read the list of the number: 1 for what applies.",
            ("number", "completeness"),
            ((key, row["completeness"]) for key, row in self.numbers),
            FULL,
        )
        yield _states(
            "last_attempt_status",
            "How the last attempt of the number ended: 1 for what applies.",
            ("number", "status"),
            ((key, row["last_status"]) for key, row in self.numbers),
            _STATUSES,
        )
        for name, (text, value) in _OF_RUNS.items():
            yield _gauge(name, text, "command", ((key, value(run)) for key, run in self.runs))
        yield _states(
            "run_status",
            "How the last run ended: 1 for what applies.",
            ("command", "status"),
            ((key, run["status"]) for key, run in self.runs),
            _STATUSES,
        )
        chats = _family("run_chats", "Chats by what the last run did to them.", "command", "change")
        for key, run in self.runs:
            for change in _CHANGES:
                chats.add_metric([key, change], run[f"chats_{change}"])
        yield chats


def read_metrics(connection: Connection, configured: Sequence[PhoneNumber]) -> Metrics:
    """The metrics of the configured numbers; if none are named, of all that were ever synced."""
    rows = {row["phone_number"]: row for row in number_attempts(connection)}
    for number in configured:  # also those whose first run has failed early
        rows.setdefault(number.e164, {**_NEVER_SYNCED, "label": number.label})
    names = unique_names([(e164, row["label"]) for e164, row in rows.items()])
    wanted = [number.e164 for number in configured] or rows
    runs = [(str(run["command"]), run) for run in last_runs(connection)]
    return Metrics([(names[e164], rows[e164]) for e164 in wanted], runs)


def unique_names(numbers: Sequence[tuple[str, str | None]]) -> dict[str, str]:
    """The label of each number, or its last digits; the second of the same name gets a `#2`.

    The names of earlier numbers do not depend on later ones.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for e164, label in numbers:
        base = name = label or shortened(e164)
        count = 1
        while name in taken:
            count += 1
            name = f"{base} #{count}"
        taken.add(name)
        names[e164] = name
    return names


def write_metrics(path: Path, metrics: Metrics) -> None:
    """Replace the file at once, so that no one reads half of it. Raises OSError."""
    write_whole(path, generate_latest(metrics), _MODE)


def _gauge(name: str, text: str, label: str, values: Iterable[tuple[str, float | None]]) -> Metric:
    family = _family(name, text, label)
    for key, value in values:
        if value is not None:
            family.add_metric([key], value)
    return family


def _states(
    name: str,
    text: str,
    labels: tuple[str, str],
    values: Iterable[tuple[str, str | None]],
    known: Sequence[str],
) -> Metric:
    """A series for each state, so that none of an earlier state remains."""
    family = _family(name, text, *labels)
    for key, value in values:
        for state in known:
            family.add_metric([key, state], state == value)
    return family


def _family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"linq_etl_{name}", text, labels=labels)


def _seconds(moment: datetime | None) -> float:
    return moment.timestamp() if moment else 0.0


def _duration(start: datetime | None, end: datetime | None) -> float | None:
    return max(end - start, timedelta()).total_seconds() if start and end else None
