"""The command that serves agents."""

import asyncio

import click

from evalrpc import extras
from evalrpc.cli.connection import address_option
from evalrpc.cli.credential_flags import given_credentials
from evalrpc.cli.exit_codes import ExitCode, fail, reported
from evalrpc.client import AsyncEvalClient


@click.command(name="mcp", short_help="Offer the server to an agent, over MCP.")
@address_option
def mcp_command(address: str | None) -> None:
    """Offer tools to an agent over standard input and output: the Model Context Protocol. The agent's program starts it."""
    try:
        from evalrpc.mcp.server import run_stdio
    except ModuleNotFoundError as error:
        fail(ExitCode.WRONG_CALL, extras.missing(error, "mcp"))
    credentials = given_credentials(click.get_current_context())
    try:
        with reported():
            asyncio.run(run_stdio(lambda: AsyncEvalClient(address, **credentials)))
    except ValueError as error:
        fail(ExitCode.WRONG_CALL, str(error))
