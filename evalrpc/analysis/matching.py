"""Which metrics of two jobs belong together, and which of them a call asks for."""

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final, Literal

from google.protobuf.struct_pb2 import Struct

from evalrpc.errors import FieldViolation, InvalidRequestError, MetricNotFoundError, NoResultsError
from evalrpc.files.read_budget import ReadBudget
from evalrpc.jobs.metric_selectors import Selection, parts_of, parts_taking, selector_text, selector_words
from evalrpc.jobs.size_limits import MAX_PAGE_BYTES
from evalrpc.protobuf.wire_format import field_size
from evalrpc.reading.job_results import JobResults, metric_key
from evalrpc.v1.comparison_pb2 import MetricComparison
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo, JobStatus
from evalrpc.v1.results_pb2 import Metric, MetricSelector, ModelResult, TaskResult

MAX_NAMED: Final = 5
"""How many metrics an error names, and how many arguments a difference."""

_MAX_NAME: Final = 64  # characters of an argument's name

_Key = tuple[str, str, str]  # task, metric, filter


class Matching:
    """The metrics of a comparison that are asked for, chosen from all that the jobs have, of which there may be very many."""

    def __init__(
        self, selectors: Sequence[MetricSelector], budget: ReadBudget, thresholds: Sequence[MetricSelector] = ()
    ) -> None:
        """`selectors` choose; they and those of `thresholds` must each take some metric."""
        self.asked_for: list[list[MetricComparison]] = []
        """By candidate. Incomplete once they are more than an answer may have."""
        self._budget = budget
        self._selection = Selection(selectors)
        self._selectors = [*selectors, *thresholds]
        self._unknown = set(map(parts_of, self._selectors))
        self._known: set[str] = set()  # names of a few metrics
        self._count = 0
        self._size_bytes = 0

    def add(self, lined_up: Iterable[MetricComparison]) -> None:
        """Choose from the metrics of a candidate and the baseline."""
        asked_for: list[MetricComparison] = []
        self.asked_for.append(asked_for)
        for metric in lined_up:
            self._budget.spend()
            self._note(metric)
            if self._selection.takes(metric):
                self._count += 1
                self._size_bytes += field_size(metric.ByteSize())
                if self._size_bytes <= MAX_PAGE_BYTES:
                    asked_for.append(metric)

    def require_known(self) -> None:
        """Raise MetricNotFoundError for the first selector that takes no metric of any job."""
        for selector in self._selectors:
            if parts_of(selector) in self._unknown:
                known = sorted(self._known)
                more = ", ..." if len(known) > MAX_NAMED else ""
                raise MetricNotFoundError(
                    f"none of the jobs has {selector_words(selector)}; they have: {', '.join(known[:MAX_NAMED])}{more}",
                    metadata={"resource_type": "evalrpc.v1.Metric", "resource_name": selector_text(selector)[:255]},
                )

    def require_size(self) -> None:
        """Raise InvalidRequestError if the answer would be too large even without the outcomes of the tests."""
        require_size(self._size_bytes, self._count, len(self.asked_for), is_exact=False)

    def _note(self, metric: MetricComparison) -> None:
        if self._unknown:
            self._unknown -= parts_taking(metric)
            self._known.add(selector_text(metric))
            if len(self._known) > MAX_NAMED + 1:
                self._known.remove(max(self._known))


def require_size(size_bytes: int, metric_count: int, candidate_count: int, *, is_exact: bool) -> None:
    """Raise InvalidRequestError for an answer that takes, or takes more than, so many bytes, if they are too many."""
    if size_bytes > MAX_PAGE_BYTES:
        takes = f"{'' if is_exact else 'more than '}{size_bytes} bytes"
        raise InvalidRequestError(
            violations=[
                FieldViolation(
                    "metrics",
                    f"the answer would have {metric_count} metrics of {candidate_count} candidates, which take {takes}; at most"
                    f" {MAX_PAGE_BYTES} are allowed: select fewer metrics here, or pass fewer candidates",
                )
            ]
        )


def line_up(baseline: JobInfo, candidate: JobInfo, results: JobResults, budget: ReadBudget) -> Iterator[MetricComparison]:
    """Yield every metric that either job has, sorted by model, task, metric and filter. Both are read once, side by side."""
    models = _ModelPairs(baseline, candidate)
    ours = ((models.key(each.model), metric_key(each.metric), 0, each.metric) for each in results.metrics(baseline, budget))
    theirs = ((models.key(each.model), metric_key(each.metric), 1, each.metric) for each in results.metrics(candidate, budget))
    merged = heapq.merge(ours, theirs, key=lambda each: each[:3])
    our_heads, their_heads = results.heads(baseline), results.heads(candidate)
    asked = _Asked(baseline.request, candidate.request)
    for model, of_model in groupby(merged, key=lambda each: each[0]):
        our_model, their_model = models.names(model)
        differences = _definition_differences(our_heads.get(our_model), their_heads.get(their_model), asked)
        for key, same in groupby(of_model, key=lambda each: each[1]):
            sides = {side: metric for _, _, side, metric in same}
            lined_up = _lined_up(key, sides.get(0), sides.get(1))
            lined_up.baseline_model, lined_up.candidate_model = our_model, their_model
            lined_up.definition_differences.extend((*differences.get(lined_up.task, ()), *asked.of_all_tasks))
            yield lined_up


class _ModelPairs:
    """Pairs models by name; if each job has a single model, pairs those whatever their names."""

    def __init__(self, baseline: JobInfo, candidate: JobInfo) -> None:
        self._ours, self._theirs = set(baseline.results), set(candidate.results)
        self._are_single = len(self._ours) == len(self._theirs) == 1

    def key(self, model: str) -> str:
        """Return what the models of a pair have in common."""
        return "" if self._are_single else model

    def names(self, key: str) -> tuple[str, str]:
        """Return the names of the baseline's and the candidate's model; empty where there is none."""
        if self._are_single:
            return next(iter(self._ours)), next(iter(self._theirs))
        return key if key in self._ours else "", key if key in self._theirs else ""


def _lined_up(key: _Key, ours: Metric | None, theirs: Metric | None) -> MetricComparison:
    task, metric, answer_filter = key
    directions = {m.higher_is_better for m in (ours, theirs) if m is not None and m.HasField("higher_is_better")}
    return MetricComparison(
        task=task,
        metric=metric,
        filter=answer_filter,
        higher_is_better=directions.pop() if len(directions) == 1 else None,
        paired_sample_count=0,
        differing_sample_count=0,
        unpaired_sample_count=0,
        **_facts("baseline", ours),
        **_facts("candidate", theirs),
    )


def _facts(side: str, metric: Metric | None) -> dict[str, Any]:
    if metric is None:
        return {}
    return {
        f"{side}_value": metric.value,
        f"{side}_standard_error": metric.standard_error if metric.HasField("standard_error") else None,
        f"{side}_sample_count": metric.sample_count if metric.HasField("sample_count") else None,
    }


class _Asked:
    """In what two requests differ that may have made other questions of the same tasks: the words for it, if it does."""

    def __init__(self, ours: EvaluateRequest, theirs: EvaluateRequest) -> None:
        self.of_all_tasks = [
            *_argument_differences("task_args", ours.task_args, theirs.task_args),
            *_judge_differences(ours, theirs),
        ]
        self.other_gen_kwargs = list(_argument_differences("gen_kwargs", ours.gen_kwargs, theirs.gen_kwargs))
        shots = _setting_difference("num_fewshot", ours, theirs)
        self.other_shots = [f"{shots} asked for"] if shots else []


def _definition_differences(ours: ModelResult | None, theirs: ModelResult | None, asked: _Asked) -> dict[str, list[str]]:
    """Return by task in what its definition differs between the two results, as far as both say, or else in what was asked
    for."""
    if ours is None or theirs is None:
        return {}
    defined = {task.task: task for task in ours.tasks}
    of_all = list(_prompt_differences(ours, theirs))
    found = {
        task.task: [*_differences(defined[task.task], task, asked), *of_all] for task in theirs.tasks if task.task in defined
    }
    _add_to_groups(found, [*ours.tasks, *theirs.tasks])
    return found


def _add_to_groups(found: dict[str, list[str]], tasks: Iterable[TaskResult]) -> None:
    """Add to each group, for whose metrics other questions count too, the first difference in the tasks below it."""
    groups = defaultdict[str, set[str]](set)
    for task in tasks:
        for subtask in {*task.subtasks} - {task.task}:
            groups[subtask].add(task.task)
    pending = deque((name, f"{name}: {found[name][0]}") for name in sorted(found) if found[name])
    reached: set[str] = set()
    while pending:
        name, difference = pending.popleft()
        for group in sorted(groups[name] - reached):
            reached.add(group)
            found.setdefault(group, []).append(difference)
            pending.append((group, difference))


def _differences(ours: TaskResult, theirs: TaskResult, asked: _Asked) -> Iterator[str]:
    if ours.version and theirs.version and _number_of(ours.version) != _number_of(theirs.version):
        yield f"version {ours.version} and {theirs.version}"
    if ours.HasField("num_fewshot") and theirs.HasField("num_fewshot"):
        if ours.num_fewshot != theirs.num_fewshot:
            yield f"num_fewshot {ours.num_fewshot} and {theirs.num_fewshot}"
    elif not ours.is_group:
        yield from asked.other_shots
    sizes = ours.original_sample_count, theirs.original_sample_count
    if all(sizes) and sizes[0] != sizes[1]:
        yield f"{sizes[0]} and {sizes[1]} documents in the dataset"
    if ours.config_hash and theirs.config_hash and ours.config_hash != theirs.config_hash:
        yield "another configuration (config_hash)"
    if not ours.is_group and not (ours.config_hash and ours.config_hash == theirs.config_hash):  # it has those that count
        yield from asked.other_gen_kwargs
    if ours.subtasks and theirs.subtasks and set(ours.subtasks) != set(theirs.subtasks):
        yield "other tasks in the group"


def limit_difference(metric: MetricComparison, baseline: JobInfo, candidate: JobInfo) -> str:
    """Say by which limits two jobs evaluated other documents of a task; empty if nothing says that they did."""
    counts = metric.baseline_sample_count, metric.candidate_sample_count
    are_as_many = metric.HasField("baseline_sample_count") and metric.HasField("candidate_sample_count") and len({*counts}) == 1
    return "" if are_as_many else _setting_difference("limit", baseline.request, candidate.request)


def _setting_difference(name: Literal["limit", "num_fewshot"], ours: EvaluateRequest, theirs: EvaluateRequest) -> str:
    """Say how a number differs that two requests may set; empty if it does not."""
    numbers = [f"{getattr(request, name):.15g}" if request.HasField(name) else "none" for request in (ours, theirs)]
    return "" if numbers[0] == numbers[1] else f"{name} {numbers[0]} and {numbers[1]}"


def _argument_differences(field: str, ours: Struct, theirs: Struct) -> Iterator[str]:
    """Yield which arguments differ between two requests, if any do: the first by name, since there may be very many."""
    names = sorted(name for name in {*ours.fields, *theirs.fields} if ours.fields.get(name) != theirs.fields.get(name))
    if names:
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        yield f"other {field}: {', '.join(name[:_MAX_NAME] for name in names[:MAX_NAMED])}{more}"


def _judge_differences(ours: EvaluateRequest, theirs: EvaluateRequest) -> Iterator[str]:
    judges = [(judge.model, judge.revision, judge.args) for judge in (ours.judge_model, theirs.judge_model)]
    if judges[0] != judges[1]:
        yield f"judge_model {' and '.join(model[-_MAX_NAME:] or 'none' for model, _, _ in judges)}"


def _prompt_differences(ours: ModelResult, theirs: ModelResult) -> Iterator[str]:
    """Yield how all tasks were asked in another way, by what lm-eval and lmms-eval say: the operator may have asked for it."""
    if _said(ours, "system_instruction_sha") != _said(theirs, "system_instruction_sha"):
        yield "another system instruction"
    if has_chat_template(ours) != has_chat_template(theirs):  # another one may be the model's own
        yield "a chat template in one of the two only"


def has_chat_template(result: ModelResult) -> bool:
    """Return whether a model was asked in its own words: then its prompts are no other questions than another model's."""
    return bool(_said(result, "chat_template_sha"))


def _said(result: ModelResult, name: str) -> str:
    """Return a text of the harness's own in its results; empty if there is none."""
    return result.extra.fields[name].string_value if name in result.extra.fields else ""


def _number_of(version: str) -> str:
    """Return a version without what only says that it is a fraction: harnesses write 1 as `1` or `1.0`."""
    return version.removesuffix(".0")


def require_results(job: JobInfo) -> None:
    """Raise NoResultsError unless a job is completed and has results."""
    if job.results and job.status == JobStatus.JOB_STATUS_COMPLETED:  # other states may have results of some tasks
        return
    status = JobStatus.Name(job.status).removeprefix("JOB_STATUS_")
    raise NoResultsError(
        f"job {job.job_id} is {status} and has no results to compare; compare jobs that are COMPLETED",
        metadata={"resource_type": "evalrpc.v1.JobInfo", "resource_name": job.job_id},
    )
