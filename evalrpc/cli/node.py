"""`evalrpc node`: the machines of several servers. Works on their database."""

import json
import os
from pathlib import Path
from typing import Any

import click

from evalrpc.cli.exit_codes import ExitCode, fail, reported, require_linux
from evalrpc.cli.output import print_json_text, print_line
from evalrpc.cli.setting_flags import setting_flags
from evalrpc.cli.suggestions import SuggestingGroup
from evalrpc.config import load_settings
from evalrpc.errors import ConfigurationError
from evalrpc.extras import missing


@click.group(cls=SuggestingGroup, short_help="Say that a machine is lost, with its runs.")
def node_command() -> None:
    """The machines of several servers on one PostgreSQL database."""


@node_command.command("lost")
@click.argument("host")
@setting_flags("store")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def lost_command(host: str, config: Path | None, as_json: bool, **flags: Any) -> None:
    """Say that the machine HOST is lost, so that its runs are, too.

    Jobs that ran on HOST are tried again on other machines, if they may be, or FAILED with RUN_LOST. Make sure first that
    nothing runs there any more: turn the machine off, or cut it off from the shared disk.
    """
    require_linux()
    with reported():
        store = load_settings(flags, os.environ, config).store
        if not store:
            raise ConfigurationError("setting store: say where the jobs are, as in --store postgresql://USER@HOST/DATABASE")
        try:
            from evalrpc.store.postgres.hosts import give_up_host
        except ModuleNotFoundError as error:
            fail(ExitCode.WRONG_CALL, missing(error))
        give_up_host(store, host)
    if as_json:
        print_json_text(json.dumps({"host": host}))
    else:
        print_line(f"the runs of {host} are given up; the scheduler tries them again, or fails them, shortly")
