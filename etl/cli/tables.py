"""Tables as lines of text, which fit a terminal without breaking a number or losing a row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from textwrap import wrap
from typing import Any

from rich.cells import cell_len, set_cell_size

_GAP = 2


@dataclass(frozen=True, slots=True)
class Column:
    """A column: the key of its values, its title, and how narrow its texts may be cut, if at all.

    Numbers are aligned to the right.
    """

    key: str
    title: str = ""
    cut_to: int | None = None
    right: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """A table's lines: its head, and the lines of each row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def lines(self) -> Iterator[str]:
        """All lines in order."""
        yield from self.head
        for row in self.rows:
            yield from row


def layout(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], width: int | None = None
) -> Layout:
    """Lay out the rows in at most `width` cells.

    What does not fit has a line for each value instead.
    """
    titles = [column.title or column.key for column in columns]
    texts = [[as_text(row.get(column.key)) for column in columns] for row in rows]
    widths = [
        max(map(cell_len, (title, *(row[n] for row in texts)))) for n, title in enumerate(titles)
    ]
    fitted = _fitted(widths, columns, titles, width)
    if fitted is None:
        return Layout((), tuple(_block(titles, row, width or 0) for row in texts))
    head = (_line(titles, columns, fitted),)
    return Layout(head, tuple((_line(row, columns, fitted),) for row in texts))


def as_text(value: Any) -> str:
    """A value as people read it, on one line: empty for null, times to the second."""
    if value is None:
        return ""
    text = value.isoformat(" ", "seconds") if isinstance(value, datetime) else str(value)
    return one_line(text)


def one_line(text: str) -> str:
    """The text without line breaks and other control characters."""
    if text.isprintable():
        return text
    return "".join(" " if ord(c) < 32 or c in _BREAKS else c for c in text)


def folded(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` characters, broken between words only."""
    return wrap(text, max(width, 20), break_long_words=False, break_on_hyphens=False)


# What ends a line, or begins a command to a terminal, beside the characters below 32.
_BREAKS = frozenset(chr(code) for code in (*range(0x7F, 0xA0), 0x2028, 0x2029))


def _fitted(
    widths: Sequence[int], columns: Sequence[Column], titles: Sequence[str], width: int | None
) -> list[int] | None:
    """The columns' widths after cutting; None if that is not enough."""
    fitted = [*widths]
    if width is None:
        return fitted
    excess = sum(fitted) + _GAP * (len(fitted) - 1) - width
    for n, column in sorted(enumerate(columns), key=lambda item: -widths[item[0]]):
        if excess <= 0:
            break
        if column.cut_to is not None:
            least = max(column.cut_to, cell_len(titles[n]))
            saved = min(excess, max(fitted[n] - least, 0))
            fitted[n] -= saved
            excess -= saved
    return fitted if excess <= 0 else None


def _line(texts: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    cells = []
    for text, column, width in zip(texts, columns, widths, strict=True):
        spare = width - cell_len(text)
        if spare < 0:
            cells.append(set_cell_size(text, width - 1) + "…")
        else:
            cells.append(" " * spare + text if column.right else text + " " * spare)
    return (" " * _GAP).join(cells).rstrip()


def _block(titles: Sequence[str], texts: Sequence[str], width: int) -> tuple[str, ...]:
    """A row as a line for each value, and an empty one; a long text has several."""
    indent = max(map(cell_len, titles)) + _GAP
    lines = []
    for title, text in zip(titles, texts, strict=True):
        if indent + cell_len(text) <= width:
            lines.append(f"{title:<{indent}}{text}".rstrip())
        else:
            lines += [title, *folded(text, width)]
    return (*lines, "")
