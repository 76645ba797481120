"""The samples as one table, and the targets that they meet or miss."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tests.benchmarks.scenarios import Sample

Results = Mapping[str, Sequence[Sample]]
_MB = 1_000_000
_HEADERS = ("what", "n", "seconds", "min", "max", "/ floor", "dlt /", "rows/s", "requests")
_MORE = ("throttled", "written", "WAL MB", "peak MB")


@dataclass(frozen=True, slots=True)
class Check:
    """A target: what was reached, and the bound that it is to keep, from above or from below."""

    subject: str
    what: str
    reached: float
    bound: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.reached >= self.bound if self.at_least else self.reached <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "met   " if self.met else "MISSED"
        return f"{verdict}  {self.subject}: {self.what} {self.reached:.4g} {sign} {self.bound:g}"


def table(results: Results) -> str:
    """In Markdown, as the README has it."""
    rows = [(*_HEADERS, *_MORE)] + [_row(results, name) for name in results]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _row(results: Results, name: str) -> tuple[str, ...]:
    samples = results[name]
    times = [sample.seconds for sample in samples]
    last, seconds = samples[-1], median(times)
    return (
        name,
        str(len(samples)),
        *(f"{value:.2f}" for value in (seconds, min(times), max(times))),
        _number(_over_floor(results, name), "{:.2f}"),
        _number(_dlt_over(results, name), "{:.1f}"),
        f"{last.rows / seconds:,.0f}",
        *(_number(value or None, "{:,}") for value in (last.requests, last.throttled)),
        _number(last.written, "{:,}"),
        _number(_median(samples, "wal_bytes", _MB), "{:.2f}"),
        _number(_median(samples, "peak_bytes", _MB), "{:.0f}"),
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _median(samples: Sequence[Sample], field: str, unit: float = 1) -> float | None:
    values = [getattr(sample, field) for sample in samples]
    return None if None in values else median(values) / unit


def _seconds(results: Results, name: str) -> float | None:
    return _median(results[name], "seconds") if name in results else None


def _over_floor(results: Results, name: str) -> float | None:
    """Seconds over what the server's latency or limit takes; else over both floors, row by row."""
    if "floor" in name:
        return None
    if least := _median(results[name], "least"):
        return (_seconds(results, name) or 0) / least
    kind = name.removeprefix("dlt ").split()[0]
    fetch, write = _seconds(results, "fetch floor"), _seconds(results, f"{kind} write floor")
    if fetch is None or write is None:
        return None
    scale = results[name][0].rows / results["fetch floor"][0].rows
    return (_seconds(results, name) or 0) / (fetch + write) / scale


def _dlt_over(results: Results, name: str) -> float | None:
    return _ratio(results, f"dlt {name}", name)


def _ratio(results: Results, name: str, other: str, field: str = "seconds") -> float | None:
    if name not in results or other not in results:
        return None
    above, below = _median(results[name], field), _median(results[other], field)
    return above / below if above is not None and below else None


def checks(results: Results) -> Iterator[Check]:
    """The targets for which there are samples."""
    for kind in ("sqlite", "postgresql"):
        for subject, what, reached, bound, *at_least in (
            *_load_targets(results, kind),
            *_server_targets(results, kind),
            *_million_targets(results, kind),
        ):
            if reached is not None:
                yield Check(f"{kind} {subject}", what, reached, bound, bool(at_least))


_Target = tuple[str, str, float | None, float] | tuple[str, str, float | None, float, bool]


def _load_targets(results: Results, kind: str) -> Iterator[_Target]:
    first, again, changed = (f"{kind} {name}" for name in ("first", "again", "1 % changed"))
    if first not in results:
        return
    yield "first", "x (fetch floor + write floor)", _over_floor(results, first), 1.25
    yield "first", "times as fast as dlt", _dlt_over(results, first), 5 + (kind != "sqlite"), True
    yield "again", "x first", _ratio(results, again, first), 0.9
    unit = "data pages changed" if kind == "sqlite" else "row versions written"
    yield "again", unit, _median(results[again], "written"), 0
    yield "again", "MB of WAL", _median(results[again], "wal_bytes", _MB), 1
    if kind != "sqlite":
        # A chat's new version, its message count and one event are three rows.
        yield "1 % changed", "x first's rows", _ratio(results, changed, first, "written"), 0.01
        yield "1 % changed", "x first's WAL", _ratio(results, changed, first, "wal_bytes"), 0.05


def _server_targets(results: Results, kind: str) -> Iterator[_Target]:
    for subject in ("first, 100 ms", "again, 100 ms", "many numbers, 100 ms"):
        if (name := f"{kind} {subject}") in results:
            yield subject, "x (requests x latency / 16)", _over_floor(results, name), 1.3
    if samples := results.get(f"{kind} first, 50 requests/s"):
        used = median((s.requests - s.throttled) / s.allowance for s in samples)
        refused = median(s.throttled / s.requests for s in samples)
        yield "first, 50 requests/s", "of the allowance used", used, 0.85, True
        yield "first, 50 requests/s", "of the requests throttled", refused, 0.05


def _million_targets(results: Results, kind: str) -> Iterator[_Target]:
    small, large = f"{kind} first", f"{kind} first, 10 x the chats"
    if large not in results:
        return
    subject = "first, 10 x the chats"
    yield subject, "x first", _ratio(results, large, small), 11
    yield subject, "x first's peak memory", _ratio(results, large, small, "peak_bytes"), 1.15
    yield subject, "MB at most", _median(results[large], "peak_bytes", _MB), 200
