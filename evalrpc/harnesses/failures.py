"""Finds the reason why a run failed, as one readable line, in the end of its log."""

import difflib
import re
import signal
from collections.abc import Iterable, Sequence
from typing import Final

from evalrpc.errors import RunFailedError
from evalrpc.harnesses.base import Exit
from evalrpc.protobuf.structs import wire_text

MAX_MESSAGE_CHARACTERS: Final = 300
"""The longest message. The contract allows 2 KiB, but a line should be readable."""

# Colours and movements of the cursor; titles of the window, and links.
_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b\r\n]*(?:\x07|\x1b\\))")
# Who says it, as torchrun, and the processes and the logger of vLLM put it before the line.
_SPEAKER = r"(?:\[rank\d+\]:\s?|\([\w. =]{1,60}pid=\d+\)\s?)?(?:ERROR [\d-]{5} [\d:]{8} \[?[\w./]{1,60}:\d+\] )?"
_EXCEPTION = re.compile(
    _SPEAKER
    + r"(?P<line>(?:[A-Za-z_]\w*\.){0,20}(?:_?[A-Z]\w{0,100})?(?:Error|Exception|Exit|Interrupt|Timeout|Failure)(?::.*)?)"
)
_LMMS_EVAL_ERROR = re.compile(r".*?\bError during evaluation: (?P<line>.+?)(?:\. Please set `--verbosity=DEBUG`.*)?")
_USAGE_ERROR = re.compile(r"[^\s:]+(?: [^\s:]+)*: error: (?P<line>.+)")
# As Python, PyTorch (on a device or the CPU), the OS and C++ report it.
_OUT_OF_MEMORY = re.compile(
    r"(?:[\w.]+\.)?(?:_?\w*MemoryError\b|OutOfMemory\w*\b)"
    r"|.*(?:\b(?:CUDA|HIP|XPU) (?:error: )?out of memory|can't allocate memory|Cannot allocate memory|std::bad_alloc)"
)
# A process killed by a signal, as torchrun (for the first that failed), subprocess and PyTorch's DataLoader report it.
_ROOT_CAUSE = "Root Cause (first observed failure)"
_CHILD_SIGNALLED = re.compile(
    r"\s*traceback : Signal ([0-9]{1,3}) \(\w+\) received by PID \d+|.*\bdied with <Signals\.\w+: ([0-9]{1,3})>\.?"
    r"|.*\bDataLoader worker \(pid \d+\) is killed by signal: (Killed)\b.*|.*\bprocess \d+ terminated with signal (SIG[A-Z]+)"
)
# A shell's exit code for a program killed by one of these signals.
_SHELL_CODES: Final = {
    128 + number: number for number in (signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)
}
# What lmms-eval and lm-eval print for a model that they do not know, with the names of all that they do.
_UNKNOWN_MODEL = re.compile(
    r"(?:Model '(?P<name>[^']{1,1024})' not found in available models: "
    r"|Attempted to load model '(?P<name2>[^']{1,1024})', but no model for this name found! Supported model names: "
    r"|(?:Unknown model|Model) '(?P<name3>[^']{1,1024})'(?: not found)?\.(?:\\n|\s)Available(?: models)?: )(?P<names>.*)"
)
_SIGNALS: Final = {"Killed": signal.SIGKILL, **signal.Signals.__members__}
_MAX_NAME_CHARACTERS: Final = 100
_MAX_LISTED: Final = 2000
# Exceptions that only report that something else failed.
_WRAPPER = re.compile(
    r"(?:[\w.]+\.)?(?:RetryError: RetryError\[<Future|(?:ChildFailed|CalledProcess|EngineDead)Error\b|BrokenProcessPool\b"
    r"|Process(?:Exited|Raised)Exception\b|\w+: .*(?:root cause above|for the root cause))"
)


def find_failure(log_tail: Iterable[str]) -> str | None:
    """Find the line that says why: the last Python exception, else lmms-eval's own error, else an argument parser's.

    Exceptions that only wrap another, such as tenacity's RetryError, count only if there is no other. Of the list of all models
    that a harness prints for one that it does not know, the nearest names are kept.
    """
    lines = [clean for line in log_tail for clean in _clean(line)]
    exceptions = _matches(_EXCEPTION, lines)
    specific = [line for line in exceptions if not _WRAPPER.match(line)]
    for found in (specific, exceptions, _matches(_LMMS_EVAL_ERROR, lines), _matches(_USAGE_ERROR, lines)):
        if found:
            return shorten(without_listing(found[-1]))
    return None


def failure_or_last_line(log_tail: Sequence[str]) -> str:
    """Return the line that says why a program ended, else the last one that isn't blank; empty if there is none."""
    lines = (strip_colours(line).strip() for line in reversed(log_tail))
    return find_failure(log_tail) or next(filter(None, lines), "")


def without_listing(line: str) -> str:
    """Return a line of a log. Of the list of all models that a harness prints for one that it does not know, the nearest names
    are kept."""
    match = _UNKNOWN_MODEL.search(line)
    if match is None:
        return line
    name = (match["name"] or match["name2"] or match["name3"])[:_MAX_NAME_CHARACTERS]
    listed = [known for known in match["names"].split(", ") if len(known) <= _MAX_NAME_CHARACTERS]
    nearest = difflib.get_close_matches(name, listed[:_MAX_LISTED], n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(nearest)}?" if nearest else "ListModels has the names of all"
    before = line[: match.start()].removesuffix('"')
    return f"{before}there is no model {name!r}; {hint}"


def check_exit(exit_status: Exit, log_tail: Sequence[str]) -> None:
    """Raise RunFailedError unless the process exited with 0, or its end was not observed."""
    reason = find_failure(log_tail)
    if exit_status.signal is not None:
        raise _signalled("the harness", exit_status.signal, reason)
    if exit_status.code:
        number = _signal_of_child(log_tail) or _SHELL_CODES.get(exit_status.code)
        if number is not None:
            raise _signalled("a process of the harness", number, reason)
        raise failed(reason or _last_words(exit_status.code, log_tail))


def failed(message: str, reason: str = "HARNESS_FAILED") -> RunFailedError:
    """Build the error for a run that failed with this message. Running out of memory always gets its own reason, since another
    attempt may find enough."""
    return RunFailedError("OUT_OF_MEMORY" if _OUT_OF_MEMORY.match(message) else reason, message)


def shorten(text: str) -> str:
    """Shorten to one readable line, cut at the end of a word."""
    line = next((clean for clean in _clean(text) if clean), "")
    if len(line) <= MAX_MESSAGE_CHARACTERS:
        return line
    cut = line[: MAX_MESSAGE_CHARACTERS - 2]
    return f"{cut.rpartition(' ')[0] or cut} …"


def strip_colours(line: str) -> str:
    """Remove terminal escape codes."""
    return _ESCAPE.sub("", line)


def _clean(line: str) -> list[str]:
    parts = re.split(r"[\r\n]", wire_text(strip_colours(line)))
    return ["".join(character for character in part if character.isprintable() or character == "\t").rstrip() for part in parts]


def _matches(pattern: re.Pattern[str], lines: Iterable[str]) -> list[str]:
    return [match["line"] for match in map(pattern.fullmatch, lines) if match]


def _signalled(what: str, number: int, reason: str | None) -> RunFailedError:
    message = f"{what} was ended by {_signal_name(number)}"
    if reason is None or _WRAPPER.match(reason):
        return RunFailedError("PROCESS_SIGNALLED", message)
    return RunFailedError(failed(reason, "PROCESS_SIGNALLED").job_error.reason, f"{message}, after {reason}")


def _signal_of_child(log_tail: Sequence[str]) -> int | None:
    """Return the signal that killed the process that a launcher reports as the first to fail."""
    lines = [clean for line in log_tail for clean in _clean(line)]
    root_cause = next((index for index, line in enumerate(lines) if line.startswith(_ROOT_CAUSE)), 0)
    for match in filter(None, map(_CHILD_SIGNALLED.fullmatch, lines[root_cause:])):
        name = next(filter(None, match.groups()))
        number = _SIGNALS.get(name, name)
        if str(number).isdecimal():
            return int(number)
    return None


def _last_words(code: int, log_tail: Sequence[str]) -> str:
    words = [clean for line in log_tail for clean in _clean(line) if clean]
    message = f"the harness exited with code {code}"
    return shorten(f"{message}; its last line was: {words[-1].strip()}" if words else f"{message} and wrote nothing")


def _signal_name(number: int) -> str:
    names = {item.value: item.name for item in signal.Signals}
    return f"{names[number]} (signal {number})" if number in names else f"signal {number}"
