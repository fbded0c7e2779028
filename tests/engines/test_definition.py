"""What an engine's answers depend on: its settings, what the request says, and the files of the model."""

import sys
from pathlib import Path

import pytest

from evalrpc.config import EngineSettings
from evalrpc.engines.definition import EngineDefinition
from evalrpc.v1.jobs_pb2 import ServedModel

COMMAND = (sys.executable, "serve.py", "{model}", "--port", "{port}")


@pytest.fixture
def served(tmp_path: Path) -> ServedModel:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("1")
    served = ServedModel(engine="e", model=str(tmp_path / "model"))
    served.args.update({"size": "8"})
    return served


def fingerprint(served: ServedModel, command: tuple[str, ...] = COMMAND, **settings: object) -> str:
    given = {"args": {"size": "--size"}} | settings
    return EngineDefinition(EngineSettings("e", command, **given)).fingerprint(served)  # type: ignore[arg-type]


def test_settings_that_change_no_answer_leave_the_fingerprint(served: ServedModel) -> None:
    assert fingerprint(served)
    assert fingerprint(served) == fingerprint(served, idle_seconds=5.0, args={"size": "--size", "dtype": "--dtype"})


def test_what_the_program_gets_is_part_of_the_fingerprint(served: ServedModel, tmp_path: Path) -> None:
    others = (
        fingerprint(served, (*COMMAND, "--eager")),
        fingerprint(served, args={"size": "--another-size"}),
        fingerprint(served, env={"A": "1"}),
        fingerprint(served, secrets=("HF_TOKEN",)),
        fingerprint(served, working_dir=tmp_path),
    )
    assert len({fingerprint(served), *others}) == 1 + len(others)
    served.args.update({"size": "16"})
    assert fingerprint(served) not in others
