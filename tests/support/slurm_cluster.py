"""A real Slurm cluster of one machine, in a folder of its own: munged, slurmctld and slurmd of Debian's packages."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from lasting_ports import lasting_port
from waiting import DEADLINE_SECONDS

GPU_COUNT = 4
_OPERATOR_SECONDS = 1.0

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")


def is_runnable() -> bool:
    """Tell whether there can be a cluster here."""
    return os.geteuid() == 0 and all(shutil.which(program) is not None for program in _PROGRAMS)


needs_slurm = pytest.mark.skipif(
    not is_runnable(),
    reason="there is no Slurm here, or no root: apt-get install slurm-wlm slurmctld slurmd munge",
)

_CONF = """\
ClusterName=evalrpc
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge/socket
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
MpiDefault=none
ReturnToService=2
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MinJobAge=300
KillWait=2
GetEnvTimeout=2
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,defer_batch
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
NodeName=DEFAULT RealMemory=1000 Feature=fast State=UNKNOWN
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpu_count} Gres=gpu:{gpu_count}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8 PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP OverSubscribe=FORCE:8 PriorityTier=2
"""


class SlurmCluster:
    """A cluster that lives until `stop`. `environment` is that of its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        for name in ("state", "spool", "log", "munge"):
            (folder / name).mkdir(mode=0o755)
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for number in range(GPU_COUNT):
            os.mknod(folder / f"gpu{number}", 0o20666, os.makedev(1, 3))
        (folder / "gres.conf").write_text(f"NodeName=n1 Name=gpu File={folder}/gpu[0-{GPU_COUNT - 1}]\n")
        (folder / "slurm.conf").write_text(
            _CONF.format(
                dir=folder,
                host=socket.gethostname(),
                controller_port=lasting_port(),
                node_port=lasting_port(),
                cpu_count=os.cpu_count(),
                gpu_count=GPU_COUNT,
            )
        )
        self.environment: Mapping[str, str] = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._last_number = 0
        """The highest number of a job before a controller was killed that may have forgotten it."""

    def start(self) -> None:
        """Start all of it, and wait until its node takes jobs."""
        munge = self.folder / "munge"
        options = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        self._run("munged", "--force", *(f"--{option}={munge / name}" for option, name in options.items()))
        self._run("slurmctld")
        self._run("slurmd", "-N", "n1")
        self.await_node()

    def restart(self, daemon: str) -> None:
        """Start `slurmctld` or `slurmd` again, once it was killed, and wait until its node takes jobs."""
        self._run(daemon, *(("-N", "n1") if daemon == "slurmd" else ()))
        self.await_node()

    def await_node(self) -> None:
        """Wait until its node takes jobs, whatever was done to it."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self._resume():
            assert time.monotonic() < deadline, (self.folder / "log" / "slurmctld.log").read_text()
            time.sleep(0.1)

    @contextmanager
    def operated(self) -> Iterator[None]:
        """Bring its node back as soon as Slurm has taken it out of service, as an operator would.

        Slurm drains a node, among others, for a job that a killed controller has forgotten, as soon as it has given
        the number of that job to another one ("Duplicate jobid"): for it saves its state only every few seconds.
        """
        over = threading.Event()

        def operate() -> None:
            while not over.wait(_OPERATOR_SECONDS):
                with suppress(subprocess.TimeoutExpired):
                    self._resume()

        thread = threading.Thread(target=operate, name="operator")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _resume(self) -> bool:
        state = self._run("sinfo", "--noheader", "--format=%T", is_checked=False).strip()
        if state in ("idle", "mixed", "allocated", "completing"):
            return True
        self._run("scontrol", "update", "NodeName=n1", "State=RESUME", is_checked=False)
        return False

    def jobs(self) -> list[str]:
        """Return the jobs that have not ended there, with their states."""
        return self._run("squeue", "--noheader", "--format=%i %T %j", is_checked=False).splitlines()

    def kill(self, daemon: str) -> None:
        """Kill `slurmctld` or `slurmd` at once."""
        if daemon == "slurmctld":
            listed = self._run("squeue", "--noheader", "--states=all", "--format=%A", is_checked=False)
            self._last_number = max(self._last_number, *map(int, listed.split()), 0)
        self._signal(daemon, signal.SIGKILL)

    def skip_used_numbers(self) -> None:
        """See that no job gets a number that was given away before: Slurm would run it two minutes later."""
        number = 0
        while number < self._last_number:
            number = int(self._run("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true"))
            self._run("scancel", str(number))
        self._last_number = 0

    @contextmanager
    def stopped(self, daemon: str) -> Iterator[None]:
        """Keep `slurmctld` or `slurmd` from running meanwhile."""
        pid = int((self.folder / f"{daemon}.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def end_jobs(self) -> None:
        """Cancel what still runs or waits there."""
        self._run("scancel", f"--user={os.geteuid()}", is_checked=False)

    def stop(self) -> None:
        """End all of it, with what still runs there. It takes seconds to stop gracefully, so only while something runs."""
        self.end_jobs()
        number = signal.SIGTERM if self.jobs() else signal.SIGKILL
        for daemon in ("slurmd", "slurmctld", "munge/pid"):
            self._signal(daemon, number)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _signal(self, daemon: str, number: signal.Signals) -> None:
        path = self.folder / (daemon if "/" in daemon else f"{daemon}.pid")
        with suppress(OSError, ValueError):
            pid = int(path.read_text())
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                _await_end(pid)

    def _run(self, *argv: str, is_checked: bool = True) -> str:
        return subprocess.run(
            argv,
            env=self.environment,
            check=is_checked,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=DEADLINE_SECONDS,
        ).stdout


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """A cluster for all tests of a process."""
    with tempfile.TemporaryDirectory(prefix="evalrpc-slurm-", ignore_cleanup_errors=True) as folder:
        cluster = SlurmCluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def _await_end(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while _is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    """Tell whether a process has not ended: who has to reap it may take seconds."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
