"""The commands of docs/clusters.md do what the page says, but for the addresses of database and servers."""

import re
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from postgres_cluster import shared_cluster
from serving import Site
from test_operating_page import environment, serving  # noqa: F401 - a fixture
from waiting import eventually

PAGE = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text()
DATABASE = "postgresql://evalrpc@db.example/evalrpc"


def commands(heading: str) -> list[str]:
    """Return the commands of a section."""
    section = PAGE.partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
    return [line.strip() for line in re.findall(r"^    (evalrpc .*)$", section, re.MULTILINE)]


@pytest.mark.slow
def test_from_a_server_on_sqlite_to_a_pair_on_postgresql(
    tmp_path: Path,
    environment: dict[str, str],  # noqa: F811
) -> None:
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site")
    site.set_up(lease_seconds=2.0)
    store = shared_cluster().schema_for(site.folder)
    with serving("evalrpc serve", site.folder, environment) as api:
        before = api.run()

    def run(command: str) -> str:
        done = subprocess.run(command, shell=True, cwd=site.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    (migrate,) = commands("From SQLite to PostgreSQL")
    assert "migrated 1 jobs" in run(migrate.replace("evalrpc-data", "data").replace(DATABASE, f"'{store}'"))
    *serve, queue, submit, lost = commands("Several servers")
    with ExitStack() as stack:
        free = [re.sub(r"--listen \S+", "", command).replace(DATABASE, f"'{store}'") for command in serve]
        apis = [stack.enter_context(serving(command, site.folder, environment)) for command in free]
        assert [api.get(before.job_id).status for api in apis] == [before.status] * 2
        eventually(lambda: len(apis[1].GetQueue().nodes) == 2, "for both hosts")
        shown = run(re.sub(r"--address \S+", f"--address {apis[1].address}", queue))
        assert re.findall(r"node (\w+)", shown) == ["beta", "alpha"]
        addresses = ",".join(api.address for api in apis)
        both = re.sub(r"ipv4:\S+", f"ipv4:{addresses}", submit).replace("MODEL", "good").replace("TASK", "t")
        assert "COMPLETED" in run(f"{both} --harness toy")
    assert lost.startswith("evalrpc node lost alpha ")
    done = subprocess.run(lost.replace(DATABASE, f"'{store}'"), shell=True, env=environment, capture_output=True, text=True)
    assert "there is no host alpha, only: none" in done.stderr, "they have stopped without runs"
