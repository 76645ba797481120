"""What can go wrong, by what the operator does next.

Each class carries its exit code and the `kind` that the run log stores; the documented table of
exit codes is generated from these docstrings. A message says what happened, then what to do. It
never holds the token, a full phone number from the API, or text that people wrote.
"""

from collections.abc import Iterator
from typing import ClassVar


class EtlError(Exception):
    """Look at the log, then report the unexpected error."""

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "unexpected"


class ConfigError(EtlError):
    """Fix the configuration or the command line."""

    exit_code = 2
    kind = "config"


class RequestRefusedError(EtlError):
    """Fix the phone number or the settings: the API refused the request."""

    exit_code = 3
    kind = "refused"

    def __init__(self, message: str, *, status: int, code: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class TokenRefusedError(EtlError):
    """Get a valid token: the API refused this one, and retrying cannot help."""

    exit_code = 4
    kind = "token"


class AccessDeniedError(TokenRefusedError):
    """Use the token that the number belongs to: this one is valid but has no access."""


class ApiUnavailableError(EtlError):
    """Run again later: the API stayed unreachable or gave broken answers through all retries."""

    exit_code = 5
    kind = "unavailable"


class ApiThrottledError(ApiUnavailableError):
    """Wait longer or send fewer requests: the API kept answering 429."""

    kind = "throttled"


class DatabaseError(EtlError):
    """Fix the database: it is unreachable, full, read-only or denies permission."""

    exit_code = 6
    kind = "database"


class DatabaseUnavailableError(DatabaseError):
    """Check that the database runs and is not locked: it was unavailable for too long."""


class DatabaseConflictError(DatabaseError):
    """Run it again: another transaction won, several times in a row."""


class SchemaError(DatabaseError):
    """Upgrade the schema, or the program."""

    kind = "schema"


class BusyError(EtlError):
    """Wait for the other run that holds the numbers."""

    exit_code = 7
    kind = "busy"


class LeaseLostError(BusyError):
    """Let the other run finish: it took over a number while this process was stalled."""

    kind = "lease_lost"


class RunInterruptedError(EtlError):
    """Run it again: SIGINT or SIGTERM ended the run."""

    kind = "interrupted"

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted")
        self.exit_code = 128 + signal_number  # type: ignore[misc]  # 130 for SIGINT, 143 for SIGTERM


def advice(error: type[EtlError]) -> str:
    """What the operator does next, in a sentence."""
    return " ".join((error.__doc__ or "").partition("\n\n")[0].split())


def classes(base: type[EtlError] = EtlError) -> Iterator[type[EtlError]]:
    """Every class of errors, each before its children."""
    yield base
    for child in base.__subclasses__():
        yield from classes(child)


def advice_by_kind() -> dict[str, str]:
    """The advice for each kind of error; of several classes that of the most general one."""
    return {each.kind: advice(each) for each in reversed([*classes()])}
