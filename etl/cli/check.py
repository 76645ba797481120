"""The body of `check`: configuration, token, numbers, database, schema; a finding each."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect

from etl.api.client import LinqClient, RequestContext
from etl.api.pace import Pace
from etl.cli.context import open_database
from etl.cli.output import Row
from etl.config import Config, PhoneNumber, Token, load_config
from etl.db import schema
from etl.db.backends import backend
from etl.db.engine import describe, missing_file, reading, risks
from etl.db.privacy import read_state
from etl.db.tables import REVISION, metadata
from etl.errors import ConfigError, DatabaseError, EtlError, RequestRefusedError, SchemaError
from etl.phone import e164_or_none, shortened
from etl.sync.privacy import read_privacy
from etl.sync.summary import counted


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the check; `exit_code` is 0 if all is well, and of a warning."""

    subject: str
    detail: str
    exit_code: int = 0
    is_warning: bool = False

    def __str__(self) -> str:
        mark = "FAIL" if self.exit_code else "warn" if self.is_warning else "ok"
        return f"{mark:<6}{self.subject:<10}{self.detail}"

    def as_record(self) -> dict[str, Any]:
        """The finding for --json."""
        return {"ok": not self.exit_code, **asdict(self)}


async def run_checks(config_path: Path | None) -> list[Finding]:
    """Check everything; what depends on a failed check is skipped."""
    findings: list[Finding] = []
    with _finding_on_error(findings, "config"):
        config = load_config(config_path)
        findings.append(Finding("config", "complete and well-formed"))
    if findings[-1].exit_code:
        return findings
    for token, numbers in _numbers_by_token(config).items():
        with _finding_on_error(findings, "token"):
            findings += await _check_token(config, token, numbers)
    await asyncio.to_thread(check_database, config, findings)
    findings += _monitoring_findings(config)
    return findings


def _monitoring_findings(config: Config) -> Iterator[Finding]:
    """What reports a run to the outside, as far as it is configured. Sends nothing."""
    from etl.monitoring import telemetry

    if signals := telemetry.wanted_signals(os.environ):
        problem = telemetry.problem_of(os.environ)
        found = f"{' and '.join(sorted(signals))} go to the collector; nothing was sent"
        if not telemetry.is_installed():
            found = "OTEL_… variables are set, and have no effect without the extra linq-etl[otel]"
        yield Finding("telemetry", problem or found, ConfigError.exit_code * bool(problem))
    monitoring = config.monitoring
    if monitoring.ping_url:
        yield Finding("ping", "the URL is well-formed; nothing was sent to it")
    if monitoring.metrics_file:
        from etl.monitoring.whole_file import problem_of

        problem = problem_of(Path(monitoring.metrics_file))
        failed = f"monitoring.metrics_file cannot be written: {problem}"
        found = "monitoring.metrics_file can be written"
        yield Finding(
            "metrics", failed if problem else found, ConfigError.exit_code * bool(problem)
        )


async def visible_numbers(config: Config) -> list[Row]:
    """The numbers that the configured tokens can see, and whether each is configured."""
    configured = {number.e164: number for number in config.sync.phone_numbers}
    tokens = {number.token for number in configured.values()} | {config.token}
    visible: set[str] = set()
    for token in tokens:
        visible |= await _visible_to(config, token) if token else set()
    return [
        {
            "phone_number": number,
            "configured": "yes" if number in configured else "no",
            "label": configured[number].label if number in configured else None,
        }
        for number in sorted(visible | configured.keys())
    ]


async def _visible_to(config: Config, token: Token) -> set[str]:
    pace = Pace(1, config.api.max_requests_per_second)
    async with LinqClient(config.api, pace, clock=lambda: datetime.now(UTC)) as client:
        numbers = await client.list_phone_numbers(RequestContext(None, token))
    return set(filter(None, (e164_or_none(number.phone_number) for number in numbers)))


def _numbers_by_token(config: Config) -> dict[Token, list[PhoneNumber]]:
    by_token: dict[Token, list[PhoneNumber]] = {}
    for number in config.sync.phone_numbers:
        if token := number.token or config.token:
            by_token.setdefault(token, []).append(number)
    if config.sync.all_phone_numbers and config.token:
        by_token.setdefault(config.token, [])
    return by_token


async def _check_token(
    config: Config, token: Token, numbers: Sequence[PhoneNumber]
) -> list[Finding]:
    try:
        visible = await _visible_to(config, token)
    except RequestRefusedError:
        return [Finding("token", "accepted, but the API refused to list its phone numbers")]
    accepted = Finding("token", f"accepted; it can see {counted(len(visible), 'phone number')}")
    return [accepted, _numbers_finding(numbers, visible)]


def _numbers_finding(numbers: Sequence[PhoneNumber], visible: set[str]) -> Finding:
    if not numbers:
        return Finding("numbers", "every number that this token can see (all_phone_numbers)")
    missing = [number for number in numbers if number.e164 not in visible]
    if not missing:
        count = counted(len(numbers), "phone number")
        return Finding("numbers", f"{count} configured, all visible to this token")
    names = "; ".join(
        ", ".join(filter(None, (number.label, shortened(number.e164)))) for number in missing
    )
    problem = (
        f"1 number is not visible to this token ({names}): remove it or set its token_env."
        if len(missing) == 1
        else f"{len(missing)} numbers are not visible to this token ({names}): "
        "remove them or set their token_env."
    )
    return Finding("numbers", problem, ConfigError.exit_code)


def check_database(config: Config, findings: list[Finding]) -> None:
    """Add what a sync needs of the database and its schema; writes nothing, creates no file."""
    with _finding_on_error(findings, "database"):
        for risk in risks(config.database.url):
            findings.append(Finding("database", risk, is_warning=True))
        if missing := missing_file(config.database.url):
            findings.append(_new_file_finding(missing))
            findings.append(_schema_finding(None, config))
            findings += _privacy_findings(None, config)
            return
        with open_database(config) as engine, reading(engine) as connection:
            findings += _examine(connection, config)
            with _finding_on_error(findings, "schema"):
                revision = schema.usable_revision(connection)
                findings.append(_schema_finding(revision, config))
                if revision == REVISION and (lacking := schema.lacking(connection)):
                    problem = f"It lacks {', '.join(lacking)}. Restore a backup."
                    findings[-1] = Finding("schema", problem, SchemaError.exit_code)
                elif revision == REVISION and not any(each.exit_code for each in findings):
                    findings += _privacy_findings(connection, config)


def _privacy_findings(connection: Connection | None, config: Config) -> Iterator[Finding]:
    """Unless participants are plain: how they are stored, and whether the key is the right one."""
    mode, fingerprint = config.privacy.participants, None
    if connection:
        try:
            read_privacy(connection, config)
        except ConfigError as error:
            yield Finding("privacy", str(error), error.exit_code)
            return
        fingerprint = read_state(connection).key_fingerprint
    if mode != "plain" or fingerprint:
        key = "; the key is the one of this database" if fingerprint else ""
        yield Finding("privacy", f"participants are stored {mode}{key}")


def _new_file_finding(path: Path) -> Finding:
    if os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
        return Finding("database", f"{path} does not exist yet; the first sync creates it")
    state = "may not be written" if path.parent.is_dir() else "does not exist"
    problem = f"{path} cannot be created: its folder {state}; see database.url"
    return Finding("database", problem, DatabaseError.exit_code)


def _examine(connection: Connection, config: Config) -> Iterator[Finding]:
    """What a sync needs of the database; nothing is written."""
    revision = schema.read_revision(connection)
    existing = set(inspect(connection).get_table_names()) & set(metadata.tables)
    creates = revision != REVISION and config.database.auto_upgrade
    examination = backend(connection.dialect).examine(connection, existing, creates=creates)
    for problem in examination.problems:
        yield Finding("database", problem, DatabaseError.exit_code)
    if not examination.problems:
        detail = f"answers: {describe(connection.engine)}"
        yield Finding("database", "; ".join(filter(None, (detail, examination.note))))


def _schema_finding(revision: str | None, config: Config) -> Finding:
    if revision == REVISION:
        return Finding("schema", f"current (revision {REVISION})")
    schema.ensure_known(revision)
    found = f"revision {revision}" if revision else "no tables yet"
    if config.database.auto_upgrade:
        return Finding("schema", f"{found}; the next sync upgrades to {REVISION}")
    return Finding("schema", f"{found}; run `linq-etl db upgrade`", SchemaError.exit_code)


@contextmanager
def _finding_on_error(findings: list[Finding], subject: str) -> Iterator[None]:
    try:
        yield
    except EtlError as error:
        findings.append(Finding(subject, str(error), error.exit_code))
