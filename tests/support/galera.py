"""A Galera cluster of three MariaDB nodes on loopback, which can be killed, stopped or cut off.

The nodes are started from installed binaries, keep their data in a temporary folder, and end with
this process, even if that is killed. It takes them about ten seconds to start.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pymysql

from tests.support import mysql
from tests.support.mysql import SBIN, Binaries

PATIENCE = 60.0  # seconds; a node that copies all data from another one takes about six
_PROVIDERS = (
    "/usr/lib/galera/libgalera_smm.so",
    "/usr/lib64/galera-4/libgalera_smm.so",
    "/usr/lib/galera-4/libgalera_smm.so",
)
# The others find out in seconds that a node is gone.
_PROVIDER_OPTIONS = {
    "gcache.size": "32M",
    "pc.recovery": "false",
    "evs.keepalive_period": "PT0.5S",
    "evs.join_retrans_period": "PT0.5S",
    "evs.inactive_check_period": "PT0.5S",
    "evs.suspect_timeout": "PT2S",
    "evs.inactive_timeout": "PT4S",
    "evs.install_timeout": "PT4S",
}

# $1 is the server, $2 its options, $3 its log, $4 the cluster's folder. The first line of the
# output is the server's process. It runs until it ends, or until standard input is closed, which
# happens when the tests end, also by a signal.
_SERVE = """
exec 3<&0 2>>"$3"
"$1" $2 >&2 </dev/null 3<&- &
server=$!
echo $server
{ read -r _ <&3; : >"$4/over"; kill -KILL $server; } >/dev/null &
wait $server
kill $!
[ ! -e "$4/over" ] || rm -rf "$4"
"""


class NoGaleraError(mysql.NoMySqlError):
    """There is no Galera to test with; the message says why."""


class _Ports(NamedTuple):
    """Where a node listens: for clients, for the other nodes, and for the data it lacks."""

    sql: int
    group: int
    increments: int
    everything: int


class Node:
    """A server of the cluster, which is started with `start`."""

    def __init__(
        self, server: str, folder: Path, name: str, *, ports: _Ports, options: str
    ) -> None:
        self.name = name
        self.url = f"mysql://root@127.0.0.1:{ports.sql}/"
        self.is_isolated = False
        self._command = [
            *("/bin/sh", "-c", _SERVE, "sh"),
            *(server, options, f"{folder}/{name}.log", str(folder)),
        ]
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._pid = 0

    def database(self, name: str) -> str:
        """The URL of this database on this node."""
        return f"{self.url}{name}"

    def start(self, *, is_first: bool = False) -> None:
        """Start the server and wait until it has the cluster's data; the first one has them."""
        command = list(self._command)
        if is_first:
            command[5] = f"{command[5]} --wsrep-new-cluster"
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._folder,
            env={"PATH": f"{os.defpath}:{SBIN}", "LC_ALL": "C"},
            start_new_session=True,  # Ctrl-C goes to the tests, which then close standard input.
            **mysql.account(),
        )
        assert self._process.stdout
        self._pid = int(self._process.stdout.readline())
        self.wait_until_synced()

    def kill(self) -> None:
        """Kill the server, which loses what it has not written to its disk."""
        if self._process:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            with self._process as process:
                process.wait(timeout=PATIENCE)
            self._process = None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The server answers neither its clients nor the other nodes."""
        os.kill(self._pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._pid, signal.SIGCONT)

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """The server answers its clients, but is cut off from the other nodes."""
        self._isolate(1)
        try:
            yield
        finally:
            self._isolate(0)

    def wait_until_synced(self, size: int | None = None) -> None:
        """Wait until it has the cluster's data, and the cluster so many nodes if that is given."""

        def is_synced() -> bool:
            state, members = self._status("local_state_comment"), self._status("cluster_size")
            return state == "Synced" and size in {None, int(members)}

        self.wait(is_synced)

    def wait_until_cut_off(self) -> None:
        """Wait until the node knows that it is alone, and refuses its clients."""
        self.wait(lambda: self._status("cluster_status") != "Primary")

    def wait(self, happened: Callable[[], object]) -> None:
        """Wait for something that a running server reaches by itself."""
        pause = threading.Event()
        for _ in range(int(PATIENCE / 0.05)):
            if self._process is None or self._process.poll() is not None:
                raise AssertionError(f"it has ended: {self._log()}")
            with suppress(pymysql.Error):
                if happened():
                    return
            pause.wait(0.05)
        raise AssertionError(f"not within {PATIENCE:g} s: {self._log()}")

    def _status(self, name: str) -> str:
        ((_, value),) = mysql.execute(self.url, f"SHOW STATUS LIKE 'wsrep_{name}'")
        return str(value)

    def _isolate(self, level: int) -> None:
        option = f"gmcast.isolate={level}"
        mysql.execute(self.url, f"SET GLOBAL wsrep_provider_options = '{option}'")

    def _log(self) -> str:
        return f"{self.name}: {(self._folder / f'{self.name}.log').read_text()[-2000:]}"


@contextmanager
def cluster() -> Iterator[tuple[Node, Node, Node]]:
    """Three nodes that have started. Raises NoGaleraError."""
    binaries, provider = mysql.installed(), _provider()
    if binaries.installer == binaries.server:
        raise NoGaleraError("the installed server is MySQL")
    folder = mysql.make_folder()
    try:
        nodes = _nodes(binaries.server, provider, folder)
        with ExitStack() as started:
            _install(binaries, folder / nodes[0].name)
            for node in nodes:
                started.callback(node.kill)
                node.start(is_first=node is nodes[0])
            yield nodes
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _provider() -> str:
    if shutil.which("rsync") is None:
        raise NoGaleraError("rsync is not installed, by which a node gets its data")
    for path in _PROVIDERS:
        if Path(path).exists():
            return path
    raise NoGaleraError("galera-4 is not installed")


def _nodes(server: str, provider: str, folder: Path) -> tuple[Node, Node, Node]:
    ports = [_free_ports() for _ in range(3)]
    addresses = ",".join(f"127.0.0.1:{each.group}" for each in ports)
    shared = {
        "innodb-flush-log-at-trx-commit": "0",
        "innodb-log-file-size": "16M",
        "innodb-autoinc-lock-mode": "2",
        "binlog-format": "ROW",
        "performance-schema": "OFF",
        "bind-address": "127.0.0.1",
        "wsrep-on": "ON",
        "wsrep-provider": provider,
        "wsrep-cluster-name": f"linq_etl_test_{uuid.uuid4().hex[:12]}",  # 32 characters at most
        "wsrep-cluster-address": f"gcomm://{addresses}",
        "wsrep-sst-method": "rsync",
    }

    def node(number: int) -> Node:
        name, own = f"node{number}", ports[number - 1]
        mine = {
            "port": str(own.sql),
            "socket": f"{folder}/{name}.sock",
            "pid-file": f"{folder}/{name}.pid",
            "wsrep-node-name": name,
            "wsrep-node-address": f"127.0.0.1:{own.group}",
            "wsrep-sst-receive-address": f"127.0.0.1:{own.everything}",
            "wsrep-provider-options": ";".join(
                f"{key}={value}"
                for key, value in {
                    **_PROVIDER_OPTIONS,
                    "gmcast.listen_addr": f"tcp://127.0.0.1:{own.group}",
                    "ist.recv_addr": f"127.0.0.1:{own.increments}",
                }.items()
            ),
        }
        options = " ".join(f"--{key}={value}" for key, value in (shared | mine).items())
        data = mysql.data_options(_make_data(folder, name))
        return Node(
            server, folder, name, ports=own, options=f"{data} {options} --skip-name-resolve"
        )

    return node(1), node(2), node(3)


def _make_data(folder: Path, name: str) -> Path:
    data = folder / name
    data.mkdir()
    if user := mysql.account():
        os.chown(data, user["user"], user["group"])
    return data


def _install(binaries: Binaries, data: Path) -> None:
    options = f"{mysql.data_options(data)} {mysql.install_options(binaries)}"
    done = subprocess.run(
        [binaries.installer, *options.split()],
        capture_output=True,
        check=False,
        cwd=data,
        env={"PATH": f"{os.defpath}:{SBIN}", "LC_ALL": "C"},
        timeout=PATIENCE,
        **mysql.account(),
    )
    if done.returncode:
        raise NoGaleraError(f"{binaries.installer} failed: {done.stderr[-500:]!r}")


def _free_ports() -> _Ports:
    """Below those that the system gives to outgoing connections, which could take them later."""
    choose = random.SystemRandom()
    for _ in range(100):
        first = choose.randrange(10_000, 32_000, len(_Ports._fields))
        ports = range(first, first + len(_Ports._fields))
        with ExitStack() as bound, suppress(OSError):
            for port in ports:
                bound.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return _Ports(*ports)
    raise NoGaleraError("no free ports")
