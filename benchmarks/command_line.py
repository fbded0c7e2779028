"""`python -m benchmarks [NAME...] [--scale small|full] [--rounds N] [--clients N] [--out DIR]`."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks import (
    browsers,
    calls,
    choosing,
    comparing,
    falling,
    gateway,
    h2load,
    hostile,
    methods,
    parsing,
    peer,
    postgres,
    reading,
    report,
    scheduling,
    served,
    servers,
    sizes,
    slurm,
    store_size,
    values,
    warm,
    watching,
)
from benchmarks.processes import PEER_PYTHON
from benchmarks.scale import SCALES, Scale

COMPARISONS: Final[Mapping[str, Callable[[Scale], Iterator[report.Row]]]] = {
    "get-job": calls.get_job,
    "get-job-over-connect": calls.get_job_over_connect,
    "seen-over-http": browsers.seen_over_http,
    "first-view": browsers.first_view,
    "http-at-rest": browsers.at_rest,
    "get-job-with-token": calls.get_job_with_token,
    "get-job-watched": calls.get_job_watched,
    "get-job-of-last": calls.get_job_of_last,
    "submit-job": calls.submit_job,
    "submit-job-postgres": postgres.submit_job,
    "submit-to-slurm": slurm.submission,
    "servers-submit": servers.submissions,
    "servers-change": servers.changes,
    "servers-watchers": servers.watchers,
    "servers-failover": servers.failover,
    "get-queue": calls.get_queue,
    "list-jobs": calls.list_jobs,
    "watch-one-job": watching.one_job,
    "watch-many-jobs": watching.many_jobs,
    "watch-one-change": watching.one_change,
    "watch-dropped": watching.dropped,
    "watch-never-reading": watching.never_reading,
    "hostile-neighbours": hostile.neighbours,
    "hostile-neighbours-with-disk": hostile.neighbours_with_a_disk,
    "read-artifact": reading.artifact,
    "compare-verdicts": comparing.verdicts,
    "compare-methods": methods.methods,
    "compare-values": values.values,
    "run-alarms": falling.alarms,
    "compare-time": comparing.time_taken,
    "compare-million": comparing.a_million,
    "packing": scheduling.packing,
    "overhead": scheduling.overhead,
    "choosing": choosing.many_owners,
    "start-up": store_size.start_up,
    "peer-calls": peer.single_calls,
    "peer-long-queue": peer.long_queue,
    "peer-time-to-know": peer.time_to_know,
    "peer-at-rest": peer.at_rest,
    "parsing": parsing.output_folders,
    "growth": sizes.growth,
    "full-store": store_size.full_store,
    "warm": warm.small_jobs,
    "served-start": served.one_start,
    "served": served.small_jobs,
    "gateway": gateway.beside_the_direct_way,
}
"""The comparisons by name, in the order in which they run."""

_SINGLE_CALLS: Final = frozenset(
    {
        *("get-job", "get-job-over-connect", "get-job-with-token", "get-job-watched", "get-job-of-last"),
        *("submit-job", "submit-job-postgres", "servers-submit", "get-queue", "list-jobs", "watch-one-change"),
        *("watch-never-reading", "start-up", "full-store", "peer-calls", "peer-long-queue", "peer-at-rest"),
    }
)


def main() -> None:
    """Run the named comparisons, or all; print one table, and write it as JSON and Markdown."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing is left running
    options = _options()
    scale = _scale(options)
    sys.stdout.write(f"{report.machine()}; scale {scale.name}, {scale.clients} load processes\n")
    rows: list[report.Row] = []
    for name in options.names or COMPARISONS:
        if missing := _missing(name):
            sys.stderr.write(f"{name}: left out, since {missing}\n")
            continue
        begin = time.monotonic()
        rows += COMPARISONS[name](scale)
        sys.stderr.write(f"{name}: {time.monotonic() - begin:.0f} s\n")
        report.write(rows, options.out, scale.name)
    sys.stdout.write(f"{report.table(rows)}\n")


def _missing(name: str) -> str:
    """Return what a comparison needs and can't find; empty: nothing."""
    if name.startswith("peer-") and not PEER_PYTHON.exists():
        return "the peer is not installed: `make envs-peer` installs it"
    if name == "submit-to-slurm":
        return slurm.missing()
    if name == "warm":
        return warm.missing()
    if name == "served":
        return served.missing()
    if name == "hostile-neighbours-with-disk" and os.geteuid():
        return "only root may mount a disk"
    if name in _SINGLE_CALLS and not h2load.is_installed():
        return "h2load is not installed: Debian has it in nghttp2-client"
    return ""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure speed beside its limit.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to compare; default: all of {', '.join(COMPARISONS)}")
    parser.add_argument("--scale", choices=list(SCALES), default="full", help="how large; default: full, as the aims are meant")
    parser.add_argument("--rounds", type=int, help="how often each pair is measured")
    parser.add_argument("--clients", type=int, help="threads that make the load; default: one per CPU but one, at most four")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"), help="where the results go; default: %(default)s")
    options = parser.parse_args()
    if unknown := set(options.names) - set(COMPARISONS):
        parser.error(f"there is no {min(unknown)}; there are: {', '.join(COMPARISONS)}")
    return options


def _scale(options: argparse.Namespace) -> Scale:
    scale = SCALES[options.scale]
    clients = options.clients or max(1, min(4, len(os.sched_getaffinity(0)) - 1))
    return replace(scale, rounds=options.rounds or scale.rounds, clients=clients)
