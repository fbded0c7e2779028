"""The measured servers, each in a separate process, and what the kernel reports about them."""

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from benchmarks.messages import HARNESS
from evalrpc.cli import serve

REPOSITORY: Final = Path(__file__).parent.parent
PEER_PYTHON: Final = REPOSITORY / ".envs" / "peer" / "bin" / "python"
"""The interpreter of an environment with lmms-eval and what its HTTP server needs; `make envs-peer` makes it."""

_HOLD: Final = "hold"
_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 30.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_LAUNCHER: Final = """\
import os, sys
options = dict(zip(sys.argv, sys.argv[1:]))
os.execvp("sh", ["sh", {program!r}, options["--model"], options["--output_path"]])
"""


class Server:
    """A server process that listens."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, begin: float) -> None:
        self._proc = Path(f"/proc/{process.pid}")
        self.pid = process.pid
        self.address = address
        self.start_seconds = time.monotonic() - begin
        """From the start of the process to the moment when it listens."""

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        os.kill(self.pid, number)

    def memory(self) -> int:
        """Return the resident memory of the process, in bytes."""
        return self._status("VmRSS")

    def peak_memory(self) -> int:
        """Return the peak of its resident memory since `reset_peak`, in bytes."""
        return self._status("VmHWM")

    def reset_peak(self) -> None:
        """Reset the peak."""
        (self._proc / "clear_refs").write_text("5")

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used so far."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def _status(self, name: str) -> int:
        lines = (self._proc / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@contextmanager
def workplace() -> Iterator[Path]:
    """Yield a temporary folder for one comparison, with the file whose removal ends the runs of `evalrpc_server`."""
    with tempfile.TemporaryDirectory(prefix="evalrpc-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / _HOLD).touch()
        (folder / "hold.sh").write_text(f'while [ -e "{folder / _HOLD}" ] && kill -0 {os.getpid()}; do sleep 1; done\n')
        (folder / "evalrpc.toml").write_text(_config(folder))
        try:
            yield folder
        finally:
            (folder / _HOLD).unlink()
            _wait_for_runs(folder)


@contextmanager
def evalrpc_server(
    folder: Path, data_dir: str = "data", gpus: int = 1, auth: str = "off", more: Sequence[str] = ()
) -> Iterator[Server]:
    """Run the real server on a data folder in a workplace, with `more` flags."""
    limits = ("--gpus", str(gpus), "--max-queued", "10000000", "--auth", auth)
    where = ("--listen", "127.0.0.1:0", "--data-dir", str(folder / data_dir), "--config", str(folder / "evalrpc.toml"), *more)
    with _running((sys.executable, "-m", "evalrpc.cli", "serve", *where, *limits), folder / "evalrpc.log") as server:
        yield server


@contextmanager
def yardstick_server(folder: Path) -> Iterator[Server]:
    """Run the bare server."""
    # The listener that evalrpc/cli/serve.py chooses; gRPC reads the variable when it is imported.
    command = ("env", f"GRPC_EXPERIMENTS={serve.GRPC_EXPERIMENTS}", sys.executable, "-m", "benchmarks.yardstick")
    with _running(command, folder / "yardstick.log") as server:
        yield server


@contextmanager
def peer_server(folder: Path, program: Path) -> Iterator[Server]:
    """Run lmms-eval's own HTTP server, unmodified, where a job with two GPUs runs `sh PROGRAM MODEL OUTPUT_DIR`.

    For such a job it starts `python -m accelerate.commands.launch` with the model and the folder among its arguments. A module
    of that name in its working folder replaces the evaluation.
    """
    launcher = folder / "peer" / "accelerate" / "commands" / "launch.py"
    launcher.parent.mkdir(parents=True, exist_ok=True)
    launcher.write_text(_LAUNCHER.format(program=str(program)))
    port = free_port()
    command = (str(PEER_PYTHON), "-m", "lmms_eval", "serve", "--host", "127.0.0.1", "--port", str(port))
    with _running(command, folder / "peer.log", folder / "peer", port) as server:
        yield server


@contextmanager
def gateway_program(folder: Path) -> Iterator[Server]:
    """Run the gateway of served models, with its control socket in a folder."""
    port = free_port()
    where = ("--listen", f"127.0.0.1:{port}", "--folder", str(folder))
    with _running((sys.executable, "-m", "evalrpc.engines.gateway", *where), folder / "gateway.log", port=port) as server:
        yield server


@contextmanager
def stub_engine(folder: Path, delay_seconds: float) -> Iterator[Server]:
    """Run an engine that answers each question alike, after a time."""
    command = (sys.executable, "-m", "benchmarks.engine", str(delay_seconds))
    with _running(command, folder / "engine.log") as server:
        yield server


@contextmanager
def both(folder: Path) -> Iterator[tuple[Server, Server]]:
    """Run the real server and the bare one."""
    with evalrpc_server(folder) as ours, yardstick_server(folder) as bare:
        yield ours, bare


@contextmanager
def _running(command: Sequence[str], log: Path, cwd: Path = REPOSITORY, port: int | None = None) -> Iterator[Server]:
    """Run a server. If no port is given, it must print its address to stdout."""
    begin = time.monotonic()
    with log.open("ab") as output:
        stdout = subprocess.PIPE if port is None else output
        process = subprocess.Popen(command, stdout=stdout, stderr=output, cwd=cwd)
    try:
        yield Server(process, _listening_address(process) if port is None else _open_address(process, port), begin)
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _listening_address(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
    line = process.stdout.readline().decode() if readable else ""
    if " listening on " not in line:
        raise RuntimeError(f"{process.args!r} did not start: see its log")
    return line.split()[-1]


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _open_address(process: subprocess.Popen[bytes], port: int) -> str:
    """Wait until the port accepts connections."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(ConnectionRefusedError), closing(socket.create_connection(("127.0.0.1", port))):
            return f"127.0.0.1:{port}"
        time.sleep(0.01)
    raise RuntimeError(f"{process.args!r} did not start: see its log")


def _config(folder: Path) -> str:
    program = folder / "artifact.py"
    return (
        f'[harnesses.{HARNESS}]\nkind = "command"\ncommand = ["sh", "{folder / "hold.sh"}"]\n'
        f'[harnesses.artifact]\nkind = "command"\ncommand = ["{sys.executable}", "{program}", "{{output_dir}}"]\n'
    )


def _wait_for_runs(folder: Path) -> None:
    """Wait for the runs to end: they outlive their server until the file that they poll is gone."""
    deadline = time.monotonic() + _STOP_SECONDS
    for path in folder.glob("*/jobs/*/attempt-*/run/pid"):
        with suppress(OSError, ValueError):
            pid = int(path.read_text().split()[0])
            while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
