"""The commands that need no token: sandbox and demo."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etl.cli.context import GlobalOptions, run_interruptible
from etl.cli.logs import configure_log

if TYPE_CHECKING:
    from etl.sandbox.world import Order


@click.command()
@click.option(
    "--port", default=8765, show_default=True, help="Port on 127.0.0.1; 0 picks a free one."
)
@click.option("--chats", default=500, show_default=True, help="Chats per number.")
@click.option("--seed", default=1, show_default=True, help="Another seed invents other data.")
@click.option(
    "--order",
    type=click.Choice(["id", "id-desc", "recency", "shuffled"]),
    default="recency",
    show_default=True,
    help="The list's order.",
)
@click.option("--latency", default=0.0, help="Seconds before each answer.")
@click.option("--rate-limit", type=float, help="Answer 429 above so many requests per second.")
@click.option(
    "--retry-after",
    type=click.Choice(["none", "seconds", "date"]),
    default="none",
    show_default=True,
    help="Retry-After header on 429: none, seconds or date.",
)
@click.option("--server-error", default=0.0, help="Share of 5xx answers, 0 to 1.")
@click.option("--html", default=0.0, help="Share of answers that are an HTML page.")
@click.option("--drop", default=0.0, help="Share of dropped connections.")
@click.option("--cut", default=0.0, help="Share of answers cut short.")
@click.option("--jumps", default=0.0, help="Chats that jump to the list's head after each page.")
@click.option("--creates", default=0.0, help="Chats created after each page.")
@click.option("--deletes", default=0.0, help="Chats deleted after each page.")
@click.option("--renames", default=0.0, help="Chats renamed after each page.")
@click.option("--joins", default=0.0, help="Participants joining after each page.")
@click.option("--leaves", default=0.0, help="Participants leaving after each page.")
def sandbox(port: int, chats: int, seed: int, order: "Order", **rates: Any) -> None:
    """Serve an imitation of the Linq API with invented data.

    It listens on 127.0.0.1 until Ctrl-C. The options make it slow, throttling or faulty, or let
    its lists change while they are read.

    \b
    Examples:
      linq-etl sandbox
      linq-etl sandbox --jumps 3 --creates 1 --deletes 1 --drop 0.05
    """
    from etl.sandbox import Faults, Motion, Sandbox, build_world

    motion = {name: rates.pop(name) for name in Motion.__dataclass_fields__}
    world = build_world(seed=seed, chats_per_number=chats, order=order)
    server = Sandbox(world, port=port, faults=Faults(**rates), motion=Motion(**motion))
    click.echo(f"The sandbox answers at {server.url}; Ctrl-C stops it. In another shell:\n")
    click.echo(f"  export LINQ_ETL_API__BASE_URL={server.url}")
    click.echo("  export LINQ_INTEGRATION_TOKEN=sandbox-token")
    click.echo(f"  export LINQ_ETL_SYNC__PHONE_NUMBERS={','.join(world.numbers)}")
    click.echo("  linq-etl sync")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        click.echo("")


@click.command()
@click.pass_obj
def demo(options: GlobalOptions) -> None:
    """Run two syncs of a sandbox and query the result.

    It needs no token, and leaves linq-demo.db in this folder, replacing an older one.

    \b
    Example:
      linq-etl demo
    """
    from etl.cli.demo import run_demo

    configure_log(as_json=options.log_json, quiet=True)
    run_interruptible(run_demo(Path("linq-demo.db")))
