"""Split and measure JSON that no parser should see whole: malformed, nested or long without bound.

Only strings, brackets and commas are looked at, and nothing recurses, so that one bad record does
not spoil its page. What lies between them is left to the parser of each part.
"""

import json
import re
from itertools import islice
from typing import Final

# All possessive: any other repetition remembers each step, and tries them all again when it fails.
_STRING: Final = rb'"(?:[^"\\]++|\\.)*+"'
_FLAT: Final = rb'(?:[^"\[\]{}]++|%b)*+' % _STRING  # no brackets
_LEAF: Final = rb"[\[{]%b[\]}]" % _FLAT  # an array or object without another one in it
# The next brackets of containers that are no leaves; in the outermost one, or the next comma.
_BRACKETS: Final = rb"[\[{](?:[\[{](?=[\[{]))*+|[\]}]++"
_INSIDE: Final = re.compile(
    rb'(?:[^"\[\]{}]++|%b|%b)*+(%b)' % (_STRING, _LEAF, _BRACKETS), re.DOTALL
)
_OUTERMOST: Final = re.compile(
    rb'(?:[^"\[\]{},]++|%b|%b)*+(%b|,)' % (_STRING, _LEAF, _BRACKETS), re.DOTALL
)
_VALUE: Final = re.compile(rb"%b|([\[{,])" % _STRING, re.DOTALL)
_MEMBER: Final = re.compile(rb"\s*+(%b)\s*+:(.*)" % _STRING, re.DOTALL)
_OPENING, _COMMA = b"[{", ord(",")


def is_deeper(text: bytes, limit: int) -> bool:
    """Whether JSON has more levels of arrays and objects."""
    depth = end = 0
    while depth < limit and (token := _INSIDE.match(text, end)):
        end = token.end()
        levels = end - token.start(1)
        depth += levels if text[end - 1] in _OPENING else -levels
    return depth >= limit  # and a leaf in the last one


def has_more_values(text: bytes, limit: int) -> bool:
    """Whether JSON holds more values."""
    beyond = islice((token for token in _VALUE.finditer(text) if token[1]), limit, None)
    return next(beyond, None) is not None


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
    while depth > 0:
        token = (_OUTERMOST if depth == 1 else _INSIDE).match(text, end)
        if not token or len(parts) == limit:
            raise ValueError("cut short, or too many parts")
        end = token.end()
        kind, levels = text[end - 1], end - token.start(1)
        if kind != _COMMA:
            depth += levels if kind in _OPENING else -levels
        if kind == _COMMA or depth == 0:
            parts.append(text[start : end - 1])
            start = end
    if depth < 0 or end != len(text):
        raise ValueError("followed by something else")
    return parts if len(parts) > 1 or parts[0].strip() else []
