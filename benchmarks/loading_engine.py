"""An engine that takes its time to load: `python -m benchmarks.loading_engine PORT SECONDS NOTES`.

It answers all questions alike, and notes in a file when it was started, and when each question of a harness came.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

ASKED: Final = "asked"
STARTED: Final = "started"

_ANSWER: Final = json.dumps(
    {
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "4"}}],
        "usage": {"prompt_tokens": 8, "completion_tokens": 1},
    }
).encode()


def main() -> None:
    """Load, then serve until it is ended."""
    port, seconds, notes = int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])

    def note(what: str) -> None:
        with notes.open("a") as file:
            file.write(f"{what} {time.time_ns()}\n")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(b"{}")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if b"2 + 2" in body:
                note(ASKED)
            self._reply(_ANSWER)

        def _reply(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    note(STARTED)
    time.sleep(seconds)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
