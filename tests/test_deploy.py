"""docs/deploy/: what reads those files at an operator's accepts them, as far as it is installed."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.version import Version

from docs.generate import ROOT
from etl.config import Sync
from etl.sandbox import Sandbox, build_world
from tests.support.command import COMMAND, call, environment, select
from tests.support.marks import only_sqlite

DEPLOY = ROOT / "docs/deploy"
UNITS = ("linq-etl.service", "linq-etl.timer")
LOGROTATE = shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin")
EXPOSURE = 20  # tenths; systemd calls that OK

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
needs_logrotate = pytest.mark.skipif(not LOGROTATE, reason="no logrotate")


def run(*command: str | Path) -> str:
    """Run a program that must succeed; return what it printed."""
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units, which start the command that is installed here."""
    for name in UNITS:
        text = (DEPLOY / name).read_text()
        (tmp_path / name).write_text(text.replace("/srv/linq-etl/.venv/bin/linq-etl", str(COMMAND)))
    return [tmp_path / name for name in UNITS]


@needs_systemd
def test_systemd_accepts_the_units(units: list[Path]) -> None:
    """Without a warning."""
    assert run("systemd-analyze", "verify", "--man=no", *units) == ""


@needs_systemd
def test_the_service_may_do_little(units: list[Path]) -> None:
    """By systemd's own measure."""
    options = ("--offline=yes", f"--threshold={EXPOSURE}", "--no-pager")
    assert "Overall exposure level" in run("systemd-analyze", "security", *options, units[0])


@needs_logrotate
def test_the_log_is_rotated(tmp_path: Path) -> None:
    """The newest stays as it is, because a sync may still write to it; older ones are packed."""
    log, rules = tmp_path / "sync.log", tmp_path / "rules"
    text = (DEPLOY / "logrotate").read_text().replace("/srv/linq-etl/sync.log", str(log))
    user = "    su linq-etl linq-etl\n"
    assert user in text
    rules.write_text(text.replace(user, ""))
    rules.chmod(0o644)
    for content in ("first\n", "second\n", "third\n"):
        log.write_text(content)
        run(str(LOGROTATE), "--force", "--state", tmp_path / "state", rules)
    assert {path.name for path in tmp_path.glob("sync.log*")} == {
        "sync.log.1",
        "sync.log.2.gz",
        "sync.log.3.gz",
    }
    assert (tmp_path / "sync.log.1").read_text() == "third\n"


# Kubernetes

# From the first in which all that the Job needs is on by default.
OLDEST = Version("1.29")
KUBERNETES: list[str] = sorted(
    {each for each in kubernetes_validate.utils.all_versions() if Version(each) >= OLDEST}
)


def manifest(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return content


def scheduled_job() -> dict[str, Any]:
    """The CronJob, made to start the Job, as docs/deploy.md says."""
    cron_job = manifest("cronjob.yaml")
    cron_job["spec"]["jobTemplate"]["spec"] = manifest("job.yaml")["spec"]
    return cron_job


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_accepts_the_manifests(version: str) -> None:
    """Without a field that it does not know, up to the newest version that is known here."""
    for content in (manifest("cronjob.yaml"), manifest("job.yaml"), scheduled_job()):
        kubernetes_validate.validate(content, version, strict=True)


def test_the_job_decides_by_the_exit_code() -> None:
    """What only a person can mend fails the shard at once; all else is tried again."""
    spec = manifest("job.yaml")["spec"]
    rules = spec["podFailurePolicy"]["rules"]
    actions = {
        code: rule["action"]
        for rule in rules
        for code in rule.get("onExitCodes", {}).get("values", ())
    }
    assert actions == dict.fromkeys([2, 3, 4], "FailIndex") | dict.fromkeys([5, 6, 7], "Count")
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # else there may be no such rules
    assert (
        sum(10 * 2**tries for tries in range(spec["backoffLimitPerIndex"])) > Sync().lease_seconds
    )


def test_the_job_has_a_pod_for_each_shard() -> None:
    """As many as its command counts, so that no number is left out; they share the rate."""
    spec = manifest("job.yaml")["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    shard, share = f"auto/{spec['completions']}", f"1/{spec['parallelism']}"
    assert container["args"][2:] == ["--shard", shard, "--rate-share", share]
    assert spec["completionMode"] == "Indexed"
    assert spec["maxFailedIndexes"] == spec["completions"]  # one shard's failure stops no other


def test_the_job_runs_like_the_cronjob() -> None:
    """In a pod that differs in its arguments only: the same rights, files and limits."""
    job = manifest("job.yaml")["spec"]["template"]["spec"]
    cron_job = manifest("cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    for pod in (job, cron_job):
        del pod["containers"][0]["args"]
    assert job == cron_job


@only_sqlite
def test_the_jobs_pods_sync_each_number_once(database_url: str) -> None:
    """Together, as Kubernetes starts them: each with its index."""
    spec = manifest("job.yaml")["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    numbers = [f"+131255501{index:02}" for index in range(20)]
    with Sandbox(build_world(numbers=numbers, chats_per_number=3)) as sandbox:
        env = environment(sandbox, database_url, *numbers)
        for index in range(spec["completions"]):
            pod = env | {"JOB_COMPLETION_INDEX": str(index)}
            assert call(*container["args"], env=pod).code == 0
    synced = "SELECT phone_number FROM sync_run_numbers ORDER BY phone_number"
    assert [number for (number,) in select(database_url, synced)] == numbers
