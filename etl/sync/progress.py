"""What a run tells while it works, and the implementation that writes log lines."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from etl import log
from etl.api.models import Page
from etl.config import PhoneNumber
from etl.db.run_log import NumberOutcome, Record
from etl.phone import shortened

LOG_EVERY_SECONDS = 10.0


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
        """A number has ended, successfully or not."""

    def run_ended(self, record: Record) -> None:
        """The run is closed; `record` is its row, with its numbers under `numbers`."""


class LogProgress(Progress):
    """Writes log lines; pages at most every ten seconds."""

    def __init__(self) -> None:
        self._pages: dict[str, int] = {}
        self._logged = time.monotonic()

    def __exit__(self, *_: object) -> None:
        return None

    def run_started(self, run_id: int, numbers: Sequence[PhoneNumber]) -> None:
        log.info("run_started", run=run_id, numbers=len(numbers))

    def page_read(self, phone_number: str, page: Page) -> None:
        self._pages[phone_number] = self._pages.get(phone_number, 0) + 1
        if time.monotonic() - self._logged >= LOG_EVERY_SECONDS:
            self._logged = time.monotonic()
            log.info(
                "reading",
                phone_number=shortened(phone_number),
                pages=self._pages[phone_number],
                of=page.last_page,
            )

    def number_ended(self, outcome: NumberOutcome) -> None:
        write = log.info if outcome.status == "succeeded" else log.warning
        write(
            "number_ended",
            phone_number=shortened(outcome.phone_number),
            status=outcome.status,
            completeness=outcome.completeness,
            reason=outcome.reason,
            total_count=outcome.evidence.get("total_count"),
            requests=outcome.usage.requests,
            error_kind=outcome.error_kind,
            error_detail=outcome.error_detail,
        )

    def run_ended(self, record: Record) -> None:
        counts = {name: record[name] for name in _SUMMARY if record[name]}
        log.info("run_ended", run=record["id"], status=record["status"], **counts)


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
