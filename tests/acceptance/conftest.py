"""A real server, as a process of its own, for tests that use it as a stranger would."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from few_tasks import with_few_tasks
from server_process import ServerProcess
from slurm_cluster import slurm_cluster

__all__ = ["slurm_cluster"]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str], ServerProcess]]:
    """Start a server with the given configuration; it is ended with the test, and its runs too."""
    with ExitStack() as stack:

        def start(config: str) -> ServerProcess:
            server = ServerProcess(tmp_path / "data", config)
            stack.callback(server.clean_up)
            return server.start()

        yield start


@pytest.fixture(scope="session")
def lmms_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has lmms-eval with few tasks of its own."""
    python = _interpreter("EVALRPC_TEST_LMMS_PYTHON", "lmms-eval")
    return with_few_tasks(python, "lmms_eval", tmp_path_factory.mktemp("lmms"))


@pytest.fixture(scope="session")
def lm_eval_python(whole_lm_eval_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has lm-eval with few tasks of its own."""
    return with_few_tasks(whole_lm_eval_python, "lm_eval", tmp_path_factory.mktemp("lm-eval"))


@pytest.fixture(scope="session")
def whole_lm_eval_python() -> Path:
    """The interpreter of an environment that has lm-eval with all its tasks."""
    return _interpreter("EVALRPC_TEST_LM_EVAL_PYTHON", "lm-eval")


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The interpreter of an environment that has vLLM."""
    return _interpreter("EVALRPC_TEST_VLLM_PYTHON", "vLLM", "test-engines")


@pytest.fixture(scope="session")
def inspect_python() -> Path:
    """The interpreter of an environment that has inspect-ai."""
    return _interpreter("EVALRPC_TEST_INSPECT_PYTHON", "inspect-ai")


def _interpreter(variable: str, harness: str, target: str = "test-all") -> Path:
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no interpreter with {harness}: `make {target}` has one")
    return Path(python)
