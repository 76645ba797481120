"""One raw request over a connection: sent, bounded in time and bytes, and answered or failed.

httpx's transports are used without its client: cookies, redirects and authentication, unused here,
cost half as much CPU time as the request itself.
"""

import asyncio
import os
import socket
import ssl
import zlib
from contextlib import suppress
from typing import Final, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from etl import __version__
from etl.api.retry import TransientError
from etl.config import Api, Token, is_loopback
from etl.errors import ConfigError

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
MAX_BYTES_HELD: Final = 64 * 1024 * 1024  # of all bodies that are read or wait to be decoded

PATH: Final = "/api/partner/v2"
_HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "User-Agent": f"linq-etl/{__version__}",
}


class Response(NamedTuple):
    """An answer that was read to its end, decompressed."""

    status: int
    headers: httpx.Headers
    body: bytes


class Transport:
    """Connections to one API. Raises ConfigError if its URL, proxy or certificates are invalid."""

    def __init__(self, config: Api) -> None:
        self._seconds = config.timeout_seconds
        # Shorter for connecting, so that a hanging connect is not reported as a missing answer.
        self._timeout = httpx.Timeout(self._seconds, connect=0.9 * self._seconds).as_dict()
        self._url = _url(config.base_url)
        self._proxy = proxy_for(config.base_url)
        self._tls = tls_context()
        self._idle: list[httpx.AsyncHTTPTransport] = []
        self._bytes_held = 0

    async def aclose(self) -> None:
        """Close the connections."""
        while self._idle:
            await self._idle.pop().aclose()

    async def get(self, token: Token, target: str) -> Response:
        """GET the target, a path with its query. Raises TransientError if there is no answer.

        The body counts as held until `release` is called for it.
        """
        # A transport per request in flight. It is used again only after a complete answer: after a
        # broken-off one, httpx would wait for the connection that the old request still occupies.
        transport = self._idle.pop() if self._idle else self._new_transport()
        complete = False
        try:
            # httpx limits each read; this limits the whole request, whose body may trickle in.
            async with asyncio.timeout(self._seconds):
                raw = await transport.handle_async_request(self._request(token, target))
                try:
                    response = Response(raw.status_code, raw.headers, await self._read(raw))
                finally:
                    await raw.aclose()
            complete = True
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise TransientError(connect_failure(error), unreachable=self._peer()) from None
        except httpx.ProxyError:
            raise TransientError("it refused", unreachable=self._peer()) from None
        except (TimeoutError, httpx.TimeoutException):
            raise TransientError(f"no answer in {self._seconds:g} s") from None
        except httpx.RequestError as error:
            # Its text may hold the URL, and with it the phone number.
            raise TransientError(f"the connection broke: {type(error).__name__}") from None
        finally:
            if complete:
                self._idle.append(transport)
            else:
                # After a suspension or a change of networks, idle connections are as dead as it is.
                broken, self._idle = [transport, *self._idle], []
                for each in broken:
                    with suppress(Exception):
                        await each.aclose()
        return response

    def release(self, response: Response) -> None:
        """The body was decoded, or is not needed."""
        self._bytes_held -= len(response.body)

    async def _read(self, raw: httpx.Response) -> bytes:
        decompress = _decompressor(raw.headers.get("Content-Encoding", ""))
        chunks: list[bytes] = []
        held = size = 0
        try:
            async for chunk in raw.aiter_raw():
                data = decompress.add(chunk, MAX_BODY_BYTES - size)
                chunks.append(data)
                size += len(data)
                held += len(data)
                self._hold(len(data))
            decompress.end()
        except BaseException:
            self._bytes_held -= held
            raise
        return b"".join(chunks)

    def _hold(self, size: int) -> None:
        self._bytes_held += size
        if self._bytes_held > MAX_BYTES_HELD:
            raise TransientError("too many large answers at a time")

    def _request(self, token: Token, target: str) -> httpx.Request:
        return httpx.Request(
            "GET",
            self._url.copy_with(raw_path=self._url.raw_path + target.encode()),
            headers={**_HEADERS, "X-LINQ-INTEGRATION-TOKEN": token.value},
            extensions={"timeout": self._timeout},
        )

    def _peer(self) -> str:
        if self._proxy:
            return f"the proxy {urlsplit(self._proxy).netloc.rpartition('@')[2]}"
        return self._url.host

    def _new_transport(self) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(
            verify=self._tls,
            limits=httpx.Limits(max_connections=1),
            proxy=self._proxy,
        )


class _Identity:
    """No compression."""

    def add(self, chunk: bytes, most: int) -> bytes:
        """The decompressed bytes of a chunk. Raises TransientError if they exceed `most`."""
        if len(chunk) > most:
            raise TransientError(f"an answer larger than {MAX_BODY_BYTES >> 20} MiB")
        return chunk

    def end(self) -> None:
        """Raise TransientError if the compressed data is not complete."""


class _Inflate(_Identity):
    """gzip, or deflate with a zlib header."""

    def __init__(self, window_bits: int) -> None:
        self._decompressor = zlib.decompressobj(window_bits)

    def add(self, chunk: bytes, most: int) -> bytes:
        try:
            # One byte more than allowed shows that there is more.
            return super().add(self._decompressor.decompress(chunk, most + 1), most)
        except zlib.error:
            raise TransientError("an answer that is not compressed as it says") from None

    def end(self) -> None:
        if not self._decompressor.eof:
            raise TransientError("a compressed answer that is cut short")


def _decompressor(encoding: str) -> _Identity:
    """For the one encoding that an answer may have; nested ones grow without bound."""
    match encoding.strip().lower():
        case "" | "identity":
            return _Identity()
        case "gzip" | "x-gzip":
            return _Inflate(16 + zlib.MAX_WBITS)
        case "deflate":
            return _Inflate(zlib.MAX_WBITS)
    raise TransientError("an answer in an encoding that was not asked for")


def _url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url.rstrip("/") + PATH)
        labels = url.host.rstrip(".").split(".")
    except (httpx.InvalidURL, UnicodeError):
        labels = []
    if not labels or not all(0 < len(label) < 64 for label in labels):  # RFC 1035, 2.3.4
        raise ConfigError("api.base_url: its host name is invalid")
    return url


def tls_context() -> ssl.SSLContext:
    """The system's certificates. Raises ConfigError if they cannot be read."""
    try:
        return httpx.create_ssl_context()
    except (OSError, ssl.SSLError) as error:
        named = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)]
        variable = f"${named[0]}" if named else "The TLS certificates"
        reason = error.strerror or "not a certificate file"
        raise ConfigError(f"{variable}: cannot be read: {reason}") from None


def proxy_for(full_url: str) -> str | None:
    """The environment's proxy for this URL; none for loopback, whose token no proxy may see."""
    url = urlsplit(full_url)
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    if is_loopback(host) or proxy_bypass(host) or proxy_bypass(f"{host}:{port}"):
        return None
    proxies = getproxies()
    name = url.scheme if proxies.get(url.scheme) else "all"
    proxy, variable = proxies.get(name), f"{name.upper()}_PROXY"
    if not proxy:
        return None
    full = proxy if "://" in proxy else f"http://{proxy}"
    try:
        parts = urlsplit(full)
        valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        httpx.Proxy(full)
    except (ValueError, httpx.InvalidURL):
        valid = False
    if not valid:
        raise ConfigError(f"${variable}: not a proxy that can be used; expected http://HOST:PORT")
    return full


def connect_failure(error: BaseException) -> str:
    """Why there is no connection, without the addresses that the exceptions' own texts hold."""
    cause: BaseException | None = error
    while cause:
        match cause:
            case httpx.ConnectTimeout():
                return "timed out"
            case ssl.SSLCertVerificationError():
                return f"TLS certificate: {cause.verify_message}"
            case ssl.SSLError(reason=str(reason)):
                return f"TLS: {reason.replace('_', ' ').lower()}"
            case socket.gaierror(strerror=str(reason)):
                return reason.lower()
            case OSError(errno=int(number)):
                return os.strerror(number).lower()
            case BaseExceptionGroup():  # one exception per address that was tried
                cause = cause.exceptions[0]
            case _:
                cause = cause.__cause__ or cause.__context__
    return "no connection"
