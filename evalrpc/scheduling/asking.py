"""Questions that a harness answers in its own environment, by a short command whose last line is a JSON object. Blocks."""

import json
from collections.abc import Callable, Mapping
from typing import Final

from evalrpc.executors.base import CommandOutput, Executor
from evalrpc.harnesses.base import Command
from evalrpc.scheduling.log_tail import plain

_MAX_WORDS: Final = 500


class NoAnswerError(Exception):
    """A harness did not answer. Its text says why."""


def ask(executor: Executor, command: Command, timeout_seconds: float, mask_text: Callable[[str], str]) -> Mapping[str, object]:
    """Run a command, and return the object that it prints. `mask_text` masks secrets in what it says instead.

    Raises NoAnswerError where it says something else, and OSError where it can't be run, or takes too long.
    """
    output = executor.run_to_end(command, timeout_seconds)
    try:
        document = json.loads(output.stdout.strip().rpartition(b"\n")[2])
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise NoAnswerError(mask_text(_last_words(output)))
    return document


def _last_words(output: CommandOutput) -> str:
    last = next((plain(line) for line in reversed(output.stderr.splitlines()) if line.strip()), "it printed nothing")
    return last[:_MAX_WORDS]
