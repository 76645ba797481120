"""The samples as tables, and which targets they meet."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from statistics import median
from typing import NamedTuple

from tests.benchmarks.scenarios import (
    DAY_ORDERS,
    PACE_LIMITS,
    PACE_RUNS,
    Sample,
    day_subject,
    pace_subject,
)
from tests.benchmarks.virtual_day import Day

Results = Mapping[str, Sequence[Sample]]
_MB = 1_000_000
_HEADERS = (
    *("what", "n", "seconds", "min", "max", "/ floor", "/ limit", "dlt /", "rows/s", "requests"),
    *("throttled", "written", "WAL MB", "peak MB"),
)
_NOTES = """\
/ floor: times the sum of both floors, or times what the server's latency (/ 16) or rate limit
takes. / limit: without start-up, times fetching alone, plus the rows in bulk for a first load.
dlt /: dlt's time over ours. written: row versions (PostgreSQL) or pages (SQLite) of the data
tables. WAL: of the whole server."""


_DAY_HEADERS = (
    *("a day", "runs", "full walks", "requests", "/ full", "pages", "messages", "found"),
    *("staleness", "rotation", "seconds"),
)
_DAY_NOTES = """\
staleness: minutes from a message until it is found, or until the end of the day; the mean over all
messages. rotation: the same if as many requests read page after page, in runs at the same times.
/ full: times the requests of the day of full runs."""


def tables(results: Results) -> Iterator[str]:
    """In Markdown, as the docs have it; each with its notes."""
    rows = [_row(results, name) for name, (sample, *_) in results.items() if not sample.day]
    if rows:
        yield f"{_markdown(_HEADERS, rows)}\n\n{_NOTES}"
    days = [
        _day_row(results, name, sample, sample.day)
        for name, (sample, *_) in results.items()
        if sample.day
    ]
    if days:
        yield f"{_markdown(_DAY_HEADERS, days)}\n\n{_DAY_NOTES}"


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rows = [headers, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(map(str.ljust, row, widths))} |"  # a line of the table
        for row in rows
    )


def _row(results: Results, name: str) -> tuple[str, ...]:
    samples = results[name]
    times = [sample.seconds for sample in samples]
    last = samples[-1]
    return (
        name,
        str(len(samples)),
        *(f"{seconds:.2f}" for seconds in (median(times), min(times), max(times))),
        _shown(_over_floor(results, name), ".2f"),
        _shown(_over_limit(results, name), ".2f"),
        _shown(_ratio(results, f"dlt {name}", name), ".1f"),
        _shown(last.rows / median(times) or None, ",.0f"),
        *(_shown(value or None, ",") for value in (last.requests, last.throttled)),
        _shown(last.written, ","),
        _shown(_median(results, name, "wal_bytes", _MB), ".2f"),
        _shown(_median(results, name, "peak_bytes", _MB), ".0f"),
    )


def _day_row(results: Results, name: str, sample: Sample, day: Day) -> tuple[str, ...]:
    full = _day(results, name.replace(", quick", ", full"))
    found, stale, rotation = day.staleness.found, day.staleness, day.rotation
    return (
        name,
        *(f"{count:,}" for count in (day.runs, day.full_walks, day.requests)),
        _shown(day.requests / full.requests if full else None, ".3f"),
        *(f"{count:,}" for count in (day.pages, stale.messages)),
        f"{found / max(stale.messages, 1):.1%}",
        f"{stale.mean_seconds / 60:.2f}",
        _shown(rotation.mean_seconds / 60 if rotation else None, ".2f"),
        f"{sample.seconds:.0f}",
    )


def _day(results: Results, name: str) -> Day | None:
    return next((sample.day for sample in results.get(name, ())), None)


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _median(results: Results, name: str, field: str = "seconds", unit: float = 1) -> float | None:
    values = [getattr(sample, field) for sample in results.get(name, ())]
    return None if None in values or not values else median(values) / unit


def _ratio(results: Results, name: str, other: str, field: str = "seconds") -> float | None:
    above, below = _median(results, name, field), _median(results, other, field)
    return above / below if above is not None and below else None


def _over_floor(results: Results, name: str) -> float | None:
    """Seconds over what the server's latency or limit takes; else over both floors, per row."""
    if least := _median(results, name, "least"):
        return (_median(results, name) or 0) / least
    kind = name.removeprefix("dlt ").split()[0]
    fetch, write = _median(results, "fetch floor"), _median(results, f"{kind} write floor")
    seconds = _median(results, name)
    if not (fetch and write and seconds and results[name][0].requests):
        return None
    return seconds / (fetch + write) * results["fetch floor"][0].rows / results[name][0].rows


class _Limit(NamedTuple):
    """Seconds of a command without its start-up, and of the same work without the program."""

    spent: float
    limit: float
    shown: str


def _limit(results: Results, name: str) -> _Limit | None:
    """For a first load and for the same again."""
    kind, _, subject = name.partition(" ")
    seconds, start_up = _median(results, name), _median(results, f"{kind} start-up")
    fetch, write = _median(results, "fetching alone"), _median(results, f"{kind} rows in bulk")
    if subject not in ("first", "again") or not (seconds and start_up and fetch and write):
        return None
    shown = f"({seconds:.2f} - {start_up:.2f}) / "
    if subject == "again":
        return _Limit(seconds - start_up, fetch, shown + f"{fetch:.2f}")
    return _Limit(seconds - start_up, fetch + write, shown + f"({fetch:.2f} + {write:.2f})")


def _over_limit(results: Results, name: str) -> float | None:
    limit = _limit(results, name)
    return limit.spent / limit.limit if limit else None


def verdicts(results: Results) -> Iterator[str]:
    """A line for each target with samples."""
    for kind in ("sqlite", "postgresql", "mysql"):
        for subject, what, reached, sign, bound in (
            *_load_targets(results, kind),
            *_limit_targets(results, kind),
            *_server_targets(results, kind),
            *_pace_targets(results, kind),
            *_million_targets(results, kind),
            *_day_targets(results, kind),
        ):
            if reached is not None:
                met = reached >= bound if sign == "≥" else reached <= bound
                verdict = "met   " if met else "MISSED"
                yield f"{verdict}  {kind} {subject}: {reached:.3g} {sign} {bound:g} {what}"


# Subject, unit, value reached, comparison, bound.
_Target = tuple[str, str, float | None, str, float]


def _load_targets(results: Results, kind: str) -> Iterator[_Target]:
    first, again, changed = (f"{kind} {name}" for name in ("first", "again", "1 % changed"))
    yield "first", "x (fetch floor + write floor)", _over_floor(results, first), "≤", 1.25
    faster = _ratio(results, f"dlt {first}", first)
    yield "first", "times as fast as dlt", faster, "≥", 5 if kind == "sqlite" else 6
    yield "again", "x first", _ratio(results, again, first), "≤", 0.9
    unit = "data pages changed" if kind == "sqlite" else "row versions written"
    yield "again", unit, _median(results, again, "written"), "≤", 0
    yield "again", "MB of WAL", _median(results, again, "wal_bytes", _MB), "≤", 1
    if kind == "postgresql":
        # Of the 320 rows of a hundred chats: one chat's new version, its count and its event.
        yield "1 % changed", "x first's rows", _ratio(results, changed, first, "written"), "≤", 0.01
        yield (
            "1 % changed",
            "x first's WAL",
            _ratio(results, changed, first, "wal_bytes"),
            "≤",
            0.05,
        )


def _limit_targets(results: Results, kind: str) -> Iterator[_Target]:
    for subject, what in (("first", "the like-for-like limit"), ("again", "fetching alone")):
        if limit := _limit(results, f"{kind} {subject}"):
            bound = 1.5 if kind == "mysql" and subject == "first" else 1.3
            yield subject, f"x {what}: {limit.shown} s", limit.spent / limit.limit, "≤", bound
    if kind == "mysql":
        ratio = _ratio(results, "mysql again", "postgresql again")
        yield "again", "x PostgreSQL's", ratio, "≤", 1.5


def _server_targets(results: Results, kind: str) -> Iterator[_Target]:
    for subject in ("first, 100 ms", "again, 100 ms", "many numbers, 100 ms"):
        ratio = _over_floor(results, f"{kind} {subject}")
        yield subject, "x (requests x latency / 16)", ratio, "≤", 1.3
    subject = "first, 50 requests/s"
    yield from _rate_targets(results, kind, subject, 0.85)


def _pace_targets(results: Results, kind: str) -> Iterator[_Target]:
    for limit, retry_after in product(PACE_LIMITS, (False, True)):
        for run, least in zip(PACE_RUNS, (0.85, 0.95), strict=True):
            subject = pace_subject(limit, run, retry_after=retry_after)
            yield from _rate_targets(results, kind, subject, least)


def _rate_targets(results: Results, kind: str, subject: str, least: float) -> Iterator[_Target]:
    if samples := results.get(f"{kind} {subject}"):
        used = median((s.requests - s.throttled) / s.allowance for s in samples)
        yield subject, "of the allowance used", used, "≥", least
        refused = median(s.throttled / s.requests for s in samples)
        yield subject, "of the requests throttled", refused, "≤", 0.05


def _million_targets(results: Results, kind: str) -> Iterator[_Target]:
    subject = "first, 10 x the chats"
    small, large = f"{kind} first", f"{kind} {subject}"
    yield subject, "x first", _ratio(results, large, small), "≤", 11
    memory = _ratio(results, large, small, "peak_bytes")
    yield subject, "x first's peak memory", memory, "≤", 1.15
    yield subject, "MB of memory", _median(results, large, "peak_bytes", _MB), "≤", 200


def _day_targets(results: Results, kind: str) -> Iterator[_Target]:
    for order in DAY_ORDERS:
        subject = day_subject(order, "quick")
        quick = _day(results, f"{kind} {subject}")
        full = _day(results, f"{kind} {day_subject(order, 'full')}")
        if quick and full and order == "recency":
            yield subject, "x full's requests", quick.requests / full.requests, "≤", 1 / 8
            staler = quick.staleness.mean_seconds / full.staleness.mean_seconds
            yield subject, "x full's staleness", staler, "≤", 1
        if quick and quick.rotation:
            staler = quick.staleness.mean_seconds / quick.rotation.mean_seconds
            yield subject, "x rotation's staleness", staler, "≤", 1
