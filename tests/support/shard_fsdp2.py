"""Saves a model as training with FSDP2 does: shard_fsdp2.py MODEL CHECKPOINT PROCESSES REPLICAS

Each process holds a shard of every weight; with REPLICAS, as many groups of processes hold all shards between them. Runs in
lmms-eval's environment.
"""

import sys
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoProcessor, LlavaForConditionalGeneration


def save_shard(rank: int, source: Path, target: Path, world: int, replicas: int) -> None:
    """Save what one of `world` processes holds."""
    store = torch.distributed.FileStore(str(target / "meeting"), world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    model = LlavaForConditionalGeneration.from_pretrained(source)
    if replicas > 1:
        mesh = init_device_mesh("cpu", (replicas, world // replicas), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh("cpu", (world,))
    for layer in model.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    torch.save(model.state_dict(), target / "pytorch_model_fsdp_0" / f"model_world_size_{world}_rank_{rank}.pt")
    if rank == 0:
        model.config.save_pretrained(target)
        model.generation_config.save_pretrained(target)
        AutoProcessor.from_pretrained(source).save_pretrained(target)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def main(source: Path, target: Path, world: int, replicas: int) -> None:
    """Fork the processes, for each would else import PyTorch anew."""
    (target / "pytorch_model_fsdp_0").mkdir(parents=True)
    torch.multiprocessing.start_processes(save_shard, (source, target, world, replicas), nprocs=world, start_method="fork")
    (target / "meeting").unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
