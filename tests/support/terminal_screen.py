"""A small terminal: runs a program on a pseudo-terminal and returns the text that would stand on its screen."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.cells import cell_len

_TOKEN = re.compile(r"\x1b\[(?P<parameters>[0-9;?]*)(?P<command>[A-Za-z])|(?P<character>.)", re.DOTALL)


def run_on_terminal(argv: Sequence[str], width: int, environment: Mapping[str, str], cwd: Path) -> str:
    """Run a program to its end, with standard output and standard error on a terminal of this width. Return the screen."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, env=dict(environment), cwd=cwd, start_new_session=True
    ) as process:
        os.close(slave)
        data = b""
        with contextlib.suppress(OSError):  # EIO: the program has ended
            while chunk := os.read(master, 65536):
                data += chunk
        os.close(master)
    assert process.returncode == 0, data.decode()
    return Screen(width).show(data.decode())


class Screen:
    """What a terminal does with the bytes that it gets, as far as rich uses it. Anything else is an error."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._lines: list[list[str]] = [[]]  # a cell each; the second cell of a wide character is empty
        self._row = self._column = 0

    def show(self, text: str) -> str:
        """Return the lines on the screen after this text, without blanks at their ends."""
        for token in _TOKEN.finditer(text):
            if token["character"] is not None:
                self._put(token["character"])
            else:
                self._obey(token["command"], token["parameters"])
        return "\n".join("".join(line).rstrip() for line in self._lines).rstrip("\n") + "\n"

    def _put(self, character: str) -> None:
        width = cell_len(character)
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._go_down()
        elif not character.isprintable() and character != "\ufe0f":
            raise AssertionError(f"an unexpected control character: {character!r}")
        elif width == 0:
            self._lines[self._row][self._column - 1] += character
        else:
            if self._column + width > self._width:
                self._go_down()
                self._column = 0
            line = self._lines[self._row]
            line.extend(" " * (self._column + width - len(line)))
            line[self._column : self._column + width] = [character, *[""] * (width - 1)]
            self._column += width

    def _go_down(self) -> None:
        self._row += 1
        if self._row == len(self._lines):
            self._lines.append([])

    def _obey(self, command: str, parameters: str) -> None:
        match command, parameters:
            case "m", _:
                pass
            case (("h" | "l"), "?25"):
                pass
            case "A", _:
                self._row -= int(parameters or 1)
            case "K", "2":
                self._lines[self._row] = []
            case _:
                raise AssertionError(f"an unexpected escape sequence: \\x1b[{parameters}{command}")
