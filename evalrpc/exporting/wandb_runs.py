"""Makes each job a run of Weights & Biases, online or, with `WANDB_MODE=offline`, in files for `wandb sync`."""

from typing import Any

import wandb

from evalrpc.client import EvalClient
from evalrpc.exporting.job_fields import name_of, numbers_of, parameters_of, step_of
from evalrpc.exporting.state import ExportState
from evalrpc.v1.jobs_pb2 import JobInfo, JobStatus


class WandbTarget:
    """Writes to a project. The id of a run is that of the job, so a job has one run however often it is exported."""

    part_count = 0

    def __init__(self, client: EvalClient, project: str, entity: str | None) -> None:
        """`entity`: None for that of the account."""
        self._client = client
        self._project = project
        self._entity = entity

    def resume(self, state: ExportState | None) -> None:
        """Do nothing: a job's run has its id."""

    def put(self, job: JobInfo, revision: int) -> bool:
        """Write a job. Raises what wandb raises."""
        labels = {f"label.{name}": value for name, value in job.labels.items()}
        run: Any = wandb.init(
            project=self._project,
            entity=self._entity,
            id=job.job_id,
            name=name_of(job),
            config={**parameters_of(job), **labels, "evalrpc.revision": revision, "evalrpc.owner": job.owner},
            group=job.labels.get("run") or None,
            job_type="evaluation",
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        run.summary.update({**numbers_of(self._client, job), "step": step_of(job), "status": _status(job)})
        if job.error.reason:
            run.summary.update({"error.reason": job.error.reason, "error.message": job.error.message})
        run.finish(exit_code=int(job.status != JobStatus.JOB_STATUS_COMPLETED))
        return True

    def flush(self) -> None:
        """Do nothing: what was put is there."""


def _status(job: JobInfo) -> str:
    return JobStatus.Name(job.status).removeprefix("JOB_STATUS_")
