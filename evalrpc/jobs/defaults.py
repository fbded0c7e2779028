"""What a request means where it leaves a field out."""

from evalrpc.v1.jobs_pb2 import EvaluateRequest


def gpus_needed(request: EvaluateRequest) -> int:
    """Return how many GPUs a request asks for: one, unless it says otherwise."""
    return request.num_gpus if request.HasField("num_gpus") else 1
