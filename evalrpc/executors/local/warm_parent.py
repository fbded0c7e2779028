"""A parent of warm runs: a process that has imported a harness, and forks each run from there.

    PYTHON warm_parent.py PID START_TIME

runs in the environment and the folder of the runs, and ends with the server that PID and START_TIME identify. The first
message from the server says what to import (`load`); the reply says what came of it. Then it takes orders and numbers as the
fork server does (`shim.py`): it forks the shim of a run, and the shim forks the programs, which begin where the imports have
ended. A program that has not been imported is executed, as by the fork server.

What was read at import must not differ from what a run would read. So an order is refused with ESTALE once a file has changed
that was imported, or could have been; and the reply to the first message has the names of the variables that were read.
"""

import atexit
import ctypes
import errno
import gc
import importlib
import importlib.util
import marshal
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, NoReturn

NO_JOB_VARIABLE = "EVALRPC_NO_JOB"
"""A variable that the parent is started with, as long as the one that marks the processes of a job, which takes its place."""

_HARMLESS_THREADS = frozenset({"jemalloc_bg_thd"})  # of Arrow, which starts it again after a fork
_READERS_BY_PREFIX = ("/tqdm/utils.py", "/fsspec/config.py")
"""What looks through all variables for those of its own, whose names begin with its own."""
_TICK_NS = 10_000_000  # by which the times of files are behind


def main() -> None:
    """Import what the server asks for, and fork a run for each order until the server is gone."""
    sys.path[0] = os.getcwd()  # as for `python -m`
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    _redirect_standard_streams()
    with suppress(EOFError, BrokenPipeError):
        parent = WarmParent(marshal.load(requests))  # noqa: S302 - from the server itself
        _reply(replies, parent.load())
        parent.get_ready([requests.fileno(), replies])
        while True:
            message = marshal.load(requests)  # noqa: S302 - as above
            _reply(replies, parent.answer(message))


def _reply(replies: int, answer: str) -> None:
    os.write(replies, answer.replace("\n", " ").encode(errors="surrogatepass") + b"\n")


class WarmParent:
    """What a parent has in memory, and how a run begins there. `order` is the first message of the server."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._program: list[str] = order["program"]
        self._shim = _load("evalrpc_shim", os.path.join(os.path.dirname(os.path.abspath(__file__)), "shim.py"))
        self._trees: list[str] = []
        self._watched: tuple[object, ...] = ()
        self._kept: frozenset[int] = frozenset()
        self._set_by_python = _set_by_python()
        self._own: list[int] = []

    def load(self) -> str:
        """Import everything, and return why nothing may be forked (empty: nothing), how many seconds it took, and the names of
        all variables that were read, all parted by NUL."""
        begun_ns = time.time_ns()
        with _noted_variables() as read:
            problem = self._import_all() or _problem()
        self._watched = tuple(self._marks())
        if any(_changed_since(path, begun_ns - _TICK_NS) for path in self._files()):
            problem = problem or "a file of it was changed while it was imported"
        seconds = (time.time_ns() - begun_ns) / 1e9
        return "\0".join((problem.replace("\0", " "), str(seconds), *sorted(read)))

    def get_ready(self, own: list[int]) -> None:
        """Become a process that forks shims. `own` are the descriptors that are none of the runs' business."""
        self._own = own
        self._asked, self._set_process = self._shim.get_ready()
        self._kept = frozenset(_descriptors()) - set(own)
        gc.collect()
        gc.freeze()  # so that no run copies all memory when it collects garbage

    def answer(self, message: Any) -> str:
        """Do what the server asks for. Return the id of a new shim, a negative errno, or a wait status, if there is one."""
        if isinstance(message, int):
            status = self._shim.status_of(message)
            return "" if status is None else str(status)
        return str(self._fork(message))

    def _fork(self, order: dict[str, Any]) -> int:
        if tuple(self._marks()) != self._watched:
            return -errno.ESTALE
        if "script" in order:
            return self._fork_script(order)
        order["execute"] = self._execute
        order["close"] = self._own
        return self._shim.fork(order, self._asked, self._set_process)  # type: ignore[no-any-return]

    def _import_all(self) -> str:
        """Import what runs will, and return why that is impossible. Any but the first may be missing in this version."""
        first, *others = self._order["modules"]
        try:
            os.chdir(self._order["folder"])  # as its runs will; it may be closed to this account
            script = _load("evalrpc_preload", self._order["script"]) if self._order["script"] else None
            if script is not None and hasattr(script, "prepare"):
                script.prepare()
            importlib.import_module(first)
            for name in others:
                with suppress(Exception):
                    importlib.import_module(name)
            if script is not None:
                self._trees = script.preload()
        except BaseException as error:  # noqa: BLE001 - whatever a package does when it is imported
            return f"it can't be imported beforehand: {type(error).__name__}: {error}"
        return ""

    def _marks(self) -> Iterator[object]:
        """Yield what changes with any file that was imported, or would be now."""
        for path in self._files():
            yield path, _mark(path)
        for folder in sys.path:
            yield _importable(folder)

    def _files(self) -> Iterator[str]:
        files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
        yield from sorted(set(filter(None, files)))
        for tree in self._trees:
            for folder, folders, names in os.walk(tree):
                folders[:] = sorted(each for each in folders if each != "__pycache__")
                yield from (os.path.join(folder, name) for name in sorted(names))

    def _execute(self, program: str, argv: Sequence[str], environment: dict[str, str]) -> NoReturn:
        """Become the harness, in a process just forked by the shim; or any other program."""
        length = len(self._program)
        if list(argv[:length]) != self._program:
            os.execvpe(program, list(argv), environment)  # noqa: S606 - no shell is wanted
        module = self._order["module"]
        sys.orig_argv = list(argv)
        sys.argv = [module, *argv[length:]]
        self._begin(program, environment)
        sys.modules.pop(f"{module}.__main__", None)  # it is run now
        _run(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))

    def _fork_script(self, order: dict[str, Any]) -> int:
        """Fork a process that runs a script, as `python -c` does. Return its id, or a negative errno."""
        try:
            pid = os.fork()
        except OSError as error:
            return -(error.errno or errno.EAGAIN)
        if pid == 0:
            try:
                os.setsid()
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
                for name, number in (("stdout", 1), ("stderr", 2)):
                    self._shim.redirect(order[name], os.O_WRONLY | os.O_APPEND, number)
                sys.argv = ["-c", *order["arguments"]]
                self._begin(self._program[0], order["env"])
                _run(lambda: exec(compile(order["script"], "<string>", "exec"), {"__name__": "__main__"}))  # noqa: S102 - ours
            finally:
                os._exit(1)
        return pid

    def _begin(self, program: str, environment: dict[str, str]) -> None:
        """Take on what a process of its own would have."""
        _take_environment({**self._set_by_python, **environment})
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_IGN)  # as Python does when it starts
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._shim.set_name(os.path.basename(program)[:15])
        _seed()
        sys.path[0] = os.getcwd()
        for descriptor in _descriptors() - self._kept - {0, 1, 2}:
            os.close(descriptor)


def _load(name: str, path: str) -> ModuleType:
    """Load a module of ours, which no program of a harness is to find."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} can't be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _redirect_standard_streams() -> None:
    """Keep what packages print when they are imported away from the server's pipes."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)


@contextmanager
def _noted_variables() -> Iterator[set[str]]:
    """Give a set to which the name of each variable is added that is read meanwhile."""
    read: set[str] = set()

    class Noted(os._Environ):  # type: ignore[type-arg]
        def __getitem__(self, name: str) -> str:
            if not _reader().endswith(_READERS_BY_PREFIX):
                read.add(name)
            return super().__getitem__(name)  # type: ignore[no-any-return]

    own = os.environ.__class__
    os.environ.__class__ = Noted
    try:
        yield read
    finally:
        os.environ.__class__ = own


def _reader() -> str:
    """Return the file of who reads a variable."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith("<frozen "):
        frame = frame.f_back
    return frame.f_code.co_filename


def _problem() -> str:
    """Return why this process must not be forked; empty: nothing."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised as soon as it is imported"
    for descriptor in _descriptors():
        with suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if path.startswith(("/dev/nvidia", "/dev/kfd", "/dev/dri")):
                return f"it opens {path} as soon as it is imported"
    if pid := os.fork():  # upon which libraries that know of forks end their threads
        os.waitpid(pid, 0)
    else:
        os._exit(0)
    if threads := sorted(set(_other_threads()) - _HARMLESS_THREADS):
        return f"it starts threads as soon as it is imported: {', '.join(threads)}"
    return ""


def _other_threads() -> Iterator[str]:
    for number in os.listdir("/proc/self/task"):
        if int(number) != os.getpid():
            with suppress(OSError), open(f"/proc/self/task/{number}/comm") as comm:
                yield comm.read().strip()


def _descriptors() -> set[int]:
    """Return the open descriptors, but for the one by which they are listed."""
    return {number for number in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{number}")}


def _importable(folder: str) -> object:
    """Return the names in a folder that Python might import, or that tell of an installation."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if _is_importable(entry))
    except OSError as error:  # such as a ZIP archive
        return _mark(folder), error.errno


def _is_importable(entry: "os.DirEntry[str]") -> bool:
    if entry.name.endswith((".py", ".so", ".pth", ".dist-info", ".egg-info")):
        return True
    return os.path.exists(os.path.join(entry.path, "__init__.py"))


def _mark(path: str) -> object:
    try:
        status = os.stat(path)  # thousands of them
    except OSError as error:
        return error.errno
    return status.st_mtime_ns, status.st_size, status.st_ino


def _changed_since(path: str, moment_ns: int) -> bool:
    try:
        return os.stat(path).st_ctime_ns > moment_ns
    except OSError:
        return False


def _set_by_python() -> dict[str, str]:
    """Return the variables that an interpreter sets for itself when it starts, such as LC_CTYPE (PEP 538)."""
    with open("/proc/self/environ", "rb") as file:
        given = {os.fsdecode(line.partition(b"=")[0]) for line in file.read().split(b"\0")}
    return {name: value for name, value in os.environ.items() if name not in given}


def _take_environment(environment: dict[str, str]) -> None:
    """Replace the variables of this process, also what others see of them: the mark by which processes of a job are found."""
    if environment["EVALRPC_JOB_ID"]:
        _show(f"EVALRPC_JOB_ID={environment['EVALRPC_JOB_ID']}")
    os.environ.clear()
    os.environ.update(environment)


def _show(mark: str) -> None:
    """Put the mark of a job in the place of a variable that this process was started with, where /proc shows it."""
    with open("/proc/self/environ", "rb") as file:
        place = file.read().index(f"{NO_JOB_VARIABLE}=".encode())
    with open("/proc/self/stat", "rb") as file:
        begin = int(file.read().rpartition(b")")[2].split()[47])
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(begin + place)
        memory.write(mark.encode())


def _seed() -> None:
    """Give each run random numbers of its own, as a process of its own would have."""
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()


def _run(act: Callable[[], object]) -> NoReturn:
    """Run a program, and end as an interpreter would."""
    code = 1
    try:
        act()
        code = 0
    except SystemExit as error:
        code = _code_of(error)
    except BaseException as error:  # noqa: BLE001 - as the interpreter does
        frames = error.__traceback__ and error.__traceback__.tb_next  # without those of this file
        error.__traceback__ = frames and frames.tb_next
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            code = -signal.SIGINT
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        ctypes.CDLL(None).fflush(None)
    except BaseException as error:  # noqa: BLE001 - as above
        sys.excepthook(type(error), error, error.__traceback__)
        code = code or 120
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


def _code_of(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)  # as the interpreter does
    return 1


if __name__ == "__main__":
    main()
    os._exit(0)
