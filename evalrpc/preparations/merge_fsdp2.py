"""Merges a checkpoint that FSDP2 has sharded into a model that Transformers loads: merge_fsdp2.py [--ema] CHECKPOINT OUTPUT

It reads what lmms-engine writes, and lmms-eval's `/merge` reads:

    CHECKPOINT/config.json, tokenizer and processor         copied
    CHECKPOINT/pytorch_model_fsdp_0/model_world_size_N_rank_R.pt      the state of each rank, in DTensors
    CHECKPOINT/pytorch_ema_model_fsdp_0/...                           the same of the averaged weights, for --ema

If CHECKPOINT has folders `checkpoint-N` instead, the last one is taken. Weights keep their type. Runs with PyTorch and
Transformers, without evalrpc. No code in the checkpoint is executed: shards are loaded as weights only, and the model's class
is that of Transformers which its config names. All weights are in memory once.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

REGULAR: Final = "pytorch_model_fsdp_0"
EMA: Final = "pytorch_ema_model_fsdp_0"

_SHARD: Final = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
_CHECKPOINT: Final = re.compile(r"checkpoint-(\d+)")
_WEIGHTS: Final = (".pt", ".pth", ".bin", ".safetensors", ".index.json")


def main() -> None:
    """Merge what the command line names. Ends with a line that says why, where that is impossible."""
    parser = argparse.ArgumentParser(description="Merge a checkpoint of FSDP2 into a model that Transformers loads.")
    parser.add_argument("--ema", action="store_true", help="merge the averaged weights instead")
    parser.add_argument("checkpoint", type=Path, help="the folder of the checkpoint, or the one above all checkpoints")
    parser.add_argument("output", type=Path, help="the folder for the merged model")
    arguments = parser.parse_args()
    try:
        merge(arguments.checkpoint, arguments.output, EMA if arguments.ema else REGULAR)
    except (OSError, ValueError) as error:
        sys.exit(f"ValueError: {error}" if isinstance(error, ValueError) else f"OSError: {error}")


def merge(folder: Path, output: Path, kind: str = REGULAR) -> None:
    """Merge a checkpoint. Raises ValueError for what is none, or can't be merged, and OSError."""
    checkpoint = find_checkpoint(folder, kind)
    shards = find_shards(checkpoint / kind)
    print(f"merging {len(shards)} shards of {checkpoint}", flush=True)
    weights = merge_states(load_shards(shards))
    output.mkdir(parents=True, exist_ok=True)
    for path in files_beside(checkpoint):
        shutil.copy2(path, output)
    save(checkpoint, weights, output)
    print(f"wrote {len(weights)} tensors to {output}", flush=True)


def find_checkpoint(folder: Path, kind: str) -> Path:
    """Return the folder itself if it is a checkpoint, else the last one in it."""
    if (folder / kind).is_dir():
        return folder
    numbered = [(int(match[1]), path) for path in folder.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))]
    found = [path for _, path in sorted(numbered) if (path / kind).is_dir()]
    if not found:
        raise ValueError(f"{folder} has neither a folder {kind} nor a checkpoint-N with one")
    return found[-1]


def find_shards(folder: Path) -> Sequence[Path]:
    """Return the files of all ranks, in order."""
    matches = {path: match for path in folder.iterdir() if (match := _SHARD.fullmatch(path.name))}
    worlds = {int(match[1]) for match in matches.values()}
    ranks = sorted((int(match[2]), path) for path, match in matches.items())
    if len(worlds) != 1 or [rank for rank, _ in ranks] != list(range(*worlds)):
        found = f"ranks {[rank for rank, _ in ranks]} of {sorted(worlds)}"
        raise ValueError(f"{folder} must have model_world_size_N_rank_R.pt for each rank of one world, and has {found}")
    return [path for _, path in ranks]


def load_shards(paths: Sequence[Path]) -> Sequence[dict[str, Any]]:
    """Load the state of each rank, mapped from the disk."""
    import torch
    import torch.distributed.tensor  # so that DTensors are known

    return [torch.load(path, map_location="cpu", mmap=True, weights_only=True) for path in paths]


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return each tensor whole. Raises ValueError where the ranks don't fit together."""
    if any(state.keys() != states[0].keys() for state in states):
        raise ValueError("the shards have different tensors")
    return {name: merge_tensor(name, [state[name] for state in states]) for name in states[0]}


def merge_tensor(name: str, parts: Sequence[Any]) -> Any:
    """Return a tensor of which each rank has a part, or all of it."""
    first = parts[0]
    if not hasattr(first, "placements"):
        return first
    shape = tuple(first.device_mesh.shape)
    whole = _merge(name, [part.to_local() for part in parts], shape, first.placements)
    if whole.shape != first.shape:
        raise ValueError(f"{name} has the shape {tuple(first.shape)}, and its parts make {tuple(whole.shape)}")
    return whole


def _merge(name: str, parts: Sequence[Any], mesh: Sequence[int], placements: Sequence[Any]) -> Any:
    """Merge along the first axis of the mesh what is merged along the others. Ranks are in the order of the axes."""
    import torch

    if not mesh:
        return parts[0]
    size = len(parts) // mesh[0]
    groups = [_merge(name, parts[start : start + size], mesh[1:], placements[1:]) for start in range(0, len(parts), size)]
    placement = placements[0]
    if type(placement).__name__ == "Replicate":
        return groups[0]
    if type(placement).__name__ != "Shard":
        raise ValueError(f"{name} is placed as {placement}, which can't be merged: only shards and replicas can")
    return torch.cat(groups, dim=placement.dim)


def files_beside(checkpoint: Path) -> Iterator[Path]:
    """Yield the files of a checkpoint that are no weights, such as the tokenizer's."""
    return (path for path in checkpoint.iterdir() if path.is_file() and not path.name.endswith(_WEIGHTS))


def save(checkpoint: Path, weights: dict[str, Any], output: Path) -> None:
    """Write the weights as the model's class in Transformers does. Raises ValueError if they are not those of the model."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    names = json.loads((checkpoint / "config.json").read_text()).get("architectures") or ["none"]
    model_class = getattr(transformers, names[0], None)
    if model_class is None:
        raise ValueError(f"this version of Transformers has no model class {names[0]}, which config.json names")
    with torch.device("meta"):
        model = model_class(config)
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    state = model.state_dict()
    missing = [name for name in missing if state[name].is_meta]  # not those that are tied to others
    if missing or unexpected:
        raise ValueError(f"the checkpoint does not fit {names[0]}: missing {missing[:5]}, unexpected {unexpected[:5]}")
    model.save_pretrained(output)


if __name__ == "__main__":
    main()
