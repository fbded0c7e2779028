# ruff: noqa: PTH101, PTH103, PTH104, PTH108, PTH120, PTH123, PTH208, PTH211
"""A run that tries what it must not, and prints what became of each try as JSON: the name of the error, or `done`.

hostile_run.py TARGETS.json OUTPUT_DIR MODEL
"""

import ctypes
import errno
import json
import os
import signal
import sys

PTRACE_ATTACH = 16

targets_path, output_dir, model = sys.argv[1:4]
with open(targets_path) as file:
    targets = json.load(file)
attempt_dir = os.path.dirname(output_dir)
libc = ctypes.CDLL(None, use_errno=True)


def read(path):
    with open(path, "rb") as file:
        return file.read(1)


def write(path):
    with open(path, "ab") as file:
        file.write(b"x")


def attach(pid):
    if libc.ptrace(PTRACE_ATTACH, pid, 0, 0):
        raise OSError(ctypes.get_errno(), "")


def tries():
    for name, path in targets["files"].items():
        yield f"read {name}", lambda path=path: read(path)
        yield f"write {name}", lambda path=path: write(path)
    for name, path in {**targets["folders"], "the traces": f"{attempt_dir}/run", "the attempt": attempt_dir}.items():
        yield f"list {name}", lambda path=path: os.listdir(path)
        yield f"write into {name}", lambda path=path: write(f"{path}/new")
        yield f"open up {name}", lambda path=path: os.chmod(path, 0o777)
    for name in ("pid", "exit"):
        yield f"write {name}", lambda name=name: write(f"{attempt_dir}/run/{name}")
    yield "remove its log", lambda: os.unlink(f"{attempt_dir}/log")
    yield "replace its output", lambda: os.rename(output_dir, f"{output_dir}-2")
    for name, pid in {**targets["processes"], "its shim": os.getppid()}.items():
        yield f"read the environment of {name}", lambda pid=pid: read(f"/proc/{pid}/environ")
        yield f"read the memory of {name}", lambda pid=pid: read(f"/proc/{pid}/mem")
        yield f"list the descriptors of {name}", lambda pid=pid: os.listdir(f"/proc/{pid}/fd")
        yield f"trace {name}", lambda pid=pid: attach(pid)
        yield f"end {name}", lambda pid=pid: os.kill(pid, signal.SIGKILL)
    if targets["cgroup"]:
        yield "leave its cgroup", lambda: write(f"{targets['cgroup']}/cgroup.procs")
    yield "become root", lambda: os.setuid(0)
    yield "join a group", lambda: os.setgroups([0])


def outcome(attack):
    try:
        attack()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"


print(json.dumps({name: outcome(attack) for name, attack in tries()}), flush=True)
print(
    json.dumps({"uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(), "home": os.environ["HOME"]}), flush=True
)
with open("/dev/stderr", "a") as file:
    file.write("through /dev/stderr\n")
with open(f"{os.environ['HOME']}/kept", "a") as file:
    file.write("x")
os.makedirs(f"{output_dir}/{model}/deep/er", mode=0o777)
os.chmod(output_dir, 0o777)
os.symlink("/etc/passwd", f"{output_dir}/link")
os.mkfifo(f"{output_dir}/fifo")
with open(f"{output_dir}/program", "w") as file:
    os.fchmod(file.fileno(), 0o6777)
with open(f"{output_dir}/{model}/20260101_000000_results.json", "w") as file:
    json.dump({"results": {"t": {"alias": "t", "acc,none": 0.5}}, "n-samples": {"t": {"original": 1, "effective": 1}}}, file)
