"""A word that is mistyped is answered with what it may have been."""

from collections.abc import Callable

import pytest
from click.testing import Result

Run = Callable[..., Result]


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["lsit"], "No such command 'lsit'; did you mean 'list' or 'suite'?"),
        (["watchall"], "No such command 'watchall'; did you mean 'watch-all' or 'watch'?"),
        (["frobnicate"], "No such command 'frobnicate'."),
        (["baseline", "lst"], "No such command 'lst'; did you mean 'list' or 'set'?"),
        (["list", "--lable", "a=b"], "No such option '--lable'; did you mean '--label'?"),
        (["list", "--frobnicate"], "No such option '--frobnicate'."),
        (["--adress", "x", "list"], "No such option '--adress'; did you mean '--address'?"),
        (["baseline", "set", "--jsn"], "No such option '--jsn'; did you mean '--json'?"),
        (["\x1b[2J"], "No such command '\\x1b[2J'."),
        (["list", "--\x1b[2J"], "No such option '--\\x1b[2J'."),
        (["rerun", "@latest", "--set", "limt=3"], "--set: there is no 'limt'; did you mean 'limit'?"),
    ],
)
def test_a_mistyped_word_is_answered_in_one_sentence(run: Run, service: object, command: list[str], sentence: str) -> None:
    if command[0] == "rerun":
        run("submit", "--model", "m", "--tasks", "t")

    result = run(*command)

    assert result.exit_code == 2
    assert f"Error: {sentence}" in result.stderr
    assert result.stderr.count("did you mean") + result.stderr.count("Did you mean") <= 1


@pytest.mark.parametrize("command", [[], ["export"], ["token"]])
def test_what_lacks_a_command_shows_its_help_line_by_line(run: Run, service: object, command: list[str]) -> None:
    result = run(*command)

    assert result.exit_code == 2
    assert "\nCommands:\n" in result.stderr
    assert result.stderr == run(*command, "--help").stdout
