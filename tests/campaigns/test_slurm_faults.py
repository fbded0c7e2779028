"""The campaign of faults on a cluster in its short form; `make campaign` runs the long one."""

from pathlib import Path

import pytest
from campaigns.slurm import FAULTS, run_campaign
from slurm_cluster import SlurmCluster, needs_slurm, slurm_cluster

__all__ = ["slurm_cluster"]


@pytest.mark.slow
@needs_slurm
def test_nothing_is_lost_repeated_or_left_whatever_of_slurm_is_taken_down(tmp_path: Path, slurm_cluster: SlurmCluster) -> None:
    counts = run_campaign(
        tmp_path, slurm_cluster, 3 * len(FAULTS), seed=7, jobs_per_round=2, together=3, max_outage_seconds=1.0
    )
    assert counts["problems"] == []
    assert counts["faults"] == dict.fromkeys(FAULTS, 3)
