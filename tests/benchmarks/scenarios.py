"""What is measured: each scenario makes its own databases and yields a sample per process."""

import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Final, get_args

from msgspec import structs

from etl.db import schema
from etl.db.engine import open_engine
from etl.sandbox.world import Order
from tests.benchmarks import measure
from tests.benchmarks.limiter import Limit
from tests.benchmarks.server import HANDLES_PER_PAGE, PER_PAGE, ROOT, Api, Settings, phone_number
from tests.benchmarks.virtual_day import Day, ScheduleMode, run_day
from tests.support import mysql, postgres

LATENCY: Final = 0.1
CONCURRENCY: Final = 16
ONE_SECONDS_BURST: Final = Limit("bucket", rate=50, burst=50)
# Each takes at least three windows and 400 requests.
PACE_LIMITS: Final = {
    "bucket": Settings(60_000, latency=0.03, limit=Limit("bucket", rate=50, burst=10)),
    "1s": Settings(60_000, latency=0.03, limit=Limit("window", rate=50, seconds=1)),
    "10s": Settings(60_000, latency=0.03, limit=Limit("window", rate=20, seconds=10)),
    "60s": Settings(60_000, latency=0.03, limit=Limit("window", rate=3, seconds=60)),
    "at-a-time": Settings(60_000, latency=0.2, limit=Limit("at a time", rate=20)),
}
PACE_RUNS: Final = ("first", "second")
DAY_ORDERS: Final[tuple[Order, ...]] = ("recency", "id")
_COMMAND = Path(sysconfig.get_path("scripts"), "linq-etl")
_WIDE = {"LINQ_ETL_API__MAX_CONCURRENCY": str(CONCURRENCY)}


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. `written` counts row versions in PostgreSQL and data pages in SQLite.

    `least` is the seconds that the server alone takes, with its latency or rate limit.
    """

    name: str
    seconds: float
    rows: int = 0
    requests: int = 0
    throttled: int = 0
    allowance: float = 0.0
    least: float | None = None
    wal_bytes: int | None = None
    written: int | None = None
    peak_bytes: int | None = None
    day: Day | None = None


@dataclass(frozen=True, slots=True)
class Lab:
    """The API, the database servers by their kind, and the sizes to measure with."""

    api: Api
    servers: Mapping[str, str]
    chats: int
    numbers: int
    limits: Sequence[str] = ()  # of PACE_LIMITS

    def databases(self) -> Iterator["Database"]:
        """A new database of each kind, with a folder beside it; both are deleted afterwards."""
        for kind in ("sqlite", *self.servers):
            with self.database(kind) as database:
                yield database

    @contextmanager
    def database(self, kind: str) -> Iterator["Database"]:
        """A new database of that kind."""
        with tempfile.TemporaryDirectory(prefix="linq-etl-bench-") as folder:
            if kind == "sqlite":
                yield Database(self.api, Path(folder), f"sqlite:///{folder}/bench.db")
                return
            module = postgres if kind == "postgresql" else mysql
            with module.database(self.servers[kind]) as url:
                yield Database(self.api, Path(folder), url)


@dataclass(frozen=True, slots=True)
class Database:
    """A database that measured processes write to."""

    api: Api
    folder: Path
    url: str

    @property
    def kind(self) -> str:
        return self.url.partition(":")[0]

    def sync(self, name: str, settings: Settings, **more: str) -> Sample:
        """Run `linq-etl sync` against that server; `more` goes into its environment."""
        written = self._watch_data()
        env = self._program_environment(settings.numbers) | more
        sample = self.run(f"{self.kind} {name}", [_COMMAND, "sync"], settings, **env)
        return replace(sample, written=written())

    def start_up(self) -> Sample:
        """Run `linq-etl runs`, which does little more than start."""
        env = _environment(self.folder) | self._program_environment(1)
        spent = measure.run([_COMMAND, "runs"], env=env, folder=self.folder)
        return Sample(f"{self.kind} start-up", spent.seconds, peak_bytes=spent.peak_bytes)

    def _program_environment(self, numbers: int) -> dict[str, str]:
        return {
            "LINQ_ETL_API__BASE_URL": self.api.url,
            "LINQ_ETL_DATABASE__URL": self.url,
            "LINQ_ETL_SYNC__PHONE_NUMBERS": ",".join(map(phone_number, range(numbers))),
            "LINQ_INTEGRATION_TOKEN": "bench-token",
        }

    def _watch_data(self) -> Callable[[], int | None]:
        if self.kind == "postgresql":
            transaction = measure.next_transaction(self.url)
            return lambda: measure.versions_since(self.url, transaction)
        if self.kind == "mysql":
            return lambda: None
        file = self.folder / "bench.db"
        before = measure.data_pages(file)
        if before is None:
            return lambda: None
        return lambda: len((measure.data_pages(file) or {}).items() - before.items())

    def run(self, name: str, command: list[str | Path], settings: Settings, **env: str) -> Sample:
        """Run the command; count its requests and its WAL."""
        lsn = measure.settle(self.url) if self.kind == "postgresql" else None
        self.api.serve(settings)
        spent = measure.run(command, env=_environment(self.folder) | env, folder=self.folder)
        counts = self.api.counts()
        return Sample(
            name,
            spent.seconds,
            rows=_rows(settings.chats * settings.numbers),
            requests=counts.requests,
            throttled=counts.throttled,
            allowance=counts.allowance,
            least=_least(settings, counts.requests),
            wal_bytes=measure.wal_since(self.url, lsn) if lsn else None,
            peak_bytes=spent.peak_bytes,
        )


def floors(lab: Lab) -> Iterator[Sample]:
    """Fetching and decoding only; writing only."""
    lab.api.serve(Settings(lab.chats))
    yield _floor(lab, "floors", "fetch floor")
    for database in lab.databases():
        yield _floor(lab, "floors", f"{database.kind} write floor", database.url)


def like_for_like(lab: Lab) -> Iterator[Sample]:
    """Fetching as the program does, without storing; the rows of a first load in bulk."""
    lab.api.serve(Settings(lab.chats))
    yield _floor(lab, "like_for_like", "fetching alone")
    for database in lab.databases():
        yield _floor(lab, "like_for_like", f"{database.kind} rows in bulk", database.url)


def plain(lab: Lab) -> Iterator[Sample]:
    """The first load, the same again, start-up, and again with one chat in a hundred changed."""
    for database in lab.databases():
        yield database.sync("first", Settings(lab.chats))
        yield database.sync("again", Settings(lab.chats))
        yield from (database.start_up() for _ in range(3))
        yield database.sync("1 % changed", Settings(lab.chats, changed="some"))


def changed(lab: Lab) -> Iterator[Sample]:
    """Every chat renamed, and every participant's service changed, since the first load."""
    for database in lab.databases():
        database.sync("first", Settings(lab.chats))
        yield database.sync("all changed", Settings(lab.chats, changed="all"))


def latency(lab: Lab) -> Iterator[Sample]:
    """The first load and the same again, from a server with latency."""
    slow = Settings(lab.chats, latency=LATENCY)
    for database in lab.databases():
        yield database.sync("first, 100 ms", slow, **_WIDE)
        yield database.sync("again, 100 ms", slow, **_WIDE)


def numbers(lab: Lab) -> Iterator[Sample]:
    """Many numbers with two pages each."""
    many = Settings(2 * PER_PAGE, numbers=lab.numbers, latency=LATENCY)
    for database in lab.databases():
        yield database.sync("many numbers, 100 ms", many, **_WIDE)


def throttled(lab: Lab) -> Iterator[Sample]:
    """A server with a rate limit and no Retry-After."""
    for database in lab.databases():
        yield database.sync(
            "first, 50 requests/s", Settings(lab.chats, limit=ONE_SECONDS_BURST), **_WIDE
        )


def pace(lab: Lab) -> Iterator[Sample]:
    """Rate limits of each kind, with and without Retry-After, a first run and a second."""
    for (name, settings), retry_after in product(PACE_LIMITS.items(), (False, True)):
        if name in lab.limits:
            limit = structs.replace(settings.limit, retry_after=retry_after)
            with lab.database("sqlite") as database:
                for run in PACE_RUNS:
                    subject = pace_subject(name, run, retry_after=retry_after)
                    yield database.sync(subject, structs.replace(settings, limit=limit))


def pace_subject(limit: str, run: str, *, retry_after: bool) -> str:
    """What the samples of `pace` are called, after the database."""
    return f"{limit}{', Retry-After' if retry_after else ''}, {run} run"


def million(lab: Lab) -> Iterator[Sample]:
    """Ten times as many chats: a million, unless --chats says otherwise."""
    for database in lab.databases():
        yield database.sync("first, 10 x the chats", Settings(10 * lab.chats))


def day(lab: Lab) -> Iterator[Sample]:
    """A virtual day of full runs and one of quick runs, in order of recency and of ids."""
    kinds = [kind for kind in ("sqlite", "postgresql") if kind in ("sqlite", *lab.servers)]
    for kind, order, mode in product(kinds, DAY_ORDERS, get_args(ScheduleMode)):
        with lab.database(kind) as database:
            engine = open_engine(database.url)
            schema.upgrade(engine)
            began = time.perf_counter()
            spent = run_day(engine, mode, order)
            seconds = time.perf_counter() - began
            engine.dispose()
        yield Sample(f"{kind} {day_subject(order, mode)}", seconds, day=spent)


def day_subject(order: Order, mode: ScheduleMode) -> str:
    """What the samples of `day` are called, after the database."""
    return f"{order} order, {mode}"


def dlt(lab: Lab) -> Iterator[Sample]:
    """The same work with dlt, if the bench extra is installed."""
    env = {
        "PYTHONPATH": str(ROOT),
        "RUNTIME__DLTHUB_TELEMETRY": "false",
        "ENABLE_RUNTIME_TRACE": "false",  # it would record an id of this machine
    }
    for database in lab.databases() if dlt_is_installed() else ():
        folder = str(database.folder)
        command = [*_python("dlt_load"), lab.api.url, database.url, folder]
        for name in ("first", "again") if database.kind != "mysql" else ():
            yield database.run(
                f"dlt {database.kind} {name}",
                command,
                Settings(lab.chats),
                DLT_DATA_DIR=folder,
                **env,
            )


SCENARIOS: Final[dict[str, Callable[[Lab], Iterator[Sample]]]] = {
    scenario.__name__: scenario
    for scenario in (
        *(floors, like_for_like, plain, changed, latency, numbers, throttled, pace, million),
        *(day, dlt),
    )
}


def dlt_is_installed() -> bool:
    return find_spec("dlt") is not None


def _floor(lab: Lab, module: str, name: str, *database_url: str) -> Sample:
    """Measure writing if there is a database, else fetching."""
    command = [*_python(module), lab.api.url, str(lab.chats // PER_PAGE), *database_url]
    with tempfile.TemporaryDirectory(prefix="linq-etl-bench-") as folder:
        env = _environment(Path(folder)) | {"PYTHONPATH": str(ROOT)}
        spent = measure.run(command, env=env, folder=Path(folder))
    return Sample(name, float(spent.stdout), rows=_rows(lab.chats))


def _python(module: str) -> list[str | Path]:
    return [sys.executable, "-m", f"tests.benchmarks.{module}"]


def _environment(folder: Path) -> dict[str, str]:
    """An environment without the caller's variables."""
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8"}


def _rows(chats: int) -> int:
    return chats + chats // PER_PAGE * HANDLES_PER_PAGE


def _least(settings: Settings, requests: int) -> float | None:
    if settings.limit.rate:
        return settings.limit.least(requests)
    return requests * settings.latency / CONCURRENCY if settings.latency else None
