"""`evalrpc backup` and `evalrpc restore`: copies of a server's data folder, made on its machine as its account."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from evalrpc import extras
from evalrpc.cli.exit_codes import ExitCode, fail, reported, require_linux
from evalrpc.cli.output import print_json_text, print_line
from evalrpc.cli.setting_flags import setting_flags
from evalrpc.clock import Clock, SystemClock
from evalrpc.config import load_settings
from evalrpc.files.private import PRIVATE_UMASK

clock: Clock = SystemClock()
"""Tells the revision that a restored server begins with."""

_MAX_PROBLEMS: Final = 20

_folder_argument: Final[Callable[[Callable[..., Any]], Callable[..., Any]]] = click.argument(
    "folder", metavar="DIR", type=click.Path(path_type=Path)
)

_json_flag: Final[Callable[[Callable[..., Any]], Callable[..., Any]]] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON."
)


@click.command(short_help="Back up a server's data, also while it runs.")
@_folder_argument
@setting_flags("data_dir")
@_json_flag
def backup_command(folder: Path, config: Path | None, as_json: bool, **flags: Any) -> None:
    """Back up the data folder to DIR, which must be new or empty: the jobs, the tokens, and the files of jobs in that folder.
    What requests had written below `output_root` is not part of it, nor is the audit.

    The server may run. If DIR is on the same disk, the files of finished jobs take no further space.
    """
    with _on_files():
        from evalrpc.server.backup import make_backup

        data_dir = load_settings(flags, os.environ, config).data_dir.absolute()
        copied = make_backup(data_dir, folder, clock)
        _report("backed up", folder, copied.job_count, copied.problems, as_json)


@click.command(short_help="Make a data folder of a backup.")
@_folder_argument
@setting_flags("data_dir")
@_json_flag
def restore_command(folder: Path, config: Path | None, as_json: bool, **flags: Any) -> None:
    """Make a data folder of the backup DIR. The data folder must be new or empty.

    The server that the backup is of must not run any more. Jobs that ran are tried again, if they may be, or FAILED with
    RUN_LOST. Clients that were watching begin anew.
    """
    with _on_files():
        from evalrpc.server.backup import restore_backup

        data_dir = load_settings(flags, os.environ, config).data_dir.absolute()
        copied = restore_backup(folder, data_dir, clock)
        _report("restored", data_dir, copied.job_count, copied.problems, as_json)


@contextmanager
def _on_files() -> Iterator[None]:
    """Work on files that are private to this account, and explain what can't be done."""
    require_linux()
    before = os.umask(PRIVATE_UMASK)
    try:
        with reported():
            yield
    except ModuleNotFoundError as error:
        fail(ExitCode.WRONG_CALL, extras.missing(error, "server"))
    finally:
        os.umask(before)


def _report(done: str, folder: Path, job_count: int, problems: list[str], as_json: bool) -> None:
    if as_json:
        print_json_text(json.dumps({"folder": str(folder), "job_count": job_count, "problems": problems}))
    else:
        print_line(f"{done} {job_count} jobs to {folder}")
    if problems:
        left_out = len(problems) - _MAX_PROBLEMS
        more = [f"and {left_out} more"] if left_out > 0 else []
        fail(ExitCode.NOT_PASSED, *problems[:_MAX_PROBLEMS], *more)
