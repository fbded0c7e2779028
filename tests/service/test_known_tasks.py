"""The tasks that a harness lists, and the response to a task that it does not list."""

from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2
from serving import Api, ServerHere, Site, detail, fields_of, submission
from waiting import eventually

PYTHON = """#!/bin/sh
echo x >> {asked}
echo '{{"tasks": ["gsm8k", "mmlu", "MMLU_pro"], "models": ["hf"]}}'
"""


@pytest.fixture
def listing(site: Site) -> Site:
    """A harness whose interpreter only prints the names that it knows."""
    python = site.folder / "env" / "bin" / "python"
    (site.folder / "env" / "lib" / "python3.11" / "site-packages" / "lm_eval-0.4.13.dist-info").mkdir(parents=True)
    python.parent.mkdir()
    python.write_text(PYTHON.format(asked=site.folder / "asked"))
    python.chmod(0o755)
    with site.config.open("a") as config:
        config.write(f'[harnesses.lm-eval]\npython = "{python}"\n')
    return site


def warnings(api: Api, *tasks: str, model: str = "hf") -> list[str]:
    call = submission(request={"harness": "lm-eval", "model": model, "tasks": tasks}, validate_only=True)
    return list(api.SubmitJob(call).warnings)


def test_names_are_filtered_whatever_their_case_and_come_in_pages(listing: Site, serve: Callable[..., ServerHere]) -> None:
    api = serve().api
    first = api.ListTasks(harness="lm-eval", query="Mmlu", page_size=1)
    second = api.ListTasks(harness="lm-eval", query="Mmlu", page_size=1, page_token=first.next_page_token)
    assert (list(first.tasks), list(second.tasks), second.next_page_token) == (["MMLU_pro"], ["mmlu"], "")
    assert list(api.ListModels(harness="lm-eval").models) == ["hf"]


def test_an_unknown_task_is_warned_of_from_the_first_submission_after_a_restart(
    listing: Site, serve: Callable[..., ServerHere]
) -> None:
    server = serve()
    assert warnings(server.api, "gsm8j") == []
    server.api.ListTasks(harness="lm-eval")
    assert warnings(server.api, "gsm8k") == []
    expected = ["the harness lists no task 'gsm8j'; did you mean gsm8k?"]
    assert warnings(server.api, "gsm8j") == expected
    server.stop()
    api = serve().api
    eventually(lambda: warnings(api, "gsm8j") == expected, "for the list to be loaded")
    assert (listing.folder / "asked").read_text() == "x\n"


def test_what_a_harness_doubts_is_a_warning_of_the_job(listing: Site, serve: Callable[..., ServerHere]) -> None:
    call = submission(request={"harness": "lm-eval", "model": "vllm", "tasks": ["gsm8k"], "num_gpus": 2}, validate_only=True)
    (warning,) = serve().api.SubmitJob(call).warnings
    assert warning.startswith("num_gpus: the run gets 2 GPUs, and by its model_args vllm takes 1, ")


def test_a_harness_that_is_too_old_is_warned_of_until_it_is_not(listing: Site, serve: Callable[..., ServerHere]) -> None:
    packages = listing.folder / "env" / "lib" / "python3.11" / "site-packages"
    (packages / "lm_eval-0.4.13.dist-info").rename(packages / "lm_eval-0.4.9.2.dist-info")
    api = serve().api
    (harness,) = (each for each in api.ListHarnesses().harnesses if each.name == "lm-eval")
    assert not harness.available
    assert "lm-eval 0.4.9.2" in harness.unavailable_reason
    assert "pip install 'lm_eval>=0.4.10'" in harness.unavailable_reason
    assert warnings(api, "gsm8k") == [f"harness lm-eval is not available: {harness.unavailable_reason}"]
    (packages / "lm_eval-0.4.9.2.dist-info").rename(packages / "lm_eval-0.4.10.dist-info")
    assert warnings(api, "gsm8k") == []


def test_an_unknown_task_is_refused_where_the_operator_wants_it_so(listing: Site, serve: Callable[..., ServerHere]) -> None:
    api = serve(unknown_tasks="refuse").api
    api.ListTasks(harness="lm-eval")
    with pytest.raises(grpc.RpcError) as caught:
        warnings(api, "mmlu", "gsm8j")
    assert fields_of(caught.value) == ["request.tasks[1]"]
    assert "gsm8k" in detail(caught.value, error_details_pb2.BadRequest).field_violations[0].description


@pytest.mark.parametrize("unknown_tasks", ["warn", "refuse"])
def test_an_unknown_model_is_warned_of_and_never_refused(
    listing: Site, serve: Callable[..., ServerHere], unknown_tasks: str
) -> None:
    api = serve(unknown_tasks=unknown_tasks).api
    assert warnings(api, "gsm8k", model="fh") == []
    api.ListModels(harness="lm-eval")
    assert warnings(api, "gsm8k", model="hff") == ["the harness lists no model 'hff'; did you mean hf?"]
    assert warnings(api, "gsm8k", model="hf") == []
