"""In which order the numbers of a run with a budget are read, and which of them may begin.

The number comes first that has waited longest for its turn. What it needs is kept for it before
others begin, so each run reads at least one list to its end, and no number waits for ever. A list
that needs more than a whole run may spend is named and gives way to the others.
"""

import asyncio
import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Final

from etl.config import PhoneNumber
from etl.db.run_log import LEFT_OUT_REASON, TOO_LONG_REASON
from etl.db.transactions import Transactions
from etl.db.turns import Turn, last_turns
from etl.sync.budget import Budget, BudgetSpentError

LEFT_OUT = (
    f"{LEFT_OUT_REASON}, because the run's requests are for others; the next run begins with it"
)
QUICK_REQUESTS: Final = 6  # of most quick readings
_RAISE = "raise --max-requests or sync.max_requests"


def requests_for(pages: int) -> int:
    """For a list of so many pages that does not move: its ends are read twice."""
    return max(pages, 1) + min(max(pages - 1, 0), 2)


class Turns:
    """The numbers of one run; without a limit of its requests, each may begin at once.

    Each list is assumed to have pages of `per_page`. No list is taken to need more than
    `most_needed`, because a later run goes on where this one stops.
    """

    def __init__(self, budget: Budget, per_page: int, most_needed: int | None = None) -> None:
        self._budget = budget
        self._per_page = per_page
        self._most_needed = most_needed
        self._expected: dict[str, int] = {}
        self._needed: dict[str, int] = {}  # by the first page
        self._waiting: set[str] = set()
        self._lock = asyncio.Lock()
        self._settled = asyncio.Event()
        self._settled.set()
        self._unsettled: str | None = None  # the number whose first page the others wait for
        self._has_begun = False
        self._is_over = False  # a number was left out

    @property
    def is_limited(self) -> bool:
        return self._budget.limit is not None

    @property
    def is_over(self) -> bool:
        """Whether no more numbers can begin, or not the next one."""
        return self._is_over or self._budget.is_spent

    async def ordered(
        self,
        transactions: Transactions,
        numbers: Sequence[PhoneNumber],
        quick: Collection[str] = (),
    ) -> list[PhoneNumber]:
        """The numbers in their turn; lists known to be too long for a run come last.

        Those of the `quick` ones need few requests.
        """
        if self._budget.limit is None:
            return [*numbers]
        e164 = [number.e164 for number in numbers]
        turns = await transactions.read(partial(last_turns, numbers=e164))
        self._expect(turns)
        self._expected |= dict.fromkeys(quick, QUICK_REQUESTS)
        self._waiting = {*e164}
        return sorted(numbers, key=lambda number: self._key(number.e164, turns))

    async def begin(self, phone_number: str) -> bool:
        """Whether the number may begin: the requests that its list needs are kept for it now.

        Waits until it is known what those that began before need.
        """
        if self._budget.limit is None:
            return True
        async with self._lock:
            await self._settled.wait()
            self._waiting.discard(phone_number)
            needed = self._expected.get(phone_number)
            if not self._fits(needed):
                self._is_over = True
                return False
            if needed is None or not self._has_begun:
                self._unsettled = phone_number
                self._settled.clear()
            self._has_begun = True
            self._promise(phone_number, self._budget.left if needed is None else needed)
            return True

    def end(self, phone_number: str) -> None:
        """Give the others what is still kept for the number."""
        self._budget.promise(phone_number, 0)
        self._settle(phone_number)

    def take(self, phone_number: str, *, retries: int) -> None:
        """Spend a request of the number, and retries. Raises BudgetSpentError."""
        try:
            self._budget.take(phone_number, retries=retries)
        except BudgetSpentError as error:
            raise BudgetSpentError(self._why_spent(phone_number) or str(error)) from None

    def note_length(self, phone_number: str, pages: int) -> None:
        """Keep what the number needs for so many pages, of which the first one is read.

        Raises BudgetSpentError if there is less, and numbers wait that may need less.
        """
        if self._budget.limit is None:
            return
        needed = self._needed_for(pages)
        self._needed[phone_number] = needed
        self._budget.promise(phone_number, 0)
        fits = needed - 1 <= self._budget.left
        self._promise(phone_number, needed - 1)
        self._settle(phone_number)
        if not fits and self._waiting:
            self._budget.promise(phone_number, 0)
            raise BudgetSpentError(
                self.why_too_long(phone_number)
                or f"budget: about {needed} requests are needed, more than are left in this run"
            )

    def _expect(self, turns: Mapping[str, Turn]) -> None:
        self._expected = {
            phone_number: self._needed_for(math.ceil(turn.total_count / self._per_page))
            for phone_number, turn in turns.items()
            if turn.total_count is not None
        }

    def _key(self, phone_number: str, turns: Mapping[str, Turn]) -> tuple[bool, int]:
        turn = turns.get(phone_number, Turn())
        return self._is_too_long(self._expected.get(phone_number)), turn.run_id

    def _needed_for(self, pages: int) -> int:
        return min(requests_for(pages), self._most_needed or math.inf)  # type: ignore[return-value]

    def _fits(self, needed: int | None) -> bool:
        left = self._budget.left
        if needed is None or self._is_too_long(needed) or not self._has_begun:
            return left > 0
        return needed <= left

    def _promise(self, phone_number: str, requests: int) -> None:
        """Too long a list gets only what nobody else needs."""
        needed = self._needed.get(phone_number, self._expected.get(phone_number))
        is_too_long = self._is_too_long(needed)
        self._budget.promise(phone_number, 0 if is_too_long else min(requests, self._budget.left))

    def _settle(self, phone_number: str) -> None:
        if self._unsettled == phone_number:
            self._unsettled = None
            self._settled.set()

    def _is_too_long(self, needed: int | None) -> bool:
        limit = self._budget.limit
        return needed is not None and limit is not None and needed > limit

    def why_too_long(self, phone_number: str, pages: int | None = None) -> str | None:
        """Why the number's list never completes, if it needs more requests than a run has.

        The list has so many `pages`, if that is known.
        """
        known = self._needed.get(phone_number, self._expected.get(phone_number))
        needed = self._needed_for(pages) if pages else known
        if not self._is_too_long(needed):
            return None
        return (
            f"{TOO_LONG_REASON} about {needed} requests, more than the {self._budget.limit} of a "
            f"run, so it never completes; {_RAISE}"
        )

    def _why_spent(self, phone_number: str) -> str | None:
        is_alone = self._budget.is_spent_by(phone_number)
        if phone_number in self._needed or phone_number in self._expected or not is_alone:
            return self.why_too_long(phone_number)
        limit = self._budget.limit
        return f"{TOO_LONG_REASON} more than the {limit} requests of a run; {_RAISE}"
