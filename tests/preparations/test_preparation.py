"""What a preparation runs, for which folder, and where its result lies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalrpc.config import PreparationSettings
from evalrpc.errors import ConfigurationError
from evalrpc.jobs.model_arguments import model_argument
from evalrpc.preparations.preparation import PROGRAMS, Preparation, model_folder, place_of, with_model
from evalrpc.v1.jobs_pb2 import EvaluateRequest

COMMAND = ("merge", "{model}", "--to={output}")


def build(*command: str, **fields: Any) -> Preparation:
    return Preparation(PreparationSettings("merge", command or COMMAND, **fields))


def request_of(**model_args: Any) -> EvaluateRequest:
    request = EvaluateRequest(model="hf", tasks=["t"])
    request.model_args.update(model_args)
    return request


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model" / "shards").mkdir(parents=True)
    (tmp_path / "model" / "shards" / "0").write_text("weights")
    return tmp_path / "model"


def test_its_command_names_the_folders_and_the_programs_of_this_package(tmp_path: Path) -> None:
    preparation = build("python", "{merge_fsdp2}", "{model}", "--to={output}", env={"A": "1"}, working_dir=tmp_path)
    command = preparation.command(Path("/in {output}"), Path("/out"))
    assert command.argv == ("python", str(PROGRAMS["merge_fsdp2"]), "/in {output}", "--to=/out")
    assert (command.env, command.cwd) == ({"A": "1"}, tmp_path)
    assert PROGRAMS["merge_fsdp2"].is_file()


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (("merge", "{model}", "{out}"), r"\{out\} is unknown; there are: \{model\}, \{output\}, \{merge_fsdp2\}"),
        (("merge", "{model}"), r"must have \{output\}"),
        (("merge", "{output}"), r"must have \{model\}"),
        (("sh", "-c", "merge {model} {output}"), "would be read as code"),
        (("python3", "-c", "print('{model}')", "{output}"), "would be read as code"),
        (("ssh", "host", "merge", "{model}", "{output}"), "would be read as code"),
    ],
)
def test_a_command_that_can_be_none_is_refused_by_its_setting(command: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"setting preparations\.merge\.command: .*{problem}"):
        build(*command)


def test_an_empty_command_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must not be empty"):
        Preparation(PreparationSettings("merge", ()))


def test_the_first_argument_that_names_a_model_does(tmp_path: Path) -> None:
    assert model_argument(request_of(model="/b", pretrained="/a")) == "pretrained"
    assert model_argument(request_of(model="/b", pretrained=5, model_path="")) == "model"
    assert model_argument(request_of(dtype="auto", pretrained={"path": "/a"})) is None
    assert model_folder(request_of(model_path="models/../a"), tmp_path) == tmp_path / "a"
    assert model_folder(request_of(), tmp_path) is None


def test_only_that_argument_is_changed() -> None:
    request = request_of(pretrained="/a", tokenizer="/a", dtype="auto")
    changed = with_model(request, Path("/prepared"))
    assert dict(changed.model_args.items()) == {"pretrained": "/prepared", "tokenizer": "/a", "dtype": "auto"}
    assert request.model_args["pretrained"] == "/a"
    assert changed.tasks == request.tasks


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("/runs/one/checkpoint-5", ("one", "checkpoint-5")),
        ("/checkpoint-5", ("model", "checkpoint-5")),
        ("/", ("model", "model")),
        ('/a"b/c,trust_remote_code=True', ("a_b", "c_trust_remote_code_True")),
        ("/.../ä\n", ("model", "__")),
        (f"/{'x' * 200}/y", ("x" * 100, "y")),
    ],
)
def test_a_result_is_named_after_its_model_by_characters_that_mean_nothing_else(model: str, names: tuple[str, ...]) -> None:
    assert place_of("f1", Path(model)).parts == ("f1", *names)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: (model / "shards" / "0").write_text("other weights"),
        lambda model: (model / "shards" / "1").touch(),
        lambda model: (model / "shards" / "0").rename(model / "shards" / "1"),
        lambda model: (model / "shards" / "0").unlink(),
    ],
    ids=["a size", "a new file", "a name", "no file"],
)
def test_a_change_of_the_folder_changes_the_fingerprint(model: Path, change: Callable[[Path], object]) -> None:
    before = build().fingerprint(model, None)
    assert before == build().fingerprint(model, None)
    change(model)
    assert before != build().fingerprint(model, None)


def test_the_definition_the_program_and_the_account_are_part_of_the_fingerprint(model: Path, tmp_path: Path) -> None:
    script = tmp_path / "merge.py"
    script.touch()

    def fingerprints() -> list[str | None]:
        return [
            build().fingerprint(model, None),
            build().fingerprint(model, 200_000),
            build(env={"A": "1"}).fingerprint(model, None),
            build("other", *COMMAND[1:]).fingerprint(model, None),
            build("python3", "merge.py", *COMMAND[1:], working_dir=tmp_path).fingerprint(model, None),
        ]

    before = fingerprints()
    assert len({*before, None}) == 6
    script.write_text("new")
    assert [new == old for new, old in zip(fingerprints(), before, strict=True)] == [True, True, True, True, False]


def test_a_preparation_whose_program_is_missing_says_so(tmp_path: Path) -> None:
    assert build("true", *COMMAND[1:]).problem() == ""
    assert "no program merge:" in build().problem()
    (tmp_path / "merge").touch(0o755)
    assert build("./merge", *COMMAND[1:], working_dir=tmp_path).problem() == ""
    assert "install it or set preparations.merge.command" in build("./other", *COMMAND[1:], working_dir=tmp_path).problem()
