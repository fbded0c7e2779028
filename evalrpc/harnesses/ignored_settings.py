"""Settings of a request that a harness or a task has not kept to, by what the results say. It goes on without a word."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator

from evalrpc.harnesses.failures import shorten
from evalrpc.v1.jobs_pb2 import EvaluateRequest
from evalrpc.v1.results_pb2 import ModelResult, TaskResult


def ignored_settings(results: Iterable[ModelResult], request: EvaluateRequest) -> Iterator[str]:
    """Yield a warning for each other number of shots, and for each number of documents beyond the limit, with its tasks."""
    tasks = [task for result in results for task in result.tasks if not task.is_group]
    yield from _ignored_shots(tasks, request)
    yield from _ignored_limit(tasks, request)


def _ignored_shots(tasks: Iterable[TaskResult], request: EvaluateRequest) -> Iterator[str]:
    if not request.HasField("num_fewshot"):
        return
    shots = defaultdict[int, set[str]](set)
    for task in tasks:
        if task.HasField("num_fewshot") and task.num_fewshot != request.num_fewshot:
            shots[task.num_fewshot].add(task.task)
    for shown, names in sorted(shots.items()):
        asked_for = f"num_fewshot: {request.num_fewshot} asked for and {shown} shown"
        yield shorten(f"{asked_for}, as the task itself says: {', '.join(sorted(names))}")


def _ignored_limit(tasks: Iterable[TaskResult], request: EvaluateRequest) -> Iterator[str]:
    if not request.HasField("limit"):
        return
    sizes = defaultdict[int, set[str]](set)
    for task in tasks:
        limit = request.limit if request.limit >= 1 else request.limit * task.original_sample_count
        is_known = task.effective_sample_count and (request.limit >= 1 or task.original_sample_count)
        if is_known and task.effective_sample_count > math.ceil(limit):
            sizes[task.effective_sample_count].add(task.task)
    for size, names in sorted(sizes.items()):
        yield shorten(f"limit: {request.limit:.15g} asked for and {size} documents evaluated: {', '.join(sorted(names))}")
