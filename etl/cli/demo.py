"""The body of `demo`: a sandbox, two syncs into a SQLite file, a few queries."""

from pathlib import Path
from textwrap import dedent
from typing import Final

from rich.console import Console
from rich.syntax import Syntax
from sqlalchemy import Engine, text

from etl.api.client import LinqClient
from etl.api.pace import Pace
from etl.cli.explain import page_reader, write_page
from etl.cli.output import print_lines, print_table, run_lines
from etl.config import CONFIG_ENV, TOKEN_ENV, Config, PhoneNumber, load_config
from etl.db import schema
from etl.db.engine import database_clock, open_engine, reading
from etl.errors import ConfigError, DatabaseError
from etl.sandbox import Sandbox, World, build_world
from etl.sync.context import RunOptions
from etl.sync.progress import LogProgress
from etl.sync.run import sync

_NUMBERS: Final = (
    PhoneNumber("+13343284472", "Sales"),
    PhoneNumber("+13125550100", "Support"),
)
_DAYS: Final = 7  # of the report
# Portable SQL in lines of at most 78 characters.
QUERIES: Final = {
    "What happened since the first sync": """
        SELECT kind, display_name AS chat, old_value, new_value
        FROM chat_events e JOIN chats c ON c.id = e.chat_id
        ORDER BY e.chat_id, e.id LIMIT 8;""",
    "Chats that gained the most messages": """
        SELECT display_name AS chat, gained_7_days AS gained
        FROM chat_activity WHERE gained_7_days > 0
        ORDER BY gained DESC, chat_id LIMIT 5;""",
    "People who talk to both numbers": """
        SELECT participant, numbers, chats
        FROM participants WHERE numbers > 1 AND NOT is_own_number
        ORDER BY chats DESC, participant LIMIT 5;""",
    "The run log": """
        SELECT id, status, requests, chats_inserted AS new, chats_updated AS changed,
               chats_unchanged AS unchanged, handles_inserted AS joined
        FROM sync_runs ORDER BY id;""",
}


async def run_demo(path: Path) -> None:
    """Sync into a new database at `path`, replacing an older one; print what happens on stdout."""
    console = Console(highlight=False)
    try:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        raise DatabaseError(f"{path} cannot be replaced: {error.strerror}.") from None
    world = build_world(numbers=tuple(n.e164 for n in _NUMBERS), chats_per_number=400)
    with Sandbox(world) as sandbox:
        config = load_config(environ=_environment(sandbox, path), needs_numbers=False)
        engine = open_engine(config.database.url)
        try:
            schema.upgrade(engine)
            console.print(f"[bold]First sync[/bold] of two numbers from {sandbox.url} into {path}")
            await _sync(config, engine)
            with sandbox.lock:
                _let_a_day_pass(world)
            console.print("\n[bold]Second sync[/bold], a day later: only changes are written")
            await _sync(config, engine)
            _show_queries(engine, console)
            page = _write_page(engine, path.with_suffix(".html"))
        finally:
            engine.dispose()
    console.print(f"\nLook around: [bold]sqlite3 {path}[/bold] (tables: docs/tables.md)")
    console.print(f"The same as a page: {page}", markup=False)
    console.print("Your own numbers: README.md")


def _environment(sandbox: Sandbox, path: Path) -> dict[str, str]:
    return {
        "LINQ_ETL_API__BASE_URL": sandbox.url,
        "LINQ_ETL_DATABASE__URL": f"sqlite:///{path}",
        # One request at a time, so that every demo shows the same counts.
        "LINQ_ETL_API__MAX_CONCURRENCY": "1",
        TOKEN_ENV: "sandbox-token",
        CONFIG_ENV: "/dev/null",
    }


async def _sync(config: Config, engine: Engine) -> None:
    pace = Pace(config.api.max_concurrency)
    options = RunOptions(_NUMBERS)
    with LogProgress() as progress:
        async with LinqClient(config.api, pace, clock=database_clock(engine)) as client:
            result = await sync(config, engine, client, options=options, progress=progress)
    lines = run_lines(result.record, {number.e164: number.label for number in _NUMBERS})
    print_lines(lines, bold=lines[:1])


def _let_a_day_pass(world: World) -> None:
    sales, support = (world.listing(number.e164) for number in _NUMBERS)
    for position, chat_id in enumerate((*sales[:9], *support[:6])):
        for _ in range(1 + position * 7 % 11):
            world.jump(chat_id)
    world.create(_NUMBERS[0].e164)
    world.rename(sales[20], "Opening night 🎭")
    world.join(sales[30])
    world.leave(support[40])
    world.change_service(support[50], "RCS")


def _write_page(engine: Engine, path: Path) -> str:
    """Write the report; return where it is, or what it needs."""
    try:
        read_page = page_reader()
    except ConfigError:
        return "not written; pip install 'linq-etl[report]'"
    with reading(engine) as connection:
        write_page(path, read_page(connection, _DAYS, _NUMBERS))
    return str(path)


def _show_queries(engine: Engine, console: Console) -> None:
    for title, indented in QUERIES.items():
        query = dedent(indented).strip()
        console.print(f"\n[bold]{title}[/bold]")
        highlighted = Syntax(query, "sql", background_color="default").highlight(query)
        # Rich would crop or fold lines at the terminal's width; the terminal folds them harmlessly.
        console.print(highlighted, soft_wrap=True, end="")
        with reading(engine) as connection:
            rows = connection.execute(text(query))
            print_table([dict(row) for row in rows.mappings()], list(rows.keys()))
