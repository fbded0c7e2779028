"""An agent's whole loop, with the official client over standard input and output."""

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import CallToolResult
from serving import NOWHERE, Api, Site

from evalrpc.mcp.answers import media_content, samples_content
from evalrpc.v1.samples_pb2 import ReadSampleMediaResponse

PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"0" * 20).decode()


@asynccontextmanager
async def session(api: Api) -> AsyncIterator[ClientSession]:
    program = StdioServerParameters(command=sys.executable, args=["-m", "evalrpc", "--address", api.address, "mcp"])
    async with stdio_client(program) as streams, ClientSession(*streams) as session:
        await session.initialize()
        yield session


def with_session(api: Api, use: Callable[[ClientSession], Awaitable[None]]) -> None:
    async def run() -> None:
        async with session(api) as agent:
            await use(agent)

    asyncio.run(run())


def answer(result: CallToolResult) -> Any:
    assert not result.is_error, result.content
    return result.structured_content


def test_an_agent_goes_from_a_question_to_a_comparison(api: Api, site: Site) -> None:
    progress: list[str] = []

    async def note(done: float, total: float | None, message: str | None) -> None:
        progress.append(message or "")

    async def use(agent: ClientSession) -> None:
        tools = {tool.name: tool for tool in (await agent.list_tools()).tools}
        changing = {name for name, tool in tools.items() if not tool.annotations.read_only_hint}
        assert changing == {"submit_evaluation", "cancel_job"}
        assert tools["cancel_job"].annotations.destructive_hint
        assert all(tool.description for tool in tools.values())
        harnesses = answer(await agent.call_tool("list_harnesses", {}))["harnesses"]
        assert [each["name"] for each in harnesses] == ["toy"]
        asked = {"model": "good", "tasks": ["t"], "num_gpus": 0, "labels": {"run": "a", "step": "1"}}
        asked["task_args"] = {"epochs": 2}
        checked = answer(await agent.call_tool("submit_evaluation", {**asked, "validate_only": True}))
        assert "job_id" not in checked
        first = answer(await agent.call_tool("submit_evaluation", {**asked, "request_id": "one"}))["job_id"]
        again = answer(await agent.call_tool("submit_evaluation", {**asked, "request_id": "one"}))["job_id"]
        assert first == again
        ended = answer(await agent.call_tool("wait_for_job", {"job_id": first}, progress_callback=note))
        assert ended["done"]
        assert ended["job"]["metrics"][0]["value"] == 0.5
        slow = answer(
            await agent.call_tool("submit_evaluation", {**asked, "model": "slow", "labels": {"run": "a", "step": "2"}})
        )
        waited = answer(await agent.call_tool("wait_for_job", {"job_id": slow["job_id"], "timeout_seconds": 0.5}))
        assert not waited["done"]
        queue = answer(await agent.call_tool("get_queue", {}))
        assert slow["job_id"] in queue.get("running_job_ids", []) + queue.get("queued_job_ids", [])
        site.release()
        after = {"job_id": slow["job_id"], "after_revision": waited["revision"]}
        assert answer(await agent.call_tool("wait_for_job", after, progress_callback=note))["done"]
        compared = answer(
            await agent.call_tool("compare_jobs", {"baseline_job_id": first, "candidate_job_ids": [slow["job_id"]]})
        )
        assert compared["candidates"]
        history = answer(await agent.call_tool("get_history", {"label_selector": "run=a"}))
        assert len(history["points"]) == 2
        log = answer(await agent.call_tool("read_log", {"job_id": slow["job_id"], "lines": 5}))["lines"]
        assert "ready" in log
        samples = await agent.call_tool("read_samples", {"job_id": first, "limit": 2})
        assert [row["doc_id"] for row in json.loads(samples.content[0].text)] == [0, 1]
        listed = answer(await agent.call_tool("list_jobs", {"label_selector": "step=1"}))["jobs"]
        assert [job["job_id"] for job in listed] == [first]
        assert answer(await agent.call_tool("get_metrics", {"job_id": first}))["metrics"]
        assert answer(await agent.call_tool("get_job", {"job_id": first}))["status"] == "JOB_STATUS_COMPLETED"

    with_session(api, use)
    assert progress


def test_errors_have_their_text_and_jobs_can_be_cancelled(api: Api, site: Site) -> None:
    async def use(agent: ClientSession) -> None:
        unknown = await agent.call_tool("get_job", {"job_id": NOWHERE})
        assert unknown.is_error
        assert f"JOB_NOT_FOUND: there is no job {NOWHERE}" in unknown.content[0].text
        refused = await agent.call_tool("submit_evaluation", {"model": "", "tasks": ["t"], "harness": "none"})
        assert "request.harness" in refused.content[0].text
        bad_status = await agent.call_tool("list_jobs", {"statuses": ["asleep"]})
        names = "queued, running, completed, failed, cancelled"
        assert f"statuses: there is no 'asleep'; there are: {names}" in bad_status.content[0].text
        for status in ("completed", "JOB_STATUS_COMPLETED"):  # as answers have it
            assert answer(await agent.call_tool("list_jobs", {"statuses": ["queued", status]})) == {"jobs": []}
        job_id = api.submit("slow").job_id
        answer(await agent.call_tool("cancel_job", {"job_id": job_id, "reason": "enough"}))
        ended = answer(await agent.call_tool("wait_for_job", {"job_id": job_id}))
        assert ended["job"]["status"] == "JOB_STATUS_CANCELLED"

    with_session(api, use)


def test_images_of_samples_are_images() -> None:
    row = {"question": [{"url": f"data:image/png;base64,{PIXEL}"}, "what is it?"], "long": "x" * 5000}
    text, image = samples_content([row])
    (shown,) = json.loads(text)
    assert shown["question"] == [{"url": "[image 1]"}, "what is it?"]
    assert shown["long"].endswith("… (5000 characters)")
    assert image.to_image_content().mime_type == "image/png"
    assert len(samples_content([row] * 20)) == 1 + 8


def test_only_the_tools_load_mcp() -> None:
    code = "import sys, evalrpc.cli.mcp; sys.exit('pydantic' in sys.modules or 'mcp.server' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_agent_gets_the_images_of_a_sample_and_hears_of_the_rest() -> None:
    shown = ReadSampleMediaResponse(index=0, source="image", media_type="image/png", size_bytes=8, data=b"\x89PNG\r\n\x1a\n")
    other = ReadSampleMediaResponse(index=1, source="audio", media_type="audio/wav", size_bytes=4, data=b"RIFF")
    gone = ReadSampleMediaResponse(index=2, source="document", problem="it is not there")
    text, *images = media_content([shown, other, gone])
    assert [image.data for image in images] == [shown.data]
    described = json.loads(text)
    assert [each.get("image") for each in described] == [1, None, None]
    assert described[2]["problem"] == "it is not there"
    assert not any("data" in each for each in described)
