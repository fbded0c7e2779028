"""The contract of a harness, as a class of tests. Subclass it, say which harness it is about, and pytest checks every promise:

    class TestAcmeHarness(HarnessContract):
        subject = Subject("acme-eval", Path(__file__).parent / "recorded_run", model="acme/tiny", tasks=("arithmetic",))

The harness is built as a server builds it, so its package must be installed (`pip install --editable .`). Needs pytest and
Hypothesis, which the extra `evalrpc[testing]` brings. docs/harnesses.md has a whole example.
"""

import math
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalrpc.config import HarnessSettings
from evalrpc.config.engines import APIS
from evalrpc.harnesses.base import Exit, Harness, Run, ServedEndpoint, ServedHarness, TaskArgsHarness
from evalrpc.harnesses.registry import build_harness
from evalrpc.harnesses.served import served_environment
from evalrpc.harnesses.steps import command_of, steps_of
from evalrpc.results.layout import samples_by_task
from evalrpc.server import validation
from evalrpc.testing.damage import DAMAGES, Damage, files, link_out, rewrite
from evalrpc.testing.recorded_runs import GOOD_EXIT, follow, judge, log_of, request_of, results_of, rows_of, run_in
from evalrpc.v1.jobs_pb2 import EvaluateRequest, Progress, SubmitJobRequest
from evalrpc.v1.results_pb2 import ModelResult

NAME: Final = "nightly"
"""The name under which the harness is configured: that of an operator, which need not be its kind."""

_SECRET: Final = {"SECRET": "of the operator"}
_KEY: Final = "0b54e7a6"
_SERVED: Final = ServedEndpoint(
    *(f"http://127.0.0.1:4711/j/{_KEY}/v1", "tiny-model", "/models/tiny-model", APIS),
    open_url="http://127.0.0.1:4711/v1",
    key=_KEY,
)
_NO_TASKS: Final = (
    *("", " ", "-x", "--output_path=/x", "a,b", "../a", "a/b", "/etc/passwd", "a\\b", "t.yaml"),
    *("a\0b", "a\nb", "x" * 5000),
)
_NO_MODELS: Final = ("", " ", "-x", "--tasks=x", "a\0b", "a\nb", "x" * 5000)
_LONG_LINES: Final = (
    *("Steps: 1/" * 100_000, "1" * 1_000_000, "Responding 1/2 " * 50_000, "| 1/2 [" * 100_000),
    *("(" * 500_000, "a" * 1_000_000, "Error: " * 100_000, " " * 1_000_000),
)
_ARGUMENTS = st.dictionaries(
    st.text(max_size=4) | st.sampled_from(("--x", "a b", "tasks", "device")),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=6) | st.sampled_from(("--tasks=x", "a,tasks=b", "\0")),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
        max_leaves=4,
    ),
    max_size=3,
)
_TASK_ARGS = st.dictionaries(
    st.sampled_from(("epochs", "epochs_reducer", "apply_chat_template", "system_instruction", "force_simple", "seed", "a")),
    st.integers(-1, 3)
    | st.booleans()
    | st.sampled_from(("--tasks=x", "mean", "-x", "a,--b=c", "mean,--x"))
    | st.lists(st.text()),
    max_size=3,
)
_LINES = st.lists(
    st.text() | st.from_regex(r"(Model Responding: |Running x requests: |Steps: 1/2 1% \| Samples: )?\d{1,20}/\d{1,20}")
)
_with_random_values = settings(
    deadline=None,
    max_examples=50,
    # The fixtures hold nothing that an example changes, and every subclass runs the same test.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)


@dataclass(frozen=True)
class Subject:
    """What the contract is checked on: a harness, a request that it accepts, and a run of that request that succeeded."""

    kind: str
    """The kind of the harness, which is the name of its entry point."""
    recorded_run: Path
    """The run, as `evalrpc.testing.recorded_runs` describes it."""
    model: str
    """The model that it evaluated."""
    tasks: tuple[str, ...]
    """The tasks that it evaluated. No groups of tasks."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of a request that the harness accepts, such as `{"limit": 5, "model_args": {"dtype": "float32"}}`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the harness needs, by their names in HarnessSettings."""
    task_files: Mapping[str, str] = field(default_factory=dict)
    """Files that the harness needs in the operator's folder of tasks (`include_path`), by name."""
    argument_options: frozenset[str] = frozenset()
    """The options that `model_args`, `gen_kwargs` and `task_args` may add to the command line, such as `--config`."""
    has_samples: bool = True
    """Whether the run left samples of every task."""


class HarnessContract:
    """Every promise that a server relies on. A subclass whose name begins with `Test` sets `subject`."""

    subject: ClassVar[Subject]

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Harness:
        """The harness, in an environment in which its program is not installed."""
        return build_harness(self._settings(tmp_path))

    @pytest.fixture
    def run(self, tmp_path: Path) -> Run:
        """The run that was recorded, before it has begun: its folders are not there yet."""
        return self._run(tmp_path)

    @pytest.fixture
    def finished_run(self, run: Run) -> Run:
        """The run that was recorded, with the output that it left."""
        shutil.copytree(self.subject.recorded_run / "output", run.output_dir)
        return run

    def _settings(self, folder: Path) -> HarnessSettings:
        tasks = folder / "tasks"
        tasks.mkdir(exist_ok=True)
        for name, content in self.subject.task_files.items():
            (tasks / name).write_text(content)
        configured: dict[str, Any] = {
            "python": folder / "none" / "bin" / "python",
            "include_path": (tasks,),
            "working_dir": folder,
            "env": _SECRET,
            **self.subject.settings,
        }
        return HarnessSettings(NAME, self.subject.kind, **configured)

    def _run(self, folder: Path, **fields: Any) -> Run:
        request = {"harness": NAME, "model": self.subject.model, "tasks": list(self.subject.tasks), **fields}
        return run_in(folder / "attempt", request_of(**request))

    def _good_result(self, harness: Harness, run: Run) -> ModelResult:
        results = results_of(harness, run, log=log_of(self.subject.recorded_run))
        assert len(results) == 1, f"a run has one model, and read_results returned several: {sorted(results)}"
        return next(iter(results.values()))

    # What it is

    def test_it_has_the_name_of_its_table_and_its_kind(self, harness: Harness) -> None:
        assert isinstance(harness, Harness), f"{type(harness).__name__} lacks methods of evalrpc.harnesses.Harness"
        assert harness.name == NAME, f"`name` is {harness.name!r}: it must be that of its settings, {NAME!r}"
        assert harness.kind == self.subject.kind, f"`kind` is {harness.kind!r}: the entry point is {self.subject.kind!r}"

    def test_it_says_what_it_is_even_where_nothing_is_installed(self, harness: Harness) -> None:
        info = harness.info()
        assert info.name == NAME, f"info().name is {info.name!r}: it must be that of its settings, {NAME!r}"
        assert info.kind == self.subject.kind, f"info().kind is {info.kind!r}: the entry point is {self.subject.kind!r}"
        assert info.available != bool(info.unavailable_reason), "info() must give an unavailable_reason unless it is available"

    # A request becomes a command

    def test_a_good_request_has_no_violations(self, harness: Harness, tmp_path: Path) -> None:
        run = self._run(tmp_path, **self.subject.options)
        violations = list(harness.violations(run.request))
        assert not violations, f"violations() refuses the request that the subject describes: {violations}"

    def test_a_command_keeps_to_its_folders_and_passes_the_operators_environment_on(
        self, harness: Harness, tmp_path: Path
    ) -> None:
        run = self._run(tmp_path, **self.subject.options)
        command = harness.command(run)
        for argument in command.argv:
            assert isinstance(argument, str), f"the argument {argument!r} of the command is no text"
            assert "\0" not in argument, f"the argument {argument!r} of the command has a zero byte, which no program can take"
        assert _SECRET.items() <= command.env.items(), "the command lacks the operator's `env`: pass `settings.env` on"
        for path in command.files:
            is_inside = path.is_relative_to(run.attempt_dir) and ".." not in path.parts
            assert is_inside, f"the command writes {path}, which is not in run.attempt_dir"
        content = [*command.argv, *command.env.values(), *(file.decode(errors="replace") for file in command.files.values())]
        is_told = any(str(run.output_dir) in text for text in content)
        assert is_told, "the command does not say where the results go: name run.output_dir in an argument, a file or `env`"

    def test_tasks_that_are_run_one_by_one_share_no_file(self, harness: Harness, tmp_path: Path) -> None:
        tasks = [*self.subject.tasks, *self.subject.tasks]
        run = self._run(tmp_path, **{**self.subject.options, "tasks": tasks, "tasks_separately": True})
        steps = steps_of(run)
        single = [harness.command(step) for step in steps]
        command = command_of(harness, steps)
        argvs = [command.argv, *command.further_steps]
        assert argvs == [each.argv for each in single], "commands() builds other command lines than command()"
        contents = {path: content for each in single for path, content in each.files.items()}
        assert command.files == contents, "commands() writes other files than command()"
        assert len(contents) == sum(len(each.files) for each in single), "two runs of one job write the same file"

    def test_it_is_pure(self, harness: Harness, tmp_path: Path) -> None:
        run = self._run(tmp_path, **self.subject.options)
        other = build_harness(self._settings(tmp_path))
        request = EvaluateRequest.FromString(run.request.SerializeToString())
        before = sorted(tmp_path.rglob("*"))
        assert list(harness.violations(run.request)) == list(harness.violations(run.request)), "violations() changes its answer"
        assert harness.command(run) == harness.command(run) == other.command(run), "equal runs must have equal commands"
        assert harness.catalog_command() == other.catalog_command(), "catalog_command() changes its answer"
        assert run.request == request, "the harness has changed the request"
        assert sorted(tmp_path.rglob("*")) == before, "the harness writes files itself: they belong into Command.files"

    @pytest.mark.parametrize("api", [*((api,) for api in APIS), APIS])
    def test_a_run_that_asks_a_server_is_the_same_but_for_where_its_model_is(
        self, api: tuple[str, ...], harness: Harness, tmp_path: Path
    ) -> None:
        if not isinstance(harness, ServedHarness):
            pytest.skip("the harness can't ask a server")
        request = self._run(tmp_path, **self.subject.options).request
        request.served_model.model = _SERVED.model
        before, served = EvaluateRequest.FromString(request.SerializeToString()), _SERVED._replace(api=api)
        pointed = harness.with_served_model(request, served)
        assert request == before, "with_served_model() has changed the request"
        assert pointed == harness.with_served_model(request, served), "with_served_model() changes its answer"
        assert not pointed.HasField("served_model"), "with_served_model() must leave out `served_model`"
        for ours, theirs in ((request.model_args, pointed.model_args), (request.gen_kwargs, pointed.gen_kwargs)):
            assert dict(ours.fields).items() <= dict(theirs.fields).items(), (
                "with_served_model() drops arguments of the request"
            )
        before.model = pointed.model
        before.model_args.CopyFrom(pointed.model_args)
        before.gen_kwargs.CopyFrom(pointed.gen_kwargs)
        before.ClearField("served_model")
        assert pointed == before, "with_served_model() changes what has nothing to do with the model"

    def test_a_run_that_asks_a_server_is_told_where_and_for_what(self, harness: Harness, tmp_path: Path) -> None:
        if not isinstance(harness, ServedHarness):
            pytest.skip("the harness can't ask a server")
        run = self._run(tmp_path, **self.subject.options)
        pointed = harness.with_served_model(run.request, _SERVED)
        violations = list(harness.violations(pointed))
        assert not violations, f"violations() refuses what with_served_model() returns: {violations}"
        command = harness.command(replace(run, request=pointed))
        env = {**command.env, **served_environment(harness.served_needs, _SERVED, command.env)}
        content = [*command.argv, *env.values(), *(file.decode(errors="replace") for file in command.files.values())]
        assert any(_SERVED.name in text for text in content), f"nothing tells the program {_SERVED.name!r}"
        has_address = any(_SERVED.url in text for text in content)
        has_both = all(any(told in text for text in content) for told in (_SERVED.open_url, _SERVED.key))
        assert has_address or has_both, f"nothing tells the program {_SERVED.url!r}, or `open_url` and `key`"
        hint = "tell it by a file or the environment, or put `open_url` there, and `key` into a file or the environment"
        assert not any(_KEY in argument for argument in command.argv), (
            f"others on the machine see it in the command line: {hint}"
        )

    @pytest.mark.parametrize("name", _NO_TASKS)
    def test_what_is_no_task_name_is_refused(self, name: str, harness: Harness) -> None:
        request = EvaluateRequest(model=self.subject.model, tasks=[*self.subject.tasks, name])
        expected = {f"request.tasks[{len(self.subject.tasks)}]"}
        hint = "violations() must yield `tasks[INDEX]` for what task_problem() rejects"
        assert _refused(harness, request) == expected, f"{name[:30]!r} is no name of a task: {hint}"

    @pytest.mark.parametrize("name", _NO_MODELS)
    def test_what_is_no_model_name_is_refused(self, name: str, harness: Harness) -> None:
        request = EvaluateRequest(model=name, tasks=self.subject.tasks)
        hint = "violations() must yield `model` for what could be an option"
        assert _refused(harness, request) == {"request.model"}, f"{name[:30]!r} is no name of a model: {hint}"

    @pytest.mark.parametrize("value", [math.nan, math.inf, [math.nan], {"a": -math.inf}])
    def test_numbers_that_are_not_finite_are_refused(self, value: Any, harness: Harness) -> None:
        request = EvaluateRequest(model=self.subject.model, tasks=self.subject.tasks)
        request.model_args.update({"a": value})
        fields = {re.split(r"\[|\.a", field)[0] for field in _refused(harness, request)}
        assert fields == {"request.model_args"}, "violations() yields a field that the request does not have"

    @_with_random_values
    @given(model_args=_ARGUMENTS, gen_kwargs=_ARGUMENTS)
    def test_arguments_are_refused_or_carried_and_never_become_options(
        self, model_args: dict[str, Any], gen_kwargs: dict[str, Any], harness: Harness, tmp_path: Path
    ) -> None:
        run = self._run(tmp_path)
        options = _options(harness, run)
        _fill(run.request.model_args, model_args)
        _fill(run.request.gen_kwargs, gen_kwargs)
        if not _refused(harness, run.request):
            added = _options(harness, run) - options - self.subject.argument_options
            assert not added, f"arguments of a request became the options {sorted(added)} of the command line"

    @_with_random_values
    @given(task_args=_ARGUMENTS | _TASK_ARGS)
    def test_arguments_of_tasks_are_refused_or_carried_and_never_become_options(
        self, task_args: dict[str, Any], harness: Harness, tmp_path: Path
    ) -> None:
        run = self._run(tmp_path)
        options = _options(harness, run)
        _fill(run.request.task_args, task_args)
        if not _refused(harness, run.request):
            hint = "implement TaskArgsHarness only if the harness takes them: a server refuses them for any other"
            assert isinstance(harness, TaskArgsHarness) or not task_args, hint
            added = _options(harness, run) - options - self.subject.argument_options
            assert not added, f"arguments of the tasks became the options {sorted(added)} of the command line"

    # A log becomes progress

    def test_progress_rises_through_the_recorded_log(self, harness: Harness) -> None:
        require_rising(follow(harness, log_of(self.subject.recorded_run)))

    @_with_random_values
    @given(lines=_LINES)
    def test_progress_rises_whatever_a_line_says(self, lines: list[str], harness: Harness) -> None:
        require_rising(follow(harness, [*lines, "Running x requests", *lines]))

    def test_a_long_line_does_not_stop_the_log(self, harness: Harness) -> None:
        require_rising(follow(harness, _LONG_LINES))

    # An output folder becomes results

    def test_a_good_run_has_results_of_its_tasks(self, harness: Harness, finished_run: Run) -> None:
        result = self._good_result(harness, finished_run)
        tasks = set(self.subject.tasks)
        measured = {metric.task for metric in result.metrics}
        assert measured == tasks, f"the metrics must be those of {sorted(tasks)}, and are of {sorted(measured)}"
        assert all(metric.HasField("value") for metric in result.metrics), (
            "a metric without a value: set Metric.value, also if 0"
        )
        with_samples = set(samples_by_task(result))
        expected = tasks if self.subject.has_samples else set()
        assert with_samples == expected, f"the samples must be those of {sorted(expected)}, and are of {sorted(with_samples)}"

    def test_samples_have_ids_and_can_be_read_on_from_any_of_them(self, harness: Harness, finished_run: Run) -> None:
        for path in self._good_result(harness, finished_run).samples:
            rows = rows_of(harness, finished_run.output_dir, path)
            assert all("doc_id" in row.values for row in rows), f"rows of {Path(path).name} have no `doc_id`"
            for number, row in enumerate(rows, start=1):
                rest = rows_of(harness, finished_run.output_dir, path, row.end)
                assert rest == rows[number:], f"read from the `end` of row {number} on, {Path(path).name} has other rows"

    @pytest.mark.parametrize("exit_status", [Exit(code=1), Exit(code=-1), Exit(signal=9), Exit(signal=99), Exit(code=127)])
    def test_a_bad_exit_is_a_failure_whatever_there_is(self, exit_status: Exit, harness: Harness, finished_run: Run) -> None:
        results = judge(harness, finished_run, exit_status)
        assert not results, f"read_results has results of a run that ended with {exit_status}: call check_exit() first"

    def test_results_decide_where_nobody_saw_the_end(self, harness: Harness, finished_run: Run) -> None:
        assert judge(harness, finished_run, Exit()), "an Exit without code and signal means unknown, and not failed"

    @pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda _: None], ids=["empty", "a file", "missing"])
    def test_no_output_is_a_failure(self, make: Callable[[Path], None], harness: Harness, run: Run) -> None:
        run.attempt_dir.mkdir()
        make(run.output_dir)
        assert not judge(harness, run), "read_results has results where the run left none: raise RunFailedError"

    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
    def test_whatever_lies_in_the_folder_is_a_result_or_a_failure(
        self, damage: Damage, harness: Harness, finished_run: Run, tmp_path: Path
    ) -> None:
        damage(finished_run.output_dir)
        outside = tmp_path / "outside"
        before = {path: path.read_bytes() for path in files(outside)}
        judge(harness, finished_run)
        after = {path: path.read_bytes() for path in files(outside)}
        assert after == before, "read_results wrote through a link to a file outside the output folder"

    def test_a_task_that_is_not_unicode_is_a_result_or_a_failure(self, harness: Harness, finished_run: Run) -> None:
        names = re.compile('"(?={})'.format("|".join(map(re.escape, self.subject.tasks))).encode())
        rewrite(lambda content: names.sub(rb'"\\ud800', content))(finished_run.output_dir)
        judge(harness, finished_run)

    def test_links_that_lead_out_are_no_results(self, harness: Harness, finished_run: Run) -> None:
        link_out(finished_run.output_dir)
        assert not judge(harness, finished_run), "read_results followed links out of the output folder"

    def test_several_threads_may_use_it_at_once(self, harness: Harness, finished_run: Run) -> None:
        lines = log_of(self.subject.recorded_run)

        def use(_: int) -> tuple[object, ...]:
            results = harness.read_results(finished_run, GOOD_EXIT, lines)
            return harness.command(finished_run), follow(harness, lines), dict(results)

        with ThreadPoolExecutor(8) as pool:
            first, *others = pool.map(use, range(16))
        assert all(other == first for other in others), "threads that use the harness at once get different answers"


def require_rising(changes: list[Progress]) -> None:
    """Require that progress never goes back. Raises AssertionError."""
    for before, progress in zip([Progress(), *changes], changes, strict=False):
        assert progress != before, "read_progress returned True for a line that changed nothing"
        assert progress.done >= before.done, f"`done` falls from {before.done} to {progress.done}: advance() never lets it"
        assert progress.phase >= before.phase, f"`phase` goes back from {before.phase} to {progress.phase}"
        assert progress.done <= progress.total, f"`done` is {progress.done} of {progress.total}"


def _refused(harness: Harness, request: EvaluateRequest) -> set[str]:
    """Return the fields that a server with this harness refuses."""
    request.harness = NAME
    request.num_gpus = 0
    return {field for field, _ in validation.submission(SubmitJobRequest(request=request), {NAME: harness}, (), None)}


def _options(harness: Harness, run: Run) -> set[str]:
    return {argument.partition("=")[0] for argument in harness.command(run).argv}


def _fill(struct: Struct, values: Mapping[str, Any]) -> None:
    struct.Clear()
    struct.update({key.encode(errors="replace").decode(): value for key, value in values.items()})
