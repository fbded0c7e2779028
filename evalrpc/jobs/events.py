"""Events that say that a job is gone: deleted, or not of a watcher's filter any more."""

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.v1 import jobs_pb2 as pb


def deleted_event(job_id: str, revision: int, time: Timestamp, *, left_filter: bool = False) -> bytes:
    """Return a serialised DELETED event, with nothing of the job but its id. `left_filter`: the job itself is still there."""
    return pb.JobEvent(
        type=pb.JOB_EVENT_TYPE_DELETED,
        revision=revision,
        time=time,
        job=pb.JobInfo(job_id=job_id, revision=revision),
        terminal=not left_filter,
    ).SerializeToString()
