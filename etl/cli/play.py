"""The commands that need no token: sandbox and demo."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etl.cli.context import GlobalOptions, run_interruptible
from etl.cli.logs import configure_log
from etl.cli.output import print_text
from etl.cli.parameters import Number, WholeNumber
from etl.errors import ConfigError

if TYPE_CHECKING:
    from etl.sandbox.world import Order

_SHARE = Number(0, 1)
_PER_PAGE = Number(0, 1000)


@click.command()
@click.option(
    "--port",
    type=WholeNumber(0, 65535),
    default=8765,
    show_default=True,
    help="Port on 127.0.0.1; 0 picks a free one.",
)
@click.option(
    "--chats",
    type=WholeNumber(0, 1_000_000),
    default=500,
    show_default=True,
    help="Chats per number.",
)
@click.option(
    "--seed",
    type=WholeNumber(0, 2**63 - 1),
    default=1,
    show_default=True,
    help="Another seed invents other data.",
)
@click.option(
    "--order",
    type=click.Choice(["id", "id-desc", "recency", "shuffled"]),
    default="recency",
    show_default=True,
    help="The list's order.",
)
@click.option("--latency", type=Number(0, 3600), default=0.0, help="Seconds before each answer.")
@click.option(
    "--rate-limit",
    type=Number(0.001, 100_000),
    help="Answer 429 above so many requests per second.",
)
@click.option(
    "--retry-after",
    type=click.Choice(["none", "seconds", "date"]),
    default="none",
    show_default=True,
    help="Retry-After header on 429: none, seconds or date.",
)
@click.option("--server-error", type=_SHARE, default=0.0, help="Share of 5xx answers, 0 to 1.")
@click.option("--html", type=_SHARE, default=0.0, help="Share of answers that are an HTML page.")
@click.option("--drop", type=_SHARE, default=0.0, help="Share of dropped connections.")
@click.option("--cut", type=_SHARE, default=0.0, help="Share of answers cut short.")
@click.option(
    "--jumps",
    type=_PER_PAGE,
    default=0.0,
    help="Chats that jump to the list's head after each page.",
)
@click.option("--creates", type=_PER_PAGE, default=0.0, help="Chats created after each page.")
@click.option("--deletes", type=_PER_PAGE, default=0.0, help="Chats deleted after each page.")
@click.option("--renames", type=_PER_PAGE, default=0.0, help="Chats renamed after each page.")
@click.option("--joins", type=_PER_PAGE, default=0.0, help="Participants joining after each page.")
@click.option("--leaves", type=_PER_PAGE, default=0.0, help="Participants leaving after each page.")
@click.option(
    "--messages-per-day",
    type=Number(0, 1_000_000_000),
    default=0.0,
    help="Messages a day over all chats, by the clock; a few chats get most of them.",
)
@click.option(
    "--speed",
    type=Number(0.001, 1_000_000),
    default=1.0,
    show_default=True,
    help="How many times as fast as the clock messages arrive; with 1440, a day in a minute.",
)
def sandbox(
    port: int,
    chats: int,
    seed: int,
    order: "Order",
    messages_per_day: float,
    speed: float,
    **rates: Any,
) -> None:
    """Serve an imitation of the Linq API with invented data.

    It listens on 127.0.0.1 until Ctrl-C. The options make it slow, throttling or faulty, or let
    its lists change while they are read.

    \b
    Examples:
      linq-etl sandbox
      linq-etl sandbox --jumps 3 --creates 1 --deletes 1 --drop 0.05
      linq-etl sandbox --chats 10000 --messages-per-day 7000 --speed 1440
    """
    from etl.sandbox import Faults, Motion, Sandbox, Traffic, build_world

    motion = {name: rates.pop(name) for name in Motion.__dataclass_fields__}
    world = build_world(seed=seed, chats_per_number=chats, order=order)
    traffic = None
    if messages_per_day:
        traffic = Traffic(
            world, messages_per_day, clock=lambda: speed * time.monotonic(), seed=seed
        )
    try:
        server = Sandbox(
            world, port=port, faults=Faults(**rates), motion=Motion(**motion), traffic=traffic
        )
    except OSError as error:
        reason = f"port {port} cannot be used ({error.strerror})"
        raise ConfigError(f"--port: {reason}; choose another, or 0 for a free one") from None
    print_text(f"The sandbox answers at {server.url}; Ctrl-C stops it. In another shell:\n")
    print_text(f"  export LINQ_ETL_API__BASE_URL={server.url}")
    print_text("  export LINQ_INTEGRATION_TOKEN=sandbox-token")
    print_text(f"  export LINQ_ETL_SYNC__PHONE_NUMBERS={','.join(world.numbers)}")
    print_text("  linq-etl sync")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print_text("")


@click.command()
@click.pass_obj
def demo(options: GlobalOptions) -> None:
    """Run two syncs of a sandbox and query the result.

    It needs no token, and leaves linq-demo.db in this folder, replacing an older one, and
    linq-demo.html, its report, if the extra linq-etl[report] is installed.

    \b
    Example:
      linq-etl demo
    """
    from etl.cli.demo import run_demo

    configure_log(as_json=options.log_json, quiet=True)
    run_interruptible(run_demo(Path("linq-demo.db")))
