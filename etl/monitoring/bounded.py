"""Work that may fail or hang, and that the run does not depend on."""

import threading
from collections.abc import Callable

from etl import log
from etl.errors import EtlError


class ReportError(Exception):
    """A report that failed; the text may be logged."""


class Bounded:
    """Work in a thread of its own, which ends with the process even if it hangs.

    Its failure is logged as `event`, without text of foreign errors: it may hold secrets.
    """

    def __init__(self, event: str, work: Callable[[], None], **fields: str) -> None:
        self._event = event
        self._work = work
        self._fields = fields
        self._given_up = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait for the end of the work, and give it up if that takes too long."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._given_up = True
            self._warn("it took too long")

    def _run(self) -> None:
        try:
            self._work()
        except OSError as error:
            self._fail(error.strerror or type(error).__name__)
        except (EtlError, ReportError) as error:
            self._fail(str(error))
        except Exception as error:  # noqa: BLE001  # whatever it is, it does not concern the run
            self._fail(log.name_of(error))

    def _fail(self, reason: str) -> None:
        if not self._given_up:
            self._warn(reason)

    def _warn(self, reason: str) -> None:
        log.warning(self._event, **self._fields, reason=reason)
