"""docs/deploy/airflow/linq_sync.py under `airflow dags test`: states, counts, and no orphans.

$LINQ_ETL_TEST_AIRFLOW names the environment that docs/deploy/airflow/install.sh made. The rest, a
scheduler and workers that die, is tried by docs/deploy/airflow/try.sh.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from select import select as poll
from typing import Any

import pytest

from docs.generate import ROOT
from etl.sandbox import Sandbox, build_world
from tests.airflow_trial.processes import running_syncs
from tests.support.builders import A, B, C
from tests.support.command import (
    COMMAND,
    PATIENCE,
    HoldingSandbox,
    environment,
    linq_etl,
    running,
    select,
    wait_until,
)
from tests.support.marks import cannot_run

pytestmark = pytest.mark.slow

_ENVIRONMENT = os.environ.get("LINQ_ETL_TEST_AIRFLOW")
DAGS = ROOT / "docs/deploy/airflow"
TIMEOUT = 240


@dataclass(frozen=True)
class Airflow:
    """Airflow with a metadata database in a file, and the environment of its processes."""

    bin: Path
    env: dict[str, str]

    @contextmanager
    def testing(self, **variables: str) -> Iterator[subprocess.Popen[str]]:
        """`airflow dags test`, which runs the DAG once, in one process."""
        with subprocess.Popen(
            [self.bin / "airflow", "dags", "test", "linq_sync"],
            env=self.env | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def test(self, **variables: str) -> tuple[int, str]:
        """Run the DAG once; the exit code and the log."""
        with self.testing(**variables) as process:
            log, _ = process.communicate(timeout=TIMEOUT)
            return process.returncode, log

    def python(self, program: str) -> Any:
        """What a program printed as JSON that ran in Airflow's environment."""
        ran = subprocess.run(
            [self.bin / "python", "-c", program],
            env=self.env | {"PYTHONPATH": str(DAGS)},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout.splitlines()[-1])

    def states(self) -> dict[str, tuple[str, int]]:
        """State and tries of each task of the last run; of mapped ones, by their number."""
        tasks = self._select("task_id, map_index, state, try_number", "task_instance")
        numbers = self.returned("numbers") if len(tasks) > 4 else []
        names = {index: f"sync {number}" for index, number in enumerate(numbers)}
        return {names.get(index, task): (state, tries) for task, index, state, tries in tasks}

    def returned(self, task: str, index: int = -1) -> Any:
        """What a task of the last run returned."""
        values = self._select("value", "xcom", f"task_id = '{task}' AND map_index = {index}")
        return json.loads(values[0][0]) if len(values) == 1 else values

    def _select(self, columns: str, table: str, where: str = "true") -> list[tuple[Any, ...]]:
        last = "(SELECT run_id FROM dag_run ORDER BY id DESC LIMIT 1)"
        url = f"sqlite:///{self.env['AIRFLOW_HOME']}/airflow.db"
        return select(url, f"SELECT {columns} FROM {table} WHERE run_id = {last} AND {where}")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    """Airflow with an empty home."""
    if not _ENVIRONMENT:
        cannot_run("no Airflow: $LINQ_ETL_TEST_AIRFLOW names no environment")
    home = tmp_path_factory.mktemp("airflow")
    bin_ = Path(_ENVIRONMENT, "bin")
    env = {
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "HOME": str(home),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "LINQ_DAG_COMMAND": str(COMMAND),
        "LINQ_DAG_SCHEDULE": "none",
        "LINQ_DAG_RETRY_SECONDS": "0",
    }
    subprocess.run([bin_ / "airflow", "db", "migrate"], env=env, capture_output=True, check=True)
    return Airflow(bin_, env)


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'linq.db'}"


def test_each_number_ends_as_its_exit_code_says(installed: Airflow, database_url: str) -> None:
    """A number that is busy at its first try is skipped; the counts are those of the run log."""
    sandbox = HoldingSandbox(build_world(numbers=(A, B)), answers=1, number=B)
    env = environment(sandbox, database_url, LINQ_ETL_API__PER_PAGE="50")
    with sandbox:
        assert linq_etl("db", "upgrade", env=env).code == 0
        with running("sync", "--phone-number", B, env=env) as other:
            wait_until(sandbox.holding.is_set, other)
            code, log = installed.test(**env)
    assert code == 0, log
    assert installed.states() == {
        "numbers": ("success", 1),
        f"sync {B}": ("skipped", 1),
        f"sync {A}": ("success", 1),
        "report": ("success", 1),
        "done": ("success", 1),
    }
    outcomes = [installed.returned("sync", index) for index in range(2)]
    assert [(each["phone_number"], each["exit_code"]) for each in outcomes] == [(B, 7), (A, 0)]
    names = ("run_id", "status", "total_count", "chats_inserted", "handles_inserted", "requests")
    for outcome in outcomes:
        entry = f"run_id = {outcome['run_id']} AND phone_number = '{outcome['phone_number']}'"
        logged = select(
            database_url, f"SELECT {', '.join(names)} FROM sync_run_numbers WHERE {entry}"
        )
        assert logged == [tuple(outcome[name] for name in names)]
    assert installed.returned("report") == {"numbers": 2, "succeeded": 1, "failed": 1}


def test_a_run_with_a_refused_number_is_no_success(installed: Airflow, database_url: str) -> None:
    """Its other numbers are synced, it is not tried again, and the report has all of them."""
    with Sandbox(build_world(numbers=(A, B))) as sandbox:
        code, log = installed.test(**environment(sandbox, database_url, A, C))
    assert code == 1, log
    assert installed.states() == {
        "numbers": ("success", 1),
        f"sync {A}": ("success", 1),
        f"sync {C}": ("failed", 1),
        "report": ("success", 1),
        "done": ("upstream_failed", 0),
    }
    assert installed.returned("sync", 0)["exit_code"] == 3
    assert installed.returned("report") == {"numbers": 2, "succeeded": 1, "failed": 1}


def test_linq_etl_dies_with_its_task(installed: Airflow, database_url: str) -> None:
    """Killed with nothing else, the task leaves no orphan, and its number is free at once."""
    with HoldingSandbox(build_world(numbers=(A,)), answers=1) as sandbox:
        env = environment(sandbox, database_url, A, LINQ_ETL_API__PER_PAGE="50")
        with installed.testing(**env) as process:
            assert sandbox.holding.wait(TIMEOUT)
            (sync,) = running_syncs(COMMAND, below=process.pid)
            end = os.pidfd_open(sync.pid)
            process.send_signal(signal.SIGKILL)
            assert poll([end], [], [], PATIENCE)[0] == [end]
            os.close(end)
        sandbox.release()
        assert linq_etl("sync", env=env).code == 0
    statuses = select(database_url, "SELECT status FROM sync_runs ORDER BY id")
    assert statuses == [("abandoned",), ("succeeded",)]


def test_exit_codes_are_mapped(installed: Airflow) -> None:
    """To what makes a task succeed, fail for good, be skipped, or be tried again."""
    partial, nothing_read = {"status": "partial", "total_count": 9}, {"status": "partial"}
    failed = {"status": "failed", "total_count": None}
    good, skip = "", "AirflowSkipException"
    fail, retry = "AirflowFailException", "AirflowException"
    expected = [
        (0, {}, True, good),
        (1, {}, True, retry),
        (2, {}, True, fail),
        (3, partial, True, good),
        (3, nothing_read, True, fail),
        (3, failed, True, fail),
        (3, {}, True, fail),
        (4, failed, True, fail),
        (5, failed, True, retry),
        (6, {}, True, retry),
        (7, failed, True, skip),
        (7, failed, False, retry),
        (130, {}, True, retry),
        (143, {}, True, retry),
        (-9, {}, True, retry),
    ]
    cases = [case[:3] for case in expected]
    program = f"""
import json, linq_sync
def mapped(code, entry, first_try):
    try:
        linq_sync.judge(code, entry, first_try=first_try)
    except Exception as error:
        return type(error).__name__
    return ""
print(json.dumps([mapped(*case) for case in {cases!r}]))
"""
    assert list(zip(cases, installed.python(program), strict=True)) == [
        (case[:3], case[3]) for case in expected
    ]
