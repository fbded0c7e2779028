"""Trains a tiny model with the real Trainer and our callback: train_tiny.py FOLDER ADDRESS [DEAD_ADDRESS].

Runs in an environment with transformers. With a further address, where no server is, it trains once more. Prints as JSON, for
each training, how many steps it took and which steps were submitted.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerControl, TrainerState, TrainingArguments

from evalrpc import EvaluateRequest
from evalrpc.training.trainer import EvaluationCallback

STEPS, SAVE_STEPS = 6, 2


def train(folder: Path, address: str) -> dict[str, object]:
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    tokens = torch.arange(8) % 16
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        save_steps=SAVE_STEPS,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    request = EvaluateRequest(
        harness="toy", model="good", tasks=["t"], num_gpus=0, model_args={"pretrained": "{checkpoint}", "step": "{step}"}
    )
    callback = EvaluationCallback(request, address=address, finish_seconds=10.0, labels={"run": "tiny"})
    trainer = Trainer(
        LlamaForCausalLM(config),
        arguments,
        train_dataset=[{"input_ids": tokens, "labels": tokens}] * 16,
        callbacks=[callback],
    )
    taken = trainer.train().global_step
    other_rank = TrainerState(global_step=99, is_world_process_zero=False)
    callback.on_save(arguments, other_rank, TrainerControl())
    callback.evaluator.close()
    return {"steps": taken, "submitted": [submitted.step for submitted in callback.evaluator.submitted]}


if __name__ == "__main__":
    print(json.dumps([train(Path(sys.argv[1]) / str(number), address) for number, address in enumerate(sys.argv[2:])]))
