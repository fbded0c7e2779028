"""Finds the arguments of a command line that say what is run: programs, scripts, and what is read as code.

What a client wrote must not stand in them: a model named `$(reboot)`, or `/sbin/reboot`, would be run.
"""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Final

from evalrpc.harnesses.program_starters import MODULES, STARTERS, started

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
    (re.compile(r"deno"), re.compile(r"eval")),
)
"""By the name of the interpreter: the options after which code follows."""

_USING_SHELLS: Final = re.compile(r"su|runuser|sg|newgrp|script|flock|sbatch|expect|psql|mysql|mariadb|gdb|n?vim?|emacs")
"""Programs that hand a text to a shell, which follows an option anywhere among their arguments."""

_SHELL_OPTIONS: Final = re.compile(r"-\w*c|-ex?|--eval|--execute|--(session-)?command|--wrap")
_ALL_IS_CODE: Final = frozenset({"ssh", "rsh", "mosh", "watch", "parallel", "make", "gmake", "tmux", "screen"})
"""Programs that hand all their arguments to a shell, on this host or another one, or expand them as code."""

_LANGUAGES: Final = re.compile(r"[gmn]?awk|sed|sqlite3")
"""Programs whose first argument is a program that can start others."""

_OPTIONS_WITH_A_VALUE: Final = frozenset({"-o", "+o", "-O", "+O", "-W", "-X", "-I", "-r"})


def code_arguments(argv: Sequence[str]) -> Iterator[str]:
    """Yield the programs and the code in a command line such as `["env", "bash", "-eu", "-c", CODE, "name", "argument"]`, and
    all that programs such as ssh would hand to a shell. What follows the code are its arguments, which are safe.
    """
    yield from _programs(argv)
    for position, argument in enumerate(argv):
        name, rest = os.path.basename(argument), argv[position + 1 :]  # noqa: PTH119 - `Path("")` has no name
        if name in _ALL_IS_CODE:
            yield from rest
        if _USING_SHELLS.fullmatch(name):
            yield from _after_options(rest, _SHELL_OPTIONS)
        if _LANGUAGES.fullmatch(name):
            yield from rest  # which of them is the program depends on the options
        for interpreter, code_option in _CODE_OPTIONS:
            if interpreter.fullmatch(name):
                yield from _code_of(rest, code_option)


def _programs(argv: Sequence[str]) -> Iterator[str]:
    """Yield the program, what it is a prefix of, and an interpreter's script or module."""
    if not argv:
        return
    yield argv[0]
    name, rest = os.path.basename(argv[0]), argv[1:]  # noqa: PTH119 - `Path("")` has no name
    if name in STARTERS:
        yield from _programs(started(STARTERS[name], rest))
        return
    for interpreter, code_option in _CODE_OPTIONS:
        if interpreter.fullmatch(name):
            position, is_code = _first_operand(rest, code_option)
            if not is_code:
                yield from rest[position : position + 1]
                if (module := "".join(rest[position : position + 1])) in MODULES:
                    yield from _programs(started(MODULES[module], rest[position + 1 :]))


def _after_options(arguments: Sequence[str], code_option: re.Pattern[str]) -> Iterator[str]:
    """Yield what follows an option for code, wherever it stands."""
    for argument, following in zip(arguments, (*arguments[1:], ""), strict=True):
        option, separator, value = argument.partition("=")
        if code_option.fullmatch(option):
            yield value if separator else following


def _code_of(arguments: Sequence[str], code_option: re.Pattern[str]) -> Iterator[str]:
    """Yield the code among an interpreter's arguments: in an option, or the first that is no option after one for code."""
    position, is_code = _first_operand(arguments, code_option)
    for argument in arguments[:position]:
        option, _, value = argument.partition("=")
        if option.startswith("--") and value and code_option.fullmatch(option):
            yield value
    if is_code:
        yield from arguments[position : position + 1]


def _first_operand(arguments: Sequence[str], code_option: re.Pattern[str]) -> tuple[int, bool]:
    """Return where the first argument that is no option stands, and whether an option before it says that it is code."""
    has_value = is_code = False
    for position, argument in enumerate(arguments):
        if code_option.fullmatch(argument):
            has_value, is_code = False, True
        elif argument[:1] in ("-", "+"):
            has_value = argument in _OPTIONS_WITH_A_VALUE
        elif has_value:
            has_value = False
        else:
            return position, is_code
    return len(arguments), is_code
