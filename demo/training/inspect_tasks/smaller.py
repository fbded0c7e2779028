"""A task of the demo for inspect-ai."""

from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.scorer import match
from inspect_ai.solver import generate

DATA = Path(__file__).parents[1] / "data" / "smaller.jsonl"


@task
def demo_smaller() -> Task:
    """Ask which of two numbers is smaller."""
    fields = FieldSpec(input="question", target="answer", id="id")
    return Task(dataset=json_dataset(str(DATA), fields), solver=generate(), scorer=match())
