"""An engine of a test: engine_program.py --port PORT --model FOLDER [--behave HOW]. Beside the model it notes what it did.

FOLDER.notes/starts       a line for each start
FOLDER.notes/questions    a line for each question that it was asked
FOLDER.notes/hold         while it is there, questions wait
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
        if self._how == "rubbish":
            asked.send(b"<html>", content_type="text/html")
            return
        text = asked.fields["messages"][0]["content"]
        if text.startswith("question"):
            with self._lock, (self._folder / "questions").open("a") as file:
                file.write(f"{text}\n")
            while (self._folder / "hold").exists():
                time.sleep(0.01)
        asked.answer(completion(f"answer to {text}"))


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
    if options.behave == "dies":
        raise RuntimeError("CUDA out of memory")
    if options.behave == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    EngineStub(Behaviour(notes, options.behave), options.port).serve_forever(0.01)


if __name__ == "__main__":
    main()
