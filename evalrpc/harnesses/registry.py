"""The kinds of harnesses: those of this package, and entry points of the group `evalrpc.harnesses` in any other."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from evalrpc.config import HarnessSettings, Settings
from evalrpc.errors import ConfigurationError
from evalrpc.harnesses import command, lm_eval
from evalrpc.harnesses.base import Harness
from evalrpc.harnesses.inspect_ai import harness as inspect_ai
from evalrpc.harnesses.lmms_eval import harness as lmms_eval

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP: Final = "evalrpc.harnesses"
"""An entry point's name is the kind. It loads a callable that builds a Harness from its HarnessSettings."""

_KINDS: Final[Mapping[str, Callable[[HarnessSettings], Harness]]] = {
    command.KIND: command.CommandHarness,
    inspect_ai.KIND: inspect_ai.InspectHarness,
    lm_eval.KIND: lm_eval.LmEvalHarness,
    lmms_eval.KIND: lmms_eval.LmmsEvalHarness,
}


def build_harnesses(settings: Settings) -> dict[str, Harness]:
    """Build every configured harness, by name. Raises ConfigurationError for an unknown kind or invalid settings."""
    return {name: build_harness(harness) for name, harness in settings.harnesses.items()}


def build_harness(settings: HarnessSettings) -> Harness:
    """Build one harness. Raises what `build_harnesses` raises."""
    if settings.kind in _KINDS:
        return _KINDS[settings.kind](settings)
    from importlib.metadata import entry_points  # which no process loads that reads for a harness of this package

    plugins = {plugin.name: plugin for plugin in entry_points(group=ENTRY_POINT_GROUP)}
    if settings.kind not in plugins:
        known = ", ".join(sorted({*_KINDS, *plugins}))
        raise ConfigurationError(f"setting harnesses.{settings.name}.kind: {settings.kind} is unknown; there are: {known}")
    return _build_plugin(plugins[settings.kind], settings)


def _build_plugin(plugin: "EntryPoint", settings: HarnessSettings) -> Harness:
    where = f"setting harnesses.{settings.name}.kind: the plugin {plugin.name} ({plugin.value})"
    try:
        harness = plugin.load()(settings)
    except ConfigurationError:
        raise
    except Exception as error:  # third-party code, which may raise anything
        raise ConfigurationError(f"{where} can't be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(harness, Harness):
        raise ConfigurationError(f"{where} builds a {type(harness).__name__}, which is no Harness")
    return harness
