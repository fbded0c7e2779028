"""Whether it is a run that listens at a port."""

import socket

import pytest
from running import Runs
from waiting import eventually

LISTENS = """
import os, socket, sys, time
if sys.argv[1] == "child" and os.fork():
    os.wait()
family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
listener = socket.create_server((sys.argv[2], 0), family=family, reuse_port=True)
print("port", listener.getsockname()[1], flush=True)
time.sleep(1000)
"""


def port_in_log(runs: Runs) -> int:
    runs.wait_for_log("port ")
    return int(eventually(lambda: runs.log().endswith("\n") and runs.log()).split()[-1])


@pytest.mark.parametrize(
    ("who", "address"), [("itself", "127.0.0.1"), ("child", "127.0.0.1"), ("itself", "0.0.0.0"), ("itself", "::")]
)
def test_the_port_of_a_run_is_its_own(runs: Runs, who: str, address: str) -> None:
    handle = runs.start(LISTENS, who, address)
    port = port_in_log(runs)
    assert handle.owns_port(port) is True
    assert runs.find().owns_port(port) is True
    handle.end(0.0)
    assert handle.owns_port(port) is None


def test_the_port_of_another_program_is_not_the_runs(runs: Runs) -> None:
    handle = runs.start("import time; time.sleep(1000)")
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert handle.owns_port(other.getsockname()[1]) is False


def test_nobody_has_a_port_that_is_only_bound(runs: Runs) -> None:
    handle = runs.start("import time; time.sleep(1000)")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert handle.owns_port(bound.getsockname()[1]) is None


def test_a_port_at_which_others_listen_besides_is_not_the_runs(runs: Runs) -> None:
    handle = runs.start(LISTENS, "itself", "127.0.0.1")
    port = port_in_log(runs)
    assert handle.owns_port(port) is True
    with socket.create_server(("127.0.0.1", port), reuse_port=True):
        assert handle.owns_port(port) is False
