"""An attempt as one run of the harness for all tasks, or as one after the other for each task, where the request asks for it.

output_dir/task-1/      what the run of the first task leaves
output_dir/task-2/      that of the second
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from evalrpc.harnesses.base import Command, Harness, Run, StepsHarness
from evalrpc.v1.job_pb2 import EvaluateRequest


def steps_of(run: Run) -> Sequence[Run]:
    """Return the runs of the harness that an attempt consists of, in the order of the request's tasks."""
    tasks = run.request.tasks
    if not run.request.tasks_separately or len(tasks) == 1:
        return (run,)
    shared = EvaluateRequest()
    shared.CopyFrom(run.request)
    del shared.tasks[:]
    return [_step(run, shared, number, task) for number, task in enumerate(tasks, start=1)]


def command_of(harness: Harness, steps: Sequence[Run]) -> Command:
    """Build the command that runs them one after the other, in the environment and the folder of the first.

    Raises what `Harness.command` raises.
    """
    commands = harness.commands(steps) if isinstance(harness, StepsHarness) else [harness.command(step) for step in steps]
    return replace(
        commands[0],
        further_steps=tuple(command.argv for command in commands[1:]),
        files=dict(chain.from_iterable(command.files.items() for command in commands)),
    )


def _step(run: Run, shared: EvaluateRequest, number: int, task: str) -> Run:
    request = EvaluateRequest(tasks=[task])
    request.MergeFrom(shared)
    name = f"task-{number}"  # a task's own name may be longer than a file's, or mean something to a harness in a path
    return replace(run, request=request, attempt_dir=run.attempt_dir / name, output_dir=run.output_dir / name)
