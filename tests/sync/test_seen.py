"""The sets of ids that a walk works with."""

import sqlite3

import pytest

from etl.sync.seen import ChatIds

LARGEST = 2**63 - 1


def test_an_id_is_new_once_in_each_pass() -> None:
    """Adding tells how many are seen for the first time in this pass."""
    with ChatIds() as ids:
        ids.begin_pass()
        assert [ids.add([1, 2, 2, LARGEST]), ids.add([2, 3]), ids.add([])] == [3, 1, 0]
        ids.begin_pass()
        assert [ids.add([3, 4]), ids.add([3, 4])] == [2, 0]
        assert ids.passes == 2


def test_missing_is_what_was_known_and_not_seen_in_any_pass() -> None:
    """What was missing already comes first, each part in the order of the ids."""
    with ChatIds() as ids:
        ids.know([5, 1, LARGEST, 3], missing=False)
        ids.know([4, 2], missing=True)
        assert ids.known_count() == 6
        assert list(ids.missing()) == [2, 4, 1, 3, 5, LARGEST]
        ids.begin_pass()
        ids.add([1, 4, 99])
        ids.begin_pass()
        ids.add([3])
        assert list(ids.missing()) == [2, 5, LARGEST]
        assert list(ids.missing(2)) == [2, 5]
        assert list(ids.missing(0)) == []
        assert list(ids.missing_before()) == [2]
        assert (ids.missing_count(), ids.known_count()) == (3, 6)


def test_what_is_settled_is_known_no_more() -> None:
    """It is not missing then either; an id that was never known does no harm."""
    with ChatIds() as ids:
        ids.know([1, 2], missing=False)
        ids.know([3], missing=True)
        ids.settle([2, 3, 77])
        assert list(ids.missing()) == [1]
        assert (ids.known_count(), ids.missing_count()) == (1, 1)
        assert list(ids.missing_before()) == []


def test_what_is_known_twice_counts_once() -> None:
    """What was said of it first stays."""
    with ChatIds() as ids:
        ids.know([1], missing=False)
        ids.know([1], missing=True)
        assert ids.known_count() == 1
        assert list(ids.missing_before()) == []


def test_seen_last_time_and_now_is_what_two_walks_share() -> None:
    """Those that the walk before had missed are not counted, and new ones are not."""
    with ChatIds() as ids:
        ids.know([1, 2, 3], missing=False)
        ids.know([4, 5], missing=True)
        ids.begin_pass()
        ids.add([2, 3, 4, 6])
        assert ids.seen_last_time_and_now() == 2


def test_seen_before_and_since_is_what_both_parts_of_the_passes_share() -> None:
    """A pass belongs to the later part from the given number on."""
    with ChatIds() as ids:
        for seen in ([1, 2], [2, 3, 4], [1, 4, 5]):
            ids.begin_pass()
            ids.add(seen)
        assert [ids.seen_before_and_since(first) for first in (1, 2, 3, 4)] == [0, 2, 2, 0]


def test_nothing_is_missing_of_nothing() -> None:
    """A first walk knows no ids."""
    with ChatIds() as ids:
        ids.begin_pass()
        ids.add(range(1000))
        assert (ids.known_count(), ids.missing_count(), list(ids.missing())) == (0, 0, [])
        assert ids.seen_last_time_and_now() == 0


def test_the_ids_are_gone_with_the_block() -> None:
    """What was kept is given back to the system at its end."""
    with ChatIds() as ids:
        ids.know([1], missing=False)
    with pytest.raises(sqlite3.ProgrammingError):
        ids.known_count()
