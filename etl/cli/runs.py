"""What `runs` prints: a line per run, or one run in full."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC

from etl.cli.output import Row
from etl.cli.tables import Column, as_text, folded, one_line
from etl.sync.summary import cause, counted, summary, took

_COLUMNS = (
    Column("id", right=True),
    Column("mode"),
    Column("status"),
    Column("started"),
    Column("took", right=True),
    Column("numbers", right=True),
    Column("changed", right=True),
    Column("error", cut_to=10),
)

_NAMED = 50  # numbers with the same problem


def short_columns(records: Iterable[Row]) -> list[Column]:
    """Without the mode if it is always the usual one."""
    modes = {record["mode"] for record in records} - {None, "full"}
    return [column for column in _COLUMNS if modes or column.key != "mode"]


def short(record: Row) -> Row:
    """A run in a few columns; of its numbers, those that succeeded if some did not."""
    total, failed = record["numbers_total"], record["numbers_failed"]
    error = cause(record["error_detail"] or "") or record["error_kind"]
    if not error and failed:
        error = f"{counted(failed, 'number')} failed"
    return {
        "id": record["id"],
        "mode": record["mode"],
        "status": record["status"],
        "started": record["started_at"].astimezone(UTC).strftime("%Y-%m-%d %H:%MZ"),
        "took": took(record),
        "numbers": f"{(total or 0) - failed}/{total}" if failed else total,
        "changed": _changes(record),
        "error": error,
    }


def in_full(record: Row, width: int) -> Iterator[str]:
    """One run: its fields, the numbers with problems, how many had none, and at last a summary."""
    for key, value in record.items():
        if key != "numbers":
            yield f"{key:<18}{as_text(value)}".rstrip()
    good: list[Row] = []
    problems: dict[str, list[Row]] = {}
    for number in record["numbers"]:
        if problem := _problem(number):
            problems.setdefault(problem, []).append(number)
        else:
            good.append(number)
    for problem, numbers in sorted(problems.items(), key=lambda item: -len(item[1])):
        yield ""
        yield from _group(problem, numbers, len(record["numbers"]), width)
    if good:
        yield ""
        ending = "succeeded without a problem"
        yield f"{counted(len(good), 'other number' if problems else 'number')} {ending}"
    yield ""
    yield from folded(summary(record), width)


def _changes(record: Row) -> str:
    """How many chats changed, then with a sign those that are new and those that were removed."""
    others = (("+", record["chats_inserted"]), ("-", record["chats_removed"]))
    signed = (f"{sign}{count}" for sign, count in others if count)
    return " ".join((str(record["chats_updated"] or 0), *signed))


def _group(problem: str, numbers: Sequence[Row], total: int, width: int) -> Iterator[str]:
    """The sentence that most numbers have, then the numbers in full, unless they are all."""
    errors = [number["error_detail"] or problem for number in numbers]
    sentence = one_line(max(errors, key=errors.count))
    status = numbers[0]["status"]
    yield from folded(f"{len(numbers)} of {counted(total, 'number')} {status}: {sentence}", width)
    if len(numbers) == total > 1:
        return
    named = [number["phone_number"] for number in numbers[:_NAMED]]
    others = [f"and {len(numbers) - _NAMED} others: --json"] if len(numbers) > _NAMED else []
    for line in folded(" ".join((*named, *others)), width - 2):
        yield f"  {line}"


def _problem(number: Row) -> str | None:
    """What the numbers of one group have in common; None if all is well."""
    if number["error_detail"]:
        return cause(number["error_detail"])
    if number["status"] == "running":
        return "in progress, or its process died"
    if number["status"] == "succeeded" and number["completeness"] != "unproved":
        return None
    rejected = f"{counted(number['rejected'], 'record')} rejected" if number["rejected"] else None
    unproved = "unproved" if number["completeness"] == "unproved" else None
    return "; ".join(filter(None, (rejected, unproved, number["reason"]))) or "no reason is known"
