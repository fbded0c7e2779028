"""What exports say of a job, in the forms that other systems take."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from google.protobuf import json_format

from evalrpc.client import EvalClient
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.v1.results_pb2 import Metric

STEP_LABEL: Final = "step"
"""The label with the step of a training run, as `evalrpc history` takes it."""

_NO_FILTER: Final = ("", "none")


class ModelMetric(NamedTuple):
    """A metric of one of the models of a job."""

    model: str
    metric: Metric


def metrics_of(client: EvalClient, job: JobInfo) -> Iterator[ModelMetric]:
    """Yield all metrics of a job; those that its message has no room for are asked for. Raises EvalrpcError."""
    if any(result.metrics_truncated for result in job.results.values()):
        for each in client.list_metrics(job.job_id):
            yield ModelMetric(each.model, each.metric)
        return
    for model, result in sorted(job.results.items()):
        for metric in result.metrics:
            yield ModelMetric(model, metric)


def metric_name(of: ModelMetric, job: JobInfo) -> str:
    """Return a name for a metric that no other one of the job has: `task/metric`, with the filter if it says something."""
    metric = of.metric
    name = f"{metric.task}/{metric.metric}"
    if metric.filter not in _NO_FILTER:
        name = f"{name}/{metric.filter}"
    return f"{of.model}/{name}" if len(job.results) > 1 else name


def numbers_of(client: EvalClient, job: JobInfo) -> dict[str, float]:
    """Return the metrics of a job by name, with standard errors beside them. Only finite ones."""
    numbers: dict[str, float] = {}
    for each in metrics_of(client, job):
        name = metric_name(each, job)
        numbers[name] = each.metric.value
        if each.metric.HasField("standard_error"):
            numbers[f"{name}/standard_error"] = each.metric.standard_error
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


def parameters_of(job: JobInfo) -> dict[str, Any]:
    """Return the request of a job, flat, with dots between names."""
    request = json_format.MessageToDict(job.request, preserving_proto_field_name=True)
    return dict(_flat("", request))


def step_of(job: JobInfo) -> int:
    """Return the step that the job's labels name; 0 without one."""
    text = job.labels.get(STEP_LABEL, "")
    return int(text) if text.isdecimal() and len(text) < 16 else 0


def name_of(job: JobInfo) -> str:
    """Return a name for people: of the model and the step."""
    model = job.request.model or job.request.served_model.model or job.job_id
    step = job.labels.get(STEP_LABEL, "")
    return f"{model} @ {step}" if step else model


def _flat(prefix: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _flat(f"{prefix}{name}.", item)
        else:
            yield f"{prefix}{name}", ",".join(map(str, item)) if _is_plain_list(item) else _plain(item)


def _is_plain_list(item: object) -> bool:
    return isinstance(item, list) and not any(isinstance(each, dict | list) for each in item)


def _plain(item: object) -> object:
    return json.dumps(item) if isinstance(item, list) else item
