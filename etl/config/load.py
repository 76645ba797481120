"""TOML file + environment -> one frozen `Config`, or one error that names every problem."""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, get_args, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, structs

from etl.config import database_url
from etl.config.secrets import (
    KEY_ENV,
    TOKEN_ENV,
    default_token,
    privacy_key,
    read_bytes,
    read_secret,
    token_of,
)
from etl.config.settings import (
    SECTIONS,
    Api,
    Config,
    Database,
    Log,
    Monitoring,
    PhoneNumber,
    Privacy,
    SecretUrl,
    Sync,
)
from etl.errors import ConfigError
from etl.phone import shortened, to_e164

ENV_PREFIX = "LINQ_ETL_"
CONFIG_ENV = "LINQ_ETL_CONFIG"
DEFAULT_PATH = Path("config.toml")
_MAX_FILE_BYTES = 1024 * 1024
_MAX_NUMBERS = 10_000
_MAX_PROBLEMS = 50  # shown at once
_DEEP_KEY = re.compile(r"""(?<!["'\w-])(?:["'\w-]++[ \t]*+\.[ \t]*+){50}""")


def load_config(
    path: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    needs_token: bool = True,
    needs_numbers: bool = True,
    needs_key: bool = False,
) -> Config:
    """Read the file, if any, and override it by the environment.

    Without `path`, the file is $LINQ_ETL_CONFIG, else ./config.toml if it exists. The privacy key
    is asked for if `needs_key`, else with the token where participants are hashed. Raises
    ConfigError with every problem at once, a line each: key, what is wrong, what to write.
    """
    raw = _file_settings(path, environ)
    problems: list[str] = []
    values = _sections(raw, _env_settings(environ, problems), problems)
    _check_urls(values, problems)
    entries = values["sync"].pop("phone_numbers", [])
    numbers = tuple(_phone_numbers(entries, environ if needs_token else None, problems))
    privacy = Privacy(**values["privacy"])
    asks_for_key = needs_key or (needs_token and privacy.participants == "hashed")
    config = Config(
        api=Api(**values["api"]),
        database=Database(**values["database"]),
        sync=Sync(phone_numbers=numbers, **values["sync"]),
        privacy=privacy,
        monitoring=_monitoring(values["monitoring"], problems, needs_secrets=needs_token),
        log=Log(**values["log"]),
        token=default_token(values["api"].get("token_file"), environ, problems, needs_token),
        privacy_key=privacy_key(
            privacy, environ, problems, reads=needs_token or needs_key, needed=asks_for_key
        ),
    )
    if needs_token:
        problems.extend(_token_problems(config, entries))
    if needs_numbers and not (entries or config.sync.all_phone_numbers):
        problems.append(_NO_NUMBERS)
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        shown = problems[:_MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise ConfigError("The configuration has problems:\n" + "\n".join(f"  {p}" for p in shown))
    return config


def load_monitoring(
    path: Path | None = None, environ: Mapping[str, str] = os.environ
) -> Monitoring:
    """Section [monitoring] by itself, so that also a run without a valid Config is reported.

    What is invalid in it, or in a file as a whole, is left out; `load_config` says why.
    """
    try:
        section = _file_settings(path, environ).get("monitoring")
    except ConfigError:
        section = None
    given = section if isinstance(section, dict) else {}
    given = {**given, **_env_settings(environ, [])["monitoring"]}
    return _monitoring(dict(_checked("monitoring", Monitoring, given, [])), [], needs_secrets=True)


def _file_settings(path: Path | None, environ: Mapping[str, str]) -> dict[str, Any]:
    named = path or (Path(environ[CONFIG_ENV]) if environ.get(CONFIG_ENV) else None)
    file = named or DEFAULT_PATH
    try:
        return _toml(read_bytes(file, _MAX_FILE_BYTES))
    except FileNotFoundError:
        if named:
            raise ConfigError(
                f"Config file {file} not found. Start with: cp config.example.toml {file}"
            ) from None
        return {}
    except tomllib.TOMLDecodeError as error:
        # Only the position: the parser's message may quote a misplaced token.
        where = re.search(r"line \d+, column \d+|end of document", str(error))
        raise ConfigError(f"{file}: not valid TOML{f', {where[0]}' if where else ''}") from None
    except (ValueError, RecursionError):
        raise ConfigError(
            f"{file}: not valid TOML: not UTF-8, or its size, numbers or nesting are out of bounds"
        ) from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None


def _toml(content: bytes) -> dict[str, Any]:
    """The settings. Raises ValueError if the content is invalid, or could take hours to parse."""
    text = content.decode("utf-8-sig")
    if len(content) > _MAX_FILE_BYTES or _DEEP_KEY.search(text):
        raise ValueError
    return tomllib.loads(text)


def _env_settings(environ: Mapping[str, str], problems: list[str]) -> dict[str, dict[str, Any]]:
    config: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for variable, value in environ.items():
        section, _, key = variable.removeprefix(ENV_PREFIX).lower().partition("__")
        ours = variable.startswith(ENV_PREFIX) and not variable.startswith(f"{ENV_PREFIX}TEST_")
        if not (ours and value) or variable in {CONFIG_ENV, KEY_ENV}:
            continue
        if section in SECTIONS and key in SECTIONS[section].__struct_fields__:
            config[section][key] = _list(value) if key == "phone_numbers" else value
        else:
            problems.append(f"{_shown(variable)}: no such setting; {_suggestion(section, key)}")
    return config


def _sections(
    raw: Mapping[str, Any], env: Mapping[str, Mapping[str, Any]], problems: list[str]
) -> dict[str, dict[str, Any]]:
    """The valid values by section and key; invalid and unknown ones are added to `problems`."""
    for name in sorted(raw.keys() - SECTIONS.keys()):
        problems.append(f"{_shown(name)}: no such section; the sections are {', '.join(SECTIONS)}")
    values: dict[str, dict[str, Any]] = {}
    for name, struct in SECTIONS.items():
        section = raw.get(name, {})
        if not isinstance(section, dict):
            problems.append(f"{name}: write it as a section, [{name}]")
            section = {}
        for key in sorted(section.keys() - set(struct.__struct_fields__)):
            problems.append(f"{name}.{_shown(key)}: no such setting; {_suggestion(name, key)}")
        values[name] = dict(_checked(name, struct, {**section, **env[name]}, problems))
    return values


def _checked(
    section: str, struct: type[Struct], given: Mapping[str, Any], problems: list[str]
) -> Iterator[tuple[str, Any]]:
    for key, hint in get_type_hints(struct, include_extras=True).items():
        if key not in given:
            continue
        if key == "phone_numbers":
            yield key, given[key]
            continue
        try:
            # Not strict, because the environment has only strings: "50" must pass for 50.
            yield key, msgspec.convert(given[key], hint, strict=False, dec_hook=_secret_url)
        except msgspec.ValidationError:
            meta = next(arg for arg in get_args(hint) if isinstance(arg, Meta))
            # Not the value: it may be a misplaced token.
            problems.append(f"{section}.{key}: invalid value; expected {meta.description}")


def _secret_url(_: type[SecretUrl], given: Any) -> SecretUrl:
    if not isinstance(given, str) or not _is_http_url(given.strip()):
        raise ValueError
    return SecretUrl(given.strip())


def _suggestion(section: str, key: str) -> str:
    known = {f: f"{name}.{f}" for name, s in SECTIONS.items() for f in s.__struct_fields__}
    close = difflib.get_close_matches(key or section, known, n=1)
    return f"did you mean {known[close[0]]}?" if close else "see config.example.toml"


def _shown(name: str) -> str:
    """The name of a setting, unless it could be a misplaced token."""
    return name if re.fullmatch(r"[A-Za-z_]{1,60}", name) else "(a name that is not shown)"


def _list(text: str) -> list[str]:
    return [entry for entry in text.split(",") if entry.strip()]


_NO_NUMBERS = (
    'sync.phone_numbers: there is none; write e.g. ["+13343284472"], or '
    "all_phone_numbers = true (`linq-etl phone-numbers` lists them)"
)
_NUMBER_KEYS = {"number", "label", "token_env"}


def _phone_numbers(
    entries: Any, environ: Mapping[str, str] | None, problems: list[str]
) -> Iterator[PhoneNumber]:
    """The valid numbers; without `environ`, without tokens of their own."""
    if not isinstance(entries, list):
        problems.append('sync.phone_numbers: write a list, e.g. ["+13343284472"]')
        return
    if len(entries) > _MAX_NUMBERS:
        problems.append(f"sync.phone_numbers: write at most {_MAX_NUMBERS} numbers")
        return
    seen: dict[str, int] = {}
    for position, entry in enumerate(entries, start=1):
        key = f"sync.phone_numbers, entry {position}"
        try:
            phone_number = _phone_number(entry, environ)
        except ValueError as error:
            problems.append(f"{key}: {error}")
            continue
        first = seen.setdefault(phone_number.e164, position)
        if first != position:
            problems.append(
                f"{key}: {phone_number.e164} is already entry {first}; delete one of them"
            )
        else:
            yield phone_number


def _phone_number(entry: Any, environ: Mapping[str, str] | None) -> PhoneNumber:
    table = {"number": entry} if isinstance(entry, str) else entry
    if (
        not isinstance(table, dict)
        or "number" not in table
        or not table.keys() <= _NUMBER_KEYS
        or not all(isinstance(value, str) for value in table.values())
    ):
        raise ValueError(
            'write "+13343284472" or { number = "+13343284472", label = "Support", '
            'token_env = "LINQ_TOKEN_SUPPORT" }'
        )
    number, label = to_e164(table["number"]), table.get("label")
    if label and (len(label) > 255 or re.search(r"[\x00-\x1f\x7f]", label)):
        raise ValueError("write a label in one line of at most 255 characters")
    variable = table.get("token_env")
    if not variable or environ is None:
        return PhoneNumber(number, label)
    named = f'"{label}"' if label else shortened(number)
    owner = f"token_env of {named}"
    if environ.get(variable):
        return PhoneNumber(number, label, token_of(environ[variable], owner))
    # Not a name in another form than $LINQ_TOKEN_2: it may be a misplaced token.
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,59}", variable):
        raise ValueError(f"{owner} does not name a variable that is set")
    raise ValueError(f"${variable} ({owner}) is not set")


def _monitoring(values: dict[str, Any], problems: list[str], *, needs_secrets: bool) -> Monitoring:
    """The section, with the URL from its file. A command that makes no request needs no secrets."""
    monitoring, source = Monitoring(**values), "monitoring.ping_url_file"
    if not monitoring.ping_url_file:
        return monitoring
    if monitoring.ping_url:
        problems.append(f"{source}: delete it, or monitoring.ping_url: both name a URL")
        return structs.replace(monitoring, ping_url=None)
    try:
        url = _secret_url(SecretUrl, read_secret(monitoring.ping_url_file, source))
    except ValueError as error:
        if needs_secrets:
            problem = f"{source}: holds no usable URL; put it there, one line, http or https"
            problems.append(str(error) or problem)
        return monitoring
    return structs.replace(monitoring, ping_url=url)


def _token_problems(config: Config, entries: Any) -> Iterable[str]:
    # An invalid entry may have a token of its own, so it does not ask for the common one.
    numbers = config.sync.phone_numbers
    needed = config.sync.all_phone_numbers or not entries or not all(n.token for n in numbers)
    if needed and not (config.token or config.api.token_file):
        yield f"there is no token: set ${TOKEN_ENV}, or api.token_file to a file that holds it"


def _check_urls(values: dict[str, dict[str, Any]], problems: list[str]) -> None:
    """Normalise the database's URL. No URL is shown, because it may hold a password."""
    if not _is_base_url(values["api"].get("base_url", Api().base_url)):
        hint = get_type_hints(Api, include_extras=True)["base_url"]
        problems.append(f"api.base_url: invalid value; expected {hint.__metadata__[0].description}")
    database = values["database"]
    try:
        if "url" in database:
            database["url"] = database_url.normalised(database["url"])
    except ValueError as error:
        problems.append(f"database.url: invalid value; expected {error}")
    else:
        _check_schema(Database(**database), problems)


def _check_schema(database: Database, problems: list[str]) -> None:
    if database.schema is None:
        return
    if not database.url.startswith("postgresql"):
        problems.append("database.schema: delete it: only a PostgreSQL database has schemas")
    elif not database_url.is_schema(database.schema):
        hint = get_type_hints(Database, include_extras=True)["schema"]
        expected = hint.__metadata__[0].description
        problems.append(f"database.schema: invalid value; expected {expected}")


def _is_base_url(url: str) -> bool:
    if not _is_http_url(url) or set(url) & set("?@"):
        return False
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port  # Raises ValueError if it is no number up to 65535.
    except ValueError:
        return False
    if not url.isprintable() or not url.isascii() or len(url) > 2000 or port == 0:
        return False
    if not re.fullmatch(r"[A-Za-z0-9.:_-]+", parts.hostname or "") or set(url) & set("# "):
        return False
    return parts.scheme in {"http", "https"}


def is_loopback(host: str) -> bool:
    """Whether a request to `host` stays on this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
