# ruff: noqa: PTH110, PTH123
"""A tiny preparation that does what the file `how` in the model's folder says. Run by a bare interpreter, as the toy harness.

Each start adds a line to `preparations` in TOY_DIR, and those that wait do so for `release/preparation` there.
"""

import os
import signal
import sys
import time

_, model, output = sys.argv
TOY_DIR = os.environ["TOY_DIR"]


def prepare():
    """Copy the value of the model."""
    with open(f"{model}/value") as value, open(f"{output}/prepared", "w") as file:
        file.write(value.read())


def wait():
    while not os.path.exists(f"{TOY_DIR}/release/preparation"):
        time.sleep(0.01)
    prepare()


def wait_in_the_future():
    os.utime(f"{output}/../..", (2**33, 2**33))
    wait()


def fail():
    prepare()
    wait()
    raise ValueError("the shards don't fit together")


def leave_nothing():
    """Succeed with nothing."""


def change():
    prepare()
    with open(f"{model}/value", "a") as file:
        file.write("0")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def shout():
    while True:
        print("x" * 10_000, flush=True)


descriptor = os.open(f"{TOY_DIR}/preparations", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
os.write(descriptor, f"{model}\n".encode())
os.close(descriptor)
print(f"preparing {model}", flush=True)
with open(f"{model}/how") as how:
    globals()[how.read()]()
