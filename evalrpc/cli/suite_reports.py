"""Decisions over suite runs as tables, as Markdown and as JUnit XML. Pure.

What comes from a job or a client is made printable, and can't be read as Markdown, HTML or XML.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final
from xml.etree import ElementTree as ET

from evalrpc.cli.comparison_cells import comparison_numbers, method_name, test_words
from evalrpc.cli.suite_runs import model_name
from evalrpc.cli.tables import Cell, Column, Kind, texts
from evalrpc.cli.wording import status_name
from evalrpc.client.arguments import metric_text
from evalrpc.printable import printable
from evalrpc.v1.suites_pb2 import Assessment, SuiteDecision, SuiteFinding, SuiteOutcome, SuiteRun

STYLES: Final = {
    **dict.fromkeys(("GO", "PASSED"), "green"),
    **dict.fromkeys(("NO_GO", "FAILED", "NO_NUMBERS"), "bold red"),
    **dict.fromkeys(("INCONCLUSIVE", "UNDECIDED"), "yellow"),
}

FINDING_COLUMNS: Final = (
    Column("finding", Kind.WHOLE),
    Column("tier", Kind.NUMBER),
    Column("entry"),
    Column("metric"),
    Column("value", Kind.NUMBER),
    Column("interval", Kind.WHOLE),
    Column("n", Kind.NUMBER),
    Column("threshold", Kind.NUMBER, "g"),
    Column("baseline", Kind.NUMBER),
    Column("difference", Kind.NUMBER, "+.4f"),
    Column("its interval", Kind.WHOLE),
    Column("p", Kind.NUMBER, ".2g"),
    Column("reason"),
    Column("test"),
    Column("required", Kind.WHOLE, only_wide=True),
    Column("job", Kind.WHOLE, only_wide=True),
)

RUN_COLUMNS: Final = (
    Column("decision", Kind.WHOLE),
    Column("run", Kind.WHOLE),
    Column("suite"),
    Column("model"),
    Column("passed", Kind.NUMBER),
    Column("failed", Kind.NUMBER),
    Column("undecided", Kind.NUMBER),
    Column("no numbers", Kind.NUMBER),
    Column("status", Kind.WHOLE),
)

_MARKDOWN: Final = re.compile(r"([\\`*_{}\[\]<>#|~&])")


def is_go(run: SuiteRun) -> bool:
    """Return whether the decision is GO; that of a newer server is not."""
    return run.decision.outcome == SuiteOutcome.SUITE_OUTCOME_GO


def outcome_name(decision: SuiteDecision) -> str:
    """Return the decision, such as NO_GO."""
    known = decision.outcome in SuiteOutcome.values()
    return SuiteOutcome.Name(decision.outcome).removeprefix("SUITE_OUTCOME_") if known else f"OUTCOME_{decision.outcome:d}"


def assessment_name(finding: SuiteFinding) -> str:
    """Return what was found out, such as FAILED."""
    known = finding.assessment in Assessment.values()
    return Assessment.Name(finding.assessment).removeprefix("ASSESSMENT_") if known else f"ASSESSMENT_{finding.assessment:d}"


def title(run: SuiteRun) -> str:
    """Say in a line what was decided over which run."""
    return f"{outcome_name(run.decision)}: {run.suite.name} of {model_name(run) or 'no model'}"


def finding_rows(run: SuiteRun) -> Iterator[tuple[Cell, ...]]:
    """Yield a row of FINDING_COLUMNS for each finding."""
    for finding in run.decision.findings:
        metric = finding.metric
        baseline, value, difference, interval, p_value, _ = comparison_numbers(metric)
        if p_value is None and finding.HasField("threshold_p_value"):
            p_value = finding.threshold_adjusted_p_value
        has_interval = finding.HasField("value_lower")
        yield (
            assessment_name(finding),
            finding.tier,
            finding.entry,
            metric_text(metric) if finding.HasField("metric") else "",
            value,
            f"[{finding.value_lower:.4f}, {finding.value_upper:.4f}]" if has_interval else None,
            _sample_count(finding),
            finding.threshold if finding.HasField("threshold") else None,
            baseline,
            difference,
            interval,
            p_value,
            finding.reason,
            _tests(finding),
            "yes" if finding.required else "no",
            finding.job_id,
        )


def run_row(run: SuiteRun) -> tuple[Cell, ...]:
    """Return a run as a row of RUN_COLUMNS."""
    counts = Counter(map(assessment_name, run.decision.findings))
    return (
        outcome_name(run.decision),
        run.suite_run_id,
        run.suite.name,
        model_name(run),
        *(counts[name] for name in ("PASSED", "FAILED", "UNDECIDED", "NO_NUMBERS")),
        status_name(run.status),
    )


def markdown(runs: Sequence[SuiteRun]) -> str:
    """Return runs with their decisions as Markdown: of several the matrix of models and suites, then each by itself."""
    parts = [f"# Decisions\n\n{_markdown_table(*matrix(runs))}"] if len(runs) > 1 else []
    for run in runs:
        parts.append(f"## {_escaped(title(run))}")
        parts += ["\n".join(f"- {_escaped(reason)}" for reason in run.decision.reasons)] if run.decision.reasons else []
        columns = [column for column in FINDING_COLUMNS if not column.only_wide]
        parts.append(_markdown_table([column.name for column in columns], (_finding_texts(row) for row in finding_rows(run))))
        parts.append(_particulars(run))
    return "\n\n".join(parts) + "\n"


def junit(runs: Iterable[SuiteRun]) -> str:
    """Return runs with their decisions as JUnit XML: a test suite for each, with a test case for the decision and each finding.

    A test fails if it FAILED, or is UNDECIDED and required; it is an error if there are NO_NUMBERS and it is required; and is
    skipped if it is one of the latter two and not required. So a run has a failure or an error unless it is GO.
    """
    root = ET.Element("testsuites", name="evalrpc")
    for run in runs:
        root.append(_test_suite(run))
    _count(root, root.iter("testcase"))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _sample_count(finding: SuiteFinding) -> int | None:
    metric = finding.metric
    if metric.HasField("candidate_sample_count"):
        return metric.candidate_sample_count
    return finding.value_sample_count or metric.paired_sample_count or None


def _tests(finding: SuiteFinding) -> str:
    """Say what both intervals are of."""
    of_value = f"value: {method_name(finding.value_method)}{_clusters(finding)}" if finding.value_method else ""
    of_difference = f"difference: {test_words(finding.metric)}" if finding.metric.method else ""
    return "; ".join(filter(None, (of_value, of_difference)))


def _clusters(finding: SuiteFinding) -> str:
    return f", {finding.value_cluster_count} clusters" if finding.HasField("value_cluster_count") else ""


def _finding_texts(row: Sequence[Cell]) -> list[str]:
    shown = [(column, cell) for column, cell in zip(FINDING_COLUMNS, row, strict=True) if not column.only_wide]
    return texts([column for column, _ in shown], [cell for _, cell in shown])


def matrix(runs: Sequence[SuiteRun]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table of decisions, by model and suite."""
    suites = list(dict.fromkeys(run.suite.name for run in runs))
    decisions: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        decisions.setdefault(model_name(run), {}).setdefault(run.suite.name, []).append(outcome_name(run.decision))
    rows = [[model, *(", ".join(of_model.get(suite, ())) for suite in suites)] for model, of_model in decisions.items()]
    return ["model", *suites], rows


def _markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _particulars(run: SuiteRun) -> str:
    decision = run.decision
    shown = len(decision.findings)
    cut = f", the first {shown} of {decision.finding_count} findings" if shown < decision.finding_count else ""
    baseline = decision.baseline_suite_run_id or "none"
    level = f"intervals at {decision.confidence_level * 100:.4g}%, p-values adjusted within each tier (Holm)"
    return f"Run `{run.suite_run_id}`, {status_name(run.status)}, baseline `{baseline}`; {level}{cut}."


def _escaped(text: str) -> str:
    """Keep a text from being read as Markdown or HTML."""
    text = printable(text)
    return text if set(text) <= {"-"} else _MARKDOWN.sub(r"\\\1", text)


def _test_suite(run: SuiteRun) -> ET.Element:
    suite = ET.Element("testsuite", name=printable(f"{run.suite.name} of {model_name(run)}"))
    if run.HasField("created_at"):
        suite.set("timestamp", run.created_at.ToDatetime().isoformat(timespec="seconds"))
    properties = ET.SubElement(suite, "properties")
    for name, value in (
        ("decision", outcome_name(run.decision)),
        ("suite_run_id", run.suite_run_id),
        ("baseline_suite_run_id", run.decision.baseline_suite_run_id),
    ):
        ET.SubElement(properties, "property", name=name, value=value)
    suite.append(_decision_case(run))
    for finding, row in zip(run.decision.findings, finding_rows(run), strict=True):
        suite.append(_finding_case(run.suite.name, finding, _finding_texts(row)))
    _count(suite, suite.iter("testcase"))
    return suite


def _decision_case(run: SuiteRun) -> ET.Element:
    case = ET.Element("testcase", classname=printable(run.suite.name), name="decision")
    if not is_go(run):
        reasons = [printable(reason) for reason in run.decision.reasons]
        failure = ET.SubElement(case, "failure", type=outcome_name(run.decision), message=printable(title(run)))
        failure.text = "\n".join(reasons)
    return case


def _finding_case(suite: str, finding: SuiteFinding, row: Sequence[str]) -> ET.Element:
    classname = printable(f"{suite}.{finding.entry}")
    name = printable(metric_text(finding.metric)) if finding.HasField("metric") else "results"
    case = ET.Element("testcase", classname=classname, name=name)
    assessment = assessment_name(finding)
    kind = _JUNIT_KINDS.get((finding.assessment, finding.required), "failure")
    if kind:
        ET.SubElement(case, kind, type=assessment, message=printable(f"{assessment}: {finding.reason}"))
    numbers = ET.SubElement(case, "system-out")
    columns = [column.name for column in FINDING_COLUMNS if not column.only_wide]
    numbers.text = "\n".join(f"{column}: {cell}" for column, cell in zip(columns, row, strict=True) if cell)
    return case


_JUNIT_KINDS: Final = {
    (Assessment.ASSESSMENT_PASSED, True): "",
    (Assessment.ASSESSMENT_PASSED, False): "",
    (Assessment.ASSESSMENT_UNDECIDED, False): "skipped",
    (Assessment.ASSESSMENT_NO_NUMBERS, False): "skipped",
    (Assessment.ASSESSMENT_NO_NUMBERS, True): "error",
}
"""The element that says how a finding went, by whether its entry is required; others are failures."""


def _count(element: ET.Element, cases: Iterable[ET.Element]) -> None:
    found = list(cases)
    element.set("tests", str(len(found)))
    for name, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(name, str(sum(case.find(kind) is not None for case in found)))
