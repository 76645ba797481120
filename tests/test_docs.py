"""The README says what is true."""

import re
import subprocess
import sys
import tomllib

from docs import generate as readme
from etl import config
from etl.config import SECTIONS

ROOT = readme.README.parent
TEXT = readme.README.read_text("utf-8")


def test_generated_parts_are_up_to_date():
    """Commands, exit codes, settings and tables are those of the code (python tests/readme.py)."""
    assert readme.rendered(TEXT) == TEXT


def test_example_configuration_is_complete():
    """Every setting stands in config.example.toml, as it is or commented out."""
    example = (ROOT / "config.example.toml").read_text("utf-8")
    named = set(re.findall(r"^(?:# )?(\w+) = ", example, re.MULTILINE))
    assert named == {key for struct in SECTIONS.values() for key in struct.__struct_fields__}


def test_example_configuration_loads_as_the_defaults():
    """Copied as it is, it works, and it changes nothing but the numbers."""
    loaded = config.load_config(ROOT / "config.example.toml", {config.TOKEN_ENV: "t"})
    assert (loaded.api, loaded.database) == (config.Api(), config.Database())
    assert [(n.e164, n.label) for n in loaded.sync.phone_numbers] == [
        ("+13343284472", None),
        ("+13125550100", "Support"),
    ]


def test_commented_out_settings_are_valid():
    """What somebody gets by uncommenting a line is TOML."""
    for line in (ROOT / "config.example.toml").read_text("utf-8").splitlines():
        if re.match(r"# \w+ = ", line):
            tomllib.loads(line.removeprefix("# "))


def test_demo_output_is_the_real_one(tmp_path):
    """The README shows what the demo prints, but for the port and the trailing blanks."""
    shown = re.search(r"```text\n(.*?)```", TEXT, re.DOTALL)[1]
    printed = subprocess.run(
        [sys.executable, "-m", "etl", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert _portable(printed) == _portable(shown)


def _portable(text: str) -> list[str]:
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
    return [line.rstrip() for line in text.strip().splitlines() if line.strip()]
