"""docs/deploy/: what reads those files at an operator's accepts them, as far as it is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from docs.generate import ROOT
from tests.support.command import COMMAND

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
