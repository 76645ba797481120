"""A private Airflow: api-server, scheduler, DAG processor and Celery workers."""

import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import psycopg
from psycopg.sql import SQL, Identifier
from sqlalchemy.engine import make_url

from tests.airflow_trial.processes import kill_tree

PATIENCE = 300.0  # seconds for whatever is waited for
T = TypeVar("T")

# Programs for the Python of Airflow's environment.
_CONNECT = """
import os, kombu
with kombu.Connection(os.environ["AIRFLOW__CELERY__BROKER_URL"], connect_timeout=5) as broker:
    broker.ensure_connection(max_retries=1)
"""
_REMOVE_QUEUE = f"""{_CONNECT}
    for delete in broker.default_channel.queue_delete, broker.default_channel.exchange_delete:
        delete(os.environ["AIRFLOW__OPERATORS__DEFAULT_QUEUE"])
"""


class TrialError(Exception):
    """The trial cannot go on; the message says why."""


@contextmanager
def database(server_url: str, name: str) -> Iterator[str]:
    """The URL of a new database, dropped at the end."""
    try:
        with psycopg.connect(server_url, autocommit=True) as connection:
            create = "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'"
            connection.execute(SQL(create).format(Identifier(name)))
    except psycopg.Error as error:
        raise TrialError(
            f"PostgreSQL creates no database; see $TRY_POSTGRES_URL: {error}"
        ) from None
    try:
        url = make_url(server_url).set(drivername="postgresql", database=name)
        yield url.render_as_string(hide_password=False)
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


class Airflow:
    """Airflow from an environment, with `variables` for its tasks, in a folder that has logs/."""

    def __init__(
        self,
        environment: Path,
        folder: Path,
        *,
        metadata_url: str,
        broker_url: str,
        queue: str,
        variables: Mapping[str, str],
    ) -> None:
        self._bin = environment / "bin"
        self._folder = folder
        self._queue = queue
        self._services: dict[str, subprocess.Popen[bytes]] = {}
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._port = str(port)
        self._api = httpx.Client(base_url=self.url, trust_env=False, timeout=30)
        self._environment = {
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "HOME": str(folder),
            "AIRFLOW_HOME": str(folder / "home"),
            **_settings(folder, self.url, metadata_url, broker_url, queue),
            **variables,
        }

    def __enter__(self) -> Self:
        self._python(_CONNECT, failing="RabbitMQ lets nobody in; see $TRY_RABBITMQ_URL")
        return self

    def __exit__(self, *_: object) -> None:
        for service in self._services.values():
            kill_tree(service.pid)
            service.wait()
        self._python(_REMOVE_QUEUE)
        self._api.close()

    # Its processes

    def start(self, dag: Path) -> None:
        """Start all but the workers, up to a DAG that can be triggered."""
        shutil.copy(dag, self._folder / "dags")
        # Tells workers apart by a name, although all of them are on this machine.
        (self._folder / "worker_name.py").write_text(
            "import os\n\ndef name():\n    return os.environ.get('WORKER_NAME', 'server')\n"
        )
        migrate = "from airflow.__main__ import main; main()"
        self._python(migrate, "db", "migrate", failing="airflow db migrate failed")
        self._serve("api-server", "api-server", "--host", "127.0.0.1", "--port", self._port)
        self._serve("scheduler", "scheduler", "--skip-serve-logs")
        self._serve("dag-processor", "dag-processor")

    def start_worker(self, name: str) -> int:
        """Start a Celery worker for two tasks at a time; its process."""
        node = ("--celery-hostname", f"{name}@%h")
        options = ("--queues", self._queue, "--concurrency", "2", "--skip-serve-logs", *node)
        return self._serve(f"worker-{name}", "celery", "worker", *options, WORKER_NAME=name)

    def kill_worker(self, name: str) -> int:
        """Kill a worker with all its processes; return how many."""
        worker = self._services.pop(f"worker-{name}")
        count = kill_tree(worker.pid)
        worker.wait()
        return count

    def wait(self, event: str, happened: Callable[[], T | None]) -> T:
        """Wait for what `happened` returns; raise TrialError if it takes long or a service ends."""
        pause, end = threading.Event(), time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if (found := happened()) is not None:
                return found
            for name, service in self._services.items():
                if service.poll() is not None:
                    raise TrialError(f"Airflow's {name} has ended: {self._log(name)[-2000:]}")
            pause.wait(0.1)
        raise TrialError(f"{event}: not within {PATIENCE:g} s")

    def _serve(self, name: str, *arguments: str, **variables: str) -> int:
        with (self._folder / f"logs/{name}.log").open("wb") as log:
            self._services[name] = subprocess.Popen(
                [self._bin / "airflow", *arguments],
                env=self._environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C goes to this process, which then stops them all.
            )
        return self._services[name].pid

    def _log(self, name: str) -> str:
        return (self._folder / f"logs/{name}.log").read_text(errors="replace")

    def _python(self, program: str, *arguments: str, failing: str | None = None) -> None:
        """Run a program in Airflow's environment; if it fails, raise `failing`."""
        ran = subprocess.run(
            [self._bin / "python", "-c", program, *arguments],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if ran.returncode and failing:
            (self._folder / "logs/failed.log").write_text(ran.stdout)
            raise TrialError(f"{failing}: {ran.stdout.splitlines()[-1]}")

    # What it is asked

    def is_ready(self) -> bool | None:
        """Log in; whether the DAG is known."""
        with suppress(httpx.TransportError):
            login = self._api.get("/auth/token")
            if login.is_success:
                self._api.headers["Authorization"] = f"Bearer {login.json()['access_token']}"
                return self._api.get("/api/v2/dags/linq_sync").is_success or None
        return None

    def trigger(self) -> str:
        """Start a run of the DAG; return its id."""
        started = self._api.post("/api/v2/dags/linq_sync/dagRuns", json={"logical_date": None})
        started.raise_for_status()
        return str(started.json()["dag_run_id"])

    def state_at_end(self, run_id: str) -> str:
        """Wait for the run's end; return what Airflow calls it."""
        return self.wait("the end of the run", lambda: self._ended(run_id))

    def numbers(self, run_id: str) -> list[str]:
        """The run's numbers, in the order of its mapped tasks."""
        path = f"{run_id}/taskInstances/numbers/xcomEntries/return_value"
        return list(self._get(path)["value"])

    def tries(self, run_id: str, index: int) -> list[dict[str, Any]]:
        """Each try of a mapped task."""
        found = self._get(f"{run_id}/taskInstances/sync/{index}/tries")["task_instances"]
        return sorted(found, key=lambda each: int(each["try_number"]))

    def outcome(self, run_id: str, index: int) -> dict[str, Any]:
        """What the mapped task returned; empty if it did not get so far."""
        path = f"{run_id}/taskInstances/sync/xcomEntries/return_value"
        try:
            return dict(self._get(path, map_index=index)["value"])
        except httpx.HTTPStatusError:
            return {}

    def _ended(self, run_id: str) -> str | None:
        state = str(self._get(run_id)["state"])
        return state if state in {"success", "failed"} else None

    def _get(self, path: str, **query: int) -> Any:
        answer = self._api.get(f"/api/v2/dags/linq_sync/dagRuns/{path}", params=query)
        answer.raise_for_status()
        return answer.json()


def _settings(
    folder: Path, url: str, metadata_url: str, broker_url: str, queue: str
) -> dict[str, str]:
    """Airflow's settings; docs/deploy.md says which of them an operator needs."""
    metadata = make_url(metadata_url).set(drivername="postgresql+psycopg2")
    metadata_url = metadata.render_as_string(hide_password=False)
    settings = {
        "CORE__EXECUTOR": "CeleryExecutor",
        "CORE__DAGS_FOLDER": folder / "dags",
        "CORE__LOAD_EXAMPLES": False,
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": False,
        "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": True,
        "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "CORE__HOSTNAME_CALLABLE": "worker_name.name",
        "DATABASE__SQL_ALCHEMY_CONN": metadata_url,
        "CELERY__RESULT_BACKEND": f"db+{metadata_url}",
        "CELERY__BROKER_URL": broker_url,
        "OPERATORS__DEFAULT_QUEUE": queue,
        "API__SECRET_KEY": secrets.token_hex(32),
        "API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "LOGGING__BASE_LOG_FOLDER": folder / "logs/tasks",
        # A dead worker is noticed after 15 seconds; by default, after 5 minutes.
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": 15,
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": 2,
        "WORKERS__MIN_HEARTBEAT_INTERVAL": 2,
    }
    return {f"AIRFLOW__{name}": str(value) for name, value in settings.items()}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
