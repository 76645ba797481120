"""Whether the data can be trusted: each number's state, and all of them in a sentence."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from etl.cli.output import Row
from etl.cli.status import freshness, is_failing, with_age
from etl.sync.summary import counted

Level = Literal["good", "warn", "bad", "none"]
GLYPHS: Final[dict[Level, str]] = {"good": "✓", "warn": "▲", "bad": "✗", "none": "○"}


@dataclass(frozen=True, slots=True)
class State:
    """What a number's data can be: `words` follow a count of numbers."""

    level: Level
    words: str
    advice: str
    applies: Callable[[Row], bool]

    @property
    def short(self) -> str:
        return self.words.partition(":")[0]


# The first one that applies is a number's state.
STATES: Final = (
    State(
        "bad",
        "never synced",
        "Run `linq-etl sync`, and see what `linq-etl status` says.",
        lambda row: freshness(row, None) == "never synced",
    ),
    State(
        "bad",
        "stale: no good sync for more than a day",
        "See below what went wrong. If nothing did, check that the sync is scheduled.",
        lambda row: freshness(row, None) == "stale",
    ),
    State("warn", "failing, but fresh", "See below what went wrong.", is_failing),
    State(
        "warn",
        "not reached by the token",
        "Compare `linq-etl phone-numbers` with the configuration.",
        lambda row: row["unreached_since"] is not None,
    ),
    State(
        "warn",
        "always empty: no chat was ever listed",
        "Check the number and its token: the API answers a mistyped number with an empty list.",
        lambda row: bool(row["always_empty"]),
    ),
    State(
        "warn",
        "not known to be complete",
        "The list may have lost chats while it was read. `linq-etl sync --prove` reads it twice.",
        lambda row: row["completeness"] not in {"proved", "consistent"},
    ),
    State(
        "warn",
        "with records that could not be stored",
        "See below why they were rejected.",
        lambda row: row["rejected"] > 0,
    ),
    State("good", "fresh and complete", "", lambda _: True),
)
_GOOD: Final = STATES[-1]
_BLANK: Final[Row] = {"rejected": 0, "unreached_since": None}


@dataclass(frozen=True, slots=True)
class Judged:
    """A number's row of number_status, with its age, and its state."""

    row: Row
    state: State


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer in a word or two, a sentence, and each problem with how many numbers have it."""

    level: Level
    answer: str
    sentence: str
    problems: Sequence[tuple[State, int]]


def judged(rows: Iterable[Row], wanted: Iterable[str], now: datetime) -> list[Judged]:
    """The wanted numbers, the worst first, and of those the oldest."""
    known = {row["phone_number"]: {**_BLANK, **row} for row in rows}
    found = [{**_BLANK, **with_age(known.get(number), number, now)} for number in wanted]
    states = [Judged(row, next(s for s in STATES if s.applies(row))) for row in found]
    return sorted(states, key=_worst_first)


def verdict(numbers: Sequence[Judged], *, runs: int) -> Verdict:
    """What to say of these numbers after so many runs."""
    if not runs or not numbers:
        return Verdict("none", "Nothing was synced yet.", "Run `linq-etl sync` first.", ())
    counts = [(state, sum(each.state is state for each in numbers)) for state in STATES]
    problems = [(state, count) for state, count in counts if count and state is not _GOOD]
    good, total = dict(counts)[_GOOD], counted(len(numbers), "number")
    found = f"{good} of {total} {'is' if good == 1 else 'are'} {_GOOD.words}"
    if not problems:
        return Verdict("good", "Yes.", f"{found}: read to the end within the last day.", ())
    why = "; ".join(f"{count} {state.short}" for state, count in problems)
    if good:
        return Verdict("warn", "In part.", f"{found}; {why}.", problems)
    return Verdict("bad", "No.", f"{found}; {why}.", problems)


def _worst_first(number: Judged) -> tuple[int, float, str]:
    age = number.row["age"]
    oldest_first = -age.total_seconds() if age else 0.0
    return STATES.index(number.state), oldest_first, number.row["phone_number"]
