"""Items in groups, so that a statement names few of them and a transaction stays short."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in their order, `size` at a time; the last group may be smaller."""
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk
