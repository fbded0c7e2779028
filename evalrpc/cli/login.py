"""`evalrpc login` and `evalrpc logout`: a token that is kept for a server."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from evalrpc.cli.connection import client_options, connect
from evalrpc.cli.exit_codes import ExitCode, fail, reported
from evalrpc.cli.output import print_json_text, print_line
from evalrpc.client import EvalClient
from evalrpc.client.core import server_address
from evalrpc.client.logins import forget_token, keep_token
from evalrpc.errors import UnimplementedError


@click.command(short_help="Keep a token for a server.")
@click.argument("server", metavar="[ADDRESS]", required=False)
@client_options
def login_command(server: str | None, address: str | None, as_json: bool) -> None:
    """Ask for a token, or read it from a pipe, try it, and keep it for this server, in a file for you alone.

    From then on every command and every Python client sends it to this ADDRESS, unless it is given another.
    """
    with _reported():
        target = server_address(server or address).target
    token = _read_token()
    with connect(server or address, token=token) as client:
        owner = _owner(client)
    with _reported():
        path = keep_token(target, token)
    if as_json:
        print_json_text(json.dumps({"address": target, "owner": owner, "file": str(path)}))
    else:
        print_line(f"signed in to {target}{owner and f' as {owner}'}; the token is kept in {path}")


@click.command(short_help="Forget the token for a server.")
@click.argument("server", metavar="[ADDRESS]", required=False)
@client_options
def logout_command(server: str | None, address: str | None, as_json: bool) -> None:
    """Forget the token that is kept for a server. It stays valid: only an operator of the server can revoke it."""
    with _reported():
        target = server_address(server or address).target
        was_kept = forget_token(target)
    if as_json:
        print_json_text(json.dumps({"address": target, "was_kept": was_kept}))
    else:
        print_line(f"signed out of {target}" if was_kept else f"no token is kept for {target}")


def _read_token() -> str:
    """Return what is typed, which nobody sees, or the first line of a pipe."""
    token = click.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    if not token.strip():
        fail(ExitCode.WRONG_CALL, "no token was given: `evalrpc token create`, on the server's machine, makes one")
    return str(token.strip())


def _owner(client: EvalClient) -> str:
    """Return whose the token is; nothing if the server is too old to say it. Raises UnauthenticatedError."""
    try:
        return client.get_caller().owner
    except UnimplementedError:
        client.get_server_info()
        return ""


@contextmanager
def _reported() -> Iterator[None]:
    """Report an address that makes no sense, and a file of tokens that can't be used."""
    try:
        with reported():
            yield
    except ValueError as error:
        fail(ExitCode.WRONG_CALL, str(error))
