"""How much quick readings find, judged by the full walks so far. Pure.

The evidence is the newest walks that together saw MIN_CHANGES chats with another message count, and
the newest MIN_WALKS or more of them; the worse of the two counts. So a few lucky walks do not turn
quick readings on. If the newest walks contradict good evidence, the list has changed its order, and
that evidence is dropped: however much of it there is, it cannot outweigh them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from etl.db.list_orders import Found, Recall, Walk
from etl.db.tables import CHANGE_KINDS, ChangeKind, ListOrder

MIN_WALKS: Final = 5
MIN_CHANGES: Final = 300
KEPT_WALKS: Final = 20  # at least, for people who look at them
_DOUBT: Final = 0.05
_SORTED: Final = 0.98  # share of pairs in order; chats may move while the list is read
_RECENT: Final = 0.9  # share of changed chats on the first pages


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the walks say: the list's order, the recall, and why quick readings are off, if so."""

    order: ListOrder
    recalls: dict[ChangeKind, Recall]
    quick_off: str | None
    needed: int  # walks, the newest first, that this or a later judgement looks at


def judge(walks: Sequence[Walk], least: float) -> Judgement:
    """Judge by the walks, the newest first. `least` is the lower bound that messages need."""
    for newest in (walks[:1], walks[:2]):
        older = walks[len(newest) :]
        if _contradicts(newest, least) and not _judge(older, least).quick_off:
            found = _total(newest, "messages")
            off = (
                f"the list has changed its order: quick readings missed {found.misses} of the last "
                f"{found.hits + found.misses} changes"
            )
            return replace(_judge(newest, least), quick_off=off, needed=len(newest))
    return _judge(walks, least)


def _judge(walks: Sequence[Walk], least: float) -> Judgement:
    recent, long = _until(walks, 1), _until(walks, MIN_WALKS)
    recalls = {
        kind: min((_recall(some, kind) for some in (recent, long)), key=_bound)
        for kind in CHANGE_KINDS
    }
    seen = _total(long, "messages")
    changes = seen.hits + seen.misses
    bound = recalls["messages"].lower_bound
    off = None
    if len(long) < MIN_WALKS or changes < MIN_CHANGES:
        off = (
            f"the order of the list is not known yet: {min(len(long), MIN_WALKS)} of {MIN_WALKS} "
            f"full walks, {min(changes, MIN_CHANGES)} of {MIN_CHANGES} changed chats"
        )
    elif bound < least:
        found = recalls["messages"].found
        off = (
            f"quick readings miss changes: {found.misses} of {found.hits + found.misses}, so they "
            f"find only {bound:.1%} for certain; sync.quick_recall asks for {least:.1%}"
        )
    order = _order(long) if len(long) >= MIN_WALKS and changes >= MIN_CHANGES else "unknown"
    return Judgement(order, recalls, off, max(len(long), KEPT_WALKS))


def _contradicts(walks: Sequence[Walk], least: float) -> bool:
    """Whether so few hits have a probability below _DOUBT if quick readings find `least`."""
    found = _total(walks, "messages")
    upper_bound = 1 - lower_bound(Found(found.misses, found.hits))
    return upper_bound < least


def lower_bound(found: Found) -> float:
    """The exact one-sided 95 % lower bound (Clopper-Pearson) of the share of hits."""
    if found.hits == 0:
        return 0.0
    # The share p for which so many hits or more have the probability _DOUBT: I_p(hits, misses + 1).
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _beta_cdf(middle, found.hits, found.misses + 1) < _DOUBT:
            low = middle
        else:
            high = middle
    return low


def _until(walks: Sequence[Walk], at_least: int) -> list[Walk]:
    """The newest walks, at least so many, that together saw enough changes."""
    some: list[Walk] = []
    changes = 0
    for walk in walks:
        if len(some) >= at_least and changes >= MIN_CHANGES:
            break
        some.append(walk)
        found = walk.found["messages"]
        changes += found.hits + found.misses
    return some


def _recall(walks: Sequence[Walk], kind: ChangeKind) -> Recall:
    found = _total(walks, kind)
    return Recall(found, lower_bound(found))


def _bound(recall: Recall) -> float:
    return recall.lower_bound


def _total(walks: Sequence[Walk], kind: ChangeKind) -> Found:
    return sum((walk.found[kind] for walk in walks), start=Found())


def _order(walks: Sequence[Walk]) -> ListOrder:
    pairs = sum(walk.pairs for walk in walks)
    ascending = sum(walk.ascending for walk in walks)
    if pairs and ascending >= _SORTED * pairs:
        return "id"
    if pairs and ascending <= (1 - _SORTED) * pairs:
        return "id-desc"
    found = _total(walks, "messages")
    return "recency" if found.hits >= _RECENT * (found.hits + found.misses) else "unknown"


def _beta_cdf(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function, by its continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_cdf(1 - x, b, a)
    front = a * math.log(x) + b * math.log1p(-x) - math.log(a)
    front += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    # Lentz's method, which evaluates the fraction from its front.
    tiny = 1e-300
    value, c, d = 1.0, 1.0, 0.0
    for numerator in _numerators(x, a, b):
        d = 1 / ((1 + numerator * d) or tiny)
        c = (1 + numerator / c) or tiny
        value *= c * d
        if abs(1 - c * d) < 1e-14:
            break
    return math.exp(front) / value


def _numerators(x: float, a: float, b: float) -> Iterator[float]:
    """Of the continued fraction; enough for any number of chats."""
    for m in range(200_000):
        if m:
            yield m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        yield -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
