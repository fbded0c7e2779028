"""`evalrpc migrate`: the jobs of a data folder, from SQLite into PostgreSQL."""

import json
import os
from pathlib import Path
from typing import Any

import click

from evalrpc.cli.exit_codes import ExitCode, fail, reported, require_linux
from evalrpc.cli.output import print_json_text, print_line
from evalrpc.cli.setting_flags import setting_flags
from evalrpc.config import load_settings
from evalrpc.errors import ConfigurationError
from evalrpc.extras import missing


@click.command(short_help="Move the jobs of a data folder into PostgreSQL.")
@setting_flags("data_dir", "store")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def migrate_command(config: Path | None, as_json: bool, **flags: Any) -> None:
    """Copy all jobs, with their journal, from the data folder's SQLite database into the empty database that the setting
    `store` names. The server must be stopped. Started again with that setting, it goes on with the same jobs, runs and
    revisions.

    All is copied or nothing. The old database stays, as `evalrpc.sqlite3.migrated`. Calling it again changes nothing.
    """
    require_linux()
    with reported():
        settings = load_settings(flags, os.environ, config)
        if not settings.store:
            raise ConfigurationError("setting store: say where the jobs go, as in --store postgresql://USER@HOST/DATABASE")
        try:
            from evalrpc.store.migrating import migrate_to_postgres
        except ModuleNotFoundError as error:
            fail(ExitCode.WRONG_CALL, missing(error))
        counts, is_new = migrate_to_postgres(settings.data_dir.absolute(), settings.store)
    if as_json:
        print_json_text(json.dumps({"rows": counts, "is_new": is_new}))
    else:
        done = "migrated" if is_new else "were migrated before:"
        print_line(f"{done} {counts['jobs']} jobs and {counts['journal']} events; start the server with the same `store`")
