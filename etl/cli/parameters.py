"""The types of options: numbers in ASCII digits, within bounds, and time spans."""

import os
import re
from datetime import timedelta
from fractions import Fraction
from typing import Any

import click

from etl.config.time_span import to_timedelta
from etl.sync.shard import Shard

_INDEX = "JOB_COMPLETION_INDEX"  # of a Kubernetes Indexed Job
_MOST_PARTS = 10_000


class WholeNumber(click.IntRange):
    """A whole number within bounds; Python would also take `1_000` and other scripts' digits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, str) and not re.fullmatch(r"[+-]?[0-9]+", value):
            self.fail(f"{value!r} is not a whole number.", param, ctx)
        number: int = super().convert(value, param, ctx)
        return number


class Number(click.FloatRange):
    """A number within bounds, and not nan, which no bound holds back."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, str) and not re.fullmatch(r"[+-]?[0-9]*\.?[0-9]*(e-?[0-9]+)?", value):
            self.fail(f"{value!r} is not a number.", param, ctx)
        number: float = super().convert(value, param, ctx)
        return number


class Duration(click.ParamType[timedelta]):
    """A time span such as 90s, 15m, 2h or 1d, within bounds."""

    name = "duration"

    def __init__(self, at_least: str = "0s", at_most: str = "999999d") -> None:
        self._at_least = at_least
        self._at_most = at_most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        try:
            span = to_timedelta(value)
        except ValueError:
            self.fail(f"{value!r} is not a time span; write e.g. 90s, 15m, 2h or 1d", param, ctx)
        if not to_timedelta(self._at_least) <= span <= to_timedelta(self._at_most):
            self.fail(f"{value} is not from {self._at_least} to {self._at_most}.", param, ctx)
        return span


class ShardType(click.ParamType[Shard]):
    """A part such as 0/4, the first of four; `auto/4` takes its index from the environment."""

    name = "shard"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Shard:
        match = re.fullmatch(r"([0-9]{1,5}|auto)/([0-9]{1,5})", value)
        if not match:
            self.fail(f"{value!r} is not a shard; write e.g. 0/4 or auto/4", param, ctx)
        index, count = match[1], int(match[2])
        if not 1 <= count <= _MOST_PARTS:
            self.fail(f"{count} is not from 1 to {_MOST_PARTS} shards.", param, ctx)
        if index == "auto":
            index = self._index(param, ctx)
        if int(index) >= count:
            last = "is the last one" if count > 1 else "is the only one"
            why = (
                f"There is no shard {int(index)} of {count}: they count from 0, {count - 1} {last}."
            )
            self.fail(why, param, ctx)
        return Shard(int(index), count)

    def _index(self, param: click.Parameter | None, ctx: click.Context | None) -> str:
        index = os.environ.get(_INDEX, "")
        if not re.fullmatch(r"[0-9]{1,5}", index):
            said = "is not a whole number" if index else "is not set"
            self.fail(f"${_INDEX} {said}; write the shard's index instead of auto.", param, ctx)
        return index


class Share(click.ParamType[float]):
    """A part of the whole such as 1/4."""

    name = "share"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        match = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", value)
        if not match:
            self.fail(f"{value!r} is not a share; write e.g. 1/4", param, ctx)
        part, whole = int(match[1]), int(match[2])
        if not 1 <= part <= whole <= _MOST_PARTS:
            self.fail(f"{value} is not from 1/{_MOST_PARTS} to 1/1.", param, ctx)
        return float(Fraction(part, whole))
