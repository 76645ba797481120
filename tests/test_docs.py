"""README.md and docs/ say what is so: what they show is run as printed."""

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pymysql
import pytest
from psycopg.errors import (
    InsufficientPrivilege,
    ObjectNotInPrerequisiteState,
    WrongObjectType,
)
from psycopg.sql import SQL, Composed, Identifier
from sqlalchemy import make_url

from docs import generate
from docs.generate import ROOT
from etl import config
from etl.cli.demo import QUERIES
from etl.cli.main import run
from etl.config import SECTIONS
from etl.db.tables import VERSION_TABLE, metadata, views
from etl.sandbox import Sandbox, World, build_world
from tests.support import postgres
from tests.support.command import CLOSED_PORT, COMMAND, COVERAGE, A, B, call, execute, select

TOKEN = "your-token"  # as the pages write it
PRIVACY_KEY = "f3c1a97be2054d68" * 2
DEPLOYED = sorted(path for path in ROOT.glob("docs/deploy/*") if path.is_file())
PAGES = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in generate.documents()}


@dataclass(frozen=True)
class Block:
    """A fenced block; `mark` is the comment on the line above it, if any."""

    page: str
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def _blocks() -> Iterator[Block]:
    fence = re.compile(r"(?:^<!-- ([^\n]+) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for page, text in PAGES.items():
        for found in fence.finditer(text):
            line = text.count("\n", 0, found.start(2)) + 1
            yield Block(page, line, found[2], found[3], found[1] or "")


BLOCKS = list(_blocks())


def blocks(language: str) -> list[Any]:
    """The blocks in a language as parameters, without those that a comment exempts."""
    return [
        pytest.param(block, id=str(block))
        for block in BLOCKS
        if block.language == language and not block.mark.startswith("not run: ")
    ]


# What is generated


@pytest.mark.parametrize("page", PAGES)
def test_generated_parts_are_up_to_date(page: str) -> None:
    """They follow from the code: run `python docs/generate.py`."""
    assert generate.rendered(PAGES[page]) == PAGES[page]


def test_the_picture_is_up_to_date() -> None:
    """It shows what the demo prints, and is small."""
    assert generate.PICTURE.read_text("utf-8") == generate.picture()
    assert generate.PICTURE.stat().st_size < 60_000


def test_the_picture_of_the_report_is_small() -> None:
    """People load it with the README."""
    picture = (ROOT / "docs/report.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 150_000


def test_the_demo_prints_whole_queries() -> None:
    """Each can be copied from the terminal as it stands."""
    printed = generate.plain(generate.demo())
    for query in QUERIES.values():
        lines = [line.removeprefix(" " * 8) for line in query.strip().splitlines()]
        assert "\n" + "\n".join(lines) + "\n" in printed


def test_the_map_is_the_tree() -> None:
    """CONTRIBUTING.md has a line for each file of the program."""
    (shown,) = (block.text for block in BLOCKS if block.text.startswith("etl/\n"))
    folders: list[str] = []
    listed = set()
    for line in shown.splitlines():
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name] if name.endswith("/") else []
        listed.add("".join(folders) + ("" if name.endswith("/") else name))
    assert [name for name in listed if not (ROOT / name).exists()] == []
    summed_up = ("etl/sandbox/", "etl/db/backends/")
    files = {str(path.relative_to(ROOT)) for path in ROOT.glob("etl/**/[!_]*.py")}
    assert {file for file in files if not file.startswith(summed_up)} <= listed


# Configuration


def test_example_configuration_is_complete() -> None:
    """Every setting is in config.example.toml, set or commented out."""
    example = (ROOT / "config.example.toml").read_text("utf-8")
    named = set(re.findall(r"^(?:# )?(\w+) = ", example, re.MULTILINE))
    assert named == {key for struct in SECTIONS.values() for key in struct.__struct_fields__}


def test_example_configuration_loads_as_the_defaults() -> None:
    """An unchanged copy works, and sets nothing but the phone numbers."""
    loaded = config.load_config(ROOT / "config.example.toml", {config.TOKEN_ENV: "t"})
    assert (loaded.api, loaded.database) == (config.Api(), config.Database())
    assert [(n.e164, n.label) for n in loaded.sync.phone_numbers] == [(A, None), (B, "Support")]


def test_commented_out_settings_are_valid() -> None:
    """Uncommenting a line of config.example.toml gives valid TOML."""
    for line in (ROOT / "config.example.toml").read_text("utf-8").splitlines():
        if re.match(r"# \w+ = ", line):
            tomllib.loads(line.removeprefix("# "))


@pytest.mark.parametrize("block", blocks("toml"))
def test_configurations_load(block: Block, tmp_path: Path) -> None:
    """Every configuration that is shown is valid."""
    (tmp_path / "shown.toml").write_text(block.text)
    tokens = dict.fromkeys(re.findall(r'token_env = "(\w+)"', block.text), "t")
    secrets = {config.TOKEN_ENV: "t", config.KEY_ENV: PRIVACY_KEY}
    config.load_config(tmp_path / "shown.toml", secrets | tokens, needs_numbers=False)


# Links


def _anchors(page: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Relative links name files and headings that exist."""
    text = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        if anchor:
            assert anchor in _anchors(str(linked.resolve().relative_to(ROOT))), target


# Commands


@dataclass(frozen=True)
class Stored:
    """A sandbox and a database in which it was synced twice."""

    sandbox: Sandbox
    url: str

    def environment(self) -> dict[str, str]:
        """Settings to sync it once more."""
        return {
            "LINQ_ETL_API__BASE_URL": self.sandbox.url,
            "LINQ_ETL_DATABASE__URL": self.url,
            "LINQ_ETL_SYNC__PHONE_NUMBERS": f"{A},{B}",
            "LINQ_INTEGRATION_TOKEN": TOKEN,
            config.KEY_ENV: PRIVACY_KEY,
        }


@pytest.fixture(scope="module")
def in_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    with _synced_twice(f"sqlite:///{tmp_path_factory.mktemp('docs')}/linq.db") as stored:
        # The examples show run 42.
        execute(stored.url, "UPDATE sync_runs SET id = 42 WHERE id = 2")
        execute(stored.url, "UPDATE sync_run_numbers SET run_id = 42 WHERE run_id = 2")
        yield stored


@pytest.fixture(scope="module")
def in_postgresql(postgres_server: str) -> Iterator[Stored]:
    with postgres.database(postgres_server) as url, _synced_twice(url) as stored:
        yield stored


@contextmanager
def _synced_twice(url: str) -> Iterator[Stored]:
    """Sync, let something of each kind happen, and sync again."""
    with Sandbox(build_world(chats_per_number=120), token=TOKEN) as sandbox:
        sandbox.world.change_service(sandbox.world.listing(A)[4], "SMS")
        stored = Stored(sandbox, url)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in stored.environment().items():
                patch.setenv(name, value)
            assert run(["sync"]) == 0
            # As if the chats had been watched for long.
            execute(url, "UPDATE chats SET first_seen_at = '2025-06-01 12:00:00+00:00'")
            with sandbox.lock:
                _let_time_pass(sandbox.world)
            assert run(["sync"]) == 0
        yield stored


def _let_time_pass(world: World) -> None:
    first, second, third, fourth, fifth = world.listing(A)[:5]
    world.jump(first)
    world.rename(second, "Opening night")
    world.join(third)
    world.create(A)
    world.leave(fourth)
    world.change_service(fifth, "iMessage")


@pytest.fixture
def folder(in_sqlite: Stored, tmp_path: Path) -> Path:
    """A clone of the repository, as far as commands need one, with a synced database."""
    shutil.copy(in_sqlite.url.removeprefix("sqlite:///"), tmp_path / "linq.db")
    shutil.copy(ROOT / "config.example.toml", tmp_path)
    return tmp_path


_IN_A_SENTENCE = r"`linq-etl ([^`]+)`"
_IN_A_BLOCK = (
    r"^ *(?:\S*/)?linq-etl (.+?)(?:  .*| [|>].*)?$",  # the help's examples, and shells
    r"^ExecStart\w*=-?\S*/linq-etl (.+)$",
    r"^docker run .* linq-etl (.+)$",
    r"args: \[(.+)\]$",
)


def _shown_commands() -> list[str]:
    found = {line for text in PAGES.values() for line in re.findall(_IN_A_SENTENCE, text)}
    for shown in [*(block.text for block in BLOCKS), *map(Path.read_text, DEPLOYED)]:
        text = shown.replace("\\\n", "")
        for pattern in _IN_A_BLOCK:
            found |= set(re.findall(pattern, text, re.MULTILINE))
    return sorted({line.replace(", ", " ") for line in found})


@pytest.mark.parametrize("line", _shown_commands())
def test_commands(
    line: str, folder: Path, in_sqlite: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command that is shown succeeds."""
    for name, value in in_sqlite.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LINQ_ETL_DATABASE__URL", "sqlite:///linq.db")
    arguments = shlex.split(line)
    if arguments[0] == "sandbox":
        monkeypatch.setattr(Sandbox, "serve_forever", Sandbox.stop)
        arguments += ["--port", "0"]
    assert run(arguments) == 0


@pytest.mark.parametrize("block", blocks("sh"))
def test_shell_blocks(block: Block, folder: Path, in_sqlite: Stored) -> None:
    """Every block for a shell can be pasted, all its lines in order."""
    # An environment that is complete already, so that nothing is downloaded.
    bin_, on_path = folder / ".venv/bin", folder / "on path"
    for program in (bin_ / "pip", bin_ / "pytest", on_path / "python3"):
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    (bin_ / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    for place in (bin_,) if ".venv/bin" in block.text else (bin_, on_path):
        (place / "linq-etl").symlink_to(COMMAND)
    environment = in_sqlite.environment()
    del environment["LINQ_ETL_DATABASE__URL"]
    if "export " in block.text:
        environment = {"LINQ_ETL_API__BASE_URL": environment["LINQ_ETL_API__BASE_URL"]}
    _run_shell(block.text, {**environment, "PATH": f"{on_path}:{os.defpath}"})


def _cron_lines() -> list[Any]:
    lines = [line for param in blocks("cron") for line in param.values[0].text.splitlines()]
    return [line for line in lines if re.match(r"[\d*]", line)]


@pytest.mark.parametrize("line", _cron_lines())
def test_cron_lines(line: str, folder: Path, in_sqlite: Stored) -> None:
    """The command works with nothing in the environment, and prints nothing for cron to mail."""
    (folder / "token").write_text(TOKEN)
    (folder / "ping_url").write_text(f"{CLOSED_PORT}/uuid\n")
    (folder / "config.example.toml").rename(folder / "config.toml")
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/linq-etl").symlink_to(COMMAND)
    command = line.split(maxsplit=5)[5]
    for shown, real in (("/srv/linq-etl", folder), ("/etc/linq", folder)):
        command = command.replace(shown, str(real))
    base_url = in_sqlite.environment()["LINQ_ETL_API__BASE_URL"]
    printed = _run_shell(command, {"LINQ_ETL_API__BASE_URL": base_url, "PATH": os.defpath})
    assert printed == ""
    if "sync.log" in command:
        assert re.search("run_ended|deleted 0 runs", (folder / "sync.log").read_text())


def _run_shell(script: str, environment: dict[str, str]) -> str:
    """Run the script, which must succeed; return what it printed."""
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={**COVERAGE, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


# SQL


def _statements(database: str) -> list[Any]:
    """The statements for a database: of the pages, unless marked for another, and of the demo."""
    shown = {
        f"{block}": block.text
        for block in BLOCKS
        if block.language == "sql" and block.mark in ("", database)
    }
    return [pytest.param(sql, id=name) for name, sql in (shown | QUERIES).items()]


@pytest.mark.parametrize("sql", _statements("sqlite"))
def test_sql_on_sqlite(sql: str, in_sqlite: Stored) -> None:
    """Every statement that is shown works, and queries find something."""
    with closing(sqlite3.connect(in_sqlite.url.removeprefix("sqlite:///"))) as connection:
        cursor = connection.execute(sql)
        assert cursor.fetchall() or not cursor.description


@pytest.mark.parametrize("sql", _statements("postgresql"))
def test_sql_on_postgresql(sql: LiteralString, in_postgresql: Stored) -> None:
    """The same on PostgreSQL."""
    with psycopg.connect(in_postgresql.url) as connection:
        cursor = connection.execute(sql)
        assert not cursor.description or cursor.fetchall()
        connection.rollback()


@pytest.mark.parametrize("schema", ["public", "linq"])
def test_roles(
    schema: str, postgres_server: str, in_sqlite: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role with the grants shown can sync, an analyst can read and nothing else."""
    names = {name: f"{name}_{uuid4().hex}" for name in ("linq_etl", "analyst")}
    with postgres.database(postgres_server) as url, psycopg.connect(url, autocommit=True) as root:
        names["linq"] = root.info.dbname
        path = names.get(schema, schema)
        try:
            for statements in _grants(schema):
                root.execute(_renamed(statements, names))
            for name, value in in_sqlite.environment().items():
                monkeypatch.setenv(name, value)
            monkeypatch.setenv("LINQ_ETL_DATABASE__URL", _as_role(url, names["linq_etl"]))
            if schema != "public":
                monkeypatch.setenv("LINQ_ETL_DATABASE__SCHEMA", path)
            assert run(["sync"]) == 0
            assert run(["sync"]) == 0
            execute(
                _as_role(url, names["linq_etl"], path),
                "CREATE TABLE of_a_later_version (id INTEGER)",
            )
            with psycopg.connect(_as_role(url, names["analyst"], path), autocommit=True) as analyst:
                for name in (*metadata.tables, *views.tables, VERSION_TABLE, "of_a_later_version"):
                    _only_reads(analyst, SQL("{}").format(Identifier(name)))
                with pytest.raises(InsufficientPrivilege):
                    analyst.execute("CREATE TABLE mine (id INTEGER)")
        finally:
            for role in (names["linq_etl"], names["analyst"]):
                root.execute(SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(Identifier(role)))


def test_mysql_accounts(mysql_server: str, in_sqlite: Stored) -> None:
    """With the statements shown, one account can sync, and an analyst can read and nothing else."""
    names = {name: f"{name}_{uuid4().hex[:16]}" for name in ("linq_etl", "analyst", "linq")}
    shown = "".join(block.text for block in BLOCKS if block.mark == "mysql: accounts")
    try:
        for statement in _renamed(shown, names).decode().split(";"):
            if statement.strip():
                execute(mysql_server, statement)
        server = make_url(mysql_server).set(database=names["linq"])

        def url(user: str, password: str) -> str:
            account = server.set(username=names[user], password=password)
            return account.render_as_string(hide_password=False)

        env = in_sqlite.environment() | {
            "LINQ_ETL_DATABASE__URL": url("linq_etl", "a-long-password")
        }
        for _ in range(2):
            assert call("sync", env=env).code == 0
        analyst = url("analyst", "another-long-password")
        for name in (*metadata.tables, *views.tables):
            assert select(analyst, f"SELECT count(*) FROM {name}")
            for statement in (f"DELETE FROM {name}", "CREATE TABLE mine (id INTEGER)"):
                with pytest.raises(pymysql.err.MySQLError, match="denied"):
                    execute(analyst, statement)
    finally:
        execute(mysql_server, f"DROP DATABASE IF EXISTS {names['linq']}")
        for user in ("linq_etl", "analyst"):
            execute(mysql_server, f"DROP USER IF EXISTS {names[user]}")


def _grants(schema: str) -> Iterator[str]:
    """The statements shown; for a schema of its own, also those that name the default one."""
    roles, others = (
        [block.text for block in BLOCKS if block.mark == f"postgresql: {mark}"]
        for mark in ("roles", "schema")
    )
    yield from roles
    if schema != "public":
        yield from others
        for line in "".join(roles).splitlines():
            if "analyst" in line and "SCHEMA public" in line:
                yield line.replace("SCHEMA public", f"SCHEMA {schema}")


def _only_reads(connection: psycopg.Connection[Any], name: Composed) -> None:
    """The role reads the table or view, and writes nothing there."""
    assert connection.execute(SQL("SELECT count(*) FROM {}").format(name)).fetchone()
    # TRUNCATE is for tables only.
    for statement in ("INSERT INTO {} DEFAULT VALUES", "DELETE FROM {}", "TRUNCATE {}"):
        with pytest.raises((InsufficientPrivilege, WrongObjectType, ObjectNotInPrerequisiteState)):
            connection.execute(SQL(statement).format(name))


def _renamed(sql: str, names: Mapping[str, str]) -> bytes:
    """The statements with names that are free on this server."""
    pattern = re.compile(rf"\b({'|'.join(names)})\b")
    return pattern.sub(lambda match: names[match[1]], sql).encode()


def _as_role(url: str, role: str, path: str = "public") -> str:
    separator = "&" if "?" in url else "?"
    return f"{url}{separator}options=-crole%3D{role}%20-csearch_path%3D{path}"
