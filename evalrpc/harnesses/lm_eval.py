"""lm-eval (EleutherAI's harness), driven through its command line.

As with lmms-eval, `model_args` become keyword arguments of lm-eval's model class, so a client is trusted with whatever the
server's account may read, write and reach.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from evalrpc.config import HarnessSettings
from evalrpc.config.engines import CHAT, COMPLETIONS, LOG_PROBABILITIES
from evalrpc.errors import ConfigurationError, FieldViolation
from evalrpc.harnesses import arguments, lm_eval_family, task_args
from evalrpc.harnesses.arguments import plain_arguments, yaml_text
from evalrpc.harnesses.bad_answers import warn
from evalrpc.harnesses.base import Command, Exit, Preload, Run, ServedEndpoint, ServedNeeds
from evalrpc.harnesses.failures import shorten, strip_colours
from evalrpc.harnesses.gpu_modes import gpu_mode, gpu_warnings, name_parts
from evalrpc.harnesses.installation import SCRIPTS, Package, catalog_command, describe, installed_modules, note_version
from evalrpc.harnesses.progress_bars import advance, read_bar
from evalrpc.harnesses.served import pointed_at
from evalrpc.harnesses.task_args import BOOLEAN, SEED, TABLE, TEXT, TaskArg, is_text
from evalrpc.v1.catalog_pb2 import HarnessInfo
from evalrpc.v1.jobs_pb2 import GPU_MODE_MODEL_PARALLEL, GPU_MODE_UNSPECIFIED, EvaluateRequest, GpuMode, Progress
from evalrpc.v1.results_pb2 import ModelResult

KIND: Final = "lm-eval"

_PACKAGE: Final = Package(title="lm-eval", name="lm_eval", oldest="0.4.10")
_CONFIG_NAME: Final = "lm-eval.yaml"
_COUNTS: Final = re.compile(
    r"\bWARNING +\[evaluator_utils:[0-9]+\] \[(?P<task>.{1,255}?)\] "
    r"Metrics were not scored on the same number of documents \((?P<counts>.{1,4096}?)\)\. Each"
)
"""What lm-eval says of a task whose metrics are of other documents each. Its results have the largest number for all."""
_COUNT: Final = re.compile(r"(?P<metric>.+?)=(?P<count>[0-9]{1,9})(?:, |\Z)")
_REQUESTS_LABEL = re.compile(r"(Running \w+ requests|Requesting API)?")
_INDEX_SCRIPT: Final = SCRIPTS / "lm_eval_index.py"
_MODULES: Final = (
    "lm_eval.__main__",
    "lm_eval._cli.run",
    "lm_eval.evaluator",
    "lm_eval.loggers",
    "lm_eval.tasks",
    "lm_eval.models",
    "datasets",
    "pytablewriter",
    "scipy.io",
    "scipy.stats",
    "threadpoolctl",
    "transformers.models.auto.tokenization_auto",
    "torch.backends.xnnpack",
    "torch.distributions",
)
"""What a run of any model imports by and by."""
_MODEL_MODULES: Final = {
    "hf": "huggingface",
    "hf-auto": "huggingface",
    "huggingface": "huggingface",
    "hf-multimodal": "hf_vlms",
    "local-completions": "openai_completions",
    "local-chat-completions": "openai_completions",
    "openai-completions": "openai_completions",
    "openai-chat-completions": "openai_completions",
}
"""Where the types of models are that have not their module's name."""
_CHAT_TYPES: Final = "chat-completions"
"""How the names of model types end that take chats only."""
_APIS: Final = frozenset({"completions", "anthropic", "litellm", "textsynth", "watsonx", "gguf", "ggml"})
"""Parts of the names of models that a server answers for: each of several processes would ask it everything."""
_TASK_ARGS: Final = {
    "apply_chat_template": TaskArg(
        "true, false, or the name of a template", lambda value: isinstance(value, bool) or is_text(value)
    ),
    "system_instruction": TEXT,
    "fewshot_as_multiturn": BOOLEAN,
    "seed": SEED,
    "metadata": TABLE,
}
"""What `task_args` may have: options of all versions, which are in the config file by the same names."""
_CHAT_OPTION: Final = "--apply_chat_template"
_SERVED_DEFAULTS: Final = {"num_concurrent": 32, "timeout": 3600}
"""Requests under way at once, and seconds. lm-eval's own are 1 and 300: it would ask one question after the other, and give up
those that wait for an engine that is busy or comes back."""
_CATALOG_SCRIPT: Final = """
import json, sys
import lm_eval.models
from lm_eval.api.registry import MODEL_REGISTRY
from lm_eval.tasks import TaskManager
tasks = TaskManager(include_path=json.loads(sys.argv[1])).all_tasks
print(json.dumps({"tasks": list(tasks), "models": list(MODEL_REGISTRY)}))
"""


class LmEvalHarness:
    """Runs `python -m lm_eval run` in the environment that the operator configured.

    Raises ConfigurationError for a cache of answers that does not tell models apart.
    """

    kind = KIND
    progress_words = lm_eval_family.PROGRESS_WORDS
    served_needs = ServedNeeds(
        api=frozenset({CHAT, COMPLETIONS}),
        arguments=frozenset({"model", "pretrained", "base_url", "tokenizer", "tokenizer_backend", "auth_token", "header"}),
        asks_again=True,
    )

    def __init__(self, settings: HarnessSettings) -> None:
        self.name = settings.name
        self._settings = settings
        if task_args.has_option(settings.args, "--use_cache", "-c"):
            raise ConfigurationError(
                f"setting harnesses.{self.name}.args: with --use_cache, lm-eval takes the answers of one model for those of "
                "another: leave it out"
            )

    def info(self) -> HarnessInfo:
        """Report which lm-eval is installed beside the interpreter."""
        return describe(self._settings, self.kind, _PACKAGE)

    def violations(self, request: EvaluateRequest) -> Iterable[FieldViolation]:
        """Yield what lm-eval's command line can't take."""
        yield from lm_eval_family.violations(request, _PACKAGE.title)
        yield from arguments.violations("model_args", request.model_args)
        yield from arguments.violations("gen_kwargs", request.gen_kwargs)
        yield from _model_args_violations(request)
        yield from task_args.violations(request, _TASK_ARGS, _PACKAGE.title, self._settings.args)
        yield from _chat_violations(request, self._settings.args)

    def unknown_task_args(self, _request: EvaluateRequest, /) -> Iterable[FieldViolation]:
        """Yield nothing: all tasks take the same."""
        return ()

    def command(self, run: Run) -> Command:
        """Build the command line. Model and generation arguments go into a file, which preserves every value."""
        config = self._config(run.request)
        preload = _preload(self._settings, run.request.model)
        return lm_eval_family.command(self._settings, run, self.gpu_mode(run), preload, _options(run), _CONFIG_NAME, config)

    def gpu_mode(self, run: Run) -> GpuMode.ValueType:
        """Return whether one process per GPU runs, or one that sees all."""
        is_api = not _APIS.isdisjoint(name_parts(run.request))
        return gpu_mode(run, GPU_MODE_MODEL_PARALLEL if is_api else GPU_MODE_UNSPECIFIED)

    def warnings(self, request: EvaluateRequest, /) -> Iterable[str]:
        """Yield a warning for GPUs that an engine does not use, or that it lacks."""
        return gpu_warnings(request)

    def with_served_model(self, request: EvaluateRequest, served: ServedEndpoint) -> EvaluateRequest:
        """Have the server asked for completions where it knows log-probabilities, and so can do every task, and otherwise for
        chats. By default many requests are under way at once, and none is given up while the engine is busy."""
        if LOG_PROBABILITIES in served.api or CHAT not in served.api:
            path, tokenizer = "completions", {"tokenizer": served.model, "tokenizer_backend": "huggingface"}
        else:
            path, tokenizer = "chat/completions", {}
        type_of_model = f"local-{path.replace('/', '-')}"
        pointed = pointed_at(request, type_of_model, model=served.name, base_url=f"{served.url}/{path}", **tokenizer)
        for name, value in _SERVED_DEFAULTS.items():
            if name not in request.model_args.fields:
                pointed.model_args[name] = value
        return pointed

    def catalog_command(self) -> Command:
        """Query lm-eval's registries: tasks, groups and tags, and the names of models with their aliases."""
        return catalog_command(self._settings, _CATALOG_SCRIPT, _preload(self._settings))

    def read_progress(self, line: str, progress: Progress) -> bool:
        """Read a line of lm-eval's log or an update of its progress bars, one for every kind of request."""
        before = Progress()
        before.CopyFrom(progress)
        lm_eval_family.read_phase(line, progress)
        if progress.phase == Progress.PHASE_EVALUATING:
            _read_requests_bar(line, progress)
        return progress != before

    def read_results(self, run: Run, exit_status: Exit, log_tail: list[str]) -> Mapping[str, ModelResult]:
        """Read and verify the results: lm-eval exits with 0 even if it could not write them."""
        results = lm_eval_family.read_good_results(run, exit_status, log_tail, _PACKAGE.title)
        warn(results, _set_counts_in_log(results.values(), log_tail))
        note_version(self._settings, _PACKAGE, results)
        return results

    def _config(self, request: EvaluateRequest) -> bytes:
        """Return as YAML what the command line accepts only once (`--include_path`) or would misread."""
        entries = {
            "include_path": [str(folder) for folder in self._settings.include_path],
            "model_args": plain_arguments(request.model_args),
            "gen_kwargs": plain_arguments(request.gen_kwargs),
        }
        given = {**{key: value for key, value in entries.items() if value}, **lm_eval_family.task_args(request)}
        return "".join(f"{key}: {yaml_text(value)}\n" for key, value in given.items()).encode()


def _preload(settings: HarnessSettings, model: str = "") -> Preload:
    """Return what all runs of a model's type have in common; without one, those of all."""
    return Preload(
        harness=settings.name,
        program=(str(settings.python), "-m", "lm_eval"),
        module="lm_eval",
        modules=(*_MODULES, *installed_modules(settings, f"lm_eval.models.{_MODEL_MODULES.get(model, model)}")),
        script=_INDEX_SCRIPT,
    )


def _options(run: Run) -> Iterator[str]:
    yield "run"
    tasks = run.request.tasks
    yield f"--model={run.request.model}"
    # A single name would be read as a folder if the working directory has one of that name. lm-eval drops duplicates.
    yield f"--tasks={','.join(tasks if len(tasks) > 1 else [*tasks, *tasks])}"
    yield f"--output_path={run.output_dir}"
    if run.request.model.endswith(_CHAT_TYPES) and "apply_chat_template" not in run.request.task_args.fields:
        yield _CHAT_OPTION
    yield from lm_eval_family.options(run.request)


def _model_args_violations(request: EvaluateRequest) -> Iterator[FieldViolation]:
    for key in ("batch_size", "device"):
        if key in request.model_args.fields:
            yield FieldViolation(f"model_args.{key}", f"lm-eval passes it on already: use the request's own `{key}`")
    # lm-eval names the results folder after a model argument, so `..` would leave the output folder.
    for key, value in plain_arguments(request.model_args).items():
        if value == "..":
            yield FieldViolation(f"model_args.{key}", "must not be `..`")


def _chat_violations(request: EvaluateRequest, operators_args: Sequence[str]) -> Iterator[FieldViolation]:
    """Yield what contradicts itself, or the type of the model, in how the task is asked as a chat."""
    given = plain_arguments(request.task_args)
    takes_chats_only = request.model.endswith(_CHAT_TYPES)
    template = given.get("apply_chat_template", takes_chats_only or task_args.has_option(operators_args, _CHAT_OPTION))
    if template is False and takes_chats_only:
        field = task_args.field_of("apply_chat_template")
        yield FieldViolation(field, f"must not be false: models of the type {request.model} take chats only")
    elif given.get("fewshot_as_multiturn") is True and template is False:
        yield FieldViolation(task_args.field_of("fewshot_as_multiturn"), "needs `task_args.apply_chat_template`")


def _read_requests_bar(line: str, progress: Progress) -> None:
    bar = read_bar(line)
    if bar is None or not _REQUESTS_LABEL.fullmatch(bar.label):
        return
    progress.unit = "requests"
    advance(progress, bar)


def _set_counts_in_log(results: Iterable[ModelResult], log_tail: Iterable[str]) -> Iterator[str]:
    """Set of how many documents each metric is where the log says that they differ, and yield a warning for each such task."""
    said = (_COUNTS.search(strip_colours(line)) for line in log_tail)
    of_tasks = {match["task"]: dict(_COUNT.findall(match["counts"])) for match in said if match}
    for metric in (metric for result in results for metric in result.metrics if metric.task in of_tasks):
        count = of_tasks[metric.task].get(f"{metric.metric},{metric.filter}")
        if count is not None:
            metric.sample_count = int(count)
    for task, counts in of_tasks.items():
        each = ", ".join(f"{metric} of {count}" for metric, count in counts.items())
        yield shorten(f"metrics of task {task} are of other documents each, which groups take for all of them: {each}")
