"""One decision over jobs of the real lm-eval, lmms-eval and inspect-ai, through the real server and the command line.

The suites ask for the same evaluations with other thresholds, so with the cache only the first of them runs anything.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from server_process import ServerProcess
from test_real_inspect import TASKS as INSPECT_TASKS
from test_real_lm_eval import ANSWERING, DATA
from test_real_lmms_eval import UTILS, lmms_task

from evalrpc.cli import main
from evalrpc.client import EvalClient
from evalrpc.v1.comparison_pb2 import TEST_METHOD_MCNEMAR, VERDICT_SAME
from evalrpc.v1.jobs_pb2 import JOB_STATUS_COMPLETED
from evalrpc.v1.suites_pb2 import SuiteRun

pytestmark = pytest.mark.slow

CONFIG = """
gpus = "0"

[harnesses.lm-eval]
python = "{lm_eval}"
warm = "off"
include_path = ["lm-eval-tasks"]
env = {{ HF_HUB_OFFLINE = "1", HF_DATASETS_OFFLINE = "1", HF_HOME = "{folder}/hf" }}

[harnesses.lmms-eval]
python = "{lmms}"
warm = "off"
include_path = ["lmms-eval-tasks"]
env = {{ HF_HUB_OFFLINE = "1", HF_DATASETS_OFFLINE = "1", HF_HOME = "{folder}/hf" }}

[harnesses.inspect-ai]
python = "{inspect}"
warm = "off"
include_path = ["inspect-tasks"]
env = {{ XDG_DATA_HOME = "{folder}/xdg" }}
"""

SUITE = """
[[suites.{name}.entries]]
harness = "lm-eval"
tasks = ["sums_answer"]
num_fewshot = 0
limit = 10
threshold = {threshold}
required = false

[[suites.{name}.entries]]
harness = "lmms-eval"
tasks = ["sums_a"]
limit = 10
metrics = ["exact"]
tier = 2
threshold = {threshold}
required = false

[[suites.{name}.entries]]
harness = "inspect-ai"
tasks = ["sums-b"]
limit = 10
metrics = ["accuracy"]
higher_is_better = true
threshold = {of_inspect}
"""

MODELS = (
    *("--harness-model", "lm-eval=dummy", "--harness-model", "lmms-eval=dummy"),
    *("--harness-model", "inspect-ai=mockllm/model", "--num-gpus", "0", "--cache"),
)


@pytest.fixture
def server(
    tmp_path: Path,
    lm_eval_python: Path,
    lmms_python: Path,
    inspect_python: Path,
    serve: Callable[[str], ServerProcess],
) -> ServerProcess:
    for name in ("lm-eval-tasks", "lmms-eval-tasks", "inspect-tasks"):
        (tmp_path / name).mkdir()
    rows = [{"id": n, "question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(10)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "lm-eval-tasks" / "answer.yaml").write_text(ANSWERING + DATA.replace("DATA_PATH", str(data)))
    (tmp_path / "lmms-eval-tasks" / "utils.py").write_text(UTILS)
    (tmp_path / "lmms-eval-tasks" / "sums_a.yaml").write_text(lmms_task("sums_a", data))
    (tmp_path / "inspect-tasks" / "sums.py").write_text(INSPECT_TASKS)
    config = CONFIG.format(lm_eval=lm_eval_python, lmms=lmms_python, inspect=inspect_python, folder=tmp_path)
    easy = SUITE.format(name="easy", threshold=0.0, of_inspect=0.1)
    hard = SUITE.format(name="hard", threshold=1.0, of_inspect=1.0)
    return serve(config + easy + hard)


def run(server: ServerProcess, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments, env={"EVALRPC_ADDRESS": server.address})
    assert result.exit_code in (0, 1), result.output
    return result.exit_code, result.stdout


def findings_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["entry"]: finding for finding in document["decision"]["findings"]}


def test_a_suite_of_all_harnesses_is_go_and_with_other_thresholds_no_go(server: ServerProcess, tmp_path: Path) -> None:
    code, text = run(server, "submit-suite", "easy", *MODELS, "--wait", "-o", "json")
    first = json.loads(text)
    findings = findings_of(first)
    assert (code, first["decision"]["outcome"]) == (0, "SUITE_OUTCOME_GO"), first["decision"]
    assert {entry: finding["assessment"] for entry, finding in findings.items()} == dict.fromkeys(
        ("sums-b", "sums_answer", "sums_a"), "ASSESSMENT_PASSED"
    )
    assert findings["sums_answer"]["metric"]["candidate_value"] == 0.0
    of_inspect = findings["sums-b"]
    assert of_inspect["metric"]["candidate_value"] == 0.5
    assert (of_inspect["value_method"], of_inspect["value_lower"] > 0.1) == ("TEST_METHOD_CLOPPER_PEARSON", True)
    assert {finding["metric"]["candidate_sample_count"] for finding in findings.values()} == {"10"}

    with server.client() as client:
        _against_itself(client, first["suite_run_id"])

    report = tmp_path / "junit.xml"
    code, text = run(server, "submit-suite", "hard", *MODELS, "--wait", "-o", "json", "--report", str(report))
    second = json.loads(text)
    assert (code, second["decision"]["outcome"]) == (1, "SUITE_OUTCOME_NO_GO")
    assert findings_of(second)["sums-b"]["assessment"] == "ASSESSMENT_FAILED"
    assert [ET.parse(report).getroot().get(name) for name in ("tests", "failures", "skipped")] == ["4", "4", "0"]
    code, text = run(server, "suite", first["suite_run_id"], second["suite_run_id"], "-o", "markdown")
    assert (code, "| easy | hard |" in text) == (1, True)


def _against_itself(client: EvalClient, baseline_id: str) -> None:
    """Decide over a run that has the results of its baseline: every sample is the same."""
    models = {"lm-eval": {"model": "dummy"}, "lmms-eval": {"model": "dummy"}, "inspect-ai": {"model": "mockllm/model"}}
    run: SuiteRun = client.evaluate_suite(
        "easy", num_gpus=0, harness_requests=models, cache=True, baseline_suite_run_id=baseline_id
    )
    assert run.status == JOB_STATUS_COMPLETED, "it shares the runs of the first"
    findings = client.decide_suite_run(run.suite_run_id).decision.findings
    assert {finding.metric.verdict for finding in findings} == {VERDICT_SAME}
    assert {finding.metric.method for finding in findings} == {TEST_METHOD_MCNEMAR}
    assert {finding.metric.paired_sample_count for finding in findings} == {10}
