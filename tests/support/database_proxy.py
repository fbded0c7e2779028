"""A TCP proxy between a server and its database, which can be cut, or lose the answers to commits."""

import contextlib
import socket
import threading
from pathlib import Path

_CHUNK_BYTES = 65536


class DatabaseProxy:
    """Listens on a free port of the loopback, and forwards to a Unix socket."""

    def __init__(self, database: Path) -> None:
        self._database = str(database)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: set[_Pair] = set()
        self._is_cut = False
        self._answers_to_lose = 0
        self.lost_answers = 0
        """How many commits have had no answer."""
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections, and refuse new ones, until `mend`."""
        with self._lock:
            self._is_cut = True
            pairs = list(self._pairs)
        for pair in pairs:
            pair.close()

    def mend(self) -> None:
        """Let connections through again."""
        self._is_cut = False

    def cut_listening(self) -> int:
        """End the connections that listen for notifications. Return how many there were."""
        with self._lock:
            pairs = [pair for pair in self._pairs if pair.listens]
        for pair in pairs:
            pair.close()
        return len(pairs)

    def lose_answers(self, count: int) -> None:
        """Let the next commits through, but end their connections before the answer is."""
        with self._lock:
            self._answers_to_lose = count

    def close(self) -> None:
        """Stop."""
        self._listener.close()
        self.cut()

    def takes_answer(self) -> bool:
        """Return whether the answer to a commit is to be lost."""
        with self._lock:
            if not self._answers_to_lose:
                return False
            self._answers_to_lose -= 1
            self.lost_answers += 1
            return True

    def forget(self, pair: "_Pair") -> None:
        with self._lock:
            self._pairs.discard(pair)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = socket.socket(socket.AF_UNIX)
            try:
                upstream.connect(self._database)
            except OSError:
                client.close()
                upstream.close()
                continue
            pair = _Pair(self, client, upstream)
            with self._lock:
                is_cut = self._is_cut
                self._pairs.add(pair)
            if is_cut:
                pair.release()
            else:
                pair.start()


class _Pair:
    """A connection, forwarded."""

    def __init__(self, proxy: DatabaseProxy, client: socket.socket, upstream: socket.socket) -> None:
        self._proxy, self._client, self._upstream = proxy, client, upstream
        self.listens = False

    def start(self) -> None:
        answering = threading.Thread(target=self._answer, daemon=True)
        answering.start()
        threading.Thread(target=self._forward, args=(answering,), daemon=True).start()

    def close(self) -> None:
        """End both connections. Their threads close them, since nobody else knows that they use them no more."""
        for end in (self._client, self._upstream):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Close both, which no thread uses."""
        self._proxy.forget(self)
        self._client.close()
        self._upstream.close()

    def _forward(self, answering: threading.Thread) -> None:
        with contextlib.suppress(OSError):
            while data := self._client.recv(_CHUNK_BYTES):
                self.listens = self.listens or b"LISTEN" in data
                if b"COMMIT" in data and self._proxy.takes_answer():
                    self._client.shutdown(socket.SHUT_WR)  # which loses what comes back
                self._upstream.sendall(data)
        self.close()
        answering.join()
        self.release()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._upstream.recv(_CHUNK_BYTES):
                self._client.sendall(data)
        self.close()
