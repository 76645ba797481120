"""A run in one sentence, and its errors by cause."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from etl.db.run_log import Record
from etl.phone import named

_NAMED = 3  # numbers of a cause that are named
_UNFINISHED = {"failed", "interrupted", "abandoned"}


def summary(record: Record) -> str:
    """A run's record as one sentence, e.g. `Run 42: 2 numbers, 801 chats, 17 changed, …, 1.9 s`.

    Failures come first, with their commonest cause. It holds no phone number. A run that is in
    progress has no duration. A dry run tells what it would have changed; once it is over, its
    numbers and their chats are known no more.
    """
    numbers: Sequence[Record] = record.get("numbers") or ()
    total = record.get("numbers_total") or len(numbers)
    of_all = counted(total, "number")
    problem = _problem(record, numbers, of_all) or ""
    is_dry_run = record.get("mode") == "dry-run"
    chats = counted(sum(number.get("total_count") or 0 for number in numbers), "chat")
    facts = (
        None if of_all in problem else of_all,
        None if is_dry_run and not numbers else chats,
        *(_possible_changes(record) if is_dry_run else _changes(record)),
        _lists(numbers),
        counted(record.get("requests") or 0, "request"),
        took(record),
    )
    sentence = ", ".join(filter(None, facts))
    name = f"Run {record['id']}{' (dry run, no data was written)' if is_dry_run else ''}"
    return f"{name}: {problem and f'{problem}; '}{sentence}"


def took(record: Record) -> str | None:
    """How long the run took; None if it is in progress."""
    if not record.get("finished_at") or not record.get("started_at"):
        return None
    seconds: float = (record["finished_at"] - record["started_at"]).total_seconds()
    return duration(max(seconds, 0))


def duration(seconds: float) -> str:
    """In two units at most: `1.9 s`, `12 min`, `3 h 5 min`, `2 d 4 h`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = int(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    big, small, units = (*divmod(minutes, 60), ("h", "min"))
    if big >= 24:
        big, small, units = (*divmod(big, 24), ("d", "h"))
    return f"{big} {units[0]} {small} {units[1]}" if small else f"{big} {units[0]}"


def counted(number: int, noun: str) -> str:
    """The number with its noun: `1 phone number`, `2 phone numbers`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def cause(error: str) -> str:
    """What an error was caused by: its first sentence, without the number of tries."""
    first = re.split(r"\. |\.$|, gave up after \d+ (?:try|tries)", error, maxsplit=1)[0]
    return " ".join(first.split())


def by_cause(numbers: Iterable[Record]) -> dict[str, list[Record]]:
    """The numbers with an error, by its cause; the commonest cause comes first."""
    found: dict[str, list[Record]] = {}
    for number in numbers:
        if error := number.get("error_detail"):
            found.setdefault(cause(error), []).append(number)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def grouped_errors(
    numbers: Iterable[Record], total: int, labels: Mapping[str, str | None] | None = None
) -> list[str]:
    """A sentence per cause, after the numbers that it stopped: their names, or how many of all."""
    return [
        f"{_who([number['phone_number'] for number in failed], total, labels or {})}: "
        f"{_fullest(failed)}"
        for failed in by_cause(numbers).values()
    ]


def _who(failed: Sequence[str], total: int, labels: Mapping[str, str | None]) -> str:
    names = ", ".join(named(number, labels.get(number)) for number in failed[:_NAMED])
    if len(failed) <= _NAMED:
        return names
    count = f"{len(failed)} of {counted(total, 'number')}"
    if len(failed) == total:
        return count
    return f"{count} ({names} and {len(failed) - _NAMED} more)"


def _fullest(failed: Sequence[Record]) -> str:
    """The error that most of the numbers have."""
    errors = Counter(number["error_detail"] for number in failed)
    return str(errors.most_common(1)[0][0])


def _changes(record: Record) -> Iterator[str]:
    """How many chats were new, changed and removed; a count of 0 is told only of changed ones."""
    for name, word in (("inserted", "new"), ("updated", "changed"), ("removed", "removed")):
        count = record.get(f"chats_{name}") or 0
        if count or word == "changed":
            yield f"{count} {word}"


def _possible_changes(record: Record) -> Iterator[str]:
    """What a sync would have done to how many chats."""
    words = {"inserted": "insert", "updated": "update", "removed": "remove"}
    counts = (f"{word} {record.get(f'chats_{name}') or 0}" for name, word in words.items())
    yield f"would {', '.join(counts)}"


def _lists(numbers: Sequence[Record]) -> str | None:
    """How completely the lists were read: `lists consistent`, or how many of each."""
    found = Counter(number["completeness"] for number in numbers if number.get("completeness"))
    if not found:
        return None
    if len(found) == 1:
        return f"{'list' if found.total() == 1 else 'lists'} {next(iter(found))}"
    ordered = (name for name in ("unproved", "consistent", "proved") if name in found)
    return "lists " + ", ".join(f"{found[name]} {name}" for name in ordered)


def _problem(record: Record, numbers: Sequence[Record], of_all: str) -> str | None:
    """What went wrong, with how many numbers of all; None if all succeeded."""
    failed = [number for number in numbers if number.get("status") in _UNFINISHED]
    causes = [*by_cause(failed)] or [cause(record.get("error_detail") or "")]
    others = f" and {counted(len(causes) - 1, 'other cause')}" if len(causes) > 1 else ""
    why = f": {causes[0]}{others}" if causes[0] else ""
    status = record.get("status")
    if status in {"interrupted", "abandoned"}:
        return f"{status}{why}"
    failures = len(failed) if numbers else record.get("numbers_failed")
    if failures:
        return f"{failures} of {of_all} failed{why}"
    if status == "failed":
        return f"failed{why}"
    partial = sum(number.get("status") == "partial" for number in numbers)
    return f"{partial} of {of_all} in part" if partial else None
