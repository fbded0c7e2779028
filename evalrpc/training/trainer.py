"""A callback for the Trainer of Hugging Face's transformers: each checkpoint that it saves is evaluated. Extra: `[train]`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from evalrpc.client.core import SubmitOptions
from evalrpc.training.background import FINISH_SECONDS, CheckpointEvaluator
from evalrpc.training.checkpoints import QUIET_SECONDS
from evalrpc.v1.jobs_pb2 import EvaluateRequest


class EvaluationCallback(TrainerCallback):  # type: ignore[misc]  # transformers need not be installed here
    """Submits an evaluation of each checkpoint, a job or a suite, from the process of rank zero, and never fails the training.

        request = EvaluateRequest(model="hf", tasks=["gsm8k"], model_args={"pretrained": "{checkpoint}"})
        trainer.add_callback(EvaluationCallback(request, labels={"run": "x"}))

    Where several processes train, all of them write to a checkpoint, so it is submitted once its files are quiet. At the end of
    the training, the callback waits up to `finish_seconds` for submissions that the server has not taken yet.
    """

    def __init__(
        self,
        request: EvaluateRequest,
        *,
        suite: str = "",
        harness_requests: Mapping[str, EvaluateRequest] | None = None,
        baseline_suite_run_id: str = "",
        address: str | None = None,
        finish_seconds: float = FINISH_SECONDS,
        **options: Unpack[SubmitOptions],
    ) -> None:
        """See CheckpointEvaluator. Raises ValueError for an address or a request that makes no sense."""
        self.evaluator = CheckpointEvaluator(
            request,
            suite=suite,
            harness_requests=harness_requests,
            baseline_suite_run_id=baseline_suite_run_id,
            address=address,
            finish_seconds=finish_seconds,
            **options,
        )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Have the checkpoint evaluated that was just saved."""
        del control, others
        if state.is_world_process_zero:
            path = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            self.evaluator.saved(path, state.global_step, QUIET_SECONDS if args.world_size > 1 else 0.0)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Wait for the last submissions, and log what could not be submitted."""
        del args, state, control, others
        self.evaluator.close()
