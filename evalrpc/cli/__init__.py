"""The command line: `evalrpc serve` and the client commands for people and scripts. `exit_codes` has the exit codes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

import click

from evalrpc import __version__
from evalrpc.cli.credential_flags import credential_flags
from evalrpc.cli.suggestions import SuggestingGroup, did_you_mean
from evalrpc.printable import printable

_MODULES: Final = {
    "serve": "serve",
    "submit": "submit",
    "rerun": "rerun",
    "watch": "jobs",
    "wait": "wait",
    "watch-all": "jobs",
    "get": "jobs",
    "list": "jobs",
    "queue": "jobs",
    "pause": "operations",
    "resume": "operations",
    "cordon": "operations",
    "uncordon": "operations",
    "engines": "engines",
    "cancel": "ending",
    "update": "jobs",
    "delete": "ending",
    "logs": "reading",
    "results": "reading",
    "metrics": "reading",
    "samples": "samples",
    "media": "samples",
    "download": "reading",
    "follow": "follow",
    "export": "export",
    "mcp": "mcp",
    "history": "history",
    "compare": "compare",
    "flips": "flips",
    "plan": "plan",
    "suites": "suites",
    "submit-suite": "submit_suite",
    "suite-runs": "suites",
    "suite": "suites",
    "watch-suite": "suites",
    "wait-suite": "suites",
    "cancel-suite": "suites",
    "baseline": "baseline",
    "tasks": "catalog",
    "models": "catalog",
    "harnesses": "catalog",
    "info": "catalog",
    "whoami": "whoami",
    "token": "token",
    "audit": "audit",
    "doctor": "doctor",
    "policy": "policy",
    "login": "login",
    "logout": "login",
    "backup": "backup",
    "restore": "backup",
    "migrate": "migrate",
    "node": "node",
}


class _LazyGroup(SuggestingGroup):
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
        if cmd_name != "serve":
            _silence_grpc()  # before gRPC is imported
        module = import_module(f"evalrpc.cli.{_MODULES[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes."""
        del ctx
        exit_codes = import_module("evalrpc.cli.exit_codes")
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code.value), f"{code.text[0].upper()}{code.text[1:]}.") for code in exit_codes.ExitCode])

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the arguments before the command's name. Raises click.ClickException with a printable message."""
        with _printable_messages():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse the rest and run the command. Raises click.ClickException with a printable message."""
        with _printable_messages():
            return super().invoke(ctx)


@contextmanager
def _printable_messages() -> Iterator[None]:
    """Make printable what click says about arguments, which a script may have from anywhere, and each a single sentence."""
    try:
        yield
    except click.NoSuchOption as error:
        suggestion = did_you_mean(error.option_name, error.possibilities or ())
        message = f"No such option {error.option_name!r}{suggestion}"
        raise click.UsageError(printable(message), error.ctx) from error
    except click.exceptions.NoArgsIsHelpError:  # its message is the help, which has lines
        raise
    except click.ClickException as error:
        vars(error)["message"] = printable(error.message)
        raise


def _silence_grpc() -> None:
    """Keep gRPC's own log lines out of our output."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="Use the server at this address. Default: EVALRPC_ADDRESS, else 127.0.0.1:50051.",
)
@credential_flags()
@click.version_option(__version__, prog_name="evalrpc")
@click.pass_context
def main(context: click.Context, address: str | None) -> None:
    """Evaluate models on an evalrpc server: submit jobs, follow them, and fetch their results."""
    context.obj = address
