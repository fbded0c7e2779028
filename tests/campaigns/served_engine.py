"""An engine of the campaign: served_engine.py PORT NOTES. It notes when each question came, and when it had sent the answer."""

import hashlib
import os
import sys
import time

from engine_stub import Asked, EngineStub, completion

_MOST_SECONDS = 0.3


def main() -> None:
    port, notes = int(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(what: str, job_id: str, number: str) -> None:
        os.write(notes, f"{what} {time.monotonic_ns()} {job_id} {number}\n".encode())

    def behave(asked: Asked) -> None:
        if asked.method == "GET":
            asked.answer({})
            return
        text = asked.fields["messages"][0]["content"]
        if not text.startswith("question "):  # it is the server's
            asked.answer(completion("A"))
            return
        _, job_id, number = text.split()
        digest = hashlib.sha256(number.encode()).digest()
        note("asked", job_id, number)
        time.sleep(_MOST_SECONDS * digest[0] / 255)
        asked.answer(completion(digest.hex()))
        note("answered", job_id, number)

    EngineStub(behave, port).serve_forever(0.01)


if __name__ == "__main__":
    main()
