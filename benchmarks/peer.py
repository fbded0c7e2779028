"""The peer: lmms-eval's own HTTP server. The same requests to both servers, made by equally lean clients."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from statistics import median
from typing import Final

from google.protobuf.json_format import MessageToDict

from benchmarks import messages
from benchmarks.calls import Load, rates
from benchmarks.filling import fill
from benchmarks.h2load import GrpcCall, HttpCall
from benchmarks.processes import PEER_PYTHON, Server, evalrpc_server, peer_server, workplace
from benchmarks.report import Row, compare, figures, in_turn, ratio_at_least
from benchmarks.scale import Scale
from benchmarks.scheduling import PROGRAM, one_run, timed_server
from benchmarks.store_size import idle
from evalrpc.client import EvalClient

_FEW_QUEUED: Final = 10
_SLOWER: Final = 20
"""With a long queue the peer gets fewer calls by this factor; otherwise it would take most of an hour."""

_POLL_SECONDS: Final = 5.0
"""The default polling interval of the peer's client."""

_NOTE: Final = "yardstick: the peer"

# Runs in the peer's environment, with its own client.
_WAIT: Final = """\
import sys, tempfile, time
from pathlib import Path
from lmms_eval.entrypoints import EvalClient
client = EvalClient(f"http://{sys.argv[1]}")
for seconds in sys.argv[2:]:
    with tempfile.TemporaryDirectory() as folder:
        job = client.evaluate(seconds, ["t"], num_gpus=2, output_dir=folder)
        client.wait_for_job(job["job_id"], verbose=False)
        print(time.time() - int((Path(folder) / "ended").read_text()) / 1e9)
"""


def single_calls(scale: Scale) -> Iterator[Row]:
    """GetJob with a short queue, and SubmitJob: durable in our server, kept only in memory by the peer."""
    with _both(_FEW_QUEUED) as (ours, get_ours, peer, get_theirs):
        getting = Load(ours, get_ours, scale.calls), Load(peer, get_theirs, scale.calls)
        for in_flight in (1, 32):
            name = f"GetJob, {_FEW_QUEUED} queued, beside the peer"
            yield from rates(name, scale, getting, in_flight, ratio_at_least(1.0), _NOTE)
        submitting = Load(ours, GrpcCall(messages.submit()), scale.calls), Load(peer, _post(), scale.calls)
        note = "yardstick: the peer, which keeps nothing on the disk"
        yield from rates("SubmitJob, durable, beside the peer", scale, submitting, 64, ratio_at_least(1.0), note)


def long_queue(scale: Scale) -> Iterator[Row]:
    """GetJob of the last of many queued jobs, and the queue itself."""
    with _both(scale.queued) as (ours, get_ours, peer, get_theirs):
        fewer = scale.calls // _SLOWER
        last = Load(ours, get_ours, scale.calls), Load(peer, get_theirs, fewer)
        name = f"GetJob of the last of {scale.queued:,} queued, beside the peer"
        yield from rates(name, scale, last, 32, ratio_at_least(10.0), _NOTE)
        queue = Load(ours, GrpcCall(messages.get_queue()), scale.calls), Load(peer, HttpCall("/queue"), fewer)
        note = "yardstick: the peer, which answers all ids; ours answers the first 1,000"
        for in_flight in (1, 32):
            name = f"GetQueue, {scale.queued:,} queued, beside the peer"
            yield from rates(name, scale, queue, in_flight, ratio_at_least(20.0), note)


def time_to_know(scale: Scale) -> Iterator[Row]:
    """The time from the end of a job's program until its client knows: by our stream, and by the peer's own polling client."""
    count = max(4, scale.changes // 25)
    run_seconds = [0.2 + _POLL_SECONDS * number / count for number in range(count)]  # evenly spread between two polls
    with timed_server(0) as ours, EvalClient(ours.address) as client:
        watched = [one_run(client, seconds)[1] for seconds in run_seconds]
    with workplace() as folder:
        (folder / "program.sh").write_text(PROGRAM)
        with peer_server(folder, folder / "program.sh") as server:
            polled = _wait_as_the_peer_does(server, run_seconds)
    figure = "the program's end to the client knowing, median, beside the peer"
    note = f"{count} jobs of 0.2 to 5.2 s in turn; yardstick: the peer's own client, which polls every {_POLL_SECONDS:.0f} s"
    ours_ms, peers_ms = median(watched) * 1e3, median(polled) * 1e3
    yield Row(figure, "ms", ours_ms, peers_ms, ours_ms / peers_ms, note=note)


def at_rest(scale: Scale) -> Iterator[Row]:
    """Start time and memory of idle servers."""
    with workplace() as folder:
        sides = in_turn(
            min(scale.rounds, 3),
            lambda: idle(lambda: evalrpc_server(folder), GrpcCall(messages.get_queue())),
            lambda: idle(lambda: peer_server(folder, folder / "hold.sh"), HttpCall("/queue")),
        )
    seconds, megabytes = (figures(sides, itemgetter(index)) for index in (0, 1))
    yield compare("start, beside the peer", "s", seconds, note=f"until it listens; {_NOTE}")
    yield compare("memory of an idle server, beside the peer", "MB", megabytes, note=f"after one call; {_NOTE}")


@contextmanager
def _both(queued: int) -> Iterator[tuple[Server, GrpcCall, Server, HttpCall]]:
    """Run both servers, with jobs queued behind one that holds the GPU; yield each with its request for the last."""
    with workplace() as folder, peer_server(folder, folder / "hold.sh") as peer:
        ours = GrpcCall(messages.get_job(fill(folder / "data", queued=queued + 1)[-1]))
        _post().repeat(peer.address, queued, min(queued, 64), 1)
        theirs = HttpCall(f"/jobs/{_submit(peer)}")
        with evalrpc_server(folder) as server:
            yield server, ours, peer, theirs


def _post() -> HttpCall:
    """Submit the job that `messages.submit` submits, but with two GPUs, as `peer_server` requires."""
    request = messages.evaluate_request()
    request.num_gpus = 2
    return HttpCall("/evaluate", json.dumps(MessageToDict(request, preserving_proto_field_name=True)).encode())


def _submit(peer: Server) -> str:
    """Submit a job and return its id."""
    post = _post()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://{peer.address}{post.path}", post.body, headers)
    with urllib.request.urlopen(request) as answer:
        return str(json.load(answer)["job_id"])


def _wait_as_the_peer_does(peer: Server, run_seconds: Sequence[float]) -> list[float]:
    """Return the seconds from the end of each job's program until the peer's client knew."""
    command = (str(PEER_PYTHON), "-c", _WAIT, peer.address, *map(str, run_seconds))
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [float(line) for line in output.split()]
