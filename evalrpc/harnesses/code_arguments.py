"""Finds the arguments of a command line that a shell or an interpreter reads as code.

What a client wrote must not stand in them: a model named `$(reboot)` would be run.
"""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Final

_CODE_OPTIONS: Final = (
    (re.compile(r"(ba|da|z|k|mk|a|fi|c|tc)?sh"), re.compile(r"-\w*c\w*")),
    (re.compile(r"python[\d.]*"), re.compile(r"-\w*c")),
    (re.compile(r"perl|ruby|node|lua[\d.]*|Rscript"), re.compile(r"-\w*[eE]|-p|--eval|--print")),
)
"""By the name of the interpreter: the options after which code follows."""

_OPTIONS_WITH_A_VALUE: Final = frozenset({"-o", "+o", "-O", "+O", "-W", "-X", "-I", "-r"})


def code_arguments(argv: Sequence[str]) -> Iterator[str]:
    """Yield the code in a command line such as `["env", "bash", "-eu", "-c", CODE, "name", "argument"]`, and all that ssh would
    hand to the shell of another host. What follows the code are its arguments, which are safe.
    """
    for position, argument in enumerate(argv):
        name, rest = os.path.basename(argument), argv[position + 1 :]  # noqa: PTH119 - `Path("")` has no name
        if name == "ssh":
            yield from rest
        for interpreter, code_option in _CODE_OPTIONS:
            if interpreter.fullmatch(name):
                yield from _code_of(rest, code_option)


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
        expected = expected or code_option.fullmatch(argument) is not None
        if argument in _OPTIONS_WITH_A_VALUE:
            next(rest, "")
