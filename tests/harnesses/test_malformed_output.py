"""Any output folder gives a result or a clear error: every real tree read by every harness, and real trees after random
changes."""

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from example_count import example_count
from harness_cases import DATA, run_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalrpc.config import HarnessSettings, Settings
from evalrpc.harnesses.base import Harness
from evalrpc.harnesses.registry import build_harnesses
from evalrpc.testing.recorded_runs import judge, log_of, request_of

KINDS = ("lmms-eval", "lm-eval", "inspect-ai", "command")
TREES = sorted(path.parent for path in DATA.glob("*/*/output"))
WITH_RESULTS = [tree for tree in TREES if any(tree.glob("output/**/*.json"))]
TASKS = ("tiny", "tiny_gen", "sums")


def harness_of(kind: str) -> Harness:
    table = HarnessSettings("nightly", kind, command=("program",), python="/none/bin/python")
    return build_harnesses(Settings(harnesses={"nightly": table}))["nightly"]


HARNESSES = {kind: harness_of(kind) for kind in KINDS}


def copy_of(tree: Path, folder: Path) -> Path:
    return Path(shutil.copytree(tree / "output", folder / "output"))


def judge_all(output: Path, log: list[str]) -> None:
    for harness in HARNESSES.values():
        for task in TASKS:
            judge(harness, run_of(request_of(model="dummy", tasks=[task]), output), log=log)


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.parent.name}/{tree.name}")
def test_every_real_tree_is_a_result_or_a_failure_for_every_harness(tree: Path, tmp_path: Path) -> None:
    judge_all(copy_of(tree, tmp_path), log_of(tree))


def nested(depth: int) -> object:
    value: object = []
    for _ in range(depth):
        value = [value]
    return value


ODD_VALUES = (
    *(None, True, 0, -1, 0.5, math.nan, math.inf, -math.inf, 1e308, 10**400, -(2**63)),
    *("", "N/A", "1.5", "\ud800", "\0", "../../x", "x" * 100_000, "ünï😀"),
    *([], {}, [[]], [None], {"": {}}, {"a": {"b": [1]}}, ["x"] * 1000, nested(500)),
)
ODD_KEYS = ("", ",", "acc,", ",none", "acc_stderr", "_stderr,none", "alias", "x" * 100_000, "\ud800", "results", "metrics")


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container with each of its keys or indices."""
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield document, key
        yield from places(document[key])


def replace_value(container: Any, key: Any, odd: Any) -> None:
    container[key] = copy.deepcopy(odd)


def remove(container: Any, key: Any, odd: Any) -> None:
    del container[key]


def add_beside(container: Any, key: Any, odd: Any) -> None:
    if isinstance(container, dict):
        container[ODD_KEYS[len(repr(odd)) % len(ODD_KEYS)]] = copy.deepcopy(container[key])
    else:
        container.insert(0, copy.deepcopy(odd))


def duplicate(container: Any, key: Any, odd: Any) -> None:
    if isinstance(container, list):
        container.extend([container[key]] * 50)
    else:
        container.update({f"{key} {number}": container[key] for number in range(50)})


CHANGES: tuple[Callable[[Any, Any, Any], None], ...] = (replace_value, remove, add_beside, duplicate)


def change_document(document: Any, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 4))):
        found = list(places(document))
        if not found:
            return
        container, key = data.draw(st.sampled_from(found))
        data.draw(st.sampled_from(CHANGES))(container, key, data.draw(st.sampled_from(ODD_VALUES)))


@pytest.mark.parametrize("tree", WITH_RESULTS, ids=lambda tree: f"{tree.parent.name}/{tree.name}")
@settings(deadline=None, max_examples=example_count(10), suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_real_document_with_wrong_values_anywhere(tree: Path, data: st.DataObject, tmp_path_factory: Any) -> None:
    output = copy_of(tree, tmp_path_factory.mktemp("changed"))
    path = data.draw(st.sampled_from(sorted(output.rglob("*.json"))))
    document = json.loads(path.read_text())
    change_document(document, data)
    path.write_text(json.dumps(document))
    judge_all(output, log_of(tree))


def change_bytes(content: bytes, data: st.DataObject) -> bytes:
    begin = data.draw(st.integers(0, len(content)))
    end = data.draw(st.sampled_from((begin, min(begin + 20, len(content)), len(content))))
    return (
        content[:begin]
        + data.draw(st.binary(max_size=8) | st.sampled_from((b"NaN", b"\xed\xa0\x80", b"}", b'"', b"[" * 9999)))
        + content[end:]
    )


@pytest.mark.parametrize("tree", WITH_RESULTS, ids=lambda tree: f"{tree.parent.name}/{tree.name}")
@settings(deadline=None, max_examples=example_count(10), suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_real_file_that_is_cut_off_or_overwritten_anywhere(tree: Path, data: st.DataObject, tmp_path_factory: Any) -> None:
    output = copy_of(tree, tmp_path_factory.mktemp("changed"))
    path = data.draw(st.sampled_from(sorted(output.rglob("*.json*"))))
    path.write_bytes(change_bytes(path.read_bytes(), data))
    judge_all(output, log_of(tree))
