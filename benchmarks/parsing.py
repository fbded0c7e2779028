"""The cost of reading the results of a run: an output folder with a million samples, against one with a thousand.

Each is read by a separate process, so that its memory can be measured: `python -m benchmarks.parsing KIND FOLDER WHAT` reads
the `results` of a folder, or the `first-page` of its samples, and prints the seconds that took and the peak memory in MB.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain, repeat
from operator import itemgetter
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.processes import REPOSITORY, workplace
from benchmarks.report import Aim, Row, compare, figures, in_turn, ratio_at_most
from benchmarks.scale import Scale
from evalrpc.config import HarnessSettings, Settings
from evalrpc.errors import RunFailedError
from evalrpc.harnesses.base import Exit, Harness, Run
from evalrpc.harnesses.registry import build_harnesses
from evalrpc.harnesses.sample_answers import FAILED_ANSWER_MARK
from evalrpc.reading.sample_files import open_samples
from evalrpc.reading.sample_pages import read_page, samples_file
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo
from evalrpc.v1.results_pb2 import ModelResult

_FEW: Final = 1000
_PAGE_SIZE: Final = 50
_TASK: Final = "t"
_RESULTS: Final = "results"
_FIRST_PAGE: Final = "first-page"


class _Cost(NamedTuple):
    seconds: float
    peak_megabytes: float


class _Case(NamedTuple):
    """A kind of folder to read, and what many samples may cost relative to few."""

    figure: str
    kind: str
    write: Callable[[Path, int], None]
    time: Aim | None
    memory: Aim | None
    note: str = ""
    what: str = _RESULTS


def output_folders(scale: Scale) -> Iterator[Row]:
    """Seconds and memory of reading many samples, against few."""
    for case in _CASES:
        with workplace() as folder:
            many, few = (_written(folder / str(count), case, count) for count in (scale.samples, _FEW))
            measure = partial(_measure, case)
            measured = in_turn(scale.rounds, partial(measure, many), partial(measure, few))
        times, peaks = (figures(measured, itemgetter(index)) for index in (0, 1))
        name = f"{case.figure}, {scale.samples:,} samples against {_FEW:,}"
        milliseconds = figures(times, lambda seconds: seconds * 1e3)
        yield compare(f"{name}: time", "ms", milliseconds, case.time, case.note)
        yield compare(f"{name}: peak of memory", "MB", peaks, case.memory, "with the interpreter")


def _written(folder: Path, case: _Case, count: int) -> Path:
    folder.mkdir()
    case.write(folder, count)
    return folder


def _measure(case: _Case, folder: Path) -> _Cost:
    command = (sys.executable, "-m", "benchmarks.parsing", case.kind, str(folder), case.what)
    printed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    return _Cost(*map(float, printed.split()))


def _samples(folder: Path, count: int, answer: str) -> None:
    row = json.dumps({"doc_id": 0, "target": "A", "filtered_resps": answer, "input": "x" * 100}) + "\n"
    document = {"results": {_TASK: {"acc,none": 0.5, "acc_stderr,none": 0.01}}, "n-samples": {_TASK: {"effective": count}}}
    (folder / "20260101_000000_results.json").write_text(json.dumps(document))
    with (folder / f"20260101_000000_samples_{_TASK}.jsonl").open("w") as file:
        file.writelines(repeat(row, count))


def _good_samples(folder: Path, count: int) -> None:
    _samples(folder, count, "A")


def _failed_samples(folder: Path, count: int) -> None:
    _samples(folder, count, f"{FAILED_ANSWER_MARK} after 1 retries] Error code: 500")


def _inspect_log(folder: Path, count: int) -> None:
    """Write a log as inspect-ai does: indented, and with the ids of all samples at its head."""
    scores = [{"name": "match", "metrics": {"accuracy": {"value": 0.5}, "stderr": {"value": 0.01}}}]
    spec = {"task": _TASK, "dataset": {"samples": count, "sample_ids": list(range(count))}}
    header = {"status": "success", "eval": spec, "results": {"completed_samples": count, "scores": scores}}
    sample = json.dumps({"id": 0, "target": "A", "output": {"completion": "A"}, "events": [{"event": "x" * 100}]}, indent=2)
    with (folder / f"2026-01-01T00-00-00-00-00_{_TASK}_x.json").open("w") as file:
        file.write(f'{json.dumps(header, indent=2)[:-2]},\n  "samples": [')
        file.writelines(chain(repeat(f"{sample},\n", count - 1), (sample, "]}")))


_FLAT: Final = ratio_at_most(1.25)
_CASES: Final = (
    _Case(
        *("results of lmms-eval", "lmms-eval", _good_samples, _FLAT, _FLAT),
        note="all samples are searched for failed answers",
    ),
    _Case(
        *("results of lmms-eval with no good answer", "lmms-eval", _failed_samples, _FLAT, _FLAT),
        note="each failed answer is decoded and counted",
    ),
    _Case(
        *("a log of inspect-ai", "inspect-ai", _inspect_log, _FLAT, _FLAT),
        note="it lists the ids of all samples before the metrics",
    ),
    _Case(
        *(f"the first {_PAGE_SIZE} samples of a log of inspect-ai", "inspect-ai", _inspect_log, None, None),
        note="as ListSamples reads them; so is every other page",
        what=_FIRST_PAGE,
    ),
)


def _status() -> Mapping[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


def _read(kind: str, folder: Path, what: str) -> _Cost:
    """Read the results of a folder, as a supervisor does when a run has ended, or the first page of its samples."""
    settings = Settings(harnesses={kind: HarnessSettings(kind, kind, python=Path("/none/bin/python"))})
    run = Run("job", 1, EvaluateRequest(model="m", tasks=[_TASK]), folder, folder, 0)
    harnesses = build_harnesses(settings)
    read_results = partial(harnesses[kind].read_results, run, Exit(code=0), [])
    read = partial(_read_page, folder, harnesses, read_results()) if what == _FIRST_PAGE else read_results
    Path("/proc/self/clear_refs").write_text("5")
    begin = time.perf_counter()
    with suppress(RunFailedError):  # raised if no answer was good
        read()
    return _Cost(time.perf_counter() - begin, _status()["VmHWM"] / 1e6)


def _read_page(folder: Path, harnesses: Mapping[str, Harness], results: Mapping[str, ModelResult]) -> None:
    (harness,) = harnesses
    job = JobInfo(request=EvaluateRequest(harness=harness), results=results)
    with open_samples(job, folder, samples_file(job, job.results, "", _TASK), harnesses) as rows:
        read_page(rows, _PAGE_SIZE)


if __name__ == "__main__":
    sys.stdout.write("{} {}\n".format(*_read(sys.argv[1], Path(sys.argv[2]), sys.argv[3])))
