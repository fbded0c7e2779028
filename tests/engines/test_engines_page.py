"""The engines that docs/engines.md gives as examples can be configured, and run as it says."""

import re
from pathlib import Path

import pytest

from evalrpc.config import EngineSettings, Settings, load_settings
from evalrpc.engines.definition import EngineDefinition
from evalrpc.engines.endpoints import endpoint_problem
from evalrpc.engines.soundness import require_sound
from evalrpc.v1.jobs_pb2 import ServedModel

PAGE = Path(__file__).parents[2] / "docs" / "engines.md"


@pytest.fixture
def engines(tmp_path: Path) -> dict[str, EngineSettings]:
    return dict(settings_of_page(tmp_path).engines)


def settings_of_page(folder: Path) -> Settings:
    tables = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    secret = "[secrets.OPENAI_API_KEY]\nowners = ['*']\nvariable = 'OPENAI_API_KEY'\n"
    (folder / "evalrpc.toml").write_text("\n".join((*tables, secret)))
    return load_settings({}, {}, folder / "evalrpc.toml")


def test_its_engines_can_be_configured(engines: dict[str, EngineSettings]) -> None:
    assert set(engines) == {"vllm", "sglang", "transformers"}
    for engine in engines.values():
        require_sound(engine)


def test_its_endpoint_can_be_configured(tmp_path: Path) -> None:
    (endpoint,) = settings_of_page(tmp_path).endpoints.values()
    assert (endpoint.secrets, endpoint_problem(endpoint)) == (("OPENAI_API_KEY",), "")


def test_its_engines_are_told_the_model_the_port_and_the_arguments(engines: dict[str, EngineSettings]) -> None:
    served = ServedModel(model="/ckpt/step_600", num_gpus=2)
    served.args.update({"max_model_len": 8192, "dtype": "float16"})
    vllm, transformers = (EngineDefinition(engines[name]) for name in ("vllm", "transformers"))
    assert vllm.command(served, 8000).argv[1:] == (
        *("serve", "/ckpt/step_600", "--served-model-name", "step_600", "--host", "127.0.0.1", "--port", "8000"),
        *("--tensor-parallel-size", "2", "--max-model-len", "8192", "--dtype", "float16"),
    )
    assert transformers.asked_name(served) == "/ckpt/step_600"
