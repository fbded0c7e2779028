"""The contract of evalrpc/harnesses/base.py for every harness of this package, and plugins that are broken."""

import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from harness_cases import DATA

from evalrpc.config import HarnessSettings, Settings
from evalrpc.errors import ConfigurationError
from evalrpc.harnesses.registry import build_harness, build_harnesses
from evalrpc.testing.harness_contract import HarnessContract, Subject, require_rising
from evalrpc.testing.recorded_runs import follow, log_of

OPTIONS: dict[str, Any] = {"model_args": {"a": "b"}, "gen_kwargs": {"c": 1}, "limit": 5}
TWO_TASKS = DATA / "lmms_eval" / "ok_two_tasks"


class TestLmmsEval(HarnessContract):
    subject = Subject(
        "lmms-eval",
        TWO_TASKS,
        model="dummy",
        tasks=("tiny_b", "tiny_gen"),
        options={**OPTIONS, "task_args": {"seed": 7, "force_simple": True, "system_instruction": "Say: a,b"}},
        argument_options=frozenset({"--config"}),
    )


class TestCommand(HarnessContract):
    subject = Subject(
        "command",
        TWO_TASKS,
        model="dummy",
        tasks=("tiny_b", "tiny_gen"),
        options=OPTIONS,
        settings={"command": ("p", "{model}", "{output_dir}")},
    )


class TestLmEval(HarnessContract):
    subject = Subject(
        "lm-eval",
        DATA / "lm_eval" / "ok_dummy_random_name",
        model="dummy",
        tasks=("tiny_mc", "tiny_gen"),
        options={**OPTIONS, "task_args": {"seed": 7, "apply_chat_template": True, "metadata": {"lengths": [1, 2]}}},
        argument_options=frozenset({"--config"}),
    )


class TestInspectAi(HarnessContract):
    subject = Subject(
        "inspect-ai",
        DATA / "inspect" / "ok_json",
        model="mockllm/model",
        tasks=("tiny",),
        options={**OPTIONS, "task_args": {"epochs": 2, "epochs_reducer": ["mean", "max"], "count": 3}},
        task_files={"tasks.py": "@task\ndef tiny(count=1): ...\n"},
        argument_options=frozenset({"--model-config", "--generate-config", "--task-config", "--epochs", "--epochs-reducer"}),
    )


@pytest.mark.parametrize("kind", ["lmms-eval", "command", "lm-eval", "inspect-ai"])
def test_progress_rises_whatever_harness_wrote_the_log(kind: str) -> None:
    harness = build_harness(HarnessSettings("x", kind, command=("program",)))
    for folder in ("lmms_eval", "lm_eval", "inspect"):
        for case in (DATA / folder).iterdir():
            require_rising(follow(harness, log_of(case)))


def configured(kind: str) -> Settings:
    return Settings(harnesses={"x": HarnessSettings("x", kind)})


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        ("acme_evalrpc:Missing", "", "can't be loaded: AttributeError: module 'acme_evalrpc' has no attribute 'Missing'"),
        ("nosuchmodule:A", "", "can't be loaded: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("acme_evalrpc:A", "1/0", "can't be loaded: ZeroDivisionError: division by zero"),
        ("acme_evalrpc:A", "def A(: pass", "can't be loaded: SyntaxError: invalid syntax"),
        ("acme_evalrpc:A", "class A: pass", "can't be loaded: TypeError: A() takes no arguments"),
        ("acme_evalrpc:A", "def A(settings): return 1", "builds a int, which is no Harness"),
    ],
)
def test_a_broken_plugin_is_named(value: str, code: str, message: str, plugin: Callable[[str, str], None]) -> None:
    plugin(value, code)
    with pytest.raises(ConfigurationError) as caught:
        build_harnesses(configured("acme-eval"))
    assert caught.value.message.startswith(f"setting harnesses.x.kind: the plugin acme-eval ({value}) {message}")


def test_what_a_plugin_says_about_its_settings_is_passed_on(plugin: Callable[[str, str], None]) -> None:
    code = """
        from evalrpc.errors import ConfigurationError
        def build(settings):
            raise ConfigurationError("setting harnesses.x.command: is needed")
    """
    plugin("acme_evalrpc:build", textwrap.dedent(code))
    with pytest.raises(ConfigurationError, match=r"^setting harnesses\.x\.command: is needed$"):
        build_harnesses(configured("acme-eval"))


def test_a_broken_plugin_that_nobody_asked_for_is_left_alone(plugin: Callable[[str, str], None]) -> None:
    plugin("acme_evalrpc:A", "1/0")
    assert build_harnesses(configured("lm-eval"))["x"].kind == "lm-eval"


def test_an_unknown_kind_is_refused_with_all_there_are(plugin: Callable[[str, str], None]) -> None:
    plugin("acme_evalrpc:A", "")
    with pytest.raises(ConfigurationError, match="y is unknown; there are: acme-eval, command, inspect-ai, lm-eval, lmms-eval"):
        build_harnesses(configured("y"))
