"""check: a line per subject, each failure with its fix and its exit code."""

from pathlib import Path

import pytest

from etl.db.backends import mounts
from etl.errors import SchemaError
from etl.sandbox import Sandbox, build_world
from etl.sandbox.routes import Reply
from tests.cli.conftest import Synced
from tests.support.command import A, B, call, environment, execute


def test_a_check_that_succeeds(synced: Synced) -> None:
    """Exit code 0 and five lines."""
    checked = call("check", env=synced.env)
    assert (checked.code, checked.stderr) == (0, "")
    assert checked.stdout.splitlines()[:3] == [
        "ok    config    complete and well-formed",
        "ok    token     accepted; it can see 2 phone numbers",
        "ok    numbers   2 phone numbers configured, all visible to this token",
    ]
    subjects = [line.split()[:2] for line in checked.stdout.splitlines()]
    assert subjects[3:] == [["ok", "database"], ["ok", "schema"]]


@pytest.mark.parametrize(
    ("change", "code", "fixes"),
    [
        ({"LINQ_INTEGRATION_TOKEN": ""}, 2, {"config": "set $LINQ_INTEGRATION_TOKEN"}),
        (
            {"LINQ_ETL_SYNC__PHONE_NUMBERS": "+12025550199"},
            2,
            {
                "numbers": "1 number is not visible to this token (…0199): "
                "remove it or set its token_env."
            },
        ),
        (
            {
                "LINQ_INTEGRATION_TOKEN": "stale",
                "LINQ_ETL_DATABASE__URL": "sqlite:///no/linq.db",
            },
            4,
            {"token": "Put a valid integration token in", "database": "see database.url"},
        ),
    ],
)
def test_a_check_that_fails(
    change: dict[str, str], code: int, fixes: dict[str, str], synced: Synced
) -> None:
    """Every failure is shown with its fix; the exit code is that of the first."""
    checked = call("check", "--json", env=synced.env | change)
    failed = {f["subject"]: f for f in checked.data if not f["ok"]}
    assert checked.code == code == next(iter(failed.values()))["exit_code"]
    assert failed.keys() == fixes.keys()
    assert all(fix in failed[subject]["detail"] for subject, fix in fixes.items())


def test_numbers_that_their_tokens_cannot_see() -> None:
    """Each token has its lines; a number is named by its label and its last digits."""
    Path("config.toml").write_text(f"""
        [sync]
        phone_numbers = [
            {{ number = "{A}", token_env = "TOKEN_SALES" }},
            {{ number = "+12025550199", label = "Line 100", token_env = "TOKEN_SALES" }},
            "{B}",
            {{ number = "+12025550100", label = "Line 101" }},
            "+12025550101",
        ]
    """)
    with Sandbox(build_world(chats_per_number=1), tokens={"sales": [A]}) as sandbox:
        env = environment(sandbox, "sqlite:///linq.db", TOKEN_SALES="sales")
        del env["LINQ_ETL_SYNC__PHONE_NUMBERS"]
        checked = call("check", env=env)
    assert checked.code == 2
    assert checked.stdout.splitlines()[1:5] == [
        "ok    token     accepted; it can see 1 phone number",
        "FAIL  numbers   1 number is not visible to this token (Line 100, …0199): "
        "remove it or set its token_env.",
        "ok    token     accepted; it can see 2 phone numbers",
        "FAIL  numbers   2 numbers are not visible to this token (Line 101, …0100; …0101): "
        "remove them or set their token_env.",
    ]


def test_all_numbers_of_a_token(synced: Synced) -> None:
    """With all_phone_numbers, the numbers need no names."""
    change = {"LINQ_ETL_SYNC__PHONE_NUMBERS": "", "LINQ_ETL_SYNC__ALL_PHONE_NUMBERS": "true"}
    checked = call("check", env=synced.env | change)
    assert checked.code == 0
    assert checked.stdout.splitlines()[2] == (
        "ok    numbers   every number that this token can see (all_phone_numbers)"
    )


def test_a_token_whose_numbers_are_not_known_is_accepted() -> None:
    """An API that refuses to list the numbers proves nothing against the configuration."""
    with _WithoutNumbers(build_world(chats_per_number=1)) as sandbox:
        checked = call("check", env=environment(sandbox, "sqlite:///linq.db"))
    assert checked.code == 0
    assert checked.stdout.splitlines()[1] == (
        "ok    token     accepted, but the API refused to list its phone numbers"
    )


class _WithoutNumbers(Sandbox):
    """Answers 404 where the numbers are listed."""

    def respond(self, target: str, token: str) -> Reply | None:
        return super().respond(target.replace("phone_numbers", "no_such_thing"), token)


@pytest.mark.parametrize(
    ("auto_upgrade", "code", "advice"),
    [("true", 0, "the next sync upgrades"), ("false", 6, "run `linq-etl db upgrade`")],
)
def test_a_database_without_tables(
    synced: Synced, auto_upgrade: str, code: int, advice: str
) -> None:
    """It is a failure only if no sync may create them."""
    change = {
        "LINQ_ETL_DATABASE__URL": "sqlite:///empty.db",
        "LINQ_ETL_DATABASE__AUTO_UPGRADE": auto_upgrade,
    }
    checked = call("check", "--json", env=synced.env | change)
    schema = checked.data[-1]
    assert (checked.code, schema["exit_code"], schema["subject"]) == (code, code, "schema")
    assert advice in schema["detail"]


def test_an_unknown_schema(synced: Synced) -> None:
    """It has the exit code of every schema error, and the database is well all the same."""
    url = "sqlite:///newer.db"
    execute(url, "CREATE TABLE linq_etl_alembic_version (version_num VARCHAR(32) PRIMARY KEY)")
    execute(url, "INSERT INTO linq_etl_alembic_version VALUES ('9999')")
    checked = call("check", "--json", env=synced.env | {"LINQ_ETL_DATABASE__URL": url})
    assert checked.code == SchemaError.exit_code
    assert [(f["subject"], f["ok"]) for f in checked.data[-2:]] == [
        ("database", True),
        ("schema", False),
    ]


@pytest.mark.parametrize("exists", [True, False])
def test_a_file_on_a_network_file_system(
    exists: bool, synced: Synced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning more, before the file is made too; the exit code stays as it is."""
    env = synced.env if exists else synced.env | {"LINQ_ETL_DATABASE__URL": "sqlite:///new.db"}
    before = call("check", env=env)
    (tmp_path / "mountinfo").write_text("1 0 0:1 / / rw - virtiofs host rw\n")
    monkeypatch.setattr(mounts, "MOUNTINFO", tmp_path / "mountinfo")
    after = call("check", env=env)
    assert (before.code, after.code, after.stderr) == (0, 0, "")
    (line,) = set(after.stdout.splitlines()) - set(before.stdout.splitlines())
    assert line.startswith("warn  database  /")
    assert "is on a network file system (virtiofs at /)" in line
    records = call("check", "--json", env=env).data
    assert [(r["ok"], r["exit_code"]) for r in records if r["is_warning"]] == [(True, 0)]
