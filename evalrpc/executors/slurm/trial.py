"""Try whether a cluster runs what it is given: a tiny run from the data folder, which it has to see."""

import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from evalrpc.clock import SystemClock
from evalrpc.config.executors import ExecutorSettings
from evalrpc.errors import RunFailedError
from evalrpc.executors.base import Resources, RunKey
from evalrpc.executors.slurm.executor import SlurmExecutor
from evalrpc.harnesses.base import Command


def try_cluster(
    settings: ExecutorSettings, data_dir: Path, environment: Mapping[str, str], timeout_seconds: float
) -> tuple[bool, str]:
    """Run a tiny program on a cluster. Return whether it did, and what is to be said of it. Leaves nothing.

    Raises OSError if the data folder can't be written.
    """
    executor = SlurmExecutor(settings, {}, SystemClock(), environment)
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=data_dir, ignore_cleanup_errors=True) as folder, closing(executor):
        key = RunKey(str(uuid.uuid4()), 1, Path(folder).absolute(), node=settings.name)
        executor.prepare()
        executor.make_room(key, 1)
        started_seconds = time.monotonic()
        with closing(executor.start(key, Command((settings.python, "-c", "")), Resources(settings.name))) as run:
            has_ended = run.wait(timeout_seconds)
            waits_for = run.waits_for
            executor.begin_close()
            try:
                if has_ended and (status := run.exit_status()).code != 0:
                    return False, f"the program of a trial run ended with {status.code if status.signal is None else status}"
                run.end(0.0)
            except (RunFailedError, OSError) as error:
                return False, str(error)
            if not has_ended:
                return False, waits_for or f"a trial run has begun, and left nothing below {data_dir}: do the nodes see it?"
    return True, f"a trial run took {time.monotonic() - started_seconds:.1f} s"
