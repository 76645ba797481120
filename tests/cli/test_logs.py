"""The log on stderr: its two formats, its levels, and no private data."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import redirect_stderr
from datetime import datetime

import pytest

from etl import log
from etl.cli.logs import configure_log

SECRET = "call me back on +13343284472"


@pytest.fixture(autouse=True)
def _logger() -> Iterator[None]:
    """Restores the program's logger."""
    logger = logging.getLogger("etl")
    before = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate, level = before
    logger.setLevel(level)


def test_a_json_line_holds_the_event_and_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON, an event is one object on one line: time, level, event, and its fields."""
    configure_log(as_json=True)

    log.info("page stored", number="…4472", page=3, name="Zoë 🎉\nx", total=None)

    out, err = capsys.readouterr()
    line = json.loads(err)
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "level": "info",
        "event": "page stored",
        "number": "…4472",
        "page": 3,
        "name": "Zoë 🎉\nx",
        "total": None,
    }
    assert (out, err.count("\n")) == ("", 1)


def test_json_shows_other_values_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """A value without a JSON type, such as a time, is written as text."""
    configure_log(as_json=True)

    log.info("run", since=datetime.fromisoformat("2026-01-02T03:04:05+00:00"))

    assert json.loads(capsys.readouterr().err)["since"] == "2026-01-02 03:04:05+00:00"


def test_a_text_line_holds_the_event_and_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """As text, an event is a line with time, level, event and its fields except null ones."""
    configure_log(as_json=False)

    log.warning("throttled", number="…4472", seconds=0, page=None)

    time, rest = capsys.readouterr().err.split(" ", 1)
    assert datetime.fromisoformat(time).utcoffset() is not None
    assert rest == "warning throttled number=…4472 seconds=0\n"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (
            "a\n2026-01-02T03:04:05.000+00:00 error crash",
            r'"a\n2026-01-02T03:04:05.000+00:00 error crash"',
        ),
        ("a\r\x1b[2J", r'"a\r\u001b[2J"'),
        ("a pages=5", '"a pages=5"'),
        ("pages=5", '"pages=5"'),
        ('say "no"', r'"say \"no\""'),
        ("Zoë", "Zoë"),
        ("", ""),
    ],
)
def test_a_value_cannot_pass_for_another_line_or_field(
    capsys: pytest.CaptureFixture[str], value: str, written: str
) -> None:
    """As text, a value that could be mistaken for a field or a line is quoted, on one line."""
    configure_log(as_json=False)

    log.info("page stored", name=value)

    _, rest = capsys.readouterr().err.split(" ", 1)
    assert rest == f"info page stored name={written}\n"


def test_a_field_does_not_replace_a_standard_one(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON, a field named time, level or event does not hide the line's own."""
    configure_log(as_json=True)

    log.info("page stored", time="never", level="error", page=3)

    line = json.loads(capsys.readouterr().err)
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {"level": "info", "event": "page stored", "page": 3}


def test_quiet_leaves_the_problems(capsys: pytest.CaptureFixture[str]) -> None:
    """With `quiet`, only warnings and errors are written."""
    configure_log(as_json=True, quiet=True)

    log.debug("number_ended")
    log.info("page stored")
    log.warning("throttled")
    log.crash(RuntimeError())

    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["throttled", "crash"]


def test_what_did_not_change_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines at level debug are not written."""
    configure_log(as_json=True)

    log.debug("number_ended")

    assert capsys.readouterr().err == ""


def test_letters_are_not_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither as JSON nor in a quoted value; what could end the line is."""
    for as_json in (True, False):
        configure_log(as_json=as_json)
        log.info("number_ended", label="Zoë 🎉\u2028\nx")
        (line,) = capsys.readouterr().err.splitlines()
        assert r'"Zoë 🎉\u2028\nx"' in line


def test_a_stderr_that_knows_only_ascii() -> None:
    """Other letters are escaped as JSON escapes them."""
    written = io.BytesIO()
    with redirect_stderr(io.TextIOWrapper(written, "ascii", "backslashreplace")):
        configure_log(as_json=True)
        log.info("number_ended", label="Zoë 🎉")
        assert json.loads(written.getvalue())["label"] == "Zoë 🎉"


def test_configuring_again_writes_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Only the last configuration counts."""
    configure_log(as_json=False)
    configure_log(as_json=True)

    log.info("once")

    assert json.loads(capsys.readouterr().err)["event"] == "once"


def test_other_handlers_get_no_copy(caplog: pytest.LogCaptureFixture) -> None:
    """A handler on the root logger gets no copy."""
    configure_log(as_json=False)

    log.info("once")

    assert caplog.messages == []


def test_libraries_stay_out_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """httpx logs whole URLs, with phone numbers in them: they are not written."""
    configure_log(as_json=False)

    logging.getLogger("httpx").info("GET https://host/chats?phone_number=13343284472")

    assert capsys.readouterr() == ("", "")


def test_warnings_of_libraries_stay_out_of_the_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a handler at the root, Python would print them, a traceback included."""
    monkeypatch.setattr(logging.root, "handlers", [])
    configure_log(as_json=False)

    try:
        int(SECRET)
    except ValueError:
        logging.getLogger("psycopg").warning("the COPY was lost", exc_info=True)

    assert capsys.readouterr() == ("", "")


def fail() -> None:
    try:
        int(SECRET)
    except ValueError as error:
        raise RuntimeError(SECRET) from error


@pytest.mark.parametrize("as_json", [True, False])
def test_a_crash_is_logged_without_its_message(
    capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    """The log has the error's type and stack, and no error's message."""
    configure_log(as_json=as_json)
    try:
        fail()
    except RuntimeError as error:
        log.crash(error)

    written = capsys.readouterr().err
    assert SECRET not in written
    assert "RuntimeError" in written
    assert f"{__file__}:" in written
    assert " fail" in written


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (RuntimeError(SECRET), "RuntimeError"),
        (json.JSONDecodeError(SECRET, "", 0), "json.decoder.JSONDecodeError"),
    ],
)
def test_a_crash_names_the_error_with_its_module(
    capsys: pytest.CaptureFixture[str], error: Exception, name: str
) -> None:
    """Unless it is one of Python's own; each error of a group has its line."""
    configure_log(as_json=True)

    log.crash(ExceptionGroup(SECRET, [error]))

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["type"] for line in lines] == ["ExceptionGroup", name]
    assert SECRET not in str(lines)
