"""A run whose output has numbers and times that no message can hold neither fails nor breaks an answer to anyone."""

from google.protobuf import json_format
from serving import COMPLETED, RUNNING, Api, Site
from waiting import eventually


def test_a_run_with_impossible_numbers_completes_and_everyone_can_read_it_as_json(api: Api, site: Site) -> None:
    job = api.submit("wild")
    site.wait_for_log(job.job_id)
    eventually(lambda: api.get(job.job_id).progress.done == 2, "for the progress that can be read")
    running = api.ListJobs()
    assert [job.status for job in running.jobs] == [RUNNING]
    assert not running.jobs[0].progress.HasField("time_left")
    assert json_format.MessageToJson(running)
    site.release()
    api.wait_for(job.job_id, COMPLETED)
    listed = api.ListJobs()
    assert json_format.MessageToJson(listed)
    metrics = listed.jobs[0].results["toy"].metrics
    assert [(metric.metric, metric.value) for metric in metrics] == [("acc", 0.5), ("inf", float("inf"))]
    for answer in (
        api.ListArtifacts(job_id=job.job_id),
        api.ListSamples(job_id=job.job_id, task="t"),
        api.GetHistory(),
        *api.watch(job.job_id),
    ):
        assert json_format.MessageToJson(answer)


def test_a_file_of_an_impossible_time_was_written_nobody_knows_when(api: Api, site: Site) -> None:
    job = api.submit("wild")
    site.release()
    api.wait_for(job.job_id, COMPLETED)
    files = api.ListArtifacts(job_id=job.job_id).artifacts
    assert [file.HasField("modified_at") for file in files] == [False, False]
