# ruff: noqa: PTH104, PTH118, PTH123 - it is run by a bare interpreter, without pathlib
"""The parents of runs, and the fork server, which forks one for each order of the server.

A parent starts the programs of its run one after the other, waits for each, and writes down how it ended. It outlives the
server, so a server that comes back still learns the outcome. It is forked, since that takes a fraction of a millisecond, and an
interpreter ten to start; and not by the server, whose threads and gRPC would not outlive a fork.

    python -I -S parent.py PID START_TIME

is the fork server of the server that PID and START_TIME name, and ends when that has ended. Both talk in Python's own marshal
format: they are of one installation, and a value tells where it ends. The fork server takes

    an order     a dict with `steps` (programs with their arguments), `files` (to be written first, by path), `env`, `cwd`,
                 `umask` (of the programs), `log` (of all output) and `traces_dir`. It answers with the process id of the
                 parent, or with a negative errno where there is none.
    a number     that of a parent that is known to have ended. It answers with its wait status, or None if it has none. Only
                 then may another process get that number.

In `traces_dir` a parent leaves `pid`: its own process id and start time, and `exit`: a line for every step that has ended, with
the size of the log then, and `code N`, `signal N`, or `error TEXT` where the program could not be started. NONE_LEFT follows
when no process of the run is left. It can tell, for it adopts those that lose their own parent, wherever they went. The server
has made `exit` with room for that (`traces.py`), so a full disk does not lose it; and whatever can't be written, the parent
stays until no process is left.

Once its `pid` is written it takes the name RUN_NAME. Until then it may still be about to begin a run.
"""

import errno
import marshal
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

PID_FILE = "pid"
EXIT_FILE = "exit"
NONE_LEFT = "none left"
FORK_SERVER_NAME = "evalrpc-fork"
RUN_NAME = "evalrpc-run"

KILL_REQUEST = signal.SIGUSR1
"""Makes a parent kill what is left of its run, once its program has ended."""

_REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, KILL_REQUEST)
_LINGER_SECONDS = 30.0
_LOOK_SECONDS = 0.01
_PRIVATE_UMASK = 0o077
_PRIVATE_MODE = 0o600
_NO_TRAP = os.O_NOFOLLOW | os.O_NONBLOCK  # a link or a FIFO that the run has put there leads nowhere and holds up nobody
_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Fork a parent for each order, until there is no server any more."""
    set_name(FORK_SERVER_NAME)
    os.umask(_PRIVATE_UMASK)
    asked: list[int] = []
    # They are for the parents, which let them through. A handler, unlike SIG_IGN, is not passed on to a program.
    signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
    for number in _REQUESTS:
        signal.signal(number, lambda number, _: asked.append(number))
    adopt_orphans = load_adoption()
    with suppress(EOFError, BrokenPipeError):
        while True:
            message = marshal.load(sys.stdin.buffer)  # noqa: S302 - from the server itself
            answer = reap(message) if isinstance(message, int) else fork(message, asked, adopt_orphans)
            os.write(1, marshal.dumps(answer))


def reap(pid: int) -> int | None:
    """Let go of a parent that has ended, and return its wait status."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return status if ended else None


def fork(order: dict[str, Any], asked: list[int], adopt_orphans: Callable[[], bool]) -> int:
    """Fork a parent for the order. Return its process id, or a negative errno where there is none."""
    try:
        pid = os.fork()
    except OSError as error:
        return -(error.errno or errno.EAGAIN)
    if pid == 0:
        try:
            carry_out(order, asked, adopt_orphans)
        finally:
            os._exit(0)  # whatever happened, it must not take orders itself; and the server waits for this end
    return pid


def carry_out(order: dict[str, Any], asked: list[int], adopt_orphans: Callable[[], bool]) -> None:
    """Be the parent of a run. Once `asked` holds a signal, start no more steps of it."""
    os.setsid()
    redirect(os.devnull, os.O_RDWR, 0, 1, 2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)
    adopts = adopt_orphans()
    exits = os.open(os.path.join(order["traces_dir"], EXIT_FILE), os.O_WRONLY | os.O_CREAT, _PRIVATE_MODE)
    pid_path = os.path.join(order["traces_dir"], PID_FILE)
    failure = write_pid(pid_path) or write_files(order["files"])
    set_name(RUN_NAME)
    try:
        for argv in order["steps"]:
            if asked:
                break
            outcome = failure or run(argv, order, pid_path)
            # Before the next one starts: what stands further down in the log is then known not to be of this one.
            note(exits, f"{os.fstat(1).st_size} {outcome}")
    finally:
        if adopts and outlives_all(asked):
            note(exits, NONE_LEFT)


def write_pid(path: str) -> str | None:
    """Leave the id of this process, in one step, and describe what went wrong, if anything did."""
    try:
        with open(path + ".new", "w") as file:
            file.write(f"{os.getpid()} {start_time(os.getpid())}")
        os.rename(path + ".new", path)
    except OSError as error:
        return f"error {path}: {error.strerror}"
    return None


def write_files(files: dict[str, bytes]) -> str | None:
    """Write what the programs need, and describe what went wrong, if anything did."""
    for path, content in files.items():
        try:
            with open(path, "wb") as file:
                file.write(content)
        except OSError as error:
            return f"error {path}: {error.strerror}"
    return None


def run(argv: list[str], order: dict[str, Any], pid_path: str) -> str:
    """Start the program, wait for it, and describe its end."""
    try:
        os.environ["PATH"] = order["env"].get("PATH", os.defpath)  # in which the program is looked for
        os.chdir(order["cwd"])
        redirect(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NO_TRAP, 1, 2)
        os.umask(order["umask"])
        # Python itself ignores these two.
        pid = os.posix_spawnp(argv[0], argv, order["env"], setsigdef=(signal.SIGPIPE, signal.SIGXFSZ))
    except (OSError, ValueError) as error:
        return f"error {argv[0]}: {getattr(error, 'strerror', None) or error}"
    with suppress(OSError):  # which takes a disk its time, and can be done while the program starts
        sync(pid_path)
    status = wait(pid)
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"code {os.WEXITSTATUS(status)}"


def wait(pid: int) -> int:
    """Return the wait status of a program when it has ended. Lets go meanwhile of whatever else ends."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return status


def outlives_all(asked: list[int]) -> bool:
    """Stay until no process of the run is left, and tell whether it came to that.

    What the programs have left behind is killed, unless the run was asked to end: then it has the time that the server gives.
    """
    deadline = time.monotonic() + _LINGER_SECONDS
    with suppress(OSError):  # this kernel does not tell of children, and the server has to look for them
        while time.monotonic() < deadline:
            if not reap_children():
                return True
            if not asked or KILL_REQUEST in asked:
                kill_children()
            time.sleep(_LOOK_SECONDS)
    return False


def reap_children() -> bool:
    """Let go of all children that have ended, and tell whether there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def kill_children() -> None:
    """Kill all children. Theirs become children of this process, so doing it again ends any tree. Raises OSError."""
    with open("/proc/thread-self/children") as children:
        for pid in map(int, children.read().split()):
            os.kill(pid, signal.SIGKILL)  # its number is taken until it is let go of


def load_adoption() -> Callable[[], bool]:
    """Return what makes the process that calls it adopt its descendants that lose their parent, if that is possible here."""
    try:
        import ctypes  # not every Python has it

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return lambda: False
    return lambda: prctl(_PR_SET_CHILD_SUBREAPER, *map(ctypes.c_ulong, (1, 0, 0, 0))) == 0


def redirect(path: str, flags: int, *descriptors: int) -> None:
    """Open a file as these descriptors, which a program inherits."""
    opened = os.open(path, flags, _PRIVATE_MODE)
    for descriptor in descriptors:
        os.dup2(opened, descriptor)
    if opened not in descriptors:
        os.close(opened)


def start_time(pid: int) -> str:
    """Return when a process started, in the kernel's ticks: with the pid it names the process for ever."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        # The second field, the name, may hold spaces and parentheses, so count from its end; the start is the 22nd field.
        return stat.read().rpartition(b")")[2].split()[19].decode()


def set_name(name: str) -> None:
    """Name this process, for `ps` and for a server that looks for it."""
    with open("/proc/self/comm", "w") as comm:
        comm.write(name)


def note(exits: int, line: str) -> None:
    """Add a line to what is known of the run's end. In one piece, and whoever reads it takes only lines that are whole."""
    with suppress(OSError):  # what is left of the run has to be ended all the same
        os.write(exits, (line.replace("\n", " ") + "\n").encode(errors="replace"))


def sync(path: str) -> None:
    """See a file onto the disk.

    For `pid` this is so that after a power cut too nobody takes the run for one that never began. The program does not wait for
    it: what it leaves on this disk comes after `pid` in the journal of the file system.
    """
    descriptor = os.open(path, os.O_RDONLY | _NO_TRAP)
    os.fsync(descriptor)
    os.close(descriptor)


if __name__ == "__main__":
    main()
    os._exit(0)  # nothing is left to tidy up
