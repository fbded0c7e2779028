"""Listing jobs, the queue and the harnesses."""

from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from serving import COMPLETED, FAILED, QUEUED, RUNNING, Api, Site, fields_of

from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import JobFilter


def ids(jobs: Any) -> list[str]:
    return [job.job_id for job in jobs]


@pytest.fixture
def queued(api: Api) -> list[pb.JobInfo]:
    """Jobs that wait behind one that never ends."""
    api.wait_for(api.submit("hangs", request={"num_gpus": 2}).job_id, RUNNING)
    request = {"num_gpus": 1}
    return [
        api.submit("good", labels={"team": "a", "n": str(number)}, request={**request, "tasks": ["t", f"t{number}"]})
        for number in range(7)
    ]


def listed(api: Api, **conditions: Any) -> list[str]:
    return ids(api.ListJobs(filter=JobFilter(**conditions)).jobs)


def test_no_jobs_are_an_empty_list(api: Api) -> None:
    answer = api.ListJobs()
    assert not answer.jobs
    assert not answer.next_page_token


def test_jobs_are_listed_newest_first_with_their_positions(api: Api, queued: list[pb.JobInfo]) -> None:
    jobs = api.ListJobs(filter=JobFilter(statuses=[QUEUED])).jobs
    assert ids(jobs) == ids(queued[::-1])
    assert [job.position_in_queue for job in jobs] == list(range(6, -1, -1))
    assert all(job.wait_reason for job in jobs)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 1000, 5000])
def test_pages_together_are_the_whole_list_though_jobs_arrive_meanwhile(api: Api, queued: list[pb.JobInfo], size: int) -> None:
    condition = JobFilter(labels={"team": "a"})
    found: list[str] = []
    token = ""
    while True:
        page = api.ListJobs(filter=condition, page_size=size, page_token=token)
        assert len(page.jobs) <= size
        found += ids(page.jobs)
        token = page.next_page_token
        api.submit("good", labels={"team": "a"}, request={"num_gpus": 1})
        if not token:
            break
    assert found == ids(queued[::-1])


def test_a_page_has_fifty_jobs_unless_told_otherwise(api: Api, queued: list[pb.JobInfo]) -> None:
    for _ in range(50):
        api.submit("good", request={"num_gpus": 1})
    first = api.ListJobs()
    assert len(first.jobs) == 50
    second = api.ListJobs(page_token=first.next_page_token)
    assert len(second.jobs) == 8
    assert not second.next_page_token
    assert len(set(ids(first.jobs) + ids(second.jobs))) == 58


def test_a_token_is_good_only_for_its_filter(api: Api, queued: list[pb.JobInfo]) -> None:
    token = api.ListJobs(page_size=1).next_page_token
    for other in (JobFilter(statuses=[QUEUED]), JobFilter(label_selector="team"), JobFilter(job_id_prefix="0b54")):
        with pytest.raises(grpc.RpcError) as caught:
            api.ListJobs(page_size=1, page_token=token, filter=other)
        assert fields_of(caught.value) == ["page_token"]


def test_a_selection_is_paged_like_any_list(api: Api, queued: list[pb.JobInfo]) -> None:
    selection = JobFilter(label_selector="n notin (2,5),team")
    first = api.ListJobs(filter=selection, page_size=3)
    second = api.ListJobs(filter=selection, page_size=3, page_token=first.next_page_token)
    wanted = [job for job in queued[::-1] if job.labels["n"] not in ("2", "5")]
    assert ids(first.jobs) + ids(second.jobs) == ids(wanted)
    assert not second.next_page_token


def test_every_filter_narrows_the_list(api: Api) -> None:
    good = api.run("good", labels={"team": "a", "x": "1"})
    bad = api.run("fails", labels={"team": "a"}, request={"tasks": ["other"]})
    assert listed(api) == [bad.job_id, good.job_id]
    assert listed(api, statuses=[COMPLETED]) == [good.job_id]
    assert listed(api, statuses=[COMPLETED, FAILED]) == [bad.job_id, good.job_id]
    assert listed(api, labels={"team": "a"}) == [bad.job_id, good.job_id]
    assert listed(api, labels={"team": "a", "x": "1"}) == [good.job_id]
    assert listed(api, label_selector="team=a,x!=1") == [bad.job_id]
    assert listed(api, label_selector="team in (a,b),x") == [good.job_id]
    assert listed(api, label_selector="!team") == []
    assert listed(api, label_selector=" ") == [bad.job_id, good.job_id]
    assert listed(api, job_id_prefix=good.job_id[:8].upper()) == [good.job_id]
    assert listed(api, job_id_prefix=good.job_id, label_selector="!x") == []
    assert listed(api, models=["fails"]) == [bad.job_id]
    assert listed(api, tasks=["t"]) == [good.job_id]
    assert listed(api, harnesses=["toy"]) == [bad.job_id, good.job_id]
    assert listed(api, harnesses=["other"]) == []
    assert listed(api, created_after=bad.created_at) == [bad.job_id]
    assert listed(api, created_before=bad.created_at) == [good.job_id]
    assert listed(api, created_after=Timestamp(seconds=1), created_before=Timestamp(seconds=2)) == []


def test_a_listed_job_is_the_job(api: Api) -> None:
    job = api.run("good")
    assert list(api.ListJobs().jobs) == [job]


def test_the_queue_tells_the_counts_of_every_status(api: Api, queued: list[pb.JobInfo], site: Site) -> None:
    api.CancelJob(job_id=queued[0].job_id)
    api.run("fails")
    queue = api.GetQueue()
    counts = {pb.JobStatus.Name(count.status).removeprefix("JOB_STATUS_"): count.count for count in queue.status_counts}
    assert counts == {"QUEUED": 6, "RUNNING": 1, "CANCELLED": 1, "FAILED": 1}
    assert list(queue.queued_job_ids) == ids(queued[1:])
    assert (queue.max_running, queue.max_queued) == (4, 100_000)
    assert [gpu.id for gpu in queue.gpus] == ["0", "1"]


def test_the_harnesses_are_those_of_the_operator(api: Api) -> None:
    (harness,) = api.ListHarnesses().harnesses
    assert (harness.name, harness.kind, harness.available, harness.unavailable_reason) == ("toy", "command", True, "")
