"""The package in docs/harnesses.md, as its author would write, install and test it. Its files are the blocks of that page, each
after a line that ends with its name."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evalrpc import harnesses

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "harnesses.md").read_text()
FILES = dict(re.findall(r"`([\w./-]+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the project, with its package installed."""
    command = (sys.executable, *arguments)
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{project / 'site'}:{project}:{ROOT}"}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def pytest_of(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(project, "-m", "pytest", "-q", "-W", "error", "--tb=short", "-p", "no:cacheprovider", *arguments)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The package's folder, with its metadata in `site`, as pip would install it."""
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "site").mkdir()
    built = run(tmp_path, "-c", "import setuptools.build_meta as backend; backend.prepare_metadata_for_build_wheel('site')")
    assert built.returncode == 0, built.stderr
    return tmp_path


def test_the_page_has_every_file_of_the_package() -> None:
    recorded = {f"recorded_run/output/20260214_103045_{name}" for name in ("results.json", "samples_arithmetic.jsonl")}
    code = {"pyproject.toml", "acme_evalrpc.py", "test_acme_evalrpc.py", "acme_eval.py", "recorded_run/log"}
    assert recorded | code < FILES.keys()


def test_its_own_tests_pass(project: Path) -> None:
    tested = pytest_of(project, "-rs")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    skipped = [line for line in tested.stdout.splitlines() if line.startswith("SKIPPED")]
    assert all(line.endswith("the harness can't ask a server") for line in skipped)


BROKEN = {
    "bad_exit": (
        "check_exit(exit_status, log_tail)",
        "...",
        "read_results has results of a run that ended with Exit(code=1, signal=None): call check_exit() first",
    ),
    "no_task_name": (
        "task_problem(task)",
        "''",
        "'a,b' is no name of a task: violations() must yield `tasks[INDEX]` for what task_problem() rejects",
    ),
    "environment": (
        "env=self._settings.env",
        "env={}",
        "the command lacks the operator's `env`: pass `settings.env` on",
    ),
    "recorded_log": (
        'follow_bar(line, progress, unit="questions")',
        "progress.MergeFrom(Progress(done=int(line[-3:-2] or 2), total=2)) is None",
        "`done` falls from 2 to 1: advance() never lets it",
    ),
    "name_of_its_table": (
        "self.name = settings.name",
        "self.name = 'acme'",
        "`name` is 'acme': it must be that of its settings, 'nightly'",
    ),
}
"""A part of the harness by the promise that it keeps, something worse, and what the author then reads."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "promise", ["bad_exit", *(pytest.param(name, marks=pytest.mark.slow) for name in BROKEN if name != "bad_exit")]
)
def test_a_broken_harness_fails_with_what_to_do(promise: str, project: Path) -> None:
    part, worse, message = BROKEN[promise]
    code = FILES["acme_evalrpc.py"]
    assert part in code
    (project / "acme_evalrpc.py").write_text(code.replace(part, worse))
    tested = pytest_of(project, "-k", f"TestContract and {promise}")
    assert tested.returncode == 1
    assert message in tested.stdout


@pytest.mark.slow
def test_a_package_that_is_not_installed_is_named(project: Path) -> None:
    (project / "site").rename(project / "elsewhere")
    tested = pytest_of(project, "-k", "TestContract and name_of_its_table")
    assert tested.returncode == 1
    assert "setting harnesses.nightly.kind: acme-eval is unknown; there are: command" in tested.stdout


def test_the_program_leaves_the_files_on_the_page(project: Path) -> None:
    output_dir = project / "output"
    output_dir.mkdir()
    ran = run(project, "-m", "acme_eval", "--model=acme/tiny", "--tasks=arithmetic,geography", f"--output={output_dir}")
    assert ran.stdout == FILES["recorded_run/log"]
    assert contents(output_dir) == contents(project / "recorded_run" / "output")


def contents(folder: Path) -> dict[str, list[object]]:
    """Return the objects in every file, by its name without the time."""
    return {
        re.sub(r"^\d{8}_\d{6}_", "", path.name): (
            [json.loads(path.read_text())]
            if path.suffix == ".json"
            else [json.loads(line) for line in path.read_text().splitlines()]
        )
        for path in folder.iterdir()
    }


def test_the_results_on_the_page_fill_the_fields_that_it_says(project: Path) -> None:
    (result,) = harnesses.read_results(project / "recorded_run" / "output", "acme/tiny").values()
    metrics = [(each.task, each.metric, each.filter, each.value, each.standard_error) for each in result.metrics]
    assert metrics == [("arithmetic", "acc", "none", 0.5, 0.5), ("geography", "acc", "none", 1.0, 0.0)]
    assert all(metric.higher_is_better and metric.sample_count == 2 for metric in result.metrics)
    assert [(task.version, task.original_sample_count) for task in result.tasks] == [("1.0", 2)] * 2
    assert result.harness_versions == {"acme_eval": "2.3"}
    assert not result.extra.fields


@pytest.mark.parametrize("name", ["acme_evalrpc.py", "test_acme_evalrpc.py"])
def test_it_needs_the_public_api_only(name: str) -> None:
    imports = [node for node in ast.walk(ast.parse(FILES[name])) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if node.module and node.module.startswith("evalrpc")]
    assert ours
    assert all(node.module == "evalrpc.harnesses" or str(node.module).startswith("evalrpc.testing.") for node in ours)
    names = {alias.name for node in ours if node.module == "evalrpc.harnesses" for alias in node.names}
    assert names <= set(harnesses.__all__)


def test_the_page_describes_every_public_name() -> None:
    table = PAGE.partition("## The API")[2].partition("## The contract")[0]
    described = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert described == set(harnesses.__all__)
    assert all(hasattr(harnesses, name) for name in harnesses.__all__)


def test_the_public_api_is_light() -> None:
    program = "import sys, evalrpc.harnesses; print(*sys.modules)"
    loaded = subprocess.check_output((sys.executable, "-c", program), env=ENVIRONMENT, text=True).split()
    heavy = {"grpc", "numpy", "pytest", "evalrpc.harnesses.registry", "evalrpc.server", "evalrpc.client", "evalrpc.scheduling"}
    assert heavy.isdisjoint(loaded)
    assert len([name for name in loaded if name.startswith("evalrpc.harnesses.")]) < 10
