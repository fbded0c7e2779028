"""lmms-eval, driven through its command line.

`model_args` become keyword arguments of lmms-eval's model class. So a client chooses which weights and which remote code are
loaded (`pretrained`, `trust_remote_code`), which addresses are called (`base_url`), and for some model classes which files are
written (`response_persistent_folder`). A key or value never becomes another argument, option or program, but a client is
trusted with whatever the server's account may read, write and reach.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from evalrpc.config import HarnessSettings
from evalrpc.config.engines import CHAT
from evalrpc.errors import FieldViolation
from evalrpc.harnesses import lm_eval_family, task_args
from evalrpc.harnesses.arguments import plain_arguments, yaml_text
from evalrpc.harnesses.base import Command, Exit, MediaLimits, Preload, Run, ServedEndpoint, ServedNeeds
from evalrpc.harnesses.gpu_modes import gpu_mode, gpu_warnings, is_above_one
from evalrpc.harnesses.installation import (
    SCRIPTS,
    Package,
    catalog_command,
    describe,
    installed_modules,
    note_version,
    question,
)
from evalrpc.harnesses.lmms_eval import arguments
from evalrpc.harnesses.lmms_eval.arguments import argument_string, is_one_argument, reads_as_other
from evalrpc.harnesses.lmms_eval.examples import correct_examples, is_simple
from evalrpc.harnesses.progress_bars import advance, read_bar
from evalrpc.harnesses.served import API_KEY, pointed_at
from evalrpc.harnesses.task_args import BOOLEAN, SEED, TEXT
from evalrpc.v1.catalog_pb2 import HarnessInfo
from evalrpc.v1.jobs_pb2 import GPU_MODE_DATA_PARALLEL, GPU_MODE_UNSPECIFIED, EvaluateRequest, GpuMode, Progress
from evalrpc.v1.results_pb2 import ModelResult

KIND: Final = "lmms-eval"

_PACKAGE: Final = Package(title="lmms-eval", name="lmms_eval", oldest="0.6.1")
_CONFIG_NAME = "lmms-eval.config"
_LISTINGS: Final = frozenset({"list", "list_groups", "list_tags", "list_subtasks"})
MAIN_SCRIPT: Final = SCRIPTS / "lmms_eval_main.py"
"""What runs lmms-eval, as `python -m lmms_eval` would."""
_MEDIA_SCRIPT: Final = SCRIPTS / "lmms_eval_media.py"
_MODULES: Final = ("lmms_eval.__main__", "lmms_eval.models.model_utils.gen_metrics", "pytablewriter")
"""What a run of any model imports by and by."""
_OF_OPENAI: Final = re.compile(r"o(?=[134])|gpt-(?=5)")
"""What is changed in the names of models: with `o1`, `o3`, `o4` or `gpt-5` anywhere in one, lmms-eval sends no temperature, and
the engine would sample."""
_JUDGE_NAMES: Final = (
    *("MODEL_VERSION", "GPT_EVAL_MODEL_NAME", "JUDGE_MODEL_VERSION", "JUDGE_MODEL_NAME", "OPENAI_JUDGE_MODEL"),
    *("OPENAI_API_MODEL", "MEGABENCH_OPEN_API_MODEL"),
)
"""The variables in which tasks look for the name of their judge."""
_JUDGE_CHATS: Final = ("OPENAI_API_URL", "LLM_JUDGE_URL")
"""The same of its address. Types of models look for theirs in `OPENAI_BASE_URL` and `OPENAI_API_BASE`, which are left out."""
_MODELS: Final = "lmms_eval.models"
_LAUNCHED: Final = frozenset({"vllm", "vllm_generate", "longvila"})
"""Types of models that refuse `data_parallel_size` in a single process: a launcher has to start one for each GPU."""
_TASK_ARGS: Final = {"force_simple": BOOLEAN, "system_instruction": TEXT, "seed": SEED}
"""What `task_args` may have: the options of all versions that work. None of its models has what `--apply_chat_template` asks
for, without which `--fewshot_as_multiturn` is refused."""
_CATALOG_SCRIPT: Final = """
import json, sys
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.tasks import TaskManager
tasks = TaskManager("ERROR", include_path=json.loads(sys.argv[1]) or None).all_tasks
print(json.dumps({"tasks": list(tasks), "models": MODEL_REGISTRY_V2.list_model_names()}))
"""


class LmmsEvalHarness:
    """Runs lmms-eval in the environment that the operator configured."""

    kind = KIND
    progress_words = lm_eval_family.PROGRESS_WORDS
    served_needs = ServedNeeds(
        api=frozenset({CHAT}),
        arguments=frozenset({"model", "model_version", "base_url", "api_key", "azure_openai"}),
        asks_again=True,
    )

    judge_api = frozenset({CHAT})

    def __init__(self, settings: HarnessSettings) -> None:
        self.name = settings.name
        self._settings = settings

    def info(self) -> HarnessInfo:
        """Report which lmms-eval is installed beside the interpreter."""
        return describe(self._settings, self.kind, _PACKAGE)

    def violations(self, request: EvaluateRequest) -> Iterable[FieldViolation]:
        """Yield what lmms-eval's command line can't take."""
        yield from lm_eval_family.violations(request, _PACKAGE.title)
        for index, task in enumerate(request.tasks):
            if task in _LISTINGS:
                yield FieldViolation(f"tasks[{index}]", "is lmms-eval's word for a listing and not a task")
        if not is_one_argument(request.output_dir):
            yield FieldViolation(
                "output_dir", "lmms-eval can't write to a folder with a comma or an unclosed quote in its path"
            )
        yield from _model_args_violations(request)
        yield from arguments.violations("gen_kwargs", request.gen_kwargs, nested=False)
        yield from task_args.violations(request, _TASK_ARGS, _PACKAGE.title, self._settings.args)
        if "system_instruction" in request.task_args.fields and not is_simple(request, self._settings):
            problem = "needs `task_args.force_simple` to be true: lmms-eval leaves it out of what it asks in chats"
            yield FieldViolation(task_args.field_of("system_instruction"), problem)

    def unknown_task_args(self, _request: EvaluateRequest, /) -> Iterable[FieldViolation]:
        """Yield nothing: all tasks take the same."""
        return ()

    def command(self, run: Run) -> Command:
        """Build the command line. Model and generation arguments go into a file, where their size is not limited."""
        config = self._config(run.request)
        preload = _preload(self._settings, run.request.model)
        return lm_eval_family.command(self._settings, run, self.gpu_mode(run), preload, _options(run), _CONFIG_NAME, config)

    def gpu_mode(self, run: Run) -> GpuMode.ValueType:
        """Return whether one process per GPU runs, or one that sees all."""
        copies = plain_arguments(run.request.model_args).get("data_parallel_size")
        is_launched = run.request.model in _LAUNCHED and is_above_one(copies)
        return gpu_mode(run, GPU_MODE_DATA_PARALLEL if is_launched else GPU_MODE_UNSPECIFIED)

    def warnings(self, request: EvaluateRequest, /) -> Iterable[str]:
        """Yield a warning for GPUs that an engine does not use, or that it lacks."""
        return gpu_warnings(request)

    def with_served_model(self, request: EvaluateRequest, served: ServedEndpoint) -> EvaluateRequest:
        """Have the server asked for chats, by a name that lmms-eval does not take for a model of OpenAI's."""
        return pointed_at(request, "openai", model_version=_name(served), base_url=served.url)

    def judge_variables(self, judge: ServedEndpoint) -> Mapping[str, str]:
        """Return all variables in which lmms-eval's tasks look for a judge. Of the address, most take `OPENAI_API_URL` for that
        of chats, and some for that of `/v1` above it: it is the former, and the gateway knows what the others make of it."""
        chats = f"{judge.url}/chat/completions"
        return {
            "API_TYPE": "openai",
            **dict.fromkeys(_JUDGE_NAMES, _name(judge)),
            **dict.fromkeys(_JUDGE_CHATS, chats),
            "JUDGE_BASE_URL": judge.url,
            "JUDGE_API_KEY": API_KEY,
        }

    def catalog_command(self) -> Command:
        """Query lmms-eval's registries: tasks, groups and tags, and the names of models with their aliases."""
        return catalog_command(self._settings, _CATALOG_SCRIPT, _preload(self._settings))

    def media_command(self, request: EvaluateRequest, task: str, doc_ids: Sequence[int], limits: MediaLimits) -> Command:
        """Have the task show its documents as it has shown them to the model."""
        order = {
            "task": task,
            "model": request.model,
            "include_path": [str(folder) for folder in self._settings.include_path],
            "doc_ids": list(doc_ids),
            "main": str(MAIN_SCRIPT),
            **limits._asdict(),
        }
        return question(self._settings, _MEDIA_SCRIPT.read_text(), json.dumps(order), _preload(self._settings))

    def read_progress(self, line: str, progress: Progress) -> bool:
        """Read a line of lmms-eval's log or an update of its progress bar."""
        before = Progress()
        before.CopyFrom(progress)
        lm_eval_family.read_phase(line, progress)
        if progress.phase <= Progress.PHASE_EVALUATING and "Responding" in line:
            _read_responding_bar(line, progress)
        return progress != before

    def read_results(self, run: Run, exit_status: Exit, log_tail: list[str]) -> Mapping[str, ModelResult]:
        """Read and verify the results: lmms-eval exits with 0 after most failures."""
        results = lm_eval_family.read_good_results(run, exit_status, log_tail, _PACKAGE.title)
        correct_examples(results, run, self._settings, _PACKAGE)
        note_version(self._settings, _PACKAGE, results)
        return results

    def _config(self, request: EvaluateRequest) -> bytes:
        """Return as YAML what the command line accepts only once (`--include_path`) or only up to 128 KiB."""
        folders = [str(folder) for folder in self._settings.include_path]
        entries = {
            "include_path": yaml_text(folders) if folders else "",
            "model_args": yaml_text(argument_string(request.model_args)) if request.model_args.fields else "",
            "gen_kwargs": yaml_text(argument_string(request.gen_kwargs)) if request.gen_kwargs.fields else "",
        }
        entries |= {key: yaml_text(value) for key, value in lm_eval_family.task_args(request).items()}
        return "".join(f"{key}: {text}\n" for key, text in entries.items() if text).encode()


def _preload(settings: HarnessSettings, model: str = "") -> Preload:
    """Return what all runs of a model's type have in common; without one, those of all."""
    return Preload(
        harness=settings.name,
        program=(str(settings.python), str(MAIN_SCRIPT)),
        module="lmms_eval",
        modules=(*_MODULES, *installed_modules(settings, f"{_MODELS}.simple.{model}", f"{_MODELS}.chat.{model}")),
        script=MAIN_SCRIPT,
    )


def _options(run: Run) -> Iterator[str]:
    yield f"--model={run.request.model}"
    yield f"--tasks={','.join(run.request.tasks)}"
    yield f"--output_path={run.output_dir}"
    yield "--timezone=UTC"
    yield "--verbosity=INFO"
    yield from lm_eval_family.options(run.request)


def _name(served: ServedEndpoint) -> str:
    """Return the name to ask for: as it is, where it is a vendor's own, which lmms-eval has to treat by its name. Others, such
    as `600` of a checkpoint, are never read as a number."""
    if served.is_own_name:
        return served.name
    name = _OF_OPENAI.sub(r"\g<0>_", served.name)
    return f"model_{name}" if reads_as_other(name) else name


def _model_args_violations(request: EvaluateRequest) -> Iterator[FieldViolation]:
    yield from arguments.violations("model_args", request.model_args, nested=True)
    for key, given in (("batch_size", True), ("device", bool(request.device))):
        if given and key in request.model_args.fields:
            yield FieldViolation(f"model_args.{key}", f"lmms-eval passes it on already: use the request's own `{key}`")
    # lmms-eval names the results folder after a model argument, so `..` would leave the output folder.
    if re.search(r"=\.\.(,|$)", argument_string(request.model_args)):
        yield FieldViolation("model_args", "a value must not be `..`")


def _read_responding_bar(line: str, progress: Progress) -> None:
    bar = read_bar(line)
    # With several processes, each reports its own share; the first represents all.
    if bar is None or "Responding" not in bar.label or re.search(r"\[rank (?!0\])", bar.label):
        return
    progress.phase = Progress.PHASE_EVALUATING
    progress.unit = "requests"
    advance(progress, bar)
