"""The quality and cost of a comparison: its false alarms, its power, and the time it takes."""

import gc
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.processes import Server, evalrpc_server, workplace
from benchmarks.report import Row, at_most, compare, figures, in_turn, ratio_at_most
from benchmarks.scale import Scale
from evalrpc.analysis.comparison import compare as compare_jobs
from evalrpc.client import EvalClient
from evalrpc.files.read_budget import UNLIMITED, ReadBudget
from evalrpc.results.layout import read_results
from evalrpc.v1.comparison_pb2 import CompareJobsRequest, TestMethod, Verdict
from evalrpc.v1.jobs_pb2 import JOB_STATUS_COMPLETED, JobAttempt, JobInfo

PAIRS: Final = 1000
GAINING_PAIRS: Final = 200
SAMPLES: Final = 500
ALPHA: Final = 0.05
GAIN: Final = 0.04

_TESTS: Final = {"acc": "0 or 1, McNemar", "score": "0 to 1, bootstrap"}
_CLAIMS: Final = (Verdict.VERDICT_BETTER, Verdict.VERDICT_WORSE)

# Writes as many samples as its model's name says, of 1 KB each.
_PROGRAM: Final = """\
import json, random, sys
from pathlib import Path
count, seed = map(int, sys.argv[1].split("-"))
dice, folder = random.Random(seed), Path(sys.argv[2]) / "m"
folder.mkdir(parents=True)
acc, score = [dice.randrange(2) for _ in range(count)], [dice.random() for _ in range(count)]
row = {"acc,none": sum(acc) / count, "score,none": sum(score) / count}
(folder / "20260101_000000_results.json").write_text(json.dumps({"results": {"t": row}}))
with (folder / "20260101_000000_samples_t.jsonl").open("w") as file:
    for number in range(count):
        row = {"doc_id": number, "doc": "x" * 950, "acc": acc[number], "score": score[number]}
        file.write(json.dumps(row) + "\\n")
"""


def verdicts(scale: Scale) -> Iterator[Row]:
    """Verdicts on pairs of models that are known to differ or not, from the files that two runs of them leave."""
    pairs = PAIRS if scale.name == "full" else PAIRS // 10
    note = f"{pairs} pairs, {SAMPLES} samples each; yardstick: alpha; aim: that and three standard errors"
    bound = ALPHA + 3 * (ALPHA * (1 - ALPHA) / pairs) ** 0.5
    for metric, share in _claimed(pairs, gain=0.0).items():
        figure = f"equal models called BETTER or WORSE ({_TESTS[metric]})"
        yield Row(figure, "%", 100 * share, 100 * ALPHA, share / ALPHA, aim=at_most(100 * bound), note=note)
    paired, unpaired = (_claimed(GAINING_PAIRS, gain=GAIN, with_samples=has) for has in (True, False))
    note = f"{GAINING_PAIRS} pairs, {SAMPLES} samples each; yardstick: the same results without their samples"
    for metric, share in paired.items():
        figure = f"a gain of {100 * GAIN:g} points that is seen ({_TESTS[metric]})"
        ratio = share / unpaired[metric] if unpaired[metric] else None
        yield Row(figure, "%", 100 * share, 100 * unpaired[metric], ratio, note=note)


def time_taken(scale: Scale) -> Iterator[Row]:
    """CompareJobs of two metrics, against a loop that only decodes the lines of the same files; and the memory it keeps."""
    with _server() as server, EvalClient(server.address, timeout_seconds=600) as client:
        before = server.memory()
        for count in (1000, 100_000):
            baseline, candidate = (_finished_job(client, f"{count}-{seed}") for seed in (1, 2))
            files = [path for job in (baseline, candidate) for path in job.results["m"].samples]
            measured = in_turn(
                scale.rounds,
                lambda ids=(baseline.job_id, candidate.job_id): _seconds(lambda: client.compare(*ids)),  # type: ignore[misc]
                lambda paths=files: _seconds(lambda: _decode(paths)),  # type: ignore[misc]
            )
            times = figures(measured, lambda seconds: 1e3 * seconds)
            yield compare(f"CompareJobs of {count:,} samples", "ms", times, note="McNemar and bootstrap; yardstick: json.loads")
        note = "NumPy, SciPy and what the comparisons left; before it, the server had loaded neither"
        yield Row("memory of a server after it has compared", "MB", server.memory() / 1e6, before / 1e6, note=note)


def a_million(scale: Scale) -> Iterator[Row]:
    """A comparison of two jobs of a million samples in clusters: its processor time against a loop that only decodes the lines
    of both files with `json.loads`, and the peak of memory, each in a process of its own."""
    count = 1_000_000 if scale.name == "full" else 100_000
    with workplace() as folder:
        jobs = [_large_job(folder / name, seed, count) for seed, name in enumerate("ab")]
        files = [path for job in jobs for path in job.results["m"].samples]
        ours, bare = [], []
        for _ in range(min(3, scale.rounds)):  # in turn, since other work slows both
            ours.append(_in_a_process(_compare_large, jobs))
            bare.append(_in_a_process(_decode, files))
    times = [use.ru_utime + use.ru_stime for use in ours], [use.ru_utime + use.ru_stime for use in bare]
    note = "processor time, by cluster; yardstick: json.loads"
    yield compare(f"a comparison of two jobs of {count:,} samples", "s", times, ratio_at_most(3.0), note)
    peak = max(use.ru_maxrss for use in ours) * 1024 / 1e6
    yield Row(f"peak memory of a process that compares {count:,} samples", "MB", peak, aim=at_most(300), note="by cluster")


def _large_job(folder: Path, seed: int, count: int) -> JobInfo:
    dice = np.random.default_rng(seed)
    values = dice.integers(0, 2, count)
    (folder / "m").mkdir(parents=True)
    document = {"results": {"t": {"acc,none": float(values.mean())}}, "higher_is_better": {"t": {"acc": True}}}
    (folder / "m" / "20260101_000000_results.json").write_text(json.dumps(document))
    with (folder / "m" / "20260101_000000_samples_t.jsonl").open("w") as file:
        for number, value in enumerate(values.tolist()):
            doc = {"question": "x" * 100, "passage": number // 10}
            answer = [[f"an answer of some words {number}"]]
            row = {"doc_id": number, "doc": doc, "resps": answer, "doc_hash": f"{number * 7919:064x}", "acc": value}
            file.write(json.dumps(row) + "\n")
    attempts = [JobAttempt(number=1, output_dir=str(folder))]
    results = read_results(folder, "m")
    return JobInfo(job_id=folder.name, status=JOB_STATUS_COMPLETED, attempt=1, attempts=attempts, results=results)


def _compare_large(jobs: list[JobInfo]) -> None:
    call = CompareJobsRequest(cluster_by="passage")
    (metric,) = compare_jobs(call, jobs[0], jobs[1:], {}, Path(), ReadBudget(UNLIMITED)).candidates[0].metrics
    assert metric.method == TestMethod.TEST_METHOD_CLUSTERED_T


def _in_a_process(function: Any, argument: Any) -> resource.struct_rusage:
    """Call a function in a fresh process, without the garbage collector, as the server does, and return what it used."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_measured, function, argument).result()


def _measured(function: Any, argument: Any) -> resource.struct_rusage:
    gc.disable()
    before = resource.getrusage(resource.RUSAGE_SELF)
    function(argument)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = (after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime)
    return resource.struct_rusage((*seconds, *after[2:]))


def _claimed(pairs: int, gain: float, *, with_samples: bool = True) -> dict[str, float]:
    """Return the share of pairs that are called BETTER or WORSE, by metric."""
    dice = np.random.default_rng(2026)
    claims: Counter[str] = Counter()
    call = CompareJobsRequest(alpha=ALPHA)
    with workplace() as folder:
        for _ in range(pairs):
            ability = dice.beta(1.5, 1.0, size=SAMPLES)  # of both models, per sample: some are hard for both
            jobs = [_job(folder / name, dice, np.clip(ability + more, 0, 1)) for name, more in (("a", 0.0), ("b", gain))]
            if not with_samples:
                for job in jobs:
                    job.results["m"].ClearField("samples")
            for metric in compare_jobs(call, jobs[0], jobs[1:], {}, Path(), ReadBudget(UNLIMITED)).candidates[0].metrics:
                claims[metric.metric] += metric.verdict in _CLAIMS
    return {metric: claims[metric] / pairs for metric in _TESTS}


def _job(folder: Path, dice: np.random.Generator, ability: Any) -> JobInfo:
    """Simulate one run of a model with this ability, write its files, and return the job with its results."""
    scores = {"acc": dice.binomial(1, ability), "score": np.clip(dice.normal(ability, 0.3), 0, 1)}
    row = {f"{name},none": values.mean() for name, values in scores.items()}
    row |= {f"{name}_stderr,none": values.std(ddof=1) / SAMPLES**0.5 for name, values in scores.items()}
    samples = [{"doc_id": n} | {name: float(values[n]) for name, values in scores.items()} for n in range(SAMPLES)]
    (folder / "m").mkdir(parents=True, exist_ok=True)
    document = {"results": {"t": row}, "higher_is_better": {"t": dict.fromkeys(scores, True)}}
    (folder / "m" / "20260101_000000_results.json").write_text(json.dumps(document))
    lines = "".join(json.dumps(sample) + "\n" for sample in samples)
    (folder / "m" / "20260101_000000_samples_t.jsonl").write_text(lines)
    attempts = [JobAttempt(number=1, output_dir=str(folder))]
    results = read_results(folder, "m")
    return JobInfo(job_id=folder.name, status=JOB_STATUS_COMPLETED, attempt=1, attempts=attempts, results=results)


def _finished_job(client: EvalClient, model: str) -> JobInfo:
    job = client.evaluate(model, ["t"], harness="scores", num_gpus=0)
    return client.wait_for_job(job.job_id, timeout_seconds=300)


def _seconds(work: Any) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def _decode(paths: list[str]) -> None:
    for path in paths:
        with Path(path).open("rb") as file:
            for line in file:
                json.loads(line)


@contextmanager
def _server() -> Iterator[Server]:
    with workplace() as folder:
        (folder / "scores.py").write_text(_PROGRAM)
        command = json.dumps([sys.executable, "-S", str(folder / "scores.py"), "{model}", "{output_dir}"])
        (folder / "evalrpc.toml").write_text(f'[harnesses.scores]\nkind = "command"\ncommand = {command}\n')
        with evalrpc_server(folder, gpus=0) as server:
            yield server
