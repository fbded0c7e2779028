"""The flags of the server's settings, as evalrpc.config declares them, and the one that names the config file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from evalrpc.config import SETTINGS
from evalrpc.config.declaration import BOOLEAN, Setting

CONFIG_FILE: Final = Path("evalrpc.toml")
"""Read if it is in the working directory and no other is named."""

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def setting_flags(*names: str) -> Callable[[FunctionT], FunctionT]:
    """Add `--config` and the flags of these settings, or of all. What was given reaches the command unparsed."""

    def add(function: FunctionT) -> FunctionT:
        function = _config_option(function)
        for name in reversed(names or tuple(SETTINGS)):
            function = _option(SETTINGS[name])(function)
        return function

    return add


def _option(setting: Setting) -> Callable[[FunctionT], FunctionT]:
    help_text = f"{setting.description} Default: {setting.default_text}.".replace("`", "")
    if setting.kind is BOOLEAN:
        negation = setting.flag.replace("--", "--no-", 1)
        return click.option(f"{setting.flag}/{negation}", default=None, help=help_text)
    if setting.kind.is_repeatable:
        return click.option(setting.flag, metavar=setting.metavar, help=help_text, multiple=True, callback=_none_if_not_given)
    return click.option(setting.flag, metavar=setting.metavar, help=help_text)


def _none_if_not_given(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...] | None:
    del context, parameter
    return values or None


_config_option: Final = click.option(
    "--config",
    metavar="FILE",
    envvar="EVALRPC_CONFIG",
    type=click.Path(path_type=Path),
    default=lambda: CONFIG_FILE if CONFIG_FILE.is_file() else None,
    help=f"Settings as TOML, which flags and variables override. Default: EVALRPC_CONFIG, else ./{CONFIG_FILE} if it is there.",
)
