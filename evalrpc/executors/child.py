# ruff: noqa: PTH104, PTH118, PTH123 - it is run by a bare interpreter, without pathlib
"""The parent process of one run: starts its programs one after the other, waits for each, and writes down how it ended.

It outlives the server, so a server that comes back still learns the outcome. The server starts it ahead of time, since an
interpreter takes longer to start than a run may wait, and sends it its order when there is one:

    python -I -S child.py PID START_TIME < ORDER

PID and START_TIME name the server. The order is a dict in Python's own marshal format, since to import json would take as long
as the interpreter itself; both are of one installation. It has `steps` (programs with their arguments), `env`, `cwd`, `log` (of
all output) and `traces_dir`. There it leaves `pid`: its own process id and start time, and `exit`: a line for every step
that has ended, with the size of the log then, and `code N`, `signal N`, or `error TEXT` where the program could not be started.
With no order, because the server has ended, it ends too.

Once its `pid` is written it takes the name RUN_NAME. Until then it may still be about to begin a run.
"""

import marshal
import os
import signal
import sys

PID_FILE = "pid"
EXIT_FILE = "exit"
RUN_NAME = "evalrpc-run"


def main() -> None:
    """Wait for an order, and carry it out. Asked to end meanwhile, start no more steps of it."""
    asked: list[int] = []
    # The signals that end the group are for the program. A handler, unlike SIG_IGN, is not passed on to it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: asked.append(number))
    order_bytes = sys.stdin.buffer.read()
    if not order_bytes:
        return
    asked.clear()
    order = marshal.loads(order_bytes)  # noqa: S302 - from the server itself
    traces_dir = order["traces_dir"]
    # On the disk before the program starts: after a power cut too, nobody takes it for one that never did.
    write(os.path.join(traces_dir, PID_FILE), f"{os.getpid()} {start_time(os.getpid())}", durably=True)
    set_name(RUN_NAME)
    ends = ""
    for argv in order["steps"]:
        if asked:
            return
        outcome = run(argv, order["env"], order["cwd"], order["log"])
        ends += f"{os.fstat(1).st_size} {outcome}\n"
        # Before the next one starts: what stands further down in the log is then known not to be of this one.
        write(os.path.join(traces_dir, EXIT_FILE), ends, durably=False)


def run(argv: list[str], env: dict[str, str], cwd: str, log: str) -> str:
    """Start the program, wait for it, and describe its end."""
    try:
        os.environ.clear()
        os.environ.update(env)  # also for the PATH in which the program is looked for
        os.chdir(cwd)
        redirect(os.devnull, os.O_RDONLY, 0)
        redirect(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 1, 2)
        pid = os.posix_spawnp(argv[0], argv, env)
    except (OSError, ValueError) as error:
        return f"error {argv[0]}: {getattr(error, 'strerror', None) or error}"
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"code {os.WEXITSTATUS(status)}"


def redirect(path: str, flags: int, *descriptors: int) -> None:
    """Open a file as these descriptors, which a program inherits."""
    opened = os.open(path, flags, 0o666)
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


def write(path: str, text: str, durably: bool) -> None:
    """Replace a file in one step, and if durably, not before its bytes are on the disk."""
    temporary = path + ".new"
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        if durably:
            os.fsync(file.fileno())
    os.rename(temporary, path)


if __name__ == "__main__":
    main()
    os._exit(0)  # nothing is left to tidy up, and the server waits for this end
