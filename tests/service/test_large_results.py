"""A run with large results: reading them delays nobody else, and stops when nobody needs them any more."""

from collections.abc import Callable
from pathlib import Path

import pytest
from processes_of_tests import is_alive
from serving import CANCELLED, COMPLETED, RUNNING, TERMINAL, Api, ServerHere, Site, submission
from waiting import eventually

PLUGIN = """
import os, time
from pathlib import Path
from evalrpc.harnesses.command import CommandHarness
class Endless(CommandHarness):
    def read_results(self, run, exit_status, log_tail):
        Path(run.output_dir, "reader.new").write_text(str(os.getpid()))
        Path(run.output_dir, "reader.new").rename(Path(run.output_dir, "reader"))
        time.sleep(1000)
"""


@pytest.fixture
def endless(serve: Callable[..., ServerHere], site: Site, plugin: Callable[[str, str], None]) -> ServerHere:
    """A server whose harness `endless` never finishes reading large results."""
    plugin("acme_evalrpc:Endless", PLUGIN)
    toy = site.config.read_text().partition("[harnesses.toy]")[2]
    with site.config.open("a") as config:
        config.write("[harnesses.endless]" + toy.replace('kind = "command"', 'kind = "acme-eval"'))
    return serve()


def begin_reading(api: Api) -> tuple[str, int]:
    """Run a job until its results are being read. Returns its id, and the pid of the process that reads them."""
    job = api.submit("large", request={"harness": "endless", "num_gpus": 2})
    output_dir = Path(api.wait_for(job.job_id, RUNNING).attempts[0].output_dir)
    eventually((output_dir / "reader").exists)
    return job.job_id, int((output_dir / "reader").read_text())


def test_a_cancel_is_heard_while_large_results_are_read_and_ends_the_reading(endless: ServerHere) -> None:
    job_id, reader = begin_reading(endless.api)
    assert is_alive(reader)
    endless.api.CancelJob(job_id=job_id)
    assert endless.api.wait_for(job_id, *TERMINAL).status == CANCELLED
    eventually(lambda: not is_alive(reader))
    assert endless.api.GetQueue().free_gpu_count == 2


def test_a_stop_ends_the_reading_and_the_next_server_reads_anew(endless: ServerHere, serve: Callable[..., ServerHere]) -> None:
    job_id, reader = begin_reading(endless.api)
    endless.stop()
    eventually(lambda: not is_alive(reader))
    api = serve().api
    assert api.get(job_id).status == RUNNING
    output_dir = Path(api.get(job_id).attempts[0].output_dir)
    eventually(lambda: int((output_dir / "reader").read_text()) != reader)
    api.CancelJob(job_id=job_id)
    assert api.wait_for(job_id, *TERMINAL).status == CANCELLED


def test_large_results_are_those_of_the_run(api: Api) -> None:
    job = api.wait_for(api.SubmitJob(submission("large")).job_id, *TERMINAL)
    assert job.status == COMPLETED
    (result,) = job.results.values()
    assert [(metric.task, metric.value) for metric in result.metrics] == [("t", 0.5)]
    assert len(result.samples) == 1
