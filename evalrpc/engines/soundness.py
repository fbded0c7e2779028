"""Whether an operator's engine can be one, as far as its settings show."""

from importlib.util import find_spec
from typing import Final

from evalrpc.config import EngineSettings
from evalrpc.errors import ConfigurationError
from evalrpc.extras import install_command
from evalrpc.harnesses.code_arguments import code_arguments
from evalrpc.harnesses.placeholders import placeholders_in, require_known

PLACEHOLDERS: Final = ("model", "port", "name", "num_gpus")
"""The names allowed in braces in an engine's command line."""

_IN_MODEL_NAME: Final = ("model", "name")
_NEEDED: Final = ("model", "port")
_OF_CLIENTS: Final = frozenset({"model", "name"})
"""The placeholders whose text a client may have written."""


def require_sound(settings: EngineSettings) -> None:
    """Raise ConfigurationError for an empty command, an unknown placeholder or one that is missing, and a client's text in a
    shell's code; and where the gateway's library is missing."""
    if find_spec("httptools") is None:  # which the gateway needs
        raise ConfigurationError(f"setting engines.{settings.name}: takes a library; install it: {install_command('engines')}")
    where, command = f"setting engines.{settings.name}.command", settings.command
    if not command:
        raise ConfigurationError(f"{where}: must not be empty")
    require_known(where, command, PLACEHOLDERS)
    for name in _NEEDED:
        if name not in placeholders_in(command):
            raise ConfigurationError(f"{where}: must have {{{name}}}")
    if placeholders_in(code_arguments(command)) & _OF_CLIENTS:
        raise ConfigurationError(
            f"{where}: {{model}} or {{name}} would be read as code, which any client could write: make it an argument of the "
            f"""code, as in ["sh", "-c", "exec program \\"$1\\" --port {{port}}", "sh", "{{model}}"]"""
        )
    require_known(f"setting engines.{settings.name}.model_name", (settings.model_name,), _IN_MODEL_NAME)
