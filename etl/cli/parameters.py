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
    """A time span such as 90s, 15m, 2h or 1d, within bounds."""

    name = "duration"
    _UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}  # noqa: RUF012

    def __init__(self, at_least: str = "0s", at_most: str = "999999d") -> None:
        self._at_least = at_least
        self._at_most = at_most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        if not re.fullmatch(r"[0-9]{1,6}[smhd]", value):
            self.fail(f"{value!r} is not a time span; write e.g. 90s, 15m, 2h or 1d", param, ctx)
        span = self._span(value)
        if not self._span(self._at_least) <= span <= self._span(self._at_most):
            self.fail(f"{value} is not from {self._at_least} to {self._at_most}.", param, ctx)
        return span

    def _span(self, text: str) -> timedelta:
        return timedelta(**{self._UNITS[text[-1]]: int(text[:-1])})
