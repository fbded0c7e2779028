"""What vLLM says of likelihoods, through lm-eval and the gateway, is what the model says in lm-eval's own process.

`make test-engines` runs this; the environment with vLLM takes 3.5 GB.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes_of_tests import kill_all
from server_process import ServerProcess
from test_real_lm_eval import CHOOSING, DATA

from evalrpc.client import EvalClient
from evalrpc.executors.local.processes import processes_of_job
from evalrpc.v1 import jobs_pb2 as pb

pytestmark = pytest.mark.slow

MAKE_TINY_LLAMA = Path(__file__).parents[1] / "support" / "make_tiny_llama.py"
CONFIG = """
gpus = "0"
[harnesses.lm-eval]
kind = "lm-eval"
python = "{lm_eval}"
include_path = ["tasks"]
warm = "off"
env = {{ HF_HUB_OFFLINE = "1", HF_DATASETS_OFFLINE = "1", HF_HOME = "{folder}/hf" }}
[engines.vllm]
command = ["{vllm}", "-m", "vllm.entrypoints.openai.api_server", "--model", "{{model}}", "--served-model-name", "{{name}}",
           "--host", "127.0.0.1", "--port", "{{port}}", "--dtype", "float32", "--max-model-len", "2048", "--enforce-eager"]
api = ["completions", "log-probabilities"]
start_timeout_seconds = 1800
[engines.vllm.env]
HF_HUB_OFFLINE = "1"
HF_HOME = "{folder}/hf"
OMP_NUM_THREADS = "2"
VLLM_CPU_KVCACHE_SPACE = "1"
VLLM_CPU_OMP_THREADS_BIND = "nobind"
"""


@pytest.fixture
def client(
    tmp_path: Path, lm_eval_python: Path, vllm_python: Path, serve: Callable[[str], ServerProcess]
) -> Iterator[EvalClient]:
    (tmp_path / "tasks").mkdir()
    data = tmp_path / "data.jsonl"
    rows = ({"question": f"{n} + 1?", "choices": ["1", "22", "three"], "gold": n % 3} for n in range(20))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks" / "choice.yaml").write_text(CHOOSING + DATA.replace("DATA_PATH", str(data)))
    with serve(CONFIG.format(lm_eval=lm_eval_python, vllm=vllm_python, folder=tmp_path)).client() as client:
        yield client
    engines = tmp_path / "data" / "engines"
    names = [path.name for path in (*engines.glob("engine-*"), *engines.glob("gateway/*"))]
    kill_all(lambda: [pid for name in names for pid in processes_of_job(name)])


def test_log_likelihoods_are_those_of_the_model_in_the_harness_itself(
    client: EvalClient, tmp_path: Path, lm_eval_python: Path
) -> None:
    model = str(tmp_path / "models" / "tiny")
    subprocess.run((lm_eval_python, MAKE_TINY_LLAMA, model), check=True, capture_output=True)
    served = pb.EvaluateRequest(harness="lm-eval", tasks=["sums_choice"], num_gpus=0)
    served.served_model.MergeFrom(pb.ServedModel(engine="vllm", model=model, num_gpus=0))
    own = pb.EvaluateRequest(harness="lm-eval", tasks=["sums_choice"], num_gpus=0, model="hf", device="cpu")
    own.model_args.update({"pretrained": model, "dtype": "float32"})
    jobs = [client.wait_for_job(client.submit(request).job_id) for request in (served, own)]
    values = [log_likelihoods(job) for job in jobs]
    assert len(values[0]) == 60
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    assert jobs[0].usage.answered_count == 60


def log_likelihoods(job: pb.JobInfo) -> list[float]:
    """Return those of all choices of all documents, in order."""
    (result,) = job.results.values()
    rows = [json.loads(line) for path in result.samples for line in Path(path).read_text().splitlines()]
    rows.sort(key=lambda row: int(row["doc_id"]))
    return [float(choice[0][0]) for row in rows for choice in row["resps"]]
