"""What is measured: each scenario makes its own databases and yields a sample for each process."""

import os
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tests import postgres
from tests.benchmarks import measure
from tests.benchmarks.server import HANDLES_PER_PAGE, PER_PAGE, ROOT, Api, Settings, phone_number

LATENCY: Final = 0.1
CONCURRENCY: Final = 16
RATE: Final = 50
_COMMAND = Path(sysconfig.get_path("scripts"), "linq-etl")


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. `written` counts row versions in PostgreSQL and data pages in SQLite.

    `least` is the seconds that the server alone takes, with its latency or its limit.
    """

    name: str
    seconds: float
    rows: int
    requests: int = 0
    throttled: int = 0
    allowance: float = 0.0
    least: float | None = None
    wal_bytes: int | None = None
    written: int | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Lab:
    """Where the measuring is done; `postgres_url` is a server's, None if there is none."""

    api: Api
    postgres_url: str | None
    chats: int
    numbers: int

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("sqlite", "postgresql") if self.postgres_url else ("sqlite",)

    @contextmanager
    def database(self, kind: str) -> Iterator["Database"]:
        """A new database of this kind, with a folder beside it; both are gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="linq-etl-bench-") as name:
            if kind == "sqlite":
                yield Database(self.api, Path(name), f"sqlite:///{name}/bench.db")
                return
            assert self.postgres_url
            with postgres.database(self.postgres_url) as url:
                yield Database(self.api, Path(name), url)


@dataclass(frozen=True, slots=True)
class Database:
    """One that processes under measurement write to."""

    api: Api
    folder: Path
    url: str

    @property
    def kind(self) -> str:
        return self.url.partition(":")[0]

    def sync(self, name: str, settings: Settings, **more: str) -> Sample:
        """`linq-etl sync` of what the server then serves; `more` goes into its environment."""
        numbers = ",".join(map(phone_number, range(settings.numbers)))
        env = {
            "LINQ_ETL_API__BASE_URL": self.api.url,
            "LINQ_ETL_DATABASE__URL": self.url,
            "LINQ_ETL_SYNC__PHONE_NUMBERS": numbers,
            "LINQ_INTEGRATION_TOKEN": "bench-token",
        }
        return self.measure(f"{self.kind} {name}", [_COMMAND, "sync"], settings, **env, **more)

    def measure(
        self, name: str, command: list[str | Path], settings: Settings, **env: str
    ) -> Sample:
        """Run the command, and see what it asked of the server and did to the database."""
        file = self.folder / "bench.db"
        mark = None if self.kind == "sqlite" else measure.settle(self.url)
        before = None if mark else measure.data_pages(file)
        self.api.serve(settings)
        spent = measure.run(command, env=_environment(self.folder) | env, folder=self.folder)
        counts = self.api.counts()
        wal_bytes = measure.wal_since(self.url, mark) if mark else None
        if mark:
            written = measure.versions_since(self.url, mark)
        elif (after := measure.data_pages(file)) is not None:
            written = len(after.items() - (before or {}).items())
        else:
            written = None
        return Sample(
            name,
            spent.seconds,
            rows=_rows(settings.chats * settings.numbers),
            requests=counts.requests,
            throttled=counts.throttled,
            allowance=counts.allowance,
            least=_least(settings, counts.requests),
            wal_bytes=wal_bytes,
            written=written,
            peak_bytes=spent.peak_bytes,
        )


def floors(lab: Lab) -> Iterator[Sample]:
    """Fetching and decoding alone; writing alone."""
    lab.api.serve(Settings(lab.chats))
    yield _floor(lab, "fetch floor", "fetch")
    for kind in lab.kinds:
        with lab.database(kind) as database:
            yield _floor(lab, f"{kind} write floor", "write", database.url)


def plain(lab: Lab) -> Iterator[Sample]:
    """The first load, the same again, and again when one chat in a hundred has changed."""
    for kind in lab.kinds:
        with lab.database(kind) as database:
            yield database.sync("first", Settings(lab.chats))
            yield database.sync("again", Settings(lab.chats))
            yield database.sync("1 % changed", Settings(lab.chats, changed=True))


def latency(lab: Lab) -> Iterator[Sample]:
    """The first load and again from a server that takes its time."""
    slow = Settings(lab.chats, latency=LATENCY)
    for kind in lab.kinds:
        with lab.database(kind) as database:
            for name in ("first, 100 ms", "again, 100 ms"):
                yield database.sync(name, slow, LINQ_ETL_API__MAX_CONCURRENCY=str(CONCURRENCY))


def numbers(lab: Lab) -> Iterator[Sample]:
    """Many numbers with two pages each."""
    many = Settings(2 * PER_PAGE, numbers=lab.numbers, latency=LATENCY)
    for kind in lab.kinds:
        with lab.database(kind) as database:
            yield database.sync(
                "many numbers, 100 ms", many, LINQ_ETL_API__MAX_CONCURRENCY=str(CONCURRENCY)
            )


def throttled(lab: Lab) -> Iterator[Sample]:
    """A server that refuses what comes too fast, and does not say for how long."""
    with lab.database("sqlite") as database:
        yield database.sync(
            "first, 50 requests/s",
            Settings(lab.chats, rate=RATE),
            LINQ_ETL_API__MAX_CONCURRENCY=str(CONCURRENCY),
        )


def million(lab: Lab) -> Iterator[Sample]:
    """Ten times as many chats: a million, unless --chats says otherwise."""
    for kind in lab.kinds:
        with lab.database(kind) as database:
            yield database.sync("first, 10 x the chats", Settings(10 * lab.chats))


def dlt(lab: Lab) -> Iterator[Sample]:
    """The same work with dlt; nothing if the bench extra is not installed."""
    for kind in lab.kinds if dlt_is_installed() else ():
        with lab.database(kind) as database:
            for name in ("first", "again"):
                yield database.measure(
                    f"dlt {kind} {name}",
                    [*_python("dlt_load"), lab.api.url, database.url, str(database.folder)],
                    Settings(lab.chats),
                    PYTHONPATH=str(ROOT),
                    DLT_DATA_DIR=str(database.folder),
                    RUNTIME__DLTHUB_TELEMETRY="false",
                )


SCENARIOS: Final[dict[str, Callable[[Lab], Iterator[Sample]]]] = {
    scenario.__name__: scenario
    for scenario in (floors, plain, latency, numbers, throttled, million, dlt)
}


def dlt_is_installed() -> bool:
    return find_spec("dlt") is not None


def _floor(lab: Lab, name: str, *arguments: str) -> Sample:
    what, *database_url = arguments
    command = [*_python("floors"), what, lab.api.url, str(lab.chats // PER_PAGE), *database_url]
    with tempfile.TemporaryDirectory(prefix="linq-etl-bench-") as folder:
        env = _environment(Path(folder)) | {"PYTHONPATH": str(ROOT)}
        spent = measure.run(command, env=env, folder=Path(folder))
    return Sample(name, float(spent.stdout), rows=_rows(lab.chats))


def _python(module: str) -> list[str | Path]:
    return [sys.executable, "-m", f"tests.benchmarks.{module}"]


def _environment(folder: Path) -> dict[str, str]:
    """None of the caller's settings."""
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8"}


def _rows(chats: int) -> int:
    return chats + chats // PER_PAGE * HANDLES_PER_PAGE


def _least(settings: Settings, requests: int) -> float | None:
    if settings.rate:
        return max(requests / settings.rate - 1, 0.0)  # the first second's requests are a burst
    return requests * settings.latency / CONCURRENCY if settings.latency else None
