"""sync, backfill and verify: their options, their output, their exit codes."""

import json
import os
import pty
from datetime import datetime
from pathlib import Path

import pytest

from etl.sandbox import Motion, Sandbox, build_world
from tests.cli.conftest import Synced, read_terminal
from tests.support.builders import C
from tests.support.command import (
    CLOSED_PORT,
    TOKEN,
    A,
    B,
    call,
    ended,
    environment,
    execute,
    running,
    select,
)
from tests.support.receiver import Receiver

# Output


def test_a_sync_logs_to_stderr_only(synced: Synced) -> None:
    """With --log-json every line is JSON; numbers are shortened and nothing private is shown."""
    lines = [json.loads(line) for line in synced.output.stderr.splitlines()]
    assert synced.output.stdout == ""
    assert [line["event"] for line in lines] == [
        "run_started",
        "number_ended",
        "number_ended",
        "run_ended",
    ]
    assert {line.get("phone_number") for line in lines} == {None, "…4472", "…0100"}
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)
    assert lines[-1]["status"] == "succeeded"
    for private in (A[1:], B[1:], TOKEN):
        assert private not in synced.output.stderr


def test_log_lines_are_json_by_configuration_too(synced: Synced, tmp_path: Path) -> None:
    """log.json = true does the same as --log-json."""
    env = environment(synced.sandbox, f"sqlite:///{tmp_path}/linq.db", A, LINQ_ETL_LOG__JSON="true")
    done = call("sync", env=env)
    assert done.code == 0
    assert json.loads(done.stderr.splitlines()[0])["event"] == "run_started"


def test_a_terminal_shows_bars_and_a_table(synced: Synced, tmp_path: Path) -> None:
    """On a terminal, stderr has bars and a table instead of log lines; stdout stays JSON."""
    url = f"sqlite:///{tmp_path}/linq.db"
    env = environment(synced.sandbox, url, TERM="xterm", COLUMNS="120")
    ours, theirs = pty.openpty()
    with running("sync", "--json", env=env, stderr=theirs) as process:
        os.close(theirs)
        shown = read_terminal(ours)
        done = ended(process)
    assert (done.code, done.data["status"]) == (0, "succeeded")
    assert "Run 1: 2 phone numbers" in shown
    assert all(text in shown for text in ("…4472", "…0100", "consistent", "all"))
    assert "run_ended" not in shown


def test_numbers_that_did_not_change_are_not_logged() -> None:
    """The others are, with their label and how many chats changed."""
    world = build_world(chats_per_number=5)
    labels = '[[sync.phone_numbers]]\nnumber = "{}"\nlabel = "Zoë [red]"\n'
    Path("config.toml").write_text("".join(map(labels.format, (A, B))), "utf-8")
    with Sandbox(world) as sandbox:
        env = environment(sandbox, "sqlite:///linq.db")
        del env["LINQ_ETL_SYNC__PHONE_NUMBERS"]
        assert call("sync", env=env).code == 0
        world.create(A)
        done = call("--log-json", "sync", env=env)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["run_started", "number_ended", "run_ended"]
    assert (lines[1]["phone_number"], lines[1]["label"]) == ("…4472", "Zoë [red]")
    assert (lines[1]["changes"], "Zoë [red]" in done.stderr) == (1, True)
    assert lines[2]["summary"].startswith("Run 2: 2 numbers, ")


def test_a_quiet_sync_prints_problems_only() -> None:
    """Nothing if all went well; else warnings, the end of the run and the errors by cause."""
    url = "sqlite:///linq.db"
    with Sandbox(build_world(chats_per_number=5)) as sandbox:
        env = environment(sandbox, url)
        done = call("sync", "--quiet", env=env)
        assert (done.code, done.stdout, done.stderr) == (0, "", "")
        reloaded = call("backfill", "--quiet", "--phone-number", A, env=env)
        assert (reloaded.code, reloaded.stderr) == (0, "")
        assert call("verify", "--quiet", env=env).stdout == ""
        partial = call("sync", "--quiet", env=env | {"LINQ_ETL_SYNC__PHONE_NUMBERS": f"{A},{C}"})
        execute(url, "UPDATE chats SET display_name = 'something else'")
        assert "WRONG" in call("verify", "--quiet", env=env).stdout
    number, run, error = partial.stderr.splitlines()
    assert partial.code == 3
    assert " warning number_ended phone_number=…0199 status=failed " in number
    assert " warning run_ended run=3 status=partial " in run
    assert " numbers_failed=1 " in run
    assert '"Run 3: 1 of 2 numbers failed: The API refused the request (HTTP 404' in run
    assert error.startswith("linq-etl: …0199: The API refused the request (HTTP 404")


def test_a_budget_of_the_command_line() -> None:
    """It takes the place of the configured one, and the summary says that a part is left."""
    with Sandbox(build_world(numbers=[A], chats_per_number=500)) as sandbox:
        extra = {"LINQ_ETL_SYNC__MAX_REQUESTS": "4", "LINQ_ETL_API__PER_PAGE": "100"}
        env = environment(sandbox, "sqlite:///linq.db", A, **extra)
        spent = call("sync", "--json", env=env)
        done = call("sync", "--max-requests", "20", "--json", env=env)
        again = call("backfill", "--phone-number", A, "--max-requests", "3", "--json", env=env)
        refused = call("sync", "--max-requests", "0", env=env)
    named = "budget: the list needs about 7 requests, more than the {} of a run, so it never "
    named += "completes; raise --max-requests or sync.max_requests"
    ends = [(each.code, each.data["numbers"][0]["reason"]) for each in (spent, done, again)]
    assert ends == [(3, named.format(4)), (0, None), (3, named.format(3))]
    assert (refused.code, "--max-requests" in refused.stderr) == (2, True)


def test_what_stops_all_numbers_is_told_once() -> None:
    """After how many numbers it stopped, not after all their names; the log ends with an error."""
    numbers = [f"+1312555{n:04}" for n in range(100, 130)]
    attempts = {"LINQ_ETL_API__MAX_ATTEMPTS": "2"}
    env = environment(CLOSED_PORT, "sqlite:///linq.db", *numbers, **attempts)
    failed = call("sync", "--quiet", env=env)
    *warnings, run, error = failed.stderr.splitlines()
    cause = "Cannot reach 127.0.0.1 (connection refused)"
    assert (failed.code, len(warnings)) == (5, 5)
    assert " error run_ended run=1 status=failed " in run
    assert f'summary="Run 1: 30 of 30 numbers failed: {cause}; ' in run
    assert error == f"linq-etl: 30 of 30 numbers: {cause}, gave up after 2 tries."
    shown = call("runs", env=env).stdout.splitlines()[1]
    assert shown.endswith(f"  0/30        0  {cause}")
    one = call("runs", "1", env=env).stdout.splitlines()
    assert f"30 of 30 numbers failed: {cause}, gave up after 2 tries." in one
    assert not [line for line in one if line.startswith("  +")]
    assert len(call("runs", "1", "--json", env=env).data["numbers"]) == 30


# sync


def test_a_list_is_proved_on_request() -> None:
    """With --prove, the first sync of a list that does not change is proved."""
    with Sandbox(build_world(numbers=[A], chats_per_number=20)) as sandbox:
        env = environment(sandbox, "sqlite:///linq.db", A)
        done = call("sync", "--prove", "--require-complete", "--json", env=env)
    assert (done.code, done.data["numbers"][0]["completeness"]) == (0, "proved")


def test_an_unproved_list_fails_only_if_completeness_is_required() -> None:
    """Exit code 3 with --require-complete, else 0."""
    small_pages = {"LINQ_ETL_API__PER_PAGE": "5", "LINQ_ETL_API__MAX_CONCURRENCY": "1"}
    motion = Motion(jumps=3, creates=1, deletes=1)
    with Sandbox(build_world(numbers=[A], chats_per_number=50), motion=motion) as sandbox:
        env = environment(sandbox, "sqlite:///linq.db", A, **small_pages)
        done = call("sync", "--json", env=env)
        assert (done.code, done.data["numbers"][0]["completeness"]) == (0, "unproved")
        assert call("sync", "--require-complete", env=env).code == 3


def test_suspicious_removals_are_applied_only_on_request() -> None:
    """Exit code 3 with the option to use; with --allow-removals, 0."""
    world = build_world(numbers=[A], chats_per_number=30)
    with Sandbox(world) as sandbox:
        env = environment(sandbox, "sqlite:///linq.db", A)
        assert call("sync", env=env).code == 0
        for chat_id in world.listing(A)[:20]:
            world.delete(chat_id)
        withheld = call("sync", env=env)
        assert withheld.code == 3
        assert "--allow-removals" in withheld.stderr
        allowed = call("sync", "--allow-removals", "--json", env=env)
    assert (allowed.code, allowed.data["chats_removed"]) == (0, 20)


def test_a_schema_is_not_upgraded_unasked() -> None:
    """With auto_upgrade = false: exit code 6 and the command to run."""
    env = environment(CLOSED_PORT, "sqlite:///linq.db", LINQ_ETL_DATABASE__AUTO_UPGRADE="false")
    refused = call("sync", env=env)
    assert refused.code == 6
    assert "run `linq-etl db upgrade`" in refused.stderr


def test_an_unknown_schema_is_left_alone() -> None:
    """Exit code 6, and nothing is written."""
    url = "sqlite:///linq.db"
    execute(url, "CREATE TABLE linq_etl_alembic_version (version_num VARCHAR(32) PRIMARY KEY)")
    execute(url, "INSERT INTO linq_etl_alembic_version VALUES ('9999')")
    refused = call("sync", env=environment(CLOSED_PORT, url))
    assert refused.code == 6
    assert "revision 9999 is unknown to this program" in refused.stderr
    assert select(url, "SELECT name FROM sqlite_schema WHERE type = 'table'") == [
        ("linq_etl_alembic_version",)
    ]


# sync --dry-run


def test_a_dry_run_creates_no_database() -> None:
    """Exit code 6 and the commands to run; auto_upgrade does not apply to it."""
    env = environment(CLOSED_PORT, "sqlite:///linq.db")
    missing = call("sync", "--dry-run", env=env)
    assert (missing.code, missing.stdout) == (6, "")
    assert "`linq-etl db upgrade` for an empty database" in missing.stderr
    assert not Path("linq.db").exists()
    execute("sqlite:///linq.db", "CREATE TABLE theirs (id INTEGER)")
    empty = call("sync", "--dry-run", env=env)
    assert (empty.code, "run `linq-etl db upgrade`" in empty.stderr) == (6, True)
    assert select("sqlite:///linq.db", "SELECT name FROM sqlite_schema") == [("theirs",)]


def test_a_dry_run_says_that_it_wrote_nothing() -> None:
    """In its summary and in the run log, whose list then has a column for the mode."""
    with Sandbox(build_world(chats_per_number=5)) as sandbox:
        env = environment(sandbox, "sqlite:///linq.db")
        assert call("db", "upgrade", env=env).code == 0
        told = call("sync", "--dry-run", env=env)
    would = "2 numbers, {}would insert 10, update 0, remove 0, {}3 requests, "
    name = "Run 1 (dry run, no data was written): "
    assert name + would.format("10 chats, ", "lists consistent, ") in told.stderr
    assert (told.code, " mode=dry-run status=succeeded " in told.stderr) == (0, True)
    assert select("sqlite:///linq.db", "SELECT * FROM phone_numbers") == []
    head, row = call("runs", env=env).stdout.splitlines()
    assert (head.split()[:3], row.split()[:3]) == (
        ["id", "mode", "status"],
        ["1", "dry-run", "succeeded"],
    )
    assert (name + would.format("", "")) in call("runs", "1", env=env).stdout
    assert call("runs", "--json", env=env).data[0]["mode"] == "dry-run"


def test_a_dry_run_is_not_reported() -> None:
    """No ping, no metrics file and no telemetry: they would tell of a sync."""
    with Receiver() as service, Sandbox(build_world(chats_per_number=5)) as sandbox:
        monitoring = {
            "LINQ_ETL_MONITORING__PING_URL": f"{service.url}/ping",
            "LINQ_ETL_MONITORING__METRICS_FILE": "linq.prom",
            "OTEL_EXPORTER_OTLP_ENDPOINT": service.url,
        }
        env = environment(sandbox, "sqlite:///linq.db", **monitoring)
        assert call("db", "upgrade", env=env).code == 0
        assert call("sync", "--dry-run", env=env).code == 0
        assert (service.received, Path("linq.prom").exists()) == ([], False)
        assert call("sync", env=env).code == 0
    assert {"/ping", "/v1/traces", "/v1/metrics"} <= set(service.targets)
    assert Path("linq.prom").exists()


# sync by several machines


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--since", "1h"], "--since needs --join"),
        (["--dry-run", "--join"], "--dry-run cannot --join: joined runs"),
        (["--join", "--shard", "0/2"], "--shard divides the numbers, --join shares them"),
        (["--join", "--since", "1"], "'1' is not a time span"),
        (["--shard", "2/2"], "There is no shard 2 of 2"),
        (["--shard", "auto/2"], "$JOB_COMPLETION_INDEX is not set"),
        (["--rate-share", "2/1"], "Invalid value for '--rate-share'"),
    ],
)
def test_options_that_do_not_divide_the_work(arguments: list[str], says: str) -> None:
    """Exit code 2 and a sentence about the option."""
    refused = call("sync", *arguments, env=environment(CLOSED_PORT, "sqlite:///linq.db"))
    assert (refused.code, refused.stdout) == (2, "")
    assert says in refused.stderr


def test_each_shard_has_its_numbers() -> None:
    """All of them together are the list; a shard without numbers says so and succeeds."""
    numbers = [f"+1312555{n:04}" for n in range(4)]
    runs = []
    with Sandbox(build_world(numbers=numbers, chats_per_number=3)) as sandbox:
        env = environment(sandbox, "sqlite:///linq.db", *numbers)
        for index in range(8):
            indexed = env | {"JOB_COMPLETION_INDEX": str(index)}
            runs.append(call("sync", "--shard", "auto/8", "--json", env=indexed))
    assert [run.code for run in runs] == [0] * 8
    synced = [number["phone_number"] for run in runs for number in run.data["numbers"]]
    assert sorted(synced) == numbers
    empty = [run for run in runs if not run.data["numbers"]]
    assert empty
    for run in empty:
        assert "no number of the list is in shard" in run.stderr


def test_joined_runs_leave_out_what_is_finished() -> None:
    """Unless it was finished before --since; with exit code 0 in each case."""
    with Sandbox(build_world(chats_per_number=3)) as sandbox:
        env = environment(sandbox, "sqlite:///linq.db")
        sizes = []
        for arguments in ([], [], ["--since", "2h"], ["--since", "0s"], ["--rate-share", "1/2"]):
            done = call("sync", "--join", *arguments, "--json", env=env)
            sizes.append((done.code, done.data["numbers_total"]))
    assert sizes == [(0, 2), (0, 0), (0, 0), (0, 2), (0, 0)]


# backfill


def test_a_backfill_reads_the_pages_it_is_given(synced: Synced, tmp_path: Path) -> None:
    """From --first-page to --last-page, and the run log has its command."""
    url = f"sqlite:///{tmp_path}/linq.db"
    env = environment(synced.sandbox, url, LINQ_ETL_API__PER_PAGE="5")
    arguments = ("--phone-number", A, "--first-page", "2", "--last-page", "3", "--max-rps", "100")
    done = call("backfill", *arguments, "--json", env=env)
    assert (done.code, done.data["command"], done.data["chats_inserted"]) == (0, "backfill", 10)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing option '--phone-number'"),
        (["--phone-number", A, "--first-page", "0"], "Invalid value for '--first-page'"),
        (["--phone-number", A, "--max-rps", "0"], "Invalid value for '--max-rps'"),
        (
            ["--phone-number", A, "--first-page", "9", "--last-page", "8"],
            "--last-page: page 8 comes before page 9",
        ),
    ],
)
def test_a_backfill_with_wrong_options(arguments: list[str], says: str) -> None:
    """Exit code 2 and a sentence about the option."""
    refused = call("backfill", *arguments, env=environment(CLOSED_PORT, "sqlite:///linq.db"))
    assert (refused.code, refused.stdout) == (2, "")
    assert says in refused.stderr


# verify


def test_verify_prints_text_or_json(synced: Synced) -> None:
    """Exit code 0 if no sampled chat is wrong."""
    text = call("verify", "--sample", "10", env=synced.env)
    assert (text.code, text.stderr) == (0, "")
    assert text.stdout.startswith("10 chats ")
    record = call("verify", "--sample", "10", "--json", env=synced.env)
    assert (record.code, record.data["sampled"], record.data["wrong"]) == (0, 10, 0)


def test_verify_fails_if_a_chat_is_wrong() -> None:
    """Exit code 3."""
    url = "sqlite:///linq.db"
    with Sandbox(build_world(numbers=[A], chats_per_number=5)) as sandbox:
        env = environment(sandbox, url, A)
        assert call("sync", env=env).code == 0
        execute(url, "UPDATE chats SET display_name = 'something else'")
        assert call("verify", env=env).code == 3
