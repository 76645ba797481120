"""What follows from the code in README.md and docs/; `python docs/generate.py` writes it.

Generated text stands between `<!-- generated: NAME -->` and `<!-- end -->`; docs/demo.svg is
generated as a whole.
"""

import asyncio
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args, get_type_hints

import click
from msgspec import Meta, Struct
from rich.console import Console
from rich.text import Text

from etl import config, errors
from etl.api.models import Chat, Page
from etl.cli.dictionary.markdown import markdown, mermaid
from etl.cli.main import cli
from etl.sync.budget import BoundedFetch
from etl.sync.seen import ChatIds
from etl.sync.walk import walk

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs/demo.svg"
_BLOCK = re.compile(r"(<!-- generated: ([a-z -]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_HELP_WIDTH = 88
_EXCERPT = "Chats that gained"  # the part of the demo that the README shows as text


def documents() -> list[Path]:
    """Every page that people read: README.md, CONTRIBUTING.md and docs/."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]


def rendered(text: str) -> str:
    """The text with every generated block made anew."""
    return _BLOCK.sub(lambda m: "\n".join((m[1].rstrip(), *_BLOCKS[m[2]](), m[3])), text)


def main() -> None:
    """Write what has drifted, and name it."""
    new = {path: rendered(path.read_text("utf-8")) for path in documents()}
    for path, text in (new | {PICTURE: picture()}).items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            sys.stdout.write(f"{path.relative_to(ROOT)}\n")


# The demo


@cache
def demo() -> str:
    """What `linq-etl demo` prints on a terminal, with its colours; port and times never change."""
    environment = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "100"}
    with TemporaryDirectory() as folder:
        printed = subprocess.run(
            [sys.executable, "-m", "etl", "demo"],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": folder, **environment},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
    printed = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:34567", printed)
    return re.sub(r"(requests), [\d.]+ s$", r"\1, 0.3 s", printed, flags=re.MULTILINE)


def plain(printed: str) -> str:
    """The text without colours and without blanks at the ends of lines."""
    lines = Text.from_ansi(printed).plain.splitlines()
    return "\n".join(line.rstrip() for line in lines)


def picture() -> str:
    """The demo's first screen as an SVG of a terminal, whose background suits light and dark."""
    shown = demo().partition(_EXCERPT)[0]
    console = Console(record=True, width=84, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(shown.rstrip()))
    svg = console.export_svg(title="linq-etl demo", unique_id="demo")
    # A picture within a page may not load fonts, so name what systems have.
    svg = re.sub(r"@font-face \{.*?\}\n\s*", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code, monospace", "DejaVu Sans Mono, Menlo, Consolas, monospace")


def _demo_excerpt() -> Iterator[str]:
    shown = plain(demo())
    start = shown.index(_EXCERPT)
    yield "```text"
    yield shown[start : shown.index("\n\n", start)]
    yield "```"


# Commands and errors


def _commands() -> Iterator[str]:
    yield "| command | does |"
    yield "|---|---|"
    for path, command in commands():
        anchor = f"linq-etl {path}".replace(" ", "-")
        summary = command.get_short_help_str(200).removesuffix(".")
        yield f"| [`{path}`](#{anchor}) | {summary} |"
    for path, command in commands():
        context = click.Context(
            command,
            info_name=f"linq-etl {path}",
            max_content_width=_HELP_WIDTH,
            help_option_names=cli.context_settings["help_option_names"],
        )
        context.terminal_width = _HELP_WIDTH
        yield f"\n### linq-etl {path}\n\n```text\n{command.get_help(context)}\n```"


def commands(group: click.Group = cli, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command and its full name, such as `db upgrade`."""
    for name, command in group.commands.items():
        path = f"{prefix} {name}".strip()
        if isinstance(command, click.Group):
            yield from commands(command, path)
        else:
            yield path, command


def _exit_codes() -> Iterator[str]:
    yield "| code | error kind | what to do |"
    yield "|---|---|---|"
    yield "| 0 | | Nothing: all done. |"
    for error in errors.classes():
        yield f"| {_code(error)} | `{error.kind}` | {errors.advice(error)} |"
    yield "| 3 | | Look at `linq-etl runs`: some numbers failed, or something was held back. |"


def _code(error: type[errors.EtlError]) -> str:
    return "130, 143" if error is errors.RunInterruptedError else str(error.exit_code)


# Configuration


def _settings() -> Iterator[str]:
    yield "| key | default | value |"
    yield "|---|---|---|"
    for section, struct in config.SECTIONS.items():
        for key, hint in get_type_hints(struct, include_extras=True).items():
            description = next(
                (str(arg.description) for arg in get_args(hint) if isinstance(arg, Meta)),
                "a list of numbers, each as text or as a table: `number`, `label`, `token_env`",
            )
            yield f"| `{section}.{key}` | {_default(struct, key)} | {description} |"


def _default(struct: type[Struct], key: str) -> str:
    value = getattr(struct(), key)
    if value is None or value == ():
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _example_configuration() -> Iterator[str]:
    yield "```toml"
    yield (ROOT / "config.example.toml").read_text("utf-8").rstrip()
    yield "```"


# Tables


def _entities() -> Iterator[str]:
    yield "```mermaid"
    yield from mermaid()
    yield "```"


# A list that moves


def _deletion() -> Iterator[str]:
    def delete(rows: list[str]) -> str:
        rows.remove("A")
        return "A is deleted: every row moves up by one, and D slides onto page 1"

    yield from _walk_through(delete)


def _jump() -> Iterator[str]:
    def jump(rows: list[str]) -> str:
        rows.remove("F")
        rows.insert(0, "F")
        return "F gets a message and jumps to the head: A to E move down by one"

    yield from _walk_through(jump)


class _Api:
    """A list of eight chats, three to a page, that moves after the second request."""

    per_page = 3

    def __init__(self, move: Callable[[list[str]], str], ids: ChatIds) -> None:
        self._rows = list("ABCDEFGH")
        self._move = move
        self._ids = ids
        self._passes = 1
        self._seen: set[str] = set()
        self._requests = 0
        self.log = ["request  page  rows   total  new"]

    async def fetch(self, page: int) -> Page:
        total, last_page = len(self._rows), -(-len(self._rows) // self.per_page)
        shown = self._rows[(page - 1) * self.per_page : page * self.per_page]
        self._note(page, shown)
        if self._requests == 2:
            self._mark(self._move(self._rows))
        chats = tuple(Chat(id=ord(row)) for row in shown)
        now = datetime.now(UTC)
        return Page(page, self.per_page, total, last_page, chats, (), 0, now)

    def _note(self, page: int, shown: list[str]) -> None:
        if self._ids.passes > self._passes:
            self._passes = self._ids.passes
            self._mark(f"pass {self._passes}")
        self._requests += 1
        new = " ".join(row for row in shown if row not in self._seen)
        self._seen.update(shown)
        line = f"{self._requests:>7}  {page:>4}  {' '.join(shown):<7}{len(self._rows):>5}  {new}"
        self.log.append(line.rstrip())

    def _mark(self, text: str) -> None:
        self.log.append(f"         -- {text}")


def _walk_through(move: Callable[[list[str]], str]) -> Iterator[str]:
    """A real walk over such a list, one request at a time."""

    async def deliver(_: Page) -> None:
        return None

    with ChatIds() as ids:
        api = _Api(move, ids)
        verdict = asyncio.run(walk(BoundedFetch(api.fetch, max_passes=3), deliver, ids, width=1))
    yield "```text"
    yield from api.log
    yield f"         -- {verdict.completeness}: {verdict.distinct} of {verdict.total_count} seen"
    yield "```"


_BLOCKS: dict[str, Callable[[], Iterable[str]]] = {
    "commands": _commands,
    "deletion": _deletion,
    "demo": _demo_excerpt,
    "entities": _entities,
    "example configuration": _example_configuration,
    "exit codes": _exit_codes,
    "jump": _jump,
    "settings": _settings,
    "tables": lambda: markdown(level=3),
}

if __name__ == "__main__":
    main()
