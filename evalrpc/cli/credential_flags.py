"""The flags of TLS and of signing in. They stand before the name of a command or after it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_HELP: Final = {
    "tls_ca": "Trust these certificates of servers, as PEM. Default: EVALRPC_TLS_CA, else those that this machine trusts.",
    "tls_cert": "The certificate of the client, for mutual TLS. Default: EVALRPC_TLS_CLIENT_CERT.",
    "tls_key": "Its key. Default: EVALRPC_TLS_CLIENT_KEY.",
    "token_file": "Sign in with the token in this file. Default: the token in EVALRPC_TOKEN, else that of `evalrpc login`.",
}
_META_PREFIX: Final = "evalrpc.credentials."
"""Of the keys in click's dict for all contexts of a command line, so that a command needs no parameters for these flags."""


def credential_flags(*, hidden: bool = False) -> Callable[[FunctionT], FunctionT]:
    """Add the flags. `given_credentials` has what they say, the command does not get it."""

    def add(function: FunctionT) -> FunctionT:
        for name, text in reversed(_HELP.items()):
            function = click.option(
                f"--{name.replace('_', '-')}",
                name,
                metavar="FILE",
                expose_value=False,
                callback=_remember,
                hidden=hidden,
                help=text.replace("`", ""),
            )(function)
        return function

    return add


def given_credentials(context: click.Context) -> dict[str, Any]:
    """Return the arguments of a client that the flags gave."""
    keys = {name: f"{_META_PREFIX}{name}" for name in _HELP}
    return {name: context.meta[key] for name, key in keys.items() if key in context.meta}


def _remember(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value == "":
        raise click.BadParameter("is empty: name a file, or leave it out", context, parameter)
    if value is not None:
        context.meta[f"{_META_PREFIX}{parameter.name}"] = Path(value)
