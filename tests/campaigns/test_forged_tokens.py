"""Forged tokens over the network in short; `make campaign` sends a million."""

from pathlib import Path

import pytest
from campaigns.sign_in import run_campaign


@pytest.mark.slow
def test_no_forged_token_lets_anybody_in_over_the_network(tmp_path: Path) -> None:
    counts = run_campaign(tmp_path, inputs=5_000, seed=7)
    assert counts["problems"] == []
    assert counts["statuses"] == {"UNAUTHENTICATED": 5_000}
