"""What can go wrong, typed by what the operator does next.

Each class carries its exit code and the `kind` that the run log stores; the README's table of
exit codes is this file. Messages are written for the operator: what happened, then what to do.
They never hold the token, a full phone number from the API, or anything that people wrote.
"""

from typing import ClassVar


class EtlError(Exception):
    """Something unexpected: look at the log, then report it."""

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "unexpected"


class ConfigError(EtlError):
    """Mend the configuration or the command line."""

    exit_code = 2
    kind = "config"


class RequestRefusedError(EtlError):
    """The API understood the request and refused it: mend the number or the settings."""

    exit_code = 3
    kind = "refused"

    def __init__(self, message: str, *, status: int, code: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class TokenRefusedError(EtlError):
    """Get a valid token; nothing else helps, so nothing is retried."""

    exit_code = 4
    kind = "token"


class AccessDeniedError(TokenRefusedError):
    """The token is valid and may not read that: use the one that the number belongs to."""


class ApiUnavailableError(EtlError):
    """Wait and run again: the API stayed unreachable, broken or unreadable through all retries."""

    exit_code = 5
    kind = "unavailable"


class ApiThrottledError(ApiUnavailableError):
    """Wait longer or ask for less: the API kept answering 429."""

    kind = "throttled"


class DatabaseError(EtlError):
    """Mend the database: unreachable, full, read-only or not permitted."""

    exit_code = 6
    kind = "database"


class SchemaError(DatabaseError):
    """Upgrade the schema, or the program."""

    kind = "schema"


class BusyError(EtlError):
    """Another run holds the numbers: wait for it."""

    exit_code = 7
    kind = "busy"


class LeaseLostError(BusyError):
    """Another run took this number over while this process was stalled; nothing more is written."""

    kind = "lease_lost"


class RunInterruptedError(EtlError):
    """SIGINT or SIGTERM: run it again when convenient."""

    kind = "interrupted"

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted")
        self.exit_code = 128 + signal_number  # type: ignore[misc]  # 130 for SIGINT, 143 for SIGTERM
