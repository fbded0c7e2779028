"""The harnesses: what turns a request into a command and an output directory into results."""

from collections.abc import Callable, Mapping
from typing import Final

from evalrpc.config import HarnessSettings, Settings
from evalrpc.errors import ConfigurationError
from evalrpc.harnesses import command, lmms_eval
from evalrpc.harnesses.base import Harness

_KINDS: Final[Mapping[str, Callable[[HarnessSettings], Harness]]] = {
    lmms_eval.KIND: lmms_eval.LmmsEvalHarness,
    command.KIND: command.CommandHarness,
}


def build_harnesses(settings: Settings) -> dict[str, Harness]:
    """Build every configured harness, by name. Raises ConfigurationError for an unknown kind or one that is set up wrongly."""
    return {name: _build(harness) for name, harness in settings.harnesses.items()}


def _build(settings: HarnessSettings) -> Harness:
    if settings.kind not in _KINDS:
        raise ConfigurationError(
            f"setting harnesses.{settings.name}.kind: {settings.kind} is unknown; there are: {', '.join(sorted(_KINDS))}"
        )
    return _KINDS[settings.kind](settings)
