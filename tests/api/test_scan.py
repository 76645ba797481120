"""Splitting JSON without parsing it, and measuring it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.api.scan import has_more_values, is_deeper, split_items, split_members

TEXTS = st.text(alphabet='ab"\\[]{},: \n\0é😀', max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)
SEPARATORS = st.sampled_from([(",", ":"), (" ,\n", " : ")])


def levels(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(levels, inner), default=0) if isinstance(value, list | dict) else 0


def values(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value
    return 1 + sum(map(values, inner)) if isinstance(value, list | dict) else 1


@given(st.lists(VALUES, max_size=5), SEPARATORS)
def test_an_array_is_split_into_its_items(items: list[Any], separators: tuple[str, str]) -> None:
    """Whatever texts and containers it holds."""
    text = json.dumps(items, separators=separators).encode()

    assert [json.loads(item) for item in split_items(text, 10)] == items


@given(st.dictionaries(TEXTS, VALUES, max_size=5), SEPARATORS)
def test_an_object_is_split_into_its_members(
    members: dict[str, Any], separators: tuple[str, str]
) -> None:
    """By their names, which may be escaped."""
    text = json.dumps(members, separators=separators).encode()

    assert {name: json.loads(item) for name, item in split_members(text, 10).items()} == members


@given(st.lists(VALUES, min_size=1, max_size=5), st.data())
def test_what_is_cut_short_is_not_split(items: list[Any], data: st.DataObject) -> None:
    """No part of an array is taken for an array."""
    text = json.dumps(items).encode()
    cut = data.draw(st.integers(0, len(text) - 1))

    with pytest.raises(ValueError, match=r"other brackets|cut short"):
        split_items(text[:cut], 10)


@given(VALUES, st.integers(1, 6))
def test_levels_are_counted(value: Any, limit: int) -> None:
    """Exactly, and brackets in texts are none."""
    assert is_deeper(json.dumps(value).encode(), limit) == (levels(value) > limit)


@given(VALUES)
def test_values_are_counted(value: Any) -> None:
    """Up to twice: a container counts, and so does each comma."""
    text = json.dumps(value).encode()

    assert not has_more_values(text, 2 * values(value))
    assert values(value) <= 3 or has_more_values(text, values(value) // 3)


@pytest.mark.parametrize(
    "text", [b"", b"[", b"[]]", b"[] []", b"{}", b"1", b'"[]"', b'["]', rb'["\"]', b"[[]", b"[}]"]
)
def test_no_array(text: bytes) -> None:
    """Other brackets, none, or something behind them raise ValueError."""
    with pytest.raises(ValueError, match=r"brackets|short|followed"):
        split_items(text, 10)


@pytest.mark.parametrize("text", [b"[]", b'{"a"}', b"{1:2}", b'{"a":1,}', b'{"a":1', b'{"a:1}'])
def test_no_object(text: bytes) -> None:
    """A member needs a name and a colon."""
    with pytest.raises(ValueError, match=r"brackets|key|short"):
        split_members(text, 10)


def test_parts_have_a_limit() -> None:
    """More of them than asked for raise ValueError."""
    assert split_items(b"[1,2,3]", 3) == [b"1", b"2", b"3"]
    with pytest.raises(ValueError, match="too many"):
        split_items(b"[1,2,3]", 2)
