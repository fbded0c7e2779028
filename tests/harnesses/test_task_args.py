"""What each harness takes in `task_args`, what it refuses, and how its program is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from harness_cases import run_of

from evalrpc.config import HarnessSettings
from evalrpc.harnesses.base import Command, TaskArgsHarness
from evalrpc.harnesses.inspect_ai import task_arguments
from evalrpc.harnesses.inspect_ai.logs import Log
from evalrpc.harnesses.inspect_ai.tasks import task_functions
from evalrpc.harnesses.registry import build_harness
from evalrpc.testing.recorded_runs import request_of
from evalrpc.v1.jobs_pb2 import EvaluateRequest

MODELS = {"inspect-ai": "mockllm/model"}
TASKS = """
from inspect_ai import task

@task
def counted(count=1, /, other=2, *, third=3): ...

@task(name="plain name")
def plain(): ...

@task
def open_to_all(count=1, **rest): ...

@changing
@task
def decorated(): ...
"""


def harness(kind: str, **settings: Any) -> TaskArgsHarness:
    built = build_harness(HarnessSettings(kind, kind, **{"command": ("p", "{request_json}"), **settings}))
    assert isinstance(built, TaskArgsHarness)
    return built


def request(kind: str, *tasks: str, model: str = "", **task_args: Any) -> EvaluateRequest:
    return request_of(model=model or MODELS.get(kind, "dummy"), tasks=tasks or ("t",), task_args=task_args)


def refused(kind: str, args: tuple[str, ...] = (), model: str = "", **task_args: Any) -> dict[str, str]:
    """What is wrong with these arguments, by name."""
    built: Any = harness(kind, args=args)
    found = dict(built.violations(request(kind, model=model, **task_args)))
    assert all(field.startswith("task_args.") for field in found)
    return {field.removeprefix("task_args."): problem for field, problem in found.items()}


def command(kind: str, *tasks: str, model: str = "", task_args: dict[str, Any], **settings: Any) -> Command:
    built: Any = harness(kind, **settings)
    found: Command = built.command(run_of(request(kind, *tasks, model=model, **task_args)))
    return found


TAKEN: list[tuple[str, dict[str, Any]]] = [
    *(("lm-eval", {"apply_chat_template": value}) for value in (True, False, "tool_use")),
    ("lm-eval", {"apply_chat_template": True, "fewshot_as_multiturn": True}),
    ("lm-eval", {"fewshot_as_multiturn": False, "seed": 0, "metadata": {"lengths": [4096, 8192]}}),
    ("lm-eval", {"system_instruction": "--tasks=x\nSay: no"}),
    ("lmms-eval", {"force_simple": True, "system_instruction": "--tasks=x, say: no"}),
    ("lmms-eval", {"force_simple": False, "seed": 2**32 - 1}),
    ("inspect-ai", {"epochs": 3, "epochs_reducer": ["mean", "at_least_3"], "count": {"a": [None]}}),
    ("inspect-ai", {"epochs": 1, "epochs_reducer": "max"}),
    ("command", {"anything": 1, "a b": [2]}),
]


@pytest.mark.parametrize(("kind", "given"), TAKEN)
def test_what_a_harness_takes_is_not_refused(kind: str, given: dict[str, Any]) -> None:
    assert refused(kind, **given) == {}


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("lm-eval", {"epochs": 2}, "epochs", "lm-eval takes no such argument; it takes: apply_chat_template, system_instruction"),
    ("lm-eval", {"trust_me": 2}, "trust_me", "lm-eval takes no such argument"),
    ("lm-eval", {"apply_chat_template": 1}, "apply_chat_template", "must be true, false, or the name of a template"),
    ("lm-eval", {"apply_chat_template": " "}, "apply_chat_template", "must be true, false, or the name of a template"),
    ("lm-eval", {"system_instruction": ""}, "system_instruction", "must be a text that is not empty"),
    ("lm-eval", {"fewshot_as_multiturn": "yes"}, "fewshot_as_multiturn", "must be true or false"),
    ("lm-eval", {"fewshot_as_multiturn": True}, "fewshot_as_multiturn", "needs `task_args.apply_chat_template`"),
    ("lm-eval", {"metadata": "a=1"}, "metadata", "must be a table of values by name"),
    *(
        ("lm-eval", {"seed": seed}, "seed", "must be a whole number from 0 to 4294967295")
        for seed in (-1, 2**32, 0.5, True, [1])
    ),
    ("lmms-eval", {"apply_chat_template": True}, "apply_chat_template", "it takes: force_simple, system_instruction, seed"),
    (
        "lmms-eval",
        {"system_instruction": "x"},
        "system_instruction",
        "needs `task_args.force_simple` to be true: lmms-eval leaves",
    ),
    ("lmms-eval", {"force_simple": None}, "force_simple", "must be true or false"),
    *(
        ("inspect-ai", {"epochs": epochs}, "epochs", "must be a whole number from 1 to 10,000")
        for epochs in (0, 10_001, 1.5, "2")
    ),
    ("inspect-ai", {"epochs_reducer": "mean"}, "epochs_reducer", "needs `task_args.epochs`"),
    *(
        ("inspect-ai", {"epochs": 2, "epochs_reducer": name}, "epochs_reducer", "must be the name of a reducer")
        for name in ("", "--x", "mean,max", [], ["mean", 1], None)
    ),
    ("inspect-ai", {"epochs": 2, "epochs_reducer": "pass_at_3"}, "epochs_reducer", "pass_at_3 needs more than 2 epochs"),
    *(("inspect-ai", {name: 1}, name, "is not the name of an argument") for name in ("a b", "--x", "x=1", "1", "\u00e9", "")),
]


@pytest.mark.parametrize(("kind", "given", "name", "problem"), REFUSED)
def test_what_a_harness_can_not_take_is_refused_with_what_it_takes(
    kind: str, given: dict[str, Any], name: str, problem: str
) -> None:
    found = refused(kind, **given)
    assert list(found) == [name]
    assert problem in found[name]


def test_models_that_take_chats_only_are_asked_in_chats() -> None:
    chats = "local-chat-completions"
    assert list(refused("lm-eval", model=chats, apply_chat_template=False)) == ["apply_chat_template"]
    assert refused("lm-eval", model=chats, fewshot_as_multiturn=True) == {}
    assert "--apply_chat_template" in command("lm-eval", model=chats, task_args={"seed": 1}).argv
    named = command("lm-eval", model=chats, task_args={"apply_chat_template": "tool_use"})
    assert "--apply_chat_template" not in named.argv, "it would take the place of the name"
    assert b'apply_chat_template: "tool_use"' in named.files[Path("/d/lm-eval.yaml")]


@pytest.mark.parametrize(
    ("kind", "args", "given"),
    [
        ("lm-eval", ("--apply_chat_template",), {"apply_chat_template": False}),
        ("lm-eval", ("--system_instruction=x",), {"system_instruction": "y"}),
        ("lmms-eval", ("--seed", "1"), {"seed": 2}),
        ("inspect-ai", ("--epochs=2",), {"epochs": 3}),
        ("inspect-ai", ("-T", "max-count=1", "-Tother=2"), {"max_count": 3, "other": 4}),
        ("inspect-ai", ("--task-config=/x.json",), {"count": 3}),
    ],
)
def test_what_the_operators_command_line_says_is_the_operators(kind: str, args: tuple[str, ...], given: dict[str, Any]) -> None:
    problem = "is the operator's choice for this harness (`args`): leave it out"
    assert refused(kind, args, **given) == dict.fromkeys(given, problem)


def test_the_operators_command_line_may_be_what_an_argument_needs() -> None:
    assert refused("lm-eval", ("--apply_chat_template",), fewshot_as_multiturn=True) == {}
    assert refused("lmms-eval", ("--force_simple",), system_instruction="x") == {}


def test_lm_eval_reads_them_from_its_config_file() -> None:
    given = {
        "apply_chat_template": False,
        "system_instruction": "a: b",
        "fewshot_as_multiturn": False,
        "seed": 7,
        "metadata": {},
    }
    found = command("lm-eval", task_args=given)
    assert found.files[Path("/d/lm-eval.yaml")].decode().splitlines() == [
        "apply_chat_template: false",
        "fewshot_as_multiturn: false",
        "metadata: {}",
        "seed: [7, 7, 7, 7]",
        'system_instruction: "a: b"',
    ]
    assert found.argv[4:] == (
        *("--model=dummy", "--tasks=t,t", "--output_path=/d/out", "--log_samples"),
        "--config=/d/lm-eval.yaml",
    )


def test_lmms_eval_reads_them_from_its_config_file() -> None:
    found = command("lmms-eval", task_args={"force_simple": True, "system_instruction": "a: b", "seed": 7})
    ((_, content),) = found.files.items()
    assert content == b'force_simple: true\nseed: [7, 7, 7, 7]\nsystem_instruction: "a: b"\n'


def test_inspect_gets_those_of_the_tasks_by_a_file_and_its_own_as_options(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    given = {"epochs": 2, "epochs_reducer": ["mean", "max"], "other": {"x": [1, 0.5, None]}, "count": "--epochs=9"}
    found = command("inspect-ai", "counted", task_args=given, include_path=(tmp_path,))
    assert found.argv[-3:] == ("--display=plain", "--epochs=2", "--epochs-reducer=mean,max")
    assert "--task-config=/d/task.json" in found.argv
    assert json.loads(found.files[Path("/d/task.json")]) == {"count": "--epochs=9", "other": {"x": [1, 0.5, None]}}


def test_the_parameters_of_a_task_are_those_of_its_function(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    assert {name: function.parameters for name, function in task_functions([tmp_path]).items()} == {
        "counted": frozenset({"count", "other", "third"}),
        "plain name": frozenset(),
        "open_to_all": None,
        "decorated": None,
    }


@pytest.mark.parametrize(
    ("tasks", "unknown"),
    [
        (("counted",), "the tasks take: count, other, third"),
        (("plain name",), "the tasks take none"),
        (("counted", "plain name"), "the tasks take: count, other, third"),
        (("counted", "open_to_all"), ""),
        (("decorated",), ""),
        (("of no file",), ""),
    ],
)
def test_an_argument_that_no_task_takes_is_refused_with_what_they_take(
    tmp_path: Path, tasks: tuple[str, ...], unknown: str
) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    found = list(
        harness("inspect-ai", include_path=(tmp_path,)).unknown_task_args(request("inspect-ai", *tasks, x=1, epochs=2))
    )
    assert [field for field, _ in found] == (["task_args.x"] if unknown else [])
    assert all(
        problem == f"no task of the request takes it; inspect-ai takes: epochs, epochs_reducer; {unknown}"
        for _, problem in found
    )


def test_an_argument_that_some_tasks_did_not_take_is_a_warning() -> None:
    taken = {"a": ["count"], "b": [], "c": []}
    headers = {name: {"eval": {"task_args": dict.fromkeys(names, 1)}} for name, names in taken.items()}
    logs = {name: Log(Path("x"), frozenset({name}), "success", "", header, None) for name, header in headers.items()}
    found = task_arguments.ignored(request("inspect-ai", count=1, epochs=2), logs)
    assert list(found) == ["task_args: count was not taken by: b, c"]


def test_a_program_that_reads_no_request_takes_none() -> None:
    built: Any = build_harness(HarnessSettings("nightly", "command", command=("p", "{model}")))
    ((field, problem),) = built.violations(request("command", a=1))
    assert (field, problem) == (
        "task_args",
        "must be empty: the command of harness nightly reads no request, for want of {request_json}",
    )
    found = command("command", task_args={"a": [1]})
    assert json.loads(found.files[Path("/d/request.json")])["task_args"] == {"a": [1]}
