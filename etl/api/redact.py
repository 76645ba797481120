"""JSON without people in it: what the API sends besides the fields that are known."""

import json
import re
from collections.abc import Callable
from typing import Any, Final

from etl.api.models import EXTRA, MAX_TEXT, Chat, Handle, canonical_json

_KNOWN: Final = {*Chat.__struct_encode_fields__, *Handle.__struct_encode_fields__} - {EXTRA}
_FIELD_NAME: Final = re.compile(r"[a-z][A-Za-z0-9_]{0,39}")
_SHORTEST: Final = 10**4  # a number of five digits can be the number of a participant


def redacted(payload: str) -> str:
    """The shape of a record: known fields and ids; of other values, whether text or number."""
    return canonical_json(_shape(json.loads(payload)))


def _shape(value: Any, field: str = "") -> Any:
    if isinstance(value, dict):
        return {name if name in _KNOWN else "…": _shape(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_shape(each) for each in value]
    if value is None or isinstance(value, bool) or (field == "id" and isinstance(value, int)):
        return value
    return "text" if isinstance(value, str) else "number"


def with_hashed_texts(extra: str, hash_of: Callable[[str], str | None]) -> str | None:
    """Replace each text and long number by its hash, names that are no field's name included.

    None if that is too long to be stored.
    """

    def hashed(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                name if _FIELD_NAME.fullmatch(name) else hash_of(name): hashed(each)
                for name, each in value.items()
            }
        if isinstance(value, list):
            return [hashed(each) for each in value]
        if isinstance(value, str):
            return hash_of(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        is_long = isinstance(value, int) and abs(value) >= _SHORTEST
        return hash_of(str(value)) if is_long else value

    text = canonical_json(hashed(json.loads(extra)))
    return text if len(text) <= MAX_TEXT else None
