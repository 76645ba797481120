"""A file that is replaced at once, so that no one reads half of it."""

import os
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile


def write_whole(path: Path, content: bytes, mode: int) -> None:
    """Replace the file, or create it, with these permissions. Raises OSError."""
    # Of a name that the collector of metrics, which reads what ends in .prom, passes over.
    with NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
    ) as new:
        try:
            new.write(content)
            new.flush()
            os.fchmod(new.fileno(), mode)
            Path(new.name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(new.name).unlink()
            raise


def problem_of(path: Path) -> str | None:
    """Why the file cannot be written; None if it can be. Writes nothing."""
    if path.is_dir():
        return "it is a folder"
    if path.exists() and not path.is_file():
        return "it is not a file that can be replaced"
    if not path.parent.is_dir():
        return "its folder does not exist"
    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
        return "its folder may not be written"
    return None
