"""The walk against an API that lies: its requests are bounded, and what it sent is delivered."""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.api.models import Page
from etl.errors import ApiUnavailableError
from etl.sync.budget import MAX_UNCOUNTED_PAGES, BoundedFetch, BudgetSpentError
from etl.sync.seen import ChatIds
from etl.sync.walk import RangeRead, Verdict, read_range, walk
from tests.support.memory_api import page_of

HUGE = 2**53
WIDTH = 4

Answer = Callable[[int], Page]


class Liar:
    """Answers with what `answer` returns for a page number, and counts.

    After `budget` requests the run may make no more.
    """

    def __init__(self, answer: Answer, *, budget: float = math.inf) -> None:
        self.answer = answer
        self.budget = budget
        self.requests = 0
        self.delivered: list[Page] = []

    async def fetch(self, page_number: int) -> Page:
        if self.requests >= self.budget:
            raise BudgetSpentError("budget: spent")
        self.requests += 1
        await asyncio.sleep(0)
        return self.answer(page_number)

    async def deliver(self, page: Page) -> None:
        self.delivered.append(page)

    @property
    def seen(self) -> set[int]:
        return {chat_id for page in self.delivered for chat_id in page.ids}

    def walk(self, *, width: int = WIDTH, max_passes: int = 3) -> Verdict:
        async def run() -> Verdict:
            bounded = BoundedFetch(self.fetch, max_passes=max_passes)
            with ChatIds() as ids:
                return await walk(bounded, self.deliver, ids, width=width)

        return asyncio.run(run())

    def read_range(self, first: int, last: int | None = None, *, width: int = WIDTH) -> RangeRead:
        bounded = BoundedFetch(self.fetch, max_passes=3)
        reading = read_range(bounded, self.deliver, first=first, last=last, width=width)
        return asyncio.run(reading)


def rows_of(page_number: int) -> range:
    """The ids of an honest page of two rows."""
    return range(page_number * 2, page_number * 2 + 2)


# Whatever the API answers


class Claim(NamedTuple):
    """One answer: its rows and what it says of the list."""

    kind: str
    rows: int
    total_count: int | None
    last_page: int | None
    per_page: int


counts = st.none() | st.integers(1, 60) | st.just(HUGE)
claims = st.builds(
    Claim,
    st.sampled_from(["fresh", "same", "honest", "empty", "gap"]),
    st.integers(1, 6),
    counts,
    counts,
    st.sampled_from([1, 2, 3, 6, HUGE]),
)


class Script:
    """Goes through the claims again and again; with `growth` their counts grow by every request."""

    def __init__(self, claims: Sequence[Claim], *, growth: int) -> None:
        self.claims = claims
        self.growth = growth
        self.requests = 0
        self.next_id = 10_000

    def __call__(self, page_number: int) -> Page:
        claim = self.claims[self.requests % len(self.claims)]
        self.requests += 1
        total_count, last_page = self._grown(claim.total_count), self._grown(claim.last_page)
        if total_count is not None:
            by_rows = math.ceil(total_count / claim.per_page)
            last_page = min(max(last_page or 0, by_rows), total_count)
        return page_of(
            self._ids(claim, page_number),
            page_number,
            per_page=claim.per_page,
            total_count=total_count,
            last_page=last_page,
            is_gap=claim.kind == "gap",
        )

    def _grown(self, count: int | None) -> int | None:
        return count if count in (None, HUGE) else count + self.growth * self.requests

    def _ids(self, claim: Claim, page_number: int) -> Sequence[int]:
        first = {"fresh": self.next_id, "same": 0, "honest": page_number * claim.rows}
        if claim.kind not in first:
            return []
        self.next_id += claim.rows
        return range(first[claim.kind], first[claim.kind] + claim.rows)


def most_requests(pages: Sequence[Page], max_passes: int) -> int:
    """The bound: by the pages first counted, or else those that were read."""
    longest = max((len(page.ids) for page in pages), default=1) or 1
    for page in pages:
        if page.last_page is not None:
            first = max(page.last_page, math.ceil((page.total_count or 0) / longest))
            return (max_passes + 1) * first + 30
    return (max_passes + 1) * MAX_UNCOUNTED_PAGES + 30


@pytest.mark.slow
@settings(max_examples=300)
@given(
    st.lists(claims, min_size=1, max_size=8),
    st.sampled_from([0, 1, 100]),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_no_answers_take_more_requests_than_the_bound(
    claims: list[Claim], growth: int, width: int, max_passes: int
) -> None:
    """Every walk ends with a verdict or an error; every page that was read is delivered."""
    liar = Liar(Script(claims, growth=growth), budget=1500)
    try:
        verdict = liar.walk(width=width, max_passes=max_passes)
    except ApiUnavailableError as error:
        assert "repeats itself" in str(error)  # noqa: PT017  # not every list raises it
    else:
        assert verdict.passes <= max_passes
        assert verdict.completeness != "consistent" or verdict.distinct == verdict.total_count
    assert liar.requests <= most_requests(liar.delivered, max_passes)
    if liar.requests == liar.budget:
        # Only a list that brings new rows for ever is read for ever, if the API says it is long.
        assert {"fresh", "honest"} & {claim.kind for claim in claims}


@settings(max_examples=200)
@given(
    st.lists(claims, min_size=1, max_size=8),
    st.sampled_from([0, 1, 100]),
    st.integers(1, 5),
    st.none() | st.integers(3, 100),
)
def test_no_answers_read_more_than_the_range(
    claims: list[Claim], growth: int, width: int, last: int | None
) -> None:
    """A page range is bounded like a walk."""
    liar = Liar(Script(claims, growth=growth), budget=1500)
    try:
        done = liar.read_range(3, last, width=width)
    except ApiUnavailableError as error:
        assert "repeats itself" in str(error)  # noqa: PT017
    else:
        assert done.last_page == liar.delivered[-1].page_number
    assert liar.requests <= most_requests(liar.delivered, 3)
    assert max(page.page_number for page in liar.delivered) <= (last or math.inf)


# Lists without an end


def test_a_page_repeated_behind_the_others_ends_the_walk() -> None:
    """After a hundred pages without a new chat; what was new is kept and unproved."""

    def answer(number: int) -> Page:
        return page_of(rows_of(min(number, 10)), number, total_count=HUGE, last_page=HUGE // 2)

    liar = Liar(answer)
    verdict = liar.walk()
    assert (verdict.completeness, verdict.stopped, verdict.passes) == ("unproved", "endless", 1)
    assert verdict.reason == "101 pages in a row, up to page 110, held no new chat"
    assert len(liar.seen) == 20
    assert liar.requests <= 10 + 101 + WIDTH


@pytest.mark.parametrize("rows", ["none", "the last ones", "the first ones"])
def test_pages_behind_the_count_end_the_list(rows: str) -> None:
    """10 pages of chats are complete, although the API says that there are 10^9 pages."""

    def answer(number: int) -> Page:
        behind: Sequence[int] = rows_of(10) if rows == "the last ones" else rows_of(1)
        ids = rows_of(number) if number <= 10 else [] if rows == "none" else behind
        return page_of(ids, number, total_count=20, last_page=10**9)

    liar = Liar(answer)
    verdict = liar.walk()
    assert (verdict.distinct, verdict.stopped, len(liar.seen)) == (20, None, 20)
    assert liar.requests <= 3 * (10 + WIDTH + 4)
    if rows == "none":
        assert (verdict.completeness, verdict.passes) == ("consistent", 1)


def test_empty_pages_within_the_count_end_the_walk() -> None:
    """An API that counts 10^9 pages and fills ten is not asked for all of them."""

    def answer(number: int) -> Page:
        full = number <= 10
        ids = rows_of(number) if full else []
        return page_of(ids, number, last_page=10**9, is_gap=not full)

    liar = Liar(answer)
    verdict = liar.walk()
    assert (verdict.completeness, verdict.stopped) == ("unproved", "endless")
    assert len(liar.seen) == 20
    assert liar.requests <= 10 + 101 + WIDTH


@pytest.mark.parametrize("pages", [2, 50])
def test_a_list_that_grows_by_a_page_with_each_request(pages: int) -> None:
    """It is read up to the bound, and no page that was read is lost."""
    longest = pages

    def answer(number: int) -> Page:
        nonlocal longest
        longest += 1
        return page_of(rows_of(number), number, total_count=2 * longest, last_page=longest)

    liar = Liar(answer)
    verdict = liar.walk()
    bound = 4 * (pages + 1) + 28
    assert (verdict.completeness, verdict.stopped) == ("unproved", "endless")
    assert verdict.reason == (
        f"the list had no end after {bound} requests; it was first counted as {pages + 1} pages"
    )
    assert liar.requests == bound
    assert len(liar.seen) > bound


def test_a_list_that_has_grown_tenfold_ends_the_walk() -> None:
    """Ten thousand chats more than first counted, and ten times as many: it is not read on."""

    def answer(number: int) -> Page:
        total_count = 200 if number < 7 else 10_201
        return page_of(rows_of(number), number, total_count=total_count, last_page=100)

    liar = Liar(answer)
    verdict = liar.walk(width=1)
    assert (verdict.completeness, verdict.stopped) == ("unproved", "endless")
    assert verdict.reason == "the list went from 200 to 10201 while it was read"
    assert liar.requests == 2  # the first page and the last


def test_a_list_that_is_not_counted_and_has_no_end() -> None:
    """The reading stops after 200 pages; the operator may allow more."""
    liar = Liar(lambda number: page_of(rows_of(number), number))
    verdict = liar.walk()
    assert (verdict.completeness, verdict.stopped) == (None, "budget")
    assert verdict.reason == (
        "budget: the API does not count the list, which had no end after 200 pages; set "
        "sync.max_requests to read on"
    )
    assert (liar.requests, len(liar.seen)) == (200, 400)


@pytest.mark.parametrize("total_count", [None, 4, 10_000, HUGE])
def test_an_api_that_returns_one_page_for_every_number(total_count: int | None) -> None:
    """If nothing else is ever sent the API is broken; a list counted as short ends by itself."""
    last_page = math.ceil(total_count / 2) if total_count else None
    liar = Liar(lambda n: page_of([1, 2], n, total_count=total_count, last_page=last_page))
    if total_count == 4:
        assert liar.walk().reason == "2 distinct chats were seen, but the API reports 4"
    else:
        with pytest.raises(ApiUnavailableError, match="repeats itself"):
            liar.walk()
    assert liar.requests <= 120
    if total_count is None:
        assert liar.requests <= 30


# Gaps


def gapped(number: int, *, gap: int) -> Page:
    """Five pages counted, one of them empty."""
    ids = [] if number == gap or number > 5 else rows_of(number)
    return page_of(ids, number, total_count=10, last_page=5, is_gap=number == gap)


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("gap", [3, 5])
def test_an_empty_page_within_the_count_does_not_stop_the_walk(gap: int, width: int) -> None:
    """The other pages are read; the list is unproved, and the reason names the page."""
    liar = Liar(lambda number: gapped(number, gap=gap))
    verdict = liar.walk(width=width)
    assert (verdict.completeness, verdict.stopped) == ("unproved", None)
    assert verdict.reason == f"page {gap} of 5 stayed empty"
    assert (verdict.distinct, len(liar.seen)) == (8, 8)


def test_a_page_that_was_empty_once_is_read_in_the_next_pass() -> None:
    """Then the list is complete."""
    gaps = [3]

    def answer(number: int) -> Page:
        return gapped(number, gap=gaps.pop() if number in gaps else 0)

    verdict = Liar(answer).walk()
    assert (verdict.completeness, verdict.reason, verdict.passes) == ("consistent", None, 2)


# Budgets


@pytest.mark.parametrize("budget", [0, 1, 4, 11])
def test_a_walk_that_runs_out_of_budget(budget: int) -> None:
    """If no pass has reached the list's end, the walk claims no completeness."""
    liar = Liar(lambda n: page_of(rows_of(n), n, total_count=22, last_page=11), budget=budget)
    verdict = liar.walk()
    assert (verdict.completeness, verdict.stopped) == (None, "budget")
    assert verdict.reason == "budget: spent"
    assert liar.requests == budget


def test_a_second_pass_that_runs_out_of_budget() -> None:
    """The first one has read the whole list, but the budget remains the reason."""
    liar = Liar(lambda number: gapped(number, gap=3), budget=14)
    verdict = liar.walk()
    assert (verdict.completeness, verdict.stopped) == ("unproved", "budget")
    assert verdict.reason == "budget: spent"
    assert (verdict.distinct, liar.requests) == (8, 14)


# Page ranges


def test_a_range_reads_on_behind_an_empty_page() -> None:
    """It ends with the list, or after the last page asked for."""
    liar = Liar(lambda number: gapped(number, gap=3))
    assert liar.read_range(2) == RangeRead(last_page=5, total_count=10, stopped=None)
    assert len(liar.seen) == 6
    assert liar.read_range(2, 4) == RangeRead(last_page=4, total_count=10, stopped=None)


def test_a_range_of_a_list_without_an_end() -> None:
    """It stops as a walk does, and says why."""
    liar = Liar(lambda n: page_of(rows_of(min(n, 5)), n, total_count=HUGE, last_page=HUGE // 2))
    done = liar.read_range(2)
    assert done.stopped == "101 pages in a row, up to page 106, held no new chat"
    assert (done.last_page, len(liar.seen)) == (106, 8)


def test_a_range_that_runs_out_of_budget() -> None:
    """Before its first page it has read none."""
    liar = Liar(lambda n: page_of(rows_of(n), n, total_count=200, last_page=100), budget=0)
    assert liar.read_range(7) == RangeRead(last_page=0, total_count=None, stopped="budget: spent")
    liar.budget = 3
    assert liar.read_range(7) == RangeRead(last_page=9, total_count=200, stopped="budget: spent")
