# ruff: noqa: PTH104, PTH118, PTH123 - it is run by a bare interpreter, without pathlib
"""The shim of a run, and the fork server, which forks a shim for each order from the server.

A shim starts the programs of its run one after the other, waits for each, and records how it ended. It outlives the server, so
a restarted server still learns the outcome. Forking a shim takes a fraction of a millisecond, starting an interpreter ten.
The server can't fork it itself: its threads and gRPC would not survive a fork.

    python -I -S shim.py PID START_TIME

runs the fork server of the server that PID and START_TIME identify; it ends with that server. It is asked in Python's marshal
format, in which values are self-delimiting, and replies with a line: unlike that format, it can be read whoever has written
it, such as a parent of warm runs (`warm_parent.py`). The fork server takes

    an order     a dict with `steps` (programs with their arguments), `files` (to be written first, by path), `env`, `cwd`,
                 `umask` (of the programs), `log` (for all output), `traces_dir`, `run` (see CLAIM), `cgroup` (the folder of
                 the run's cgroup, or empty), `account` (of the programs: its uid and its further groups; None: that of the
                 server), `notes_pid` (whether to leave `pid`; otherwise the server does), and `rlimits` (of the programs:
                 resources with their bounds). The reply is the process id of the shim, or a negative errno if there is none.
                 A parent, which takes orders too, adds `execute` (what becomes of a process instead of a program) and `close`
                 (descriptors that are not the run's).
    a number     the process id of a shim that is known to have ended. The reply is its wait status; empty if it has none.
                 Only then can the id be reused. A negative number asks for the status alone: the id stays taken.

In `traces_dir` a shim leaves two files. `pid` holds its process id and start time. `exit` has a line for every step that has
ended, with the size of the log at that point, and `code N`, `signal N`, or `error TEXT` if the program could not be started.
NONE_LEFT follows once no process of the run is left. The shim can tell, because it is a subreaper: it adopts the run's orphans,
wherever they went. The server has preallocated `exit` (`traces.py`), so a full disk does not lose it. Even if a write fails,
the shim stays until no process is left, up to a time limit. Its own exit code, which no run can forge, says the same: 0 if no
process is left.

A run with the server's account may write into these files too. So a server recognises a shim by what the shim itself holds: a
memory file with the name of its run (CLAIM). A run can't give one to another process.

Only the programs get an account of their own. The shim keeps the server's, so that no run can signal or trace it; but that of a
warm run has the account of its parent, which is that of the programs.

Once its `pid` is written, a shim takes the name RUN_NAME. Until then it may still be about to begin a run.
"""

import errno
import marshal
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

PID_FILE = "pid"
EXIT_FILE = "exit"
NONE_LEFT = "none left"
FORK_SERVER_NAME = "evalrpc-fork"
RUN_NAME = "evalrpc-run"
CLAIM = "evalrpc-run "
"""The beginning of the name of the memory file that a shim keeps open. `run` of its order follows."""

KILL_REQUEST = signal.SIGUSR1
"""Makes a shim kill what is left of its run once its program has ended."""

_REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, KILL_REQUEST)
_LINGER_SECONDS = 30.0
_LOOK_SECONDS = 0.01
PRIVATE_UMASK = 0o077
_PRIVATE_MODE = 0o600
_FILE_MODE = 0o666  # less the umask
_NO_TRAP = os.O_NOFOLLOW | os.O_NONBLOCK  # a link or FIFO planted by the run is not followed and does not block
_OF_ACCOUNT_MODE = 0o640  # what the shim writes for the programs: they read it by their group
_LOG_OF_ACCOUNT_MODE = 0o620  # so that programs can also open /dev/stderr
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_MAX_FAILURE_BYTES = 4096


def main() -> None:
    """Fork a shim for each order until the server is gone."""
    asked, set_process = get_ready()
    with suppress(EOFError, BrokenPipeError):
        while True:
            message = marshal.load(sys.stdin.buffer)  # noqa: S302 - from the server itself
            answer = status_of(message) if isinstance(message, int) else fork(message, asked, set_process)
            os.write(1, b"\n" if answer is None else b"%d\n" % answer)


def get_ready() -> tuple[list[int], Callable[[int], bool]]:
    """Become a process that forks shims. Return the list to which they append the requests that they get, and `prctl`."""
    set_name(FORK_SERVER_NAME)
    os.umask(PRIVATE_UMASK)
    asked: list[int] = []
    # Blocked here; shims unblock them. Unlike SIG_IGN, a handler is not inherited by a program.
    signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
    for number in _REQUESTS:
        signal.signal(number, lambda number, _: asked.append(number))
    return asked, load_prctl()


def status_of(pid: int) -> int | None:
    """Return the wait status of a shim that has ended, and reap it, unless the number is negative; None if it has none."""
    try:
        if pid < 0:
            found = os.waitid(os.P_PID, -pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            return None if found is None else found.si_status << 8 if found.si_code == os.CLD_EXITED else found.si_status
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return status if ended else None


def fork(order: dict[str, Any], asked: list[int], set_process: Callable[[int], bool]) -> int:
    """Fork a shim for the order. Return its process id, or a negative errno if there is none."""
    try:
        pid = os.fork()
    except OSError as error:
        return -(error.errno or errno.EAGAIN)
    if pid == 0:
        none_left = False
        try:
            none_left = carry_out(order, asked, set_process)
        finally:
            os._exit(0 if none_left else 1)  # whatever happened, it must not take orders itself; and the server waits for it
    return pid


def carry_out(order: dict[str, Any], asked: list[int], set_process: Callable[[int], bool]) -> bool:
    """Be the shim of a run. Once `asked` holds a signal, start no more of its steps. Return whether no process is left."""
    os.setsid()
    redirect(os.devnull, os.O_RDWR, 0, 1, 2)
    for descriptor in order.get("close", ()):
        os.close(descriptor)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)
    adopts = set_process(_PR_SET_CHILD_SUBREAPER)
    exits = os.open(os.path.join(order["traces_dir"], EXIT_FILE), os.O_WRONLY | os.O_CREAT | _NO_TRAP, _PRIVATE_MODE)
    pid_path = os.path.join(order["traces_dir"], PID_FILE)
    failure = claim(order["run"]) or enter(order["cgroup"])
    if order["notes_pid"]:
        failure = failure or write_pid(pid_path, os.getpid())
    failure = failure or write_files(order)
    set_name(RUN_NAME)
    try:
        for argv in order["steps"]:
            if asked:
                break
            outcome = failure or run(argv, order, pid_path, set_process)
            # Before the next step starts, so that later output in the log is known not to be from this one.
            note(exits, f"{os.fstat(1).st_size} {outcome}")
    finally:
        none_left = adopts and outlives_all(asked)
        if none_left:
            note(exits, NONE_LEFT)
    return none_left


def claim(run: str) -> str | None:
    """Hold the memory file by which a server recognises the shim of a run. Return a description of the error, if any."""
    try:
        os.memfd_create(CLAIM + run)  # stays open, and no program inherits it
    except OSError as error:
        return f"error {CLAIM}: {error.strerror}"
    return None


def enter(cgroup: str) -> str | None:
    """Enter a cgroup, if there is one, with all that is forked from now on. Return a description of the error, if any."""
    try:
        if cgroup:
            with open(os.path.join(cgroup, "cgroup.procs"), "w") as processes:
                processes.write("0")
    except OSError as error:
        return f"error {cgroup}: {error.strerror}"
    return None


def write_pid(path: str, pid: int) -> str | None:
    """Write the id of a shim, atomically. Return a description of the error, if any."""
    try:
        with open(path + ".new", "w", opener=open_untrapped) as file:
            file.write(f"{pid} {start_time(pid)}")
        os.rename(path + ".new", path)
    except OSError as error:
        return f"error {path}: {error.strerror}"
    return None


def write_files(order: dict[str, Any]) -> str | None:
    """Write the files that the programs need. Return a description of the error, if any."""
    for path, content in order["files"].items():
        try:
            with open(path, "wb", opener=open_untrapped) as file:
                open_to_account(file.fileno(), order, _OF_ACCOUNT_MODE)
                file.write(content)
        except OSError as error:
            return f"error {path}: {error.strerror}"
    return None


def run(argv: list[str], order: dict[str, Any], pid_path: str, set_process: Callable[[int], bool]) -> str:
    """Start the program, wait for it, and describe its end."""
    try:
        os.chdir(order["cwd"])
        redirect(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NO_TRAP, 1, 2)
        open_to_account(1, order, _LOG_OF_ACCOUNT_MODE)
        pid = start(argv, order, set_process)
    except (OSError, ValueError) as error:
        return f"error {argv[0]}: {getattr(error, 'strerror', None) or error}"
    with suppress(OSError):  # slow on a disk, so it is done while the program starts
        sync(pid_path)
    status = wait(pid)
    with suppress(OSError):
        open_to_account(1, order, _PRIVATE_MODE)
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"code {os.WEXITSTATUS(status)}"


def start(argv: list[str], order: dict[str, Any], set_process: Callable[[int], bool]) -> int:
    """Start a program, and return its process id. Raises OSError if it can't be started."""
    failures, failure = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)  # one that the new process gets now is for the program
    try:
        pid = os.fork()
        if pid == 0:
            become(argv, order, set_process, failure)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)
        os.close(failure)
    with open(failures, "rb") as file:
        reason = file.read(_MAX_FAILURE_BYTES)
    if reason:
        os.waitpid(pid, 0)
        raise OSError(reason.decode())
    return pid


def become(argv: list[str], order: dict[str, Any], set_process: Callable[[int], bool], failure: int) -> NoReturn:
    """Turn this process, just forked, into a program of the run. If that is impossible, write why, and end."""
    try:
        for number in (*_REQUESTS, signal.SIGPIPE, signal.SIGXFSZ):  # Python itself ignores the last two
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)
        os.umask(order["umask"])
        if order["account"] is not None:
            uid, groups = order["account"]
            take_account(uid, groups, set_process)
        for limited, bound in order["rlimits"]:
            limit(limited, bound)
        order.get("execute", os.execvpe)(argv[0], argv, order["env"])
    except BaseException as error:  # noqa: BLE001 - whatever it is, this process must not go on as a shim
        os.write(failure, str(getattr(error, "strerror", None) or error).encode(errors="replace")[:_MAX_FAILURE_BYTES])
    os._exit(1)


def take_account(uid: int, groups: list[int], set_process: Callable[[int], bool]) -> None:
    """Give up the server's account for another one, for good: also a program with the set-user-ID bit does not bring it back.
    Raises OSError."""
    if not set_process(_PR_SET_NO_NEW_PRIVS):
        raise OSError(errno.ENOSYS, "the privileges of the server can't be given up")
    os.setgroups(groups)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def limit(limited: int, bound: int) -> None:
    """Limit a resource of this process, and of each that it starts, for good. Raises OSError, ValueError."""
    hard = resource.getrlimit(limited)[1]
    bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
    resource.setrlimit(limited, (bound, bound))


def open_to_account(descriptor: int, order: dict[str, Any], mode: int) -> None:
    """Give the account of the programs some rights on a file that stays the server's. Raises OSError."""
    if order["account"] is not None:
        os.fchown(descriptor, -1, order["account"][0])
        os.fchmod(descriptor, mode)


def wait(pid: int) -> int:
    """Wait for a program, and return its wait status. Meanwhile, reap any other child that ends."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return status


def outlives_all(asked: list[int]) -> bool:
    """Stay until no process of the run is left, up to a time limit, and return whether none is.

    What the programs have left behind is killed, unless the run was asked to end: then it has the server's grace period.
    """
    deadline = time.monotonic() + _LINGER_SECONDS
    with suppress(OSError):  # this kernel does not list children: the server has to look for them
        while time.monotonic() < deadline:
            if not reap_children():
                return True
            if not asked or KILL_REQUEST in asked:
                kill_children()
            time.sleep(_LOOK_SECONDS)
    return False


def reap_children() -> bool:
    """Reap all children that have ended, and return whether there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def kill_children(number: int = signal.SIGKILL) -> None:
    """Kill all children, or signal them otherwise. The children of one that ends are adopted by this process, so repeating it
    ends any tree. Raises OSError."""
    with open("/proc/thread-self/children") as children:
        for pid in map(int, children.read().split()):
            os.kill(pid, number)  # its id is not reused until it is reaped


def load_prctl() -> Callable[[int], bool]:
    """Return a function that sets an attribute of the calling process (`prctl`) to 1, and returns whether that worked."""
    try:
        import ctypes  # not every Python has it

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return lambda _: False
    return lambda option: prctl(*map(ctypes.c_ulong, (option, 1, 0, 0, 0))) == 0


def open_untrapped(path: str, flags: int) -> int:
    """Open a file. A link or FIFO in its place, left by an earlier attempt, is an error. Raises OSError."""
    return os.open(path, flags | _NO_TRAP, _FILE_MODE)


def redirect(path: str, flags: int, *descriptors: int) -> None:
    """Open a file as these descriptors, which a program inherits."""
    opened = os.open(path, flags, _PRIVATE_MODE)
    for descriptor in descriptors:
        os.dup2(opened, descriptor)
    if opened not in descriptors:
        os.close(opened)


def start_time(pid: int) -> str:
    """Return when a process started, in kernel ticks. Together with the pid, this identifies the process for good."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        # The second field, the name, may hold spaces and parentheses, so count from its end. The start time is the 22nd field.
        return stat.read().rpartition(b")")[2].split()[19].decode()


def set_name(name: str) -> None:
    """Name this process, for `ps` and for a server that looks for it."""
    with open("/proc/self/comm", "w") as comm:
        comm.write(name)


def note(exits: int, line: str) -> None:
    """Append a line to the record of the run's end, in one write. Readers accept only complete lines."""
    with suppress(OSError):  # what is left of the run has to be ended anyway
        os.write(exits, (line.replace("\n", " ") + "\n").encode(errors="replace"))


def sync(path: str) -> None:
    """Flush a file to disk.

    For `pid`, so that even after a power cut nobody takes the run for one that never began. The program does not wait for it:
    what it writes to this disk comes after `pid` in the file system's journal.
    """
    descriptor = os.open(path, os.O_RDONLY | _NO_TRAP)
    os.fsync(descriptor)
    os.close(descriptor)


if __name__ == "__main__":
    main()
    os._exit(0)  # there is nothing to clean up
