# ruff: noqa: PTH104, PTH108, PTH118, PTH123 - it is run by a bare interpreter, without pathlib
"""What Slurm runs on a node: the shim of a run, as the batch script. `script.py` puts the shim's own text before it.

Of several submissions of one run the first to make the file CLAIM_FILE runs it, and the others do nothing: so the server may
submit again where it did not hear an answer. Where the server itself is the first (WITHDRAWN), none of them ever does anything.

slurmstepd starts it, and may be killed. Then nobody ends what the run has left: so it ends all of it, and itself, once
slurmstepd is gone, and leaves LOST_FILE, since Slurm may take the job for running still. The server may ask it to end by
STOP_FILE, too, as where Slurm does not answer, or has lost sight of it.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from evalrpc.executors.local import shim

ORDER_FILE = "order"
CLAIM_FILE = "claim"
STOP_FILE = "stop"
LOST_FILE = "lost"
WITHDRAWN = "withdrawn"
"""What CLAIM_FILE has in place of the id of a job if it was the server that made it."""

STOP_LOOK_SECONDS = 2.0
"""How often a run looks whether the server has left STOP_FILE for it."""


_FROM_NODE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL")
"""What Slurm says of the devices of a run, which only it knows."""

_PR_SET_PDEATHSIG = 1  # the signal that `prctl` sets is number 1, too: SIGHUP


def main(traces_dir: str) -> None:
    """Carry out the order in a folder, unless another submission does or did."""
    if not claim(os.path.join(traces_dir, CLAIM_FILE), os.environ.get("SLURM_JOB_ID", "")):
        return
    order = take_order(os.path.join(traces_dir, ORDER_FILE))
    asked, set_process = shim.get_ready()
    # slurmstepd has made this process the leader of a group, which can't become that of a session.
    os.setsid = lambda: None
    follow_parent(traces_dir, asked, set_process)
    none_left = shim.carry_out(order, asked, set_process)
    os._exit(0 if none_left else 1)


def claim(path: str, name: str) -> bool:
    """Return whether this process is the first that claims the run, in this name. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, name.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def take_order(path: str) -> dict[str, Any]:
    """Read what to run, and remove it, since it may have secrets. Raises OSError."""
    with open(path) as file:
        order: dict[str, Any] = json.load(file)
    os.unlink(path)
    if order["has_devices"]:
        order["env"].update({name: os.environ[name] for name in _FROM_NODE if name in os.environ})
    if "TMPDIR" in os.environ:  # where the cluster gives each job one of its own
        order["env"]["TMPDIR"] = os.environ["TMPDIR"]
    return order


def follow_parent(traces_dir: str, asked: list[int], set_process: Callable[[int], bool]) -> None:
    """Kill all processes of the run when KILL_REQUEST comes, or slurmstepd is gone; do what STOP_FILE says."""
    parent, stops = os.getppid(), Stops(traces_dir)

    def end_all(number: int, _: object) -> None:
        if number == signal.SIGHUP:
            if os.getppid() == parent:
                return  # only the thread of slurmstepd that has started it is gone
            write_word(traces_dir, LOST_FILE, "")
        asked.append(shim.KILL_REQUEST)
        with suppress(OSError):
            shim.kill_children()  # those of its own that these leave are adopted, and killed in the end

    def look(_: int, frame: object) -> None:
        number = stops.look()
        if number == shim.KILL_REQUEST:
            end_all(number, frame)
        elif number is not None:
            asked.append(number)
            with suppress(OSError):
                shim.kill_children(number)

    for number in (signal.SIGHUP, shim.KILL_REQUEST):
        signal.signal(number, end_all)
    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, STOP_LOOK_SECONDS, STOP_LOOK_SECONDS)  # no program inherits it
    set_process(_PR_SET_PDEATHSIG)
    if os.getppid() != parent:
        sys.exit(1)


class Stops:
    """What the server asks of a run by STOP_FILE in this folder."""

    def __init__(self, traces_dir: str) -> None:
        self._path = os.path.join(traces_dir, STOP_FILE)
        self._seen = ""

    def look(self) -> int | None:
        """Return the signal that is asked for, once for each; KILL_REQUEST as long as it is."""
        try:
            with open(self._path, opener=shim.open_untrapped) as file:
                text = file.read()
            number = int(text)
        except (OSError, ValueError):
            return None
        if number != shim.KILL_REQUEST and text == self._seen:
            return None
        self._seen = text
        return number


def ask_to_stop(traces_dir: str, number: int) -> None:
    """Ask a run for what it would do at a signal: SIGTERM, or KILL_REQUEST."""
    write_word(traces_dir, STOP_FILE, str(number))


def write_word(traces_dir: str, name: str, text: str) -> None:
    """Write a file, at once, unless that is impossible."""
    path = os.path.join(traces_dir, name)
    with suppress(OSError):
        with open(path + ".new", "w", opener=shim.open_untrapped) as file:
            file.write(text)
        os.rename(path + ".new", path)
