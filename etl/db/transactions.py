"""Run functions in transactions of their own: in threads, and again after an outage.

A function may run twice although its transaction was committed once: the answer to a COMMIT can be
lost. Whatever it writes must be the same the second time.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    wait_random_exponential,
)
from tenacity.nap import sleep_using_event
from tenacity.wait import wait_base

from etl import log
from etl.db.backends import backend
from etl.db.engine import reading, writing
from etl.errors import DatabaseConflictError, DatabaseError, DatabaseUnavailableError

T = TypeVar("T")
Begin = Callable[[], AbstractContextManager[Connection]]

CONFLICT_TRIES = 12  # four runs that wrote the same chats on three nodes needed up to six
READERS = 4  # at once; more would use up the connections that the server or a pooler has
GRACE_SECONDS = 3.0  # for a transaction in progress, once it is cancelled or the run is to end
BREAK_OFF_SECONDS = 0.5  # for its statement to end, then for its connection
_WAIT = wait_random_exponential(multiplier=0.1, max=3)


class Transactions:
    """The transactions of one run; `patience` bounds the seconds of waiting for the database.

    A cancelled call waits for its transaction to end, for a few seconds, then breaks it off.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        patience: float,
        run_id: int | None = None,
        readers: int = READERS,
        wait: wait_base = _WAIT,
    ) -> None:
        self.engine = engine
        self.run_id = run_id
        self._patience = patience
        self._wait = wait
        self._readers = asyncio.Semaphore(readers)
        self._calls: set[_Call] = set()
        self._is_ending = False

    async def read(self, function: Callable[[Connection], T]) -> T:
        """Call `function` in a reading transaction, in another thread."""
        async with self._readers:
            return await self._run(lambda: reading(self.engine), function)

    async def write(self, function: Callable[[Connection], T]) -> T:
        """Call `function` in a writing transaction, in another thread."""
        return await self._run(lambda: writing(self.engine, self.run_id), function)

    def release_connections(self) -> None:
        """Close those that no transaction uses; a long pause follows."""
        self.engine.dispose()

    def end(self) -> None:
        """From now on, nothing waits for a database that is away, and no transaction takes long."""
        self._is_ending = True
        for call in self._calls:
            call.given_up.set()

    async def _run(self, begin: Begin, function: Callable[[Connection], T]) -> T:
        call = _Call()
        if self._is_ending:
            call.given_up.set()
        self._calls.add(call)
        transaction = _in_thread(lambda: self._repeat(call, begin, function))
        try:
            async with asyncio.timeout(GRACE_SECONDS if self._is_ending else None):
                return await asyncio.shield(transaction)
        except (asyncio.CancelledError, TimeoutError) as reason:
            call.given_up.set()
            if isinstance(reason, asyncio.CancelledError):
                await asyncio.wait([transaction], timeout=GRACE_SECONDS)
            if not transaction.done():
                await self._break_off(call, transaction)
            if transaction.done():
                transaction.exception()  # Retrieved, so that asyncio does not log it.
            if isinstance(reason, TimeoutError):
                raise DatabaseUnavailableError("the database did not answer in time") from None
            raise
        finally:
            self._calls.discard(call)

    def _repeat(self, call: "_Call", begin: Begin, function: Callable[[Connection], T]) -> T:
        def transact() -> T:
            try:
                with begin() as connection:
                    call.driver = connection.connection.driver_connection
                    return function(connection)
            finally:
                call.driver = None

        retrying = Retrying(
            retry=retry_if_exception_type((DatabaseConflictError, DatabaseUnavailableError)),
            stop=self._stop(call),
            wait=self._wait,
            sleep=sleep_using_event(call.given_up),
            before_sleep=self._log_outage,
            reraise=True,
        )
        try:
            return retrying(transact)
        except DatabaseUnavailableError as error:
            holders = "" if call.given_up.is_set() else self._lock_holders()
            raise DatabaseUnavailableError(f"{error}{holders}") from error

    def _stop(self, call: "_Call") -> Callable[[RetryCallState], bool]:
        def stop(state: RetryCallState) -> bool:
            if call.given_up.is_set():
                return True
            if isinstance(_error(state), DatabaseConflictError):
                return state.attempt_number >= CONFLICT_TRIES
            return (state.seconds_since_start or 0) >= self._patience

        return stop

    def _log_outage(self, state: RetryCallState) -> None:
        """Say once per call why nothing happens."""
        error = _error(state)
        if state.attempt_number == 1 and isinstance(error, DatabaseUnavailableError):
            log.warning("waiting_for_database", seconds=self._patience, reason=str(error))

    def _lock_holders(self) -> str:
        """Whose transactions are open, unless the database is away."""
        with suppress(DatabaseError), reading(self.engine) as connection:
            if holders := backend(self.engine.dialect).lock_holders(connection):
                return f"; open transactions: {', '.join(holders)}"
        return ""

    async def _break_off(self, call: "_Call", transaction: "asyncio.Future[T]") -> None:
        """Cancel its statement, then its connection; a server that is stuck answers neither."""
        database = backend(self.engine.dialect)
        for interrupt in (database.cancel, database.disconnect):
            if (driver := call.driver) is not None:
                _in_thread(partial(interrupt, driver))
            await asyncio.wait([transaction], timeout=BREAK_OFF_SECONDS)


class _Call:
    """A call in progress: whether to give it up, and the driver's connection that it uses."""

    def __init__(self) -> None:
        self.given_up = threading.Event()
        self.driver: Any = None


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _in_thread(function: Callable[[], T]) -> "asyncio.Future[T]":
    """Call `function` in a daemon thread, which cannot keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def call() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:  # noqa: BLE001  # raised again in the event loop
            error = raised
        with suppress(RuntimeError):  # The loop has ended without this thread.
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=call, name="transaction", daemon=True).start()
    return future
