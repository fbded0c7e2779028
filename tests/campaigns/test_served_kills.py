"""The kill campaign of served models in its short form; `make campaign` runs the long one."""

from pathlib import Path

import pytest
from campaigns.served import run_campaign


@pytest.mark.slow
def test_no_answer_is_lost_or_asked_for_twice_whatever_is_killed(tmp_path: Path) -> None:
    counts = run_campaign(tmp_path, kills=6, jobs_per_kill=2, seed=1)  # by harnesses of both manners
    assert counts["problems"] == []
    assert counts["jobs"] == 13
