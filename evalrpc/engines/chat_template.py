"""Renders the chat template of a model's folder: `python -m evalrpc.engines.chat_template FOLDER`

A template is a program of whoever made the model, and the folder may be named by a client. So it is rendered in a sandbox, by a
process of its own that may take little time and memory.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from evalrpc.files.regular import read_named_file

CHAT: Final = ({"role": "user", "content": "The capital of France is"},)
"""What is rendered, as a chat that the model is to answer."""

_CONFIG: Final = "tokenizer_config.json"
_TEMPLATE: Final = "chat_template.jinja"
_SECONDS: Final = 10
_MEMORY_BYTES: Final = 1 << 30
_MAX_RENDERED_BYTES: Final = 64 << 10


def rendered_chat(folder: Path) -> str:
    """Return CHAT as a model's folder renders it; empty if it has no template, or one that can't be rendered. Blocks."""
    command = (sys.executable, "-P", "-m", __name__, str(folder))
    try:
        result = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    text = result.stdout.decode(errors="replace") if result.returncode == 0 else ""
    return text if len(text) <= _MAX_RENDERED_BYTES else ""


def main() -> int:
    """Print the chat, and nothing else."""
    for kind, most in ((resource.RLIMIT_CPU, _SECONDS), (resource.RLIMIT_AS, _MEMORY_BYTES)):
        resource.setrlimit(kind, (most, most))
    folder = Path(sys.argv[1])
    config = json.loads(read_named_file(folder / _CONFIG))
    source = read_named_file(folder / _TEMPLATE).decode() if (folder / _TEMPLATE).exists() else _default_template(config)
    sys.stdout.write(_render(source, config))
    return 0


def _default_template(config: Mapping[str, Any]) -> str:
    """Return the template of a folder that has several, or one, in its configuration. Raises KeyError without any."""
    found = config["chat_template"]
    if isinstance(found, str):
        return found
    return str({each["name"]: each["template"] for each in found}["default"])


def _render(source: str, config: Mapping[str, Any]) -> str:
    """Render the chat as Transformers does."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=["jinja2.ext.loopcontrols"]
    )
    tokens = {name: _text(value) for name, value in config.items() if name.endswith("_token")}
    return environment.from_string(source).render(messages=list(CHAT), add_generation_prompt=True, **tokens)


def _text(token: Any) -> str:
    return str(token.get("content", "") if isinstance(token, dict) else token or "")


if __name__ == "__main__":
    sys.exit(main())
