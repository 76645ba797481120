"""What a run tells while it works, and the implementation that writes log lines."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from etl import log
from etl.api.models import Page
from etl.config import PhoneNumber
from etl.db.run_log import NumberOutcome, Record
from etl.phone import shortened
from etl.sync.summary import cause, summary

LOG_EVERY_SECONDS = 10.0
WARN_OF_EACH_CAUSE = 5  # numbers; what stops all of them need not be said of each


class Progress(AbstractContextManager["Progress"], Protocol):
    """Receives the events of one run; a context manager, entered before the run starts."""

    def run_started(self, run_id: int, numbers: Sequence[PhoneNumber]) -> None:
        """The run has its row in the run log."""

    def number_started(self, phone_number: str) -> None:
        """A number begins; it is synced by the current task and by those that this one starts."""
        del phone_number  # Most implementations need not know.

    def page_read(self, phone_number: str, page: Page) -> None:
        """A page of the number's list was read."""

    def number_ended(self, outcome: NumberOutcome) -> None:
        """A number has ended, successfully or not, and that is in the run log."""

    def waiting(self, numbers: int) -> None:
        """The run waits for other runs that hold so many numbers."""

    def run_ended(self, record: Record) -> None:
        """The run is closed, however it ended; `record` has its numbers under `numbers`."""


class LogProgress(Progress):
    """Writes log lines; pages at most every ten seconds."""

    def __init__(self) -> None:
        self._labels: dict[str, str | None] = {}
        self._pages: dict[str, int] = {}
        self._causes: Counter[str] = Counter()
        self._logged = time.monotonic()

    def __exit__(self, *_: object) -> None:
        return None

    def run_started(self, run_id: int, numbers: Sequence[PhoneNumber]) -> None:
        self._labels = {number.e164: number.label for number in numbers}
        log.info("run_started", run=run_id, numbers=len(numbers))

    def page_read(self, phone_number: str, page: Page) -> None:
        self._pages[phone_number] = self._pages.get(phone_number, 0) + 1
        if time.monotonic() - self._logged >= LOG_EVERY_SECONDS:
            self._logged = time.monotonic()
            log.info(
                "reading",
                phone_number=shortened(phone_number),
                label=self._labels.get(phone_number),
                pages=self._pages[phone_number],
                of=page.last_page,
            )

    def number_ended(self, outcome: NumberOutcome) -> None:
        self._writer_for(outcome)(
            "number_ended",
            phone_number=shortened(outcome.phone_number),
            label=self._labels.get(outcome.phone_number),
            status=outcome.status,
            completeness=outcome.completeness,
            reason=outcome.reason,
            total_count=outcome.evidence.get("total_count"),
            changes=outcome.changes,
            requests=outcome.usage.requests,
            error_kind=outcome.error_kind,
            error_detail=outcome.error_detail,
        )

    def waiting(self, numbers: int) -> None:
        log.info("waiting", numbers=numbers, reason="other runs hold them")

    def run_ended(self, record: Record) -> None:
        counts = {name: record[name] for name in _SUMMARY if record[name]}
        write = _RUN_LEVELS.get(record["status"], log.error)
        seconds = (record["finished_at"] - record["started_at"]).total_seconds()
        write(
            "run_ended",
            run=record["id"],
            mode=None if record["mode"] == "full" else record["mode"],
            status=record["status"],
            seconds=round(seconds, 1),
            numbers_failed=record["numbers_failed"],
            **counts,
            summary=summary(record),
        )

    def _writer_for(self, outcome: NumberOutcome) -> Callable[..., Any]:
        """At which level: debug if nothing changed, warning if it failed, but not of hundreds."""
        if outcome.status == "succeeded":
            return log.info if outcome.changes else log.debug
        why = cause(outcome.error_detail or outcome.reason or outcome.status)
        self._causes[why] += 1
        return log.warning if self._causes[why] <= WARN_OF_EACH_CAUSE else log.info


_RUN_LEVELS = {"succeeded": log.info, "partial": log.warning, "interrupted": log.warning}
_SUMMARY = (
    "requests",
    "retries",
    "chats_seen",
    "chats_inserted",
    "chats_updated",
    "chats_removed",
    "handles_inserted",
    "handles_updated",
    "handles_removed",
    "rejected",
)
