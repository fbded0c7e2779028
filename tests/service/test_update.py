"""Changing the labels and the priority of a job."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from serving import COMPLETED, NOWHERE, RUNNING, Api, Site, detail, fields_of, reason_of

from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.jobs_pb2 import JobFilter


def update(api: Api, job_id: str, *paths: str, **fields: Any) -> pb.JobInfo:
    """Call UpdateJob, with a mask of these paths if there are any."""
    return api.UpdateJob(job_id=job_id, update_mask=FieldMask(paths=paths) if paths else None, **fields)


def refusal(api: Api, job_id: str, *paths: str, **fields: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        update(api, job_id, *paths, **fields)
    return caught.value


@pytest.fixture
def queued(api: Api) -> list[pb.JobInfo]:
    """Jobs that wait behind one that never ends."""
    api.wait_for(api.submit("hangs", request={"num_gpus": 2}).job_id, RUNNING)
    return [api.submit("good", labels={"n": str(number)}, request={"num_gpus": 1}) for number in range(3)]


def test_labels_are_replaced_as_a_whole_and_found(api: Api) -> None:
    job = api.run("good", labels={"a": "1", "b": "1"})
    changed = update(api, job.job_id, labels={"b": "2", "c": "3"})
    assert changed.labels == {"b": "2", "c": "3"}
    assert changed.revision == job.revision + 1 == api.head()
    assert changed == api.get(job.job_id)
    changed.labels.clear()
    changed.labels.update(job.labels)
    changed.revision = job.revision
    assert changed == job, "nothing else has changed"
    assert not api.ListJobs(filter=JobFilter(labels={"b": "1"})).jobs
    assert api.ListJobs(filter=JobFilter(labels={"b": "2"})).jobs


def test_a_new_priority_reorders_the_queue(api: Api, queued: list[pb.JobInfo]) -> None:
    first, second, third = [job.job_id for job in queued]
    changed = update(api, third, priority=5)
    assert (changed.priority, changed.position_in_queue) == (5, 0)
    assert changed.wait_reason
    assert list(api.GetQueue().queued_job_ids) == [third, first, second]
    assert update(api, first, priority=-1).position_in_queue == 2
    assert list(api.GetQueue().queued_job_ids) == [third, second, first]
    assert api.get(second).position_in_queue == 1


def test_without_a_mask_the_fields_that_are_set_are_changed_and_with_one_those_that_it_names(
    api: Api, queued: list[pb.JobInfo]
) -> None:
    job_id = queued[0].job_id
    changed = update(api, job_id, priority=5)
    assert (changed.priority, changed.labels) == (5, {"n": "0"})
    changed = update(api, job_id, labels={"x": "1"})
    assert (changed.priority, changed.labels) == (5, {"x": "1"})
    changed = update(api, job_id, "priority", labels={"no such": "label"})
    assert (changed.priority, changed.labels) == (0, {"x": "1"}), "what the mask does not name does not matter"
    changed = update(api, job_id, "labels", priority=2000)
    assert (changed.priority, changed.labels) == (0, {})
    changed = update(api, job_id, "labels", "priority", "labels", labels={"y": "1"}, priority=3)
    assert (changed.priority, changed.labels) == (3, {"y": "1"})
    changed = update(api, job_id, "*", labels={"z": "1"})
    assert (changed.priority, changed.labels) == (0, {"z": "1"})


@pytest.mark.parametrize(
    ("paths", "fields", "expected"),
    [
        ([], {}, ["update_mask"]),
        ([], {"priority": 0, "labels": {}}, ["update_mask"]),
        (["status"], {}, ["update_mask.paths[0]"]),
        (["priority", "labels.a", "Labels", ""], {}, [f"update_mask.paths[{index}]" for index in (1, 2, 3)]),
        (["priority"] * 101, {}, ["update_mask"]),
        ([], {"priority": 1001, "labels": {"a b": "c"}}, ["labels", "priority"]),
        (["priority"], {"priority": -1001, "labels": {"a b": "c"}}, ["priority"]),
        ([], {"labels": {f"l{number}": "" for number in range(65)}}, ["labels"]),
        ([], {"labels": {"a": "\n", "b": "x" * 256}}, ["labels['a']", "labels['b']"]),
        ([], {"priority": 1, "expected_revision": -1}, ["expected_revision"]),
        (["oops"], {"job_id": "x", "expected_revision": -1}, ["job_id", "update_mask.paths[0]", "expected_revision"]),
    ],
)
def test_every_bad_field_is_named_at_once(api: Api, paths: list[str], fields: dict[str, Any], expected: list[str]) -> None:
    job_id = fields.pop("job_id", NOWHERE)
    assert sorted(fields_of(refusal(api, job_id, *paths, **fields))) == sorted(expected)


def test_an_unknown_path_is_named(api: Api) -> None:
    violation = detail(refusal(api, NOWHERE, "max_attempts"), error_details_pb2.BadRequest).field_violations[0]
    assert "max_attempts" in violation.description
    assert "labels, priority" in violation.description


def test_a_job_that_is_not_there_is_not_found(api: Api) -> None:
    error = refusal(api, NOWHERE, priority=1, expected_revision=1)
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")


def test_a_change_of_another_revision_is_aborted_with_that_of_now(api: Api, queued: list[pb.JobInfo]) -> None:
    job = queued[0]
    changed = update(api, job.job_id, priority=1, expected_revision=job.revision)
    error = refusal(api, job.job_id, priority=2, expected_revision=job.revision)
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.ABORTED, "CONFLICT")
    assert detail(error, error_details_pb2.ErrorInfo).metadata == {"revision": str(changed.revision)}
    assert api.get(job.job_id).priority == 1
    assert update(api, job.job_id, priority=2, expected_revision=changed.revision).priority == 2
    assert refusal(api, job.job_id, priority=3, expected_revision=0).code() is grpc.StatusCode.ABORTED


def test_a_terminal_job_keeps_its_priority_but_not_its_labels(api: Api) -> None:
    job = api.run("good")
    error = refusal(api, job.job_id, "priority", "labels", labels={"a": "1"})
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_FINISHED")
    assert api.get(job.job_id) == job
    assert update(api, job.job_id, labels={"a": "1"}).status == COMPLETED


def test_an_update_that_changes_nothing_has_no_revision(api: Api, queued: list[pb.JobInfo]) -> None:
    head = api.head()
    same = update(api, queued[0].job_id, "labels", "priority", labels={"n": "0"})
    assert same == queued[0]
    assert api.head() == head


def test_a_running_job_keeps_its_run(api: Api, site: Site) -> None:
    job = api.submit("slow", request={"num_gpus": 1})
    site.wait_for_log(job.job_id)
    changed = update(api, job.job_id, priority=3, labels={"a": "1"})
    assert (changed.status, changed.priority, list(changed.gpus)) == (RUNNING, 3, list(api.get(job.job_id).gpus))
    assert api.GetQueue().free_gpu_count == 1
    site.release()
    ended = api.wait_for(job.job_id, COMPLETED)
    assert (ended.priority, ended.labels) == (3, {"a": "1"})
    assert site.starts(job.job_id) == ["1"]


def test_writers_that_read_change_and_expect_lose_no_label(api: Api) -> None:
    job_id = api.run("good").job_id

    def add(number: int) -> None:
        while True:
            job = api.get(job_id)
            try:
                update(api, job_id, labels={**job.labels, f"l{number}": ""}, expected_revision=job.revision)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.ABORTED  # noqa: PT017
            else:
                return

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(24)))
    assert set(api.get(job_id).labels) == {f"l{number}" for number in range(24)}
