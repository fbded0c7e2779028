"""What an engine's command line may be."""

import pytest

from evalrpc.config import EngineSettings
from evalrpc.engines.soundness import require_sound
from evalrpc.errors import ConfigurationError


@pytest.mark.parametrize(
    "command",
    [
        ("vllm", "serve", "{model}", "--port", "{port}", "--served-model-name", "{name}", "-tp", "{num_gpus}"),
        ("vllm", "serve", "{model}", "--port={port}"),
        ("sh", "-c", 'exec vllm serve "$1" --port {port}', "sh", "{model}"),
    ],
)
def test_a_command_line_with_a_model_and_a_port_is_one(command: tuple[str, ...]) -> None:
    require_sound(EngineSettings("vllm", command))


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ((), "engines.vllm.command: must not be empty"),
        (("vllm", "{port}"), r"engines.vllm.command: must have \{model\}"),
        (("vllm", "{model}"), r"engines.vllm.command: must have \{port\}"),
        (("vllm", "{model}", "{port}", "{gpus}"), r"engines.vllm.command: \{gpus\} is unknown; there are: \{model\}, \{port\}"),
        (("sh", "-c", "vllm serve {model} --port {port}"), "engines.vllm.command: .* read as code"),
        (("bash", "-ec", 'vllm "$1" --name {name}', "sh", "{model}", "{port}"), "engines.vllm.command: .* read as code"),
        (("ssh", "gpu-1", "vllm", "serve", "{model}", "--port", "{port}"), "engines.vllm.command: .* read as code"),
    ],
)
def test_what_is_none_is_refused_naming_its_key(command: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        require_sound(EngineSettings("vllm", command))


def test_a_name_of_the_model_has_known_placeholders() -> None:
    require_sound(EngineSettings("vllm", ("vllm", "{model}", "{port}"), model_name="{model}"))
    with pytest.raises(ConfigurationError, match=r"engines.vllm.model_name: \{port\} is unknown"):
        require_sound(EngineSettings("vllm", ("vllm", "{model}", "{port}"), model_name="{port}"))
