"""The parts of the README that follow from the code; `python tests/readme.py` writes them anew."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import click
from msgspec import Meta, Struct

from etl import config, errors
from etl.cli.main import cli
from etl.db import tables

README = Path(__file__).parent.parent / "README.md"
_BLOCK = re.compile(r"(<!-- generated: ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(text: str) -> str:
    """The text with every generated block made anew."""
    return _BLOCK.sub(lambda m: "\n".join((m[1].rstrip(), *_BLOCKS[m[2]](), m[3])), text)


def _commands() -> Iterator[str]:
    yield "| command | does |"
    yield "|---|---|"
    for path, command in _walk("", cli):
        usage = command.make_context(path, [], resilient_parsing=True).command_path
        arguments = " ".join(
            parameter.make_metavar(click.Context(command))
            for parameter in command.params
            if isinstance(parameter, click.Argument)
        )
        options = ", ".join(f"`{option}`" for option in _options(command))
        summary = command.get_short_help_str(200).removesuffix(".")
        call = f"{usage} {arguments}".strip()
        yield f"| `{call}` | {'; '.join(filter(None, (summary, options)))} |"


def _walk(prefix: str, group: click.Group) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        path = f"{prefix} {name}".strip()
        if isinstance(command, click.Group):
            yield from _walk(path, command)
        else:
            yield path, command


def _options(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield parameter.opts[0]


def _exit_codes() -> Iterator[str]:
    yield "| code | error kind | what to do |"
    yield "|---|---|---|"
    yield "| 0 | | Nothing: all done. |"
    for error in _error_classes(errors.EtlError):
        yield f"| {_code(error)} | `{error.kind}` | {_first_sentence(error.__doc__ or '')} |"
    yield "| 3 | | Look at `linq-etl runs ID`: some numbers failed, or records were rejected. |"


def _error_classes(base: type[errors.EtlError]) -> Iterator[type[errors.EtlError]]:
    yield base
    for child in base.__subclasses__():
        yield from _error_classes(child)


def _code(error: type[errors.EtlError]) -> str:
    return "130, 143" if error is errors.RunInterruptedError else str(error.exit_code)


def _first_sentence(doc: str) -> str:
    return " ".join(doc.split("\n\n", maxsplit=1)[0].split())


def _configuration() -> Iterator[str]:
    yield "| key | default | value |"
    yield "|---|---|---|"
    for section, struct in config.SECTIONS.items():
        for key, hint in get_type_hints(struct, include_extras=True).items():
            default = _default(struct, key)
            description = next(
                (str(arg.description) for arg in get_args(hint) if isinstance(arg, Meta)),
                "a list of numbers, each as text or as a table: `number`, `label`, `token_env`",
            )
            yield f"| `{section}.{key}` | {default} | {description} |"


def _default(struct: type[Struct], key: str) -> str:
    value = getattr(struct(), key)
    if value is None or value == ():
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _tables() -> Iterator[str]:
    for table in tables.metadata.tables.values():
        yield f"\n### {table.name}\n\n{table.comment}\n"
        yield "| column | type | |"
        yield "|---|---|---|"
        for column in table.columns:
            key = " (key)" if column.primary_key else ""
            yield f"| `{column.name}`{key} | {_type(column.type)} | {column.comment} |"
    for name, comment in tables.VIEWS.items():
        yield f"\n### {name} (view)\n\n{comment}"


def _type(kind: object) -> str:
    names = {"UtcDateTime": "time", "BigInteger": "bigint", "JSON": "json"}
    return names.get(type(kind).__name__, type(kind).__name__.lower())


_BLOCKS: dict[str, Callable[[], Iterator[str]]] = {
    "commands": _commands,
    "exit codes": _exit_codes,
    "configuration": _configuration,
    "tables": _tables,
}

if __name__ == "__main__":
    README.write_text(rendered(README.read_text("utf-8")), "utf-8")
