"""The tools: each a few lines over the client. What only reads says so, so that an agent may call it without asking."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Final, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.types import ToolAnnotations
from pydantic import Field

from evalrpc.client import AsyncEvalClient
from evalrpc.jobs.lifecycle import status_name
from evalrpc.mcp.answers import MAX_IMAGE_BYTES, media_content, plain, plain_job, samples_content, with_texts
from evalrpc.v1.jobs_pb2 import JobEventType, JobFilter, JobInfo, JobStatus, JobView
from evalrpc.v1.samples_pb2 import SampleFilter

MAX_WAIT_SECONDS: Final = 50.0
"""The longest wait of one call: clients of MCP give up on slow ones."""

_READS: Final = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
_SUBMITS: Final = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False)
_CANCELS: Final = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)
_STATUSES: Final = {status_name(status).lower(): status for status in JobStatus.values()[1:]}
_TERMINAL: Final = (JobStatus.JOB_STATUS_COMPLETED, JobStatus.JOB_STATUS_FAILED, JobStatus.JOB_STATUS_CANCELLED)
_HEARTBEAT_SECONDS: Final = 5.0
_LOG_BYTES: Final = 64 * 1024

_T = TypeVar("_T")
_Limit = Annotated[int, Field(ge=1, le=200, description="The most that are returned.")]
_JobId = Annotated[str, Field(description="The id of a job.")]


def add_tools(server: MCPServer[Any], client: AsyncEvalClient) -> None:
    """Offer all tools, which call a server through a client."""
    for tool in (Reading(client), Running(client)):
        tool.add_to(server)


class Running:
    """The tools that change something, and the wait for what was started."""

    def __init__(self, client: AsyncEvalClient) -> None:
        self._client = client

    def add_to(self, server: MCPServer[Any]) -> None:
        """Offer them."""
        server.tool(annotations=_SUBMITS)(with_texts(self.submit_evaluation))
        server.tool(annotations=_CANCELS)(with_texts(self.cancel_job))
        server.tool(annotations=_READS)(with_texts(self.wait_for_job))

    async def submit_evaluation(
        self,
        model: Annotated[str, Field(description="What the harness calls the model or its type, as list_models has it.")],
        tasks: Annotated[list[str], Field(description="Names from find_tasks.", min_length=1)],
        harness: Annotated[str, Field(description="Empty: the server's default.")] = "",
        model_args: Annotated[dict[str, Any] | None, Field(description="Such as the path of the weights.")] = None,
        task_args: Annotated[
            dict[str, Any] | None, Field(description="How the tasks ask, such as epochs or a system_instruction.")
        ] = None,
        limit: Annotated[float | None, Field(description="How many samples per task; below 1, which part of them.")] = None,
        num_gpus: Annotated[int | None, Field(description="Default: the operator's.")] = None,
        labels: Annotated[dict[str, str] | None, Field(description="For finding the job again.")] = None,
        request_id: Annotated[str, Field(description="The same id gives the same job, so a call may be repeated.")] = "",
        validate_only: Annotated[bool, Field(description="Only say whether it would be accepted, with warnings.")] = False,
    ) -> dict[str, Any]:
        """Submit an evaluation, or with validate_only check one. It is validated first in any case. Returns the job; warnings
        name tasks that the harness does not list. Then call wait_for_job."""
        arguments = (model, tasks, model_args)
        options: dict[str, Any] = {
            "limit": limit,
            "num_gpus": num_gpus,
            "harness": harness,
            "labels": labels or {},
            "task_args": task_args,
        }
        checked = await self._client.evaluate(*arguments, **options, validate_only=True)
        if validate_only:
            return plain_job(checked)
        return plain_job(await self._client.evaluate(*arguments, **options, request_id=request_id or None))

    async def cancel_job(self, job_id: _JobId, reason: str = "") -> dict[str, Any]:
        """Cancel a job. One that runs is ended with all its processes, which takes a moment."""
        return plain_job(await self._client.cancel_job(job_id, reason))

    async def wait_for_job(
        self,
        job_id: _JobId,
        ctx: Context[Any, Any],
        after_revision: Annotated[int, Field(description="The revision that the last wait returned.", ge=0)] = 0,
        timeout_seconds: Annotated[float, Field(gt=0, le=MAX_WAIT_SECONDS)] = MAX_WAIT_SECONDS,
    ) -> dict[str, Any]:
        """Wait until a job has ended, at most 50 seconds, with its progress meanwhile. `done` false: call again with the
        revision."""
        revision, job = after_revision, await self._client.get_job(job_id)
        try:
            async with asyncio.timeout(timeout_seconds):
                if job.status not in _TERMINAL:
                    async for revision, job in self._states(job_id, after_revision):  # noqa: B007 - the last ones count
                        await _report(ctx, job)
        except TimeoutError:
            job = await self._client.get_job(job_id)
        is_done = job.status in _TERMINAL
        return {
            "done": is_done,
            "job_id": job_id,
            "revision": max(revision, job.revision if is_done else 0),
            "job": plain_job(job),
        }

    async def _states(self, job_id: str, after_revision: int) -> AsyncIterator[tuple[int, JobInfo]]:
        events = self._client.watch(job_id, after_revision=after_revision, heartbeat_interval_seconds=_HEARTBEAT_SECONDS)
        async with aclosing(events):
            async for event in events:
                if event.type != JobEventType.JOB_EVENT_TYPE_BOOKMARK:
                    yield event.revision, event.job


class Reading:
    """The tools that only read."""

    def __init__(self, client: AsyncEvalClient) -> None:
        self._client = client

    def add_to(self, server: MCPServer[Any]) -> None:
        """Offer them."""
        tools = (
            *(self.list_harnesses, self.find_tasks, self.list_models, self.get_queue),
            *(self.get_job, self.list_jobs, self.get_metrics, self.compare_jobs, self.get_history, self.read_log),
        )
        for tool in tools:
            server.tool(annotations=_READS)(with_texts(tool))
        for with_images in (self.read_samples, self.read_sample_media):
            server.tool(annotations=_READS, structured_output=False)(with_texts(with_images))

    async def list_harnesses(self) -> dict[str, Any]:
        """List the harnesses of the server, and whether each is available."""
        return {"harnesses": [plain(each) for each in await self._client.list_harnesses()]}

    async def find_tasks(self, query: str = "", harness: str = "", limit: _Limit = 50) -> dict[str, Any]:
        """Find tasks (benchmarks) by a part of their names."""
        return {"tasks": await _first(self._client.list_tasks(query, harness), limit)}

    async def list_models(self, query: str = "", harness: str = "", limit: _Limit = 50) -> dict[str, Any]:
        """Find the types of models that a harness can load by a part of their names."""
        return {"models": await _first(self._client.list_models(query, harness), limit)}

    async def get_queue(self) -> dict[str, Any]:
        """Show what is queued and runs, and which GPUs are free."""
        return plain(await self._client.get_queue_status())

    async def get_job(self, job_id: _JobId) -> dict[str, Any]:
        """Read a job: its status, progress or position, error, and metrics once it has some."""
        return plain_job(await self._client.get_job(job_id))

    async def list_jobs(
        self,
        label_selector: Annotated[str, Field(description="As in Kubernetes: run=x,step!=5,team in (a,b)")] = "",
        statuses: Annotated[list[str] | None, Field(description=", ".join(_STATUSES))] = None,
        limit: _Limit = 20,
    ) -> dict[str, Any]:
        """List jobs, newest first, without their metrics."""
        job_filter = JobFilter(label_selector=label_selector, statuses=map(_status_named, statuses or ()))
        jobs = await _first(self._client.list_jobs(job_filter, limit, view=JobView.JOB_VIEW_BASIC), limit)
        return {"jobs": [plain_job(job) for job in jobs]}

    async def get_metrics(self, job_id: _JobId, metrics: list[str] | None = None, limit: _Limit = 100) -> dict[str, Any]:
        """List the metrics of a job; `metrics` selects some, as TASK/METRIC, METRIC or TASK/."""
        return {"metrics": [plain(each) for each in await _first(self._client.list_metrics(job_id, metrics or ()), limit)]}

    async def compare_jobs(
        self, baseline_job_id: _JobId, candidate_job_ids: list[str], metrics: list[str] | None = None
    ) -> dict[str, Any]:
        """Compare jobs with a baseline: for every metric the difference, its confidence interval and a verdict."""
        return plain(await self._client.compare(baseline_job_id, candidate_job_ids, metrics=metrics or ()))

    async def get_history(
        self, label_selector: str = "", metrics: list[str] | None = None, step_label: str = "step"
    ) -> dict[str, Any]:
        """Show metrics over the steps of a training run, whose jobs the label selector takes."""
        history = await self._client.get_history(JobFilter(label_selector=label_selector), metrics or (), step_label)
        return plain(history)

    async def read_samples(
        self,
        job_id: _JobId,
        task: str = "",
        model: str = "",
        start: Annotated[int, Field(ge=0, description="How many to skip.")] = 0,
        limit: Annotated[int, Field(ge=1, le=50)] = 5,
        text: Annotated[str, Field(description="Only samples that contain this anywhere, in any case.")] = "",
        metric: Annotated[str, Field(description="Only samples with a value of this metric, such as acc.")] = "",
        min_value: Annotated[float | None, Field(description="The least value of metric.")] = None,
        max_value: Annotated[float | None, Field(description="The largest value of metric: 0 for wrong answers.")] = None,
    ) -> list[Any]:
        """Read the samples of a job: questions, answers and scores, with images where they are part of the sample. Those that
        lie beside it, or in the data set, are read_sample_media's."""
        wanted = SampleFilter(text=text, metric=metric, min_value=min_value, max_value=max_value)
        page_size = min(1000, start + limit)
        samples = self._client.samples(job_id, model, task, page_size, filter=wanted if wanted.ByteSize() else None)
        return samples_content((await _first(samples, start + limit))[start:])

    async def read_sample_media(
        self,
        job_id: _JobId,
        sample_id: Annotated[str, Field(description="The doc_id of a sample.")],
        task: str = "",
        model: str = "",
    ) -> list[Any]:
        """Look at the images that a sample is about: those that it refers to or, if the harness leaves them out of its samples,
        those of its document."""
        media = self._client.sample_media(job_id, sample_id, model, task, max_bytes=MAX_IMAGE_BYTES)
        return media_content([medium async for medium in media])

    async def read_log(self, job_id: _JobId, lines: Annotated[int, Field(ge=1, le=500)] = 50) -> dict[str, Any]:
        """Read the last lines of a job's log."""
        tail = b""
        async for chunk in self._client.logs(job_id):
            tail = (tail + chunk)[-_LOG_BYTES:]
        return {"lines": tail.decode(errors="replace").splitlines()[-lines:]}


def _status_named(text: str) -> JobStatus.ValueType:
    """Return the status of a name, which may be as answers have it. Raises ValueError."""
    found = _STATUSES.get(text.upper().removeprefix("JOB_STATUS_").lower())
    if found is None:
        raise ValueError(f"statuses: there is no {text!r}; there are: {', '.join(_STATUSES)}")
    return found


async def _report(ctx: Context[Any, Any], job: JobInfo) -> None:
    """Tell the agent's program how far a job is."""
    progress = job.progress
    total = float(progress.total) if progress.HasField("total") else None
    status = status_name(job.status).lower()
    await ctx.report_progress(float(progress.done), total, job.wait_reason or status)


async def _first(items: AsyncIterator[_T], limit: int) -> list[_T]:
    """Return the first items."""
    found: list[_T] = []
    async for item in items:
        found.append(item)
        if len(found) == limit:
            break
    return found
