"""Why a run failed, in one line that a person understands, out of the end of its log."""

import re
import signal
from collections.abc import Iterable, Sequence
from typing import Final

from evalrpc.errors import RunFailedError
from evalrpc.harnesses.base import Exit

MAX_MESSAGE_CHARACTERS: Final = 300
"""The longest message. The contract allows 2 KiB, but a line should be readable."""

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_EXCEPTION = re.compile(
    r"(?:\[rank\d+\]:\s?)?"
    r"(?P<line>(?:[A-Za-z_]\w*\.){0,20}(?:[A-Z]\w{0,100})?(?:Error|Exception|Exit|Interrupt|Timeout|Failure)(?::.*)?)"
)
_LMMS_EVAL_ERROR = re.compile(r".*?\bError during evaluation: (?P<line>.+?)(?:\. Please set `--verbosity=DEBUG`.*)?")
_USAGE_ERROR = re.compile(r"[^\s:]+(?: [^\s:]+)*: error: (?P<line>.+)")
# What only says that something else failed.
_WRAPPER = re.compile(r"(?:[\w.]+\.)?(?:RetryError: RetryError\[<Future|ChildFailedError\b|CalledProcessError\b)")


def find_failure(log_tail: Iterable[str]) -> str | None:
    """Find the line that says why: the last Python exception, else lmms-eval's own error, else that of an argument parser.

    An exception that only wraps another, such as tenacity's RetryError, gives way to the one before it.
    """
    lines = [clean for line in log_tail for clean in _clean(line)]
    exceptions = _matches(_EXCEPTION, lines)
    telling = [line for line in exceptions if not _WRAPPER.match(line)]
    for found in (telling, exceptions, _matches(_LMMS_EVAL_ERROR, lines), _matches(_USAGE_ERROR, lines)):
        if found:
            return shorten(found[-1])
    return None


def check_exit(exit_status: Exit, log_tail: Sequence[str]) -> None:
    """Raise RunFailedError unless the process exited with 0, or nobody could see how it ended."""
    reason = find_failure(log_tail)
    if exit_status.signal is not None:
        message = f"the harness was ended by {_signal_name(exit_status.signal)}"
        raise RunFailedError("PROCESS_SIGNALLED", f"{message}, after {reason}" if reason else message)
    if exit_status.code:
        raise RunFailedError("HARNESS_FAILED", reason or _last_words(exit_status.code, log_tail))


def shorten(text: str) -> str:
    """Cut to one readable line, at the end of a word."""
    line = next((clean for clean in _clean(text) if clean), "")
    if len(line) <= MAX_MESSAGE_CHARACTERS:
        return line
    cut = line[: MAX_MESSAGE_CHARACTERS - 2]
    return f"{cut.rpartition(' ')[0] or cut} …"


def strip_colours(line: str) -> str:
    """Remove terminal escape codes."""
    return _ESCAPE.sub("", line)


def _clean(line: str) -> list[str]:
    parts = re.split(r"[\r\n]", strip_colours(line))
    return ["".join(character for character in part if character.isprintable() or character == "\t").rstrip() for part in parts]


def _matches(pattern: re.Pattern[str], lines: Iterable[str]) -> list[str]:
    return [match["line"] for match in map(pattern.fullmatch, lines) if match]


def _last_words(code: int, log_tail: Sequence[str]) -> str:
    words = [clean for line in log_tail for clean in _clean(line) if clean]
    message = f"the harness exited with code {code}"
    return shorten(f"{message}; its last line was: {words[-1].strip()}" if words else f"{message} and wrote nothing")


def _signal_name(number: int) -> str:
    names = {item.value: item.name for item in signal.Signals}
    return f"{names[number]} (signal {number})" if number in names else f"signal {number}"
