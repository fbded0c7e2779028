"""The load of single calls, made by h2load: nghttp2's native client, which repeats one request as fast as it is answered.

A client built on a gRPC library costs about as much per call as the server, so on a small machine it would measure itself.
"""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from benchmarks.http2 import Request

_GRPC: Final = ("-H", "content-type: application/grpc", "-H", "te: trailers")
_VARYING_BYTES: Final = 3


@dataclass(frozen=True)
class Answered:
    """What h2load measured."""

    per_second: float
    latencies: list[float]
    """Seconds from the sending to the end of the answer, sorted."""
    client_share: float
    """The share of a processor that h2load used. Near 1 for each of its threads, the client is the limit."""


def is_installed() -> bool:
    """Return whether h2load is installed. Debian has it in `nghttp2-client`."""
    return shutil.which("h2load") is not None


@dataclass(frozen=True)
class GrpcCall:
    """A gRPC call that is repeated over one connection per thread."""

    request: Request

    def repeat(self, address: str, count: int, in_flight: int, threads: int) -> Answered:
        """Make `count` calls. Raises RuntimeError if any fails.

        To h2load a gRPC error is a 200 without a message. So the bytes tell: on average the answers must be as long as that of
        a first call, but for a few bytes of their times.
        """
        threads = min(threads, in_flight)
        size = ("-c", str(threads), "-t", str(threads), "-m", str(in_flight // threads))
        answer_bytes = self.request.answer_bytes(address) - _VARYING_BYTES
        sign_in = ("-H", f"authorization: Bearer {self.request.token}") if self.request.token else ()
        url = f"http://{address}{self.request.path}"
        return _run((*size, *_GRPC, *sign_in, url), self.request.body, count, answer_bytes)


@dataclass(frozen=True)
class HttpCall:
    """An HTTP/1.1 request, which is repeated over as many connections as are in flight: a POST if it has a body."""

    path: str
    body: bytes = b""
    content_type: str = "application/json"
    port: int | None = None
    """Where the server has HTTP, if not at its address."""

    def repeat(self, address: str, count: int, in_flight: int, _threads: int) -> Answered:
        """Make `count` requests. Raises RuntimeError if any fails."""
        place = address if self.port is None else f"{address.rpartition(':')[0]}:{self.port}"
        headers = ("--h1", "-H", f"content-type: {self.content_type}")
        return _run(("-c", str(in_flight), *headers, f"http://{place}{self.path}"), self.body, count, 1)


Call: TypeAlias = GrpcCall | HttpCall


def _run(options: tuple[str, ...], body: bytes, count: int, answer_bytes: int) -> Answered:
    with tempfile.TemporaryDirectory(prefix="evalrpc-h2load-") as name:
        times, body_file = Path(name) / "times", Path(name) / "body"
        body_file.write_bytes(body)
        data = ("-d", str(body_file)) if body else ()
        before = os.times()
        command = ("h2load", "-n", str(count), "--log-file", str(times), *data, *options)
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        after = os.times()
        latencies = sorted(int(line.split()[2]) / 1e6 for line in times.read_text().splitlines())
    _check(output, count, answer_bytes)
    seconds, per_second = _rate(output)
    cpu_seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return Answered(per_second, latencies, cpu_seconds / seconds)


def _check(output: str, count: int, answer_bytes: int) -> None:
    received = int(re.findall(r"\((\d+)\) data", output)[0])
    if f" {count} succeeded, 0 failed, 0 errored" not in output or received < count * answer_bytes:
        raise RuntimeError(f"some calls of h2load failed: {output}")


def _rate(output: str) -> tuple[float, float]:
    """Return the seconds it took, and the requests per second."""
    time, unit, per_second = re.findall(r"finished in ([\d.]+)(us|ms|s), ([\d.]+) req/s", output)[0]
    return float(time) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[unit], float(per_second)
