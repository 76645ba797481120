"""The types of options: what they take, and that nothing else reaches a command."""

import re
from datetime import timedelta

import click
import pytest

from etl.cli.parameters import Duration, Number, ShardType, Share, WholeNumber
from etl.sandbox import Sandbox, build_world
from etl.sync.shard import Shard
from tests.support.command import CLOSED_PORT, A, call, environment

NUMBER = ("--phone-number", A)
ARABIC = "\u0663"  # the digit three
HUGE = "9" * 30


@pytest.mark.parametrize("text", ["1", "+7", "007", "10"])
def test_a_whole_number(text: str) -> None:
    """In ASCII digits, within the bounds."""
    assert WholeNumber(1, 10).convert(text, None, None) == int(text)


@pytest.mark.parametrize(
    "text", ["0", "11", HUGE, "9" * 5000, ARABIC, "1_0", " 1", "1.0", "", "-1"]
)
def test_other_text_is_not_a_whole_number(text: str) -> None:
    """Nor is a number beyond the bounds."""
    with pytest.raises(click.BadParameter):
        WholeNumber(1, 10).convert(text, None, None)


@pytest.mark.parametrize("text", ["0.5", "1", ".25", "1e-3", "+0.5"])
def test_a_number(text: str) -> None:
    """With or without a fraction, within the bounds."""
    assert Number(0, 1).convert(text, None, None) == float(text)


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-inf", "1e999", "-0.1", "1.1", ARABIC, "", ".", "x"]
)
def test_other_text_is_not_a_number(text: str) -> None:
    """Nor is what Python takes for one beside."""
    with pytest.raises(click.BadParameter):
        Number(0, 1).convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("2h", timedelta(hours=2)),
        ("1d", timedelta(days=1)),
        ("999999d", timedelta(days=999_999)),
    ],
)
def test_a_duration(text: str, span: timedelta) -> None:
    """A whole number and a unit."""
    assert Duration().convert(text, None, None) == span


@pytest.mark.parametrize(
    "text", ["", "2", "h", "-2h", "1.5h", "2 h", "2H", "2w", "1000000d", f"{ARABIC}h"]
)
def test_other_text_is_not_a_duration(text: str) -> None:
    """The error shows what to write."""
    with pytest.raises(click.BadParameter, match=r"is not a time span; write e\.g\. 90s"):
        Duration().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "fits"), [("59m", False), ("60m", True), ("2d", True), ("49h", False)]
)
def test_a_duration_within_bounds(text: str, fits: bool) -> None:
    """Whatever its unit; the error shows both bounds."""
    duration = Duration(at_least="1h", at_most="2d")
    if fits:
        assert duration.convert(text, None, None) >= timedelta(hours=1)
    else:
        with pytest.raises(click.BadParameter, match=rf"^{text} is not from 1h to 2d\.$"):
            duration.convert(text, None, None)


def test_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from 0; its index can come from the environment."""
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    shards = {text: ShardType().convert(text, None, None) for text in ("0/1", "7/8", "auto/4")}
    assert shards == {"0/1": Shard(0, 1), "7/8": Shard(7, 8), "auto/4": Shard(3, 4)}


@pytest.mark.parametrize(
    ("text", "index", "says"),
    [
        *(
            (text, None, "is not a shard; write e.g. 0/4 or auto/4")
            for text in ("", "1", "1/", "a/2")
        ),
        *((text, None, "is not a shard") for text in ("-1/2", "1/2/3", f"{ARABIC}/4", "1/999999")),
        ("0/0", None, "0 is not from 1 to 10000 shards."),
        ("0/10001", None, "10001 is not from 1 to 10000 shards."),
        ("4/4", None, "There is no shard 4 of 4: they count from 0, 3 is the last one."),
        ("1/1", None, "There is no shard 1 of 1: they count from 0, 0 is the only one."),
        ("auto/4", None, "$JOB_COMPLETION_INDEX is not set; write the shard's index"),
        ("auto/4", "x", "$JOB_COMPLETION_INDEX is not a whole number; write the shard's index"),
        ("auto/4", "4", "There is no shard 4 of 4"),
    ],
)
def test_other_text_is_not_a_shard(
    text: str, index: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to write."""
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    if index is not None:
        monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    with pytest.raises(click.BadParameter, match=re.escape(says)):
        ShardType().convert(text, None, None)


@pytest.mark.parametrize(("text", "share"), [("1/1", 1.0), ("1/8", 0.125), ("3/4", 0.75)])
def test_a_share(text: str, share: float) -> None:
    """A part of a whole."""
    assert Share().convert(text, None, None) == share


@pytest.mark.parametrize("text", ["", "1", "0.5", "0/4", "5/4", "1/10001", "1/0", f"1/{ARABIC}"])
def test_other_text_is_not_a_share(text: str) -> None:
    """Nor is nothing, or more than the whole."""
    with pytest.raises(click.BadParameter, match=r"is not a share; write e\.g\. 1/4|is not from"):
        Share().convert(text, None, None)


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        *(("[RUN_ID]", ["runs", text]) for text in (ARABIC, HUGE, "0", "9223372036854775808")),
        *(("--limit", ["runs", "--limit", text]) for text in (ARABIC, HUGE, "0")),
        ("--max-age", ["status", "--max-age", f"{ARABIC}h"]),
        ("--max-age", ["status", "--max-age", f"{HUGE}h"]),
        *(("--sample", ["verify", "--sample", text]) for text in (ARABIC, HUGE, "0")),
        *(("--max-rps", ["backfill", *NUMBER, "--max-rps", text]) for text in ("nan", "inf", "0")),
        ("--first-page", ["backfill", *NUMBER, "--first-page", HUGE]),
        ("--last-page", ["backfill", *NUMBER, "--last-page", "2147483648"]),
        *(("--port", ["sandbox", "--port", text]) for text in ("-1", "65536", HUGE, ARABIC)),
        *(("--drop", ["sandbox", "--drop", text]) for text in ("-0.1", "1.5", "nan")),
        *((f"--{name}", ["sandbox", f"--{name}", "-1"]) for name in ("latency", "rate-limit")),
        *((f"--{name}", ["sandbox", f"--{name}", "-1"]) for name in ("jumps", "creates", "leaves")),
        *((f"--{name}", ["sandbox", f"--{name}", "-1"]) for name in ("chats", "seed")),
    ],
)
def test_an_impossible_value(option: str, arguments: list[str]) -> None:
    """Exit code 2, and the error names the option."""
    refused = call(*arguments, env=environment(CLOSED_PORT, "sqlite:///linq.db", A))
    assert (refused.code, refused.stdout) == (2, "")
    assert f"Error: Invalid value for '{option}': " in refused.stderr


def test_a_port_that_another_program_uses() -> None:
    """Exit code 2, and what to do."""
    with Sandbox(build_world(chats_per_number=1)) as other:
        port = other.url.rpartition(":")[2]
        refused = call("sandbox", "--port", port)
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"linq-etl: --port: port {port} cannot be used (Address already in use); "
        "choose another, or 0 for a free one\n"
    )
