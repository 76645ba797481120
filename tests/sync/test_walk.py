"""The walk against every history that hypothesis can think of, and against the moving list."""

import asyncio
import math
from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.api.client import RequestContext
from etl.api.decode import Chat, Page
from etl.api.pace import ApiUsage
from etl.config import Token
from etl.errors import ApiUnavailableError
from etl.sandbox import Motion, World
from etl.sync.seen import ChatIds
from etl.sync.walk import Verdict, walk
from tests.support.memory_api import Change, MemoryLinq, change

NUMBER = "+13343284472"
LINE = RequestContext(NUMBER, Token("t"), ApiUsage())


def some_world(chats: int, order: str, seed: int = 1) -> World:
    world = World((NUMBER,), order=order, seed=seed)
    world.populate([(NUMBER,)] * chats)
    return world


KINDS = ("create", "delete", "jump", "rename", "join")
changes = st.builds(
    partial, st.just(change), st.just(NUMBER), st.sampled_from(KINDS), st.integers(0, 40)
)
calm_histories = st.lists(st.lists(changes, max_size=1), max_size=60)
wild_histories = st.lists(st.lists(changes, max_size=5), max_size=60)


class Walked:
    """A walk that has been made, and the history in which it was."""

    def __init__(
        self,
        world: World,
        history: Sequence[Sequence[Change]],
        *,
        per_page: int = 3,
        width: int = 1,
        delays: Sequence[int] = (),
        max_passes: int = 3,
    ) -> None:
        self.linq = MemoryLinq(world, NUMBER, per_page=per_page)
        self.linq.changes, self.linq.delays = list(history), list(delays)
        self.throughout = set(world.listing(NUMBER))
        self.pages = 1 + math.ceil((len(self.throughout) + 60) / per_page)
        self.delivered: list[Page] = []
        self.verdict = asyncio.run(self._walk(width, max_passes))
        self.throughout &= set(world.listing(NUMBER))
        self.seen = {chat_id for page in self.delivered for chat_id in page.ids}

    async def _walk(self, width: int, max_passes: int) -> Verdict:
        async def deliver(page: Page) -> None:
            self.delivered.append(page)

        fetch = partial(self.linq.list_chats, LINE)
        with ChatIds() as ids:
            return await walk(fetch, deliver, ids, width=width, max_passes=max_passes)

    def last_pass_was_a_list(self) -> bool:
        """Whether what was seen was the list at some instant."""
        return frozenset(self.seen) in self.linq.lists


@settings(max_examples=100)
@given(st.integers(0, 40), calm_histories, st.integers(1, 5), st.lists(st.integers(0, 5)))
def test_nothing_is_missed_in_recency_order(chats, history, width, delays):
    """With one change between two requests, every chat that existed throughout is seen."""
    walked = Walked(some_world(chats, "recency"), history, width=width, delays=delays)
    assert walked.throughout <= walked.seen


@settings(max_examples=300)
@given(st.integers(0, 40), calm_histories, st.integers(2, 4))
def test_one_pass_in_order_misses_nothing(chats, history, per_page):
    """Even one pass, if it reads one page at a time, sees them all: its repairs suffice."""
    walked = Walked(some_world(chats, "recency"), history, per_page=per_page, max_passes=1)
    assert walked.throughout <= walked.seen


@settings(max_examples=150)
@given(
    st.sampled_from(["id", "id-desc", "recency"]),
    st.integers(0, 40),
    calm_histories,
    st.integers(1, 5),
    st.lists(st.integers(0, 5)),
)
def test_a_consistent_pass_saw_the_list(order, chats, history, width, delays):
    """With one change between two requests, what is consistent was the list at some instant."""
    walked = Walked(some_world(chats, order), history, width=width, delays=delays, max_passes=1)
    if walked.verdict.completeness == "consistent":
        assert walked.last_pass_was_a_list()


@settings(max_examples=80)
@given(
    st.sampled_from(["id", "id-desc", "recency", "shuffled"]),
    st.integers(0, 60),
    wild_histories,
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_every_walk_ends_within_its_bound(order, chats, history, width, max_passes):
    """However the list moves, a pass takes at most so many requests, and there are few passes."""
    walked = Walked(some_world(chats, order), history, width=width, max_passes=max_passes)
    assert walked.verdict.passes <= max_passes
    assert walked.linq.requests <= walked.verdict.passes * (7 * walked.pages + 30)


@pytest.mark.parametrize("order", ["id", "id-desc", "recency"])
@pytest.mark.parametrize("width", [1, 16])
@pytest.mark.parametrize(("chats", "pages"), [(0, 1), (1, 1), (100, 1), (101, 2), (5000, 50)])
def test_a_list_that_does_not_move(order, width, chats, pages):
    """It is consistent, at two requests more than its pages at most."""
    walked = Walked(some_world(chats, order), [], per_page=100, width=width)
    assert walked.verdict == Verdict(
        completeness="consistent",
        reason=None,
        passes=1,
        first_total=chats,
        total_count=chats,
        distinct=chats,
        duplicates=walked.verdict.duplicates,
        shrinkages=0,
    )
    assert walked.linq.requests <= pages + 2


@pytest.mark.parametrize("order", ["id", "id-desc", "recency"])
@pytest.mark.parametrize("width", [1, 16])
@pytest.mark.parametrize("seed", range(3))
def test_five_changes_a_page(order, width, seed):
    """Three jumps, a creation and a deletion after each page: nothing is missed, nor claimed."""
    world = some_world(2000, order, seed)
    motion = Motion(jumps=3, creates=1, deletes=1)
    history = [[lambda world: world.move(motion, NUMBER)]] * 1000
    walked = Walked(world, history, per_page=40, width=width)
    assert walked.throughout - walked.seen == set()
    assert walked.verdict.completeness == "unproved"


def test_a_list_that_is_never_twice_the_same_is_unproved():
    """In an order shuffled per request some chats are missed, and the verdict says so."""
    walked = Walked(some_world(500, "shuffled"), [], per_page=20)
    assert walked.verdict.completeness == "unproved"
    assert walked.verdict.reason.endswith("different chats were seen where the API counts 500")


def page_of(ids: Sequence[int], number: int, **meta: int | None) -> Page:
    extent = {"per_page": 2, "total_count": None, "last_page": None, **meta}
    chats = tuple(Chat(chat_id, None, None, None, None, None, None) for chat_id in ids)
    return Page(
        page_number=number, chats=chats, rejected=(), texts_cleaned=0, observed_at=None, **extent
    )


def walk_pages(answer, **options):
    """Walk a list that is what the function answers for a page's number."""

    async def fetch(number: int) -> Page:
        return answer(number)

    async def deliver(page: Page) -> None:
        return None

    async def run() -> Verdict:
        with ChatIds() as ids:
            return await walk(fetch, deliver, ids, **{"width": 4, "max_passes": 3, **options})

    return asyncio.run(run())


def test_a_list_without_totals_is_read_to_its_empty_page():
    """Where the API does not say how long the list is, the first empty page is its end."""
    ids = {1: [1, 2], 2: [3, 4], 3: [5]}
    verdict = walk_pages(lambda number: page_of(ids.get(number, []), number), max_passes=1)
    assert (verdict.completeness, verdict.distinct) == ("unproved", 5)
    assert verdict.reason == "the API did not say how long the list is"


def test_a_list_that_repeats_itself_fails():
    """The same page for every number is no list, and does not go on for ever."""
    with pytest.raises(ApiUnavailableError, match="repeats itself"):
        walk_pages(lambda number: page_of([1, 2], number))


def test_a_page_size_that_changes_is_read_again():
    """Pages of another length than the first make the pass inconsistent, not the walk endless."""

    def answer(number: int) -> Page:
        size = 2 if number == 1 else 3
        ids = range((number - 1) * size, min(number * size, 12))
        return page_of(ids, number, per_page=size, total_count=12, last_page=math.ceil(12 / size))

    assert walk_pages(answer).completeness == "unproved"


def test_pages_that_are_shorter_than_said_are_all_read():
    """A server that cuts its pages to 25 and goes on counting in hundreds hides nothing."""
    rows = list(range(1, 511))

    def answer(number: int) -> Page:
        ids = rows[(number - 1) * 25 : number * 25]
        return page_of(ids, number, per_page=100, total_count=510, last_page=6)

    for width in (1, 4):
        verdict = walk_pages(answer, width=width)
        assert (verdict.completeness, verdict.distinct) == ("consistent", 510)


@pytest.mark.parametrize("width", [1, 4])
def test_a_long_list_without_totals_is_read_to_its_end(width):
    """However little the API says, no pass stops before the first empty page."""

    def answer(number: int) -> Page:
        return page_of(range((number - 1) * 2, min(number * 2, 201)), number)

    verdict = walk_pages(answer, width=width, max_passes=2)
    assert (verdict.completeness, verdict.distinct) == ("unproved", 201)


@pytest.mark.parametrize(("pages", "together"), [(4, False), (20, True)])
def test_the_tails_first_reading_keeps_nobody_waiting(pages, together):
    """In a short list it goes alone, for the second would be under way beside it."""
    began, in_flight = [], {}

    async def fetch(number: int) -> Page:
        in_flight[number] = in_flight.get(number, 0) + 1
        began.append((number, dict(in_flight)))
        await asyncio.sleep(0)
        in_flight[number] -= 1
        ids = range(number * 2, number * 2 + 2)
        return page_of(ids, number, total_count=2 * pages, last_page=pages)

    async def deliver(page: Page) -> None:
        return None

    async def run() -> Verdict:
        with ChatIds() as ids:
            return await walk(fetch, deliver, ids, width=4, max_passes=1)

    assert asyncio.run(run()).completeness == "consistent"
    assert [number for number, _ in began[:3]] == [1, pages, 2]
    assert (began[2][1][pages] == 1) == together
    assert max(under_way[pages] for _, under_way in began if pages in under_way) == 1
