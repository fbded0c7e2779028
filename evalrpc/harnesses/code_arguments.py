"""Finds the arguments of a command line that a shell or an interpreter reads as code.

What a client wrote must not stand in them: a model named `$(reboot)` would be run.
"""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Final

_CODE_OPTIONS: Final = (
    (re.compile(r"(r?ba|da|z|k|mk|pdk|a|fi|c|tc|xon)?sh|ksh\d+|nu|elvish"), re.compile(r"-\w*c\w*")),
    (re.compile(r"(i?python|pypy)[\d.]*"), re.compile(r"-\w*c")),
    (
        re.compile(r"perl|ruby|node(js)?|ts-node|bun|lua(jit)?[\d.]*|Rscript|julia|osascript"),
        re.compile(r"-\w*[eE]|-p|--eval|--print"),
    ),
    (re.compile(r"php[\d.]*"), re.compile(r"-[rBRE]|--(run|process-\w+)")),
    (re.compile(r"pwsh|powershell"), re.compile(r"-[cCeE]\w*")),
    (re.compile(r"env"), re.compile(r"-\w*S|--split-string")),
)
"""By the name of the interpreter: the options after which code follows."""

_STARTERS: Final = re.compile(r"su|runuser|sg|newgrp|script|flock|sbatch|expect|psql|mysql|mariadb|gdb|n?vim?|emacs")
"""Programs that hand a text to a shell, which follows an option anywhere among their arguments."""

_OPTIONS_OF_STARTERS: Final = re.compile(r"-\w*c|-ex?|--eval|--execute|--(session-)?command|--wrap")
_ALL_IS_CODE: Final = frozenset({"ssh", "rsh", "mosh", "watch", "parallel", "make", "gmake", "tmux", "screen"})
"""Programs that hand all their arguments to a shell, on this host or another one, or expand them as code."""

_LANGUAGES: Final = re.compile(r"[gmn]?awk|sed|sqlite3")
"""Programs whose first argument is a program that can start others."""

_OPTIONS_WITH_A_VALUE: Final = frozenset({"-o", "+o", "-O", "+O", "-W", "-X", "-I", "-r"})


def code_arguments(argv: Sequence[str]) -> Iterator[str]:
    """Yield the code in a command line such as `["env", "bash", "-eu", "-c", CODE, "name", "argument"]`, and all that programs
    such as ssh would hand to a shell. What follows the code are its arguments, which are safe.
    """
    for position, argument in enumerate(argv):
        name, rest = os.path.basename(argument), argv[position + 1 :]  # noqa: PTH119 - `Path("")` has no name
        if name in _ALL_IS_CODE:
            yield from rest
        if _STARTERS.fullmatch(name):
            yield from _after_options(rest, _OPTIONS_OF_STARTERS)
        if _LANGUAGES.fullmatch(name):
            yield from rest  # which of them is the program depends on the options
        for interpreter, code_option in _CODE_OPTIONS:
            if interpreter.fullmatch(name):
                yield from _code_of(rest, code_option)


def _after_options(arguments: Sequence[str], code_option: re.Pattern[str]) -> Iterator[str]:
    """Yield what follows an option for code, wherever it stands."""
    for argument, following in zip(arguments, (*arguments[1:], ""), strict=True):
        option, separator, value = argument.partition("=")
        if code_option.fullmatch(option):
            yield value if separator else following


def _code_of(arguments: Sequence[str], code_option: re.Pattern[str]) -> Iterator[str]:
    """Yield the code among an interpreter's arguments: the first that is no option, if the option for code is before it."""
    rest, expected = iter(arguments), False
    for argument in rest:
        option, _, value = argument.partition("=")
        if option.startswith("--") and value and code_option.fullmatch(option):
            yield value
        if argument[:1] not in ("-", "+"):
            if expected:
                yield argument
            return
        if code_option.fullmatch(argument):
            expected = True
        elif argument in _OPTIONS_WITH_A_VALUE:
            next(rest, "")
