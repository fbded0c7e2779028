"""Splits an attempt into harness runs: one for all tasks, or one per task in sequence, if the request asks for it.

output_dir/task-1/      output of the first task's run
output_dir/task-2/      output of the second task's run
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from evalrpc.harnesses.base import Command, Harness, Run, StepsHarness
from evalrpc.v1.jobs_pb2 import EvaluateRequest


def steps_of(run: Run) -> Sequence[Run]:
    """Return the harness runs of an attempt, in the order of the request's tasks."""
    tasks = run.request.tasks
    if not run.request.tasks_separately or len(tasks) == 1:
        return (run,)
    shared = EvaluateRequest()
    shared.CopyFrom(run.request)
    del shared.tasks[:]
    return [_step(run, shared, number, task) for number, task in enumerate(tasks, start=1)]


def command_of(harness: Harness, steps: Sequence[Run]) -> Command:
    """Build the command that runs the steps in sequence, in the environment and the folder of the first.

    Raises what `Harness.command` raises.
    """
    commands = commands_of(harness, steps)
    return replace(
        commands[0],
        further_steps=tuple(command.argv for command in commands[1:]),
        files=dict(chain.from_iterable(command.files.items() for command in commands)),
    )


def commands_of(harness: Harness, steps: Sequence[Run]) -> Sequence[Command]:
    """Build the command of each step. Raises what `Harness.command` raises."""
    return harness.commands(steps) if isinstance(harness, StepsHarness) else [harness.command(step) for step in steps]


def _step(run: Run, shared: EvaluateRequest, number: int, task: str) -> Run:
    request = EvaluateRequest(tasks=[task])
    request.MergeFrom(shared)
    name = f"task-{number}"  # a task's name may be too long for a file's, or have a meaning to a harness in a path
    return replace(run, request=request, attempt_dir=run.attempt_dir / name, output_dir=run.output_dir / name)
