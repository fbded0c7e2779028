"""Holds the socket on which the gateway listens: `python -m evalrpc.engines.socket_holder FOLDER`

It starts the gateway and, whenever that ends, starts it again on the same socket: so the gateway keeps its port, and
connections wait meanwhile instead of being refused. It writes the address to FOLDER/address, and ends once it gets SIGTERM and
the gateway has ended.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Final

ADDRESS_FILE: Final = "address"

_BACKLOG: Final = 1024
_PAUSE_SECONDS: Final = 0.2  # so that a gateway that can't start doesn't take a whole processor


def main() -> int:
    """Hold the socket until SIGTERM."""
    folder = Path(sys.argv[1])
    os.umask(0o077)
    with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listener:
        _write(folder / ADDRESS_FILE, f"127.0.0.1:{listener.getsockname()[1]}")
        number = listener.fileno()
        holder = _Holder(("--listen", f"fd:{number}", "--folder", str(folder)), number)
        signal.signal(signal.SIGTERM, holder.stop)
        holder.run()
    return 0


class _Holder:
    """Keeps one gateway running."""

    def __init__(self, options: tuple[str, ...], socket_number: int) -> None:
        self._command = (sys.executable, "-P", "-m", "evalrpc.engines.gateway", *options)
        self._socket_number = socket_number
        self._gateway: subprocess.Popen[bytes] | None = None
        self._is_stopping = threading.Event()

    def stop(self, _: int, __: FrameType | None) -> None:
        """End the gateway, for good."""
        self._is_stopping.set()
        if self._gateway is not None:
            self._gateway.terminate()

    def run(self) -> None:
        """Start it, and start it again, until `stop` is called."""
        while not self._is_stopping.is_set():
            self._gateway = subprocess.Popen(self._command, pass_fds=(self._socket_number,))
            if self._is_stopping.is_set():  # since before the line above
                self._gateway.terminate()
            self._gateway.wait()
            self._is_stopping.wait(_PAUSE_SECONDS)


def _write(path: Path, text: str) -> None:
    """Write a file that is whole as soon as it is there."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


if __name__ == "__main__":
    sys.exit(main())
