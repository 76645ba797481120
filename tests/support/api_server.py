"""A server with prepared answers, and a caller whose time is simulated, for tests of LinqClient."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, TypeVar

import pytest

from etl.api.client import LinqClient, RequestContext
from etl.api.models import ApiUsage
from etl.api.pace import Pace
from etl.config import Api, Token
from etl.errors import EtlError
from tests.support.builders import NOON, A

TOKEN = "sk-live-4f9aSECRET"
PEOPLE = "No chat with Jane Smith, call +13125550100"
CHATS = "/api/partner/v2/chats"

T = TypeVar("T")
Call = Callable[[LinqClient, RequestContext], Awaitable[T]]


@dataclass(frozen=True)
class Answer:
    """One answer; `length` overrides the Content-Length of the body.

    `delay` is in seconds. After the body, `stalls` keeps the connection open and silent, `drips`
    sends a byte at a time.
    """

    status: int = 200
    body: bytes = b'{"data":[{"id":1}]}'
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    stalls: bool = False
    drips: bool = False
    delay: float = 0.0


OK = Answer()
DROP = None  # closes the connection without an answer
CUT = Answer(length=1000, headers={"Connection": "close"})
HTML = b"<!DOCTYPE html><html><body>Bad Gateway</body></html>"


def error(status: int, code: str = "some_code", **headers: str) -> Answer:
    """An error of the API, full of texts that must not reach a log."""
    body = (
        f'{{"errors":[{{"status":{status},"code":"{code}","title":"{PEOPLE}",'
        f'"detail":"{PEOPLE} {TOKEN} phone_number=13343284472"}}]}}'
    )
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, body.encode(), names)


class Server(ThreadingTCPServer):
    """Gives its answers in order, repeats the last one, and records the requests."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[Answer | None] = [OK]
        self.targets: list[str] = []
        self.tokens: list[str | None] = []
        self.cookies: list[str | None] = []
        self.times: list[float] = []
        self.clock: Callable[[], float] = float
        self.closing = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_answer(self, target: str, token: str | None, cookie: str | None) -> Answer | None:
        with self._lock:
            self.targets.append(target)
            self.tokens.append(token)
            self.cookies.append(cookie)
            self.times.append(self.clock())
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        answer = self.server.next_answer(
            self.path, self.headers["X-LINQ-INTEGRATION-TOKEN"], self.headers["Cookie"]
        )
        if answer is None:
            self.close_connection = True
            return
        self.server.closing.wait(answer.delay)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(answer.length or len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)
        if answer.length:
            self.close_connection = True
        if answer.stalls:
            self.server.closing.wait()
        with contextlib.suppress(ConnectionError):
            while answer.drips and not self.server.closing.wait(0.02):
                self.wfile.write(b" ")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class FakeTime:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@dataclass
class Caller:
    """Makes requests for the number A; after each call, `usage` is what it spent."""

    retry_time: FakeTime = field(default_factory=FakeTime)
    pace_time: FakeTime = field(default_factory=FakeTime)
    usage: ApiUsage = field(default_factory=ApiUsage)
    clock: Callable[[], datetime] = lambda: NOON

    def call(self, url: str, request: Call[T], **settings: Any) -> T:
        """Run `request` with a new client; `settings` are those of [api]."""

        async def run() -> T:
            api = Api(base_url=url, **settings)
            pace = Pace(api.max_concurrency, clock=self.pace_time.clock, sleep=self.pace_time.sleep)
            context = RequestContext(A, Token(TOKEN))
            async with LinqClient(
                api, pace, clock=self.clock, sleep=self.retry_time.sleep
            ) as client:
                try:
                    return await request(client, context)
                finally:
                    self.usage = client.usage[A]

        return asyncio.run(run())

    def fail(self, url: str, request: Call[Any], **settings: Any) -> EtlError:
        """Run `request` like `call`, and return its error."""
        with pytest.raises(EtlError) as raised:
            self.call(url, request, **settings)
        return raised.value
