"""The commands of Slurm, each with a limit of time."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

from evalrpc.errors import RunFailedError

_SEPARATOR: Final = "|"
_FORMAT: Final = _SEPARATOR.join(("%i", "%T", "%r", "%N", "%j"))  # the name last: it may have any character
_TRANSIENT: Final = (  # parts of the messages in slurm_errno.c of failures on the way to slurmctld, or in it
    "unable to contact",
    "socket timed out",
    "connection refused",
    "connection reset",
    "temporarily unable",
    "communication",
    "zero bytes were transmitted",
    "protocol authentication error",
    "resource temporarily unavailable",
    "transport endpoint is not connected",
    "broken pipe",
    "connection timed out",
    "no route to host",
    "network is unreachable",
    "host is down",
    "unexpected message received",
    "message send failure",
    "message receive failure",
    "failed to send entire message",
    "zero length message",
    "message length <",
    "missing socket",
    "unable to connect to database",
    "i/o error writing script",
    "try again",
    "standby mode",
    "insane message length",
    "header lengths are longer",
    "munge",
    "authentication credential",
)


class SlurmUnavailableError(OSError):
    """Slurm does not answer at present. What was asked of it may have been done all the same."""


class SlurmJob:
    """What Slurm says of a job."""

    def __init__(self, line: str) -> None:
        self.id, self.state, self.reason, self.node, self.name = line.split(_SEPARATOR, 4)


class SlurmCommands:
    """Runs them. `environment` is theirs, so that they find the cluster. May be used from several threads. Every method raises
    SlurmUnavailableError."""

    def __init__(self, environment: Mapping[str, str], timeout_seconds: float) -> None:
        self._environment = environment
        self._timeout_seconds = timeout_seconds

    def submit(self, options: Sequence[str], script: str) -> str:
        """Submit a batch script, and return the id of its job. Raises RunFailedError with reason START_FAILED if Slurm refuses
        it."""
        return self._run(["sbatch", "--parsable", *options], script).split(";")[0].strip()

    def jobs(self) -> Sequence[SlurmJob]:
        """Return all jobs of this account that Slurm still knows, whatever their state, in one call."""
        listed = self._run(["squeue", "--noheader", "--states=all", f"--user={os.geteuid()}", f"--format={_FORMAT}"])
        return [SlurmJob(line) for line in listed.splitlines() if line.count(_SEPARATOR) >= 4]

    def cancel(self, name: str, *options: str) -> None:
        """Cancel the jobs of a name, or signal them, as `options` say. Nothing happens where there are none."""
        self._run(["scancel", "--quiet", f"--name={name}", *options])

    def cancel_job(self, job_id: str) -> None:
        """Cancel one job, by its id."""
        self._run(["scancel", "--quiet", job_id])

    def _run(self, argv: Sequence[str], text: str = "") -> str:
        try:
            done = subprocess.run(
                argv,
                input=text,
                capture_output=True,
                text=True,
                timeout=self._timeout_seconds,
                env=self._environment,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SlurmUnavailableError(f"{argv[0]} did not answer in {self._timeout_seconds:g} s") from error
        except OSError as error:
            raise SlurmUnavailableError(f"{argv[0]}: {error.strerror}") from error
        if done.returncode == 0:
            return done.stdout
        problem = " ".join(done.stderr.split()) or f"{argv[0]} ended with {done.returncode}"
        if argv[0] != "sbatch" or any(text in problem.lower() for text in _TRANSIENT):
            raise SlurmUnavailableError(problem)
        raise RunFailedError("START_FAILED", f"Slurm refuses the run: {problem}")
