"""What a reading teaches: noted page by page, and entered when the number is closed.

Where a walk found the changed chats tells what a quick reading would have found instead. It counts
as such only what lies on the first pages, as many as the changed chats fill: if changes were on
nearly every page, reading on until a page without one would find them in any order. A walk on which
more than half of the chats had changed says nothing.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from itertools import count, pairwise
from typing import Final

from sqlalchemy import Connection

from etl.api.models import Page
from etl.db import list_orders
from etl.db.list_orders import Found, FoundByKind, KnownList, Reading, Walk
from etl.db.run_log import NumberOutcome
from etl.db.store.batch import Part
from etl.db.store.pages import ChangesByPlace
from etl.db.tables import CHANGE_KINDS, ChangeKind
from etl.sync.quick.recall import Judgement, judge

# A shorter list takes no more requests in full than by a quick reading.
MIN_PAGES: Final = 3
MAX_PAGE_READS: Final = 100_000
_PARTS: Final = 20  # of a list, in which changed chats are counted
_SLACK: Final = 1.25  # chats move while the list is read


class Notes:
    """The pages of one reading of a list, as far as they tell its order."""

    def __init__(self) -> None:
        self._began_at: datetime | None = None
        self._head_read_at: datetime | None = None
        self._ended_at: datetime | None = None
        self._pages = 0
        self._per_page = 1
        self._total: int | None = None
        self._pairs = 0
        self._ascending = 0
        self._page_reads: dict[int, int] = {}

    @property
    def has_pages(self) -> bool:
        """Whether a page was read."""
        return self._began_at is not None

    def add(self, page: Page) -> None:
        """Note a page that was read."""
        self._began_at = self._began_at or page.observed_at
        if page.page_number == 1 or self._head_read_at is None:
            self._head_read_at = page.observed_at
        self._per_page = max(self._per_page, len(page.ids))
        # The API may count with longer pages than it sends.
        by_rows = math.ceil((page.total_count or 0) / self._per_page)
        self._pages = max(page.last_page or max(self._pages, page.page_number), by_rows)
        self._total = page.total_count
        self._ended_at = page.observed_at
        self._page_reads[page.page_number] = int(page.observed_at.timestamp())
        self._pairs += max(len(page.chats) - 1, 0)
        self._ascending += sum(one.id < other.id for one, other in pairwise(page.chats))

    def reading(self, *, is_full: bool, is_partial: bool = False) -> Reading | None:
        """The reading as a whole; None if no page was read."""
        if self._began_at is None or self._head_read_at is None or self._ended_at is None:
            return None
        return Reading(
            is_full,
            self._began_at,
            self._ended_at,
            self._head_read_at,
            self._pages,
            self._per_page,
            self._total,
            self._pairs,
            self._ascending,
            self._page_reads if is_partial else None,
        )


def learn(
    connection: Connection,
    run_id: int,
    outcome: NumberOutcome,
    changes: ChangesByPlace,
    *,
    least: float,
) -> dict[str, float | None]:
    """Enter what the number's reading teaches; return what the run log publishes, by column.

    `changes` is what the run changed at each place. `least` is the lower bound of the recall that
    quick readings need.
    """
    reading = outcome.reading
    if reading is None or (reading.is_full and reading.pages < MIN_PAGES):
        return {}
    number = outcome.phone_number
    known = list_orders.known_lists(connection, [number]).get(number)
    caught = _caught(changes, known.caught if known else {})
    if not reading.is_full:
        if known:
            after = _after_quick(known, run_id, reading, caught)
            list_orders.write_list(connection, after)
        return {}
    # What readings by worth have found says nothing of those by the rule.
    is_mixed = known is not None and known.partial_runs > 0
    walk = None if is_mixed else _walk(run_id, reading, changes, caught)
    if walk:
        list_orders.add_walk(connection, number, walk)
    judgement = _judge(connection, number, least)
    list_orders.write_list(connection, _after_walk(run_id, outcome, reading, judgement))
    if walk:
        list_orders.publish(connection, run_id, number, judgement.recalls)
    messages = judgement.recalls["messages"]
    return {
        "quick_hits": messages.found.hits,
        "quick_misses": messages.found.misses,
        "quick_recall_lower": messages.lower_bound,
    }


def _judge(connection: Connection, phone_number: str, least: float) -> Judgement:
    """Judge by the walks, and delete those that no judgement needs any more."""
    walks = list_orders.last_walks(connection, phone_number)
    judgement = judge(walks, least)
    if len(walks) > judgement.needed:
        oldest = walks[judgement.needed - 1].run_id
        list_orders.drop_walks_before(connection, phone_number, oldest)
    return judgement


def _after_walk(
    run_id: int, outcome: NumberOutcome, reading: Reading, judgement: Judgement
) -> KnownList:
    seen = outcome.evidence.get("distinct_ids")
    is_unproved = outcome.completeness == "unproved" and seen is not None
    return KnownList(
        outcome.phone_number,
        judgement.order,
        judgement.quick_off,
        fresh_as_of=reading.began_at,
        walk_run_id=run_id,
        walked_at=reading.ended_at,
        # A chat that the walk did not see is to raise the alarm.
        total_count=int(seen or 0) if is_unproved else reading.total_count,
        per_page=reading.per_page,
        head_read_at=reading.head_read_at,
    )


def _after_quick(known: KnownList, run_id: int, reading: Reading, caught: FoundByKind) -> KnownList:
    is_partial = reading.page_reads is not None
    return replace(
        known,
        fresh_as_of=known.fresh_as_of if is_partial else reading.began_at,
        # What the count says of chats that were not found is not settled by some pages.
        total_count=known.total_count if is_partial else reading.total_count,
        head_read_at=reading.head_read_at,
        quick_run_id=run_id,
        quick_runs=known.quick_runs + 1,
        partial_runs=known.partial_runs + is_partial,
        caught=caught,
        page_reads=_with_reads(known, reading) if is_partial else known.page_reads,
    )


def _with_reads(known: KnownList, reading: Reading) -> list[int | None]:
    """When each page was last read; from the last page on if the newest chats are on the first."""
    pages = min(reading.pages, MAX_PAGE_READS)
    reads = [*known.page_reads[:pages]]
    reads += [None] * (pages - len(reads))
    for page_number, seconds in (reading.page_reads or {}).items():
        index = index_of(page_number, pages, known.list_order)
        if 0 <= index < len(reads):
            reads[index] = seconds
    return reads


def index_of(page_number: int, pages: int, order: str) -> int:
    """Where `page_reads` has the page: so that new chats do not move the others."""
    return pages - page_number if order == "id-desc" else page_number - 1


def _caught(changes: ChangesByPlace, before: FoundByKind) -> dict[ChangeKind, Found]:
    """What quick readings have found since the last walk."""
    rule, audit = _sums(changes, "rule"), _sums(changes, "audit")
    return {
        kind: before.get(kind, Found()) + Found(rule[kind], audit[kind]) for kind in CHANGE_KINDS
    }


def _sums(changes: ChangesByPlace, part: Part) -> Counter[ChangeKind | None]:
    return sum((counts for at, counts in changes.items() if at.part == part), start=Counter())


def _walk(
    run_id: int,
    reading: Reading,
    changes: ChangesByPlace,
    caught: FoundByKind,
) -> Walk | None:
    """The walk's row; None if nothing has changed since the walk before."""
    pages = {at.page_number: kinds for at, kinds in changes.items() if at.part == "walk"}
    pages.pop(0, None)  # of chats that the list lacks
    changed = sum(kinds[None] for kinds in pages.values())
    if not changed and not any(each.hits or each.misses for each in caught.values()):
        return None
    says_nothing = 2 * changed > (reading.total_count or 0)
    front = _front(pages, changed, reading.per_page)
    found = dict(caught)
    for page_number, kinds in pages.items() if not says_nothing else ():
        for kind in CHANGE_KINDS:
            is_hit = page_number <= front
            found[kind] += Found(kinds[kind] * is_hit, kinds[kind] * (not is_hit))
    return Walk(
        run_id,
        pages=reading.pages,
        total_count=reading.total_count,
        pairs=reading.pairs,
        ascending=reading.ascending,
        changed=changed,
        deepest_changed=max(pages, default=None),
        deepest_new=max((at for at, kinds in pages.items() if kinds["new"]), default=None),
        shares=_shares(pages, reading.pages),
        found=found,
    )


def _front(pages: Mapping[int, Counter[ChangeKind | None]], changed: int, per_page: int) -> int:
    """The last page that a quick reading would have read."""
    first_clean = next(number for number in count(1) if number not in pages)
    return min(first_clean, math.ceil(_SLACK * changed / per_page) + 1)


def _shares(pages: Mapping[int, Counter[ChangeKind | None]], of: int) -> list[int]:
    shares = [0] * _PARTS
    for page_number, kinds in pages.items():
        shares[min((page_number - 1) * _PARTS // of, _PARTS - 1)] += kinds[None]
    return shares
