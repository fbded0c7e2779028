"""The training demo: a run is followed, and each of its checkpoints decided over by a suite of five tasks in three harnesses.

`make demo-training` prepares what it needs (the environments of server and harnesses) and runs it. It writes only to `.demo/`.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).absolute().parent
sys.path.insert(0, str(HERE.parent))

from demo import ROOT, WORK, DemoError, heading, serving, show_table, stop  # noqa: E402
from evalrpc.client import EvalClient  # noqa: E402
from evalrpc.errors import EvalrpcError  # noqa: E402

OUT = WORK / "training"
"""What the training writes."""
DATA = WORK / "training-server"
BASELINE = OUT / "baseline"
EXPECTED = {400: "GO", 430: "NO_GO"}
"""The last step is after a learning rate that ruins the model."""
MARKER = "DONE"
HARNESS_MODELS = (
    "lmms-eval=llava_hf,pretrained={checkpoint},device=cpu,device_map=cpu",
    "lm-eval=hf,pretrained={checkpoint}/language",
    "inspect-ai=openai/{name},responses_api=false",
)
"""What each harness takes for a checkpoint. inspect-ai has no PyTorch, so it asks a server, as it would ask vLLM."""

_LOOK_SECONDS = 0.2


def main() -> int:
    """Run the demo, and return the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begin = time.monotonic()
    try:
        for folder in (OUT, DATA):
            shutil.rmtree(folder, ignore_errors=True)
        OUT.mkdir(parents=True)
        heading("Servers: one for chats with the checkpoints, and evalrpc")
        with chat_server() as url, serving(HERE / "evalrpc.toml", DATA, OPENAI_BASE_URL=url, OPENAI_API_KEY="none") as address:
            follow_training(address)
            show_jobs(address)
    except (DemoError, EvalrpcError, subprocess.SubprocessError) as error:
        print(f"\nThe demo failed. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; nothing of the demo runs any more.", file=sys.stderr)
        return 130
    print(f"\nThe servers are stopped. It took {time.monotonic() - begin:.0f} seconds.")
    return 0


@contextmanager
def chat_server() -> Iterator[str]:
    """Start the server for chats, and yield its URL."""
    with in_background("chat_server.py", stdout=subprocess.PIPE) as server:
        port = (server.stdout.readline() if server.stdout else "").strip()
        if not port:
            raise DemoError("The server for chats did not start.")
        print(f"chats are answered on port {port}")
        yield f"http://127.0.0.1:{port}/v1"


def follow_training(address: str) -> None:
    """Train, decide over the checkpoints as they appear, and show why. Raises DemoError for decisions that are not expected."""
    heading("A training run, whose baseline is evaluated")
    with in_background("train.py") as training:
        while not (BASELINE / MARKER).exists():
            if training.poll() is not None:
                raise DemoError("The training failed.")
            time.sleep(_LOOK_SECONDS)
        models = [model.format(checkpoint=BASELINE, name=BASELINE.name) for model in HARNESS_MODELS]
        baseline = "".join(evalrpc(address, "submit-suite", "release", *flags("--harness-model", models))).strip()
        print(f"suite run {baseline}")
        heading("evalrpc follow: the checkpoints, compared with the baseline")
        decisions = follow(address, baseline)
    for step, (_, run) in decisions.items():
        heading(f"The decision over step {step}")
        for line in evalrpc(address, "suite", run, may_be_no_go=True):
            print(line, end="", flush=True)
    found = {step: decision for step, (decision, _) in decisions.items()}
    if found != EXPECTED:
        raise DemoError(f"The decisions should be {EXPECTED}, and are {found}.")


def follow(address: str, baseline: str) -> dict[int, tuple[str, str]]:
    """Follow the training until its last step; return by step the decision, and the suite run that it is over."""
    decisions: dict[int, tuple[str, str]] = {}
    until = ("--marker", MARKER, "--until-step", str(max(EXPECTED)))
    models = flags("--harness-model", HARNESS_MODELS)
    command = ("follow", str(OUT), "--suite", "release", "--baseline", baseline, "--label", "run=demo", *until, *models)
    for line in evalrpc(address, *command, may_be_no_go=True):
        print(line, end="", flush=True)
        step, status, *_, run = line.rstrip("\n").split("\t")
        if status in EXPECTED.values():
            decisions[int(step)] = status, run
    return dict(sorted(decisions.items()))


def show_jobs(address: str) -> None:
    """Print how long each job took, and whether its harness was in memory."""
    heading("The jobs")
    rows = [("harness", "step", "warm", "seconds")]
    with EvalClient(address) as client:
        for job in client.list_jobs():
            seconds = (job.completed_at.ToNanoseconds() - job.started_at.ToNanoseconds()) / 1e9
            is_warm = "yes" if job.attempts[-1].warm else "no"
            rows.append((job.request.harness, job.labels.get("step", "baseline"), is_warm, f"{seconds:.1f}"))
    show_table([rows[0], *rows[:0:-1]])


def evalrpc(address: str, *arguments: str, may_be_no_go: bool = False) -> Iterator[str]:
    """Run a command, and yield the lines of its output. Raises CalledProcessError."""
    program = [str(Path(sys.executable).with_name("evalrpc")), "--address", address, *arguments]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        yield from process.stdout or ()
    if process.returncode not in ((0, 1) if may_be_no_go else (0,)):
        raise subprocess.CalledProcessError(process.returncode, ["evalrpc", *arguments])


def flags(name: str, values: Sequence[str]) -> list[str]:
    """Return a flag that is repeated for each value."""
    return [part for value in values for part in (name, value)]


@contextmanager
def in_background(program: str, stdout: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run one of the programs beside this one on the folder of the training, in lmms-eval's environment, and end it."""
    command = [str(ROOT / ".envs/lmms/bin/python"), str(HERE / program), str(OUT)]
    process = subprocess.Popen(command, stdout=stdout, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        yield process
    finally:
        stop(process)
        if process.stdout:
            process.stdout.close()


if __name__ == "__main__":
    sys.exit(main())
