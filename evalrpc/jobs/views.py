"""How much of a job a client gets."""

from evalrpc.v1 import jobs_pb2 as pb


def reduce_to_view(job: pb.JobInfo, view: pb.JobView.ValueType) -> None:
    """Drop from a job, which is changed, what the view leaves out."""
    if view != pb.JOB_VIEW_BASIC:
        return
    for result in job.results.values():
        result.ClearField("metrics")
    if job.HasField("error"):
        job.error.ClearField("log_tail")
