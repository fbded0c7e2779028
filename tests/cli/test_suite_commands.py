"""The commands about suites: what they send, what they print, and how they end."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import terminal_jobs as jobs
from click.testing import Result
from fake_server import FakeService

from evalrpc.v1.jobs_pb2 import CACHE_MODE_ALLOW, JobInfo, JobStatus
from evalrpc.v1.suites_pb2 import SUITE_RUN_VIEW_DECISION, SuiteDecision, SuiteOutcome, SuiteRun

Run = Callable[..., Result]

GO, NO_GO = SuiteOutcome.SUITE_OUTCOME_GO, SuiteOutcome.SUITE_OUTCOME_NO_GO
INCONCLUSIVE = SuiteOutcome.SUITE_OUTCOME_INCONCLUSIVE


@pytest.fixture(autouse=True)
def filled(service: FakeService) -> None:
    jobs.fill(service)


def sent(service: FakeService, call: str) -> Any:
    """Return the last message of a call."""
    return service.received[call][-1]


# Decisions


@pytest.mark.parametrize(("outcome", "code"), [(GO, 0), (NO_GO, 1), (INCONCLUSIVE, 1), (0, 1), (99, 1)])
@pytest.mark.parametrize("command", ["suite", "wait-suite", "watch-suite"])
def test_only_go_ends_with_zero(run: Run, service: FakeService, command: str, outcome: Any, code: int) -> None:
    service.suite_runs[jobs.SUITE_RUN] = jobs.suite_run(jobs.SUITE_RUN, "/m", SuiteDecision(outcome=outcome))
    for form in ("wide", "json", "jsonl", "csv", "markdown", "junit"):
        assert run(command, jobs.SUITE_RUN, "-o", form).exit_code == code, form
    assert sent(service, "GetSuiteRun").view == SUITE_RUN_VIEW_DECISION


def test_several_runs_are_go_only_together(run: Run) -> None:
    assert run("suite", jobs.GO_RUN, jobs.GO_RUN).exit_code == 0
    assert run("suite", jobs.GO_RUN, jobs.SUITE_RUN).exit_code == 1


def test_json_is_the_run_and_of_several_a_line_each(run: Run) -> None:
    document = json.loads(run("suite", jobs.SUITE_RUN, "-o", "json").stdout)
    assert document["decision"]["outcome"] == "SUITE_OUTCOME_NO_GO"
    assert document["decision"]["findings"][0]["metric"]["baseline_value"] == 0.5
    findings = [json.loads(line) for line in run("suite", jobs.SUITE_RUN, "-o", "jsonl").stdout.splitlines()]
    assert [finding["entry"] for finding in findings][0::3] == ["gsm8k", "mme"]
    lines = run("suite", jobs.SUITE_RUN, jobs.GO_RUN, "-o", "json").stdout.splitlines()
    assert [json.loads(line)["suite_run_id"] for line in lines] == [jobs.SUITE_RUN, jobs.GO_RUN]


def test_csv_has_a_line_per_finding_and_every_digit(run: Run) -> None:
    header, first, *_ = run("suite", jobs.SUITE_RUN, "-o", "csv").stdout.splitlines()
    assert header.startswith("finding,tier,entry,metric,value,interval,n,threshold,baseline,difference")
    assert first.startswith('FAILED,1,gsm8k,"gsm8k/exact_match,strict-match",0.375,"[0.3490, 0.4010]",1319,0.3,0.5,-0.125,')


def test_the_junit_report_fails_just_where_the_suite_does(run: Run) -> None:
    result = run("suite", jobs.SUITE_RUN, jobs.GO_RUN, "-o", "junit")
    root = ET.fromstring(result.stdout)
    no_go, go = root.findall("testsuite")
    assert (no_go.get("tests"), no_go.get("failures"), no_go.get("errors"), no_go.get("skipped")) == ("5", "2", "1", "1")
    assert (go.get("tests"), go.get("failures"), go.get("errors"), go.get("skipped")) == ("2", "0", "0", "0")
    assert (root.get("tests"), root.get("failures")) == ("7", "2")
    cases = {case.get("name"): case for case in no_go.findall("testcase")}
    decision = cases["decision"].find("failure")
    assert decision is not None
    assert (decision.get("type"), decision.get("message")) == ("NO_GO", "NO_GO: release of hf /ckpt/500")
    numbers = cases["gsm8k/exact_match,strict-match"].findtext("system-out") or ""
    for text in (
        "value: 0.3750",
        "interval: [0.3490, 0.4010]",
        "n: 1319",
        "test: value: z-test; difference: McNemar, 1319 pairs",
    ):
        assert text in numbers.splitlines()


@pytest.mark.parametrize("outcome", [NO_GO, INCONCLUSIVE, 99])
def test_a_run_without_findings_fails_in_the_junit_report_unless_it_is_go(run: Run, service: FakeService, outcome: Any) -> None:
    empty = jobs.suite_run(jobs.SUITE_RUN, "/m", SuiteDecision(outcome=outcome, reasons=["the run has not ended"]))
    service.suite_runs[jobs.SUITE_RUN] = empty
    root = ET.fromstring(run("suite", jobs.SUITE_RUN, "-o", "junit").stdout)
    assert (root.get("tests"), root.get("failures")) == ("1", "1")
    assert root.findtext(".//failure") == "the run has not ended"


def cells(line: str) -> list[str]:
    """Return the cells of a row of a Markdown table, as a renderer splits it."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_markdown_report_has_whole_tables_and_nothing_that_is_read_as_markup(run: Run, service: FakeService) -> None:
    nasty = service.suite_runs[jobs.SUITE_RUN]
    nasty.decision.findings[0].reason = "a | b <script> `c` [d](e) *f* _g_ & \\ ~ #"
    nasty.submission.request.model = "<b>|"
    text = run("suite", jobs.SUITE_RUN, jobs.GO_RUN, "-o", "markdown").stdout
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        header, rule, *rows = table.splitlines()
        assert set(cells(rule)) == {"---"}
        assert {len(cells(row)) for row in (header, rule, *rows)} == {len(cells(header))}
        assert rows
    assert r"a \| b \<script\> \`c\` \[d\](e) \*f\* \_g\_ \& \\ \~ \#" in text
    assert "<" not in text.replace("\\<", "")
    first = cells(tables[0].splitlines()[2])
    assert first == [r"\<b\>\| /ckpt/500", r"NO\_GO"]
    assert "intervals at 95%, p-values adjusted within each tier (Holm)" in text
    assert "first" not in text
    nasty.decision.finding_count = 9
    assert "the first 4 of 9 findings" in run("suite", jobs.SUITE_RUN, "-o", "markdown").stdout


def test_reports_are_written_beside_what_is_printed(run: Run, tmp_path: Path) -> None:
    reports = [tmp_path / name for name in ("junit.xml", "summary.md", "runs.json")]
    result = run("suite", jobs.SUITE_RUN, *(part for report in reports for part in ("--report", str(report))))
    assert result.exit_code == 1
    assert result.stdout.startswith("decision\trun\tsuite")
    assert ET.parse(reports[0]).getroot().tag == "testsuites"
    assert reports[1].read_text().startswith("## NO\\_GO: release of hf /ckpt/500")
    assert json.loads(reports[2].read_text())["suite_run_id"] == jobs.SUITE_RUN
    refused = run("suite", jobs.SUITE_RUN, "--report", "report.txt")
    assert (refused.exit_code, "must end in .json, .md, .xml" in refused.stderr) == (2, True)
    nowhere = run("suite", jobs.SUITE_RUN, "--report", str(tmp_path / "none" / "a.md"))
    assert (nowhere.exit_code, "No such file" in nowhere.stderr) == (2, True)


def test_a_baseline_is_named_as_a_run_is(run: Run, service: FakeService) -> None:
    run("suite", jobs.SUITE_RUN, "--baseline", jobs.BASELINE_RUN)
    assert sent(service, "GetSuiteRun").baseline_suite_run_id == jobs.BASELINE_RUN


# Names of runs


def test_a_run_is_named_by_a_prefix_the_latest_or_a_job_of_it(run: Run, service: FakeService) -> None:
    service.jobs.clear()
    service.suite_runs[jobs.SUITE_RUN].submission.labels["run"] = "x"
    named = {"main": jobs.GO_RUN, "alone": ""}
    for number, (name, suite_run_id) in enumerate(named.items()):
        job_id = f"11111111-3d1b-4c8e-9f6a-00000000000{number}"
        service.change(JobInfo(job_id=job_id, suite_run_id=suite_run_id, labels={"evalrpc.baseline": name}))
    for text, suite_run_id in (
        ("0a2f", jobs.SUITE_RUN),
        ("1A2F", jobs.GO_RUN),
        ("@latest", jobs.GO_RUN),
        ("@latest:run=x", jobs.SUITE_RUN),
        ("@baseline:main", jobs.GO_RUN),
    ):
        run("suite", text)
        assert sent(service, "GetSuiteRun").suite_run_id == suite_run_id, text
    assert sent(service, "ListSuiteRuns").page_size == 1
    for text, problem in (
        ("ffff", "there is no suite run whose id begins with ffff"),
        ("zzzz", "there is no suite run zzzz: a suite run is given by its id"),
        ("@latest:run=y", "no suite run matches @latest:run=y"),
        ("@latest:=", "@latest:=, after the colon: "),
        ("@baseline:alone", "the job @baseline:alone is of no suite run"),
        ("@baseline:none", "there is no baseline none"),
    ):
        result = run("suite", text)
        assert (result.exit_code, problem in result.stderr) == (2, True), result.stderr


def test_several_runs_that_begin_so_are_named(run: Run, service: FakeService) -> None:
    for last in "01":
        run_id = f"aaaaaaaa-3d1b-4c8e-9f6a-00000000000{last}"
        service.suite_runs[run_id] = jobs.suite_run(run_id, f"/ckpt/{last}", SuiteDecision())
    result = run("suite", "aaaa")
    assert result.exit_code == 2
    shown = [f"evalrpc:   aaaaaaaa-3d1b-4c8e-9f6a-00000000000{last}  COMPLETED  release  hf /ckpt/{last}" for last in "10"]
    assert result.stderr.splitlines()[1:] == shown


# Listing


def test_runs_are_listed_newest_first_as_the_flags_select_them(run: Run, service: FakeService) -> None:
    service.suite_runs[jobs.SUITE_RUN].submission.labels["step"] = "500"
    listed = run("suite-runs", "-o", "jsonl")
    assert [json.loads(line)["suite_run_id"] for line in listed.stdout.splitlines()] == [jobs.GO_RUN, jobs.SUITE_RUN]
    flags = ("--suite", "release", "--status", "completed", "-l", "step=500", "-l", "!draft", "-L", "step")
    selected = run("suite-runs", *flags, "-o", "csv")
    message = sent(service, "ListSuiteRuns")
    assert (list(message.suites), message.label_selector) == (["release"], "step=500,!draft")
    assert list(message.statuses) == [JobStatus.JOB_STATUS_COMPLETED]
    (row,) = csv.DictReader(io.StringIO(selected.stdout))
    assert (row["run"], row["step"], row["suite"], row["status"]) == (jobs.SUITE_RUN, "500", "release", "COMPLETED")
    assert "more runs match" in run("suite-runs", "--limit", "1").stderr
    assert "more runs match" not in run("suite-runs", "--limit", "0").stderr


# Submitting


def test_a_submission_has_what_the_flags_say(run: Run, service: FakeService) -> None:
    result = run(
        *("submit-suite", "release", "--model", "pretrained=/ckpt/500,dtype=bfloat16"),
        *("--harness-model", "lm-eval=hf", "--harness-model", "lmms-eval=llava_hf,conv=x", "--num-gpus", "2"),
        *("--priority", "3", "--label", "step=500", "--timeout", "2h", "--cache", "--baseline", jobs.BASELINE_RUN),
        *("--request-id", "r", "--secret", "HF_TOKEN", "--max-attempts", "2", "--preemptible"),
    )
    message = sent(service, "SubmitSuite")
    assert (result.exit_code, result.stdout.strip()) == (0, min(service.suite_runs))
    assert (message.suite, message.request_id, message.priority, dict(message.labels)) == ("release", "r", 3, {"step": "500"})
    assert (message.timeout.seconds, message.cache, message.max_attempts) == (7200, CACHE_MODE_ALLOW, 2)
    assert (message.preemptible, message.baseline_suite_run_id) == (True, jobs.BASELINE_RUN)
    assert (message.request.model, message.request.num_gpus, list(message.request.secrets)) == ("", 2, ["HF_TOKEN"])
    assert dict(message.request.model_args) == {"pretrained": "/ckpt/500", "dtype": "bfloat16"}
    assert {name: request.model for name, request in message.harness_requests.items()} == {
        "lm-eval": "hf",
        "lmms-eval": "llava_hf",
    }
    assert dict(message.harness_requests["lmms-eval"].model_args) == {"conv": "x"}
    assert not message.request.tasks
    assert not message.request.HasField("log_samples")


def test_a_matrix_of_models_and_suites_is_submitted_and_shown_as_one_table(run: Run, service: FakeService) -> None:
    service.suite_runs.clear()
    service.decisions["nightly"] = SuiteDecision(outcome=INCONCLUSIVE)
    models = ("--model", "hf,pretrained=/a", "--model", "hf,pretrained=/b")
    result = run("submit-suite", "release", "nightly", *models, "--request-id", "r", "--wait")
    table = [line.split() for line in result.stdout.partition("\n\n")[0].splitlines()]
    assert table == [["model", "release", "nightly"], *(["hf", name, "GO", "INCONCLUSIVE"] for name in ("/a", "/b"))]
    service.suite_runs.clear()
    service.received.clear()
    result = run("submit-suite", "release", "nightly", *models, "--request-id", "r", "--wait", "-o", "markdown")
    assert result.exit_code == 1
    assert [(m.suite, m.request.model_args["pretrained"], m.request_id) for m in service.received["SubmitSuite"]] == [
        ("release", "/a", "r-1"),
        ("release", "/b", "r-2"),
        ("nightly", "/a", "r-3"),
        ("nightly", "/b", "r-4"),
    ]
    matrix = re.findall(r"(?:^\|.*\n)+", result.stdout, flags=re.MULTILINE)[0].splitlines()
    assert [cells(line) for line in matrix] == [
        ["model", "release", "nightly"],
        ["---", "---", "---"],
        ["hf /a", "GO", "INCONCLUSIVE"],
        ["hf /b", "GO", "INCONCLUSIVE"],
    ]
    assert {call.suite_run_id for call in service.received["WatchSuiteRun"]} == set(service.suite_runs)
    assert set(result.stderr.split()) >= set(service.suite_runs), "their ids, for later"


def test_json_of_a_submission_is_the_run(run: Run, service: FakeService) -> None:
    result = run("submit-suite", "release", "--model", "m", "-o", "json")
    assert json.loads(result.stdout)["suite_run_id"] in service.suite_runs
    result = run("submit-suite", "release", "--model", "m", "--wait", "-o", "json")
    assert json.loads(result.stdout)["decision"]["outcome"] == "SUITE_OUTCOME_GO"


def test_a_submission_can_be_checked_only(run: Run) -> None:
    result = run("submit-suite", "release", "--model", "m,pretrained=/a", "--validate-only", "--wait")
    assert (result.exit_code, result.stdout) == (0, "the suite release is valid with m /a: 1 jobs\n")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "Missing argument 'SUITE...'"),
        (["release", "--model", "hf,pretrained"], "`pretrained` is not of the form key=value"),
        (["release", "--harness-model", "hf"], "'hf' is not of the form HARNESS=NAME"),
        (["release", "--tasks", "t"], "No such option '--tasks'"),
        (["release", "--model", "hf", "--wait-timeout", "soon"], "'soon' is no duration"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(run: Run, arguments: list[str], problem: str) -> None:
    result = run("submit-suite", *arguments)
    assert (result.exit_code, problem in result.stderr) == (2, True), result.stderr


# Following and ending


def test_watching_prints_what_happens_on_stderr_and_the_decision_on_stdout(run: Run) -> None:
    result = run("watch-suite", jobs.GO_RUN)
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert lines[0] == "gsm8k: QUEUED"
    assert lines[2:] == ["gsm8k: RUNNING, 3/8 samples", "the suite run is COMPLETED"]
    assert result.stdout.splitlines()[1].startswith(f"GO\t{jobs.GO_RUN}\trelease\thf /ckpt/600\t1\t0")


def test_waiting_ends_with_the_time(run: Run, service: FakeService) -> None:
    result = run("wait-suite", jobs.GO_RUN, jobs.SUITE_RUN, "--timeout", "0")
    assert (result.exit_code, "2 of 2 suite runs have not ended" in result.stderr) == (124, True)


def test_a_run_that_is_not_there_is_a_wrong_call(run: Run) -> None:
    for command in ("suite", "watch-suite", "wait-suite", "cancel-suite"):
        result = run(command, jobs.COMPLETED)
        assert (result.exit_code, "there is no suite run" in result.stderr) == (2, True)


def test_cancelling_names_the_reason_and_prints_the_run(run: Run, service: FakeService) -> None:
    result = run("cancel-suite", jobs.SUITE_RUN, "--reason", "enough")
    assert (result.exit_code, result.stdout) == (0, "COMPLETED: release of hf /ckpt/500\n")
    assert sent(service, "CancelSuiteRun").reason == "enough"
    document = json.loads(run("cancel-suite", jobs.SUITE_RUN, "--json").stdout)
    assert document["suite_run_id"] == jobs.SUITE_RUN


def test_the_model_of_a_run_is_what_tells_it_from_others() -> None:
    from evalrpc.cli.suite_runs import model_name

    several = SuiteRun()
    several.submission.request.model_args.update({"pretrained": "/ckpt", "dtype": "float32"})
    several.submission.harness_requests["lm-eval"].model = "hf"
    several.submission.harness_requests["inspect-ai"].model = "openai/x"
    assert model_name(several) == "/ckpt openai/x hf"
    assert model_name(SuiteRun()) == ""
