"""Submits an evaluation to whichever of several servers answers, and watches it, whichever of them is gone meanwhile.

    python watch.py ipv4:10.0.0.1:50051,10.0.0.2:50051 --model dummy --tasks demo_colour

The servers share a database (docs/clusters.md). The client goes on at another one when its own is gone: the submission is the
same by its request_id, and the watch resumes after the revision that it had come to. So every change is printed once. Stop the
server that runs nothing, or the scheduler, while this watches, and see that it notices nothing.
"""

import argparse
import sys

from evalrpc import EvalClient
from evalrpc.v1.jobs_pb2 import JOB_EVENT_TYPE_STATUS, JOB_STATUS_COMPLETED, JobStatus


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("addresses", help="ipv4:HOST:PORT,HOST:PORT, or dns:///NAME:PORT for a name with several addresses")
    parser.add_argument("--harness", default="")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tasks", required=True, help="comma-separated")
    options = parser.parse_args()
    with EvalClient(options.addresses) as client:
        job = client.evaluate(options.model, options.tasks.split(","), harness=options.harness, num_gpus=0)
        print("job", job.job_id, flush=True)
        for event in client.watch(job.job_id, after_revision=job.revision):  # else the job may run before the watch begins
            if event.type == JOB_EVENT_TYPE_STATUS:
                print(event.revision, JobStatus.Name(event.job.status).removeprefix("JOB_STATUS_"), flush=True)
            job = event.job
    return 0 if job.status == JOB_STATUS_COMPLETED else 1


if __name__ == "__main__":
    sys.exit(main())
