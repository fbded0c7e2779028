"""The campaign of several servers in its short form; `make campaign` runs the long one."""

import tempfile
from pathlib import Path

import pytest
from campaigns.hosts import FAULTS, faults_of, run_campaign


@pytest.mark.slow
def test_nothing_is_lost_repeated_or_left_whatever_befalls_servers_and_database() -> None:
    with tempfile.TemporaryDirectory() as folder:
        counts = run_campaign(Path(folder), faults_of(3 * len(FAULTS), 7), jobs_per_fault=3, seed=7)
    assert counts["problems"] == []
    assert counts["jobs"] == 1 + 9 * len(FAULTS)
