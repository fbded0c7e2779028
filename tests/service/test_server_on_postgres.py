"""A server whose jobs are in PostgreSQL."""

from collections.abc import Iterator

import pytest
from missing_modules import run_without
from postgres_cluster import Cluster, shared_cluster, start_cluster
from serving import COMPLETED, RUNNING, TERMINAL, Launch, Site
from test_faults import refusal
from waiting import eventually


@pytest.fixture
def on_postgres(site: Site) -> Site:
    site.set_up(store=shared_cluster().schema_for(site.folder))
    return site


@pytest.mark.slow
def test_a_server_that_was_killed_goes_on_with_its_jobs_and_its_revisions(on_postgres: Site, launch: Launch) -> None:
    server = launch()
    done, slow = server.api.run(), server.api.submit("slow")
    on_postgres.wait_for_log(slow.job_id)
    head = server.api.head()
    server.kill()
    server = launch()
    assert server.api.head() == head
    assert server.api.get(done.job_id).status == COMPLETED
    assert server.api.get(slow.job_id).status == RUNNING
    events = server.api.watch(slow.job_id)
    next(events)
    on_postgres.release()
    assert [event.job.status for event in events if event.terminal] == [COMPLETED]
    assert not (on_postgres.folder / "data" / "evalrpc.sqlite3").exists()


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    cluster = start_cluster()
    yield cluster
    cluster.close()


@pytest.mark.slow
def test_a_run_goes_on_while_the_database_is_gone_and_its_end_is_committed_later(
    site: Site, launch: Launch, own_cluster: Cluster
) -> None:
    site.set_up(store=own_cluster.conninfo())
    server = launch()
    slow = server.api.submit("slow")
    site.wait_for_log(slow.job_id)
    own_cluster.kill()
    assert "try again" in refusal(lambda: server.api.submit())
    assert server.api.get(slow.job_id).status == RUNNING
    site.release()
    own_cluster.start()
    assert server.api.wait_for(slow.job_id, *TERMINAL).status == COMPLETED
    eventually(lambda: server.api.run().status == COMPLETED, "for a new job")


def test_a_driver_that_is_missing_is_said_with_what_to_install(on_postgres: Site) -> None:
    code = "import sys; from evalrpc.cli import main; main(sys.argv[1:])"
    done = run_without({"psycopg"}, code, "serve", "--config", str(on_postgres.config))
    assert (done.returncode, "psycopg is missing; install it: pip install" in done.stderr) == (2, True), done.stderr
