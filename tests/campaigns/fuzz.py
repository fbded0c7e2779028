"""Send good and bad messages to every call of a server, to health and to reflection; then check how it took them.

    make campaign INPUTS=1000000 SEED=1

No answer is INTERNAL or UNKNOWN, every error says its reason in an ErrorInfo, the server's log has no traceback, its memory
stays flat, and in the end it answers, ends every run, and stops cleanly. A seed repeats the inputs but for what they take from
earlier answers, such as page tokens; so a problem is reported with the bytes that were sent.
"""

import argparse
import asyncio
import gc
import json
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import engine_program
import grpc
from campaigns.fuzz_inputs import Inputs, Known, Target
from engine_site import end_engines
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2
from server_process import ServerProcess
from waiting import DEADLINE_SECONDS

from evalrpc.client import AsyncEvalClient
from evalrpc.errors import PreconditionError
from evalrpc.jobs.lifecycle import LIVE
from evalrpc.server import health, reflection
from evalrpc.server.app import SERVICE
from evalrpc.server.transports.grpc import DETAILS_KEY
from evalrpc.v1 import jobs_pb2 as pb

PROGRAM = """
import json, pathlib, sys
output_dir, job_id, tasks = sys.argv[1:]
bias = int(job_id[0], 16)
folder = pathlib.Path(output_dir) / "m"
folder.mkdir(parents=True)
names = tasks.split(",")
results = {"results": {name: {"alias": name, "acc,none": 0.25, "f1,none": 0.5} for name in names}}
(folder / "20260214_103045_results.json").write_text(json.dumps(results))
print("4/4")
for name in names:
    rows = [json.dumps({"doc_id": number, "acc": (number + bias) % 3 % 2, "text": "t" * number}) for number in range(40)]
    (folder / f"20260214_103045_samples_{name}.jsonl").write_text("\\n".join(rows))
"""

CONFIG = f"""
gpus = "2"
max_running = 2
max_queued = 50
grace_seconds = 0.2
journal_max_events = 1000
output_root = "outputs"
[harnesses.trial]
kind = "command"
command = ["{sys.executable}", "-S", "program.py", "{{output_dir}}", "{{job_id}}", "{{tasks}}"]
[engines.stub]
command = ["{sys.executable}", "{engine_program.__file__}", "--model", "{{model}}", "--port", "{{port}}"]
args = {{ behave = "--behave" }}
idle_seconds = 300
start_timeout_seconds = 20
[[suites.release.entries]]
harness = "trial"
tasks = ["t", "u"]
metrics = ["acc"]
tolerance = 0.1
threshold = 0.01
higher_is_better = true
[[suites.release.entries]]
name = "other"
harness = "trial"
tasks = ["t"]
tier = 2
required = false
"""

IN_FLIGHT: Final = 32
MEASURED_INPUTS: Final = 50_000
"""After how many inputs the server's memory is measured."""
MAX_MESSAGES: Final = 3
"""How many messages of a stream are read before it is left."""
MAX_GROWTH_MIB: Final = 16
"""How much larger the server may be after the second half of the inputs than after the first."""
LOST_BYTES_PER_DEADLINE: Final = 96
"""What grpcio (1.76 to 1.85) never frees of a call whose deadline passes while its message is awaited: a batch of 80 bytes."""
MAX_PROBLEMS: Final = 20

REFUSED: Final = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
DEADLINE: Final = grpc.StatusCode.DEADLINE_EXCEEDED.name
ENDED_BY_CLIENT: Final = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


@dataclass
class Trial:
    """What was sent, and what came of it."""

    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    problems: list[str] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    """The server's memory before the inputs, and after each share of them."""
    deadlines: list[int] = field(default_factory=lambda: [0])
    """How many calls had ended by their deadline by then."""
    seconds: float = 0.0

    def note(self, target: Target, status: str, problem: str) -> None:
        self.statuses[target.name][status] += 1
        if problem and len(self.problems) < MAX_PROBLEMS:
            print(problem, file=sys.stderr)  # at once, for whoever ends a long campaign early
            self.problems.append(problem)


def all_targets() -> list[Target]:
    """Return every method of every service: those of the descriptors, so that new ones are fuzzed too."""
    own = [Target(method, service.full_name) for service in (SERVICE, health.SERVICE) for method in service.methods]
    method = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].methods_by_name[reflection.METHOD]
    return own + [Target(method, name) for name in reflection.SERVICES]


async def submit_jobs(client: AsyncEvalClient, model: Path) -> Known:
    """Run a handful of jobs, two suites and an engine for a model, and return what makes messages about them."""
    job_ids = []
    for step in range(6):
        request = pb.EvaluateRequest(harness="trial", model="m", tasks=["t", "u"], num_gpus=0)
        job_ids.append((await client.submit(request, labels={"run": "a", "step": str(step)})).job_id)
    for job_id in job_ids:
        job = await client.wait_for_job(job_id)
        assert job.status == pb.JOB_STATUS_COMPLETED, job
    names = [artifact.name for artifact in await client.list_artifacts(job_ids[0])]
    runs = [await client.submit_suite("release", pb.EvaluateRequest(model="m", num_gpus=0)) for _ in range(2)]
    run_ids = [(await client.wait_for_suite_run(run.suite_run_id)).suite_run_id for run in runs]
    served = pb.ServedModel(engine="stub", model=str(model), num_gpus=0)
    job = await client.submit(pb.EvaluateRequest(harness="trial", tasks=["t"], served_model=served))
    assert (await client.wait_for_job(job.job_id)).attempts[0].engine_id
    return Known(
        good_values(job_ids, names)
        | dict.fromkeys(("suite_run_id", "suite_run_ids", "baseline_suite_run_id"), run_ids)
        | {"suite": ["release"], "HarnessRequestsEntry.key": ["trial"]}
        | {"ServedModel.engine": ["stub"], "ServedModel.model": [str(model)]}
    )


def good_values(job_ids: list[str], artifacts: list[str]) -> dict[str, list[Any]]:
    """Return values that fit, for each field by its name, or by that of its message too."""
    return {
        **dict.fromkeys(("job_id", "baseline_job_id", "candidate_job_id", "candidate_job_ids"), job_ids),
        "job_id_prefix": [job_ids[0][:4], job_ids[1][:13], job_ids[2]],
        "harness": ["", "trial"],
        "harnesses": ["trial"],
        "statuses": [pb.JOB_STATUS_COMPLETED, *LIVE],
        "EvaluateRequest.harness": ["trial"],
        "gpu_mode": [pb.GPU_MODE_UNSPECIFIED],
        "model": ["m"],
        "models": ["m"],
        "task": ["t", "u"],
        "tasks": ["t", "u"],
        "metric": ["acc", "f1"],
        "filter": ["none", ""],
        "name": artifacts,
        "key": ["run", "step"],
        "value": ["a", "1"],
        "label_selector": ["", "run=a", "step in (1,2),run", "!draft,step!=3"],
        "step_label": ["", "step", "run"],
        "paths": ["labels", "priority"],
        "page_token": [""],
        "page_size": [0, 1, 2],
        "attempt": [0, 1],
        "after_revision": [0, 1, 12],
        "expected_revision": [0, 0, 0, 1],
        "offset": [0, 1, 100],
        "limit": [1, 4],
        "seconds": [1, 60, 1_900_000_000],
        "Duration.seconds": [1, 60],
        "nanos": [0],
        "num_gpus": [0, 1],
        "num_fewshot": [0, 5],
        "max_attempts": [0, 1, 2],
        "batch_size": ["", "auto", "8"],
        "device": ["", "cpu"],
        "output_dir": ["", "nightly/a"],
        "request_id": ["", "the-same"],
        "supersede_key": ["", "branch"],
        "reason": ["", "not needed"],
        "query": ["", "t"],
        "tolerance": [0.0, 0.01],
        "alpha": [0.05],
        "service": ["", SERVICE.full_name],
        "file_by_filename": ["evalrpc/v1/jobs.proto", "google/rpc/error_details.proto"],
        "file_containing_symbol": [SERVICE.full_name, f"{SERVICE.full_name}.GetJob", "evalrpc.v1.JobInfo.job_id"],
        "all_extension_numbers_of_type": ["evalrpc.v1.JobInfo"],
        "containing_type": ["evalrpc.v1.JobInfo", "google.protobuf.FieldOptions"],
    }


async def run_trial(server: ServerProcess, model: Path, count: int, seed: int) -> Trial:
    """Send all inputs, in two halves at least, and then end every job."""
    gc.freeze()
    gc.set_threshold(50_000)  # else a tenth of the time goes into looking for garbage
    trial = Trial(rss_mib=[rss_mib(server.pid)])
    async with AsyncEvalClient(server.address) as client, grpc.aio.insecure_channel(server.address) as channel:
        inputs = Inputs(all_targets(), await submit_jobs(client, model), seed)
        began = time.monotonic()
        for share in shares_of(count):
            some = islice(inputs, share)
            await asyncio.gather(*(send_all(channel, inputs, some, trial) for _ in range(IN_FLIGHT)))
            trial.rss_mib.append(rss_mib(server.pid))
            trial.deadlines.append(sum(counts[DEADLINE] for counts in trial.statuses.values()))
            print(
                f"{sum(counts.total() for counts in trial.statuses.values())} inputs: {trial.rss_mib[-1]} MiB", file=sys.stderr
            )
        trial.seconds = time.monotonic() - began
        await end_jobs(client)
        await client.get_server_info()
    return trial


def shares_of(count: int) -> list[int]:
    """Return after how many inputs each the memory is measured: twice at least."""
    share = min(MEASURED_INPUTS, count // 2)
    return [min(share, count - sent) for sent in range(0, count, share)]


async def send_all(channel: grpc.aio.Channel, inputs: Inputs, some: Iterator[tuple[Target, list[bytes]]], trial: Trial) -> None:
    """Send one input after another, of those that other senders take too."""
    for target, messages in some:
        is_short = target.may_stay_quiet or (not target.method.client_streaming and inputs.dice.random() < 0.05)
        timeout = inputs.dice.choice((0.002, 0.01, 0.05)) if is_short else DEADLINE_SECONDS
        try:
            answer = await send(channel, target, messages, timeout)
        except grpc.aio.AioRpcError as error:
            trial.note(target, error.code().name, problem_of(error, target, messages, is_short))
        else:
            trial.note(target, "OK", "")
            if answer:
                inputs.known.learn(target, messages[0], answer)


async def send(channel: grpc.aio.Channel, target: Target, messages: list[bytes], timeout: float) -> bytes:  # noqa: ASYNC109
    """Return the answer; none of a stream, which is left after a few messages."""
    if not target.method.server_streaming:
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(target.path)
        return await ask(messages[0], timeout=timeout)
    if target.method.client_streaming:
        return await converse(channel, target, messages, timeout)
    watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(target.path)
    call, read = watch(messages[0], timeout=timeout), 0
    async for _ in call:
        read += 1
        if read == MAX_MESSAGES:
            call.cancel()
            break
    return b""


async def converse(channel: grpc.aio.Channel, target: Target, messages: list[bytes], timeout: float) -> bytes:  # noqa: ASYNC109
    """Send one message after the other's answer. Of one after the end of a call, gRPC's client says INTERNAL itself."""
    begin: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(target.path)
    call = begin(timeout=timeout)
    for message in messages:
        await call.write(message)
        await call.read()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    return b""


def problem_of(error: grpc.aio.AioRpcError, target: Target, messages: list[bytes], is_short: bool) -> str:
    """Return what is wrong with an error and what led to it; nothing if it is one that a client may get."""
    if error.code() in ENDED_BY_CLIENT and is_short:
        return ""
    if error.code() not in REFUSED and has_reason(error):
        return ""
    sent = " ".join(message[:2000].hex() for message in messages)
    return f"{target.path}: {error.code().name}: {error.details()}; sent: {sent}"


def has_reason(error: grpc.aio.AioRpcError) -> bool:
    metadata = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(metadata.get(DETAILS_KEY, b""))
    return any(detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for detail in status.details)


async def end_jobs(client: AsyncEvalClient) -> None:
    """Cancel what still waits or runs, and wait for the end of all."""
    job_ids = [job.job_id async for job in client.list_jobs(pb.JobFilter(statuses=list(LIVE)))]
    for job_id in job_ids:
        with suppress(PreconditionError):  # it ended first
            await client.cancel_job(job_id)
    for job_id in job_ids:
        await client.wait_for_job(job_id)


def rss_mib(pid: int) -> float:
    """Return how much memory of the machine a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024, 1)


def problems_at_the_end(trial: Trial, log: str, exit_code: int, left: list[int]) -> Iterator[str]:
    half = len(trial.rss_mib) // 2
    lost_mib = LOST_BYTES_PER_DEADLINE * (trial.deadlines[-1] - trial.deadlines[half]) / 2**20
    before, after = trial.rss_mib[half], trial.rss_mib[-1]
    if after - before > MAX_GROWTH_MIB + lost_mib:
        yield f"the server grew from {before} to {after} MiB in the second half, {lost_mib:.1f} of which are gRPC's"
    if tracebacks := list(re.finditer("Traceback", log)):
        place = tracebacks[0].start()
        yield f"{len(tracebacks)} tracebacks in the log, the first of them: {log[max(0, place - 300) : place + 3000]}"
    if exit_code:
        yield f"the server stopped with {exit_code}"
    yield from (f"process {pid} is left" for pid in left)


def run_campaign(folder: Path, inputs: int, seed: int) -> dict[str, object]:
    """Run a campaign in a folder and return its counts and problems."""
    (folder / "program.py").write_text(PROGRAM)
    (folder / "outputs").mkdir()
    (folder / "model").mkdir()
    server = ServerProcess(folder / "data", CONFIG)
    server.start()
    try:
        trial = asyncio.run(run_trial(server, folder / "model", inputs, seed))
        exit_code = server.stop()
        left = server.processes_of_jobs()
        problems = [*trial.problems, *problems_at_the_end(trial, server.log_path.read_text(), exit_code, left)]
    finally:
        server.clean_up()
        end_engines(server.data_dir)
    return {
        "inputs": sum(counts.total() for counts in trial.statuses.values()),
        "per_second": round(inputs / trial.seconds),
        "rss_mib": trial.rss_mib,
        "statuses": {name: dict(counts.most_common()) for name, counts in sorted(trial.statuses.items())},
        "problems": problems,
    }


def main(run: Callable[[Path, int, int], dict[str, object]], description: str) -> int:
    """Run a campaign as the command line says, in a temporary folder, and print its counts. Return 1 if it found problems."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = run(Path(folder), options.inputs, options.seed)
    print(json.dumps(counts, indent=2))
    return 1 if counts["problems"] else 0


if __name__ == "__main__":
    sys.exit(main(run_campaign, __doc__ or ""))
