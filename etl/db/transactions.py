"""Run functions in transactions of their own: in threads, and again after an outage.

A function may run twice although its transaction was committed once: the answer to a COMMIT can be
lost. Whatever it writes must be the same the second time.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TypeVar

from sqlalchemy import Connection, Engine
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_when_event_set,
    wait_random_exponential,
)
from tenacity.nap import sleep_using_event

from etl.db.backends import backend
from etl.db.engine import reading, writing
from etl.errors import DatabaseConflictError, DatabaseError, DatabaseUnavailableError

T = TypeVar("T")

CONFLICT_TRIES = 6
GRACE_SECONDS = 3.0  # for a transaction in progress, once the run is to end


class Transactions:
    """The transactions of one run; `patience` bounds the seconds of waiting for the database.

    A cancelled call waits for its transaction to end, for a few seconds, then breaks it off.
    """

    def __init__(self, engine: Engine, *, patience: float, run_id: int | None = None) -> None:
        self.engine = engine
        self.run_id = run_id
        self._patience = patience
        self._open: set[Connection] = set()
        self._ending = threading.Event()

    async def read(self, function: Callable[[Connection], T]) -> T:
        """Call `function` in a reading transaction, in another thread."""
        return await self._run(lambda: reading(self.engine), function)

    async def write(self, function: Callable[[Connection], T]) -> T:
        """Call `function` in a writing transaction, in another thread."""
        return await self._run(lambda: writing(self.engine, self.run_id), function)

    def end(self) -> None:
        """From now on, nothing waits for a database that is away, and no transaction takes long."""
        self._ending.set()

    async def _run(
        self,
        begin: Callable[[], AbstractContextManager[Connection]],
        function: Callable[[Connection], T],
    ) -> T:
        transaction = _in_thread(lambda: self._repeat(begin, function))
        try:
            async with asyncio.timeout(GRACE_SECONDS if self._ending.is_set() else None):
                return await asyncio.shield(transaction)
        except (asyncio.CancelledError, TimeoutError) as reason:
            self._ending.set()
            if isinstance(reason, asyncio.CancelledError):
                await asyncio.wait([transaction], timeout=GRACE_SECONDS)
            if not transaction.done():
                self._interrupt()
                await asyncio.wait([transaction], timeout=1)
            if transaction.done():
                transaction.exception()  # Retrieved, so that asyncio does not log it.
            if isinstance(reason, TimeoutError):
                raise DatabaseUnavailableError("the database did not answer in time") from None
            raise

    def _repeat(
        self,
        begin: Callable[[], AbstractContextManager[Connection]],
        function: Callable[[Connection], T],
    ) -> T:
        def transact() -> T:
            with begin() as connection, self._noted(connection):
                return function(connection)

        retrying = Retrying(
            retry=retry_if_exception_type((DatabaseConflictError, DatabaseUnavailableError)),
            stop=self._gives_up,
            wait=wait_random_exponential(multiplier=0.1, max=3),
            sleep=sleep_using_event(self._ending),
            reraise=True,
        )
        try:
            return retrying(transact)
        except DatabaseUnavailableError as error:
            holders = self._lock_holders()
            raise DatabaseUnavailableError(f"{error}{holders}") from error

    def _lock_holders(self) -> str:
        """Whose transactions are open, unless the run is ending or the database is away."""
        if self._ending.is_set():
            return ""
        with suppress(DatabaseError), reading(self.engine) as connection:
            if holders := backend(self.engine.dialect).lock_holders(connection):
                return f"; open transactions: {', '.join(holders)}"
        return ""

    def _gives_up(self, state: RetryCallState) -> bool:
        if stop_when_event_set(self._ending)(state):
            return True
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, DatabaseConflictError):
            return state.attempt_number >= CONFLICT_TRIES
        return (state.seconds_since_start or 0) >= self._patience

    @contextmanager
    def _noted(self, connection: Connection) -> Iterator[None]:
        self._open.add(connection)
        try:
            yield
        finally:
            self._open.discard(connection)

    def _interrupt(self) -> None:
        for connection in list(self._open):
            backend(self.engine.dialect).interrupt(connection)


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
