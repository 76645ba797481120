"""linq_sync, a DAG for Airflow 3: every configured phone number is synced by a task of its own.

    numbers ──> sync (a task per number) ──┬──> report   what happened to each number, in all cases
                                           └──> done     decides whether the run is a success

Tasks call the command `linq-etl`, which has an environment of its own and reads its settings and
its token from the worker's environment, as anywhere else. No token comes near Airflow. Tried with
Airflow 3.3 on Linux; see docs/deploy.md.
"""

import ctypes
import json
import logging
import os
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import Param, TriggerRule, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

# Edit these, or set the variables for the DAG processor and the workers. They are not named
# LINQ_ETL_…, because linq-etl takes such variables for its own settings and refuses unknown ones.
COMMAND = os.environ.get("LINQ_DAG_COMMAND", "/srv/linq-etl/.venv/bin/linq-etl")
SCHEDULE = os.environ.get("LINQ_DAG_SCHEDULE", "*/15 * * * *")
# Longer than sync.lease_seconds (60): until then a machine that died may still hold the number.
RETRY_DELAY = timedelta(seconds=float(os.environ.get("LINQ_DAG_RETRY_SECONDS", "90")))
AT_ONCE = 4  # tasks of a run at the same time, which share the API's rate

log = logging.getLogger(__name__)


@dag(
    dag_id="linq_sync",
    schedule=SCHEDULE if SCHEDULE != "none" else None,
    catchup=False,
    max_active_runs=1,
    params={"numbers": Param([], type="array", description="Only these; else all configured")},
    tags=["linq-etl"],
)
def linq_sync() -> None:
    chosen = numbers()
    outcomes = sync.expand(number=chosen)
    report(chosen, outcomes)
    # `report` runs in all cases, so by itself it would make any run a success.
    outcomes >> EmptyOperator(task_id="done", trigger_rule=TriggerRule.NONE_FAILED)


@task(retries=2, retry_delay=RETRY_DELAY)
def numbers() -> list[str]:
    """The numbers to sync: those that the run names, else all in sync.phone_numbers."""
    if named := get_current_context()["params"]["numbers"]:
        return list(named)
    code, rows = run("phone-numbers", "--json")
    judge(code, {}, first_try=False)
    configured = [row["phone_number"] for row in rows if row["configured"] == "yes"]
    if not configured:
        raise AirflowFailException("no number is configured: name some in sync.phone_numbers")
    return configured


@task(
    multiple_outputs=False,  # one XCom, not one for each count
    retries=3,
    retry_delay=RETRY_DELAY,
    max_active_tis_per_dagrun=AT_ONCE,
    map_index_template="{{ number }}",
)
def sync(number: str) -> dict[str, Any]:
    """Sync one number; return its entry in the run log, and the exit code."""
    context = get_current_context()
    context["number"] = number  # for map_index_template
    share = ("--rate-share", f"1/{AT_ONCE}")
    code, record = run("sync", "--phone-number", number, *share, "--json")
    entry = record["numbers"][0] if record else {}
    outcome = {"phone_number": number, **entry, "exit_code": code}
    # Pushed before anything is raised, so that `report` also hears of numbers that failed.
    context["ti"].xcom_push("return_value", outcome)
    judge(code, entry, first_try=context["ti"].try_number == 1)
    return outcome


@task(multiple_outputs=False, trigger_rule=TriggerRule.ALL_DONE)
def report(numbers: list[str], outcomes: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Log what happened to each number; return how many ended in which way."""
    by_number = {outcome["phone_number"]: outcome for outcome in outcomes}
    ends: Counter[str] = Counter()
    for number in numbers:
        outcome = by_number.get(number, {})
        end = outcome.get("status") or "unknown"  # its worker died, or it had no database
        why = outcome.get("error_detail") or outcome.get("reason") or ""
        log.info("%s %s, %s chats. %s", number, end, outcome.get("total_count"), why)
        ends[end] += 1
    return {"numbers": len(numbers), **ends}


def judge(code: int, entry: dict[str, Any], *, first_try: bool) -> None:
    """Return if all is well; else raise what makes the task fail for good, be skipped, or retry."""
    reason = f"linq-etl ended with {code}"
    if detail := entry.get("error_detail") or entry.get("reason"):
        reason += f": {detail}"
    match code:
        case 0:
            return
        case 3 if entry.get("status") == "partial" and entry.get("total_count"):
            # The list was read; some removals were withheld, or some records rejected.
            log.warning(reason)
        case 2 | 3 | 4:
            raise AirflowFailException(f"no retry, a person has to change something: {reason}")
        case 7 if first_try:
            raise AirflowSkipException(f"another run syncs this number: {reason}")
        case _:
            # 7 on a later try is the lease of the try before: skipped, the number would be lost.
            raise AirflowException(reason)


def run(*arguments: str) -> tuple[int, Any]:
    """The command's exit code, and what it printed as JSON; its log goes to the task's log."""
    die_with_parent()
    task_process = os.getpid()

    def in_child() -> None:
        die_with_parent()
        if os.getppid() != task_process:
            os._exit(1)

    with (
        tempfile.TemporaryFile() as stdout,
        subprocess.Popen(
            [COMMAND, "--log-json", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=in_child,  # noqa: PLW1509  # the task has no other thread
        ) as command,
    ):
        for line in command.stderr or ():
            log.info(line.rstrip())
        code = command.wait()
        stdout.seek(0)
        printed = stdout.read()
    return code, json.loads(printed) if printed else None


def die_with_parent() -> None:
    """Have this process killed when its parent ends (Linux only).

    Airflow does not see to that: if a task or its worker was killed, the command would live on and
    write beside the task's next try. What it had not committed is rolled back; its lease ends at
    once for tries on the same machine, and after sync.lease_seconds for others.
    """
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


linq_sync()
