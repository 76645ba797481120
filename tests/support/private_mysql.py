"""A MariaDB or MySQL of a test's own, with its options, which may be killed and started again.

It listens on a port of loopback, keeps its data in a temporary folder, and ends with this process,
even if that is killed.
"""

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support import mysql

PATIENCE = 60.0  # seconds
# $1 is the server, $2 the folder, the rest are options. The first line of the output is the
# server's process. It runs until it ends, or until standard input is closed: the tests have ended.
_SERVE = """
server=$1 folder=$2
shift 2
exec 3<&0 2>>"$folder/log"
"$server" "$@" >&2 </dev/null 3<&- &
server=$!
echo $server
{ read -r _ <&3; : >"$folder/over"; kill -KILL $server; } >/dev/null &
wait $server
kill $!
[ ! -e "$folder/over" ] || rm -rf "$folder"
"""


class PrivateServer:
    """A server that is running, unless it was killed."""

    def __init__(self, program: str, folder: Path, options: tuple[str, ...]) -> None:
        # Another program may take the port meanwhile, which is not likely.
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder = folder
        self.url = f"mysql://root@127.0.0.1:{self.port}/"
        own = (f"--port={self.port}", f"--socket={folder}/socket", f"--pid-file={folder}/pid")
        # Fast, but what is committed outlives the server's process.
        fast = ("--performance-schema=OFF", "--innodb-flush-log-at-trx-commit=2")
        data = mysql.data_options(folder / "data").split()
        given = (*data, *own, "--bind-address=127.0.0.1", *fast, *options)
        self._command = ["/bin/sh", "-c", _SERVE, "sh", program, str(folder), *given]
        self._process: subprocess.Popen[str] | None = None
        self._pid = 0

    def start(self, *options: str) -> None:
        """Start the server and wait until it answers.

        The options go before those with which it was made.
        """
        (self.folder / "socket").unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [*self._command, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={"PATH": f"{os.defpath}:{mysql.SBIN}", "LC_ALL": "C"},
            start_new_session=True,  # Ctrl-C goes to the tests, which then close standard input.
            **mysql.account(),
        )
        assert self._process.stdout
        self._pid = int(self._process.stdout.readline())
        pause = threading.Event()
        for _ in range(int(PATIENCE / 0.02)):
            if self._answers():
                return
            if self._process.poll() is not None:
                break
            pause.wait(0.02)
        raise mysql.NoMySqlError(f"it does not start: {(self.folder / 'log').read_text()[-2000:]}")

    def _answers(self) -> bool:
        """Whether it listens: it has its socket a little earlier."""
        with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
            client.connect(str(self.folder / "socket"))
            return True
        return False

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Execute as root, by the socket, so that no option keeps this from connecting."""
        url = f"mysql://root@localhost/?unix_socket={self.folder}/socket"
        return mysql.execute(url, statement)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill the server, or let it end in good order, and wait for its end."""
        if self._process:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)
            with self._process as process:
                process.wait(timeout=PATIENCE)
            self._process = None

    @contextmanager
    def away(self) -> Iterator[None]:
        """Kill the server; at the end, start it again."""
        self.end()
        yield
        self.start()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The server does not answer."""
        os.kill(self._pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._pid, signal.SIGCONT)


@contextmanager
def private_server(*options: str) -> Iterator[PrivateServer]:
    """A new server with these options. Raises NoMySqlError."""
    binaries = mysql.installed()
    folder = mysql.make_folder()
    try:
        _install(binaries, folder)
        server = PrivateServer(binaries.server, folder, options)
        try:
            server.start()
            yield server
        finally:
            server.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _install(binaries: mysql.Binaries, folder: Path) -> None:
    options = f"{mysql.data_options(folder / 'data')} {mysql.install_options(binaries)}"
    done = subprocess.run(
        [binaries.installer, *options.split()],
        capture_output=True,
        check=False,
        cwd=folder,
        env={"PATH": f"{os.defpath}:{mysql.SBIN}", "LC_ALL": "C"},
        text=True,
        **mysql.account(),
    )
    if done.returncode:
        raise mysql.NoMySqlError(
            f"it cannot be installed: {done.stdout[-500:]}{done.stderr[-500:]}"
        )
