"""Two servers on one database and one data folder, as on two machines."""

from click.testing import CliRunner
from postgres_cluster import shared_cluster
from serving import Api, Launch, ServerThere, Site
from waiting import eventually

from evalrpc.cli import main
from evalrpc.v1 import jobs_pb2 as pb

LEASE_SECONDS = 2.0
SCHEDULER, OTHER = "alpha", "beta"


def two_hosts(site: Site, launch: Launch) -> dict[str, ServerThere]:
    """Start the servers of two machines with a GPU each, the scheduler first, and wait until both have joined."""
    site.set_up(store=shared_cluster().schema_for(site.folder), lease_seconds=LEASE_SECONDS, gpus="1")
    servers = {SCHEDULER: launch("--host-name", SCHEDULER)}
    servers[SCHEDULER].api.run()
    servers[OTHER] = launch("--host-name", OTHER)
    eventually(lambda: len(servers[SCHEDULER].api.GetQueue().nodes) == 2, "for the other host to be known")
    return servers


def node_of(job: pb.JobInfo) -> str:
    return job.attempts[-1].node


def wait_until_out_of_reach(api: Api, job_id: str, host: str) -> None:
    """Wait until a server says that the machine is out of reach, on which a job runs."""
    eventually(lambda: f"host {host} is out of reach" in api.get(job_id).wait_reason, "for it to be said")


def give_up(site: Site, host: str) -> str:
    """Say that a machine is lost. Return what the command says."""
    return CliRunner().invoke(main, ["node", "lost", host, "--store", site.settings().store]).output
