"""The fuzz in its short form; `make campaign` runs the long one."""

from pathlib import Path

import pytest
from campaigns.fuzz import all_targets, run_campaign


@pytest.mark.slow
def test_no_message_to_any_call_gets_a_bug_or_memory_out_of_the_server(tmp_path: Path) -> None:
    counts = run_campaign(tmp_path, inputs=20_000, seed=7)
    assert counts["problems"] == []
    assert counts["inputs"] == 20_000
    assert counts["statuses"].keys() == {target.name for target in all_targets()}  # type: ignore[attr-defined]
