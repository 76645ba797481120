"""The secrets: read from a variable or a file, and never shown.

No problem quotes a secret, or the path of its file: that may be a misplaced secret.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from etl.config.settings import Privacy, PrivacyKey, Token

TOKEN_ENV: Final = "LINQ_INTEGRATION_TOKEN"  # noqa: S105  # the variable's name, not a token
KEY_ENV: Final = "LINQ_ETL_PRIVACY_KEY"
_MAX_SECRET_BYTES: Final = 8 * 1024
_MIN_KEY: Final = 32  # characters
_MIN_DIFFERENT: Final = 8  # characters of a key, so that it is no placeholder


def default_token(
    token_file: str | None, environ: Mapping[str, str], problems: list[str], needed: bool
) -> Token | None:
    """The token for numbers without one of their own, from the variable or the file."""
    try:
        if environ.get(TOKEN_ENV):
            return token_of(environ[TOKEN_ENV], f"${TOKEN_ENV}")
        if not token_file:
            return None
        return token_of(read_secret(token_file, "api.token_file"), "api.token_file")
    except ValueError as error:
        problem = str(error)
    if not needed:
        return None
    problems.append(problem)
    return Token("unusable")  # so that it is not reported as missing too


def read_secret(path: str, source: str) -> str:
    """The text of a file that holds a secret. Raises ValueError, which names `source`."""
    try:
        return read_bytes(Path(path), _MAX_SECRET_BYTES).decode("utf-8-sig")
    except OSError as error:
        # Not the path: it may be a misplaced secret.
        raise ValueError(f"{source}: that file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{source}: that is not a text file") from None


def token_of(text: str, source: str) -> Token:
    """The token that the text holds. Raises ValueError, which names `source`."""
    value = text.strip()
    if not re.fullmatch(f"[!-~]{{1,{_MAX_SECRET_BYTES}}}", value):
        raise ValueError(f"{source}: holds no usable token; put the bare token there, one line")
    return Token(value)


def privacy_key(
    privacy: Privacy,
    environ: Mapping[str, str],
    problems: list[str],
    *,
    reads: bool,
    needed: bool,
) -> PrivacyKey | None:
    """The key of the hashes; None if there is none, or unless the command `reads` secrets."""
    if not reads:
        return None
    try:
        if environ.get(KEY_ENV):
            return _key(environ[KEY_ENV], f"${KEY_ENV}")
        if privacy.key_file:
            return _key(read_secret(privacy.key_file, "privacy.key_file"), "privacy.key_file")
    except ValueError as error:
        problems.append(str(error))
        return None
    if needed:
        problems.append(
            f"privacy.key_file: there is no key; set ${KEY_ENV}, or privacy.key_file to a file "
            "that holds it, e.g. from: openssl rand -hex 32"
        )
    return None


def _key(text: str, source: str) -> PrivacyKey:
    value = text.strip()
    if not re.fullmatch(f"[!-~]{{{_MIN_KEY},{_MAX_SECRET_BYTES}}}", value):
        raise ValueError(
            f"{source}: holds no usable key; put {_MIN_KEY} characters or more there, one line, "
            "e.g. from: openssl rand -hex 32"
        )
    if len(set(value)) < _MIN_DIFFERENT:
        raise ValueError(f"{source}: that key can be guessed; make one by: openssl rand -hex 32")
    return PrivacyKey(value.encode())


def read_bytes(file: Path, max_bytes: int) -> bytes:
    """The file's content, or a little more than `max_bytes` of it."""
    with file.open("rb") as opened:
        return opened.read(max_bytes + 1)
