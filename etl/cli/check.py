"""Is it set up? Configuration, token, numbers, database, schema: a finding each, with the fix."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from etl.api.client import LinqClient, RequestContext
from etl.api.pace import ApiUsage, Pace
from etl.config import Config, Token, load_config
from etl.db import schema
from etl.db.engine import describe, open_database, reading
from etl.db.tables import REVISION
from etl.errors import ConfigError, EtlError, RequestRefusedError
from etl.phone import e164_or_none, shortened


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the check; `exit_code` is 0 if it is well."""

    subject: str
    detail: str
    exit_code: int = 0

    def __str__(self) -> str:
        return f"{'FAIL' if self.exit_code else 'ok':<6}{self.subject:<10}{self.detail}"

    def as_record(self) -> dict[str, Any]:
        """For machines."""
        return {"ok": not self.exit_code, **asdict(self)}


async def run_checks(path: Path | None) -> list[Finding]:
    """Check what can be checked; what depends on something that fails is left out."""
    findings: list[Finding] = []
    with _finding(findings, "config"):
        config = load_config(path)
        findings.append(Finding("config", "complete and well-formed"))
    if findings[-1].exit_code:
        return findings
    await _check_token(config, findings)
    await asyncio.to_thread(_check_database, config, findings)
    return findings


async def reachable_numbers(config: Config) -> list[dict[str, Any]]:
    """The numbers that the configured tokens reach, and whether each is configured."""
    configured = {number.e164: number for number in config.sync.phone_numbers}
    tokens = {number.token for number in configured.values()} | {config.token}
    reached: set[str] = set()
    for token in tokens:
        reached |= await _reached(config, token) if token else set()
    return [
        {
            "phone_number": number,
            "configured": "yes" if number in configured else "no",
            "label": configured[number].label if number in configured else None,
        }
        for number in sorted(reached | configured.keys())
    ]


async def _reached(config: Config, token: Token) -> set[str]:
    pace = Pace(1, config.api.max_requests_per_second)
    async with LinqClient(config.api, pace, now=lambda: datetime.now(UTC)) as linq:
        numbers = await linq.list_phone_numbers(RequestContext("", token, ApiUsage()))
    return set(filter(None, (e164_or_none(number.phone_number) for number in numbers)))


async def _check_token(config: Config, findings: list[Finding]) -> None:
    wanted: dict[Token, set[str]] = {}
    for number in config.sync.phone_numbers:
        if token := number.token or config.token:
            wanted.setdefault(token, set()).add(number.e164)
    if config.sync.all_phone_numbers and config.token:
        wanted.setdefault(config.token, set())
    for token, numbers in wanted.items():
        with _finding(findings, "token"):
            try:
                reached = await _reached(config, token)
            except RequestRefusedError:
                findings.append(Finding("token", "accepted; this API does not list its numbers"))
                continue
            findings.append(Finding("token", f"accepted; it reaches {len(reached)} number(s)"))
            if missing := numbers - reached:
                names = ", ".join(map(shortened, sorted(missing)))
                fix = "remove them from sync.phone_numbers or use the token that they belong to"
                findings.append(
                    Finding("numbers", f"{names}: not reached; {fix}", ConfigError.exit_code)
                )
            else:
                findings.append(Finding("numbers", f"{len(numbers)} configured, all reached"))


def _check_database(config: Config, findings: list[Finding]) -> None:
    with _finding(findings, "database"):
        engine = open_database(config.database.url)
        try:
            with reading(engine) as connection:
                connection.exec_driver_sql("SELECT 1")
            findings.append(Finding("database", f"answers: {describe(engine)}"))
            with _finding(findings, "schema"):
                findings.append(_schema_finding(schema.current(engine), config))
        finally:
            engine.dispose()


def _schema_finding(revision: str | None, config: Config) -> Finding:
    if revision == REVISION:
        return Finding("schema", f"up to date (revision {REVISION})")
    schema.ensure_known(revision)
    found = f"revision {revision}" if revision else "empty"
    if config.database.auto_upgrade:
        return Finding("schema", f"{found}; the next sync upgrades it to {REVISION}")
    return Finding("schema", f"{found}; run `linq-etl db upgrade`", 6)


@contextmanager
def _finding(findings: list[Finding], subject: str) -> Iterator[None]:
    """Turn what goes wrong into a finding."""
    try:
        yield
    except EtlError as error:
        findings.append(Finding(subject, str(error), error.exit_code))
