"""Who prepares a model, who uses it, and which are removed."""

import threading
from pathlib import Path

import pytest
from waiting import DEADLINE_SECONDS as SECONDS
from waiting import eventually

from evalrpc.clock import SystemClock
from evalrpc.errors import RunFailedError
from evalrpc.preparations.prepared_models import Making, PreparedModels


@pytest.fixture
def models(tmp_path: Path) -> PreparedModels:
    return PreparedModels(tmp_path / "preparations", SystemClock())


def make(models: PreparedModels, tmp_path: Path, job_id: str, fingerprint: str, size_bytes: int = 10) -> None:
    """Have a job prepare a model."""
    models.use(job_id, fingerprint)
    assert making_of(models, job_id).job_id == job_id
    made = tmp_path / f"made-{job_id}"
    made.mkdir()
    (made / "weights").write_bytes(bytes(size_bytes))
    models.keep(job_id, made)


def making_of(models: PreparedModels, job_id: str) -> Making:
    making = models.next_step(job_id)
    assert making is not None
    return making


def names(models: PreparedModels) -> set[str]:
    return {path.name for path in models.folder.iterdir()}


def test_one_of_those_who_need_a_model_prepares_it_and_all_get_it(models: PreparedModels, tmp_path: Path) -> None:
    for job_id in ("a", "b"):
        models.use(job_id, "f1")
    models.use("c", "f2")
    assert [making_of(models, job_id).job_id for job_id in "bac"] == ["b", "b", "c"]
    (tmp_path / "made").mkdir()
    waiting = threading.Thread(target=making_of(models, "a").wait, args=(SECONDS,))
    waiting.start()
    models.keep("b", tmp_path / "made")
    waiting.join(SECONDS)
    assert not waiting.is_alive()
    assert [models.next_step(job_id) for job_id in "ab"] == [None, None]


def test_who_waits_fails_with_who_prepares_and_the_next_one_tries_again(models: PreparedModels) -> None:
    for job_id in ("a", "b"):
        models.use(job_id, "f1")
    making_of(models, "a")
    making = making_of(models, "b")
    error = RunFailedError("PREPARATION_FAILED", "no shards")
    error.job_error.exit_code = 3
    models.fail("a", error)
    with pytest.raises(RunFailedError, match="no shards") as caught:
        making.wait(SECONDS)
    assert caught.value is not error, "each thread has its own"
    assert caught.value.job_error == error.job_error
    assert making_of(models, "b").job_id == "b"


def test_who_waits_takes_over_from_who_gives_up(models: PreparedModels) -> None:
    for job_id in ("a", "b"):
        models.use(job_id, "f1")
    making_of(models, "a")
    making = making_of(models, "b")
    models.release("b")
    models.use("b", "f1")
    assert not making.done.done(), "who only waited has not given it up for the other one"
    models.release("a")
    making.wait(SECONDS)
    assert making_of(models, "b").job_id == "b"


def test_a_later_server_knows_who_was_preparing(models: PreparedModels) -> None:
    models.use("waits", "f1")
    models.use("prepares", "f1", is_making=True)
    assert making_of(models, "waits").job_id == "prepares"


def test_the_longest_unused_are_removed_until_the_others_are_small_enough(models: PreparedModels, tmp_path: Path) -> None:
    for number in range(4):
        make(models, tmp_path, f"job-{number}", f"f{number}", 100_000)
    for number in (2, 0, 3):  # the first uses come last
        models.release(f"job-{number}")
    assert models.evict(0.0, 250_000, lambda: False) == []
    assert names(models) == {"f1", "f3"}, "f1 is in use, and f3 was used last"


def test_nothing_is_removed_without_a_limit(models: PreparedModels, tmp_path: Path) -> None:
    assert models.evict(0.0, 0, lambda: False) == [], "there may be no folder yet"
    make(models, tmp_path, "a", "f1")
    models.release("a")
    assert models.evict(0.0, 0, lambda: False) == []
    assert models.evict(3600.0, 10**9, lambda: False) == []
    assert names(models) == {"f1"}


def test_a_removal_that_was_broken_off_goes_on_and_the_model_is_prepared_anew(models: PreparedModels, tmp_path: Path) -> None:
    make(models, tmp_path, "a", "f1", 100_000)
    models.release("a")
    assert models.evict(0.0, 1, lambda: True)
    models.use("a", "f1")
    assert making_of(models, "a").job_id == "a"
    assert all(name.endswith(".removed") for name in names(models))
    assert models.evict(0.0, 1, lambda: False) == []
    eventually(lambda: not names(models), "for it to be gone")
