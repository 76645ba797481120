"""Split and measure JSON that no parser should see whole: malformed, nested or long without bound.

Only strings, brackets and commas are looked at, and nothing recurses, so that one bad record does
not spoil its page. What lies between them is left to the parser of each part.
"""

import json
import re
from typing import Final, NamedTuple

# All possessive: any other repetition remembers each step, and tries them all again when it fails.
_STRING: Final = rb'"(?:[^"\\]++|\\.)*+"'
_FLAT: Final = rb'(?:[^"\[\]{}]++|%b)*+' % _STRING  # no brackets
_LEAF: Final = rb"[\[{]%b[\]}]" % _FLAT  # an array or object without another one in it
# Up to the next bracket of a container that is no leaf; directly inside the outermost one, or the
# next comma.
_INSIDE: Final = re.compile(rb'(?:[^"\[\]{}]++|%b|%b)*+[\[{\]}]' % (_STRING, _LEAF), re.DOTALL)
_OUTERMOST: Final = re.compile(
    rb'(?:[^"\[\]{},]++|%b|%b)*+[\[{\]},]' % (_STRING, _LEAF), re.DOTALL
)
_TOKEN: Final = re.compile(rb"%b|[\[{\]},]" % _STRING, re.DOTALL)
_MEMBER: Final = re.compile(rb"\s*+(%b)\s*+:(.*)" % _STRING, re.DOTALL)
_OPENING, _CLOSING, _COMMA = b"[{", b"]}", ord(",")


class Size(NamedTuple):
    """How many levels of arrays and objects JSON has, and how many values."""

    depth: int
    values: int


def measure(text: bytes, *, max_depth: int, max_values: int) -> Size:
    """Measure until a bound is exceeded."""
    depth = deepest = 0
    values = 1
    for token in _TOKEN.finditer(text):
        kind = text[token.start()]
        if kind in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
            values += 1
        elif kind in _CLOSING:
            depth -= 1
        elif kind == _COMMA:
            values += 1
        if deepest > max_depth or values > max_values:
            break
    return Size(deepest, values)


def split_items(array: bytes, limit: int) -> list[bytes]:
    """The items of an array. Raises ValueError, also for more than `limit` items."""
    return _split(array, b"[]", limit)


def split_members(document: bytes, limit: int) -> dict[str, bytes]:
    """The members of an object. Raises ValueError, also for more than `limit` members."""
    found = {}
    for part in _split(document, b"{}", limit):
        member = _MEMBER.fullmatch(part)
        if not member:
            raise ValueError("a member without a key")
        found[json.loads(member[1].decode(errors="replace"), strict=False)] = member[2]
    return found


def _split(text: bytes, brackets: bytes, limit: int) -> list[bytes]:
    """Cut at the commas of the outermost level."""
    text = text.strip()
    if len(text) < 2 or text[:1] + text[-1:] != brackets:
        raise ValueError("other brackets")
    parts: list[bytes] = []
    depth = start = end = 1
    while depth:
        token = (_OUTERMOST if depth == 1 else _INSIDE).match(text, end)
        if not token or len(parts) > limit:
            raise ValueError("cut short, or too many parts")
        end = token.end()
        kind = text[end - 1]
        if kind in _OPENING:
            depth += 1
        elif kind in _CLOSING:
            depth -= 1
        if kind == _COMMA or not depth:
            parts.append(text[start : end - 1])
            start = end
    if end != len(text):
        raise ValueError("followed by something else")
    return parts if len(parts) > 1 or parts[0].strip() else []
