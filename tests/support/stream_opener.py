"""A client that opens every kind of stream of a job, reads one message of each, says so, and then reads no more.

Run in a process of its own, to be killed: `python stream_opener.py ADDRESS JOB_ID ARTIFACT`.
"""

import sys
import time

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from evalrpc.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from evalrpc.v1.files_pb2 import ReadArtifactRequest, ReadLogRequest
from evalrpc.v1.jobs_pb2 import WatchJobRequest, WatchJobsRequest


def main(address: str, job_id: str, artifact: str) -> None:
    channel = grpc.insecure_channel(address)
    stub = EvaluationServiceStub(channel)
    asked = iter([ServerReflectionRequest(list_services="")])

    def ask_once():  # type: ignore[no-untyped-def]
        yield from asked
        time.sleep(3600)

    streams = [
        stub.WatchJob(WatchJobRequest(job_id=job_id)),
        stub.WatchJobs(WatchJobsRequest()),
        stub.ReadLog(ReadLogRequest(job_id=job_id, follow=True)),
        stub.ReadArtifact(ReadArtifactRequest(job_id=job_id, name=artifact)),
        HealthStub(channel).Watch(HealthCheckRequest()),
        ServerReflectionStub(channel).ServerReflectionInfo(ask_once()),
    ]
    for stream in streams:
        next(stream)
    print("open", flush=True)
    time.sleep(3600)


if __name__ == "__main__":
    main(*sys.argv[1:])
