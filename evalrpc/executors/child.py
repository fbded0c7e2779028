# ruff: noqa: PTH104, PTH118, PTH123 - pathlib would double the time that every run waits for this
"""The parent process of one run: starts the program, waits for it, and writes down how it ended.

It outlives the server, so a server that comes back still learns the outcome. It is run as a script by a bare interpreter, and
imports next to nothing, since every run waits for it:

    python -I -S child.py TRACES_DIR PROGRAM ARGUMENT...

In TRACES_DIR it leaves `pid`: its own process id and start time, and `exit`: `code N`, `signal N`, or `error TEXT` where the
program could not be started. Standard output and error are the program's own.
"""

import os
import signal
import sys

PID_FILE = "pid"
EXIT_FILE = "exit"


def main(traces_dir: str, argv: list[str]) -> None:
    """Run the program to its end."""
    # The signals that end the group are for the program. A handler, unlike SIG_IGN, is not passed on to it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    write_durably(os.path.join(traces_dir, PID_FILE), f"{os.getpid()} {start_time(os.getpid())}")
    write_durably(os.path.join(traces_dir, EXIT_FILE), run(argv))


def run(argv: list[str]) -> str:
    """Start the program, wait for it, and describe its end."""
    try:
        pid = os.posix_spawnp(argv[0], argv, os.environ)
    except OSError as error:
        return f"error {argv[0]}: {error.strerror}"
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"code {os.WEXITSTATUS(status)}"


def start_time(pid: int) -> str:
    """Return when a process started, in the kernel's ticks: with the pid it names the process for ever."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        # The second field, the name, may hold spaces and parentheses, so count from its end; the start is the 22nd field.
        return stat.read().rpartition(b")")[2].split()[19].decode()


def write_durably(path: str, text: str) -> None:
    """Replace a file in one step, and not before its bytes are on the disk."""
    temporary = path + ".new"
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
