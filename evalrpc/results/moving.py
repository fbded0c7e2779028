"""Results whose data folder has got another path: their paths are absolute."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from evalrpc.v1.results_pb2 import ModelResult

_IN_DATA_DIR: Final = re.compile(r"\A.*?(?=/jobs/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/attempt-\d+/output/)", re.DOTALL)


def move_results(results: Iterable[ModelResult], data_dir: Path) -> None:
    """Let all paths that lie in some data folder lie in this one."""
    for result in results:
        result.results = _moved(result.results, data_dir)
        result.samples[:] = [_moved(path, data_dir) for path in result.samples]
        for task in result.tasks:
            task.results = _moved(task.results, data_dir)


def _moved(path: str, data_dir: Path) -> str:
    return _IN_DATA_DIR.sub(lambda _: str(data_dir), path)
