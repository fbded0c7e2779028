"""The kill campaign in its short form; `make campaign` runs the long one."""

from pathlib import Path

import pytest
from campaigns.kills import run_campaign


@pytest.mark.slow
def test_nothing_is_lost_repeated_or_left_whatever_is_killed(tmp_path: Path) -> None:
    counts = run_campaign(tmp_path, kills=10, jobs_per_kill=5, seed=7)
    assert counts["problems"] == []
    assert counts["jobs"] == 51
