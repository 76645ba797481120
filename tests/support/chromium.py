"""Headless Chromium, asked over its own protocol what a page does; it needs no other package.

`$LINQ_ETL_TEST_CHROMIUM` names the program, else it is looked for on PATH.
`python -m tests.support.chromium linq-demo.html docs/report.png` takes the picture of the README.
"""

import json
import os
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select as poll
from tempfile import TemporaryDirectory
from typing import Any, Final

from tests.support.command import PATIENCE

VARIABLE: Final = "LINQ_ETL_TEST_CHROMIUM"
_PROGRAM = os.environ.get(VARIABLE)
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def program() -> str | None:
    """The program; None if there is none."""
    return _PROGRAM or next(filter(None, map(shutil.which, _NAMES)), None)


class Page:
    """A tab. `events` are those that came so far: requests, messages of the console, errors."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._buffer = b""
        self._session: str | None = None
        self._last_id = 0
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._last_id:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path, *, width: int, dark: bool = False, media: str = "screen") -> None:
        """Load the file in a window of this width, and wait until all is there."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.send("Page.navigate", url=path.as_uri())
        while not any(each.get("method") == "Page.loadEventFired" for each in self.events):
            self.events.append(self._receive())

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript gives in the page."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def named(self, method: str) -> list[dict[str, Any]]:
        """The parameters of the events of this name."""
        return [each["params"] for each in self.events if each.get("method") == method]

    def screenshot(self, *, height: int) -> bytes:
        """The upper part of the page as PNG."""
        width = self.value("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return b64decode(shot["data"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert poll([self._reading], [], [], PATIENCE)[0], "Chromium does not answer"
            block = os.read(self._reading, 1 << 16)
            assert block, "Chromium has ended"
            self._buffer += block
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


@contextmanager
def browser(command: str, folder: Path) -> Iterator[Page]:
    """A page of a new browser, whose profile is in the folder; it ends with the block."""
    to_browser, writing = os.pipe()
    reading, from_browser = os.pipe()
    # The protocol is spoken on descriptors 3 and 4, which the shell puts there.
    script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", f"--user-data-dir={folder}", "--remote-debugging-pipe"),
    ]
    with subprocess.Popen(
        ["bash", "-c", script, "bash", command, *options],
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            os.close(to_browser)
            os.close(from_browser)
            yield Page(reading, writing)
        finally:
            process.terminate()
            os.close(reading)
            os.close(writing)


def main(source: str, picture: str) -> None:
    """Take a picture of the upper part of a page."""
    found = program()
    if found is None:
        sys.exit(f"There is no Chromium on PATH, and ${VARIABLE} names none.")
    with (
        TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        browser(found, Path(folder)) as page,
    ):
        page.open(Path(source).resolve(), width=1000)
        Path(picture).write_bytes(page.screenshot(height=950))


if __name__ == "__main__":
    main(*sys.argv[1:])
