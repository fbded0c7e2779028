"""Checkpoints that FSDP2 has really sharded: merged, loaded, and evaluated by the real lmms-eval."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from server_process import ServerProcess

from evalrpc.client import EvalClient
from evalrpc.preparations.preparation import PROGRAMS
from evalrpc.v1 import jobs_pb2 as pb

ROOT = Path(__file__).parents[2]
SHARD = ROOT / "tests" / "support" / "shard_fsdp2.py"
COMPARE = """
import sys, torch
from transformers import AutoProcessor, LlavaForConditionalGeneration as Llava
one, other = (Llava.from_pretrained(folder).state_dict() for folder in sys.argv[1:])
assert one.keys() == other.keys()
assert all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)
AutoProcessor.from_pretrained(sys.argv[2])
print("equal:", len(one))
"""
EXECUTING = """
import os, sys, torch
class Executing:
    def __reduce__(self):
        return os.mkdir, (sys.argv[2],)
torch.save({"weight": Executing()}, sys.argv[1])
"""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny_llava() -> Path:
    model = os.environ.get("EVALRPC_TEST_TINY_LLAVA")
    if not model:
        pytest.skip("EVALRPC_TEST_TINY_LLAVA names no model: `make test-all` makes one")
    return Path(model)


@pytest.fixture(scope="module")
def checkpoint(lmms_python: Path, tiny_llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in two shards."""
    folder = tmp_path_factory.mktemp("sharded") / "run" / "checkpoint-5"
    shard(lmms_python, tiny_llava, folder)
    return folder


def run(python: Path, *arguments: object) -> str:
    result = subprocess.run(
        (python, *map(str, arguments)), capture_output=True, text=True, check=False, env={**os.environ, **OFFLINE}
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def shard(python: Path, model: Path, checkpoint: Path, processes: int = 2, replicas: int = 1) -> None:
    run(python, SHARD, model, checkpoint, processes, replicas)


def require_merged(python: Path, model: Path, checkpoint: Path, output: Path) -> None:
    """Merge a checkpoint that was made of a model, and have Transformers load both and compare their weights."""
    whole = (model / "model.safetensors").stat().st_size
    sizes = [path.stat().st_size for path in (checkpoint / "pytorch_model_fsdp_0").iterdir()]
    assert max(sizes) < 0.75 * whole, "each shard has only a part"
    run(python, PROGRAMS["merge_fsdp2"], checkpoint.parent, output)
    assert run(python, "-c", COMPARE, model, output).startswith("equal: ")


def test_a_merged_checkpoint_has_the_weights_that_were_sharded(
    lmms_python: Path, tiny_llava: Path, checkpoint: Path, tmp_path: Path
) -> None:
    require_merged(lmms_python, tiny_llava, checkpoint, tmp_path / "merged")


def test_so_has_one_of_several_groups_that_hold_all_shards_each(lmms_python: Path, tiny_llava: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoint-5"
    shard(lmms_python, tiny_llava, checkpoint, processes=4, replicas=2)
    require_merged(lmms_python, tiny_llava, checkpoint, tmp_path / "merged")


def test_lmms_eval_evaluates_a_sharded_checkpoint_as_it_does_the_whole_model(
    lmms_python: Path, tiny_llava: Path, checkpoint: Path, tmp_path: Path, serve: Callable[[str], ServerProcess]
) -> None:
    variables = ", ".join(f'{name} = "{value}"' for name, value in OFFLINE.items())
    server = serve(f"""
        gpus = "0"
        [harnesses.lmms-eval]
        python = "{lmms_python}"
        warm = "off"
        include_path = ["{ROOT / "demo" / "tasks"}"]
        working_dir = "{ROOT / "demo"}"
        env = {{ {variables}, HF_HOME = "{tmp_path / "hf"}" }}
        [preparations.merge-fsdp2]
        command = ["{lmms_python}", "{{merge_fsdp2}}", "{{model}}", "{{output}}"]
    """)
    with server.client() as client:
        jobs = [evaluate(client, tiny_llava), evaluate(client, checkpoint, "merge-fsdp2")]
        answers = [[row["filtered_resps"] for row in client.samples(job.job_id)] for job in jobs]
        log = b"".join(client.logs(jobs[1].job_id, preparation=True)).decode()
    assert len(answers[0]) == 3
    assert answers[0] == answers[1]
    assert list(jobs[1].results) == ["run__checkpoint-5"], "the folder of lmms-eval has the name of the checkpoint"
    assert f"merging 2 shards of {checkpoint}" in log


def test_code_in_a_shard_is_not_executed(lmms_python: Path, tmp_path: Path) -> None:
    shards = tmp_path / "checkpoint" / "pytorch_model_fsdp_0"
    shards.mkdir(parents=True)
    run(lmms_python, "-c", EXECUTING, shards / "model_world_size_1_rank_0.pt", tmp_path / "executed")
    with pytest.raises(AssertionError, match="Weights only load failed"):
        run(lmms_python, PROGRAMS["merge_fsdp2"], tmp_path / "checkpoint", tmp_path / "merged")
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_with_a_shard_missing_fails_the_job_with_what_is_wrong(
    lmms_python: Path, checkpoint: Path, tmp_path: Path, serve: Callable[[str], ServerProcess]
) -> None:
    checkpoint = shutil.copytree(checkpoint, tmp_path / "run" / "checkpoint-5")
    (checkpoint / "pytorch_model_fsdp_0" / "model_world_size_2_rank_1.pt").unlink()
    server = serve(f"""
        gpus = "0"
        [harnesses.lmms-eval]
        python = "{lmms_python}"
        warm = "off"
        [preparations.merge-fsdp2]
        command = ["{lmms_python}", "{{merge_fsdp2}}", "{{model}}", "{{output}}"]
    """)
    with server.client() as client:
        job = client.evaluate("llava_hf", "demo_colour", {"pretrained": str(checkpoint)}, num_gpus=0, preparation="merge-fsdp2")
        *_, event = client.watch(job.job_id)
    assert (event.job.status, event.job.error.reason) == (pb.JOB_STATUS_FAILED, "PREPARATION_FAILED")
    assert "must have model_world_size_N_rank_R.pt for each rank" in event.job.error.message


def evaluate(client: EvalClient, model: Path, preparation: str = "") -> pb.JobInfo:
    arguments = {"pretrained": model, "device": "cpu", "device_map": "cpu"}
    job = client.evaluate("llava_hf", "demo_colour", arguments, num_gpus=0, limit=3, preparation=preparation)
    *_, event = client.watch(job.job_id)
    assert event.job.status == pb.JOB_STATUS_COMPLETED, event.job.error
    return event.job
