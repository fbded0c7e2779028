"""Examples (`num_fewshot`) that lmms-eval counts and does not show: in chats it asks with a document's own text and media only.

Newer versions show those of tasks whose documents are text alone. That a model is asked in chats is seen by the module for them
that it has, which lmms-eval prefers to any other.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from evalrpc.config import HarnessSettings
from evalrpc.harnesses import task_args
from evalrpc.harnesses.arguments import plain_arguments
from evalrpc.harnesses.base import Run
from evalrpc.harnesses.failures import shorten
from evalrpc.harnesses.installation import Package, installed_modules, is_older
from evalrpc.results.layout import task_configs
from evalrpc.v1.jobs_pb2 import EvaluateRequest
from evalrpc.v1.results_pb2 import ModelResult

_OF_ALIAS: Final = re.compile(r"(?:_compatible)?(?:_chat|_api)?\Z")
"""What the other names of models have at their end."""
_OWN_TEXT: Final = ("doc_to_visual", "doc_to_messages")
"""Members of a task's definition, without which its documents are text alone."""
_FIRST_WITH_TEXT: Final = "0.7.3"
"""The first version that shows the examples of such tasks."""


def is_simple(request: EvaluateRequest, settings: HarnessSettings) -> bool:
    """Return whether no model is to be asked in chats, by the request or else the operator."""
    by_operator = task_args.has_option(settings.args, "--force_simple")
    return bool(plain_arguments(request.task_args).get("force_simple", by_operator))


def correct_examples(results: Mapping[str, ModelResult], run: Run, settings: HarnessSettings, package: Package) -> None:
    """Let the results say that no examples were shown, and warn, where that is so. Raises RunFailedError."""
    if is_simple(run.request, settings) or not _has_chats(run.request.model, settings):
        return
    shows_text = not is_older(settings, package, _FIRST_WITH_TEXT)
    for result in results.values():
        if any(task.num_fewshot for task in result.tasks):
            _correct(result, run, shows_text=shows_text)


def _correct(result: ModelResult, run: Run, *, shows_text: bool) -> None:
    configs = task_configs(result, run.output_dir)
    unshown = defaultdict[int, list[str]](list)
    for task in result.tasks:
        is_text = not any(name in configs.get(task.task, {}) for name in _OWN_TEXT)
        if task.num_fewshot and not (is_text and shows_text):
            unshown[task.num_fewshot].append(task.task)
            task.num_fewshot = 0
    for count, tasks in sorted(unshown.items()):
        why = "lmms-eval leaves examples out of what it asks in chats (`task_args.force_simple` asks without, if the model can)"
        result.warnings.append(shorten(f"num_fewshot: 0 shown and not {count}, since {why}: {', '.join(tasks)}"))


def _has_chats(model: str, settings: HarnessSettings) -> bool:
    names = {model, _OF_ALIAS.sub("", model, count=1)}
    return bool(installed_modules(settings, *(f"lmms_eval.models.chat.{name}" for name in sorted(names))))
