"""The HTTP side of the sandbox: tokens, the record of requests, one lock around the world."""

import contextlib
import hmac
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

from etl.sandbox import routes
from etl.sandbox.faults import Faults, FaultSource
from etl.sandbox.routes import RefusedError, Reply, reply_error, reply_json
from etl.sandbox.traffic import Traffic
from etl.sandbox.world import Motion, World

TOKEN_HEADER = "X-LINQ-INTEGRATION-TOKEN"


class Request(NamedTuple):
    """A recorded request; status 0 is a connection closed without an answer."""

    method: str
    path: str
    query: dict[str, str]
    status: int


class Sandbox:
    """Serves the world on 127.0.0.1, from `start` or the `with` statement until `stop`.

    The main token reaches every number; `tokens` maps further tokens to the numbers they reach.
    Hold `lock` to change the world while requests may be in flight.
    """

    def __init__(
        self,
        world: World,
        *,
        token: str = "sandbox-token",
        faults: Faults | None = None,
        motion: Motion | None = None,
        traffic: Traffic | None = None,
        port: int = 0,
        tokens: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self.world = world
        self.motion = motion or Motion()
        self.traffic = traffic
        self.faults = faults or Faults()
        self.lock = threading.Lock()
        self.requests: deque[Request] = deque(maxlen=100_000)
        self.request_count = 0
        self._reach = {**(tokens or {}), token: world.numbers}
        self._server = _Server(("127.0.0.1", port), partial(_Handler, self))
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def faults(self) -> Faults:
        """Setting them restarts the random faults and the rate limit."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults = faults
        self._fault_source = FaultSource(faults)

    def start(self) -> threading.Thread:
        """Serve in a new thread."""
        # A short poll makes `stop` prompt.
        serve = partial(self._server.serve_forever, poll_interval=0.02)
        thread = threading.Thread(target=serve, name="sandbox", daemon=True)
        self._thread = thread
        thread.start()
        return thread

    def stop(self) -> None:
        """Close the port and every connection; the port is then free."""
        # Cleared first, because another thread may call `stop` too.
        thread, self._thread = self._thread, None
        if thread:
            self._server.shutdown()
            thread.join()
        self._server.server_close()

    def serve_forever(self) -> None:
        """Serve until this thread is interrupted or another one calls `stop`."""
        thread = self._thread or self.start()
        try:
            thread.join()
        finally:
            self.stop()

    def respond(self, target: str, token: str) -> Reply | None:
        """The reply to GET `target`; None is a connection closed without an answer."""
        time.sleep(self.faults.latency)
        parts = urlsplit(target)
        path, query = parts.path, dict(parse_qsl(parts.query, keep_blank_values=True))
        with self.lock:
            if self.traffic:
                self.traffic.catch_up()
            fault = self._fault_source.next_fault()
            reply: Reply | None = self._answer(path, query, token)
            if reply and fault:
                reply = fault(reply)
            elif reply and path == routes.LIST_CHATS and reply.status == HTTPStatus.OK:
                self.world.move(self.motion, routes.requested_number(query))
            self.requests.append(Request("GET", path, query, reply.status if reply else 0))
            self.request_count += 1
        return reply

    def _answer(self, path: str, query: dict[str, str], token: str) -> Reply:
        try:
            reach = self._numbers_of(token)
            return reply_json(200, routes.answer(self.world, path, query=query, reach=reach))
        except RefusedError as refused:
            return reply_error(refused.status, str(refused))

    def _numbers_of(self, token: str) -> Collection[str]:
        for known, numbers in self._reach.items():
            if hmac.compare_digest(known.encode(), token.encode()):
                return numbers
        raise RefusedError(HTTPStatus.UNAUTHORIZED, "Invalid or missing authentication token")


class _Server(ThreadingTCPServer):
    # Not HTTPServer, which looks up the host name of this machine.
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Also close idle connections, whose threads would otherwise go on answering."""
        super().server_close()
        for connection in self._connections.copy():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "sandbox"
    disable_nagle_algorithm = True
    # One write for head and body: the largest page is well below this buffer.
    wbufsize = 1 << 20

    def __init__(self, sandbox: Sandbox, *args: Any) -> None:
        self._sandbox = sandbox
        super().__init__(*args)

    def do_GET(self) -> None:
        reply = self._sandbox.respond(self.path, self.headers.get(TOKEN_HEADER, ""))
        if reply is None:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, *_: object) -> None:
        """Log nothing: `Sandbox.requests` records the requests."""
