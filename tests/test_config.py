"""The configuration: what it is made of, and everything that is wrong with it at once."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from etl.config import (
    SECTIONS,
    Api,
    Config,
    Database,
    Log,
    PhoneNumber,
    Sync,
    Token,
    is_loopback,
    load_config,
)
from etl.errors import ConfigError

SECRET = "sk-live-4f9aSECRET"
WITH_TOKEN = {"LINQ_INTEGRATION_TOKEN": "a-token"}
A_NUMBER = '[sync]\nphone_numbers = ["+13343284472"]\n'

Loader = Callable[..., Config]


@pytest.fixture
def load_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """Loads this text as the file, with this environment alone, in an empty folder."""
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
    """A number and a token are a configuration."""
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
        log=Log(json=False),
        token=Token("a-token"),
    )


def test_the_file_sets_everything(load_toml: Loader, tmp_path: Path) -> None:
    """What the file says is in the configuration."""
    (tmp_path / "token").write_text("from-the-file\n")
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
        auto_upgrade = false
        [sync]
        phone_numbers = ["+13343284472"]
        all_phone_numbers = true
        max_passes = 1
        max_confirmations = 0
        lease_seconds = 10
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
        database=Database(url="postgresql://etl@db/linq", auto_upgrade=False),
        sync=Sync(
            phone_numbers=(PhoneNumber("+13343284472"),),
            all_phone_numbers=True,
            max_passes=1,
            max_confirmations=0,
            lease_seconds=10,
        ),
        log=Log(json=True),
        token=Token("from-the-file"),
    )


def test_the_environment_beats_the_file(load_toml: Loader) -> None:
    """A variable counts in place of the file's value, even if that one is wrong."""
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
    """Between the commas of the variable there may be nothing."""
    config = load_toml("", WITH_TOKEN | {"LINQ_ETL_SYNC__PHONE_NUMBERS": written})

    assert config.sync.phone_numbers == (PhoneNumber("+13343284472"),)


def test_commas_alone_are_no_numbers(load_toml: Loader) -> None:
    """A variable of commas names no number."""
    (problem,) = problems(load_toml, "", WITH_TOKEN | {"LINQ_ETL_SYNC__PHONE_NUMBERS": " , "})

    assert problem.startswith("sync.phone_numbers: there is none; ")


def test_a_variable_of_the_tests_is_not_a_setting(load_toml: Loader) -> None:
    """What the tests themselves are told by the environment is no misspelled setting."""
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
    """A file that was asked for and is not there is an error that says what to do."""
    environ = WITH_TOKEN | {"LINQ_ETL_SYNC__PHONE_NUMBERS": "+13343284472"}

    with pytest.raises(ConfigError) as raised:
        load_config(tmp_path / "other.toml", environ)

    assert f"{tmp_path}/other.toml: no such file; copy config.example.toml" in str(raised.value)


@pytest.mark.parametrize("content", [b"[api\n", b"\xff\xfe\x00", b"per_page 5"])
def test_a_file_that_is_not_toml(content: bytes, tmp_path: Path) -> None:
    """A file that cannot be understood is named."""
    (tmp_path / "linq.toml").write_bytes(content)

    with pytest.raises(ConfigError, match=r"linq\.toml: not valid TOML[:,] "):
        load_config(tmp_path / "linq.toml", WITH_TOKEN)


def test_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    """A file that an editor began with a BOM is read as any other."""
    (tmp_path / "linq.toml").write_bytes(b"\xef\xbb\xbf" + A_NUMBER.encode())

    config = load_config(tmp_path / "linq.toml", WITH_TOKEN)

    assert config.sync.phone_numbers == (PhoneNumber("+13343284472"),)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A folder in place of the file is named, with the system's reason."""
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
        url = "mysql://db/linq"
        auto_upgrade = "perhaps"
        [sync]
        phone_numbers = [
            "x",
            "3343284472",
            { label = "?" },
            { number = "+13125550100", token_env = "NONE" },
        ]
        max_passes = 1.5
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
        'api.base_url: will not do; write an https URL, e.g. "https://api.linqapp.com" '
        "(http on loopback only)",
        "api.max_attempts: that will not do; write tries per request, a whole number from 1 to 20",
        "api.max_concurrency: that will not do; write requests at a time, "
        "a whole number from 1 to 64",
        "api.per_page: that will not do; write a whole number from 1 to 100",
        "api.per_pages: no such setting; did you mean api.per_page?",
        "api.timeout_seconds: that will not do; write seconds for one whole request, 0.1 to 600",
        "database.auto_upgrade: that will not do; write true or false",
        'database.url: will not do; write "sqlite:///FILE.db" or "postgresql://USER@HOST/DATABASE"',
        "log.json: that will not do; write true or false",
        "numbers: no such section; there are api, database, sync, log",
        "sync.all_phone_numbers: that will not do; write true or false",
        "sync.lease_seconds: that will not do; write a whole number of seconds from 10 to 3600",
        "sync.max_passes: that will not do; write readings of a moving list: "
        "a whole number, 1 to 10",
        "sync.phone_numbers, entry 1: that is not a phone number; "
        "write it with country code, e.g. +13343284472",
        f"sync.phone_numbers, entry 3: {a_number}",
        "sync.phone_numbers, entry 4: token_env names no variable that is set; "
        "put the token for +13125550100 there",
        "there is no token; set $LINQ_INTEGRATION_TOKEN, or api.token_file to a file that holds it",
    ]


@pytest.mark.parametrize(
    ("written", "rate"), [("5", 5), ("0.5", 0.5), ("0.001", 0.001), ("100000", 100_000)]
)
def test_a_rate_that_will_do(load_toml: Loader, written: str, rate: float) -> None:
    """Requests per second are any number within reason, in the file or in the environment."""
    in_file = load_toml(f"{A_NUMBER}[api]\nmax_requests_per_second = {written}")
    variable = {"LINQ_ETL_API__MAX_REQUESTS_PER_SECOND": written}
    in_environment = load_toml(A_NUMBER, WITH_TOKEN | variable)

    assert in_file.api.max_requests_per_second == rate
    assert in_environment.api.max_requests_per_second == rate


@pytest.mark.parametrize("written", ["0", "-1", "1e-300", "100001", "nan", "inf", "-inf", "true"])
def test_a_rate_that_will_not_do(load_toml: Loader, written: str) -> None:
    """A rate at which nothing would ever start, or that is no number, is refused."""
    expected = [
        "api.max_requests_per_second: that will not do; "
        "write a number from 0.001 to 100000, or leave it out for no limit"
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
    """A misspelled key is an error that names the nearest one."""
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
    """A misspelled variable, as with one underscore, is an error too: it is not in vain."""
    expected = f"{variable}: no such setting; {suggestion}"

    assert problems(load_toml, A_NUMBER, WITH_TOKEN | {variable: "1"}) == [expected]


@pytest.mark.parametrize("text", ["api = 5\n", "[[api]]\nper_page = 5\n", 'api = "x"\n'])
def test_a_section_must_be_one(load_toml: Loader, text: str) -> None:
    """A value where a section belongs is an error."""
    assert problems(load_toml, text + A_NUMBER) == ["api: write it as a section, [api]"]


def test_a_number_has_a_label_and_a_token_of_its_own(load_toml: Loader) -> None:
    """`label` and the variable named by `token_env` belong to the number."""
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
        "sync.phone_numbers, entry 2: +13343284472 is entry 1 already; delete one of them"
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
    """What is neither a number nor a table of known keys is answered by an example of both."""
    found = problems(load_toml, f'[sync]\nphone_numbers = ["+13125550100", {entry}]')

    assert len(found) == 1
    assert found[0].startswith('sync.phone_numbers, entry 2: write "+13343284472" or { number = ')


def test_the_numbers_are_a_list(load_toml: Loader) -> None:
    """One number is a list of one."""
    text = '[sync]\nphone_numbers = "+13343284472"'

    assert 'sync.phone_numbers: write a list, e.g. ["+13343284472"]' in problems(load_toml, text)


def test_there_must_be_numbers(load_toml: Loader) -> None:
    """No number at all is an error that says what to write."""
    assert problems(load_toml, "") == [
        'sync.phone_numbers: there is none; write e.g. ["+13343284472"], or '
        "all_phone_numbers = true (`linq-etl phone-numbers` lists them)"
    ]


def test_all_numbers_are_numbers(load_toml: Loader) -> None:
    """With `all_phone_numbers` no number need be named."""
    assert load_toml("[sync]\nall_phone_numbers = true").sync == Sync(all_phone_numbers=True)


def test_a_command_says_what_it_needs(load_toml: Loader) -> None:
    """Neither token nor numbers are asked for by a command that needs neither."""
    config = load_toml("", {}, needs_token=False, needs_numbers=False)

    assert (config.token, config.sync.phone_numbers) == (None, ())


def test_the_variable_beats_the_token_file(load_toml: Loader) -> None:
    """With both, the token is the variable's, and the file need not be there."""
    config = load_toml(A_NUMBER + '[api]\ntoken_file = "nowhere"', WITH_TOKEN)

    assert config.token == Token("a-token")


def test_numbers_with_their_own_tokens_need_no_other(load_toml: Loader) -> None:
    """The common token may be missing if every number has its own."""
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
        "there is no token; set $LINQ_INTEGRATION_TOKEN, or api.token_file to a file that holds it"
    ]


def test_a_token_file_must_be_readable(load_toml: Loader) -> None:
    """A token file that is missing is an error; its name is not repeated, it may be the token."""
    assert problems(load_toml, A_NUMBER + f'[api]\ntoken_file = "{SECRET}"', {}) == [
        "api.token_file: that file cannot be read: No such file or directory"
    ]


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"one\ntwo", b"t\xc3\xb6ken"])
def test_a_token_file_holds_the_bare_token(
    load_toml: Loader, tmp_path: Path, content: bytes
) -> None:
    """What cannot be a header's value is no token."""
    (tmp_path / "token").write_bytes(content)

    assert problems(load_toml, A_NUMBER + '[api]\ntoken_file = "token"', {}) == [
        "api.token_file: holds no usable token; put the bare token there, one line"
    ]


@pytest.mark.parametrize("written", ["two words", "Bearer x", "t\u00f6ken"])
def test_an_unusable_token_is_one_problem(load_toml: Loader, written: str) -> None:
    """A token that is there and will not do is not reported as missing as well."""
    assert problems(load_toml, A_NUMBER, {"LINQ_INTEGRATION_TOKEN": written}) == [
        "$LINQ_INTEGRATION_TOKEN: holds no usable token; put the bare token there, one line"
    ]


def test_a_number_that_will_not_do_is_one_problem(load_toml: Loader) -> None:
    """A number that is there and will not do is not reported as missing as well."""
    assert problems(load_toml, '[sync]\nphone_numbers = ["328-4472"]') == [
        "sync.phone_numbers, entry 1: that is not a complete phone number; "
        "write it with country code, e.g. +13343284472"
    ]


def test_a_token_file_is_text(load_toml: Loader, tmp_path: Path) -> None:
    """A file of bytes is no token."""
    (tmp_path / "token").write_bytes(b"\xff\x00")

    assert problems(load_toml, A_NUMBER + '[api]\ntoken_file = "token"', {}) == [
        "api.token_file: that is not a text file"
    ]


def test_a_token_shows_nowhere(load_toml: Loader) -> None:
    """No form of the configuration holds a token's text."""
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
        (f'[database]\nurl = "mysql://root:{SECRET}@db/linq"', {}),
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
    """Wherever a token was pasted by mistake, the error does not show it."""
    with pytest.raises(ConfigError) as raised:
        load_toml(text, environ)

    assert SECRET not in str(raised.value)


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
def test_a_base_url_that_will_do(load_toml: Loader, url: str) -> None:
    """https goes anywhere, http to this machine only."""
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
def test_a_base_url_that_will_not_do(load_toml: Loader, url: str) -> None:
    """The token would travel unprotected, or the URL is none: refused."""
    assert problems(load_toml, f'{A_NUMBER}[api]\nbase_url = "{url}"') == [
        'api.base_url: will not do; write an https URL, e.g. "https://api.linqapp.com" '
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
def test_a_database_url_that_will_do(load_toml: Loader, url: str) -> None:
    """A file for SQLite, or PostgreSQL."""
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
        "mysql://etl@db/linq",
        "sqlite:///linq.db?mode=memory",
        "postgresql://etl@db:port/linq",
        "postgresql://etl@db:99999/linq",
    ],
)
def test_a_database_url_that_will_not_do(load_toml: Loader, url: str) -> None:
    """Memory does not outlive the run, and other databases are not supported."""
    assert problems(load_toml, f'{A_NUMBER}[database]\nurl = "{url}"') == [
        'database.url: will not do; write "sqlite:///FILE.db" or "postgresql://USER@HOST/DATABASE"'
    ]


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
    """Only `localhost` and the loopback addresses are this machine."""
    assert is_loopback(host) is loopback
