"""Which number is in which shard."""

import pytest

from etl.sync.shard import Shard

PINNED = [3, 13, 0, 2, 5, 3, 0, 14, 9, 8, 14, 12]  # of the first numbers, among 16 shards
NUMBERS = [f"+1312555{n:04}" for n in range(1000)]


def test_a_number_keeps_its_shard() -> None:
    """Whatever the machine, the version of Python and the other numbers: pinned for ever."""
    shards = [next(k for k in range(16) if Shard(k, 16).has(number)) for number in NUMBERS[:12]]
    assert shards == PINNED


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_each_number_is_in_one_shard(count: int) -> None:
    """None is left out and none is in two."""
    found = [number for k in range(count) for number in NUMBERS if Shard(k, count).has(number)]
    assert sorted(found) == NUMBERS


def test_shards_are_about_equal() -> None:
    """Of a thousand numbers, each of eight shards gets between 100 and 150."""
    sizes = [sum(Shard(k, 8).has(number) for number in NUMBERS) for k in range(8)]
    assert all(100 <= size <= 150 for size in sizes)
