"""Paths of results follow their data folder."""

from pathlib import Path

from evalrpc.results.moving import move_results
from evalrpc.v1.results_pb2 import ModelResult

BELOW = "jobs/0b54e7a6-3a51-4f2c-9d5e-6f6c4f1a2b3c/attempt-12/output"


def test_only_paths_in_a_data_folder_get_another_one() -> None:
    result = ModelResult(
        results=f"/old/{BELOW}/r.json",
        samples=[f"/old/data/{BELOW}/a/{BELOW}/s", f"/jobs\n/{BELOW}/\n", "/shared/results/s", ""],
    )
    result.tasks.add(results=f"/{BELOW}/t")
    move_results([result], Path(r"/new\1"))
    assert result.results == rf"/new\1/{BELOW}/r.json"
    assert result.samples == [rf"/new\1/{BELOW}/a/{BELOW}/s", f"/new\\1/{BELOW}/\n", "/shared/results/s", ""]
    assert result.tasks[0].results == rf"/new\1/{BELOW}/t"
