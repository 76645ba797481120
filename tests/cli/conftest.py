"""A sandbox that has been synced once, for the commands that look; and what a terminal shows."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from etl.sandbox import Sandbox, build_world
from tests.support.command import Ended, call, environment


@dataclass(frozen=True)
class Synced:
    """The sandbox, its database, the configuration, and the output of `--log-json sync`."""

    sandbox: Sandbox
    url: str
    env: dict[str, str]
    output: Ended


@pytest.fixture(scope="session")
def synced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Synced]:
    """Not to be changed: the session's tests share it."""
    folder = tmp_path_factory.mktemp("synced")
    url = f"sqlite:///{folder}/linq.db"
    with (
        Sandbox(build_world(chats_per_number=20)) as sandbox,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.chdir(folder)
        env = environment(sandbox, url)
        output = call("--log-json", "sync", env=env)
        assert output.code == 0
        yield Synced(sandbox, url, env, output)


def read_terminal(descriptor: int) -> str:
    """What a program has shown on the other side of a pseudo-terminal, without its colours."""
    shown = b""
    try:
        while block := os.read(descriptor, 4096):
            shown += block
    except OSError:
        pass  # Linux reports a closed other side like this.
    finally:
        os.close(descriptor)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
