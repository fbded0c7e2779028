"""The settings and commands of docs/slurm.md do what the page says, but for its names of accounts, models and partitions."""

import re
import subprocess
from pathlib import Path

import pytest
from serving import COMPLETED, Site
from slurm_cluster import SlurmCluster, needs_slurm
from test_operating_page import environment, serving  # noqa: F401 - a fixture

pytestmark = [pytest.mark.slow, needs_slurm]

PAGE = (Path(__file__).parents[2] / "docs" / "slurm.md").read_text()


def test_from_a_table_to_a_job_on_the_cluster(
    tmp_path: Path,
    environment: dict[str, str],  # noqa: F811
    slurm_cluster: SlurmCluster,
) -> None:
    variables = environment | {"SLURM_CONF": slurm_cluster.environment["SLURM_CONF"]}
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site")
    table = re.search(r"^\[executors\.cluster\]\n(?:.+\n)+", PAGE, re.MULTILINE)
    assert table is not None
    here = table[0].replace('"gpu"', '"main"').replace('["alice", "ci"]', '["*"]').replace('"--cpus-per-gpu=8"', "")
    site.config.write_text(f"{site.config.read_text()}\n{here}")
    make, doctor, serve, submit = re.findall(r"^    (mkdir .*|evalrpc (?:doctor|serve|submit) .*)$", PAGE, re.MULTILINE)
    made = make.replace("/shared/evalrpc", "data")
    done = subprocess.run(f"{made}; {doctor}", shell=True, cwd=site.folder, env=variables, capture_output=True, text=True)
    assert re.search(r"^executor cluster\tok\ta trial run took ", done.stdout, re.MULTILINE), done.stdout + done.stderr
    with serving(serve, site.folder, variables) as api:
        toy = submit.replace("lm-eval", "toy").replace("--model hf --model-args pretrained=/shared/ckpt/600", "--model good")
        command = f"{toy.replace('gsm8k', 't')} --address {api.address} --watch"
        done = subprocess.run(command, shell=True, cwd=site.folder, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        (job,) = api.ListJobs().jobs
        assert (job.status, job.attempts[0].node, len(job.attempts[0].gpus)) == (COMPLETED, "cluster", 4)
