"""What the server of the hostile campaign runs: it leaves good results, and then does whatever its kind says.

    program.py OUTPUT_DIR JOB_ID KIND [HARNESS]

`kinds.json` beside it has the code of each kind, which uses the names below.
"""

import ctypes  # noqa: F401 - for the code of kinds
import json
import os
import resource  # noqa: F401
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

OUTPUT, JOB_ID, KIND = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
ATTEMPT = OUTPUT.parent
LOG, RUN = ATTEMPT / "log", ATTEMPT / "run"
STAMP = "20260214_103045"
RESULTS = OUTPUT / "m" / f"{STAMP}_results.json"
SAMPLES = OUTPUT / "m" / f"{STAMP}_samples_t.jsonl"
INSPECT_LOG = OUTPUT / "2026-02-14T10-30-45-00-00_t_x.json"
MIB = 1024 * 1024
TIB = 1024**4
ODD = ("not UTF-8 \udcff\udcfe", "two\nlines", "\x1b[31mred\x07", "-rf", "a" * 255, "%s{model}$(id)", " ")
PR_SET_DUMPABLE, PR_SET_PDEATHSIG = 4, 1


def leave_results() -> None:
    """Leave what a good run does: a metric that the job's id tells, and samples."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"results": {"t": {"alias": "t", "acc,none": int(JOB_ID[:8], 16) / 2**32}}}))
    SAMPLES.write_text("".join(json.dumps({"doc_id": number, "acc": number % 2}) + "\n" for number in range(40)))


def leave_inspect_log(samples: str = '[{"id": 1, "epoch": 1}]', rest: str = "}") -> None:
    """Leave what a good run of inspect-ai does."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    scores = [{"name": "s", "metrics": {"accuracy": {"name": "accuracy", "value": 0.5}}}]
    counts = {"total_samples": 1, "completed_samples": 1, "scores": scores}
    header = {"status": "success", "eval": {"task": "t", "model": "mock/m"}, "results": counts}
    INSPECT_LOG.write_text(json.dumps(header)[:-1] + f', "samples": {samples}{rest}')


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put(kind: str, path: Path) -> None:
    """Replace a file or a folder by something else."""
    remove(path)
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to("/etc")
        case "device":
            path.symlink_to("/dev/zero") if os.geteuid() else os.mknod(path, 0o20666, os.makedev(1, 5))
        case "socket":
            os.chdir(path.parent)
            socket.socket(socket.AF_UNIX).bind(path.name)


def sparse(path: Path, size_bytes: int = 4 * TIB) -> None:
    """Make a file larger, which takes no space."""
    with path.open("ab"):
        os.truncate(path, size_bytes)


def repeat(path: Path, before: bytes, part: bytes, size_bytes: int, after: bytes) -> None:
    with path.open("wb") as file:
        file.write(before)
        block = part * (MIB // len(part))
        for _ in range(size_bytes // len(block)):
            file.write(block)
        file.write(after)


def deep(count: int) -> None:
    """Make folders inside one another, deeper than any path may be long."""
    os.chdir(OUTPUT)
    for _ in range(count):
        os.mkdir("d")  # noqa: PTH102 - the path of the folder would be too long
        os.chdir("d")
    Path("deepest").write_text("x")


def many_files(count: int, folder: Path = OUTPUT / "many") -> None:
    folder.mkdir(exist_ok=True)
    root = os.open(folder, os.O_RDONLY)
    for number in range(count):
        os.close(os.open(f"{number:07}", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=root))


def own_cgroup() -> Path | None:
    """Return the cgroup of this run, where it may write to that."""
    own = Path("/proc/self/cgroup").read_text().partition("0::/")[2].splitlines()
    places = [Path(mount, *own[:1]) for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")]
    return next((place for place in places if os.access(place / "cgroup.procs", os.W_OK) and JOB_ID in place.name), None)


def deep_cgroups(count: int) -> None:
    """Make cgroups within this run's own, and leave a process in the last. Names are long, so that no path reaches it."""
    os.chdir(own_cgroup() or OUTPUT)
    for _ in range(count):
        os.mkdir("c" * 200)  # noqa: PTH102 - as above
        os.chdir("c" * 200)
    if own_cgroup() and os.fork() == 0:
        os.setsid()
        Path("cgroup.procs").write_text("0")
        stay()


def freeze() -> None:
    """Stop all processes of this run, the shim included, where that can be done."""
    if cgroup := own_cgroup():
        (cgroup / "cgroup.freeze").write_text("1")


def odd_names(folder: Path) -> None:
    for name in ODD:
        (folder / name).write_text(name[:1])
        (folder / f"folder {name}"[:255]).mkdir()
        (folder / f"folder {name}"[:255] / "in it").write_text("x")


def flood(size_bytes: int, block: bytes = b"x" * MIB) -> None:
    for _ in range(size_bytes // len(block)):
        os.write(1, block)


def stay() -> None:
    time.sleep(1000)


def daemon(*command: str) -> None:
    """Start a program that has left this run's session and its parent."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp(command[0], command)
        os._exit(0)


def forks(count: int, **limits: int) -> None:
    for _ in range(count):
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            stay()


def row(**values: Any) -> None:
    """Add a row of samples."""
    with SAMPLES.open("a") as file:
        file.write(json.dumps({"doc_id": 40, "acc": 1, **values}) + "\n")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def metrics(**values: Any) -> None:
    """Add metrics to the results."""
    document = json.loads(RESULTS.read_text())
    document["results"]["t"] |= values
    RESULTS.write_text(json.dumps(document))


def question(content: str = '"q"') -> bytes:
    """Return what a harness sends to ask a served model."""
    path = os.environ["OPENAI_BASE_URL"].split("/", 3)[3]
    body = f'{{"model": "m", "messages": [{{"role": "user", "content": {content}}}]}}'.encode()
    head = f"POST /{path}/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def begin(data: bytes) -> socket.socket:
    """Send something to the gateway, and read nothing."""
    host, port = os.environ["OPENAI_BASE_URL"].split("/")[2].split(":")
    connection = socket.create_connection((host, int(port)), 20)
    try:
        connection.sendall(data)
    except OSError as error:  # it has heard enough
        print(error)
    return connection


def ask(data: bytes) -> bytes:
    """Send something to the gateway, and return what comes of it."""
    with begin(data) as connection:
        try:
            return connection.recv(1000)
        except OSError as error:
            return str(error).encode()


def again_and_again(act: str) -> None:
    """Do something for as long as the run lives, in a process of its own."""
    if os.fork() == 0:
        while True:
            exec(act)
    time.sleep(0.5)


def main() -> None:
    leave_inspect_log() if sys.argv[4:] == ["inspect"] else leave_results()
    code = json.loads(Path(__file__).with_name("kinds.json").read_text())[KIND]
    print("begun", flush=True)
    exec(code, globals())


if __name__ == "__main__":
    main()
