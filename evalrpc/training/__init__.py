"""Evaluates the checkpoints of a training run, as they appear. Needs what a client needs: grpcio and protobuf.

A training loop says itself what it has saved (`background.CheckpointEvaluator`, `trainer.EvaluationCallback`), or a follower
looks into its folder (`checkpoints`, `follower`), as `evalrpc follow` does.
"""

from evalrpc.training.background import CheckpointEvaluator

__all__ = ["CheckpointEvaluator"]
