"""Which checkpoints the program for FSDP2 takes, as far as that shows without PyTorch. tests/acceptance merges real ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from evalrpc.preparations.merge_fsdp2 import EMA, REGULAR, files_beside, find_checkpoint, find_shards
from evalrpc.preparations.preparation import PROGRAMS


def make_shards(folder: Path, *names: str, kind: str = REGULAR) -> Path:
    (folder / kind).mkdir(parents=True)
    for name in names:
        (folder / kind / f"model_world_size_{name}.pt").touch()
    return folder / kind


def test_the_last_checkpoint_of_a_run_is_taken(tmp_path: Path) -> None:
    for number in (9, 10):
        make_shards(tmp_path / f"checkpoint-{number}", "1_rank_0")
    (tmp_path / "checkpoint-11").mkdir()  # just being written, or without shards
    (tmp_path / "checkpoint-best" / REGULAR).mkdir(parents=True)
    assert find_checkpoint(tmp_path, REGULAR) == tmp_path / "checkpoint-10"
    assert find_checkpoint(tmp_path / "checkpoint-9", REGULAR) == tmp_path / "checkpoint-9"
    with pytest.raises(ValueError, match=f"neither a folder {EMA} nor a checkpoint-N with one"):
        find_checkpoint(tmp_path, EMA)


def test_the_shards_are_in_the_order_of_their_ranks(tmp_path: Path) -> None:
    folder = make_shards(tmp_path, *(f"12_rank_{rank}" for rank in range(12)))
    (folder / "optimizer.pt").touch()
    assert [path.name for path in find_shards(folder)] == [f"model_world_size_12_rank_{rank}.pt" for rank in range(12)]


@pytest.mark.parametrize("names", [(), ("2_rank_0",), ("2_rank_1",), ("1_rank_0", "2_rank_1"), ("1_rank_0", "2_rank_0")])
def test_a_checkpoint_without_each_rank_of_one_world_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="for each rank of one world, and has ranks"):
        find_shards(make_shards(tmp_path, *names))


def test_what_is_no_weights_is_taken_along(tmp_path: Path) -> None:
    make_shards(tmp_path, "1_rank_0")
    for name in ("config.json", "tokenizer.json", "optimizer.bin", "rng_state_0.pth", "model.safetensors"):
        (tmp_path / name).touch()
    assert {path.name for path in files_beside(tmp_path)} == {"config.json", "tokenizer.json"}


def test_it_needs_no_package_of_evalrpc_and_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    command = (sys.executable, "-I", "-S", PROGRAMS["merge_fsdp2"], tmp_path, tmp_path / "output")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == f"ValueError: {tmp_path} has neither a folder {REGULAR} nor a checkpoint-N with one\n"
