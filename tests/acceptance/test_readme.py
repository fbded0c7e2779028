"""Every command that the README and the pages for users name exists. That the slow ones work is what `.ci/run` shows."""

import re
from pathlib import Path

import click
import pytest

from evalrpc.cli import main
from evalrpc.v1.evaluation_service_pb2 import DESCRIPTOR

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()

PAGES = "\n".join(
    [
        README,
        *(
            (ROOT / f"docs/{name}.md").read_text()
            for name in ("command-line", "jobs", "operating", "python", "suites", "training")
        ),
    ]
)
CODE = "\n".join([*re.findall(r"^    .*$", PAGES, re.MULTILINE), *re.findall(r"`[^`\n]+`", PAGES)])


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def test_it_begins_with_the_two_commands() -> None:
    commands = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("    ")]
    assert commands[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("words", sorted(set(re.findall(r"\bmake ((?:[a-z-]+ ?)+)", CODE))))
def test_make_target_exists(words: str) -> None:
    assert set(words.split()) <= make_targets()


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"(?<![\w.-])evalrpc ([a-z]+(?:-[a-z]+)*)\b", CODE.replace("/evalrpc", " evalrpc"))))
)
def test_command_exists(command: str) -> None:
    assert command in main.list_commands(click.Context(main))


@pytest.mark.parametrize("line", [line.strip() for line in CODE.splitlines() if re.search(r"evalrpc [a-z-]+ .*--", line)])
def test_flags_exist(line: str) -> None:
    context = click.Context(main)
    name, subcommand = re.findall(r"evalrpc ([a-z-]+)(?: ([a-z]+))?", line)[0]
    command = main.get_command(context, name)
    if isinstance(command, click.Group):
        command = command.get_command(context, subcommand)
    assert command is not None
    known = {name for parameter in command.params for name in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", line)) <= known


def test_the_table_has_every_call() -> None:
    service = DESCRIPTOR.services_by_name["EvaluationService"]
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([A-Z]\w+)`", row)}
    assert named == set(service.methods_by_name)
