"""Bounds: what an answer may cost, and what becomes of a record that exceeds them."""

import json
import tracemalloc
from collections.abc import Iterator

import pytest

from etl.api.decode import BadAnswerError, decode_chat, decode_page, decode_phone_numbers
from etl.api.models import Chat, Rejected
from tests.support.builders import NOON
from tests.support.decoding import only_chat, only_rejected, page_meta, read_page, tolerated

MIB = 2**20
BODY = 8 * MIB  # the most that the client reads


def with_text(field: str, length: int, character: str = "a") -> str:
    """A chat with a text of so many characters; a field of its participant has the prefix h."""
    member = f'"{field.removeprefix("h.")}":"{character * length}"'
    return (
        f'{{"id":1,"chat_handles":[{{"id":2,{member}}}]}}'
        if field.startswith("h.")
        else f'{{"id":1,{member}}}'
    )


# Texts

BOUNDS = [
    ("display_name", MIB, "display_name"),
    ("service", MIB, "service"),
    ("h.service", MIB, "chat_handles[0].service"),
    ("h.phone_number", 255, "chat_handles[0].phone_number"),
]


@pytest.mark.parametrize("spell", [str, tolerated], ids=["plain", "tolerated"])
@pytest.mark.parametrize(("field", "bound", "path"), BOUNDS)
def test_a_text_has_a_bound(field: str, bound: int, path: str, spell: type[str]) -> None:
    """A participant has 255 characters at most, any other text a MiB, or its chat is rejected."""
    assert only_chat(spell(with_text(field, bound))).id == 1

    found = only_rejected(spell(with_text(field, bound + 1)))
    reason = f"Expected `str | null` of length <= {bound} - at `$.{path}`"
    assert (found.id, found.reason) == (1, reason.replace("str | null", "str"))


@pytest.mark.parametrize(("field", "bound", "path"), BOUNDS[-1:])
def test_a_bound_counts_characters(field: str, bound: int, path: str) -> None:
    """Not bytes: 255 emoji are a participant."""
    handles = only_chat(with_text(field, bound, "😀")).handles or ()

    assert [each.phone_number for each in handles] == ["😀" * bound]


@pytest.mark.parametrize("place", ['"x":"{}"', '"chat_handles":[{{"id":2,"x":"{}"}}]'])
def test_unknown_fields_have_a_bound(place: str) -> None:
    """All unknown fields of a chat, or of a participant, have a MiB of JSON in total."""
    rest = len('{"x":""}')
    item = '{{"id":1,' + place + "}}"

    assert only_chat(item.format("a" * (MIB - rest))).id == 1
    assert only_rejected(item.format("a" * (MIB - rest + 1))).reason == (
        "Unknown fields of more than 1048576 characters"
    )


@pytest.mark.parametrize("text", [" " * 65, " " * MIB, "2025-05-21T15:30:00Z" + " " * 45])
def test_a_time_has_a_bound(text: str) -> None:
    """A longer text is no time, and is not looked at."""
    reason = "Not a time - at `$.chat_handles[0].joined_at`"

    assert only_rejected(with_text("h.joined_at", 1, text)).reason == reason


# Rejected records


def test_a_large_rejected_record_is_cut_to_its_head() -> None:
    """Up to 64 KiB a rejected record is kept as it was sent, beyond that its first 4096 bytes."""
    short = '{"display_name":5,"id":1,"x":"' + "é" * (32 * 1024 - 16) + '"}'
    long = short.replace("é", "éé", 1)
    assert len(short.encode()) == 64 * 1024

    assert only_rejected(short).payload == short
    found = only_rejected(long)
    assert (found.id, found.reason) == (1, "Expected `str | null`, got `int` - at `$.display_name`")
    head = long.encode()[:4096].decode()
    assert json.loads(found.payload) == {"truncated": True, "head": head}


def test_a_head_can_be_stored() -> None:
    """Bytes that are no text, or half a character, become U+FFFD."""
    item = b'{"id":"\x00\xff' + b"a" * 4086 + "é".encode() + b"a" * 70_000 + b'"}'
    (found,) = read_page(b"[" + item + b"]").rejected

    head = '{"id":"\ufffd\ufffd' + "a" * 4086 + "\ufffd"
    assert json.loads(found.payload) == {"truncated": True, "head": head}


def test_records_with_the_same_head_differ() -> None:
    """The digest and the key of a rejected record are of the whole record."""
    first, second, third = (
        only_rejected('{"id":"' + "a" * 70_000 + end + '"}') for end in ("b", "c", "b")
    )

    assert first.payload == second.payload
    assert first.digest == third.digest != second.digest
    assert first.key == third.key != second.key


@pytest.mark.parametrize("item", ["7", "-0.0", "1e16", "1E+2", '"a"', "true", "null", "[1,2.50]"])
def test_a_record_that_is_no_object_is_kept(item: str) -> None:
    """Its value is the one that was sent."""
    kept = json.loads(only_rejected(item).payload)

    assert (kept, type(kept)) == (json.loads(item), type(json.loads(item)))


# Numbers of rows, values and participants


@pytest.mark.parametrize("odd", ["", "NaN"])
def test_a_page_has_a_bound(odd: str) -> None:
    """More than 200 rows, twice what can be asked for, are no answer."""
    rows = [odd or '{"id":1}', *['{"id":2}'] * 199]

    assert len(read_page(f"[{','.join(rows)}]").ids) == 200
    with pytest.raises(BadAnswerError):
        read_page(f"[{','.join([*rows, rows[-1]])}]")


@pytest.mark.parametrize("field", ["x", "chat_handles"])
def test_a_record_has_a_bound(field: str) -> None:
    """More than 100,000 values reject the record alone."""
    item = f'{{"id":2,"{field}":[{",".join(["{}"] * 50_000)}]}}'
    found = read_page(f'[{{"id":1}},{item},{{"id":3}}]')

    assert found.chats == (Chat(1), Chat(3))
    assert [each.reason for each in found.rejected] == ["More than 100000 values"]


def test_commas_in_texts_are_no_values() -> None:
    """A name may consist of commas and brackets."""
    name = ",[{" * 200_000

    assert only_chat(f'{{"id":1,"display_name":"{name}"}}').display_name == name


def test_a_large_chat_is_a_chat() -> None:
    """One chat may have tens of thousands of participants."""
    handles = ",".join(f'{{"id":{number}}}' for number in range(40_000))

    assert len(only_chat(f'{{"id":1,"chat_handles":[{handles}]}}').handles or ()) == 40_000


def test_a_page_has_a_bound_for_participants() -> None:
    """More than 100,000 on one page are no answer."""
    handles = ",".join(['{"id":1}'] * 40_000)
    item = f'{{"id":1,"chat_handles":[{handles}]}}'

    with pytest.raises(BadAnswerError, match=r"120000 participants; lower api\.per_page"):
        read_page(f"[{item},{item},{item}]")


@pytest.mark.parametrize(
    ("fields", "least"),
    [
        ('"display_name":"' + "a" * 10**6 + '"', 10**6),
        ('"display_name":"😀' + "a" * 10**6 + '"', 4 * 10**6),
        (r'"display_name":"\ud83d\ude00' + "a" * 10**6 + '"', 4 * 10**6),
        ('"chat_handles":[' + ",".join(['{"id":7}'] * 10**4) + "]", 9 * 10**5),
    ],
    ids=["text", "wide text", "escaped wide text", "participants"],
)
def test_the_size_of_a_page(fields: str, least: int) -> None:
    """What its records take in memory, but not much more."""
    body = f'{{"data":[{{"id":1,{fields}}}],"meta":{page_meta()}}}'.encode()

    assert least <= decode_page(body, 1, NOON).size <= 1.3 * least


# Memory


def filled(head: str, unit: str, tail: str) -> bytes:
    """A body of 8 MiB that repeats `unit`."""
    first, middle, last = head.encode(), unit.encode("utf-8", "surrogateescape"), tail.encode()
    return first + middle * ((BODY - len(first) - len(last)) // len(middle)) + last


SHAPES = {
    "rows": ('{"data":[', "0]}"),
    "an unknown field": ('{"data":[{"id":1,"x":[', "0]}]}"),
    "an unknown field beside NaN": ('{"data":[{"id":1,"y":NaN,"x":[', "0]}]}"),
    "participants": ('{"data":[{"id":1,"chat_handles":[', '{"id":1}]}]}'),
    "meta": ('{"data":[],"meta":{"x":[', "0]}}"),
    "another member": ('{"data":[NaN],"x":[', "0]}"),
}
NAMES = {
    "a long name": ("😀", "a"),
    "escapes": ("😀", r"\u0000"),
    "bare NULs": ("😀", "\0"),
    "invalid UTF-8": ("😀", "\udcff"),
    "surrogates": ("😀", r"\ud800"),
}
HOSTILE = {
    **{
        f"{name} of {unit}": (head, unit, tail)
        for name, (head, tail) in SHAPES.items()
        for unit in ("0,", '{"id":1},')
    },
    **{
        f"{name} in {field}": (f'{{"data":[{{"id":1,"{field}":"{first}', unit, '"}]}')
        for name, (first, unit) in NAMES.items()
        for field in ("display_name", "x")
    },
    "nesting": ('{"data":[{"id":1,"x":' + "[" * (BODY // 2), "]", "}]}"),
    "a quote without an end": ('{"data":[NaN,"', r"\"", ""),
    "blanks for a time": ('{"data":[{"id":1,"chat_handles":[{"joined_at":"', " ", '"}]}]}'),
}


@pytest.fixture
def _traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def kept_chats(body: bytes) -> int:
    try:
        return len(decode_page(body, 1, NOON).chats)
    except BadAnswerError:
        return 0


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("parts", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_body_takes_little_memory(parts: tuple[str, str, str]) -> None:
    """Whatever fills 8 MiB, decoding it takes less than 100 MiB."""
    body = filled(*parts)
    tracemalloc.reset_peak()

    assert kept_chats(body) == 0
    assert tracemalloc.get_traced_memory()[1] - len(body) < 100 * MIB


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("unit", ["0,", '{"phone_number":"+1"},'])
def test_other_hostile_bodies_take_little_memory(unit: str) -> None:
    """The same holds for Get Chat and List Phone Numbers."""
    chat = filled('{"data":{"id":1,"x":[', unit, "0]}}")
    numbers = filled('{"phone_numbers":[', unit, "0]}")
    tracemalloc.reset_peak()

    assert isinstance(decode_chat(chat, 1), Rejected)
    with pytest.raises(BadAnswerError):
        decode_phone_numbers(numbers)
    assert tracemalloc.get_traced_memory()[1] < 100 * MIB
