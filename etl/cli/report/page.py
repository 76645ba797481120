"""The page: figures -> tables, charts and sentences -> HTML, by a template that escapes."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from etl import __version__
from etl.cli.dictionary import described
from etl.cli.output import Row
from etl.cli.report.charts import bars
from etl.cli.report.verdict import GLYPHS, Judged, judged, verdict
from etl.config import PhoneNumber
from etl.db.report import WEEK, Figures
from etl.db.tables import is_internal
from etl.errors import advice_by_kind
from etl.phone import shortened
from etl.sync.summary import duration

_STATUSES: Final = {
    "succeeded": "✓",
    "partial": "▲",
    "failed": "✗",
    "interrupted": "◼",
    "abandoned": "◆",
    "running": "○",
}
_GLYPHS: Final = {
    **_STATUSES,
    "new": "+",
    "changed": "~",
    "removed": "-",
    "first tries": "→",
    "retries": "↻",
}
_ADVICE: Final[Mapping[str, str]] = {
    "partial": "Look at the reason: part of the data was not read, not stored or not removed.",
    "interrupted": "Nothing, if somebody stopped it. The next run reads the lists again.",
    "abandoned": "Find out what killed the process: the next run reads the lists again.",
}
_EVENTS: Final[Mapping[str, str]] = {
    "created": "new chats",
    "renamed": "chats renamed",
    "service_changed": "chats on another service",
    "group_changed": "chats that became a group, or ceased to be one",
    "joined": "participants joined",
    "left": "participants left",
    "removed": "chats removed",
    "restored": "chats restored",
}
_NUMBER: Final = re.compile(r"\+\d{7,15}")
_LABEL_LENGTH: Final = 40
_ALL_NUMBERS: Final = 250  # rows of the table that has every number
_TOP: Final = 10  # rows of the others


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; integers are grouped and aligned. `more` says how many rows are left out."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    more: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars per day, the table behind them, and a glyph for each series."""

    title: str
    svg: Markup
    legend: Sequence[tuple[str, str]]
    table: Table


class Page:
    """What the template shows, in the order of its sections.

    The page is about these configured numbers or, without any, about all that are known.
    """

    version = __version__
    glyphs = GLYPHS

    def __init__(self, figures: Figures, numbers: Sequence[PhoneNumber]) -> None:
        self._figures = figures
        self._labels = {row["phone_number"]: row["label"] for row in figures.numbers}
        wanted = [each.e164 for each in numbers] or [*self._labels]
        self._labels |= {each.e164: each.label for each in numbers if each.label}
        self._judged = judged(figures.numbers, wanted, figures.now)
        self.verdict = verdict(self._judged, runs=figures.since["runs"])

    def render(self) -> str:
        """The page's HTML; the same figures give the same text."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {"moment": _moment, "grouped": _grouped, "marked": _marked}
        return environment.get_template("page.html").render(page=self, figures=self._figures)

    # Can I trust it?

    @property
    def lists(self) -> list[tuple[str, int]]:
        """How many lists are how complete."""
        found = [each.row["completeness"] or "not read to the end" for each in self._judged]
        return [(word, found.count(word)) for word in dict.fromkeys(sorted(found))]

    @property
    def chats(self) -> int:
        return sum(each.row["total_count"] or 0 for each in self._judged)

    @property
    def numbers(self) -> Table:
        head = ("number", "state", "last good sync", "list", "chats", "why")
        return self._table(head, map(self._number, self._judged), "status", _ALL_NUMBERS)

    def _number(self, number: Judged) -> Sequence[Any]:
        row, state = number.row, number.state
        return (
            self._name(row["phone_number"]),
            f"{GLYPHS[state.level]} {state.short}",
            f"{duration(row['age'].total_seconds())} ago" if row["age"] is not None else "never",
            row["completeness"],
            row["total_count"],
            row["last_error_detail"] if row["failing_since"] else row["reason"],
        )

    # Since when?

    @property
    def oldest(self) -> tuple[Any, str] | None:
        """The number whose last good sync is the oldest, and its age."""
        synced = [each.row for each in self._judged if each.row["age"] is not None]
        if not synced:
            return None
        row = max(synced, key=lambda row: row["age"])
        return self._name(row["phone_number"]), duration(row["age"].total_seconds())

    @property
    def failing_since(self) -> tuple[Any, datetime] | None:
        """The number that fails the longest."""
        failing = [each.row for each in self._judged if each.row["failing_since"]]
        if not failing:
            return None
        row = min(failing, key=lambda row: row["failing_since"])
        return self._name(row["phone_number"]), row["failing_since"]

    @property
    def silent_days(self) -> list[date]:
        """The days since the first run on which no run began that ended well."""
        first = self._figures.since["first_run"]
        good = {
            row["day"] for row in self._figures.runs if row["status"] in {"succeeded", "partial"}
        }
        days = enumerate(self._figures.days[:-1])  # Today is not over.
        return [day for index, day in days if index not in good and first and day >= first.date()]

    # What happens on the numbers?

    @property
    def messages(self) -> Chart:
        found = {row["day"]: row for row in self._figures.messages}
        counts = [found[day]["messages"] if day in found else 0 for day in self._figures.days]
        spread = [found[day]["spread_days"] if day in found else None for day in self._figures.days]
        chart = self._chart("Messages per day", {"messages": counts})
        rows = [(*row, days) for row, days in zip(chart.table.rows, reversed(spread), strict=True)]
        table = Table((*chart.table.head, "may spread over days"), rows)
        return Chart(chart.title, chart.svg, chart.legend, table)

    @property
    def all_messages(self) -> int:
        return sum(row["messages"] for row in self._figures.messages)

    @property
    def changes(self) -> Chart:
        names = {"new": "chats_inserted", "changed": "chats_updated", "removed": "chats_removed"}
        series = {word: self._per_day(name) for word, name in names.items()}
        return self._chart("Chats written per day", series)

    @property
    def week(self) -> int:
        """Days of the table below."""
        return min(WEEK, len(self._figures.days))

    @property
    def busiest(self) -> Table:
        names = ("messages", "most_messages", "most_people", "new_chats")
        head = ("number", "messages", "most on a day", "most people on a day", "new chats")

        def cells(row: Row) -> Sequence[Any]:
            return (self._name(row["phone_number"]), *(row[name] for name in names))

        gained = [row for row in self._figures.busiest if row["messages"]]
        return self._table(head, map(cells, gained), "")

    @property
    def events(self) -> list[tuple[str, int]]:
        """What happened to chats, in words, and how often."""
        rows = self._figures.events
        return [(_EVENTS.get(row["kind"], row["kind"]), row["events"]) for row in rows]

    @property
    def days_above_advice(self) -> int:
        return sum(row["days_above_advice"] for row in self._figures.busiest)

    # What did it cost?

    @property
    def sums(self) -> Row:
        """The counts of all runs of the period, and how many runs there were."""
        names = ("runs", "requests", "retries", "throttled", "chats_seen")
        return {name: sum(row[name] for row in self._figures.runs) for name in names}

    @property
    def requests(self) -> Chart:
        retries = self._per_day("retries")
        all_requests = self._per_day("requests")
        first = [both - again for both, again in zip(all_requests, retries, strict=True)]
        return self._chart("Requests per day", {"first tries": first, "retries": retries})

    @property
    def costliest(self) -> Table:
        names = ("requests", "retries", "throttled", "runs")

        def cells(row: Row) -> Sequence[Any]:
            return (self._name(row["phone_number"]), *(row[name] for name in names))

        return self._table(("number", *names), map(cells, self._figures.costliest), "")

    # What went wrong and what to do?

    @property
    def runs(self) -> Chart:
        series = {status: self._per_day("runs", status) for status in _STATUSES}
        return self._chart("Runs per day", series)

    @property
    def problems(self) -> Table:
        advice = {**advice_by_kind(), **_ADVICE}
        head = ("kind", "numbers", "times", "the last one", "what to do")
        rows = [
            (row["kind"], row["numbers"], row["entries"], row["detail"], advice.get(row["kind"]))
            for row in self._figures.problems
        ]
        return Table(head, rows)

    @property
    def rejected(self) -> Table:
        names = ("reason", "records", "numbers")
        return Table(names, [[row[name] for name in names] for row in self._figures.rejected])

    @property
    def bad_runs(self) -> Table:
        rows = [
            (
                str(row["id"]),
                f"{_STATUSES.get(row['status'], '')} {row['status']}",
                _moment(row["started_at"]),
                f"{row['numbers_failed']:,} of {row['numbers_total']:,}",
                row["error_detail"],
            )
            for row in self._figures.bad_runs
        ]
        total = sum(
            row["runs"]
            for row in self._figures.runs
            if row["status"] not in {"running", "succeeded"}
        )
        more = f"and {total - len(rows):,} more: linq-etl runs" if total > len(rows) else ""
        return Table(("run", "status", "began", "failed numbers", "error"), rows, more)

    # What is what?

    @property
    def tables(self) -> Iterator[tuple[str, str, Table]]:
        for table in described.TABLES:
            if not is_internal(table):
                columns = [each for each in table.columns if not is_internal(each)]
                rows = [(each.name, described.type_name(each), each.comment) for each in columns]
                yield table.name, table.comment or "", Table(("column", "type", ""), rows)

    # What the sections share

    def _per_day(self, name: str, status: str | None = None) -> list[int]:
        values = [0] * len(self._figures.days)
        for row in self._figures.runs:
            if status in {None, row["status"]}:
                values[row["day"]] += row[name]
        return values

    def _chart(self, title: str, series: Mapping[str, Sequence[int]]) -> Chart:
        days = self._figures.days
        legend = [(_GLYPHS.get(name, ""), name) for name in series]
        newest_first = [*zip(days, *series.values(), strict=True)][::-1]
        table = Table(("day", *series), newest_first)
        return Chart(title, bars(title, days, series), legend, table)

    def _table(
        self, head: Sequence[str], rows: Iterable[Sequence[Any]], command: str, limit: int = _TOP
    ) -> Table:
        all_rows = list(rows)
        left_out = len(all_rows) - limit
        where = f": linq-etl {command}" if command else ""
        more = f"and {left_out:,} more{where}" if left_out > 0 else ""
        return Table(head, all_rows[:limit], more)

    def _name(self, phone_number: str) -> Markup:
        """The label, in its own direction of writing, and the last digits."""
        label = self._labels.get(phone_number)
        digits = Markup('<span class="digits">{}</span>').format(shortened(phone_number))
        if not label:
            return digits
        cut = label if len(label) <= _LABEL_LENGTH else f"{label[: _LABEL_LENGTH - 1]}…"
        return Markup("<bdi>{}</bdi> {}").format(cut, digits)


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _grouped(number: int) -> str:
    return f"{number:,}"


def _marked(text: object) -> object:
    """A sentence with its commands, between backticks, as code, and its phone numbers shortened."""
    if not isinstance(text, str) or isinstance(text, Markup):
        return text
    code = Markup("<code>{}</code>")
    parts = enumerate(_NUMBER.sub(lambda found: shortened(found[0]), text).split("`"))
    return Markup("").join(code.format(part) if index % 2 else part for index, part in parts)
