"""Following suite runs until they have ended."""

import time
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta

from evalrpc.cli import wording
from evalrpc.cli.exit_codes import ExitCode, fail
from evalrpc.cli.following import Breaks
from evalrpc.cli.output import print_line
from evalrpc.client import EvalClient
from evalrpc.v1.suites_pb2 import SuiteRun, SuiteRunEvent


def wait_for_runs(
    client: EvalClient, suite_run_ids: Sequence[str], timeout: timedelta | None, reconnect_timeout: timedelta
) -> None:
    """Wait until all of these suite runs have ended. Exits with 124 when the time is over."""
    ends_at = None if timeout is None else time.monotonic() + timeout.total_seconds()
    for done, suite_run_id in enumerate(suite_run_ids):
        breaks = Breaks(client)
        try:
            events = client.watch_suite_run(
                suite_run_id,
                timeout_seconds=None if ends_at is None else max(0.0, ends_at - time.monotonic()),
                reconnect_timeout_seconds=reconnect_timeout.total_seconds() or None,
                on_disconnect=breaks.report,
            )
            with closing(events):
                for _ in events:
                    breaks.over()
        except TimeoutError:
            if ends_at is None:
                raise  # it was an answer that took too long
            left = len(suite_run_ids) - done
            fail(
                ExitCode.TIMED_OUT,
                f"the time is over, and {left} of {len(suite_run_ids)} suite runs have not ended: they go on",
            )


def watch_run(client: EvalClient, suite_run_id: str, reconnect_timeout: timedelta) -> None:
    """Print on stderr what happens to the jobs of a suite run until all have ended. Exits with 130 on Ctrl-C."""
    client.get_suite_run(suite_run_id)  # fails at once where a watch would retry
    breaks, lines = Breaks(client), _Lines()
    events = client.watch_suite_run(
        suite_run_id,
        reconnect_timeout_seconds=reconnect_timeout.total_seconds() or None,
        on_disconnect=breaks.report,
    )
    try:
        with closing(events):
            for event in events:
                breaks.over()
                lines.show(event)
    except KeyboardInterrupt:
        fail(ExitCode.INTERRUPTED, f"the suite goes on; to watch it again: evalrpc watch-suite {suite_run_id}")


class _Lines:
    """A line for each job, and for each of its changes that can be seen in it."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}

    def show(self, event: SuiteRunEvent) -> None:
        """Print what is new in an event."""
        details = {event.job.job_id: wording.describe(event.job)} if event.HasField("job") else {}
        for job in event.run.jobs:
            line = details.get(job.job_id, wording.status_name(job.status))
            is_new = job.job_id in details or job.job_id not in self._shown
            if is_new and self._shown.get(job.job_id) != line:
                print_line(f"{job.entry}: {line}", err=True)
                self._shown[job.job_id] = line
        if event.terminal:
            print_line(_summary(event.run), err=True)


def _summary(run: SuiteRun) -> str:
    return f"the suite run is {wording.status_name(run.status)}"
