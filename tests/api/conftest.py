"""A server with prepared answers, and a caller of it."""

import threading
from collections.abc import Callable, Iterator

import pytest

from tests.support.api_server import Caller, Server


@pytest.fixture
def open_server() -> Iterator[Callable[[], Server]]:
    """Starts a server per call; all are stopped after the test."""
    running: list[tuple[Server, threading.Thread]] = []

    def start() -> Server:
        server = Server()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server(open_server: Callable[[], Server]) -> Server:
    return open_server()


@pytest.fixture
def caller() -> Caller:
    return Caller()
