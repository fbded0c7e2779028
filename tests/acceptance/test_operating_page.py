"""The commands of docs/operating.md do what the page says, as they stand there."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from serving import COMPLETED, Api, Site
from waiting import DEADLINE_SECONDS

PAGE = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()


def commands(heading: str) -> list[str]:
    """Return the lines of code of a section."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line.strip() for line in re.findall(r"^    (evalrpc .*)$", section, re.MULTILINE)]


@contextmanager
def serving(command: str, folder: Path, environment: dict[str, str]) -> Iterator[Api]:
    """Run a command that serves, until the context ends."""
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            f"exec {command}", shell=True, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert process.stdout is not None
    with process, process.stdout:
        api = None
        try:
            line = process.stdout.readline()
            assert line.startswith("evalrpc listening on "), (folder / "server.log").read_text()
            api = Api(line.split()[-1])
            yield api
        finally:
            if api is not None:
                api.close()
            process.terminate()
            process.wait(DEADLINE_SECONDS)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which `evalrpc` is this one."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "evalrpc").write_text(f'#!/bin/sh\nexec {sys.executable} -m evalrpc "$@"\n')
    (programs / "evalrpc").chmod(0o755)
    return os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}


def test_a_backup_is_made_and_restored(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "site").mkdir()
    folder = Site(tmp_path / "site").folder
    backup, *restore, serve = commands("Backup and restore")
    assert serve.startswith("evalrpc serve ")
    with ExitStack() as stack:
        api = stack.enter_context(serving("evalrpc serve", folder, environment))
        job = api.run("good")
        subprocess.run(backup, shell=True, cwd=folder, env=environment, check=True)
        later = api.head()
        stack.close()
        for command in restore:
            subprocess.run(command, shell=True, cwd=folder, env=environment, check=True)
        api = stack.enter_context(serving(serve, folder, environment))
        assert [found.job_id for found in api.ListJobs().jobs] == [job.job_id]
        assert api.head() > later
        assert api.run("good").status == COMPLETED
