"""What a run is asked to do, and what its numbers share."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from etl.api.client import LinqClient
from etl.config import Config, PhoneNumber
from etl.db.tables import Mode
from etl.db.transactions import Transactions
from etl.sync.progress import Progress
from etl.sync.reach import Reach
from etl.sync.room import Room
from etl.sync.shard import Shard
from etl.sync.turns import Turns
from etl.sync.writer import Writer


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run is asked to do.

    By the mode `quick`, a list is read in full only where a quick reading is not known to be good.
    A `sync` walks each list and removes what is gone. A `backfill` removes nothing and may read a
    page range: from `first_page` (default: 1, or where an interrupted backfill stopped) to
    `last_page`. With a `shard` only the numbers of that part are synced. With `since`, the run
    shares the numbers with all others of that kind, and leaves those out that were finished since
    so long before it began. A `dry-run` counts and writes no data.
    """

    numbers: tuple[PhoneNumber, ...]
    command: str = "sync"
    mode: Mode = "full"
    all_reached: bool = False
    prove: bool = False
    allow_removals: bool = False
    require_complete: bool = False
    first_page: int | None = None
    last_page: int | None = None
    shard: Shard | None = None
    since: timedelta | None = None

    @property
    def is_dry_run(self) -> bool:
        return self.mode == "dry-run"


@dataclass(frozen=True, slots=True)
class RunContext:
    """What the numbers of one run share."""

    config: Config
    transactions: Transactions
    client: LinqClient
    writer: Writer
    turns: Turns
    reach: Reach
    progress: Progress
    run_id: int
    clock: Callable[[], datetime]
    room: Room
