"""The decision over a suite run: the jobs of each entry are measured, and all that is known then is judged together."""

from dataclasses import dataclass

from evalrpc.analysis.comparer import Comparer
from evalrpc.analysis.evidence import Evidence
from evalrpc.errors import EvalrpcError, JobNotFoundError, UnavailableError
from evalrpc.jobs import lifecycle
from evalrpc.v1.jobs_pb2 import JOB_STATUS_COMPLETED, JobInfo
from evalrpc.v1.suites_pb2 import Suite, SuiteDecision, SuiteRun
from evalrpc.watching.feed import Feed


@dataclass(frozen=True)
class SuiteDecider:
    """Decides over suite runs. Used on the event loop."""

    feed: Feed
    comparer: Comparer
    owner: str
    """Who asks."""

    async def decide(self, run: SuiteRun, baseline: SuiteRun | None, baseline_problem: str = "") -> SuiteDecision:
        """Return the decision over a run, compared with another one if there is any.

        `baseline_problem`: why there is none where there should be.

        Entry after entry, so that no more than two jobs are in memory. Raises UnavailableError while a file can't be read;
        whatever else is wrong with a job is part of the decision.
        """
        baseline_jobs = {job.entry: job.job_id for job in baseline.jobs} if baseline else {}
        evidence = []
        for entry, job in zip(run.suite.entries, run.jobs, strict=True):
            baseline_job_id = baseline_jobs.get(entry.name, "")
            remark = "the baseline's run has no such entry" if baseline and not baseline_job_id else ""
            to_measure = Evidence(entry, job.job_id, baseline_job_id, baseline_problem=baseline_problem, remark=remark)
            evidence.append(await self._measured(run.suite, to_measure))
        decision = await self.comparer.decide(run.suite, evidence, self.owner, has_ended=run.status in lifecycle.TERMINAL)
        decision.baseline_suite_run_id = baseline.suite_run_id if baseline else ""
        return decision

    async def _measured(self, suite: Suite, evidence: Evidence) -> Evidence:
        """Add what the job of an entry says, and that of the baseline if it has one."""
        candidate, problem = await self._completed(evidence.job_id, "the job")
        if candidate is None:
            return evidence._replace(problem=problem)
        baseline, baseline_problem = None, evidence.baseline_problem
        if evidence.baseline_job_id:
            baseline, baseline_problem = await self._completed(evidence.baseline_job_id, "the baseline's job")
        try:
            measured = await self.comparer.measure(suite, evidence.entry, candidate, baseline, self.owner)
        except UnavailableError:
            raise
        except EvalrpcError as error:
            return evidence._replace(problem=error.message)
        return evidence._replace(measured=measured, baseline_problem=baseline_problem)

    async def _completed(self, job_id: str, which: str) -> tuple[JobInfo | None, str]:
        """Return a job that has completed, or else why it says nothing."""
        try:
            job = await self.feed.read_job(job_id)
        except JobNotFoundError:
            return None, f"{which} was deleted"
        if job.status == JOB_STATUS_COMPLETED:
            return job, ""
        return None, ": ".join(filter(None, (f"{which} is {lifecycle.status_name(job.status)}", job.error.message)))
