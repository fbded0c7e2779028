"""The kill campaign in its short form; `make campaign` runs the long one."""

import tempfile
from pathlib import Path

import pytest
from accounts import needs_accounts
from campaigns.kills import run_campaign


@pytest.mark.slow
@pytest.mark.parametrize("accounts", [False, pytest.param(True, marks=needs_accounts)])
def test_nothing_is_lost_repeated_or_left_whatever_is_killed(accounts: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        counts = run_campaign(Path(folder), kills=10, jobs_per_kill=5, seed=7, accounts=accounts)
    assert counts["problems"] == []
    assert counts["jobs"] == 51
