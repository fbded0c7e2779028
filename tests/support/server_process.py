"""A real server in its own process, which can be killed and restarted."""

import signal
import subprocess
import sys
from pathlib import Path

from accounts import FIRST_UID
from lasting_ports import lasting_address
from processes_of_tests import shims_of_runs
from waiting import DEADLINE_SECONDS

from evalrpc.client import EvalClient
from evalrpc.executors.local import shim, warm_parent
from evalrpc.executors.local.processes import processes_of_job, processes_of_script, send_signal

EVALRPC = str(Path(sys.executable).with_name("evalrpc"))
_MOST_OWNERS = 5


class ServerProcess:
    """`evalrpc serve` on a free port, with a data folder that outlives it, and flags. `start` and `kill` may be called in
    turn."""

    def __init__(self, data_dir: Path, config: str, *flags: str, name: str = "server") -> None:
        self.data_dir = data_dir
        self._flags = flags
        self._config_path = data_dir.parent / "evalrpc.toml"
        self.log_path = data_dir.parent / f"{name}.log"
        self._config_path.write_text(config)
        self._process: subprocess.Popen[str] | None = None
        self._listen = lasting_address()  # which a restart takes, too

    @property
    def address(self) -> str:
        return self._listen

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it has ended by itself since it was started."""
        return self._process is not None and self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def start(self) -> "ServerProcess":
        if self._process is not None:  # it has ended by itself, or has never listened
            self._end(signal.SIGKILL)
        command = (EVALRPC, "serve", "--listen", self._listen, "--data-dir", str(self.data_dir))
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                (*command, "--config", str(self._config_path), *self._flags), stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("evalrpc listening on "), line
        return self

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def client(self) -> EvalClient:
        """Return a client without timeouts: to list its names, a harness imports everything it has."""
        return EvalClient(self.address, timeout_seconds=None)

    def processes_of_jobs(self) -> list[int]:
        jobs = self.data_dir / "jobs"
        return shims_of_runs(self.data_dir) + [pid for folder in jobs.glob("*") for pid in processes_of_job(folder.name)]

    def shims_of(self, job_id: str) -> list[int]:
        """Return the living shims of the job's runs, which wait for its programs."""
        return shims_of_runs(self.data_dir, job_id)

    def fork_servers(self) -> list[int]:
        """Return the server's fork server, if it is there."""
        return self._forking(shim.__file__)

    def parents(self) -> list[int]:
        """Return the server's parents of warm runs that are ready, of runs with an account, too."""
        uids = (None, *range(FIRST_UID, FIRST_UID + _MOST_OWNERS))
        return [pid for uid in uids for pid in self._forking(warm_parent.__file__, uid)]

    def loading_parents(self) -> list[int]:
        """Return those that still load what runs need."""
        loading = processes_of_script(Path(warm_parent.__file__), 2)
        return [each.pid for each in loading if each.parent == self.pid and each.name != shim.FORK_SERVER_NAME]

    def _forking(self, script: str, uid: int | None = None) -> list[int]:
        return [
            process.pid
            for process in processes_of_script(Path(script), 2, uid)
            if process.name == shim.FORK_SERVER_NAME and process.parent == self.pid
        ]

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(DEADLINE_SECONDS)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return code

    def clean_up(self) -> None:
        if self._process is not None:
            self.kill()
        send_signal(self.processes_of_jobs(), signal.SIGKILL)
