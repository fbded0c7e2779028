"""Is the load client the bottleneck? The same calls made by h2load, a native client, against the same bare server."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks import messages
from benchmarks.calls import measure
from benchmarks.http2 import Request
from benchmarks.processes import Server, workplace, yardstick_server
from benchmarks.report import Row, compare, in_turn
from benchmarks.scale import Scale


def is_installed() -> bool:
    """Return whether h2load is installed. Debian has it in `nghttp2-client`."""
    return shutil.which("h2load") is not None


def load_client(scale: Scale) -> Iterator[Row]:
    """GetJob of the empty handler, by our load client and by h2load."""
    request = messages.get_job(messages.new_job().job_id)
    with workplace() as folder, yardstick_server(folder) as bare:
        for in_flight in (1, 32):
            rates = in_turn(
                scale.rounds,
                lambda in_flight=in_flight: measure(bare, [request], scale.calls, in_flight).per_second,
                lambda in_flight=in_flight: _h2load(bare, request, scale.calls, in_flight, folder),
            )
            figure = f"the empty GetJob, {in_flight} in flight, by our load client"
            yield compare(figure, "calls/s", *rates, note="yardstick: by h2load; one process each")


def _h2load(server: Server, request: Request, count: int, in_flight: int, folder: Path) -> float:
    """Return the calls per second that h2load makes on one connection. Raises RuntimeError if any fails."""
    body = folder / "body"
    body.write_bytes(request.body)
    headers = ("-H", "content-type: application/grpc", "-H", "te: trailers")
    size = ("-n", str(count), "-c", "1", "-m", str(in_flight))
    command = ("h2load", *size, "-d", str(body), *headers, f"http://{server.address}{request.path}")
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    if f"{count} succeeded, 0 failed" not in output:
        raise RuntimeError(f"some calls of h2load failed: {output}")
    return float(re.findall(r"([\d.]+) req/s", output)[0])
