"""A scheduler with a real store and an executor of the test."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

from waiting import DEADLINE_SECONDS as SECONDS
from waiting import eventually

from evalrpc.clock import SystemClock
from evalrpc.config import HarnessSettings
from evalrpc.engines.pool import EnginePool
from evalrpc.files.output_access import OutputAccess
from evalrpc.harnesses.command import CommandHarness
from evalrpc.jobs import transitions
from evalrpc.jobs.share_policy import Entitlements, SharePolicy
from evalrpc.preparations.preparation import Preparation
from evalrpc.preparations.prepared_models import PreparedModels
from evalrpc.scheduling.lending import Lending
from evalrpc.scheduling.preparing import Preparing
from evalrpc.scheduling.queue_state import QueueState
from evalrpc.scheduling.run_accounts import RunAccounts
from evalrpc.scheduling.run_bounds import RunBounds
from evalrpc.scheduling.scheduler import Scheduler
from evalrpc.scheduling.serving import Serving
from evalrpc.scheduling.supervisor import RunDependencies
from evalrpc.secrets.registry import Secrets
from evalrpc.store.base import Submission
from evalrpc.store.sqlite.store import SqliteStore
from evalrpc.testing.executor import FakeExecutor, FakeRun
from evalrpc.v1 import jobs_pb2 as pb

QUEUED, RUNNING = pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING
COMPLETED, FAILED, CANCELLED = pb.JOB_STATUS_COMPLETED, pb.JOB_STATUS_FAILED, pb.JOB_STATUS_CANCELLED
CLOCK = SystemClock()
SETTINGS = HarnessSettings("h", "command", command=("true",))


class House:
    """A scheduler with a real store."""

    def __init__(
        self,
        folder: Path,
        executor: FakeExecutor | None = None,
        harness: CommandHarness | None = None,
        owns: Callable[[pb.JobInfo], bool] = lambda _: True,
        bounds: RunBounds | None = None,
        *,
        policy: SharePolicy | None = None,
        preemption_interval_seconds: float = 0.0,
        preparations: Mapping[str, Preparation] = MappingProxyType({}),
    ) -> None:
        self.measurer = ThreadPoolExecutor(1)
        entitlements = Entitlements(policy)
        self.store = SqliteStore(folder / "data", CLOCK, 1000, entitlements)
        self.executor = executor or FakeExecutor()
        self.queue_state = QueueState(
            self.executor.nodes,
            0,
            CLOCK,
            owns,
            entitlements=entitlements,
            preemption_interval_seconds=preemption_interval_seconds,
        )
        uses = self.store.attempt_uses(self.queue_state.uses_since_ns)
        self.queue_state.load(self.store.queued_rows(), self.store.running_jobs(), uses)
        accounts = RunAccounts(self.store, folder / "data", OutputAccess(None, 0o640), None)
        prepared_models = PreparedModels(folder / "data" / "preparations", CLOCK)
        engines = EnginePool({}, {}, self.executor, accounts.of, CLOCK, folder / "data", 0.1, Secrets())
        self.dependencies = RunDependencies(
            store=self.store,
            queue_state=self.queue_state,
            executor=self.executor,
            harnesses={"h": harness or CommandHarness(SETTINGS)},
            harness_settings={"h": SETTINGS},
            clock=CLOCK,
            data_dir=folder / "data",
            output_root=None,
            output_access=OutputAccess(None, 0o640),
            accounts=accounts,
            preparing=Preparing(preparations, prepared_models, self.executor, accounts, CLOCK, folder / "data"),
            serving=Serving(engines, CLOCK, folder / "data", Lending(folder / "data")),
            grace_seconds=0.1,
            run_bounds=bounds or RunBounds(),
            measurer=self.measurer,
            publish_progress=lambda _: None,
        )
        self.scheduler = Scheduler(self.dependencies, 600.0)
        self.store.follow(self.store.position, self.queue_state.apply)
        self.store.follow(self.store.position, self.scheduler.on_changes)
        self.count = sum(self.store.status_counts().values())

    def submit(self, num_gpus: int = 1, **fields: Any) -> str:
        self.count += 1
        job = pb.JobInfo(job_id=f"job-{self.count}", max_attempts=fields.pop("max_attempts", 1), **fields)
        job.request.MergeFrom(pb.EvaluateRequest(harness="h", model="m", tasks=["t"], num_gpus=num_gpus))
        return self.store.submit(Submission(job)).result(SECONDS).job_id

    def job(self, job_id: str) -> pb.JobInfo:
        return self.store.job(job_id).parse()

    def wait_for(self, job_id: str, *statuses: int) -> pb.JobInfo:
        return eventually(lambda: (job := self.job(job_id)).status in statuses and job, f"for {job_id} to be {statuses}")

    def wait_until_running(self, job_id: str) -> FakeRun:
        return eventually(lambda: self.executor.runs.get(job_id), f"for the run of {job_id}")

    def cancel(self, job_id: str) -> None:
        self.store.update(job_id, lambda job: transitions.request_cancel(job, "", CLOCK.now())).result(SECONDS)

    def is_empty(self) -> bool:
        return not self.scheduler._placed and not self.scheduler._supervisors

    def close(self) -> None:
        self.scheduler.stop()
        self.measurer.shutdown()
        self.store.close()
