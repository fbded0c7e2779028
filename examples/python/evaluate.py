"""Submits an evaluation, watches it to its end across broken connections, and prints its metrics.

    python build/evaluate.py [--harness H] --model M --tasks A,B [--num-gpus N] [--patience SECONDS]

EVALRPC_ADDRESS sets the server: HOST:PORT, or https://HOST:PORT for TLS. EVALRPC_TLS_CA is a file with the certificates to
trust, EVALRPC_TOKEN a token, which is sent with TLS only. Exits with 0 if the job completed, 1 if it failed or was
cancelled, 2 if the call was invalid or refused, 3 if the server can't be reached. Uses only the generated stubs: the package
evalrpc has a client that does all this.
"""

import argparse
import os
import random
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from evalrpc.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo, JobStatus, SubmitJobRequest, WatchJobRequest

FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 5.0

CHANNEL_OPTIONS = (
    # By default gRPC waits up to two minutes before it reconnects to a restarted server.
    ("grpc.initial_reconnect_backoff_ms", int(FIRST_BACKOFF_SECONDS * 1000)),
    ("grpc.max_reconnect_backoff_ms", int(LONGEST_BACKOFF_SECONDS * 1000)),
    # Pings detect a server that vanished silently.
    ("grpc.keepalive_time_ms", 30_000),
)


class Backoff:
    """Exponential backoff with full jitter, until `patience` seconds have passed without a success."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.reset()

    def reset(self) -> None:
        self._bound = FIRST_BACKOFF_SECONDS
        self._deadline: float | None = None

    def wait(self, error: Any) -> None:
        """Wait for at least as long as the server asks for. Raises the error once `patience` is used up."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._patience
            print("evaluate: trying again:", error.details(), file=sys.stderr, flush=True)
        if time.monotonic() >= self._deadline:
            raise error
        time.sleep(retry_delay_seconds(error) + random.uniform(0, self._bound))
        self._bound = min(2 * self._bound, LONGEST_BACKOFF_SECONDS)


def main() -> int:
    """Return the exit code."""
    flags = parse_flags()
    request = EvaluateRequest(harness=flags.harness, model=flags.model, tasks=flags.tasks.split(","), num_gpus=flags.num_gpus)
    # The id makes it safe to resubmit if the response is lost.
    submission = SubmitJobRequest(request=request, request_id=str(uuid.uuid4()))
    try:
        connection = connect()
    except OSError as error:
        print("evaluate:", error, file=sys.stderr)
        return 2
    with connection as channel:
        try:
            job = evaluate(EvaluationServiceStub(channel), submission, flags.patience)
        except grpc.RpcError as error:
            print(f"evaluate: {reason_of(error) or 'no server'}: {error.details()}", file=sys.stderr)
            return 2 if is_final(error) else 3
    print_outcome(job)
    return 0 if job.status == JobStatus.JOB_STATUS_COMPLETED else 1


def connect() -> grpc.Channel:
    """Connect with the first call. Raises OSError if there is no such file of certificates."""
    address = os.environ.get("EVALRPC_ADDRESS") or "127.0.0.1:50051"
    if not address.startswith("https://"):
        return grpc.insecure_channel(address, CHANNEL_OPTIONS)
    ca, token = os.environ.get("EVALRPC_TLS_CA"), os.environ.get("EVALRPC_TOKEN")
    credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes() if ca else None)
    if token:
        credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
    return grpc.secure_channel(address.removeprefix("https://"), credentials, CHANNEL_OPTIONS)


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser("evaluate", description="Evaluate a model.")
    parser.add_argument("--harness", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--tasks", default="", help="comma-separated")
    parser.add_argument("--num-gpus", type=int)
    parser.add_argument("--patience", type=float, default=60.0, help="how many seconds to go on trying without a server")
    return parser.parse_args()


def evaluate(server: EvaluationServiceStub, submission: SubmitJobRequest, patience: float) -> JobInfo:
    """Return the finished job."""
    backoff = Backoff(patience)
    job = None
    revision = 0  # all changes up to here are printed
    while True:
        try:
            if job is None:
                job = server.SubmitJob(submission)
                revision = job.revision
                print("job", job.job_id, file=sys.stderr, flush=True)
                print_status(job)
            for event in server.WatchJob(WatchJobRequest(job_id=job.job_id, after_revision=revision)):
                backoff.reset()
                if event.job.revision > revision:
                    print_status(event.job)
                revision = event.revision
                if event.terminal:
                    return event.job
        except grpc.RpcError as error:
            if is_final(error):
                raise
            backoff.wait(error)


def detail_of(error: Any, detail: Message) -> Message:
    """Return the first detail of this kind that came with the error; as it is if there is none."""
    serialised = next((value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"), b"")
    for packed in Status.FromString(serialised).details:
        if packed.Unpack(detail):
            break
    return detail


def reason_of(error: Any) -> str:
    """Return the server's own reason. Empty: something between here and the server failed."""
    info = detail_of(error, ErrorInfo())
    return info.reason if info.domain == "evalrpc" else ""


def is_final(error: Any) -> bool:
    """Return whether the server itself refused the call for good; whatever else ends a call is worth another try."""
    return bool(reason_of(error)) and error.code() is not grpc.StatusCode.UNAVAILABLE


def retry_delay_seconds(error: Any) -> float:
    return detail_of(error, RetryInfo()).retry_delay.ToTimedelta().total_seconds()


def print_status(job: JobInfo) -> None:
    print(job.revision, status_name(job), flush=True)


def print_outcome(job: JobInfo) -> None:
    if job.HasField("error"):
        print(f"evaluate: {status_name(job)} {job.error.reason}: {job.error.message}", file=sys.stderr)
    for result in job.results.values():
        for metric in result.metrics:
            name = f"{metric.metric},{metric.filter}" if metric.filter else metric.metric
            standard_error = f"{metric.standard_error:.4f}" if metric.HasField("standard_error") else "-"
            print(f"{metric.task} {name} {metric.value:.4f} {standard_error}")


def status_name(job: JobInfo) -> str:
    """Return the name of a status, or the number of one that this program does not know yet."""
    known = job.status in JobStatus.values()
    return JobStatus.Name(job.status).removeprefix("JOB_STATUS_") if known else str(job.status)


if __name__ == "__main__":
    sys.exit(main())
