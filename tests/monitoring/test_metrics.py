"""The metrics file: valid, current, written at once, and without a full phone number."""

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine

from etl.config import PhoneNumber
from etl.db import run_log
from etl.db.engine import reading, writing
from etl.db.run_log import NumberOutcome, RunOutcome
from etl.monitoring.metrics import read_metrics, unique_names, write_metrics
from etl.monitoring.whole_file import problem_of
from etl.sandbox import Sandbox, build_world
from tests.support.builders import NOON, A, B, minute
from tests.support.command import (
    CLOSED_PORT,
    HoldingSandbox,
    call,
    environment,
    execute,
    linq_etl,
    running,
    wait_until,
)

ROOT = Path(__file__).parents[2]
Samples = dict[tuple[str, ...], float]
FILE = Path("linq_etl.prom")


def parsed(text: str) -> Samples:
    """The samples by name and labels, after both judges of the format have accepted them."""
    if promtool := shutil.which("promtool"):
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    return {
        (sample.name.removeprefix("linq_etl_"), *_labels(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _labels(labels: dict[str, str]) -> list[str]:
    """What the sample is of, then its state, if it has one."""
    names = sorted(labels, key=lambda name: name not in {"number", "command"})
    return [labels[name] for name in names]


def metrics_of(engine: Engine, *numbers: PhoneNumber) -> Samples:
    with reading(engine) as connection:
        write_metrics(FILE, read_metrics(connection, numbers))
    return parsed(FILE.read_text("utf-8"))


def attempt(engine: Engine, at: int, outcome: NumberOutcome, *, label: str | None = None) -> None:
    """A sync of one number that starts at this minute and ends a minute later."""
    number = PhoneNumber(outcome.phone_number, label)
    with writing(engine) as connection:
        run_id = run_log.start(connection, "sync", now=minute(at), lease_seconds=60)
        run_log.claim(connection, run_id, [number], minute(at))
        run_log.close_number(connection, run_id, outcome, minute(at + 1))
        run_log.finish(connection, run_id, RunOutcome(outcome.status), minute(at + 1))


def good(number: str = A, chats: int = 5) -> NumberOutcome:
    return NumberOutcome(
        number, "succeeded", completeness="consistent", evidence={"total_count": chats}
    )


def bad(number: str = A, kind: str = "token") -> NumberOutcome:
    return NumberOutcome(number, "failed", error_kind=kind, error_detail="It failed.")


def states(samples: Samples, name: str, number: str) -> set[str]:
    """The states that apply."""
    return {key[2] for key, value in samples.items() if key[:2] == (name, number) and value}


# What the metrics say


def test_a_number_that_was_synced(engine: Engine) -> None:
    """Its last success, its completeness and its chats; it does not fail."""
    attempt(engine, 1, good())
    samples = metrics_of(engine)
    last = minute(2).timestamp()
    assert samples["last_success_timestamp_seconds", "…4472"] == last
    assert samples["last_attempt_timestamp_seconds", "…4472"] == last
    assert samples["last_attempt_duration_seconds", "…4472"] == 60
    assert samples["failing_since_timestamp_seconds", "…4472"] == 0
    assert samples["chats", "…4472"] == 5
    assert states(samples, "last_success_completeness", "…4472") == {"consistent"}
    assert states(samples, "last_attempt_status", "…4472") == {"succeeded"}
    assert states(samples, "run_status", "sync") == {"succeeded"}
    assert samples["run_duration_seconds", "sync"] == 60


def test_a_number_that_fails(engine: Engine) -> None:
    """It fails since the first failure after the last good sync, whose results remain."""
    attempt(engine, 0, bad())
    attempt(engine, 2, good())
    for at in (4, 6, 8):
        attempt(engine, at, bad())
    samples = metrics_of(engine)
    assert samples["last_success_timestamp_seconds", "…4472"] == minute(3).timestamp()
    assert samples["failing_since_timestamp_seconds", "…4472"] == minute(5).timestamp()
    assert samples["last_attempt_timestamp_seconds", "…4472"] == minute(9).timestamp()
    assert states(samples, "last_attempt_status", "…4472") == {"failed"}
    assert samples["chats", "…4472"] == 5


def test_a_number_that_was_held_by_another_run(engine: Engine) -> None:
    """It was not attempted, so it does not fail."""
    attempt(engine, 0, good())
    attempt(engine, 2, bad(kind="busy"))
    samples = metrics_of(engine)
    assert samples["failing_since_timestamp_seconds", "…4472"] == 0
    assert states(samples, "last_attempt_status", "…4472") == {"succeeded"}


def test_a_number_that_was_never_synced(engine: Engine) -> None:
    """Zero is longer ago than any limit, so that an alert on the age sees it."""
    samples = metrics_of(engine, PhoneNumber(A, "Support"))
    assert samples["last_success_timestamp_seconds", "Support"] == 0
    assert samples["last_attempt_timestamp_seconds", "Support"] == 0
    assert ("chats", "Support") not in samples
    assert states(samples, "last_attempt_status", "Support") == set()


def test_only_the_configured_numbers(engine: Engine) -> None:
    """One that is not configured any more would be late for ever; without any, all are shown."""
    attempt(engine, 0, good(A))
    attempt(engine, 2, good(B))
    assert ("chats", "…0100") not in metrics_of(engine, PhoneNumber(A))
    assert metrics_of(engine)["chats", "…0100"] == 5


@pytest.mark.parametrize(
    "label",
    ['say "hi"', "back\\slash\\", "<b>&amp;</b>", "🦊 Łukasz", "a{b=c},d", "\\n", "two\nlines"],
)
def test_labels_are_escaped(engine: Engine, label: str) -> None:
    """Whatever people wrote, the file is valid and the label comes back as it was."""
    attempt(engine, 0, good(), label=label)
    assert metrics_of(engine)["chats", label] == 5


@pytest.mark.parametrize(
    ("numbers", "names"),
    [
        ([("+13343284472", None), ("+442071234472", None)], ["…4472", "…4472 #2"]),
        ([("+13343284472", "Desk"), ("+13125550100", "Desk")], ["Desk", "Desk #2"]),
        (
            [("+13343284472", "…0100 #2"), ("+13125550100", None), ("+12025550100", None)],
            ["…0100 #2", "…0100", "…0100 #3"],
        ),
    ],
)
def test_names_are_unique(numbers: Sequence[tuple[str, str | None]], names: list[str]) -> None:
    """A number that is added later does not change the names of those before it."""
    assert list(unique_names(numbers).values()) == names
    assert list(unique_names(numbers[:-1]).values()) == names[:-1]


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool")
def test_the_rules_in_the_docs_are_valid() -> None:
    """By Prometheus' own judgement."""
    page = (ROOT / "docs/monitoring.md").read_text("utf-8")
    rules = page.partition("```yaml\n")[2].partition("```")[0]
    Path("rules.yml").write_text(rules)
    subprocess.run(["promtool", "check", "rules", "rules.yml"], check=True)


def test_the_docs_name_every_metric(engine: Engine) -> None:
    """The table has no other ones."""
    attempt(engine, 0, good())
    page = (ROOT / "docs/monitoring.md").read_text("utf-8")
    table = page.partition("| metric |")[2].partition("\n\n")[0]
    named = set()
    for line in table.splitlines()[2:]:
        first, *others = re.findall(r"`([^`]+)`", line.split("|")[1])
        prefix = first.removesuffix("_timestamp_seconds").removesuffix("_requests")
        named |= {first, *(prefix + other.removeprefix("…") for other in others)}
    assert {f"linq_etl_{key[0]}" for key in metrics_of(engine)} == named


# The file


def test_a_sync_writes_the_file() -> None:
    """Readable for everybody, without a full number, a chat's name or the token."""
    with Sandbox(build_world(chats_per_number=20)) as sandbox:
        env = environment(sandbox, "sqlite:///linq.db", LINQ_ETL_MONITORING__METRICS_FILE=str(FILE))
        old = os.umask(0o077)
        try:
            assert linq_etl("sync", env=env).code == 0
        finally:
            os.umask(old)
        chats = [sandbox.world.chat(chat) for chat in sandbox.world.listing(A)]
    names = {chat["display_name"] for chat in chats if chat.get("display_name")}
    text = FILE.read_text("utf-8")
    samples = parsed(text)
    assert stat.S_IMODE(FILE.stat().st_mode) == 0o644
    assert samples["chats", "…4472"] == 20
    assert samples["run_chats", "sync", "inserted"] > 20
    assert samples["run_requests", "sync"] >= 2
    assert not any(private in text for private in (A[1:], B[1:], "sandbox-token", *names))
    assert [path.name for path in Path().glob("*.prom*")] == [FILE.name]
    assert list(Path().glob(".*.tmp")) == []


def test_a_run_that_fails_writes_the_file_too() -> None:
    """What was good remains, and since when it fails is added."""
    with Sandbox(build_world(chats_per_number=5)) as sandbox:
        env = environment(
            sandbox, "sqlite:///linq.db", A, LINQ_ETL_MONITORING__METRICS_FILE=str(FILE)
        )
        assert call("sync", env=env).code == 0
        before = parsed(FILE.read_text("utf-8"))
        assert call("sync", env=env | {"LINQ_INTEGRATION_TOKEN": "stale"}).code == 4
    after = parsed(FILE.read_text("utf-8"))
    key = ("last_success_timestamp_seconds", "…4472")
    assert after[key] == before[key] > NOON.timestamp()
    assert after["failing_since_timestamp_seconds", "…4472"] > before[key]
    assert states(after, "run_status", "sync") == {"failed"}


@pytest.mark.slow
def test_an_interrupted_run_writes_the_file() -> None:
    """Before its process ends."""
    holding = HoldingSandbox(build_world(chats_per_number=5), answers=0)
    with holding as sandbox:
        env = environment(
            sandbox, "sqlite:///linq.db", A, LINQ_ETL_MONITORING__METRICS_FILE=str(FILE)
        )
        with running("sync", env=env) as process:
            wait_until(sandbox.holding.is_set, process)
            process.terminate()
            process.communicate(timeout=30)
    samples = parsed(FILE.read_text("utf-8"))
    assert states(samples, "last_attempt_status", "…4472") == {"interrupted"}


def test_readers_never_see_half_a_file(engine: Engine) -> None:
    """The new file takes the place of the old one, which a reader may still have open."""
    attempt(engine, 0, good(chats=5))
    metrics_of(engine)
    with FILE.open(encoding="utf-8") as reader:
        start = reader.read(10)
        attempt(engine, 2, good(chats=6))
        metrics_of(engine)
        assert parsed(start + reader.read())["chats", "…4472"] == 5
    assert parsed(FILE.read_text("utf-8"))["chats", "…4472"] == 6


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("no/such/folder.prom", "No such file or directory"),
        ("folder", "Is a directory"),
        ("/proc/linq.prom", "No such file or directory"),
        ("linq.db/x.prom", "Not a directory"),
    ],
)
def test_a_file_that_cannot_be_written(file: str, reason: str) -> None:
    """A warning with the reason; the run succeeds, and nothing is left behind."""
    Path("folder").mkdir()
    with Sandbox(build_world(chats_per_number=1)) as sandbox:
        env = environment(sandbox, "sqlite:///linq.db", LINQ_ETL_MONITORING__METRICS_FILE=file)
        done = call("sync", env=env)
    assert done.code == 0
    assert f'warning metrics_not_written reason="{reason}"' in done.stderr
    assert list(Path().glob("*.tmp")) + list(Path().glob(".*.tmp")) == []


def test_a_database_that_is_down_leaves_the_file_as_it_was() -> None:
    """The exit code is that of the run."""
    FILE.write_text("old")
    variables = {"LINQ_ETL_MONITORING__METRICS_FILE": str(FILE)}
    env = environment(CLOSED_PORT, "postgresql://etl@127.0.0.1:1/linq", **variables)
    done = call("sync", env=env)
    assert (done.code, FILE.read_text()) == (6, "old")
    assert "metrics_not_written" in done.stderr


def test_an_older_schema_leaves_the_file_as_it_was() -> None:
    """While a new version is rolled out with database.auto_upgrade = false."""
    variables = {
        "LINQ_ETL_MONITORING__METRICS_FILE": str(FILE),
        "LINQ_ETL_DATABASE__AUTO_UPGRADE": "false",
    }
    execute("sqlite:///linq.db", "CREATE TABLE linq_etl_alembic_version (version_num TEXT)")
    execute("sqlite:///linq.db", "INSERT INTO linq_etl_alembic_version VALUES ('0006_baseline')")
    done = call("sync", env=environment(CLOSED_PORT, "sqlite:///linq.db", **variables))
    assert (done.code, FILE.exists()) == (6, False)


# check


def test_check_tests_the_folder_and_sends_no_ping() -> None:
    """A line for each, and exit code 2 if the file cannot be written."""
    with Sandbox(build_world(chats_per_number=1)) as sandbox:
        variables = {
            "LINQ_ETL_MONITORING__METRICS_FILE": str(FILE),
            "LINQ_ETL_MONITORING__PING_URL": f"{CLOSED_PORT}/secret-uuid",
        }
        env = environment(sandbox, "sqlite:///linq.db", **variables)
        checked = call("check", env=env)
        wrong = call("check", env=env | {"LINQ_ETL_MONITORING__METRICS_FILE": "no/x.prom"})
    assert (checked.code, checked.stdout.splitlines()[-2:]) == (
        0,
        [
            "ok    ping      the URL is well-formed; nothing was sent to it",
            "ok    metrics   monitoring.metrics_file can be written",
        ],
    )
    assert (wrong.code, wrong.stdout.splitlines()[-1]) == (
        2,
        "FAIL  metrics   monitoring.metrics_file cannot be written: its folder does not exist",
    )
    assert "secret-uuid" not in checked.stdout + checked.stderr
    assert not FILE.exists()


def test_a_folder_is_no_file() -> None:
    """A file cannot take its place."""
    Path("folder").mkdir()
    assert problem_of(Path("folder")) == "it is a folder"
