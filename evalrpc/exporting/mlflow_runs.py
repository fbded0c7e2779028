"""Makes each job a run of MLflow."""

import re
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from evalrpc.client import EvalClient
from evalrpc.exporting.job_fields import name_of, numbers_of, parameters_of, step_of
from evalrpc.exporting.state import ExportState
from evalrpc.v1.jobs_pb2 import JobInfo, JobStatus

_JOB_TAG: Final = "evalrpc.job_id"
_UNKNOWN_CHARACTERS: Final = re.compile(r"[^\w\-. :/]")
_MAX_VALUE_CHARACTERS: Final = 5000
_MAX_NAME_CHARACTERS: Final = 250
_MAX_METRICS: Final = 1000
_MAX_PARAMETERS: Final = 100
_STATUSES: Final = {
    JobStatus.JOB_STATUS_COMPLETED: "FINISHED",
    JobStatus.JOB_STATUS_FAILED: "FAILED",
    JobStatus.JOB_STATUS_CANCELLED: "KILLED",
}


class MlflowTarget:
    """Writes to an experiment, which is made if it is missing. A job has one run, however often it is exported."""

    part_count = 0

    def __init__(self, client: EvalClient, experiment: str, tracking_uri: str | None) -> None:
        """`tracking_uri`: None for that of MLflow's own settings."""
        self._client = client
        self._mlflow: Any = MlflowClient(tracking_uri)
        found = self._mlflow.get_experiment_by_name(experiment)
        self._experiment_id = found.experiment_id if found else self._mlflow.create_experiment(experiment)

    def resume(self, state: ExportState | None) -> None:
        """Do nothing: a job's run is found by its tag."""

    def put(self, job: JobInfo, revision: int) -> bool:
        """Write a job. Raises what MLflow raises."""
        run_id = self._run_of(job)
        timestamp, step = job.completed_at.ToMilliseconds(), step_of(job)
        numbers = numbers_of(self._client, job)
        metrics = [Metric(_name(name), value, timestamp, step) for name, value in numbers.items()]
        for start in range(0, len(metrics), _MAX_METRICS):
            self._mlflow.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS])
        parameters = [Param(_name(name), str(value)[:_MAX_VALUE_CHARACTERS]) for name, value in parameters_of(job).items()][
            :_MAX_PARAMETERS
        ]
        tags = {"evalrpc.revision": str(revision), "evalrpc.owner": job.owner, "evalrpc.error": job.error.reason}
        tags |= {f"label.{name}": value for name, value in job.labels.items()}
        self._mlflow.log_batch(
            run_id,
            params=parameters,
            tags=[RunTag(_name(name), value[:_MAX_VALUE_CHARACTERS]) for name, value in tags.items() if value],
        )
        self._mlflow.set_terminated(run_id, _STATUSES[job.status], timestamp)
        return True

    def flush(self) -> None:
        """Do nothing: what was put is there."""

    def _run_of(self, job: JobInfo) -> str:
        found = self._mlflow.search_runs([self._experiment_id], f"tags.`{_JOB_TAG}` = '{job.job_id}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        begun = (job.started_at if job.HasField("started_at") else job.created_at).ToMilliseconds()
        run = self._mlflow.create_run(self._experiment_id, begun, {_JOB_TAG: job.job_id}, name_of(job))
        return str(run.info.run_id)


def _name(name: str) -> str:
    return _UNKNOWN_CHARACTERS.sub("_", name)[:_MAX_NAME_CHARACTERS]
