"""The hostile campaign with every kind once; `make campaign` adds combinations of them."""

from pathlib import Path

import pytest
from campaigns.hostile import run_campaign
from campaigns.hostile_kinds import kinds_here


@pytest.mark.slow
def test_whatever_runs_do_good_jobs_are_right_and_nothing_is_left(tmp_path: Path) -> None:
    # With more patience, most of the time is a wait for the processes that compare.
    counts = run_campaign(tmp_path, impatient_seconds=8.0)
    assert counts["problems"] == []
    assert counts["hostile_jobs"] == len(kinds_here())
    assert counts["good_jobs"] == len(kinds_here())
