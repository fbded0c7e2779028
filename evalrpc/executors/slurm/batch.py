# ruff: noqa: PTH108, PTH118, PTH123 - it is run by a bare interpreter, without pathlib
"""What Slurm runs on a node: the shim of a run, as the batch script. `script.py` puts the shim's own text before it.

Of several submissions of one run the first to make the file CLAIM_FILE runs it, and the others do nothing: so the server may
submit again where it did not hear an answer.

slurmstepd starts it, and may be killed. Then nobody ends what the run has left, and Slurm takes it for ended: so it ends all
of it, and itself, once slurmstepd is gone.
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

_FROM_NODE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL")
"""What Slurm says of the devices of a run, which only it knows."""

_PR_SET_PDEATHSIG = 1  # the signal that `prctl` sets is number 1, too: SIGHUP


def main(traces_dir: str) -> None:
    """Carry out the order in a folder, unless another submission does or did."""
    if not claim(os.path.join(traces_dir, CLAIM_FILE)):
        return
    order = take_order(os.path.join(traces_dir, ORDER_FILE))
    asked, set_process = shim.get_ready()
    # slurmstepd has made this process the leader of a group, which can't become that of a session.
    os.setsid = lambda: None
    follow_parent(asked, set_process)
    none_left = shim.carry_out(order, asked, set_process)
    os._exit(0 if none_left else 1)


def claim(path: str) -> bool:
    """Return whether this process is the first that claims the run. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    os.write(descriptor, os.environ.get("SLURM_JOB_ID", "").encode())
    os.fsync(descriptor)
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


def follow_parent(asked: list[int], set_process: Callable[[int], bool]) -> None:
    """Kill all processes of the run when KILL_REQUEST comes, or slurmstepd is gone."""
    parent = os.getppid()

    def end_all(number: int, _: object) -> None:
        if number == signal.SIGHUP and os.getppid() == parent:
            return  # only the thread of slurmstepd that has started it is gone
        asked.append(shim.KILL_REQUEST)
        with suppress(OSError):
            shim.kill_children()  # those of its own that these leave are adopted, and killed in the end

    for number in (signal.SIGHUP, shim.KILL_REQUEST):
        signal.signal(number, end_all)
    set_process(_PR_SET_PDEATHSIG)
    if os.getppid() != parent:
        sys.exit(1)
