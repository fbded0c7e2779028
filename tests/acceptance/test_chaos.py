"""Watchers through cut connections and a server that is killed again and again: each sees every status once, in order."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from server_process import ServerProcess

from evalrpc.client import AsyncEvalClient
from evalrpc.v1 import jobs_pb2 as pb

pytestmark = pytest.mark.slow

JOBS = 200
KILLS = 20
CUTS_PER_KILL = 2

PROGRAM = """
import json, pathlib, sys
output_dir, job_id = sys.argv[1:]
with open("starts", "a") as starts:
    starts.write(job_id + "\\n")
folder = pathlib.Path(output_dir) / "m"
folder.mkdir()
(folder / "20260214_103045_results.json").write_text(json.dumps({"results": {"t": {"acc,none": 0.25}}}))
"""


class Proxy:
    """A TCP proxy on loopback that can cut all connections at once."""

    def __init__(self, target: str) -> None:
        self._host, port = target.split(":")
        self._port = int(port)
        self._writers: set[asyncio.StreamWriter] = set()
        self.address = ""

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, upstream_writer}
        self._writers |= pair
        try:
            await asyncio.gather(self._pump(reader, upstream_writer), self._pump(upstream_reader, writer))
        finally:
            self._writers -= pair

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@contextlib.asynccontextmanager
async def proxied_client(server: ServerProcess) -> AsyncIterator[tuple[Proxy, AsyncEvalClient]]:
    proxy = Proxy(server.address)
    listener = await proxy.start()
    try:
        async with AsyncEvalClient(proxy.address) as client:
            yield proxy, client
    finally:
        listener.close()
        proxy.cut()


def test_every_watcher_sees_every_status_once_and_in_order(tmp_path: Path, serve: Callable[[str], ServerProcess]) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    server = serve(f"""
        gpus = "0"
        max_running = 4
        [harnesses.small]
        kind = "command"
        command = ["{sys.executable}", "-S", "program.py", "{{output_dir}}", "{{job_id}}"]
    """)
    seen = asyncio.run(watch_through_chaos(server))

    expected = [pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING, pb.JOB_STATUS_COMPLETED]
    assert {tuple(status for _, status in events) for events in seen.values()} == {tuple(expected)}
    assert all(events == sorted(events) for events in seen.values())
    revisions = [revision for events in seen.values() for revision, _ in events]
    assert len(revisions) == len(set(revisions)) == 3 * JOBS
    starts = (tmp_path / "starts").read_text().split()
    assert sorted(starts) == sorted(seen), "every job's program ran exactly once, whatever happened to the server"
    assert server.processes_of_jobs() == []


async def watch_through_chaos(server: ServerProcess) -> dict[str, list[tuple[int, int]]]:
    """Submit the jobs, watch each from its first status on, and break things until all have ended."""
    seen: dict[str, list[tuple[int, int]]] = {}
    news = asyncio.Condition()

    async def watch(client: AsyncEvalClient, job: pb.JobInfo) -> None:
        async for event in client.watch(job.job_id, after_revision=job.revision - 1):
            if event.type == pb.JOB_EVENT_TYPE_PROGRESS:
                continue
            seen[job.job_id].append((event.revision, event.job.status))
            async with news:
                news.notify_all()

    async def after_more_events(count: int) -> None:
        """Wait until so many more events were seen, or all: chaos is measured in what happens, not in time."""
        target = min(total() + count, 3 * JOBS)
        async with news:
            await news.wait_for(lambda: total() >= target)

    def total() -> int:
        return sum(map(len, seen.values()))

    request = pb.EvaluateRequest(harness="small", model="m", tasks=["t"], num_gpus=0)
    async with proxied_client(server) as (proxy, client):
        first = await client.submit(request)  # so that no job has revision 1, after which `after_revision` would be 0
        await client.wait_for_job(first.job_id)
        (Path(server.data_dir).parent / "starts").unlink()
        jobs = [await client.submit(request) for _ in range(JOBS)]
        seen.update({job.job_id: [] for job in jobs})
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(watch(client, job))
            for _ in range(KILLS):
                for _ in range(CUTS_PER_KILL):
                    await after_more_events(5)
                    proxy.cut()
                await after_more_events(5)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
    return seen
