"""Real runs of the harnesses, as kept in tests/data: a folder per run, as `evalrpc.testing.recorded_runs` describes it."""

from pathlib import Path

from evalrpc.harnesses.base import Run
from evalrpc.v1.jobs_pb2 import EvaluateRequest

DATA = Path(__file__).parents[1] / "data"


def run_of(request: EvaluateRequest, output_dir: Path = Path("/d/out"), num_gpus: int = 0) -> Run:
    return Run("job", 1, request, Path("/d"), output_dir, num_gpus)
