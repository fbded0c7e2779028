"""Engines and preparations where there are several servers: they belong to their machine, whoever is the scheduler."""

import signal
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from engine_site import ENDED, READY, Models, completed, end_engines, submit
from postgres_cluster import shared_cluster
from serving import RUNNING, Launch, ServerThere, Site
from several_servers import LEASE_SECONDS, OTHER, SCHEDULER, give_up, node_of, wait_until_out_of_reach
from waiting import eventually

from evalrpc.cli import main
from evalrpc.executors.local.processes import processes_of_job

pytestmark = pytest.mark.usefixtures("engines")


@pytest.fixture
def hosts(engines: None, hosts: dict[str, ServerThere]) -> dict[str, ServerThere]:
    return hosts


class Waiting(NamedTuple):
    """A job that holds a GPU for its engine, and waits for the answer to its second question."""

    job_id: str
    model: Path
    hold: Path

    def release(self) -> None:
        self.hold.unlink()


def begin(server: ServerThere, models: Models) -> Waiting:
    model = models.make()
    hold = models.hold(model, "question 1")
    job_id = submit(server.api, model, num_gpus=1, max_attempts=2)
    eventually(lambda: "question 1" in models.questions(model), "for the question")
    return Waiting(job_id, model, hold)


def take_down(server: ServerThere, fault: signal.Signals) -> None:
    server.process.send_signal(fault)
    if fault == signal.SIGKILL:
        server.process.wait()


def bring_back(server: ServerThere, launch: Launch, host: str) -> ServerThere:
    """Start a server anew that was killed, or ends since it stood still for longer than its lease."""
    server.process.send_signal(signal.SIGCONT)
    server.process.wait()
    return launch("--host-name", host)


def test_a_server_that_comes_leaves_the_engines_of_others_alone(
    launch: Launch, models: Models, hosts: dict[str, ServerThere]
) -> None:
    api = hosts[SCHEDULER].api
    waiting = begin(hosts[SCHEDULER], models)
    hosts[OTHER].terminate()
    other = launch("--host-name", OTHER)
    eventually(lambda: len(api.GetQueue().nodes) == 2, "for the other host to be known")
    assert not other.api.ListEngines().engines
    waiting.release()
    job = completed(api, waiting.job_id)
    assert (job.attempt, node_of(job)) == (1, SCHEDULER)
    again = completed(other.api, submit(other.api, waiting.model, num_gpus=1))
    assert again.attempts[-1].engine_id == job.attempts[-1].engine_id
    assert len(models.starts(waiting.model)) == 1
    (engine,) = api.ListEngines().engines
    assert (engine.state, engine.node, list(engine.gpus)) == (READY, SCHEDULER, [f"{SCHEDULER}/0"])


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_engines_and_their_jobs_wait_for_their_machine_while_another_server_is_the_scheduler(
    launch: Launch, models: Models, hosts: dict[str, ServerThere], fault: signal.Signals
) -> None:
    """A served job that comes meanwhile gets an engine on the machine of the new scheduler."""
    waiting = begin(hosts[SCHEDULER], models)
    take_down(hosts[SCHEDULER], fault)
    api = hosts[OTHER].api
    wait_until_out_of_reach(api, waiting.job_id, SCHEDULER)
    other_model = models.make("other")
    assert node_of(completed(api, submit(api, other_model, num_gpus=1))) == OTHER
    assert api.get(waiting.job_id).status == RUNNING
    back = bring_back(hosts[SCHEDULER], launch, SCHEDULER)
    waiting.release()
    job = completed(api, waiting.job_id)
    assert [attempt.node for attempt in job.attempts] == [SCHEDULER]
    assert job.usage.answered_count == 3
    assert len(models.starts(waiting.model)) == 1
    eventually(lambda: [each.state for each in back.api.ListEngines().engines] == [ENDED], "for the engine to end")
    eventually(lambda: api.GetQueue().free_gpu_count == 1, "for its GPU to be free at the scheduler")
    assert not processes_of_job(job.attempts[-1].engine_id)


def test_a_served_job_of_a_machine_that_is_given_up_gets_another_engine_elsewhere(
    site: Site, launch: Launch, models: Models, hosts: dict[str, ServerThere]
) -> None:
    waiting = begin(hosts[SCHEDULER], models)
    (engine,) = hosts[SCHEDULER].api.ListEngines().engines
    hosts[SCHEDULER].kill()
    end_engines(site.folder / "data")
    site.kill_run(waiting.job_id)
    api = hosts[OTHER].api
    wait_until_out_of_reach(api, waiting.job_id, SCHEDULER)
    give_up(site, SCHEDULER)
    waiting.release()
    job = completed(api, waiting.job_id)
    assert [(attempt.node, attempt.error.reason) for attempt in job.attempts] == [(SCHEDULER, "RUN_LOST"), (OTHER, "")]
    assert models.questions(waiting.model).count("question 0") == 1, "what was answered is not asked again"
    back = launch("--host-name", SCHEDULER)
    eventually(lambda: engine.engine_id in {each.engine_id for each in back.api.ListEngines().engines}, "for it to be known")
    eventually(lambda: [each.state for each in back.api.ListEngines().engines] == [ENDED], "for it to end")
    assert len(models.starts(waiting.model)) == 2, "one on each machine"


def test_engines_of_a_server_that_was_alone_end_when_its_jobs_move_to_postgres(
    site: Site, launch: Launch, models: Models
) -> None:
    alone = launch()
    waiting = begin(alone, models)
    (engine,) = alone.api.ListEngines().engines
    alone.terminate()
    site.set_up(store=shared_cluster().schema_for(site.folder), lease_seconds=LEASE_SECONDS)
    done = CliRunner().invoke(main, ["migrate", "--config", str(site.config)])
    assert done.exit_code == 0, done.output
    api = launch("--host-name", SCHEDULER).api
    waiting.release()
    job = completed(api, waiting.job_id)
    assert [attempt.error.reason for attempt in job.attempts] == ["ENGINE_LOST", ""]
    assert not processes_of_job(engine.engine_id)
    (ours,) = api.ListEngines().engines
    assert (ours.node, ours.engine_id) == (SCHEDULER, job.attempts[-1].engine_id)
