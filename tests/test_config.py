"""The configuration: its sources, its defaults, and every problem reported at once."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from etl.config import (
    SECTIONS,
    Api,
    Config,
    Database,
    Log,
    Monitoring,
    PhoneNumber,
    Privacy,
    PrivacyKey,
    Sync,
    Token,
    is_loopback,
    load_config,
    load_monitoring,
)
from etl.errors import ConfigError

SECRET = "sk-live-4f9aSECRET"
BARE = "a4f9SECRETc0de"  # a token that could be the name of a variable
KEY = "f3c1a97be2054d68" * 2
WITH_TOKEN = {"LINQ_INTEGRATION_TOKEN": "a-token"}
A_NUMBER = '[sync]\nphone_numbers = ["+13343284472"]\n'

Loader = Callable[..., Config]


@pytest.fixture
def load_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """Loads a text as the file, with only the given environment, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def load_text(text: str, environ: Mapping[str, str] = WITH_TOKEN, **needs: bool) -> Config:
        path = tmp_path / "linq.toml"
        path.write_text(text, "utf-8")
        return load_config(path, environ, **needs)

    return load_text


def problems(load_toml: Loader, text: str, environ: Mapping[str, str] = WITH_TOKEN) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_toml(text, environ)
    return [line.strip() for line in str(raised.value).splitlines()[1:]]


def test_every_setting_has_a_default_but_the_numbers_and_the_token(load_toml: Loader) -> None:
    """A number and a token are a complete configuration."""
    assert load_toml(A_NUMBER) == Config(
        api=Api(
            base_url="https://api.linqapp.com",
            per_page=100,
            timeout_seconds=30,
            max_attempts=8,
            max_concurrency=8,
            max_requests_per_second=None,
            token_file=None,
        ),
        database=Database(url="sqlite:///linq.db", auto_upgrade=True),
        sync=Sync(
            phone_numbers=(PhoneNumber("+13343284472"),),
            all_phone_numbers=False,
            max_passes=3,
            max_confirmations=2000,
            lease_seconds=60,
        ),
        privacy=Privacy(participants="plain", key_file=None),
        monitoring=Monitoring(),
        log=Log(json=False),
        token=Token("a-token"),
        privacy_key=None,
    )


def test_the_file_sets_everything(load_toml: Loader, tmp_path: Path) -> None:
    """Every value of the file ends up in the configuration."""
    (tmp_path / "token").write_text("from-the-file\n")
    (tmp_path / "key").write_text(KEY + "\n")
    text = """
        [api]
        base_url = "http://127.0.0.1:8080/linq"
        per_page = 25
        timeout_seconds = 2.5
        max_attempts = 3
        max_concurrency = 2
        max_requests_per_second = 5
        token_file = "token"
        [database]
        url = "postgresql://etl@db/linq"
        schema = "linq"
        auto_upgrade = false
        [sync]
        phone_numbers = ["+13343284472"]
        all_phone_numbers = true
        max_passes = 1
        max_confirmations = 0
        max_requests = 500
        lease_seconds = 10
        [privacy]
        participants = "hashed"
        key_file = "key"
        [monitoring]
        metrics_file = "linq.prom"
        [log]
        json = true
    """

    assert load_toml(text, {}) == Config(
        api=Api(
            base_url="http://127.0.0.1:8080/linq",
            per_page=25,
            timeout_seconds=2.5,
            max_attempts=3,
            max_concurrency=2,
            max_requests_per_second=5,
            token_file="token",
        ),
        database=Database(url="postgresql://etl@db/linq", schema="linq", auto_upgrade=False),
        sync=Sync(
            phone_numbers=(PhoneNumber("+13343284472"),),
            all_phone_numbers=True,
            max_passes=1,
            max_confirmations=0,
            max_requests=500,
            lease_seconds=10,
        ),
        privacy=Privacy(participants="hashed", key_file="key"),
        monitoring=Monitoring(metrics_file="linq.prom"),
        log=Log(json=True),
        token=Token("from-the-file"),
        privacy_key=PrivacyKey(KEY.encode()),
    )


def test_the_environment_beats_the_file(load_toml: Loader) -> None:
    """A variable replaces the file's value, even an invalid one."""
    text = A_NUMBER + '[api]\nper_page = 700\nmax_attempts = 2\n[database]\nurl = "sqlite:///a.db"'
    environ = WITH_TOKEN | {
        "LINQ_ETL_API__PER_PAGE": "50",
        "LINQ_ETL_API__TIMEOUT_SECONDS": "1.5",
        "LINQ_ETL_DATABASE__URL": "postgresql://etl@db/linq",
        "LINQ_ETL_DATABASE__AUTO_UPGRADE": "false",
        "LINQ_ETL_SYNC__PHONE_NUMBERS": "+13125550100, (312) 555-0101",
        "LINQ_ETL_LOG__JSON": "true",
    }

    config = load_toml(text, environ)

    assert config.api == Api(per_page=50, timeout_seconds=1.5, max_attempts=2)
    assert config.database == Database(url="postgresql://etl@db/linq", auto_upgrade=False)
    assert config.sync.phone_numbers == (PhoneNumber("+13125550100"), PhoneNumber("+13125550101"))
    assert config.log == Log(json=True)


def test_no_file_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment alone can be the configuration."""
    monkeypatch.chdir(tmp_path)
    environ = WITH_TOKEN | {"LINQ_ETL_SYNC__PHONE_NUMBERS": "+13343284472"}

    assert load_config(None, environ).sync.phone_numbers == (PhoneNumber("+13343284472"),)


@pytest.mark.parametrize("written", ["+13343284472,", ",+13343284472, ,", " +13343284472 , "])
def test_a_trailing_comma_is_no_number(load_toml: Loader, written: str) -> None:
    """Empty entries between commas are ignored."""
    config = load_toml("", WITH_TOKEN | {"LINQ_ETL_SYNC__PHONE_NUMBERS": written})

    assert config.sync.phone_numbers == (PhoneNumber("+13343284472"),)


def test_commas_alone_are_no_numbers(load_toml: Loader) -> None:
    """A variable that holds only commas configures no number."""
    (problem,) = problems(load_toml, "", WITH_TOKEN | {"LINQ_ETL_SYNC__PHONE_NUMBERS": " , "})

    assert problem.startswith("sync.phone_numbers: there is none; ")


def test_a_variable_of_the_tests_is_not_a_setting(load_toml: Loader) -> None:
    """LINQ_ETL_TEST_… variables are not reported as misspelled settings."""
    assert load_toml(A_NUMBER, WITH_TOKEN | {"LINQ_ETL_TEST_URL": "x"}).api == Api()


def test_an_empty_variable_counts_as_unset(load_toml: Loader) -> None:
    """A variable that is set to nothing changes nothing."""
    environ = WITH_TOKEN | {"LINQ_ETL_API__PER_PAGE": "", "LINQ_ETL_CONFIG": ""}

    assert load_toml(A_NUMBER, environ).api == Api()


def test_the_file_is_named_or_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is the one given, else $LINQ_ETL_CONFIG, else ./config.toml."""
    monkeypatch.chdir(tmp_path)
    for name, per_page in (("given", 1), ("environment", 2), ("config", 3)):
        (tmp_path / f"{name}.toml").write_text(f"{A_NUMBER}[api]\nper_page = {per_page}")
    named = WITH_TOKEN | {"LINQ_ETL_CONFIG": "environment.toml"}

    assert load_config(Path("given.toml"), named).api.per_page == 1
    assert load_config(None, named).api.per_page == 2
    assert load_config(None, WITH_TOKEN).api.per_page == 3


def test_a_named_file_must_exist(load_toml: Loader, tmp_path: Path) -> None:
    """A file that was asked for and does not exist is an error with the command to run."""
    environ = WITH_TOKEN | {"LINQ_ETL_SYNC__PHONE_NUMBERS": "+13343284472"}

    with pytest.raises(ConfigError) as raised:
        load_config(tmp_path / "other.toml", environ)

    path = f"{tmp_path}/other.toml"
    start = f"Start with: cp config.example.toml {path}"
    assert str(raised.value) == f"Config file {path} not found. {start}"


@pytest.mark.parametrize("content", [b"[api\n", b"\xff\xfe\x00", b"per_page 5"])
def test_a_file_that_is_not_toml(content: bytes, tmp_path: Path) -> None:
    """The error names a file that is not valid TOML."""
    (tmp_path / "linq.toml").write_bytes(content)

    with pytest.raises(ConfigError, match=r"linq\.toml: not valid TOML[:,] "):
        load_config(tmp_path / "linq.toml", WITH_TOKEN)


def test_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    """A byte order mark at the start of the file is skipped."""
    (tmp_path / "linq.toml").write_bytes(b"\xef\xbb\xbf" + A_NUMBER.encode())

    config = load_config(tmp_path / "linq.toml", WITH_TOKEN)

    assert config.sync.phone_numbers == (PhoneNumber("+13343284472"),)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """The error names a folder in place of the file, with the system's reason."""
    with pytest.raises(ConfigError) as raised:
        load_config(tmp_path, WITH_TOKEN)

    assert f"{tmp_path}: cannot be read: Is a directory" in str(raised.value)


def test_every_problem_is_reported_at_once(load_toml: Loader) -> None:
    """Each problem has its line: key, what is wrong, what to write instead."""
    text = """
        [api]
        base_url = "http://api.linqapp.com"
        per_page = 0
        per_pages = 50
        timeout_seconds = "soon"
        max_attempts = 21
        max_concurrency = true
        [database]
        url = "mssql://db/linq"
        auto_upgrade = "perhaps"
        [sync]
        phone_numbers = [
            "x",
            "3343284472",
            { label = "?" },
            { number = "+13125550100", token_env = "NONE" },
            { number = "+13125550101", label = "Typo", token_env = "TOK2" },
        ]
        max_passes = 1.5
        max_requests = 0
        lease_seconds = 5
        [log]
        json = 3
        [numbers]
    """
    a_number = (
        'write "+13343284472" or { number = "+13343284472", label = "Support", '
        'token_env = "LINQ_TOKEN_SUPPORT" }'
    )

    assert sorted(problems(load_toml, text, {"LINQ_ETL_SYNC__ALL_PHONE_NUMBERS": "some"})) == [
        'api.base_url: invalid value; expected an https URL, e.g. "https://api.linqapp.com" '
        "(http on loopback only)",
        "api.max_attempts: invalid value; expected tries per request, a whole number from 1 to 20",
        "api.max_concurrency: invalid value; expected requests at a time, "
        "a whole number from 1 to 64",
        "api.per_page: invalid value; expected a whole number from 1 to 100",
        "api.per_pages: no such setting; did you mean api.per_page?",
        "api.timeout_seconds: invalid value; expected seconds for one whole request, 0.1 to 600",
        "database.auto_upgrade: invalid value; expected true or false",
        'database.url: invalid value; expected "sqlite:///FILE.db", '
        '"postgresql://USER@HOST/DATABASE" or "mysql://USER@HOST/DATABASE"',
        "log.json: invalid value; expected true or false",
        "numbers: no such section; the sections are api, database, sync, privacy, monitoring, log",
        "sync.all_phone_numbers: invalid value; expected true or false",
        "sync.lease_seconds: invalid value; expected a whole number of seconds from 10 to 3600",
        "sync.max_passes: invalid value; expected passes over a moving list, "
        "a whole number from 1 to 10",
        "sync.max_requests: invalid value; expected requests of a whole run, "
        "1 to 1000000000, or leave it out",
        "sync.phone_numbers, entry 1: that is not a phone number; "
        "write it with country code, e.g. +13343284472",
        f"sync.phone_numbers, entry 3: {a_number}",
        "sync.phone_numbers, entry 4: $NONE (token_env of …0100) is not set",
        'sync.phone_numbers, entry 5: $TOK2 (token_env of "Typo") is not set',
        "there is no token: set $LINQ_INTEGRATION_TOKEN, or api.token_file to a file that holds it",
    ]


@pytest.mark.parametrize(
    ("written", "rate"), [("5", 5), ("0.5", 0.5), ("0.001", 0.001), ("100000", 100_000)]
)
def test_a_valid_rate(load_toml: Loader, written: str, rate: float) -> None:
    """Requests per second may be a fraction, in the file or in the environment."""
    in_file = load_toml(f"{A_NUMBER}[api]\nmax_requests_per_second = {written}")
    variable = {"LINQ_ETL_API__MAX_REQUESTS_PER_SECOND": written}
    in_environment = load_toml(A_NUMBER, WITH_TOKEN | variable)

    assert in_file.api.max_requests_per_second == rate
    assert in_environment.api.max_requests_per_second == rate


@pytest.mark.parametrize("written", ["0", "-1", "1e-300", "100001", "nan", "inf", "-inf", "true"])
def test_an_invalid_rate(load_toml: Loader, written: str) -> None:
    """A rate so low that no request would start, and what is not a number, are refused."""
    expected = [
        "api.max_requests_per_second: invalid value; "
        "expected a number from 0.001 to 100000, or leave it out for no limit"
    ]
    in_file = f"{A_NUMBER}[api]\nmax_requests_per_second = {written}"
    variable = {"LINQ_ETL_API__MAX_REQUESTS_PER_SECOND": written}

    assert problems(load_toml, in_file) == expected
    assert problems(load_toml, A_NUMBER, WITH_TOKEN | variable) == expected


@pytest.mark.parametrize(
    ("setting", "suggestion"),
    [
        ("[api]\nbase_uri = 1", "api.base_uri: no such setting; did you mean api.base_url?"),
        ("[database]\nuri = 1", "database.uri: no such setting; did you mean database.url?"),
        ("[sync]\nnumbers = 1", "sync.numbers: no such setting; did you mean sync.phone_numbers?"),
        ("[log]\nx_y_z_q = 1", "log.x_y_z_q: no such setting; see config.example.toml"),
    ],
)
def test_an_unknown_setting_is_answered_by_a_known_one(
    load_toml: Loader, setting: str, suggestion: str
) -> None:
    """The error for a misspelled key suggests the nearest known one."""
    assert suggestion in problems(load_toml, setting)


@pytest.mark.parametrize(
    ("variable", "suggestion"),
    [
        ("LINQ_ETL_API__PERPAGE", "did you mean api.per_page?"),
        ("LINQ_ETL_DB__URL", "did you mean database.url?"),
        ("LINQ_ETL_CHATS__ORDER", "see config.example.toml"),
        ("LINQ_ETL_SYNC__PHONE_NUMBER", "did you mean sync.phone_numbers?"),
        ("LINQ_ETL_SYNC_PHONE_NUMBERS", "did you mean sync.phone_numbers?"),
        ("LINQ_ETL_API_PER_PAGE", "did you mean api.per_page?"),
        ("LINQ_ETL_TOKEN", "did you mean api.token_file?"),
        ("LINQ_ETL_INTEGRATION_TOKEN", "see config.example.toml"),
    ],
)
def test_an_unknown_variable_is_an_error(load_toml: Loader, variable: str, suggestion: str) -> None:
    """A misspelled variable, such as one with a single underscore, is not silently ignored."""
    expected = f"{variable}: no such setting; {suggestion}"

    assert problems(load_toml, A_NUMBER, WITH_TOKEN | {variable: "1"}) == [expected]


@pytest.mark.parametrize("text", ["api = 5\n", "[[api]]\nper_page = 5\n", 'api = "x"\n'])
def test_a_section_must_be_one(load_toml: Loader, text: str) -> None:
    """A value where a section belongs is an error."""
    assert problems(load_toml, text + A_NUMBER) == ["api: write it as a section, [api]"]


def test_a_number_has_a_label_and_a_token_of_its_own(load_toml: Loader) -> None:
    """`label` and the token in the variable `token_env` belong to the number."""
    text = """
        [sync]
        phone_numbers = [
            "+13343284472",
            { number = "(312) 555-0100", label = "Support", token_env = "LINQ_TOKEN_SUPPORT" },
        ]
    """

    config = load_toml(text, WITH_TOKEN | {"LINQ_TOKEN_SUPPORT": " own-token\n"})

    assert config.sync.phone_numbers == (
        PhoneNumber("+13343284472"),
        PhoneNumber("+13125550100", label="Support", token=Token("own-token")),
    )


@pytest.mark.parametrize(
    "second", ["3343284472", "(334) 328-4472", "+1 334 328 4472", '{ number = "1-334-328-4472" }']
)
def test_the_same_number_twice_is_an_error(load_toml: Loader, second: str) -> None:
    """However it is spelled, a number is configured once."""
    entry = second if second.startswith("{") else f'"{second}"'

    assert problems(load_toml, f'[sync]\nphone_numbers = ["+13343284472", {entry}]') == [
        "sync.phone_numbers, entry 2: +13343284472 is already entry 1; delete one of them"
    ]


@pytest.mark.parametrize(
    "entry",
    [
        "13343284472",
        "true",
        "[]",
        "{}",
        '{ number = "+13343284472", lable = "Support" }',
        '{ number = "+13343284472", label = 5 }',
        "{ number = 13343284472 }",
    ],
)
def test_an_entry_of_another_shape_is_an_error(load_toml: Loader, entry: str) -> None:
    """The error for an entry that is neither text nor a valid table shows an example of both."""
    found = problems(load_toml, f'[sync]\nphone_numbers = ["+13125550100", {entry}]')

    assert len(found) == 1
    assert found[0].startswith('sync.phone_numbers, entry 2: write "+13343284472" or { number = ')


def test_the_numbers_are_a_list(load_toml: Loader) -> None:
    """A single number must be written as a list too."""
    text = '[sync]\nphone_numbers = "+13343284472"'

    assert 'sync.phone_numbers: write a list, e.g. ["+13343284472"]' in problems(load_toml, text)


def test_there_must_be_numbers(load_toml: Loader) -> None:
    """The error for a configuration without numbers says what to write."""
    assert problems(load_toml, "") == [
        'sync.phone_numbers: there is none; write e.g. ["+13343284472"], or '
        "all_phone_numbers = true (`linq-etl phone-numbers` lists them)"
    ]


def test_all_numbers_are_numbers(load_toml: Loader) -> None:
    """With `all_phone_numbers`, phone_numbers may stay empty."""
    assert load_toml("[sync]\nall_phone_numbers = true").sync == Sync(all_phone_numbers=True)


def test_a_command_says_what_it_needs(load_toml: Loader) -> None:
    """A command that needs neither token nor numbers gets a configuration without them."""
    config = load_toml("", {}, needs_token=False, needs_numbers=False)

    assert (config.token, config.sync.phone_numbers) == (None, ())


def test_the_variable_beats_the_token_file(load_toml: Loader) -> None:
    """If the token variable is set, the token file is not read."""
    config = load_toml(A_NUMBER + '[api]\ntoken_file = "nowhere"', WITH_TOKEN)

    assert config.token == Token("a-token")


def test_numbers_with_their_own_tokens_need_no_other(load_toml: Loader) -> None:
    """The common token may be missing if every number has its own token."""
    text = '[sync]\nphone_numbers = [{ number = "+13343284472", token_env = "OWN" }]'

    config = load_toml(text, {"OWN": "own-token"})

    assert config.token is None
    assert config.sync.phone_numbers == (PhoneNumber("+13343284472", token=Token("own-token")),)


@pytest.mark.parametrize(
    "sync",
    [
        '[sync]\nphone_numbers = ["+13125550100", { number = "3343284472", token_env = "OWN" }]',
        "[sync]\nall_phone_numbers = true\n"
        'phone_numbers = [{ number = "3343284472", token_env = "OWN" }]',
    ],
)
def test_the_other_numbers_need_the_common_token(load_toml: Loader, sync: str) -> None:
    """A number without a token of its own needs the common one."""
    assert problems(load_toml, sync, {"OWN": "own-token"}) == [
        "there is no token: set $LINQ_INTEGRATION_TOKEN, or api.token_file to a file that holds it"
    ]


def test_a_token_file_must_be_readable(load_toml: Loader) -> None:
    """The error for a missing token file does not show its name, which may be the token."""
    assert problems(load_toml, A_NUMBER + f'[api]\ntoken_file = "{SECRET}"', {}) == [
        "api.token_file: that file cannot be read: No such file or directory"
    ]


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"one\ntwo", b"t\xc3\xb6ken"])
def test_a_token_file_holds_the_bare_token(
    load_toml: Loader, tmp_path: Path, content: bytes
) -> None:
    """A token must be valid in an HTTP header: one line of visible ASCII characters."""
    (tmp_path / "token").write_bytes(content)

    assert problems(load_toml, A_NUMBER + '[api]\ntoken_file = "token"', {}) == [
        "api.token_file: holds no usable token; put the bare token there, one line"
    ]


@pytest.mark.parametrize("written", ["two words", "Bearer x", "t\u00f6ken"])
def test_an_unusable_token_is_one_problem(load_toml: Loader, written: str) -> None:
    """An invalid token is not reported as missing too."""
    assert problems(load_toml, A_NUMBER, {"LINQ_INTEGRATION_TOKEN": written}) == [
        "$LINQ_INTEGRATION_TOKEN: holds no usable token; put the bare token there, one line"
    ]


def test_an_invalid_number_is_one_problem(load_toml: Loader) -> None:
    """An invalid number is not reported as missing too."""
    assert problems(load_toml, '[sync]\nphone_numbers = ["328-4472"]') == [
        "sync.phone_numbers, entry 1: that is not a complete phone number; "
        "write it with country code, e.g. +13343284472"
    ]


def test_a_token_file_is_text(load_toml: Loader, tmp_path: Path) -> None:
    """A binary token file is an error."""
    (tmp_path / "token").write_bytes(b"\xff\x00")

    assert problems(load_toml, A_NUMBER + '[api]\ntoken_file = "token"', {}) == [
        "api.token_file: that is not a text file"
    ]


def test_a_token_shows_nowhere(load_toml: Loader) -> None:
    """No text form of the configuration shows a token."""
    text = '[sync]\nphone_numbers = ["3125550100", { number = "3343284472", token_env = "OWN" }]'

    config = load_toml(text, {"LINQ_INTEGRATION_TOKEN": SECRET, "OWN": SECRET})

    assert SECRET not in f"{config} {config!r} {config.token} {config.sync.phone_numbers}"


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        (f'[api]\nbase_url = "{SECRET}"', {}),
        (f'[api]\nbase_url = "https://{SECRET}@api.linqapp.com"', {}),
        (f'[api]\nbase_url = "https://api.linqapp.com?token={SECRET}"', {}),
        (f'[api]\ntoken = "{SECRET}"', {}),
        (f'[api]\ntoken_file = "{SECRET}"', {}),
        (f'token = "{SECRET}"', {}),
        (f"token = {SECRET}", {}),
        (f'api = "{SECRET}"', {}),
        (f'[api]\ntoken = "{SECRET}', {}),
        (f'[database]\nurl = "{SECRET}"', {}),
        (f'[database]\nurl = "mssql://root:{SECRET}@db/linq"', {}),
        *(
            (f'[{section}]\n{key} = "{SECRET}"', {})
            for section, struct in SECTIONS.items()
            for key in struct.__struct_fields__
        ),
        *((f'[{section}]\n{SECRET} = "x"', {}) for section in SECTIONS),
        (f"{SECRET} = 1", {}),
        (f"[{SECRET}]\nx = 1", {}),
        (f'[sync]\nphone_numbers = ["{SECRET}"]', {}),
        (f'[sync]\nphone_numbers = [{{ number = "{SECRET}" }}]', {}),
        (f'[sync]\nphone_numbers = [{{ {SECRET} = "+13343284472" }}]', {}),
        (f'[sync]\nphone_numbers = "{SECRET}"', {}),
        (f'[sync]\nphone_numbers = [{{ number = "3343284472", token_env = "{SECRET}" }}]', {}),
        (f'[sync]\nphone_numbers = [{{ number = "3343284472", token = "{SECRET}" }}]', {}),
        (f'[sync]\nphone_numbers = [{{ number = "3343284472", token_env = "{BARE}" }}]', {}),
        (f'[sync]\nphone_numbers = [{{ label = "{SECRET}" }}]', {}),
        (
            '[sync]\nphone_numbers = [{ number = "3343284472", token_env = "OWN" }]',
            {"OWN": f"Bearer {SECRET}"},
        ),
        ("", {"LINQ_INTEGRATION_TOKEN": f"Bearer {SECRET}"}),
        ("", {"LINQ_ETL_API__TOKEN": SECRET}),
        ("", {"LINQ_ETL_API__BASE_URL": SECRET}),
        ("", {"LINQ_ETL_DATABASE__URL": SECRET}),
        ("", {"LINQ_ETL_API__PER_PAGE": SECRET}),
        ("", {"LINQ_ETL_SYNC__PHONE_NUMBERS": f"+13125550100,{SECRET}"}),
        ("", {"LINQ_ETL_TOKEN": SECRET}),
        ("", {f"LINQ_ETL_{SECRET}": "x"}),
        ("", {f"LINQ_ETL_API__{SECRET}": "x"}),
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(
    load_toml: Loader, text: str, environ: Mapping[str, str]
) -> None:
    """The error does not show a token that was pasted into the wrong place."""
    with pytest.raises(ConfigError) as raised:
        load_toml(text, environ)

    assert SECRET not in str(raised.value)
    assert BARE not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.linqapp.com",
        "https://api.linqapp.com/",
        "https://proxy.example.com:8443/linq",
        "HTTPS://API.LINQAPP.COM",
        "http://localhost:8080",
        "http://127.0.0.1",
        "http://127.1.2.3:1",
        "http://[::1]:8080",
    ],
)
def test_a_valid_base_url(load_toml: Loader, url: str) -> None:
    """https is allowed to any host, http only on loopback."""
    assert load_toml(f'{A_NUMBER}[api]\nbase_url = "{url}"').api.base_url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.linqapp.com",
        "https://",
        "http://api.linqapp.com",
        "HTTP://api.linqapp.com",
        "http://localhost.example.com",
        "http://127.0.0.1@example.com",
        "http://0.0.0.0",
        "http://10.0.0.1",
        "http://[::2]",
        "https://[::1",
        "https://user:password@api.linqapp.com",
        "https://api.linqapp.com:port",
        "https://api.linqapp.com:99999",
        "https://api.linqapp.com/?page=1",
        "https://api.linqapp.com#chats",
        "ftp://api.linqapp.com",
        "file:///etc/passwd",
        r"https://api.linqapp.com\n",
        r"https://api.linqapp\n.com",
        r"https://api.linqapp.com/\t",
        r"https://api.linqapp.com\u0000",
        r"https://api.linqapp.com\u00a0",
        r"https://api.linqapp.com\\@example.com",
        " https://api.linqapp.com",
        "https://api.linqapp.com?",
        "https://api.linqapp.com#",
        "https://api linqapp.com",
        "https://api.linqapp.com/a b",
        "https://:password@api.linqapp.com",
        "https://@api.linqapp.com",
    ],
)
def test_an_invalid_base_url(load_toml: Loader, url: str) -> None:
    """Refused: not a base URL, or one that would send the token unencrypted."""
    assert problems(load_toml, f'{A_NUMBER}[api]\nbase_url = "{url}"') == [
        'api.base_url: invalid value; expected an https URL, e.g. "https://api.linqapp.com" '
        "(http on loopback only)"
    ]


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///linq.db",
        "sqlite:////var/lib/linq/linq.db",
        "postgresql://etl@db/linq",
        "postgresql://etl:password@db:5432/linq?sslmode=require",
        "postgresql+psycopg://etl@db/linq",
        "postgresql:///linq",
    ],
)
def test_a_valid_database_url(load_toml: Loader, url: str) -> None:
    """A SQLite file, or PostgreSQL."""
    assert load_toml(f'{A_NUMBER}[database]\nurl = "{url}"').database.url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "linq.db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://linq.db",
        "postgresql://",
        "postgresql+psycopg2://etl@db/linq",
        "mssql://etl@db/linq",
        "sqlite:///linq.db?mode=memory",
    ],
)
def test_an_invalid_database_url(load_toml: Loader, url: str) -> None:
    """Refused: an in-memory database, which is lost after the run, and unsupported databases."""
    assert problems(load_toml, f'{A_NUMBER}[database]\nurl = "{url}"') == [
        'database.url: invalid value; expected "sqlite:///FILE.db", '
        '"postgresql://USER@HOST/DATABASE" or "mysql://USER@HOST/DATABASE"'
    ]


@pytest.mark.parametrize("schema", ["linq", 'Ada\'s "Chats"', "PG_linq", "ß" * 31, "ß" * 31 + "s"])
def test_a_valid_schema(load_toml: Loader, schema: str) -> None:
    """It is taken as it is written, from the environment as well."""
    environ = WITH_TOKEN | {
        "LINQ_ETL_DATABASE__URL": "postgres:///linq",
        "LINQ_ETL_DATABASE__SCHEMA": schema,
    }
    assert load_toml(A_NUMBER, environ).database.schema == schema


@pytest.mark.parametrize(
    "schema",
    ["", "pg_linq", "information_schema", "$user", "ß" * 32, "a\\u0000b", "a\\n", "\\u007f"],
)
def test_an_invalid_schema(load_toml: Loader, schema: str) -> None:
    """PostgreSQL would cut a longer name, and keeps some names for itself."""
    text = f'{A_NUMBER}[database]\nurl = "postgresql:///linq"\nschema = "{schema}"'
    assert problems(load_toml, text) == [
        "database.schema: invalid value; expected the name of a PostgreSQL schema, "
        'at most 63 bytes, e.g. "linq"'
    ]


@pytest.mark.parametrize("url", ['url = "sqlite:///linq.db"\n', ""])
def test_a_file_has_no_schema(load_toml: Loader, url: str) -> None:
    """The setting would have no effect."""
    assert problems(load_toml, f'{A_NUMBER}[database]\n{url}schema = "linq"') == [
        "database.schema: delete it: only a PostgreSQL database has schemas"
    ]


@pytest.mark.parametrize("port", ["port", "0", "99999"])
def test_an_invalid_port_of_the_database(load_toml: Loader, port: str) -> None:
    """The error says what a port is."""
    text = f'{A_NUMBER}[database]\nurl = "postgresql://etl@db:{port}/linq"'
    assert problems(load_toml, text) == [
        "database.url: invalid value; expected a port from 1 to 65535"
    ]


def test_a_database_url_is_normalised(load_toml: Loader) -> None:
    """A secret's file often ends with a newline, and hosts write postgres://."""
    environ = WITH_TOKEN | {"LINQ_ETL_DATABASE__URL": "postgres://etl@db/linq\n"}
    assert load_toml(A_NUMBER, environ).database.url == "postgresql://etl@db/linq"


NUMBERS = [
    (section, key)
    for section, struct in SECTIONS.items()
    for key, hint in struct.__annotations__.items()
    if "int" in str(hint) or "float" in str(hint)
]


@pytest.mark.parametrize(("section", "key"), NUMBERS)
@pytest.mark.parametrize("written", ["9" * 30, "-1", "nan", "inf", "1e999"])
def test_a_number_that_no_setting_takes(
    load_toml: Loader, section: str, key: str, written: str
) -> None:
    """The error names the setting, whether the file or the environment has it."""
    header = "" if section == "sync" else f"[{section}]\n"
    in_file = f"{A_NUMBER}{header}{key} = {written}\n"
    variable = f"LINQ_ETL_{section}__{key}".upper()
    for text, environ in ((A_NUMBER, {variable: written}), (in_file, {})):
        (problem,) = problems(load_toml, text, WITH_TOKEN | environ)
        assert problem.startswith(f"{section}.{key}: invalid value; expected ")


@pytest.mark.parametrize("written", ["\u0663", "1_0", " 5", "5\n", "0x10"])
def test_a_number_in_another_notation(load_toml: Loader, written: str) -> None:
    """A variable has ASCII digits and nothing else."""
    environ = WITH_TOKEN | {"LINQ_ETL_API__PER_PAGE": written}
    assert problems(load_toml, A_NUMBER, environ) == [
        "api.per_page: invalid value; expected a whole number from 1 to 100"
    ]


def test_a_phone_number_in_other_digits(load_toml: Loader) -> None:
    """It is not taken for the number that its digits mean."""
    arabic = "".join(chr(0x660 + int(digit)) for digit in "3343284472")
    (problem,) = problems(load_toml, f'[sync]\nphone_numbers = ["{arabic}"]')
    assert problem.startswith("sync.phone_numbers, entry 1: that is not a phone number;")


@pytest.mark.parametrize("label", [r"a\u0000b", r"a\nb", r"\u001b[2J", "x" * 256])
def test_a_label_is_one_line(load_toml: Loader, label: str) -> None:
    """No database holds NUL, and a table on a terminal has one line for a number."""
    text = f'[sync]\nphone_numbers = [{{ number = "+13343284472", label = "{label}" }}]'
    assert problems(load_toml, text) == [
        "sync.phone_numbers, entry 1: write a label in one line of at most 255 characters"
    ]


@pytest.mark.parametrize(
    "content",
    [
        "#" * (1024 * 1024 + 1),
        "a" + ".a" * 100_000 + " = 1",
        "[" + '"a".' * 100_000 + "a]",
        "x = " + "[" * 100_000,
        "x = " + "{a = " * 100_000,
        "x = " + "9" * 100_000,
    ],
    ids=["huge", "dots", "tables", "arrays", "inline tables", "digits"],
)
def test_a_file_out_of_bounds(load_toml: Loader, content: str) -> None:
    """It is refused at once, not read for hours."""
    with pytest.raises(ConfigError, match=r"linq\.toml: not valid TOML: .* out of bounds"):
        load_toml(content)


def test_a_file_without_an_end() -> None:
    """A device in place of the file is refused too, and in place of the token's."""
    with pytest.raises(ConfigError, match="/dev/zero: not valid TOML"):
        load_config(Path("/dev/zero"), WITH_TOKEN)
    endless = {
        "LINQ_ETL_API__TOKEN_FILE": "/dev/zero",
        "LINQ_ETL_SYNC__PHONE_NUMBERS": "3343284472",
    }
    with pytest.raises(ConfigError, match=r"api\.token_file: "):
        load_config(None, endless)


def test_too_many_numbers(load_toml: Loader) -> None:
    """They are not even looked at."""
    numbers = ",".join(["3343284472"] * 10_001)
    assert problems(load_toml, "", WITH_TOKEN | {"LINQ_ETL_SYNC__PHONE_NUMBERS": numbers}) == [
        "sync.phone_numbers: write at most 10000 numbers"
    ]


def test_many_problems_are_counted(load_toml: Loader) -> None:
    """The first fifty are shown."""
    numbers = WITH_TOKEN | {"LINQ_ETL_SYNC__PHONE_NUMBERS": ",".join("x" * 60)}
    found = problems(load_toml, "", numbers)
    assert (len(found), found[-1]) == (51, "and 10 more")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.255.0.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("192.168.0.1", False),
        ("api.linqapp.com", False),
        ("localhost.example.com", False),
        ("", False),
    ],
)
def test_loopback_is_this_machine(host: str, *, loopback: bool) -> None:
    """`localhost` and the loopback addresses never leave this machine."""
    assert is_loopback(host) is loopback


# Monitoring

PING = f"https://hc-ping.com/{SECRET}"


def ping_url(config: Config) -> str | None:
    return config.monitoring.ping_url.value if config.monitoring.ping_url else None


@pytest.mark.parametrize(
    "url",
    [
        PING,
        f"{PING}/?rid=1&create=1",
        f"http://health.internal:8000/ping/{SECRET}",
        f"https://me:pass@[2001:db8::1]/{SECRET}",
        f"https://docker_service/{SECRET}",
    ],
)
def test_a_valid_ping_url(load_toml: Loader, url: str) -> None:
    """http or https, to any host, and no repr shows it."""
    loaded = load_toml(f"[monitoring]\nping_url = {url!r}\n{A_NUMBER}")
    assert ping_url(loaded) == url
    assert SECRET not in repr(loaded)
    assert SECRET not in str(loaded.monitoring.ping_url)


@pytest.mark.parametrize(
    "url",
    ["", "hc-ping.com/x", "ftp://h/x", "https://", "https://h/a b", "https://h/#x", "https://h:0/"],
)
def test_an_invalid_ping_url(load_toml: Loader, url: str) -> None:
    """It is not shown."""
    assert problems(load_toml, f"[monitoring]\nping_url = {url!r}\n{A_NUMBER}") == [
        "monitoring.ping_url: invalid value; expected an http or https URL, e.g. "
        '"https://hc-ping.com/UUID"'
    ]


def test_a_ping_url_from_a_file(load_toml: Loader) -> None:
    """As secrets are mounted: with a newline, and with a byte order mark."""
    Path("url").write_text(f"\ufeff{PING}\n", "utf-8")
    assert ping_url(load_toml(f'[monitoring]\nping_url_file = "url"\n{A_NUMBER}')) == PING


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "that file cannot be read: No such file or directory"),
        (b"\xff\xfe", "that is not a text file"),
        (b"", "holds no usable URL; put it there, one line, http or https"),
        (f"{PING}\n{PING}".encode(), "holds no usable URL; put it there, one line, http or https"),
    ],
)
def test_a_ping_url_file_that_cannot_be_used(
    load_toml: Loader, content: bytes | None, says: str
) -> None:
    """A job is refused; a command that makes no request does without it."""
    if content is not None:
        Path("url").write_bytes(content)
    text = f'[monitoring]\nping_url_file = "url"\n{A_NUMBER}'
    assert problems(load_toml, text) == [f"monitoring.ping_url_file: {says}"]
    assert ping_url(load_toml(text, needs_token=False)) is None


def test_a_ping_url_and_a_file_for_it(load_toml: Loader) -> None:
    """One of them may be out of date."""
    Path("url").write_text(PING)
    text = f'[monitoring]\nping_url = "{PING}"\nping_url_file = "url"\n{A_NUMBER}'
    assert problems(load_toml, text) == [
        "monitoring.ping_url_file: delete it, or monitoring.ping_url: both name a URL"
    ]


def test_monitoring_is_read_by_itself(tmp_path: Path) -> None:
    """So that a run whose other settings are wrong is reported; what is wrong in it is left out."""
    path = tmp_path / "wrong.toml"
    path.write_text(f'[api]\nper_page = 0\n[monitoring]\nping_url = "{PING}"\nmetrics_file = 7\n')
    found = load_monitoring(path, {})
    assert found.ping_url is not None
    assert (found.ping_url.value, found.metrics_file) == (PING, None)
    variables = {"LINQ_ETL_MONITORING__METRICS_FILE": "m.prom"}
    for content in ("[broken", "monitoring = 1"):
        path.write_text(content)
        assert load_monitoring(path, variables) == Monitoring(metrics_file="m.prom")


HASHED = A_NUMBER + '[privacy]\nparticipants = "hashed"\n'


def test_the_variable_beats_the_key_file(load_toml: Loader) -> None:
    """$LINQ_ETL_PRIVACY_KEY is used even if privacy.key_file names no file."""
    environ = WITH_TOKEN | {"LINQ_ETL_PRIVACY_KEY": f" {KEY}\n"}
    config = load_toml(HASHED + 'key_file = "nowhere"', environ)
    assert config.privacy_key == PrivacyKey(KEY.encode())
    assert KEY not in repr(config)


def test_hashes_need_a_key(load_toml: Loader) -> None:
    """A command that makes requests asks for it; so does one that needs it in every mode."""
    lacks = (
        "privacy.key_file: there is no key; set $LINQ_ETL_PRIVACY_KEY, or privacy.key_file to a "
        "file that holds it, e.g. from: openssl rand -hex 32"
    )
    empty = WITH_TOKEN | {"LINQ_ETL_PRIVACY_KEY": ""}
    assert problems(load_toml, HASHED) == problems(load_toml, HASHED, empty) == [lacks]
    assert load_toml(HASHED, {}, needs_token=False).privacy_key is None
    with pytest.raises(ConfigError, match="there is no key"):
        load_toml(A_NUMBER, {}, needs_token=False, needs_key=True)
    dropped = load_toml(HASHED.replace("hashed", "dropped"))
    assert (dropped.privacy.participants, dropped.privacy_key) == ("dropped", None)


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("", "holds no usable key; put 32 characters or more there, one line, e.g. from:"),
        (KEY[:31], "holds no usable key; put 32 characters or more there, one line, e.g. from:"),
        (f"{KEY}\n{KEY}", "holds no usable key; put 32 characters or more there, one line,"),
        (f"{KEY[:31]}é", "holds no usable key; put 32 characters or more there, one line,"),
        ("abcdefg" * 10, "that key can be guessed; make one by: openssl rand -hex 32"),
    ],
)
def test_keys_that_are_refused(load_toml: Loader, tmp_path: Path, key: str, problem: str) -> None:
    """A short key, one with few different characters, or more than a line; none is shown."""
    (tmp_path / "key").write_text(key, "utf-8")
    for text in (HASHED, A_NUMBER + "[privacy]\n"):
        (found,) = problems(load_toml, text + 'key_file = "key"')
        assert found.startswith(f"privacy.key_file: {problem}")
        assert not key or key not in found


def test_modes_that_are_refused(load_toml: Loader) -> None:
    """There are three."""
    assert problems(load_toml, A_NUMBER + '[privacy]\nparticipants = "none"') == [
        'privacy.participants: invalid value; expected "plain", "hashed" or "dropped"'
    ]
