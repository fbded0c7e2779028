"""ReadArtifact of a large file, against a bare gRPC byte stream."""

from collections.abc import Iterator
from typing import Final

from benchmarks import load, messages
from benchmarks.http2 import Request
from benchmarks.processes import Server, both, workplace
from benchmarks.report import Row, at_most, compare, figures, in_turn, ratio_at_least
from benchmarks.scale import Scale
from evalrpc.client import EvalClient

_MODEL: Final = "llava_hf"
_NAME: Final = f"{_MODEL}/large.bin"

_PROGRAM: Final = """\
import sys
from pathlib import Path
folder = Path(sys.argv[1]) / {model!r}
folder.mkdir(parents=True)
(folder / "20260101_000000_results.json").write_text('{{"results": {{"mme": {{"score,none": 1.0}}}}}}')
with (folder / "large.bin").open("wb") as file:
    file.truncate({size})
"""


def artifact(scale: Scale) -> Iterator[Row]:
    """Bytes per second of one reader, and the server's memory meanwhile."""
    size = scale.artifact_bytes
    with workplace() as folder:
        (folder / "artifact.py").write_text(_PROGRAM.format(model=_MODEL, size=size))
        with both(folder) as (ours, bare):
            request = messages.read_artifact(_finished_job(ours), _NAME, size)
            _bytes_per_second(ours, request, size)  # now the file is in the page cache
            before = ours.memory()
            ours.reset_peak()
            measured = in_turn(
                scale.rounds, lambda: _bytes_per_second(ours, request, size), lambda: _bytes_per_second(bare, request, size)
            )
            growth = ours.peak_memory() - before
    name = f"ReadArtifact of {size >> 20} MiB"
    rates = figures(measured, lambda rate: rate / 1e6)
    note = "from the page cache; yardstick: 1 MiB messages from memory"
    yield compare(name, "MB/s", rates, ratio_at_least(0.80), note)
    yield Row(f"{name}: peak of the server's memory over its start", "MB", growth / 1e6, aim=at_most(16.0))


def _finished_job(server: Server) -> str:
    with EvalClient(server.address) as client:
        job = client.evaluate(_MODEL, ["mme"], harness="artifact", num_gpus=0)
        return client.wait_for_job(job.job_id, timeout_seconds=60).job_id


def _bytes_per_second(server: Server, request: Request, size: int) -> float:
    seconds: float = load.in_process(load.read_bytes, server.address, request, size)
    return size / seconds
