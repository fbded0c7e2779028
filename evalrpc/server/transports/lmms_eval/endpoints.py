"""What answers at each path of lmms-eval's server."""

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from concurrent.futures import Executor
from typing import Any, Final

from google.protobuf.message import Message

from evalrpc.errors import EvalrpcError, FieldsError
from evalrpc.jobs.lifecycle import TERMINAL
from evalrpc.printable import printable
from evalrpc.server.transports.http.application import Endpoint
from evalrpc.server.transports.http.codec import MAX_JSON_BYTES, require_few_values
from evalrpc.server.transports.http.errors import HTTP_STATUS, JSON, error_headers
from evalrpc.server.transports.http.methods import HttpMethod
from evalrpc.server.transports.http.request import INERT, HttpRequest
from evalrpc.server.transports.lmms_eval import answers
from evalrpc.server.transports.lmms_eval.requests import (
    PREPARED,
    UnprocessableError,
    merge_of,
    no_json,
    submission_of,
    unprocessable,
)
from evalrpc.v1.catalog_pb2 import ListModelsRequest, ListModelsResponse, ListTasksRequest, ListTasksResponse
from evalrpc.v1.jobs_pb2 import CancelJobRequest, GetJobRequest, JobInfo
from evalrpc.v1.queue_pb2 import GetQueueRequest, GetQueueResponse

_PATH: Final = re.compile(r"/(?:health|evaluate|queue|tasks|models|merge|jobs/[^/]+)/?")
_NAMES_PER_PAGE: Final = 1000
_UNPROCESSABLE: Final = 422


class _AnswerError(Exception):
    """An answer that is an error: its status and its `detail`."""

    def __init__(self, status: int, detail: Any) -> None:
        super().__init__()
        self.status = status
        self.detail = detail


class LmmsEvalEndpoints:
    """Answers there. `harness` is that of the requests, empty: the operator's default."""

    def __init__(
        self, methods: Mapping[str, HttpMethod], harness: str, gpu_count: int, preparations: Collection[str], readers: Executor
    ) -> None:
        self._methods = methods
        self._harness = harness
        self._gpu_count = gpu_count
        self._preparations = preparations
        self._readers = readers

    def find(self, request: HttpRequest) -> Endpoint | None:
        """Return what answers a request, if it is for one of the paths."""
        return self._answer if _PATH.fullmatch(request.path) else None

    async def _answer(self, request: HttpRequest) -> None:
        if request.path.endswith("/"):
            query = b"?" + request.query if request.query else b""
            await request.respond(307, [(b"location", request.raw_path.rstrip(b"/") + query), *INERT])
            return
        headers: list[tuple[bytes, bytes]] = [JSON, *INERT]
        try:
            status, answer = 200, await self._answer_of(request)
        except _AnswerError as error:
            status, answer = error.status, {"detail": error.detail}
        except UnprocessableError as error:
            status, answer = _UNPROCESSABLE, {"detail": error.detail}
        except FieldsError as error:
            detail = unprocessable(error.violations).detail if error.violations else error.message
            status, answer = _UNPROCESSABLE, {"detail": detail}
        except EvalrpcError as error:
            status, answer = HTTP_STATUS[error.code], {"detail": error.message}
            headers = list(error_headers(error))
        await request.respond(status, headers, json.dumps(answer, ensure_ascii=False).encode(errors="replace"))

    async def _answer_of(self, request: HttpRequest) -> dict[str, Any]:
        """Raises _AnswerError, UnprocessableError, EvalrpcError."""
        name, _, argument = request.path[1:].partition("/")
        ways = self._ways()[name]
        if request.method not in ways:
            raise _AnswerError(405, "Method Not Allowed")
        return await ways[request.method](request, argument)

    def _ways(self) -> Mapping[str, Mapping[str, Callable[[HttpRequest, str], Awaitable[dict[str, Any]]]]]:
        return {
            "health": {"GET": self._health},
            "evaluate": {"POST": self._evaluate},
            "jobs": {"GET": self._get_job, "DELETE": self._cancel_job},
            "queue": {"GET": self._queue},
            "tasks": {"GET": self._tasks},
            "models": {"GET": self._models},
            "merge": {"POST": self._merge},
        }

    async def _health(self, request: HttpRequest, _: str) -> dict[str, Any]:
        queue = await self._get_queue(request)
        return {"status": "healthy", "timestamp": answers.now(), "queue_size": queue.queued_count}

    async def _evaluate(self, request: HttpRequest, _: str) -> dict[str, Any]:
        async def read() -> bytes:
            return submission_of(await _json_body(request), self._harness, self._gpu_count).SerializeToString()

        return answers.submitted(JobInfo.FromString(await self._methods["SubmitJob"].call(request, read)))

    async def _get_job(self, request: HttpRequest, job_id: str) -> dict[str, Any]:
        return answers.job_answer(await self._job(request, job_id))

    async def _cancel_job(self, request: HttpRequest, job_id: str) -> dict[str, Any]:
        """Cancel a queued job: that server never ends one that runs."""
        if (await self._job(request, job_id)).status in TERMINAL:
            raise _AnswerError(400, "Job already finished or cancelled")
        try:
            await self._call(request, "CancelJob", CancelJobRequest(job_id=job_id, queued_only=True))
        except EvalrpcError as error:
            if error.reason not in _NOT_CANCELLED:
                raise
            raise _AnswerError(400, _NOT_CANCELLED[error.reason]) from None
        return {"message": f"Job {job_id} cancelled"}

    async def _queue(self, request: HttpRequest, _: str) -> dict[str, Any]:
        return answers.queue_answer(await self._get_queue(request))

    async def _tasks(self, request: HttpRequest, _: str) -> dict[str, Any]:
        try:
            return {"tasks": await self._names(request, "ListTasks", ListTasksRequest, ListTasksResponse, "tasks")}
        except EvalrpcError as error:
            return {"tasks": [], "error": error.message}

    async def _models(self, request: HttpRequest, _: str) -> dict[str, Any]:
        try:
            return {"models": await self._names(request, "ListModels", ListModelsRequest, ListModelsResponse, "models")}
        except EvalrpcError as error:
            return {"models": [], "error": error.message}

    async def _merge(self, request: HttpRequest, _: str) -> dict[str, Any]:
        """Return a path with which an evaluation has its checkpoint merged before it starts."""
        await self._get_queue(request)  # whoever may not call may not ask for folders either
        merge = merge_of(await _json_body(request))
        if merge.output_path:
            raise _AnswerError(400, "this server keeps what it merges itself: leave output_path out, and evaluate merged_path")
        if merge.preparation not in self._preparations:
            raise _AnswerError(500, f"Merge failed: this server has no preparation {merge.preparation}")
        is_folder = lambda: "\0" not in merge.checkpoint_path and os.path.isdir(merge.checkpoint_path)  # noqa: E731, PTH112
        if not await asyncio.get_running_loop().run_in_executor(self._readers, is_folder):
            raise _AnswerError(404, f"there is no folder {printable(merge.checkpoint_path)[:500]} on the server")
        path = f"{merge.checkpoint_path}{PREPARED}{merge.preparation}"
        return {"success": True, "message": "Checkpoint is merged when a job evaluates merged_path", "merged_path": path}

    async def _job(self, request: HttpRequest, job_id: str) -> JobInfo:
        try:
            return JobInfo.FromString(await self._call(request, "GetJob", GetJobRequest(job_id=job_id)))
        except EvalrpcError as error:
            if error.code not in ("NOT_FOUND", "INVALID_ARGUMENT"):
                raise
            raise _AnswerError(404, f"Job {printable(job_id)[:200]} not found") from None

    async def _get_queue(self, request: HttpRequest) -> GetQueueResponse:
        return GetQueueResponse.FromString(await self._call(request, "GetQueue", GetQueueRequest()))

    async def _names(self, request: HttpRequest, method: str, ask: type[Any], answer: type[Any], field: str) -> list[str]:
        names: list[str] = []
        token = ""
        while True:
            message = ask(harness=self._harness, page_size=_NAMES_PER_PAGE, page_token=token)
            page = answer.FromString(await self._call(request, method, message))
            names += getattr(page, field)
            token = page.next_page_token
            if not token:
                return names

    async def _call(self, request: HttpRequest, method: str, message: Message) -> bytes:
        async def read() -> bytes:
            return message.SerializeToString()

        return await self._methods[method].call(request, read)


_NOT_CANCELLED: Final = {
    "JOB_NOT_QUEUED": "Cannot cancel a running job",
    "JOB_FINISHED": "Job already finished or cancelled",
}


async def _json_body(request: HttpRequest) -> bytes:
    """Return the body. Raises UnprocessableError for one of another type, which any page could send."""
    body = await request.body(MAX_JSON_BYTES)
    require_few_values(body)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise no_json(body)
    return body
