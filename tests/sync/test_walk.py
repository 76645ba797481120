"""The walk against generated histories of changes, and against lists that keep moving."""

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.api.client import RequestContext
from etl.api.models import Page
from etl.config import Token
from etl.errors import ApiUnavailableError
from etl.sandbox import Motion, World
from etl.sandbox.world import Order
from etl.sync.budget import BoundedFetch, Fetch
from etl.sync.passes import Deliver
from etl.sync.seen import ChatIds
from etl.sync.walk import Verdict, walk
from tests.support.builders import A
from tests.support.memory_api import Change, MemoryClient, change, page_of

CONTEXT = RequestContext(A, Token("t"))

History = Sequence[Sequence[Change]]


def world_of(chats: int, order: Order, seed: int = 1) -> World:
    world = World((A,), order=order, seed=seed)
    world.populate([(A,)] * chats)
    return world


KINDS = ("create", "delete", "jump", "rename", "join")
changes = st.builds(
    partial, st.just(change), st.just(A), st.sampled_from(KINDS), st.integers(0, 40)
)
calm_histories = st.lists(st.lists(changes, max_size=1), max_size=60)
wild_histories = st.lists(st.lists(changes, max_size=5), max_size=60)


async def walk_list(fetch: Fetch, deliver: Deliver, *, width: int, max_passes: int) -> Verdict:
    bounded = BoundedFetch(fetch, max_passes=max_passes)
    with ChatIds() as ids:
        return await walk(bounded, deliver, ids, width=width)


class Walked:
    """A walk that has ended, and the history during which it ran."""

    def __init__(
        self,
        world: World,
        history: History,
        *,
        per_page: int = 3,
        width: int = 1,
        delays: Sequence[int] = (),
        max_passes: int = 3,
    ) -> None:
        self.client = MemoryClient(world, A, per_page=per_page)
        self.client.changes, self.client.delays = list(history), list(delays)
        self.throughout = set(world.listing(A))
        self.pages = 1 + math.ceil((len(self.throughout) + 60) / per_page)
        delivered: list[Page] = []

        async def deliver(page: Page) -> None:
            delivered.append(page)

        fetch = partial(self.client.list_chats, CONTEXT)
        self.verdict = asyncio.run(walk_list(fetch, deliver, width=width, max_passes=max_passes))
        self.throughout &= set(world.listing(A))
        self.seen = {chat_id for page in delivered for chat_id in page.ids}

    def saw_a_list(self) -> bool:
        """Whether the ids seen were the list at some instant."""
        return frozenset(self.seen) in self.client.lists


@settings(max_examples=100)
@given(st.integers(0, 40), calm_histories, st.integers(1, 5), st.lists(st.integers(0, 5)))
def test_no_chat_is_missed_in_recency_order(
    chats: int, history: History, width: int, delays: list[int]
) -> None:
    """With one change between two requests, every chat listed throughout is seen."""
    walked = Walked(world_of(chats, "recency"), history, width=width, delays=delays)
    assert walked.throughout <= walked.seen


@settings(max_examples=300)
@given(st.integers(0, 40), calm_histories, st.integers(2, 4))
def test_one_sequential_pass_misses_no_chat(chats: int, history: History, per_page: int) -> None:
    """A single pass that reads one page at a time sees them all, thanks to its repairs."""
    walked = Walked(world_of(chats, "recency"), history, per_page=per_page, max_passes=1)
    assert walked.throughout <= walked.seen


@settings(max_examples=150)
@given(
    st.sampled_from(["id", "id-desc", "recency"]),
    st.integers(0, 40),
    calm_histories,
    st.integers(1, 5),
    st.lists(st.integers(0, 5)),
)
def test_a_consistent_pass_saw_the_list(
    order: Order, chats: int, history: History, width: int, delays: list[int]
) -> None:
    """With one change between two requests, a consistent pass saw the list of some instant."""
    walked = Walked(world_of(chats, order), history, width=width, delays=delays, max_passes=1)
    if walked.verdict.completeness == "consistent":
        assert walked.saw_a_list()


@settings(max_examples=80)
@given(
    st.sampled_from(["id", "id-desc", "recency", "shuffled"]),
    st.integers(0, 60),
    wild_histories,
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_every_walk_ends_within_its_bound(
    order: Order, chats: int, history: History, width: int, max_passes: int
) -> None:
    """However the list moves, the number of passes and the requests of a pass are bounded."""
    walked = Walked(world_of(chats, order), history, width=width, max_passes=max_passes)
    assert walked.verdict.passes <= max_passes
    assert walked.client.requests <= walked.verdict.passes * (7 * walked.pages + 30)


@pytest.mark.parametrize("order", ["id", "id-desc", "recency"])
@pytest.mark.parametrize("width", [1, 16])
@pytest.mark.parametrize(("chats", "pages"), [(0, 1), (1, 1), (100, 1), (101, 2), (5000, 50)])
def test_a_list_that_does_not_move(order: Order, width: int, chats: int, pages: int) -> None:
    """It is read consistently, with at most two more requests than it has pages."""
    walked = Walked(world_of(chats, order), [], per_page=100, width=width)
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
    assert walked.client.requests <= pages + 2


@pytest.mark.parametrize("order", ["id", "id-desc", "recency"])
@pytest.mark.parametrize("width", [1, 16])
@pytest.mark.parametrize("seed", range(3))
def test_five_changes_a_page(order: Order, width: int, seed: int) -> None:
    """Three jumps, a creation and a deletion per page: no chat is missed, and it stays unproved."""
    world = world_of(2000, order, seed)
    motion = Motion(jumps=3, creates=1, deletes=1)
    history: History = [[lambda world: world.move(motion, A)]] * 1000
    walked = Walked(world, history, per_page=40, width=width)
    assert walked.throughout - walked.seen == set()
    assert walked.verdict.completeness == "unproved"


def test_a_shuffled_list_is_unproved() -> None:
    """If each request sees another order some chats are missed, and the verdict says so."""
    walked = Walked(world_of(500, "shuffled"), [], per_page=20)
    assert walked.verdict.completeness == "unproved"
    assert walked.verdict.reason == (
        f"{walked.verdict.distinct} distinct chats were seen, but the API reports 500"
    )


# Lists that are answered page by page

Answer = Callable[[int], Page]


async def ignore(_: Page) -> None:
    """Deliver a page to nobody."""


def walk_pages(answer: Answer, *, width: int = 4, max_passes: int = 3) -> Verdict:
    """Walk the list whose pages the function returns by number."""

    async def fetch(page_number: int) -> Page:
        return answer(page_number)

    return asyncio.run(walk_list(fetch, ignore, width=width, max_passes=max_passes))


def test_a_list_without_totals_is_read_to_its_empty_page() -> None:
    """If the API does not report the list's length, the first empty page is the end."""
    ids = {1: [1, 2], 2: [3, 4], 3: [5]}
    verdict = walk_pages(lambda number: page_of(ids.get(number, []), number), max_passes=1)
    assert (verdict.completeness, verdict.distinct) == ("unproved", 5)
    assert verdict.reason == "the API did not report how long the list is"


def test_a_list_that_repeats_itself_fails() -> None:
    """An API that returns the same page for every number is broken; the walk does not go on."""
    with pytest.raises(ApiUnavailableError, match="repeats itself"):
        walk_pages(lambda number: page_of([1, 2], number))


def test_a_page_size_that_changes_is_unproved() -> None:
    """Pages longer than the first make the pass inconsistent, but the walk ends."""

    def answer(number: int) -> Page:
        size = 2 if number == 1 else 3
        ids = range((number - 1) * size, min(number * size, 12))
        return page_of(ids, number, per_page=size, total_count=12, last_page=math.ceil(12 / size))

    assert walk_pages(answer).completeness == "unproved"


@pytest.mark.parametrize(("per_page", "last_page"), [(100, 6), (600, 1), (2**53, 1), (1, 510)])
@pytest.mark.parametrize("width", [1, 4])
def test_pages_of_another_length_than_reported_are_all_read(
    width: int, per_page: int, last_page: int
) -> None:
    """A server that sends 25 rows a page, whatever it counts its pages in, hides no chat."""
    rows = list(range(1, 511))

    def answer(number: int) -> Page:
        ids = rows[(number - 1) * 25 : number * 25]
        return page_of(
            ids,
            number,
            per_page=per_page,
            total_count=510,
            last_page=last_page,
            is_gap=not ids and number <= last_page,
        )

    verdict = walk_pages(answer, width=width)
    assert (verdict.completeness, verdict.distinct) == ("consistent", 510)


@pytest.mark.parametrize("width", [1, 4])
def test_a_long_list_without_totals_is_read_to_its_end(width: int) -> None:
    """However little the API reports, no pass stops before the first empty page."""

    def answer(number: int) -> Page:
        return page_of(range((number - 1) * 2, min(number * 2, 201)), number)

    verdict = walk_pages(answer, width=width, max_passes=2)
    assert (verdict.completeness, verdict.distinct) == ("unproved", 201)


@pytest.mark.parametrize(("pages", "prefetched"), [(4, False), (20, True)])
def test_the_last_page_is_never_in_flight_twice(pages: int, prefetched: bool) -> None:
    """In a short list its first reading ends before others start; in a long one it joins them."""
    in_flight: dict[int, int] = {}
    began: list[tuple[int, dict[int, int]]] = []

    async def fetch(number: int) -> Page:
        in_flight[number] = in_flight.get(number, 0) + 1
        began.append((number, dict(in_flight)))
        await asyncio.sleep(0)
        in_flight[number] -= 1
        ids = range(number * 2, number * 2 + 2)
        return page_of(ids, number, total_count=2 * pages, last_page=pages)

    verdict = asyncio.run(walk_list(fetch, ignore, width=4, max_passes=1))
    assert verdict.completeness == "consistent"
    assert [number for number, _ in began[:3]] == [1, pages, 2]
    assert (began[2][1][pages] == 1) == prefetched
    assert max(now[pages] for _, now in began if pages in now) == 1
