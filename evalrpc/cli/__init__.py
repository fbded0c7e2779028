"""The command line: `evalrpc serve` and the client commands for people and scripts.

Exit codes: 0 success; 1 the job failed or was cancelled, a compared metric is WORSE, or `doctor` found a problem; 2 the call
was invalid or refused; 3 the server can't be reached; 130 Ctrl-C.
"""

import os
from importlib import import_module
from typing import Final

import click

from evalrpc import __version__

_MODULES: Final = {
    "serve": "serve",
    "submit": "submit",
    "watch": "jobs",
    "watch-all": "jobs",
    "get": "jobs",
    "list": "jobs",
    "queue": "jobs",
    "cancel": "jobs",
    "delete": "jobs",
    "logs": "reading",
    "results": "reading",
    "metrics": "reading",
    "samples": "reading",
    "download": "reading",
    "history": "history",
    "compare": "compare",
    "tasks": "catalog",
    "models": "catalog",
    "harnesses": "catalog",
    "info": "catalog",
    "doctor": "doctor",
}


class _LazyGroup(click.Group):
    """Imports a command's module only when the command is used, so that none waits for another's imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands in the order of the help text."""
        del ctx
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        del ctx
        if cmd_name not in _MODULES:
            return None
        module = import_module(f"evalrpc.cli.{_MODULES[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--address", metavar="HOST:PORT", help="The server. Default: EVALRPC_ADDRESS, else 127.0.0.1:50051.")
@click.version_option(__version__, prog_name="evalrpc")
@click.pass_context
def main(context: click.Context, address: str | None) -> None:
    """Evaluate models on an evalrpc server: submit jobs, follow them, and fetch their results."""
    if context.invoked_subcommand != "serve":
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # keeps gRPC's own log lines out of our output
    context.obj = address
