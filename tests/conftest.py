"""What any test may use."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from order_of_tests import dealt
from selection import mark_exhaustive

_FEW_EXAMPLES = 10
"""Of each property that Hypothesis checks, in `make test`. All tests have Hypothesis' own 100."""

_MANY_MODULES = 50
_frozen: list[int] = []
"""How many modules there were when they were last taken out of the way of garbage collections."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="write the files in tests/cli/golden anew")


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores, since tests also wait, and four at most, since real harnesses take memory."""
    return min(len(os.sched_getaffinity(0)) + 1, 4)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Mark what `make test` leaves out, and let each process begin with its share of the slow tests."""
    mark_exhaustive(items)
    yield
    items[:] = dealt(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C reach what a test starts: a shell that runs the tests in the background has them ignore it. Unless all tests
    run, properties are checked with fewer examples."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    not_all = config.option.markexpr == "not slow and not exhaustive"
    settings.register_profile(
        "ours",
        deadline=None,  # no test fails since the machine is busy
        max_examples=_FEW_EXAMPLES if not_all else settings.default.max_examples,
        suppress_health_check=[HealthCheck.too_slow],  # so it is on a busy machine
    )
    settings.load_profile("ours")


def pytest_collection_finish() -> None:
    """Let no garbage collection walk through what was loaded for all tests: every command that runs in this process ends with
    one, and they would take a third of the time of all tests."""
    gc.collect()
    gc.freeze()
    _frozen.append(len(sys.modules))


def pytest_runtest_logfinish() -> None:
    """Do so again once a test has loaded a large library."""
    if _frozen and len(sys.modules) > _frozen[-1] + _MANY_MODULES:
        pytest_collection_finish()


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """Undo what a server, or a command, sets for the process that it runs in: here it shares one with all tests."""
    umask = os.umask(0)
    os.umask(umask)
    environment = dict(os.environ)
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    os.umask(umask)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


@pytest.fixture
def plugin(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Install a package with a harness of the kind `acme-eval`, for this test alone: its entry point and its code."""

    def put(value: str, code: str) -> None:
        folder = tmp_path_factory.mktemp("packages")
        _install(folder, "acme-eval", value, code)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, "acme_evalrpc", raising=False)

    return put


def _install(folder: Path, name: str, value: str, code: str) -> None:
    (folder / "acme_evalrpc.py").write_text(code)
    metadata = folder / "acme_evalrpc-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-evalrpc\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[evalrpc.harnesses]\n{name} = {value}\n")
