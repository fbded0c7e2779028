"""Runs commands of the command line one after the other, as they would run on a terminal, at a fixed time. Takes them as JSON:
a list of names with their arguments."""

import gc
import json
import sys
from collections.abc import Iterator
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.cli import doctor, job_table, main
from evalrpc.cli.doctor import Finding
from evalrpc.client import EvalClient
from evalrpc.v1.jobs_pb2 import JobEvent, JobEventType

NOW_SECONDS = 1_771_064_100
HEADING = "@@@ "
"""Stands before the name of a command on a line of its own."""


class FixedClock:
    """A clock that stands still."""

    def now(self) -> Timestamp:
        return Timestamp(seconds=NOW_SECONDS)

    def monotonic(self) -> float:
        return 0.0


def _watch_until_bookmark(client: EvalClient, *arguments: Any, **options: Any) -> Iterator[JobEvent]:
    """Watch as long as a person would who presses Ctrl-C after the snapshots."""
    for event in _watch_all(client, *arguments, **options):
        yield event
        if event.type == JobEventType.JOB_EVENT_TYPE_BOOKMARK:
            raise KeyboardInterrupt


_watch_all = EvalClient.watch_all

FINDINGS = [
    Finding("harness lmms-eval", True, "lmms-eval 0.5"),
    Finding(
        "harness nightly", False, "there is no program /srv/nightly/eval: set harnesses.nightly.command to one that there is"
    ),
    Finding("GPUs", True, "none; jobs must ask for --num-gpus 0"),
    Finding("port", True, "127.0.0.1:50051 is free"),
]


def run() -> None:
    """Run all commands."""
    job_table.clock = FixedClock()
    EvalClient.watch_all = _watch_until_bookmark  # type: ignore[method-assign, assignment]
    doctor.examine = lambda settings, environment: iter(FINDINGS)
    for name, arguments in json.loads(sys.argv[1]):
        print(f"{HEADING}{name}", flush=True)
        try:
            main(arguments, prog_name="evalrpc")
        except SystemExit as end:
            sys.stdout.flush()
            print(f"exit code {end.code or 0}", flush=True)
    gc.collect()


if __name__ == "__main__":
    run()
