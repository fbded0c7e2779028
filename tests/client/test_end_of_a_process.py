"""A process that has used the client ends, whatever became of its calls."""

import subprocess
import sys

PROGRAM = """
import gc, sys
import evalrpc.client

class Call:
    def __del__(self):
        print("too late" if sys.is_finalizing() else "in time")

gc.disable()
call = Call()
call.itself = call
del call
"""


def test_garbage_is_collected_while_all_threads_are_there() -> None:
    """A broken call of gRPC in a reference cycle takes a lock when it is collected. The thread that held it may be gone."""
    ran = subprocess.run((sys.executable, "-c", PROGRAM), capture_output=True, text=True, check=True)
    assert ran.stdout == "in time\n"
