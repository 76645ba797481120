"""A stand-in for the API that is never the bottleneck: every page is built before it is asked for.

It runs in its own process, on loopback. `/control?settings=JSON` sets what it serves and resets the
counts; `/counts` returns them.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args
from urllib.parse import parse_qsl, urlencode
from urllib.request import ProxyHandler, build_opener

import msgspec
from msgspec import Struct

from tests.benchmarks.limiter import Limit, make_limiter, retry_after

ROOT: Final = Path(__file__).parents[2]
PER_PAGE: Final = 100
HANDLES_PER_PAGE: Final = 220
_PATH = "/api/partner/v2"
_FIRST_NUMBER = 13122000000
_BLOCK = b"#" * 9  # of each id and name: 4 digits for the number, 5 for the page
_TIME_BLOCK = b"@:@@.@@@"  # of each time: the page's digits
_OPENER = build_opener(ProxyHandler({}))


# Which chats differ from the first load: one in a hundred (new name and message count), or all of
# them (new name, and each participant's service).
Changed = Literal["none", "some", "all"]


class Settings(Struct, frozen=True):
    """Chats per number, a multiple of 100; latency in seconds."""

    chats: int = 100_000
    numbers: int = 1
    latency: float = 0.0
    limit: Limit = Limit()
    changed: Changed = "none"


class Counts(Struct):
    """Requests, those refused, and how many the limit allowed from the first to the last."""

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
        self._get(f"/control?{urlencode({'settings': msgspec.json.encode(settings)})}")

    def counts(self) -> Counts:
        return msgspec.json.decode(self._get("/counts"), type=Counts)

    def _get(self, path: str) -> bytes:
        with _OPENER.open(self.url + path, timeout=10) as response:
            body: bytes = response.read()
            return body


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
                "joined_at": _joined_at(3 * row + handle),
            }
            for handle in range(3 if row % 5 == 0 else 2)
        ],
    }


def _joined_at(position: int) -> str:
    """The position and, in the block, the page make every time of a list a different one."""
    moment = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(minutes=1870 * position)
    return f"{moment:%Y-%m-%dT%H:%M}"[:-1] + f"{_TIME_BLOCK.decode()}-05:00"


def _template(changed: Changed) -> bytes:
    chats = [_chat(row, changed) for row in range(PER_PAGE)]
    # A placeholder is no number, so ids are written as texts first.
    return re.sub(r'"id": "([#0-9]+)"', r'"id": \1', json.dumps(chats)).encode()


_TEMPLATES = {changed: _template(changed) for changed in get_args(Changed)}


class _Answer(NamedTuple):
    status: int
    body: bytes
    headers: bytes = b""


class _Account:
    """What is served, and the counts."""

    def __init__(self) -> None:
        self.serve(Settings(chats=0))

    def serve(self, settings: Settings) -> None:
        self.settings = settings
        self.counts = Counts()
        self._began: float | None = None
        self._limiter = make_limiter(settings.limit, settings.latency)
        self._pages = {
            (number, page): _page(settings, number, page)
            for number in range(settings.numbers)
            for page in range(1, settings.chats // PER_PAGE + 1)
        }

    def answer(self, path: str, query: dict[str, str]) -> _Answer:
        self.counts.requests += 1
        if throttle := self._throttle():
            return throttle
        if path == f"{_PATH}/chats":
            number = int(query["phone_number"].removeprefix("+")) - _FIRST_NUMBER
            page = int(query.get("page", 1))
            found = self._pages.get((number, page))
            return _Answer(200, found or _envelope(self.settings, page, b"[]"))
        if path == f"{_PATH}/phone_numbers":
            numbers = map(phone_number, range(self.settings.numbers))
            return _json({"phone_numbers": [{"phone_number": n} for n in numbers]})
        place = path.removeprefix(f"{_PATH}/chats/")[1:]
        chats = json.loads(self._pages[int(place[:4]), int(place[4:9])])["data"]
        return _json({"data": chats[int(place[9:])]})

    def _throttle(self) -> _Answer | None:
        if self._limiter is None:
            return None
        if self._began is None:
            self._began = time.monotonic()
        now = time.monotonic() - self._began
        self.counts.allowance = self.settings.limit.allowance(now)
        if self._limiter.allows(now):
            return None
        self.counts.throttled += 1
        wait = self._limiter.wait(now)
        header = retry_after(wait) if self.settings.limit.retry_after else b""
        return _Answer(429, b'{"errors":[{"status":429,"code":"too_many_requests"}]}', header)


def _page(settings: Settings, number: int, page: int) -> bytes:
    rows = _TEMPLATES[settings.changed].replace(_BLOCK, b"%04d%05d" % (number, page))
    return _envelope(settings, page, rows.replace(_TIME_BLOCK, _time_block(number, page)))


def _envelope(settings: Settings, page: int, rows: bytes) -> bytes:
    meta = (page, settings.chats // PER_PAGE, settings.chats, PER_PAGE)
    return b'{"data":%b,"meta":{"page":%d,"total_pages":%d,"total_count":%d,"per_page":%d}}' % (
        rows,
        *meta,
    )


def _time_block(number: int, page: int) -> bytes:
    """The page's digits, as minute, second and milliseconds."""
    minute, rest = divmod(page, 10_000)
    second, milliseconds = divmod(rest, 1000)
    return b"%d:%d%d.%03d" % (minute, number % 6, second, milliseconds)


def _json(value: Any) -> _Answer:
    return _Answer(200, json.dumps(value).encode())


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
            self._account.serve(msgspec.json.decode(query["settings"], type=Settings))
            self._write(_Answer(200, b"{}"))
        elif path == "/counts":
            self._write(_Answer(200, msgspec.json.encode(self._account.counts)))
        elif latency := self._account.settings.latency:
            self._loop.call_later(latency, self._write, self._account.answer(path, query))
        else:
            self._write(self._account.answer(path, query))

    def _write(self, answer: _Answer) -> None:
        status, body, headers = answer
        head = b"HTTP/1.1 %d X\r\n%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % (status, headers, len(body)) + body)


async def _main() -> None:
    account, loop = _Account(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(account), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
