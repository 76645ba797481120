"""Two runs of the DAG: a worker dies in the first; in the second a task dies, and a number fails.

The sandbox is a thread of this process, so what the tables must hold is known exactly.
"""

import os
import secrets
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from etl.sandbox import Faults, Sandbox, build_world
from tests.airflow_trial.airflow import Airflow, TrialError, database
from tests.airflow_trial.processes import RunningSync, running_syncs, send, stop_tree

DAG = Path(__file__).parents[2] / "docs/deploy/airflow/linq_sync.py"
NUMBERS = tuple(f"+131255501{index:02}" for index in range(20))
REFUSED = NUMBERS[12]  # by the narrow token
TOKEN, NARROW_TOKEN = "sandbox-token", "narrow-token"
CHATS, PER_PAGE = 60, 10
LATENCY = 0.5  # seconds per page: long enough to kill a sync in the middle
LEASE_SECONDS = 10
RETRY_SECONDS = 12  # longer than the lease
RETRIED = ("abandoned", "succeeded")  # in linq-etl's run log
BEGAN = time.monotonic()


def main(folder: Path, environment: Path) -> int:
    """Run the trial and remove the folder; 0 if every claim holds."""
    signal.signal(signal.SIGTERM, _interrupt)
    code = 1
    try:
        with ExitStack() as stack:
            trial = Trial(stack, folder, environment)
            stack.callback(_ignore_interrupts)
            trial.start()
            claims = trial.lose_a_worker() + trial.lose_a_task_and_refuse_a_number()
            code = 0 if all(claims) else 1
            say(f"{sum(claims)} of {len(claims)} claims hold. Stopping and removing everything ...")
    except TrialError as error:
        print(f"\ntry.sh: {error}", file=sys.stderr)
    except KeyboardInterrupt as interrupt:
        code = 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
        print("\ntry.sh: interrupted; everything is stopped and removed", file=sys.stderr)
    finally:
        _remove(folder, keep_logs=code == 1)
    return code


def _interrupt(signal_number: int, _frame: object) -> None:
    raise KeyboardInterrupt(signal_number)


def _ignore_interrupts() -> None:
    """Let what ends the trial end itself, although Ctrl-C is pressed again."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def say(text: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - BEGAN), 60)
    print(f"{minutes}:{seconds:02}  {text}", flush=True)


def claim(text: str, holds: bool) -> bool:
    print(f"{'ok' if holds else 'FAIL':<6}{text}", flush=True)
    return holds


def _ends(tries: list[str]) -> tuple[str, str]:
    """The first and the last; on a busy machine Airflow may give up more tries between them."""
    return tries[0], tries[-1]


def _remove(folder: Path, *, keep_logs: bool) -> None:
    """Remove the folder, after a failure all but the logs, if there are any."""
    logs = folder / "logs"
    if not keep_logs or not any(logs.glob("*")):
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in folder.iterdir():
        if path.is_dir() and path != logs:
            shutil.rmtree(path, ignore_errors=True)
    print(f"The logs are in {logs}", file=sys.stderr)


@dataclass(frozen=True, slots=True)
class Row:
    """What happened to a number, by Airflow, by linq-etl's exit code and by the database."""

    number: str
    state: str
    workers: list[str]  # of each try
    exit_code: int | None
    stored: int
    listed: int


@dataclass(frozen=True, slots=True)
class Run:
    """A run of the DAG that has ended."""

    state: str
    rows: list[Row]

    def having(self, state: str) -> set[str]:
        return {row.number for row in self.rows if row.state == state}

    def workers(self, number: str) -> list[str]:
        return next(row.workers for row in self.rows if row.number == number)

    def show(self, title: str, killed: set[str]) -> None:
        """Print what happened to each number."""
        layout = "{:<14}{:<7}{:<21}{:<9}{:<11}{}"
        print(f"\n{title} Airflow calls it: {self.state}\n")
        print(layout.format("number", "tries", "worker", "state", "exit code", "chats stored"))
        for row in self.rows:
            first, *others = row.workers
            first += " (killed)" if row.number in killed else ""
            print(
                layout.format(
                    row.number,
                    len(row.workers),
                    ", ".join([first, *others]),
                    row.state,
                    "none" if row.exit_code is None else row.exit_code,
                    f"{row.stored} of {row.listed}",
                )
            )
        print()


class Trial:
    """Airflow, a sandbox, and a database to sync it into; what it started ends with the stack."""

    def __init__(self, stack: ExitStack, folder: Path, environment: Path) -> None:
        for name in ("logs", "dags"):
            (folder / name).mkdir()
        server, name = os.environ["TRY_POSTGRES_URL"], f"linq_try_{secrets.token_hex(4)}"
        self._command = folder / "linq-etl/bin/linq-etl"
        self._token_file = folder / "token"
        self._token_file.touch(mode=0o600)
        self._token_file.write_text(TOKEN)
        self._sandbox = stack.enter_context(
            Sandbox(
                build_world(numbers=NUMBERS, chats_per_number=CHATS),
                token=TOKEN,
                tokens={NARROW_TOKEN: set(NUMBERS) - {REFUSED}},
                faults=Faults(latency=LATENCY),
            )
        )
        metadata = stack.enter_context(database(server, f"{name}_airflow"))
        self._database = stack.enter_context(database(server, f"{name}_chats"))
        airflow = Airflow(
            environment,
            folder,
            metadata_url=metadata,
            broker_url=os.environ["TRY_RABBITMQ_URL"],
            queue=name,
            variables=self._variables(),
        )
        self._airflow = stack.enter_context(airflow)

    def _variables(self) -> dict[str, str]:
        """What the DAG and linq-etl need in the workers' environment."""
        variables = {
            "LINQ_DAG_COMMAND": self._command,
            "LINQ_DAG_SCHEDULE": "none",
            "LINQ_DAG_RETRY_SECONDS": RETRY_SECONDS,
            "LINQ_ETL_API__BASE_URL": self._sandbox.url,
            "LINQ_ETL_API__TOKEN_FILE": self._token_file,
            "LINQ_ETL_API__PER_PAGE": PER_PAGE,
            "LINQ_ETL_API__MAX_CONCURRENCY": 1,
            "LINQ_ETL_DATABASE__URL": self._database,
            "LINQ_ETL_SYNC__LEASE_SECONDS": LEASE_SECONDS,
            "LINQ_ETL_SYNC__PHONE_NUMBERS": ",".join(NUMBERS),
        }
        return {name: str(value) for name, value in variables.items()}

    def start(self) -> None:
        """Start Airflow with two workers, up to a DAG that can be triggered."""
        say("Starting Airflow ...")
        self._airflow.start(DAG)
        self._workers = {name: self._airflow.start_worker(name) for name in ("one", "two")}
        self._airflow.wait("the start of Airflow", self._airflow.is_ready)
        say(f"Airflow is up. To watch it in a browser meanwhile: {self._airflow.url}")

    # The two runs

    def lose_a_worker(self) -> list[bool]:
        """Kill a worker in the middle of its tasks: another one does them again."""
        say(f"Run 1: {len(NUMBERS)} numbers, with the workers one and two ...")
        run_id = self._airflow.trigger()
        self._airflow.wait("a sync on worker one", lambda: self._half_done("one") or None)
        stop_tree(self._workers["one"])  # Else a sync could end before it is killed.
        lost, half_done = {sync.number for sync in self._syncs("one")}, self._half_done("one")
        count = self._airflow.kill_worker("one")
        say(f"Killed worker one, its {count} processes, in the middle of {', '.join(half_done)}.")
        run = self._end(run_id)
        run.show("Run 1: worker one was killed in mid-task.", killed=lost)
        return [
            claim("each number is a success in the end", run.having("success") == set(NUMBERS)),
            claim("so Airflow calls the run a success", run.state == "success"),
            claim(
                "worker two did again what was lost with worker one",
                {_ends(run.workers(number)) for number in lost} == {("one", "two")},
            ),
            claim(
                "linq-etl's run log has both tries: abandoned, then succeeded",
                {_ends(self._run_log(number)) for number in half_done} == {RETRIED},
            ),
            *self._claims(not_stored=set()),
        ]

    def lose_a_task_and_refuse_a_number(self) -> list[bool]:
        """Kill one task's process alone, so that linq-etl could outlive it; refuse a number."""
        with self._sandbox.lock:
            for number in NUMBERS:
                self._sandbox.world.create(number)
        self._token_file.write_text(NARROW_TOKEN)
        self._airflow.start_worker("three")
        say(f"Run 2: a chat more for each number, and a token that {REFUSED} refuses ...")
        run_id = self._airflow.trigger()
        sync = self._airflow.wait("a sync on worker two", lambda: self._in_progress("two"))
        runs_before = len(self._run_log(sync.number)) - 1
        send(sync.parent, signal.SIGKILL)
        killed_at = time.monotonic()
        self._airflow.wait("the end of linq-etl", lambda: self._has_ended(sync) or None)
        survived = time.monotonic() - killed_at
        say(f"Killed only the task of {sync.number}; its linq-etl ended {survived:.1f} s later.")
        run = self._end(run_id)
        run.show("Run 2: a number was refused, a task was killed.", killed={sync.number})
        return [
            claim(
                "the refused number failed at its only try",
                run.having("failed") == {REFUSED} and len(run.workers(REFUSED)) == 1,
            ),
            claim("so Airflow calls the run failed", run.state == "failed"),
            claim("no other number failed", len(run.having("success")) == len(NUMBERS) - 1),
            claim("the killed task was tried again", len(run.workers(sync.number)) > 1),
            claim(
                "linq-etl's run log has both its tries: abandoned, then succeeded",
                _ends(self._run_log(sync.number)[runs_before:]) == RETRIED,
            ),
            claim(f"its linq-etl did not outlive it ({survived:.1f} s)", survived < 3),
            *self._claims(not_stored={REFUSED}),
        ]

    def _claims(self, *, not_stored: set[str]) -> list[bool]:
        others = ", but for the refused number" if not_stored else ""
        differing = {number for number in NUMBERS if self._stored(number) != self._listed(number)}
        unclosed = self._select("SELECT id FROM sync_runs WHERE status = 'running'")
        return [
            claim(f"the tables hold exactly the sandbox's chats{others}", differing == not_stored),
            claim("no linq-etl is left that could still write", not self._syncs()),
            claim("no run is left open in linq-etl's run log", not unclosed),
        ]

    def _end(self, run_id: str) -> Run:
        state = self._airflow.state_at_end(run_id)
        numbers = self._airflow.numbers(run_id)
        return Run(state, [self._row(run_id, *each) for each in enumerate(numbers)])

    def _row(self, run_id: str, index: int, number: str) -> Row:
        tries = self._airflow.tries(run_id, index)
        return Row(
            number,
            state=tries[-1]["state"],
            workers=[each["hostname"] or "none" for each in tries],
            exit_code=self._airflow.outcome(run_id, index).get("exit_code"),
            stored=len(self._stored(number)),
            listed=len(self._listed(number)),
        )

    # What is looked at beside Airflow

    def _syncs(self, worker: str | None = None) -> list[RunningSync]:
        return running_syncs(self._command, below=self._workers[worker] if worker else None)

    def _has_ended(self, sync: RunningSync) -> bool:
        return sync.pid not in {each.pid for each in self._syncs()}  # An orphan has a new parent.

    def _half_done(self, worker: str) -> list[str]:
        """The numbers that the worker is syncing of which some pages are stored, but not all."""
        numbers = sorted(sync.number for sync in self._syncs(worker))
        return [number for number in numbers if 0 < len(self._stored(number)) < CHATS]

    def _in_progress(self, worker: str) -> RunningSync | None:
        """A sync of the worker whose run is open and will be for some pages."""
        good = (sync for sync in self._syncs(worker) if sync.number != REFUSED)
        return next((sync for sync in good if "running" in self._run_log(sync.number)), None)

    def _stored(self, number: str) -> set[int]:
        chats = (
            "SELECT chat_id FROM chat_phone_numbers WHERE phone_number = %s AND removed_at IS NULL"
        )
        return {chat_id for (chat_id,) in self._select(chats, number)}

    def _listed(self, number: str) -> set[int]:
        with self._sandbox.lock:
            return set(self._sandbox.world.listing(number))

    def _run_log(self, number: str) -> list[str]:
        """How the runs of the number ended."""
        ends = "SELECT status FROM sync_run_numbers WHERE phone_number = %s ORDER BY run_id"
        return [status for (status,) in self._select(ends, number)]

    def _select(self, query: str, *parameters: object) -> list[Any]:
        with psycopg.connect(self._database, autocommit=True) as connection:
            try:
                return connection.execute(query.encode(), parameters).fetchall()
            except psycopg.errors.UndefinedTable:
                return []  # The first sync has yet to create the tables.


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
