"""The contract of evalrpc/harnesses/base.py, for every harness: this package's own, and the plugin of docs/harnesses.md."""

import json
import math
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from harness_cases import DATA, GOOD_EXIT, follow, judge, log_of, request_of, rows_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalrpc.config import HarnessSettings, Settings
from evalrpc.errors import ConfigurationError
from evalrpc.harnesses.base import Exit, Harness, Run
from evalrpc.harnesses.registry import build_harnesses
from evalrpc.harnesses.steps import command_of, steps_of
from evalrpc.results.layout import samples_by_task
from evalrpc.server import validation
from evalrpc.v1.evaluation_service_pb2 import SubmitJobRequest
from evalrpc.v1.job_pb2 import EvaluateRequest, Progress

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "harnesses.md"


@dataclass(frozen=True)
class Subject:
    """A harness, a request that it accepts, and the output of a good run."""

    kind: str
    good_run: Path
    model: str
    tasks: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


SUBJECTS = [
    Subject("lmms-eval", DATA / "lmms_eval" / "ok_two_tasks", "dummy", ("tiny_b", "tiny_gen")),
    Subject("command", DATA / "lmms_eval" / "ok_two_tasks", "dummy", ("tiny_b", "tiny_gen"), {"command": ("p", "{model}")}),
    Subject("lm-eval", DATA / "lm_eval" / "ok_dummy_random_name", "dummy", ("tiny_mc", "tiny_gen")),
    Subject("inspect-ai", DATA / "inspect" / "ok_json", "mockllm/model", ("tiny",)),
    Subject("acme-eval", DATA / "lmms_eval" / "ok_two_tasks", "dummy", ("tiny_b", "tiny_gen")),
]


@pytest.fixture(params=SUBJECTS, ids=lambda subject: subject.kind)
def subject(request: pytest.FixtureRequest) -> Subject:
    return request.param


@pytest.fixture
def harness(subject: Subject, tmp_path: Path, plugin: Callable[[str, str], None]) -> Harness:
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    plugin("acme_evalrpc:AcmeHarness", example)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "tasks.py").write_text("".join(f"@task\ndef {name}(): ...\n" for name in subject.tasks))
    configured = {
        "python": tmp_path / "none" / "bin" / "python",
        "include_path": (tasks,),
        "working_dir": tmp_path,
        "env": {"SECRET": "of the operator"},
        **subject.settings,
    }
    return build_harnesses(Settings(harnesses={"nightly": HarnessSettings("nightly", subject.kind, **configured)}))["nightly"]


@pytest.fixture
def output(subject: Subject, tmp_path: Path) -> Path:
    """The output folder of a good run."""
    return Path(shutil.copytree(subject.good_run / "output", tmp_path / "attempt" / "output"))


def run_of(subject: Subject, tmp_path: Path, **fields: Any) -> Run:
    request = request_of(**{"harness": "nightly", "model": subject.model, "tasks": list(subject.tasks), **fields})
    return Run("job-id", 1, request, tmp_path / "attempt", tmp_path / "attempt" / "output", ())


def test_it_has_the_name_of_its_table_and_its_kind(subject: Subject, harness: Harness) -> None:
    assert isinstance(harness, Harness)
    assert (harness.name, harness.kind) == ("nightly", subject.kind)


def test_it_says_what_it_is_also_where_nothing_is_installed(subject: Subject, harness: Harness) -> None:
    info = harness.info()
    assert (info.name, info.kind) == ("nightly", subject.kind)
    assert info.available != bool(info.unavailable_reason)


def test_a_good_request_becomes_a_command_within_its_folders(subject: Subject, harness: Harness, tmp_path: Path) -> None:
    run = run_of(subject, tmp_path, model_args={"a": "b"}, gen_kwargs={"c": 1})
    assert list(harness.violations(run.request)) == []
    command = harness.command(run)
    assert all(isinstance(argument, str) and "\0" not in argument for argument in command.argv)
    assert command.env == {"SECRET": "of the operator"}
    assert all(path.is_relative_to(run.attempt_dir) and path.parent.resolve() == path.parent for path in command.files)
    paths = [part for argument in command.argv for part in re.findall(r"/[^=@ ]+", argument) if part.startswith(str(tmp_path))]
    assert all(Path(path).is_relative_to(tmp_path) for path in paths)


def test_tasks_that_are_run_one_by_one_share_no_file(subject: Subject, harness: Harness, tmp_path: Path) -> None:
    run = run_of(subject, tmp_path, model_args={"a": "b"}, tasks=[*subject.tasks, *subject.tasks], tasks_separately=True)
    steps = steps_of(run)
    assert [list(step.request.tasks) for step in steps] == [[task] for task in run.request.tasks]
    assert len({step.output_dir for step in steps}) == len(steps)
    assert all(step.output_dir.is_relative_to(run.output_dir) for step in steps)
    command = command_of(harness, steps)
    assert [command.argv, *command.further_steps] == [harness.command(step).argv for step in steps]
    assert command.files == {path: content for step in steps for path, content in harness.command(step).files.items()}
    assert len(command.files) == sum(len(harness.command(step).files) for step in steps)


def test_it_is_pure(subject: Subject, harness: Harness, tmp_path: Path) -> None:
    run = run_of(subject, tmp_path, model_args={"a": "b"}, limit=5)
    request = EvaluateRequest.FromString(run.request.SerializeToString())
    before = sorted(tmp_path.rglob("*"))
    assert list(harness.violations(run.request)) == list(harness.violations(run.request))
    assert harness.command(run) == harness.command(run)
    assert harness.catalog_command() == harness.catalog_command()
    assert run.request == request
    assert sorted(tmp_path.rglob("*")) == before


def refused(harness: Harness, request: EvaluateRequest) -> set[str]:
    request.harness = "nightly"
    request.num_gpus = 0
    return {field for field, _ in validation.submission(SubmitJobRequest(request=request), {"nightly": harness}, 0, None)}


@pytest.mark.parametrize(
    "name",
    ["", " ", "-x", "--output_path=/x", "a,b", "../a", "a/b", "/etc/passwd", "a\\b", "t.yaml", "a\0b", "a\nb", "x" * 5000],
)
def test_what_is_no_task_name_is_refused(name: str, subject: Subject, harness: Harness) -> None:
    request = EvaluateRequest(model=subject.model, tasks=[*subject.tasks, name])
    assert refused(harness, request) == {f"request.tasks[{len(subject.tasks)}]"}


@pytest.mark.parametrize("name", ["", " ", "-x", "--tasks=x", "a\0b", "a\nb", "x" * 5000])
def test_what_is_no_model_name_is_refused(name: str, subject: Subject, harness: Harness) -> None:
    assert refused(harness, EvaluateRequest(model=name, tasks=subject.tasks)) == {"request.model"}


@pytest.mark.parametrize("value", [math.nan, math.inf, [math.nan], {"a": -math.inf}])
def test_numbers_that_are_not_finite_are_refused(value: object, subject: Subject, harness: Harness) -> None:
    request = EvaluateRequest(model=subject.model, tasks=subject.tasks)
    request.model_args.update({"a": value})
    assert {field.partition("[")[0].partition(".a")[0] for field in refused(harness, request)} == {"request.model_args"}


ARGUMENTS = st.dictionaries(
    st.text(max_size=4) | st.sampled_from(("--x", "a b", "tasks", "device")),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=6) | st.sampled_from(("--tasks=x", "a,tasks=b", "\0")),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
        max_leaves=4,
    ),
    max_size=3,
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model_args=ARGUMENTS, gen_kwargs=ARGUMENTS)
def test_arguments_are_refused_or_carried_and_never_become_options(
    model_args: dict[str, Any], gen_kwargs: dict[str, Any], subject: Subject, harness: Harness, tmp_path: Path
) -> None:
    run = run_of(subject, tmp_path)
    names = {argument.partition("=")[0] for argument in harness.command(run).argv}
    fill(run.request.model_args, model_args)
    fill(run.request.gen_kwargs, gen_kwargs)
    if not refused(harness, run.request):
        more = {argument.partition("=")[0] for argument in harness.command(run).argv} - names
        assert more <= {"--config", "--model-config", "--generate-config"}


def fill(struct: Struct, values: Mapping[str, Any]) -> None:
    struct.Clear()
    struct.update({key.encode(errors="replace").decode(): value for key, value in values.items()})


def lines_of_all_runs() -> list[list[str]]:
    return [log_of(case) for folder in ("lmms_eval", "lm_eval", "inspect") for case in sorted((DATA / folder).iterdir())]


def assert_rising(changes: list[Progress]) -> None:
    assert [change.done for change in changes] == sorted(change.done for change in changes)
    assert [change.phase for change in changes] == sorted(change.phase for change in changes)
    assert all(change.done <= change.total for change in changes)
    assert all(change != before for change, before in zip(changes[1:], changes, strict=False))


def test_progress_rises_whatever_harness_wrote_the_log(harness: Harness) -> None:
    for lines in lines_of_all_runs():
        assert_rising(follow(harness, lines))


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.text() | st.from_regex(r"(Model Responding: |Running x requests: |Steps: 1/2 1% \| Samples: )?\d{1,20}/\d{1,20}")
    )
)
def test_progress_rises_whatever_a_line_says(lines: list[str], harness: Harness) -> None:
    assert_rising(follow(harness, [*lines, "Running x requests", *lines]))


def test_a_long_line_takes_no_long_time(harness: Harness) -> None:
    follow(harness, ["Steps: 1/" * 100_000, "1" * 1_000_000, "Responding 1/2 " * 50_000, "| 1/2 [" * 100_000, "(" * 500_000])


def test_a_good_run_has_results_of_its_tasks(subject: Subject, harness: Harness, output: Path, tmp_path: Path) -> None:
    ((_, result),) = judge(harness, run_of(subject, tmp_path), log=log_of(subject.good_run)).items()
    assert {metric.task for metric in result.metrics} == set(subject.tasks)
    assert samples_by_task(result).keys() == set(subject.tasks)


def test_samples_have_ids_and_can_be_read_on_from_any_of_them(
    subject: Subject, harness: Harness, output: Path, tmp_path: Path
) -> None:
    ((_, result),) = judge(harness, run_of(subject, tmp_path), log=log_of(subject.good_run)).items()
    for path in result.samples:
        rows = rows_of(harness, output, path)
        assert all("doc_id" in row.values for row in rows)
        for number, row in enumerate(rows, start=1):
            assert rows_of(harness, output, path, row.end) == rows[number:]


@pytest.mark.parametrize("exit_status", [Exit(code=1), Exit(code=-1), Exit(signal=9), Exit(signal=99), Exit(code=127)])
def test_a_bad_exit_is_a_failure_whatever_there_is(
    exit_status: Exit, subject: Subject, harness: Harness, output: Path, tmp_path: Path
) -> None:
    assert not judge(harness, run_of(subject, tmp_path), exit_status)


def test_results_decide_where_nobody_saw_the_end(subject: Subject, harness: Harness, output: Path, tmp_path: Path) -> None:
    assert judge(harness, run_of(subject, tmp_path), Exit())


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: None], ids=["empty", "a file", "missing"])
def test_nothing_is_a_failure(make: Callable[[Path], None], subject: Subject, harness: Harness, tmp_path: Path) -> None:
    run = run_of(subject, tmp_path)
    run.attempt_dir.mkdir()
    make(run.output_dir)
    assert not judge(harness, run)


def files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(output: Path) -> None:
        for path in files(output):
            path.write_bytes(change(path.read_bytes()))

    return spoil


def with_numbers(number: float) -> Callable[[bytes], bytes]:
    return lambda content: re.sub(rb"(?<=[:\[] )-?\d+(\.\d+)?", json.dumps(number).encode(), content)


def twice_at_other_times(output: Path) -> None:
    for path in files(output):
        for year in ("2020", "2030"):
            path.with_name(path.name.replace("2026", year)).write_bytes(path.read_bytes())


def several_models(output: Path) -> None:
    for name in ("ünï😀 model", "m" * 255, "-m", "a\nb", "\udcff"):
        shutil.copytree(output, output.parent / "copy")
        (output.parent / "copy").rename(output / name)


def linked_out(output: Path) -> None:
    outside = output.parent.parent / "outside"
    shutil.copytree(output, outside)
    for path in files(output):
        path.unlink()
        path.symlink_to(outside / path.relative_to(output))
    (output / "linked").symlink_to(outside)


def folders_for_files(output: Path) -> None:
    for path in list(files(output)):
        path.unlink()
        path.mkdir()


def pipes_for_files(output: Path) -> None:
    for path in list(files(output)):
        path.unlink()
        os.mkfifo(path)


def very_long_names(output: Path) -> None:
    for path in files(output):
        stem, dot, suffix = path.name.rpartition(".")
        path.with_name(stem + "x" * (255 - len(path.name)) + dot + suffix).write_bytes(path.read_bytes())


def unreadable(output: Path) -> None:
    for path in files(output):
        path.chmod(0)


SPOILERS: Mapping[str, Callable[[Path], None]] = {
    "truncated a little": rewrite(lambda content: content[:-10]),
    "truncated in the middle": rewrite(lambda content: content[: len(content) // 2]),
    "truncated to nothing": rewrite(lambda content: b""),
    "an empty object": rewrite(lambda content: b"{}"),
    "a list": rewrite(lambda content: b"[]"),
    "brackets without end": rewrite(lambda content: b'{"results":' + b"[" * 100_000),
    "bytes that are no text": rewrite(lambda content: b"\xff\xfe\x00" + content),
    "NaN everywhere": rewrite(with_numbers(math.nan)),
    "infinity everywhere": rewrite(with_numbers(-math.inf)),
    "text for numbers": rewrite(lambda content: re.sub(rb"(?<=: )\d+(\.\d+)?", b'"N/A"', content)),
    "lists for objects": rewrite(lambda content: content.replace(b"{", b"[").replace(b"}", b"]")),
    "null for text": rewrite(lambda content: re.sub(rb'(?<=: )"[^"]*"', b"null", content)),
    "half a surrogate pair": rewrite(lambda content: content.replace(b'"tiny', b'"\\ud800tiny')),
    "two other timestamps": twice_at_other_times,
    "several models": several_models,
    "links that lead out": linked_out,
    "folders for files": folders_for_files,
    "pipes for files": pipes_for_files,
    "very long names": very_long_names,
    "unreadable files": unreadable,
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
def test_whatever_lies_in_the_folder_is_a_result_or_a_failure(
    spoil: Callable[[Path], None], subject: Subject, harness: Harness, output: Path, tmp_path: Path
) -> None:
    spoil(output)
    outside = tmp_path / "outside"
    kept = {path: path.read_bytes() for path in files(outside)}
    judge(harness, run_of(subject, tmp_path))
    assert {path: path.read_bytes() for path in files(outside)} == kept


def test_links_that_lead_out_are_no_results(subject: Subject, harness: Harness, output: Path, tmp_path: Path) -> None:
    linked_out(output)
    assert not judge(harness, run_of(subject, tmp_path))


def test_several_threads_may_use_it_at_once(subject: Subject, harness: Harness, output: Path, tmp_path: Path) -> None:
    run = run_of(subject, tmp_path)
    lines = log_of(subject.good_run)

    def use(_: int) -> tuple[object, ...]:
        return harness.command(run), follow(harness, lines), dict(harness.read_results(run, GOOD_EXIT, lines))

    with ThreadPoolExecutor(8) as pool:
        first, *others = pool.map(use, range(16))
    assert all(other == first for other in others)


def configured(kind: str) -> Settings:
    return Settings(harnesses={"x": HarnessSettings("x", kind)})


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        ("acme_evalrpc:Missing", "", "can't be loaded: AttributeError: module 'acme_evalrpc' has no attribute 'Missing'"),
        ("nosuchmodule:A", "", "can't be loaded: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("acme_evalrpc:A", "1/0", "can't be loaded: ZeroDivisionError: division by zero"),
        ("acme_evalrpc:A", "def A(: pass", "can't be loaded: SyntaxError: invalid syntax"),
        ("acme_evalrpc:A", "class A: pass", "can't be loaded: TypeError: A() takes no arguments"),
        ("acme_evalrpc:A", "def A(settings): return 1", "builds a int, which is no Harness"),
    ],
)
def test_a_broken_plugin_is_named(value: str, code: str, message: str, plugin: Callable[[str, str], None]) -> None:
    plugin(value, code)
    with pytest.raises(ConfigurationError) as caught:
        build_harnesses(configured("acme-eval"))
    assert caught.value.message.startswith(f"setting harnesses.x.kind: the plugin acme-eval ({value}) {message}")


def test_what_a_plugin_says_about_its_settings_is_passed_on(plugin: Callable[[str, str], None]) -> None:
    code = """
        from evalrpc.errors import ConfigurationError
        def build(settings):
            raise ConfigurationError("setting harnesses.x.command: is needed")
    """
    plugin("acme_evalrpc:build", textwrap.dedent(code))
    with pytest.raises(ConfigurationError, match=r"^setting harnesses\.x\.command: is needed$"):
        build_harnesses(configured("acme-eval"))


def test_a_broken_plugin_that_nobody_asked_for_is_left_alone(plugin: Callable[[str, str], None]) -> None:
    plugin("acme_evalrpc:A", "1/0")
    assert build_harnesses(configured("lm-eval"))["x"].kind == "lm-eval"


def test_an_unknown_kind_is_refused_with_all_there_are(plugin: Callable[[str, str], None]) -> None:
    plugin("acme_evalrpc:A", "")
    with pytest.raises(ConfigurationError, match="y is unknown; there are: acme-eval, command, inspect-ai, lm-eval, lmms-eval"):
        build_harnesses(configured("y"))
