"""By what name harnesses and engines know a model."""

import pytest

from evalrpc.jobs.served_models import model_name
from evalrpc.v1.jobs_pb2 import ServedModel


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("acme/tiny", "tiny"),
        ("/models/run-7/step_600/", "step_600"),
        ("/models/Qwen2.5-VL", "Qwen2.5-VL"),
        ("/models/a folder, of=mine", "a_folder__of_mine"),
        ("/models/--trust-remote-code", "trust-remote-code"),
        ("/models/.hidden", "hidden"),
        ("..", "model"),
        ("/", "model"),
        ("/models/é", "_"),
    ],
)
def test_a_name_is_safe_for_any_program_and_as_a_files_name(model: str, name: str) -> None:
    assert model_name(ServedModel(model=model)) == name
