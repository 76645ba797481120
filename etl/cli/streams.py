"""The standard streams: nothing that happens to them ends a command.

A reader may close its pipe, a disk may be full, a terminal may vanish or know only ASCII. What
cannot be written is dropped, so that a job goes on and its exit code tells of the job.
"""

import io
import os
import select
import sys
from typing import Any


class _Descriptor(io.FileIO):
    """Writes to a standard stream's descriptor; `lost` is the first error, a closed pipe aside."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.lost: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # Full, and not blocking.
                select.select([], [self], [])
        except BrokenPipeError:
            return len(data)
        except OSError as error:
            self.lost = self.lost or error
            return len(data)
        return written


def protect_streams() -> None:
    """Make the process's standard streams such that writing to them never fails.

    A closed one becomes the null device: otherwise the next file or socket would get its number,
    and what is printed would be written there.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (_protected(sys.stdout, 1), _protected(sys.stderr, 2))


def _protected(stream: Any, descriptor: int) -> io.TextIOWrapper:
    """`stream` is None if its descriptor was closed."""
    raw = _Descriptor(descriptor)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor == 2 or raw.isatty(),
    )


def lost_output() -> str | None:
    """Why something was not written to stdout, other than to a closed pipe; said once."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(raw, _Descriptor) or raw.lost is None:
        return None
    reason, raw.lost = raw.lost.strerror, None
    return reason
