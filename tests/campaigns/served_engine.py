"""An engine of the campaign: served_engine.py PORT NOTES. It notes when each question came, and when it had sent the answer,
unless who asked had hung up by then: WHAT MOMENT PLACE JOB_ID NUMBER, where the place is the same in both lines."""

import hashlib
import itertools
import os
import select
import socket
import sys
import time

from engine_stub import Asked, EngineStub, completion

_MOST_SECONDS = 0.3


def main() -> None:
    port, notes = int(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    numbers = itertools.count()

    def note(what: str, *words: str) -> None:
        os.write(notes, f"{what} {time.monotonic_ns()} {' '.join(words)}\n".encode())

    def behave(asked: Asked) -> None:
        if asked.method == "GET":
            asked.answer({})
            return
        text = asked.fields["messages"][0]["content"]
        if not text.startswith("question "):  # it is the server's
            asked.answer(completion("A"))
            return
        _, job_id, number = text.split()
        place = f"{os.getpid()}-{next(numbers)}"
        digest = hashlib.sha256(number.encode()).digest()
        note("asked", place, job_id, number)
        time.sleep(_MOST_SECONDS * digest[0] / 255)
        asked.answer(completion(digest.hex()))
        if not has_hung_up(asked.handler.connection):
            note("answered", place, job_id, number)

    EngineStub(behave, port).serve_forever(0.01)


def has_hung_up(connection: socket.socket) -> bool:
    """Tell whether the other side has closed a connection."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))


if __name__ == "__main__":
    main()
