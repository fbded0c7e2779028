"""The results of several runs of a harness become those of one job. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from evalrpc.v1.job_pb2 import ModelResult, TaskResult

Results = Mapping[str, ModelResult]
"""Results by model, as in `JobInfo.results`."""


def merged(parts: Sequence[Results]) -> dict[str, ModelResult]:
    """Return the results of all parts, by model. Where several parts have the same task, the last one counts."""
    results: dict[str, ModelResult] = {}
    for part in parts:
        for name, result in part.items():
            _add(results, _same_model(name, part, results), result)
    return results


def _same_model(name: str, part: Results, results: Results) -> str:
    """Return the name that the model has already: a request has one, which lm-eval may call by a new name in every run."""
    return next(iter(results)) if len(part) == 1 and len(results) == 1 else name


def _add(results: dict[str, ModelResult], name: str, more: ModelResult) -> None:
    known = results.get(name)
    if known is None:
        results[name] = ModelResult()
        results[name].CopyFrom(more)
        return
    metrics = {(metric.task, metric.metric, metric.filter): metric for metric in (*known.metrics, *more.metrics)}
    tasks = {task.task: task for task in (*known.tasks, *_with_file(more))}
    results[name] = ModelResult(
        results=known.results,
        samples=sorted({*known.samples, *more.samples}),
        metrics=[metrics[key] for key in sorted(metrics)],
        tasks=[tasks[task] for task in sorted(tasks)],
        harness_versions={**known.harness_versions, **more.harness_versions},
        total_evaluation_time=_sum(known, more),
        extra=_common(known.extra, more.extra),
    )


def _with_file(result: ModelResult) -> Iterator[TaskResult]:
    """Yield its tasks, each with the aggregate file that it is from."""
    for task in result.tasks:
        own = TaskResult(results=result.results)
        own.MergeFrom(task)
        yield own


def _sum(result: ModelResult, other: ModelResult) -> Duration | None:
    times = [each.total_evaluation_time for each in (result, other) if each.HasField("total_evaluation_time")]
    total = Duration()
    total.FromNanoseconds(sum(time.ToNanoseconds() for time in times))
    return total if times else None


def _common(struct: Struct, other: Struct) -> Struct | None:
    """Return the entries that are the same in both."""
    same = {key: value for key, value in struct.fields.items() if other.fields.get(key) == value}
    return Struct(fields=same) if same else None
