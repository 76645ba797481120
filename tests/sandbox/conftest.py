"""A world, the sandbox that serves it, and a client of that."""

from collections.abc import Iterator

import httpx
import pytest

from etl.sandbox import Sandbox, World, build_world
from tests.support.sandbox import connect


@pytest.fixture
def world() -> World:
    return build_world()


@pytest.fixture
def sandbox(world: World) -> Iterator[Sandbox]:
    with Sandbox(world) as running:
        yield running


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[httpx.Client]:
    with connect(sandbox) as connected:
        yield connected
