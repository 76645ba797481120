"""The sets of ids that a walk works with."""

import sqlite3
import tracemalloc

import pytest

from etl.sync.seen import ChatIds

LARGEST = 2**63 - 1


def test_an_id_is_new_once_in_each_pass() -> None:
    """Adding ids returns how many are seen for the first time in this pass."""
    with ChatIds() as ids:
        ids.begin_pass()
        assert [ids.add_seen([1, 2, 2, LARGEST]), ids.add_seen([2, 3]), ids.add_seen([])] == [
            3,
            1,
            0,
        ]
        ids.begin_pass()
        assert [ids.add_seen([3, 4]), ids.add_seen([3, 4])] == [2, 0]
        assert ids.passes == 2


def test_missing_ids_were_known_and_not_seen_in_any_pass() -> None:
    """Ids that the previous walk missed too come first; each part is in the order of ids."""
    with ChatIds() as ids:
        ids.add_known([5, 1, LARGEST, 3], missing=False)
        ids.add_known([4, 2], missing=True)
        assert ids.count_known() == 6
        assert list(ids.missing()) == [2, 4, 1, 3, 5, LARGEST]
        ids.begin_pass()
        ids.add_seen([1, 4, 99])
        ids.begin_pass()
        ids.add_seen([3])
        assert list(ids.missing()) == [2, 5, LARGEST]
        assert list(ids.missing(2)) == [2, 5]
        assert list(ids.missing(0)) == []
        assert list(ids.missing_twice()) == [2]
        assert (ids.count_missing(), ids.count_known()) == (3, 6)


def test_a_forgotten_id_is_no_longer_known() -> None:
    """It is not missing either; forgetting an id that was never known is harmless."""
    with ChatIds() as ids:
        ids.add_known([1, 2], missing=False)
        ids.add_known([3], missing=True)
        ids.forget([2, 3, 77])
        assert list(ids.missing()) == [1]
        assert (ids.count_known(), ids.count_missing()) == (1, 1)
        assert list(ids.missing_twice()) == []


def test_an_id_added_twice_counts_once() -> None:
    """The first `missing` flag stays."""
    with ChatIds() as ids:
        ids.add_known([1], missing=False)
        ids.add_known([1], missing=True)
        assert ids.count_known() == 1
        assert list(ids.missing_twice()) == []


def test_ids_seen_in_both_walks_are_counted() -> None:
    """Ids that the previous walk missed do not count, nor do new ones."""
    with ChatIds() as ids:
        ids.add_known([1, 2, 3], missing=False)
        ids.add_known([4, 5], missing=True)
        ids.begin_pass()
        ids.add_seen([2, 3, 4, 6])
        assert ids.count_seen_in_both_walks() == 2


def test_ids_seen_before_a_pass_and_since_are_counted() -> None:
    """The pass itself belongs to the later part."""
    with ChatIds() as ids:
        for seen in ([1, 2], [2, 3, 4], [1, 4, 5]):
            ids.begin_pass()
            ids.add_seen(seen)
        assert [ids.count_seen_before_and_since(first) for first in (1, 2, 3, 4)] == [0, 2, 2, 0]


def test_a_first_walk_misses_no_id() -> None:
    """It knows none."""
    with ChatIds() as ids:
        ids.begin_pass()
        ids.add_seen(range(1000))
        assert (ids.count_known(), ids.count_missing(), list(ids.missing())) == (0, 0, [])
        assert ids.count_seen_in_both_walks() == 0


def test_the_database_is_closed_with_the_block() -> None:
    """SQLite deletes its temporary file then."""
    with ChatIds() as ids:
        ids.add_known([1], missing=False)
    with pytest.raises(sqlite3.ProgrammingError):
        ids.count_known()


def test_ids_of_any_sign_and_size_are_kept() -> None:
    """An id may be any signed 64-bit integer."""
    extremes = [-(2**63), -1, 0, 1, LARGEST]
    with ChatIds() as ids:
        ids.add_known(extremes, missing=True)
        ids.begin_pass()
        assert ids.add_seen([*extremes, *extremes]) == len(extremes)
        assert ids.count_missing() == 0
        ids.forget(extremes)
        assert ids.count_known() == 0


def test_a_million_missing_ids_take_little_memory() -> None:
    """They are read one after another, not collected."""
    with ChatIds() as ids:
        for start in range(0, 10**6, 10_000):
            ids.add_known(range(start, start + 10_000), missing=start % 20_000 == 0)
        tracemalloc.start()
        try:
            counted = sum(1 for _ in ids.missing()), sum(1 for _ in ids.missing_twice())
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()
        assert counted == (10**6, 5 * 10**5)
