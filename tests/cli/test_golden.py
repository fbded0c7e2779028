"""What people see: the screen after every command, on terminals of three widths, and the help at 80 columns.

After a change that is meant: `pytest tests/cli/test_golden.py --rewrite-golden`, and look at the difference as a person would.
"""

import json
import os
import re
import sys
from pathlib import Path

import click
import pytest
import terminal_jobs as jobs
import terminal_program
from click.testing import CliRunner
from fake_server import FakeServer
from terminal_screen import run_on_terminal

from evalrpc.cli import main
from evalrpc.cli.baseline import baseline_command
from evalrpc.cli.policy import policy_command
from evalrpc.cli.token import token_command

GOLDEN = Path(__file__).parent / "golden"
WIDTHS = (50, 80, 200)

COMMANDS: dict[str, list[str]] = {
    "list": ["list"],
    "list-labels": ["list", "-L", "run,step", "--limit", "3"],
    "list-wide": ["list", "-o", "wide", "--limit", "2"],
    "watch-all": ["watch-all", "-L", "step"],
    "get-running": ["get", jobs.RUNNING],
    "get-completed": ["get", jobs.COMPLETED],
    "get-hostile": ["get", jobs.FOREIGN],
    "watch-completed": ["watch", jobs.COMPLETED],
    "watch-failed": ["watch", jobs.FAILED],
    "watch-hostile": ["watch", jobs.FOREIGN],
    "results": ["results", jobs.COMPLETED],
    "results-wide": ["results", jobs.COMPLETED, "-o", "wide"],
    "results-csv": ["results", jobs.COMPLETED, "-o", "csv"],
    "metrics": ["metrics", jobs.COMPLETED],
    "queue": ["queue"],
    "logs": ["logs", jobs.FAILED],
    "samples": ["samples", jobs.COMPLETED],
    "download": ["download", jobs.COMPLETED, "out"],
    "follow-nowhere": ["follow", "/ckpt/out", "--once", "--model-args", "pretrained={checkpoint}"],
    "history": ["history", "--metric", "gsm8k/"],
    "history-wide": ["history", "-o", "wide", "--by", "run"],
    "history-trend": ["history", "--trend", "--by", "run"],
    "history-plot": ["history", "--plot", "--by", "run"],
    "compare": ["compare", jobs.RUNNING, jobs.COMPLETED],
    "flips": ["flips", jobs.RUNNING, jobs.COMPLETED],
    "plan": ["plan", "0.01", jobs.RUNNING, jobs.COMPLETED],
    "suites": ["suites"],
    "suite-runs": ["suite-runs"],
    "suite": ["suite", jobs.SUITE_RUN],
    "suite-wide": ["suite", jobs.SUITE_RUN, "-o", "wide"],
    "suite-go": ["suite", jobs.GO_RUN],
    "suite-several": ["suite", jobs.SUITE_RUN, jobs.GO_RUN],
    "suite-markdown": ["suite", jobs.SUITE_RUN, jobs.GO_RUN, "-o", "markdown"],
    "suite-junit": ["suite", jobs.SUITE_RUN, "-o", "junit"],
    "suite-unknown": ["suite", jobs.COMPLETED],
    "watch-suite": ["watch-suite", jobs.SUITE_RUN],
    "wait-suite": ["wait-suite", jobs.GO_RUN],
    "cancel-suite": ["cancel-suite", jobs.SUITE_RUN],
    "submit-suite": ["submit-suite", "release", "--model", "hf,pretrained=/ckpt/700", "--wait"],
    "tasks": ["tasks"],
    "models": ["models", "mmm"],
    "harnesses": ["harnesses"],
    "info": ["info"],
    "whoami": ["whoami"],
    "doctor": ["doctor"],
    "submit": ["submit", "--model", "m", "--tasks", "mme"],
    "get-prefix": ["get", "2c2f"],
    "get-unknown": ["get", "ffff"],
    "wait": ["wait", jobs.COMPLETED, jobs.FAILED],
    "baseline-set": ["baseline", "set", "main", jobs.COMPLETED],
    "baseline-list": ["baseline", "list"],
    "rerun": ["rerun", "@baseline:main", "--set", "limit=8"],
    "update": ["update", jobs.QUEUED, "--label", "team=blue", "--priority", "5"],
    "cancel": ["cancel", jobs.RUNNING, "--reason", "the checkpoint is broken"],
    "delete": ["delete", jobs.COMPLETED],
    "error-unknown-job": ["get", jobs.COMPLETED],
    "error-command": ["lsit"],
    "error-flag": ["list", "--lable", "run=x"],
    "error-usage": ["list", "--status", "finished"],
    "error-unreachable": ["--address", "127.0.0.1:1", "list"],
}
"""In this order, since some change what others show."""

TABLES = (
    "list",
    "list-labels",
    "watch-all",
    "get-running",
    "get-hostile",
    "queue",
    "history",
    "compare",
    "flips",
    "plan",
    "suites",
    "suite-runs",
    "suite-several",
    "harnesses",
    "doctor",
)
"""What fits a terminal; other lines, such as those of errors, are wrapped by the terminal if they are longer."""


@pytest.fixture(scope="module", params=WIDTHS, ids=lambda width: f"{width}-columns")
def screens(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, str]]:
    """Run all commands on a terminal of one width, and return what each leaves on the screen, by name."""
    width: int = request.param
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONUTF8": "1",
        "TERM": "xterm-256color",
        "TZ": "UTC",
    }
    with FakeServer() as server:
        jobs.fill(server.service)
        environment["EVALRPC_ADDRESS"] = server.address
        program = [sys.executable, terminal_program.__file__, json.dumps(list(COMMANDS.items()))]
        screen = run_on_terminal(program, width, environment, tmp_path_factory.mktemp("terminal"))
    _, *parts = re.split(rf"(?m)^{terminal_program.HEADING}", screen)
    return width, dict(tuple(part.split("\n", 1)) for part in parts)


def check(path: Path, text: str, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--rewrite-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_screen_after_a_command_is_as_people_have_judged_it(
    screens: tuple[int, dict[str, str]], name: str, request: pytest.FixtureRequest
) -> None:
    width, by_name = screens
    check(GOLDEN / str(width) / f"{name}.txt", by_name[name], request)


@pytest.mark.parametrize("name", TABLES)
def test_ids_stay_whole_at_any_width(screens: tuple[int, dict[str, str]], name: str) -> None:
    _, by_name = screens
    for line in by_name[name].splitlines():
        for start in re.finditer(r"\b[0-9a-f]{8}-[0-9a-f]{4}-", line):
            assert re.match(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", line[start.start() :]), line


def commands() -> dict[str, list[str]]:
    context = click.Context(main)
    helps = {"evalrpc": ["--help"], **{name: [name, "--help"] for name in main.list_commands(context)}}
    groups = {"baseline": baseline_command, "policy": policy_command, "token": token_command}
    return helps | {f"{name}-{sub}": [name, sub, "--help"] for name, group in groups.items() for sub in group.commands}


@pytest.mark.parametrize("name", commands())
def test_the_help_of_a_command_is_as_people_have_judged_it(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    text = CliRunner().invoke(main, commands()[name], prog_name="evalrpc", terminal_width=80).stdout
    assert max(map(len, text.splitlines())) <= 80
    check(GOLDEN / "help" / f"{name}.txt", text, request)


def test_help_texts_are_whole_sentences_and_none_is_missing_or_cut() -> None:
    context = click.Context(main)
    commands = [(name, main.get_command(context, name)) for name in main.list_commands(context)]
    for name, command in [*commands, *baseline_command.commands.items(), *token_command.commands.items()]:
        assert command is not None
        texts = [
            command.short_help or "",
            *(option.help or "" for option in command.params if isinstance(option, click.Option)),
        ]
        for text in texts:
            assert text[:1].isupper() or text.startswith("-"), (name, text)
            assert text.rstrip().endswith("."), (name, text)
    assert "..." not in CliRunner().invoke(main, ["--help"]).stdout.replace("[ARGS]...", "")
