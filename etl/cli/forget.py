"""The command that erases a person: forget."""

import re
import sys
from typing import TYPE_CHECKING, Any

import click

from etl.cli.context import GlobalOptions, open_database, run_interruptible
from etl.cli.output import json_option, print_json, print_text
from etl.config import Config
from etl.errors import ConfigError
from etl.phone import to_e164

if TYPE_CHECKING:
    from etl.sync.forget import Forgotten

_ADDRESS = re.compile(r"[^\s@]{1,190}@[^\s@]{1,64}")


@click.command()
@click.argument("participant")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
@click.pass_obj
def forget(options: GlobalOptions, participant: str, yes: bool, as_json: bool) -> None:
    """Erase a person, and keep them out of later syncs.

    PARTICIPANT is a phone number in any usual form, or an e-mail address. The machine's other users
    can see it in the list of processes: write - to read it from stdin.

    Chats with this person alone are deleted with their history. In groups, the person is deleted
    as a participant, from the events, and from the group's name if that may hold theirs. Needs the
    privacy key in every mode, because what is kept of the person is a keyed hash. It may run
    beside a sync, and may be broken off and run again. Backups and exports are yours to erase.

    \b
    Examples:
      linq-etl forget '(312) 555-0142' --yes
      cat participant.txt | linq-etl forget - --yes
    """
    config = options.load_config(offline=True, needs_key=True)
    given = sys.stdin.readline() if participant == "-" else participant
    wanted = _participant(given.strip())
    if not yes:
        _confirm()
    from etl.db.engine import scrub
    from etl.db.erase import TABLES
    from etl.db.transactions import Transactions
    from etl.sync.forget import forget as erase

    with open_database(config, existing=True) as engine:
        transactions = Transactions(engine, patience=config.database.patience)
        result = run_interruptible(erase(config, transactions, wanted))
        left = scrub(engine, TABLES)
    if as_json:
        print_json({"deleted": result.deleted, "changed": result.changed, "left": left})
    else:
        print_text("\n".join(_sentences(config, result, left)))


def _participant(text: str) -> str:
    """E.164 or an address. No error shows the text."""
    if _ADDRESS.fullmatch(text):
        return text
    try:
        return to_e164(text)
    except ValueError as error:
        raise ConfigError(f"PARTICIPANT: {error}, or an e-mail address") from None


def _confirm() -> None:
    warning = "This deletes everything that is stored of this person, for ever."
    if not sys.stdin.isatty():
        raise ConfigError(f"{warning} Without a terminal, confirm with --yes.")
    if not click.confirm(f"{warning} Continue?"):
        raise ConfigError("not confirmed; nothing was changed")


def _sentences(config: Config, result: "Forgotten", left: str | None) -> list[str]:
    from etl.sync.summary import counted

    def told(rows: dict[str, Any]) -> str:
        return (
            ", ".join(f"{counted(n, 'row')} of {table}" for table, n in rows.items()) or "nothing"
        )

    if config.privacy.participants == "dropped":
        return [
            "no participant is stored, so nothing was erased; later syncs leave this person out"
        ]
    lines = [f"deleted: {told(result.deleted)}"]
    if result.changed:
        lines.append(f"changed: {told(result.changed)}")
    lines.append("later syncs leave this person out")
    return [*lines, *([f"note: {left}"] if left else [])]
