"""The demo: start a server, submit a real evaluation, watch it, show its results, and stop what was started.

`make demo` prepares what it needs (the server's environment, lmms-eval's, and the tiny model) and runs it. It writes only to
`.demo/`.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, islice
from pathlib import Path

from evalrpc.cli import tables, wording
from evalrpc.client import EvalClient
from evalrpc.errors import EvalrpcError
from evalrpc.printable import printable
from evalrpc.v1.jobs_pb2 import JobInfo, JobStatus

DEMO = Path(__file__).absolute().parent
ROOT = DEMO.parent
WORK = ROOT / ".demo"
MODEL = WORK / "models" / "tiny-llava"
DATA = WORK / "server"
TASKS = ("demo_colour", "demo_count")

_READY = "evalrpc listening on "
_STOP_SECONDS = 30.0
_SAMPLES = 3
_WARM_SECONDS = 300.0
_LOOK_SECONDS = 0.2


class DemoError(Exception):
    """Why the demo can't continue, in words for people."""


def main() -> int:
    """Run the demo, and return the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with running_server() as address, EvalClient(address) as client:
            job = evaluate(client)
            show_metrics(job)
            show_samples(client, job)
            show_files(job)
            run_again(client, job)
    except (DemoError, EvalrpcError, TimeoutError) as error:
        print(f"\nThe demo failed. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; nothing of the demo runs any more.", file=sys.stderr)
        return 130
    print("\nThe server is stopped.")
    return 0


@contextmanager
def running_server() -> Iterator[str]:
    """Start a server on a free port, yield its address, and stop it. Raises DemoError."""
    if not MODEL.is_dir():
        raise DemoError(f"There is no model at {short(MODEL)}: run make demo, which makes it.")
    heading("Server")
    with serving(DEMO / "evalrpc.toml", DATA) as address:
        yield address


@contextmanager
def serving(config: Path, data: Path, **variables: str) -> Iterator[str]:
    """Start `evalrpc serve` on a free port, with these environment variables besides, yield its address, and stop it.

    It is in its own session, out of reach of Ctrl-C: a demo cancels its jobs first. Raises DemoError.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EVALRPC_")}
    environment |= {"HF_HOME": str(WORK / "huggingface"), "XDG_DATA_HOME": str(WORK / "share"), **variables}
    program = Path(sys.executable).with_name("evalrpc")
    flags = ("--listen=127.0.0.1:0", f"--data-dir={data}", f"--config={config}")
    log_path = data.with_suffix(".log")
    with log_path.open("wb") as log:
        server = subprocess.Popen(
            [program, "serve", *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            start_new_session=True,
        )
    try:
        address = read_address(server, log_path)
        print(f"evalrpc listens on {address}, process {server.pid}, with a log in {short(log_path)}")
        yield address
    finally:
        stop(server)


def read_address(server: subprocess.Popen[str], log: Path) -> str:
    """Wait for the line with the server's address. Raises DemoError if the server exits without one."""
    for line in server.stdout or ():
        if line.startswith(_READY):
            return line.removeprefix(_READY).strip()
    raise DemoError(f"The server did not start:\n{log.read_text(errors='replace').strip()}")


def stop(process: subprocess.Popen[str]) -> None:
    """Ask the process to stop, and wait until it has."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def evaluate(client: EvalClient) -> JobInfo:
    """Submit the evaluation, print its events, and return the job once it is completed. Raises DemoError."""
    heading("Job")
    with submitted(client) as job:
        print(f"{job.job_id}: {job.request.model} on {', '.join(job.request.tasks)}")
        job = follow(client, job)
    if job.status != JobStatus.JOB_STATUS_COMPLETED:
        raise DemoError("\n".join(("The job did not complete. The end of its log:", *job.error.log_tail)))
    return job


@contextmanager
def submitted(client: EvalClient) -> Iterator[JobInfo]:
    """Submit the evaluation, and end the job if the block ends by an error or by Ctrl-C: it would go on."""
    job = client.evaluate("llava_hf", TASKS, {"pretrained": str(MODEL), "device_map": "cpu"}, device="cpu", batch_size=1)
    with ExitStack() as on_error:
        on_error.callback(end, client, job.job_id)
        yield job
        on_error.pop_all()


def follow(client: EvalClient, job: JobInfo) -> JobInfo:
    """Print the submitted job, then every event that says something new. Returns the job's last state."""
    heading("Stream")
    began, shown = time.monotonic(), ""
    events = client.watch(job.job_id, reconnect_timeout_seconds=_STOP_SECONDS)
    for state in chain([job], (event.job for event in events)):
        line = printable(wording.describe(state))
        if line != shown:
            print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)
            shown = line
    return state


def end(client: EvalClient, job_id: str) -> None:
    """Cancel the job and wait until nothing of it runs. A second Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EvalrpcError, TimeoutError):
        client.cancel_job(job_id, "the demo was stopped")
        client.wait_for_job(job_id, _STOP_SECONDS, raise_on_failure=False)


def show_metrics(job: JobInfo) -> None:
    """Print the metrics as a table."""
    heading("Metrics (the weights are random, so the model only guesses)")
    columns = wording.METRIC_COLUMNS
    show_table([[column.name for column in columns], *(tables.texts(columns, row) for row in wording.metric_rows(job))])


def show_samples(client: EvalClient, job: JobInfo) -> None:
    """Print the first answers of the first task."""
    heading(f"First samples of {TASKS[0]}")
    rows = islice(client.samples(job.job_id, task=TASKS[0], page_size=_SAMPLES), _SAMPLES)
    answers = ((printable(str(row["target"])), printable(str(row["filtered_resps"]))) for row in rows)
    show_table([("expected", "answer"), *answers])


def show_files(job: JobInfo) -> None:
    """Print where the files are."""
    heading("Files")
    for result in job.results.values():
        for path in (result.results, *result.samples):
            print(short(Path(path)))


def run_again(client: EvalClient, first: JobInfo) -> None:
    """Run the same evaluation once lmms-eval is in memory, and print both times. Raises DemoError."""
    heading("The same once more, with lmms-eval in memory")
    deadline = time.monotonic() + _WARM_SECONDS
    while not (harness := client.list_harnesses()[0]).warm:
        if harness.cold_reason or time.monotonic() >= deadline:
            raise DemoError(f"lmms-eval was not kept in memory: {harness.cold_reason or 'it took too long'}")
        time.sleep(_LOOK_SECONDS)
    with submitted(client) as job:
        job = client.wait_for_job(job.job_id)
    if not job.attempts[-1].warm:
        raise DemoError("The second run was not forked from the process that has lmms-eval in memory.")
    show_table([("run", "seconds"), ("first", f"{seconds(first):.1f}"), ("warm", f"{seconds(job):.1f}")])


def seconds(job: JobInfo) -> float:
    """Return how long a job took, from its submission to its end."""
    return (job.completed_at.ToNanoseconds() - job.created_at.ToNanoseconds()) / 1e9


def show_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def heading(text: str) -> None:
    """Print a heading."""
    print(f"\n==> {text}", flush=True)


def short(path: Path) -> str:
    """Return the path relative to the repository, if it is inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
