"""Which evaluations are identical, for the real harnesses over environments that are only folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalrpc.config import HarnessSettings, Settings
from evalrpc.harnesses.base import Harness
from evalrpc.harnesses.registry import build_harnesses
from evalrpc.server.cache_key import cache_key
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo, ServedModel

PACKAGES = {"lm-eval": "lm_eval", "lmms-eval": "lmms_eval", "inspect-ai": "inspect_ai"}


@pytest.fixture(params=[*PACKAGES, "command"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def harness(kind: str, tmp_path: Path) -> Harness:
    return build(kind, tmp_path)


def build(kind: str, folder: Path, **changes: Any) -> Harness:
    """Build a harness as an operator would set it up in this folder."""
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / "tasks.py").write_text(
        "from inspect_ai import task\n@task\ndef t():\n    pass\n@task\ndef u():\n    pass\n"
    )
    (folder / "eval.py").touch()
    set_version(folder, kind, "1.0")
    values = {
        "python": folder / "env" / "bin" / "python",
        "include_path": (folder / "tasks",),
        "working_dir": folder,
        "command": ("python3", "eval.py", "{request_json}", "{output_dir}", "{job_id}"),
    }
    settings = HarnessSettings("h", kind, **(values | changes))
    return build_harnesses(Settings(harnesses={"h": settings}))["h"]


def set_version(folder: Path, kind: str, version: str) -> None:
    packages = folder / "env" / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True, exist_ok=True)
    (folder / "env" / "bin").mkdir(exist_ok=True)
    (folder / "env" / "bin" / "python").touch(mode=0o755)
    for old in packages.iterdir():
        old.rmdir()
    (packages / f"{PACKAGES.get(kind, kind)}-{version}.dist-info").mkdir()


def key(harness: Harness, model_args: dict[str, Any] | None = None, **fields: Any) -> bytes:
    request = EvaluateRequest(**{"harness": "h", "model": "hf", "tasks": ["t"], **fields})
    request.model_args.update(model_args or {})
    job = JobInfo(request=request)
    digest = cache_key(harness, job)
    assert digest, job.warnings
    assert not job.warnings
    return digest


def test_equal_requests_are_identical_in_whatever_order_their_arguments_come(harness: Harness) -> None:
    args = {"pretrained": "acme/model", "dtype": "float32", "revision": "main"}
    assert key(harness, args) == key(harness, dict(reversed(args.items())))


def test_equal_requests_of_two_owners_are_not_identical(harness: Harness) -> None:
    request = EvaluateRequest(harness="h", model="hf", tasks=["t"])
    keys = {owner: cache_key(harness, JobInfo(request=request, owner=owner)) for owner in ("", "alice", "bob")}
    assert len(set(keys.values())) == 3
    assert keys["alice"] == cache_key(harness, JobInfo(request=request, owner="alice"))


def test_defaults_that_are_spelled_out_are_the_same_command() -> None:
    harness = build_harnesses(Settings(harnesses={"h": HarnessSettings("h", "lm-eval")}))["h"]
    assert key(harness) == key(harness, log_samples=True, num_gpus=1)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"tasks": ["t", "u"]},
        {"limit": 3},
        {"batch_size": "8"},
        {"num_gpus": 0},
        {"log_samples": False},
        {"task_args": {"seed": 1}},
        {"model_args": {"pretrained": "other"}},
        {"model_args": {"pretrained": "acme/model", "dtype": "float16"}},
    ],
    ids=str,
)
def test_what_changes_the_command_is_another_evaluation(harness: Harness, change: dict[str, Any]) -> None:
    assert key(harness, **({"model_args": {"pretrained": "acme/model"}} | change)) != key(harness, {"pretrained": "acme/model"})


def test_another_installed_version_is_another_evaluation(tmp_path: Path) -> None:
    for kind in PACKAGES:
        harness = build(kind, tmp_path)
        before = key(harness)
        assert before == key(harness)
        set_version(tmp_path, kind, "1.1")
        assert before != key(harness)


@pytest.mark.parametrize("change", [{"env": {"A": "b"}}, {"args": ("--more",)}, {"include_path": ()}], ids=str)
def test_what_the_operator_changes_is_another_evaluation(tmp_path: Path, change: dict[str, Any]) -> None:
    assert key(build("lm-eval", tmp_path)) != key(build("lm-eval", tmp_path, **change))


def test_a_changed_task_or_program_is_another_evaluation(tmp_path: Path) -> None:
    for kind, name in (("lm-eval", "tasks/tasks.py"), ("inspect-ai", "tasks/tasks.py"), ("command", "eval.py")):
        harness = build(kind, tmp_path)
        before = key(harness)
        (tmp_path / name).write_text((tmp_path / name).read_text() + "# changed\n")
        assert before != key(harness)


@pytest.mark.parametrize(
    "named",
    [
        lambda folder: {"pretrained": str(folder / "ckpt")},
        lambda folder: {"pretrained": "ckpt"},
        lambda folder: {"peft": str(folder / "ckpt" / "weights")},
    ],
    ids=["a folder", "from the working folder", "a file"],
)
def test_a_changed_model_on_this_machine_is_another_evaluation(
    harness: Harness, tmp_path: Path, named: Callable[[Path], dict[str, Any]]
) -> None:
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "weights").write_text("one")
    before = key(harness, named(tmp_path))
    assert before == key(harness, named(tmp_path))
    (tmp_path / "ckpt" / "weights").write_text("another")
    assert before != key(harness, named(tmp_path))


def test_a_path_deep_inside_the_arguments_is_one_too(tmp_path: Path) -> None:
    harness = build("lm-eval", tmp_path)
    args = {"adapters": {"list": ["x", str(tmp_path / "adapter")]}}
    before = key(harness, args)
    (tmp_path / "adapter").touch()
    assert before != key(harness, args)


def test_text_that_is_no_path_is_text(harness: Harness) -> None:
    assert key(harness, {"a": "no/such/path", "b": "x" * 5000, "c": 3})
    assert key(harness, {"a": "nul\0"})


@pytest.mark.parametrize("fields", [{"output_dir": "mine"}, {"tasks": ["absent"]}], ids=str)
def test_where_nothing_can_be_said_there_is_no_key_but_a_warning(tmp_path: Path, fields: dict[str, Any]) -> None:
    job = JobInfo(request=EvaluateRequest(**{"model": "hf", "tasks": ["t"], **fields}))
    assert cache_key(build("inspect-ai", tmp_path), job) == b""
    assert job.warnings[0].startswith("the cache is not used: ")


def test_a_served_model_has_no_key_but_a_warning(harness: Harness) -> None:
    job = JobInfo(request=EvaluateRequest(harness="h", tasks=["t"]))
    job.request.served_model.model = "acme/tiny"
    assert cache_key(harness, job) == b""
    assert list(job.warnings) == [
        "the cache is not used: nobody can tell whether the name of the served model stands for the same weights as before"
    ]


def test_a_model_of_too_many_files_has_no_key(tmp_path: Path) -> None:
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "circle").symlink_to(tmp_path / "ckpt")
    (tmp_path / "ckpt" / "another").symlink_to(tmp_path / "ckpt")
    job = JobInfo(request=EvaluateRequest(model="hf", tasks=["t"]))
    job.request.model_args.update({"pretrained": str(tmp_path / "ckpt")})
    assert cache_key(build("lm-eval", tmp_path), job) == b""
    assert "10000" in job.warnings[0]


def test_secrets_count_by_their_names(harness: Harness) -> None:
    assert key(harness, secrets=["A"]) == key(harness, secrets=["A"])
    assert len({key(harness), key(harness, secrets=["A"]), key(harness, secrets=["B"]), key(harness, secrets=["A", "B"])}) == 4


def test_another_judge_makes_another_evaluation(tmp_path: Path) -> None:
    """lmms-eval's command line says nothing of the judge, which its tasks find in their environment."""
    harness = build("lmms-eval", tmp_path)
    request = EvaluateRequest(model="hf", tasks=["t"], num_gpus=0)
    request.judge_model.CopyFrom(ServedModel(engine="vendor", model="acme/judge"))
    keys = [cache_key(harness, JobInfo(request=request), judge=judge) for judge in ("one", "other", "one")]
    assert all(keys)
    assert keys[0] == keys[2] != keys[1]
    job = JobInfo(request=request)
    assert cache_key(harness, job) == b""
    assert "the name of the judge" in job.warnings[0]
