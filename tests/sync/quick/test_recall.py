"""The exact lower bound, and what the walks so far say of a list."""

from collections.abc import Sequence
from fractions import Fraction
from math import comb

import pytest

from etl.db.list_orders import Found, Walk
from etl.db.tables import CHANGE_KINDS
from etl.sync.quick.recall import judge, lower_bound


def walk(
    run_id: int, hits: int = 0, misses: int = 0, *, ascending: int = 50, names_missed: int = 0
) -> Walk:
    """A walk that found so many chats with another message count; half of 100 pairs ascend."""
    found = dict.fromkeys(CHANGE_KINDS, Found()) | {
        "messages": Found(hits, misses),
        "names": Found(0, names_missed),
    }
    changed = hits + misses
    return Walk(run_id, 10, 1000, 100, ascending, changed, None, None, [], found)


def walks(*counts: tuple[int, int], ascending: int = 50) -> list[Walk]:
    """The newest first."""
    return [
        walk(len(counts) - index, hits, misses, ascending=ascending)
        for index, (hits, misses) in enumerate(counts)
    ]


def tail(share: Fraction, hits: int, of: int) -> Fraction:
    """The probability of so many hits or more."""
    return sum(
        (comb(of, k) * share**k * (1 - share) ** (of - k) for k in range(hits, of + 1)),
        start=Fraction(0),
    )


@pytest.mark.parametrize(
    ("hits", "misses"), [(1, 0), (1, 1), (5, 5), (1, 60), (60, 1), (299, 0), (100, 40)]
)
def test_the_lower_bound_is_exact(hits: int, misses: int) -> None:
    """By Clopper and Pearson, the share for which so many hits have a probability of 5 %."""
    bound = Fraction(lower_bound(Found(hits, misses)))
    assert float(tail(bound, hits, hits + misses)) == pytest.approx(0.05, rel=1e-9)


@pytest.mark.parametrize("misses", [0, 7, 10**6])
def test_without_a_hit_the_bound_is_zero(misses: int) -> None:
    assert lower_bound(Found(0, misses)) == 0


def test_the_bound_of_millions() -> None:
    assert lower_bound(Found(99 * 10**6, 10**6)) == pytest.approx(0.98998, abs=1e-5)


GOOD = (100, 0)
BAD = (0, 100)


@pytest.mark.parametrize(
    ("counts", "off"),
    [
        ([], "0 of 5 full walks, 0 of 300 changed chats"),
        ([GOOD] * 4, "4 of 5 full walks, 300 of 300 changed chats"),
        ([(59, 0)] * 5, "5 of 5 full walks, 295 of 300 changed chats"),
        ([(60, 0)] * 5, None),
        ([(10, 0)] * 30, None),
        ([BAD, *[GOOD] * 4], "quick readings miss changes: 100 of 300, so they"),
        ([*[GOOD] * 5, BAD], None),
        ([*[GOOD] * 4, BAD], "quick readings miss changes: 100 of 500, so they"),
    ],
)
def test_when_quick_readings_are_off(counts: Sequence[tuple[int, int]], off: str | None) -> None:
    """Until five walks saw 300 changed chats, and while the newest of them have misses."""
    judgement = judge(walks(*counts), 0.99)
    assert (judgement.quick_off is None) == (off is None)
    assert (off or "") in (judgement.quick_off or "")


@pytest.mark.parametrize(
    ("newest", "missed"),
    [
        ([(0, 3)], "3 of the last 3"),
        ([(95, 5)], "5 of the last 100"),
        ([(8, 1), (8, 1)], "2 of the last 18"),
        ([(99, 1)], None),
        ([(3000, 20)], None),
    ],
)
def test_many_good_walks_do_not_outweigh_the_newest(
    newest: list[tuple[int, int]], missed: str | None
) -> None:
    """The list has changed its order: what is known of the old one is dropped."""
    found = judge(walks(*newest, *[(10**6, 0)] * 5), 0.99)
    if missed is None:
        assert found.quick_off is None
        return
    assert found.quick_off == (
        f"the list has changed its order: quick readings missed {missed} changes"
    )
    assert (found.order, found.needed) == ("unknown", len(newest))


def test_a_list_in_another_order_is_no_change_of_order() -> None:
    """Each walk has misses, and all of them tell the order."""
    found = judge(walks(*[BAD] * 6, ascending=99), 0.99)
    assert (found.order, found.needed) == ("id", 20)


@pytest.mark.parametrize(
    ("counts", "ascending", "order"),
    [
        ([GOOD] * 5, 50, "recency"),
        ([BAD] * 5, 50, "unknown"),
        ([BAD] * 5, 99, "id"),
        ([BAD] * 5, 1, "id-desc"),
        ([GOOD] * 5, 99, "id"),
        ([GOOD] * 4, 99, "unknown"),
    ],
)
def test_the_order_of_a_list(counts: Sequence[tuple[int, int]], ascending: int, order: str) -> None:
    """By the ids of neighbours, else by where the changed chats lie."""
    assert judge(walks(*counts, ascending=ascending), 0.99).order == order


def test_only_message_counts_decide() -> None:
    """A rename need not move a chat; its recall is published only."""
    found = judge([walk(5 - i, 100, names_missed=9) for i in range(5)], 0.99)
    assert found.quick_off is None
    assert found.recalls["names"].found == Found(0, 27)


def test_no_more_walks_are_needed_than_are_the_evidence() -> None:
    assert judge(walks(*[(1, 0)] * 400), 0.99).needed == 300
    assert judge(walks(*[GOOD] * 400), 0.99).needed == 20
