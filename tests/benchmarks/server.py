"""A stand-in for the API that is never the bottleneck: a page is a template with ids filled in.

It runs in its own process, on loopback. `/control?chats=…&latency=…` sets what it serves and resets
the counts; `/counts` returns them.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, get_args
from urllib.parse import parse_qsl
from urllib.request import ProxyHandler, build_opener

from msgspec import Struct, convert, to_builtins

ROOT: Final = Path(__file__).parents[2]
PER_PAGE: Final = 100
HANDLES_PER_PAGE: Final = 220
_PATH = "/api/partner/v2"
_FIRST_NUMBER = 13122000000
_BLOCK = b"#" * 9  # of each id and name: 4 digits for the number, 5 for the page
_OPENER = build_opener(ProxyHandler({}))


# Which chats differ from the first load: one in a hundred (new name and message count), or all of
# them (new name, and each participant's service).
Changed = Literal["none", "some", "all"]


class Settings(Struct, frozen=True):
    """Chats per number, a multiple of 100; latency in seconds; requests per second, 0 for any."""

    chats: int = 100_000
    numbers: int = 1
    latency: float = 0.0
    rate: float = 0.0
    changed: Changed = "none"


class Counts(Struct):
    """Requests, those refused, and how many the rate limit allowed from the first to the last."""

    requests: int = 0
    throttled: int = 0
    allowance: float = 0.0


def phone_number(index: int) -> str:
    return f"+{_FIRST_NUMBER + index}"


class Api:
    """The running server, as the benchmark controls it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def serve(self, settings: Settings) -> None:
        """Serve this from now on, and count from zero."""
        query = "&".join(f"{name}={value}" for name, value in to_builtins(settings).items())
        self._get(f"/control?{query}")

    def counts(self) -> Counts:
        return convert(self._get("/counts"), Counts)

    def _get(self, path: str) -> Any:
        with _OPENER.open(self.url + path, timeout=10) as response:
            return json.load(response)


@contextmanager
def running() -> Iterator[Api]:
    """The server in its own process."""
    command = [sys.executable, "-m", __name__]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield Api(int(process.stdout.readline()))
        finally:
            process.kill()


def _chat(row: int, changed: Changed) -> dict[str, Any]:
    """One chat of the template: every fifth has three handles, the others two."""
    one_in_a_hundred = changed == "some" and row == PER_PAGE // 2
    renamed = one_in_a_hundred or changed == "all"
    place = f"{_BLOCK.decode()}{row:02d}"
    return {
        "id": f"1{place}",
        "display_name": f"Person {place}, Friend {place}" + " and more" * renamed,
        "service": "iMessage",
        "group": row % 5 == 0,
        "message_count": 25 + row + one_in_a_hundred,
        "chat_handles": [
            {
                "id": f"1{place}{handle}",
                "phone_number": f"+1{place}{handle}",
                "service": "SMS" if changed == "all" else "iMessage",
                "joined_at": "2025-05-21T15:30:00.000-05:00",
            }
            for handle in range(3 if row % 5 == 0 else 2)
        ],
    }


def _template(changed: Changed) -> bytes:
    chats = [_chat(row, changed) for row in range(PER_PAGE)]
    # A placeholder is no number, so ids are written as texts first.
    return re.sub(r'"id": "([#0-9]+)"', r'"id": \1', json.dumps(chats)).encode()


_TEMPLATES = {changed: _template(changed) for changed in get_args(Changed)}


class _Account:
    """What is served, and the counts."""

    def __init__(self) -> None:
        self.serve(Settings())

    def serve(self, settings: Settings) -> None:
        self.settings = settings
        self.counts = Counts()
        self._began: float | None = None
        self._filled_at = 0.0
        self._budget = settings.rate  # a bucket of one second's requests, full at first

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        self.counts.requests += 1
        if self.settings.rate and self._throttles(time.monotonic()):
            self.counts.throttled += 1
            return 429, b'{"errors":[{"status":429,"code":"too_many_requests"}]}'
        if path == f"{_PATH}/chats":
            number = int(query["phone_number"].removeprefix("+")) - _FIRST_NUMBER
            return 200, self._page(number, int(query.get("page", 1)))
        if path == f"{_PATH}/phone_numbers":
            numbers = map(phone_number, range(self.settings.numbers))
            return 200, json.dumps(
                {"phone_numbers": [{"phone_number": n} for n in numbers]}
            ).encode()
        place = path.removeprefix(f"{_PATH}/chats/")[1:]
        page = json.loads(self._page(int(place[:4]), int(place[4:9])))
        return 200, json.dumps({"data": page["data"][int(place[9:])]}).encode()

    def _page(self, number: int, page: int) -> bytes:
        total = self.settings.chats
        rows = b"[]"
        if page <= total // PER_PAGE:
            rows = _TEMPLATES[self.settings.changed].replace(_BLOCK, b"%04d%05d" % (number, page))
        meta = (page, total // PER_PAGE, total, PER_PAGE)
        return b'{"data":%b,"meta":{"page":%d,"total_pages":%d,"total_count":%d,"per_page":%d}}' % (
            rows,
            *meta,
        )

    def _throttles(self, now: float) -> bool:
        rate = self.settings.rate
        if self._began is None:
            self._began = self._filled_at = now
        self.counts.allowance = rate + rate * (now - self._began)
        self._budget = min(rate, self._budget + rate * (now - self._filled_at))
        self._filled_at = now
        allowed = self._budget >= 1
        self._budget -= allowed
        return not allowed


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, as far as GET without a body needs it."""

    def __init__(self, account: _Account) -> None:
        self._account = account
        self._received = b""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._received = (self._received + data).split(b"\r\n\r\n")
        for request in requests:
            path, _, query = request.split(b" ", 2)[1].decode().partition("?")
            self._respond(path, dict(parse_qsl(query)))

    def _respond(self, path: str, query: dict[str, str]) -> None:
        if path == "/control":
            self._account.serve(convert(query, Settings, strict=False))
            self._write(200, b"{}")
        elif path == "/counts":
            self._write(200, json.dumps(to_builtins(self._account.counts)).encode())
        elif latency := self._account.settings.latency:
            self._loop.call_later(latency, self._write, *self._account.answer(path, query))
        else:
            self._write(*self._account.answer(path, query))

    def _write(self, status: int, body: bytes) -> None:
        head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % (status, len(body)) + body)


async def _main() -> None:
    account, loop = _Account(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(account), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
