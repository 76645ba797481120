"""dictionary: every table in each format, as the programs read it that the formats are for.

$LINQ_ETL_TEST_DBT and $LINQ_ETL_TEST_DATASETTE name environments with dbt (and its adapter for
PostgreSQL) and with Datasette. Both are made by .ci/run.
"""

import html
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import make_url

from etl.db.tables import VERSION_TABLE, is_internal, metadata, views
from etl.sandbox import Sandbox, build_world
from tests.cli.conftest import Synced
from tests.support.command import A, call, environment, execute, select
from tests.support.marks import cannot_run, only_postgres

_DBT = os.environ.get("LINQ_ETL_TEST_DBT")
_DATASETTE = os.environ.get("LINQ_ETL_TEST_DATASETTE")
TIMEOUT = 240

ALL = [*metadata.tables.values(), *views.tables.values()]
PUBLIC = {table.name for table in ALL if not is_internal(table)}
INTERNAL = {table.name for table in ALL if is_internal(table)}


def printed(form: str) -> str:
    """What the command prints in an empty folder."""
    shown = call("dictionary", "--format", form)
    assert (shown.code, shown.stderr) == (0, "")
    assert [*Path.cwd().glob("*.db")] == []
    return shown.stdout


def dbt_source() -> dict[str, Any]:
    (source,) = yaml.safe_load(printed("dbt"))["sources"]
    return dict(source)


def test_internal_tables() -> None:
    """Those that serve the program alone."""
    assert {"api_pace", "number_leases", "run_fences"} <= INTERNAL
    assert {"chats", "sync_runs", "data_dictionary", "number_status"} <= PUBLIC


def test_json_is_the_table_data_dictionary(synced: Synced) -> None:
    """The same entries and comments; only types are named as in no database."""
    query = "SELECT table_name, column_name, comment FROM data_dictionary"
    rows = json.loads(printed("json"))
    assert [*rows[0]] == ["table_name", "column_name", "type", "comment"]
    entries = [(row["table_name"], row["column_name"], row["comment"]) for row in rows]
    assert sorted(entries) == sorted(select(synced.url, query))
    types = {(row["table_name"], row["column_name"]): row["type"] for row in rows}
    assert (types["chats", ""], types["chats", "id"]) == ("table", "bigint")
    assert (types["number_status", ""], types["chats", "changed_at"]) == ("view", "time")
    assert types["phone_numbers", "phone_number"] == "text"


def test_markdown_is_the_default() -> None:
    """A heading for each table, a row for each column."""
    text = call("dictionary").stdout
    assert text == printed("markdown")
    headings = re.findall(r"^## (\w+)", text, re.MULTILINE)
    assert headings == [table.name for table in ALL]
    rows = len(re.findall(r"^\| `\w+`", text, re.MULTILINE))
    assert rows == sum(len(table.columns) for table in ALL)


def test_mermaid() -> None:
    """A diagram with each table and its references."""
    lines = printed("mermaid").splitlines()
    assert lines[0] == "erDiagram"
    assert "    chats ||--o{ chat_handles : chat_id" in lines
    assert {line.split()[0] for line in lines if line.endswith(" {")} == {*metadata.tables}


def test_dbt_describes_what_analysts_read() -> None:
    """Each public table and column with its comment, none that is internal."""
    source = dbt_source()
    found = {
        table["name"]: (
            table["description"],
            {column["name"]: column["description"] for column in table["columns"]},
        )
        for table in source["tables"]
    }
    assert found == {
        table.name: (
            table.comment,
            {column.name: column.comment for column in table.columns if not is_internal(column)},
        )
        for table in ALL
        if table.name in PUBLIC
    }
    assert "digest" not in found["chats"][1]


def test_datasette_hides_internal_tables() -> None:
    """The database is named after its file, as Datasette does it."""
    url = {"LINQ_ETL_DATABASE__URL": "sqlite:////srv/my chats.v2.db"}
    shown = call("dictionary", "--format", "datasette", env=url)
    assert (shown.code, [*shown.data["databases"]]) == (0, ["my chats.v2"])
    tables = shown.data["databases"]["my chats.v2"]["tables"]
    hidden = {name for name, table in tables.items() if table == {"hidden": True}}
    assert hidden == {*INTERNAL, VERSION_TABLE}
    assert {*tables} - hidden == PUBLIC
    for table in ALL:
        if table.name in PUBLIC:
            described = {column.name: column.comment for column in table.columns}
            assert tables[table.name]["description"] == table.comment
            assert tables[table.name]["columns"] == described
            assert tables[table.name].get("sort_desc", "") in {"", *described}


def test_a_format_that_is_unknown() -> None:
    """Exit code 2, and the formats that there are."""
    refused = call("dictionary", "--format", "xml")
    assert (refused.code, refused.stdout) == (2, "")
    assert "'markdown', 'json', 'dbt', 'mermaid', 'datasette'" in refused.stderr


# dbt


class DbtProject:
    """A project whose one file is the generated sources.yml."""

    def __init__(self, folder: Path, database_url: str, schema: str) -> None:
        if not _DBT:
            cannot_run("no dbt: $LINQ_ETL_TEST_DBT names no environment")
        self._folder = folder
        url = make_url(database_url)
        target = {
            "type": "postgres",
            "host": url.query.get("host") or url.host,
            "port": int(str(url.query.get("port") or url.port or 5432)),
            "user": url.username,
            "pass": url.password or "",
            "dbname": url.database,
            "schema": schema,
        }
        profile = {"target": "dev", "outputs": {"dev": target}}
        project = {"name": "trial", "version": "1.0", "profile": "trial"}
        (folder / "models").mkdir()
        (folder / "profiles.yml").write_text(json.dumps({"trial": profile}))
        (folder / "dbt_project.yml").write_text(json.dumps(project))
        (folder / "models/sources.yml").write_text(printed("dbt"))

    def run(self, *arguments: str) -> tuple[int, str]:
        """A command's exit code and output."""
        ran = subprocess.run(
            [Path(str(_DBT), "bin/dbt"), "--no-use-colors", *arguments],
            cwd=self._folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self._folder), "DO_NOT_TRACK": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
        return ran.returncode, ran.stdout + ran.stderr

    def freshness(self) -> dict[str, str]:
        """What `dbt source freshness` says of each table."""
        code, output = self.run("source", "freshness")
        assert code == 0, output
        results = json.loads((self._folder / "target/sources.json").read_text())["results"]
        return {each["unique_id"].rpartition(".")[2]: each["status"] for each in results}


@pytest.mark.slow
@only_postgres
def test_dbt_reads_its_source(database_url: str, tmp_path: Path) -> None:
    """It parses, its tests hold, and an old walk is warned of although no row changed."""
    schema = "of Linq"
    folder = tmp_path / "project"
    folder.mkdir()
    project = DbtProject(folder, database_url, schema)
    with Sandbox(build_world(chats_per_number=20)) as sandbox:
        env = environment(sandbox, database_url, LINQ_ETL_DATABASE__SCHEMA=schema)
        sandbox.world.edit(sandbox.world.listing(A)[0], message_count="plenty")
        assert [call("sync", env=env).code for _ in range(2)] == [3, 3]
    code, output = project.run("parse", "--show-all-deprecations", "--warn-error")
    assert code == 0, output
    code, output = project.run("test")
    assert code == 0, output
    dated = PUBLIC - {"data_dictionary"}
    assert project.freshness() == dict.fromkeys(dated, "pass")
    execute(
        database_url,
        f"UPDATE \"{schema}\".sync_run_numbers SET finished_at = finished_at - interval '25 hours'",
    )
    assert project.freshness() == dict.fromkeys(dated, "warn")


# Datasette


class Datasette:
    """Datasette on the synced database, with the generated metadata."""

    def __init__(self, folder: Path, database_url: str) -> None:
        if not _DATASETTE:
            cannot_run("no Datasette: $LINQ_ETL_TEST_DATASETTE names no environment")
        self._database = database_url.removeprefix("sqlite:///")
        self._metadata = folder / "metadata.json"
        env = {"LINQ_ETL_DATABASE__URL": database_url}
        self._metadata.write_text(call("dictionary", "--format", "datasette", env=env).stdout)

    def get(self, path: str) -> str:
        """The page at this path; it must be there."""
        program, described = Path(str(_DATASETTE), "bin/datasette"), ("--metadata", self._metadata)
        ran = subprocess.run(
            [program, self._database, *described, "--get", path],
            env={"PATH": os.environ["PATH"], "HOME": str(self._metadata.parent)},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
        assert ran.returncode == 0, (path, ran.stdout[:2000], ran.stderr)
        page: str = ran.stdout
        return page


@pytest.mark.slow
def test_datasette_shows_the_database(synced: Synced, tmp_path: Path) -> None:
    """No internal table, each other one described, and every link of its pages leads somewhere."""
    datasette = Datasette(tmp_path, synced.url)
    front = datasette.get("/linq")
    listed = {*re.findall(r'<a href="/linq/(\w+)"', front)}
    assert listed == PUBLIC
    pages = {name: datasette.get(f"/linq/{name}") for name in sorted(listed)}
    for table in ALL:
        if table.name in PUBLIC:
            page = html.unescape(pages[table.name])
            assert str(table.comment) in page, table.name
            for column in table.columns:
                assert f"<dt>{column.name}</dt><dd>{column.comment}</dd>" in page, column
    rows = {
        name: re.search(r'<tbody>.*?<a href="(/linq/[^"]+)"', page, re.DOTALL)
        for name, page in pages.items()
    }
    followed = [found[1] for found in rows.values() if found]
    assert len(followed) >= 8
    for path in followed:
        datasette.get(html.unescape(path))
    assert 'href="/linq/chats/' in pages["chat_handles"]
