"""nginx in front of a server, with its defaults, as an ordinary process with folders of its own."""

import os
import shutil
import signal
import socket
import subprocess
from contextlib import closing, suppress
from pathlib import Path
from typing import Self

import pytest
from lasting_ports import lasting_address
from waiting import DEADLINE_SECONDS, eventually

CONFIG = """
daemon off;
master_process off;  # one process, of whoever runs the tests
pid {folder}/pid;
error_log {folder}/error.log info;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        {rules}
    }}
}}
"""
"""All that is set are folders and logs: every timeout is nginx's own."""

GRPC_RULES = """
        listen {address} http2;
        location / {{ grpc_pass grpc://{upstream}; }}
"""


def executable() -> str:
    """Return the path of nginx, or skip the test."""
    path = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if path is None:
        pytest.skip("there is no nginx")
    return path


class Nginx:
    """Passes calls on to `upstream`, HOST:PORT, by the rules of a `server`, and logs what it cuts."""

    def __init__(self, folder: Path, upstream: str, rules: str = GRPC_RULES) -> None:
        self.address = lasting_address()
        self._folder = folder
        self._executable = executable()
        folder.mkdir()
        (folder / "nginx.conf").write_text(
            CONFIG.format(folder=folder, rules=rules.format(address=self.address, upstream=upstream))
        )

    def __enter__(self) -> Self:
        command = (self._executable, "-p", str(self._folder), "-c", "nginx.conf", "-e", str(self._folder / "error.log"))
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, env={**os.environ})
        eventually(self._listens, f"for nginx; its log: {self.errors()}")
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(DEADLINE_SECONDS)

    def cuts(self, method: str) -> int:
        """Return how many calls of a method it has cut, since they were quiet for too long."""
        return sum("upstream timed out" in line and f"/{method} HTTP" in line for line in self.errors().splitlines())

    def errors(self) -> str:
        """Return the log of errors."""
        path = self._folder / "error.log"
        return path.read_text() if path.exists() else ""

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.errors()
        host, _, port = self.address.rpartition(":")
        with suppress(OSError), closing(socket.create_connection((host, int(port)))):
            return True
        return False
