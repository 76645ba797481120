"""The log: structured lines on stderr, and what they leave out."""

import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from etl import log

SECRET = "call me back on +13343284472"


@pytest.fixture(autouse=True)
def _logger() -> Iterator[None]:
    """The program's logger, given back as it was."""
    logger = logging.getLogger("etl")
    before = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate, level = before
    logger.setLevel(level)


def test_a_json_line_holds_the_event_and_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON, an event is one object a line: time, level, event, and the fields by name."""
    log.configure(as_json=True, quiet=False)

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


def test_json_shows_what_it_cannot_hold_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """A value that is not JSON, such as a time, is written as its text."""
    log.configure(as_json=True, quiet=False)

    log.info("run", since=datetime.fromisoformat("2026-01-02T03:04:05+00:00"))

    assert json.loads(capsys.readouterr().err)["since"] == "2026-01-02 03:04:05+00:00"


def test_a_text_line_holds_the_event_and_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """As text, an event is a line of time, level, event and the fields that have a value."""
    log.configure(as_json=False, quiet=False)

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
    """As text, a value that could be misread is in quotes, on the one line of its event."""
    log.configure(as_json=False, quiet=False)

    log.info("page stored", name=value)

    _, rest = capsys.readouterr().err.split(" ", 1)
    assert rest == f"info page stored name={written}\n"


def test_a_field_does_not_replace_what_every_line_has(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON, time, level and event are the line's own, whatever the fields are called."""
    log.configure(as_json=True, quiet=False)

    log.info("page stored", time="never", level="error", page=3)

    line = json.loads(capsys.readouterr().err)
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {"level": "info", "event": "page stored", "page": 3}


def test_quiet_leaves_the_errors(capsys: pytest.CaptureFixture[str]) -> None:
    """If quiet, only errors are written."""
    log.configure(as_json=True, quiet=True)

    log.info("page stored")
    log.warning("throttled")
    log.crash(RuntimeError())

    assert json.loads(capsys.readouterr().err)["event"] == "crash"


def test_configuring_again_writes_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The last configuration counts, alone."""
    log.configure(as_json=False, quiet=False)
    log.configure(as_json=True, quiet=False)

    log.info("once")

    assert json.loads(capsys.readouterr().err)["event"] == "once"


def test_lines_are_not_repeated_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    """A handler of somebody else's, on the root logger, gets no copy."""
    log.configure(as_json=False, quiet=False)

    log.info("once")

    assert caplog.messages == []


def test_libraries_stay_out_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """What httpx logs, which is whole URLs, is not written."""
    log.configure(as_json=False, quiet=False)

    logging.getLogger("httpx").info("GET https://host/chats?phone_number=13343284472")

    assert capsys.readouterr() == ("", "")


def fail() -> None:
    try:
        int(SECRET)
    except ValueError as error:
        raise RuntimeError(SECRET) from error


@pytest.mark.parametrize("as_json", [True, False])
def test_a_crash_tells_where_and_not_what(
    capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    """A crash is logged with its type and its stack, and without the texts of its errors."""
    log.configure(as_json=as_json, quiet=False)
    try:
        fail()
    except RuntimeError as error:
        log.crash(error)

    written = capsys.readouterr().err
    assert SECRET not in written
    assert "RuntimeError" in written
    assert f"{__file__}:" in written
    assert " fail" in written
