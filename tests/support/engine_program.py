"""An engine of a test: engine_program.py --port PORT --model FOLDER [--behave HOW]. Beside the model it notes what it did.

FOLDER.notes/starts       a line for each start
FOLDER.notes/questions    a line for each question that it was asked
FOLDER.notes/askers       the pid of the process for each question
FOLDER.notes/hold         while it is there, questions wait; if it has the text of one, only that does
FOLDER.notes/port         its port, where it waits until somebody has taken that
FOLDER.notes/taken        is there from then on
FOLDER.notes/key          the value of its secret VENDOR_KEY, which it also prints
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from engine_stub import Asked, EngineStub, completion

SLEEPS = (sys.executable, "-S", "-c", "import time; time.sleep(600)")


class Behaviour:
    """What it answers, and how it behaves otherwise."""

    def __init__(self, folder: Path, how: str) -> None:
        self._folder = folder
        self._how = how
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> None:
        if asked.path == "/health":
            asked.answer({}, 503 if self._how == "never-ready" else 200)
            return
        if asked.method == "GET":
            asked.answer({}, 404)
            return
        if self._how == "rubbish":
            asked.send(b"<html>", content_type="text/html")
            return
        if asked.fields["model"].startswith("no-such-model"):
            asked.answer({"error": "no such model"}, 404)
            return
        text = asked.fields["messages"][0]["content"]
        if text.startswith("question"):
            with self._lock, (self._folder / "questions").open("a") as file:
                file.write(f"{text}\n")
                with (self._folder / "askers").open("a") as askers:
                    askers.write(f"{os.getpid()}\n")
            while self._is_held(text):
                time.sleep(0.01)
        asked.answer(completion(f"answer to {text}"))

    def _is_held(self, text: str) -> bool:
        try:
            return (self._folder / "hold").read_text() in ("", text)
        except FileNotFoundError:
            return False


class ExclusiveStub(EngineStub):
    """Binds no port that anybody has bound, even where nobody listens."""

    allow_reuse_address = False


def behave_at_start(how: str, model: Path, notes: Path, port: int) -> None:
    """Do what some engines do before they listen."""
    is_second = len((notes / "starts").read_text().splitlines()) == 2
    if how == "dies" or (how == "dies-second" and is_second):
        raise RuntimeError(f"CUDA out of memory {os.environ.get('VENDOR_KEY', '')}".rstrip())
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(SLEEPS, start_new_session=True)
    elif how == "leaky":
        leak()
    elif how == "changes-weights":
        (model / "weights").write_text(str(time.time_ns()))
    elif how.startswith("robbed") and not (notes / "taken").exists():
        (notes / "port.new").write_text(str(port))
        (notes / "port.new").rename(notes / "port")
        while not (notes / "taken").exists():
            time.sleep(0.01)
        if how == "robbed-loading":
            time.sleep(600)


def note_key(notes: Path) -> None:
    if key := os.environ.get("VENDOR_KEY"):
        (notes / "key").write_text(key)
        print(f"my key is {key}", flush=True)


def leak() -> None:
    """Leave a process that does all to be found by nobody: a daemon without any of this one's environment."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve(SLEEPS[0], SLEEPS, {})
        os._exit(0)
    os.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--behave", default="")
    parser.add_argument("--size", default="")
    options = parser.parse_args()
    notes = Path(f"{options.model}.notes")
    notes.mkdir(exist_ok=True)
    with (notes / "starts").open("a") as file:
        file.write(f"{os.getpid()} {options.size}\n")
    print(f"loading {options.model}", flush=True)
    note_key(notes)
    behave_at_start(options.behave, options.model, notes, options.port)
    if options.behave == "serves-in-child" and os.fork():  # and the first process only waits for the other one
        os.wait()
        return
    kind = ExclusiveStub if options.behave == "exclusive" else EngineStub
    kind(Behaviour(notes, options.behave), options.port).serve_forever(0.01)


if __name__ == "__main__":
    main()
