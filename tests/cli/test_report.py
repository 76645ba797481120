"""report: what the page says, what it never says, and how its file is written."""

import os
import re
import stat
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sqlalchemy import Engine, update

from etl.cli.report.page import Page
from etl.cli.report.verdict import Verdict
from etl.config import PhoneNumber
from etl.db.engine import reading, writing
from etl.db.report import Figures, read_figures
from etl.db.tables import sync_run_numbers, sync_runs
from tests.cli.conftest import Synced
from tests.support.command import A, B, call, select
from tests.support.marks import only_sqlite
from tests.support.report_rows import fill, number

NOW = datetime(2025, 6, 10, 12, 30, tzinfo=UTC)
HOSTILE = ("<script>alert(1)</script>", "😀" * 300, "\"'><img src=x onerror=alert(1)>", "שלום 123")
QUESTIONS = [
    "Can I trust it?",
    "Since when?",
    "What happens on the numbers?",
    "What did it cost?",
    "What went wrong and what to do?",
    "What is what?",
]


class Parsed(HTMLParser):
    """A page's elements, its attributes and its text, as a browser takes them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.headings: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags[-1:] == ["h2"] and data.strip():
            self.headings.append(data)


def figures(engine: Engine, days: int = 4) -> Figures:
    with reading(engine) as connection:
        return read_figures(connection, days, now=NOW)


def page_of(engine: Engine, days: int = 4, *numbers: PhoneNumber) -> str:
    return Page(figures(engine, days), numbers).render()


def verdict_of(engine: Engine, *numbers: PhoneNumber) -> Verdict:
    return Page(figures(engine), numbers).verdict


def said(verdict: Verdict) -> tuple[str, str, str]:
    return verdict.level, verdict.answer, verdict.sentence


def test_the_command(synced: Synced) -> None:
    """It writes a file for its owner's eyes, and prints the answer to the first question."""
    done = call("report", env=synced.env)
    sentence = "2 of 2 numbers are fresh and complete: read to the end within the last day."
    assert (done.code, done.stdout) == (0, f"report.html: Yes. {sentence}\n")
    file = Path("report.html")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    page = Parsed(file.read_text("utf-8"))
    assert page.headings == QUESTIONS
    assert sentence in page.text
    assert [*Path().glob(".report*")] == []


def test_it_replaces_an_older_page(synced: Synced) -> None:
    """Whose readers keep what they have."""
    Path("page.html").write_text("older")
    with Path("page.html").open() as older:
        assert call("report", "--output", "page.html", env=synced.env).code == 0
        assert older.read() == "older"
    assert "<!doctype html>" in Path("page.html").read_text("utf-8")


def test_the_page_on_stdout(synced: Synced) -> None:
    """And nothing else."""
    done = call("report", "--output", "-", "--days", "1", env=synced.env)
    assert (done.code, done.stdout.split("\n")[0]) == (0, "<!doctype html>")
    assert not Path("report.html").exists()


def test_no_person_is_on_the_page(synced: Synced) -> None:
    """No name of a chat, no participant, no full number."""
    text = call("report", "--output", "-", env=synced.env).stdout
    names = select(synced.url, "SELECT DISTINCT display_name FROM chats")
    people = select(synced.url, "SELECT DISTINCT phone_number FROM chat_handles")
    private = {str(value) for (value,) in names + people if value} | {A, B, A[1:], B[1:]}
    assert len(private) > 30
    assert [each for each in private if each in text] == []
    assert "…4472" in text


def test_figures_are_those_of_the_database(engine: Engine, database_url: str) -> None:
    """Each tile is a query."""
    fill(engine, NOW, numbers=12, days=4)
    html = page_of(engine)
    tiles = {
        words: value
        for value, words in re.findall(r'"tile"><b>([\d,]+)</b> <span>([^<]+)</span>', html)
    }
    queries = {
        "chats in the lists, one that two numbers list counted twice": "sum(total_count) "
        "FROM number_status",
        "lists consistent": "count(*) FROM number_status WHERE completeness = 'consistent'",
        "lists unproved": "count(*) FROM number_status WHERE completeness = 'unproved'",
        "messages, each chat counted once": "sum(messages) FROM messages_per_day_total",
        "new chats": "count(*) FROM chat_events WHERE kind = 'created'",
        "participants joined": "count(*) FROM chat_events WHERE kind = 'joined'",
        "participants left": "count(*) FROM chat_events WHERE kind = 'left'",
        "chats renamed": "count(*) FROM chat_events WHERE kind = 'renamed'",
        "requests in 8 runs": "sum(requests) FROM sync_runs",
        "of these repeated": "sum(retries) FROM sync_runs",
        "answered 429: the API asked for fewer": "sum(throttled) FROM sync_runs",
        "chats read": "sum(chats_seen) FROM sync_runs",
    }
    expected = {
        words: f"{int(count):,}"
        for words, query in queries.items()
        if (count := select(database_url, f"SELECT {query}")[0][0])
    }
    assert tiles == expected


@only_sqlite
def test_an_empty_database(engine: Engine) -> None:
    """It says so, and explains the tables."""
    nothing = ("none", "Nothing was synced yet.", "Run `linq-etl sync` first.")
    assert said(verdict_of(engine)) == nothing
    assert said(verdict_of(engine, PhoneNumber(A))) == nothing
    assert Parsed(page_of(engine)).headings == [QUESTIONS[0], QUESTIONS[-1]]


@only_sqlite
def test_verdicts(engine: Engine) -> None:
    """Yes only if each list is fresh and complete, no if none is; and why not."""
    fill(engine, NOW, numbers=41, days=4)
    assert said(verdict_of(engine)) == (
        "warn",
        "In part.",
        "34 of 41 numbers are fresh and complete; 2 stale; 5 not known to be complete.",
    )
    assert said(verdict_of(engine, PhoneNumber(number(1)))) == (
        "good",
        "Yes.",
        "1 of 1 number is fresh and complete: read to the end within the last day.",
    )
    never = PhoneNumber("+13125559999")
    assert said(verdict_of(engine, PhoneNumber(number(0)), never)) == (
        "bad",
        "No.",
        "0 of 2 numbers are fresh and complete; 1 never synced; 1 stale.",
    )
    page = Parsed(page_of(engine, 4, PhoneNumber(number(0)), never))
    assert "Cannot reach the API. Try again later." in page.text
    assert "Run again later: the API stayed unreachable" in page.text


@only_sqlite
@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"total_count": 0}, None),
        ({"completeness": "proved"}, None),
        ({"completeness": "unproved"}, "not known to be complete"),
        ({"rejected": 2}, "with records that could not be stored"),
        ({"started_at": NOW - timedelta(days=1)}, None),
        ({"started_at": NOW - timedelta(days=1, seconds=1)}, "stale"),
    ],
)
def test_states(engine: Engine, change: dict[str, object], state: str | None) -> None:
    """Of a number whose last run ended like this."""
    fill(engine, NOW, numbers=2, days=1)
    entry = sync_run_numbers.c.phone_number == number(1)
    with writing(engine) as connection:
        if "started_at" in change:
            connection.execute(update(sync_runs).values(change))
        else:
            connection.execute(update(sync_run_numbers).where(entry).values(change))
    found = verdict_of(engine, PhoneNumber(number(1)))
    assert [each.short for each, _ in found.problems] == ([state] if state else [])


@only_sqlite
def test_hostile_labels_stay_text(engine: Engine) -> None:
    """No element, no attribute, nothing to load; long ones are cut."""
    fill(engine, NOW, numbers=4, days=2, labels=HOSTILE)
    page = Parsed(page_of(engine))
    assert HOSTILE[0] in page.text
    assert HOSTILE[2] in page.text
    assert "😀" * 39 + "…" in page.text
    assert "😀" * 40 not in page.text
    assert {"script", "img", "link", "iframe", "object", "a"}.isdisjoint(page.tags)
    assert {"src", "href", "onerror", "style"}.isdisjoint(name for name, _ in page.attributes)
    addresses = {value for _, value in page.attributes if "//" in value}
    assert addresses == {"http://www.w3.org/2000/svg"}


@only_sqlite
def test_errors_are_text_and_name_no_number(engine: Engine) -> None:
    """Commands in them are code; a phone number is shortened."""
    fill(engine, NOW, numbers=1, days=2)
    error = {"error_detail": f"<b>no</b> list for {A}. See `linq-etl check`."}
    with writing(engine) as connection:
        connection.execute(update(sync_run_numbers).values(error))
    html = page_of(engine)
    assert "&lt;b&gt;no&lt;/b&gt; list for …4472. See <code>linq-etl check</code>." in html


@only_sqlite
def test_labels_of_the_configuration_win(engine: Engine) -> None:
    """They are newer than those of the database."""
    fill(engine, NOW, numbers=1, days=2, labels=["Old"])
    text = Parsed(page_of(engine, 2, PhoneNumber(number(0), "New"))).text
    assert ("New …0000" in text, "Old" in text) == (True, False)


@only_sqlite
def test_ninety_days_of_two_hundred_numbers(engine: Engine) -> None:
    """Less than 1 MB, with each number in a table; the same figures make the same page."""
    fill(engine, NOW, numbers=200, days=90)
    html = page_of(engine, 90)
    assert len(html.encode()) < 1_000_000
    assert {f"…{index:04}" for index in range(200)} <= {*re.findall(r"…\d{4}", html)}
    assert page_of(engine, 90) == html


@only_sqlite
@pytest.mark.slow
def test_very_many_numbers(engine: Engine) -> None:
    """The worst are shown, the others counted."""
    fill(engine, NOW, numbers=2, days=1)
    few = figures(engine, 366)
    states = [{**few.numbers[1], "phone_number": f"+1{index:010}"} for index in range(100_000)]
    never = {"last_good_sync": None, "fresh_as_of": None}
    states[77_777] = {**states[0], "phone_number": "+19999977777", **never}
    html = Page(replace(few, numbers=states), ()).render()
    assert len(html.encode()) < 1_000_000
    assert "99999 of 100000 numbers are fresh and complete; 1 never synced." in html
    assert "and 99,750 more: linq-etl status" in html
    assert html.index("…7777") < html.index("…0000")


def test_without_the_extra(synced: Synced, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2 and the command that installs it; the demo goes on without a page."""
    for name in [name for name in sys.modules if name.startswith("etl.cli.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pygal", None)
    failed = call("report", env=synced.env)
    assert (failed.code, failed.stdout) == (2, "")
    assert failed.stderr == (
        "linq-etl: The package pygal is not installed. Run: pip install 'linq-etl[report]'\n"
    )
    shown = call("demo")
    assert (shown.code, "pip install 'linq-etl[report]'" in shown.stdout) == (0, True)
    assert not Path("linq-demo.html").exists()


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("no/report.html", "its folder does not exist"),
        (".", "it is a folder"),
        ("pipe", "it is not a file that can be replaced"),
    ],
)
def test_an_output_that_cannot_be_written(synced: Synced, output: str, reason: str) -> None:
    """Exit code 2 and why."""
    os.mkfifo("pipe")
    failed = call("report", "--output", output, env=synced.env)
    assert (failed.code, failed.stdout) == (2, "")
    assert failed.stderr == f"linq-etl: {output} cannot be written: {reason}.\n"


def test_without_a_database() -> None:
    """Exit code 6, and no file is made."""
    failed = call("report", env={"LINQ_ETL_DATABASE__URL": "sqlite:///no.db"})
    assert (failed.code, failed.stdout) == (6, "")
    assert failed.stderr.startswith("linq-etl: There is no database file no.db.")
    assert [*Path().glob("*.*")] == []


def test_an_older_schema(database_url: str) -> None:
    """Exit code 6 and what to do."""
    env = {"LINQ_ETL_DATABASE__URL": database_url}
    assert call("db", "upgrade", env=env).code == 0
    assert call("db", "downgrade", "0009_gains", "--yes", env=env).code == 0
    failed = call("report", env=env)
    assert (failed.code, failed.stdout) == (6, "")
    assert "is at the older revision 0009_gains; run `linq-etl db upgrade`" in failed.stderr
    assert not Path("report.html").exists()
