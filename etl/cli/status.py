"""What `status` prints: the worst numbers first, and on a terminal no more than fits."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from etl.cli.output import Row
from etl.cli.tables import Column, folded, layout, one_line
from etl.db.tables import number_status
from etl.sync.summary import cause, counted, duration

USUAL_AGE = timedelta(days=1)  # what is older is called stale, unless --max-age says otherwise
NULLS: Mapping[str, Any] = dict.fromkeys(number_status.columns.keys())
COLUMNS = (
    *(Column("phone_number"), Column("label"), Column("last_good_sync"), Column("age")),
    *(Column("fresh_as_of"), Column("complete_as_of")),
    *(Column("completeness"), Column("total_count")),
    *(Column("list_order"), Column("quick_recall_lower", "quick_recall"), Column("quick_off")),
    *(Column("state"), Column("last_attempt_at"), Column("failing_since"), Column("error")),
)
_SHORT_COLUMNS = (
    Column("phone_number"),
    Column("label", cut_to=5),
    Column("since", "failing since"),
    Column("fresh", "fresh as of"),
    Column("complete", "complete as of"),
    Column("quick"),
    Column("total_count", "chats", right=True),
)


@dataclass(frozen=True, slots=True)
class Section:
    """Numbers that are in the same state for the same reason, which its title tells."""

    title: str
    rows: Sequence[Row]
    is_fresh: bool = False


def with_age(row: Row | None, phone_number: str, now: datetime) -> Row:
    """A number's row of `status` with its ages; all nulls if the number was never synced.

    `age` is that of what is fresh, `complete_age` that of a list known to be complete.
    """
    row = {**NULLS, **(row or {"phone_number": phone_number})}
    fresh, complete = row["fresh_as_of"], row["complete_as_of"]
    return {**row, "age": _age(fresh, now), "complete_age": _age(complete, now)}


def _age(at: datetime | None, now: datetime) -> timedelta | None:
    return timedelta(seconds=int((now - at).total_seconds())) if at else None


def is_failing(row: Row) -> bool:
    """Whether its last attempt failed."""
    return row["failing_since"] is not None


def freshness(row: Row, max_age: timedelta | None) -> str:
    """In words: fresh, stale or never synced."""
    if row["age"] is None:
        return "never synced"
    return "fresh" if row["age"] <= (max_age or USUAL_AGE) else "stale"


def summary_line(rows: Iterable[Row], max_age: timedelta | None) -> str:
    """The numbers by state: `198 fresh, 1 stale, 1 never synced; of these 1 failing`."""
    rows = list(rows)
    found = [freshness(row, max_age) for row in rows]
    words = ", ".join(
        f"{found.count(word)} {word}"
        for word in ("fresh", "stale", "never synced")
        if word in found
    )
    others = {
        "failing": sum(map(is_failing, rows)),
        "always empty": sum(bool(row["always_empty"]) for row in rows),
    }
    extra = ", ".join(f"{number} {word}" for word, number in others.items() if number)
    return "; of these ".join(filter(None, (words or "no numbers", extra)))


def sections(rows: Iterable[Row], max_age: timedelta | None) -> list[Section]:
    """The rows by state and cause, the worst first; within each the one that lasts longest."""
    failing: dict[str, list[Row]] = {}
    states: dict[str, list[Row]] = {
        each: [] for each in ("never synced", "stale", "empty", "fresh")
    }
    for row in sorted(rows, key=_age_first):
        if is_failing(row):
            error = row["last_error_detail"] or row["last_status"] or ""
            failing.setdefault(cause(error), []).append(row)
        else:
            state = freshness(row, max_age)
            states["empty" if state == "fresh" and row["always_empty"] else state].append(row)
    limit = duration((max_age or USUAL_AGE).total_seconds())
    found = [
        Section(f"{len(group)} failing: {one_line(_error(group[0]))}", group)
        for group in sorted(failing.values(), key=lambda group: -len(group))
    ]
    titles = {
        "never synced": "never synced, and no attempt failed",
        "stale": f"stale: no good sync for more than {limit}",
        "empty": "always empty: no chat was ever listed; check the number and its token",
        "fresh": "fresh and not failing",
    }
    for state, group in states.items():
        if group:
            title = f"{len(group)} {titles[state]}"
            found.append(Section(title, group, is_fresh=state == "fresh"))
    return found


def in_full(rows: Iterable[Row], max_age: timedelta | None) -> list[Row]:
    """The rows as a pipe gets them, with their state in words; the worst first."""
    return [
        {
            **row,
            "state": ", ".join(_states(row, max_age)),
            "last_good_sync": row["last_good_sync"] or "never",
            "quick_recall_lower": _quick(row),
            "last_attempt_at": row["last_attempt_at"] or "never",
            "error": _error(row) if is_failing(row) else None,
        }
        for section in sections(rows, max_age)
        for row in section.rows
    ]


def screen(found: Sequence[Section], width: int, height: int) -> list[str]:
    """The sections in at most `height` lines: of each problem some numbers, the others counted."""
    rows = [_short(row) for section in found for row in section.rows]
    table = layout(rows, _short_columns(rows), width)
    lines = iter(table.rows)
    parts = []
    for section in found:
        title = folded(section.title, width)
        parts.append(_Part(title, [next(lines) for _ in section.rows], section.is_fresh))
    room = height - len(table.head)
    if sum(part.height(len(part.rows)) for part in parts) > room:
        _limit(parts, room)
    else:
        for part in parts:
            part.shown = len(part.rows)
    return [*table.head, *(line for part in parts for line in part.lines())]


@dataclass(slots=True)
class _Part:
    """A section's lines; `shown` of its rows are printed, none hides it."""

    title: list[str]
    rows: list[tuple[str, ...]]
    is_fresh: bool
    shown: int = 0

    def height(self, shown: int) -> int:
        """How many lines it takes with so many rows."""
        more = shown < len(self.rows)
        return len(self.title) + sum(map(len, self.rows[:shown])) + more

    def lines(self) -> Iterator[str]:
        if not self.shown:
            return
        yield from self.title
        for row in self.rows[: self.shown]:
            yield from row
        if more := len(self.rows) - self.shown:
            yield f"and {counted(more, 'other')}: linq-etl status | less"


def _limit(parts: Sequence[_Part], room: int) -> None:
    """Choose how many rows of each part to show: first one of each, then more in turn."""
    for part in parts:
        if part.height(1) <= room and not part.is_fresh:
            part.shown = 1
            room -= part.height(1)
    grown = True
    while grown:
        grown = False
        for part in parts:
            cost = part.height(part.shown + 1) - part.height(part.shown)
            if part.shown and part.shown < len(part.rows) and cost <= room:
                part.shown += 1
                room -= cost
                grown = True
    fresh = parts[-1] if parts and parts[-1].is_fresh else None
    while fresh and fresh.shown < len(fresh.rows) and fresh.height(fresh.shown + 1) <= room:
        fresh.shown += 1


def _age_first(row: Row) -> tuple[Any, ...]:
    """Never synced first, then what fails or is not fresh the longest."""
    oldest = row["failing_since"] or row["fresh_as_of"]
    known = row["fresh_as_of"] is not None, oldest is not None
    return (*known, oldest or datetime.min.replace(tzinfo=UTC), row["phone_number"])


def _states(row: Row, max_age: timedelta | None) -> Iterator[str]:
    if is_failing(row):
        yield "failing"
    yield freshness(row, max_age)
    if row["always_empty"]:
        yield "always empty"


def _error(row: Row) -> str:
    """The last error as a sentence; without one, how the last attempt ended."""
    return row["last_error_detail"] or f"the last attempt was {row['last_status']}"


def _short(row: Row) -> Row:
    since = row["failing_since"]
    return {
        **row,
        "since": since.astimezone(UTC).strftime("%Y-%m-%d %H:%MZ") if since else None,
        "fresh": _ago(row["age"]),
        "complete": _ago(row["complete_age"]),
        "quick": _quick(row),
    }


def _ago(age: timedelta | None) -> str:
    return "never" if age is None else f"{duration(age.total_seconds())} ago"


def _quick(row: Row) -> str | None:
    """How much quick readings find at least, if that is known and enough."""
    if row["list_order"] is None:
        return None
    return "off" if row["quick_off"] else f"{row['quick_recall_lower']:.1%}"


def _short_columns(rows: Sequence[Row]) -> list[Column]:
    """Without those that have nothing to show."""
    optional = {"label", "since", "quick"}
    return [
        column
        for column in _SHORT_COLUMNS
        if column.key not in optional or any(row[column.key] for row in rows)
    ]
