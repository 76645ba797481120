"""The types of options: numbers in ASCII digits, within bounds, and time spans."""

import re
from datetime import timedelta
from typing import Any

import click


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
    """A time span such as 90s, 15m, 2h or 1d."""

    name = "duration"
    _UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}  # noqa: RUF012

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        match = re.fullmatch(r"([0-9]{1,6})([smhd])", value)
        if not match:
            self.fail(f"{value!r} is not a time span; write e.g. 90s, 15m, 2h or 1d", param, ctx)
        return timedelta(**{self._UNITS[match[2]]: int(match[1])})
