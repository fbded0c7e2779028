"""What a follower submits, and in which order, with a server that is a dictionary."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from clocks import ManualClock

from evalrpc.errors import (
    EvalrpcError,
    FileUnavailableError,
    InvalidRequestError,
    JobNotFoundError,
    QueueFullError,
    RequestIdReusedError,
    RequestTooLargeError,
    StoreUnavailableError,
    SuiteRunNotFoundError,
    UnavailableError,
)
from evalrpc.training.checkpoints import Checkpoint, CheckpointFolder
from evalrpc.training.evaluations import Evaluation
from evalrpc.training.follower import Choice, Follower, Happening, News
from evalrpc.v1.jobs_pb2 import JobInfo

SUBMITTED, ENDED, SKIPPED, REFUSED = Happening.SUBMITTED, Happening.ENDED, Happening.SKIPPED, Happening.REFUSED


class Server:
    """Remembers what was submitted, as a real one does, also from one follower to the next."""

    def __init__(self) -> None:
        self.options = ""
        self.options_of: dict[str, str] = {}
        self.evaluations: dict[str, bool] = {}
        self.error: EvalrpcError | None = None
        self.error_of: dict[str, EvalrpcError] = {}
        """By the name of a checkpoint what its evaluation's calls raise; by `submit` what each submission does."""
        self.has_started = False

    def submit(self, checkpoint: Checkpoint) -> Evaluation:
        self._answer("submit")
        evaluation_id = f"{checkpoint.path.name}/{checkpoint.fingerprint}"
        if self.options_of.setdefault(evaluation_id, self.options) != self.options:
            raise RequestIdReusedError("used")
        self.evaluations.setdefault(evaluation_id, False)
        return self.look(evaluation_id)

    def look(self, evaluation_id: str) -> Evaluation:
        self._answer()
        if evaluation_id not in self.evaluations:
            raise JobNotFoundError("there is no such job")
        self._answer(evaluation_id.partition("/")[0])
        return Evaluation(evaluation_id, self.evaluations[evaluation_id], JobInfo(job_id=evaluation_id))

    def give_up(self, evaluation_id: str, reason: str) -> bool:
        self._answer(evaluation_id.partition("/")[0])
        if not self.has_started:
            self.evaluations[evaluation_id] = True
        return not self.has_started

    def finish(self, name: str = "") -> None:
        self.evaluations.update({each: True for each in self.evaluations if each.startswith(name)})

    def _answer(self, name: str = "") -> None:
        if error := self.error or self.error_of.get(name):
            raise error

    @property
    def names(self) -> list[str]:
        return [evaluation_id.partition("/")[0] for evaluation_id in self.evaluations]


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def follow(server: Server, out: Path) -> Callable[..., Follower]:
    def follow(max_outstanding: int = 8, **choice: int) -> Follower:
        return Follower(CheckpointFolder(out, ManualClock(), quiet_seconds=0), server, Choice(**choice), max_outstanding)

    return follow


def save(out: Path, *steps: int, text: str = "weights") -> None:
    for step in steps:
        (out / f"step_{step}").mkdir(parents=True, exist_ok=True)
        (out / f"step_{step}" / "model").write_text(text)


def happened(news: list[News]) -> list[tuple[Happening, int]]:
    return [(each.happening, each.checkpoint.step) for each in news if each.checkpoint]


def words(news: list[News]) -> str:
    return "\n".join(each.text for each in news)


Follow = Callable[..., Follower]


def test_each_checkpoint_is_submitted_once_the_newest_first(follow: Follow, server: Server, out: Path) -> None:
    follower = follow()
    save(out, 1, 3, 2)
    assert happened(list(follower.round())) == [(SUBMITTED, 3), (SUBMITTED, 2), (SUBMITTED, 1)]
    assert list(follower.round()) == []
    save(out, 4)
    assert happened(list(follower.round())) == [(SUBMITTED, 4)]


def test_a_result_is_said_once_and_then_nothing_is_left_to_do(follow: Follow, server: Server, out: Path) -> None:
    follower = follow()
    save(out, 1)
    list(follower.round())
    assert not follower.is_idle
    server.finish()
    assert happened(list(follower.round())) == [(ENDED, 1)]
    assert list(follower.round()) == []
    assert follower.is_idle
    assert follower.newest_step == 1


def test_only_so_many_are_outstanding_and_of_those_held_back_the_newest_is_next(
    follow: Follow, server: Server, out: Path
) -> None:
    follower = follow(max_outstanding=2)
    save(out, 1, 2, 3, 4)
    assert happened(list(follower.round())) == [(SUBMITTED, 4), (SUBMITTED, 3)]
    assert not list(follower.round())
    save(out, 5)
    server.finish("step_4")
    assert happened(list(follower.round())) == [(ENDED, 4), (SUBMITTED, 5)]
    for _ in range(3):
        server.finish()
        list(follower.round())
    assert server.names == ["step_4", "step_3", "step_5", "step_2", "step_1"]
    assert follower.is_idle


def test_a_follower_that_is_started_again_submits_nothing_twice(follow: Follow, server: Server, out: Path) -> None:
    save(out, 1, 2, 3)
    list(follow(max_outstanding=2).round())
    server.finish("step_3")
    assert happened(list(follow(max_outstanding=2).round())) == [(ENDED, 3), (SUBMITTED, 2), (SUBMITTED, 1)]
    assert server.names == ["step_3", "step_2", "step_1"]


def test_what_is_left_out_is_said_once_with_the_reason(follow: Follow, server: Server, out: Path) -> None:
    follower = follow(every=10, keep_latest=2)
    save(out, 5, 10, 20, 30)
    news = list(follower.round())
    assert happened(news) == [(SKIPPED, 10), (SKIPPED, 5), (SUBMITTED, 30), (SUBMITTED, 20)]
    assert words(news).splitlines()[:2] == ["it is not among the latest 2", "its step is no multiple of 10"]
    assert list(follower.round()) == []


def test_a_checkpoint_that_is_deleted_while_its_job_waits_is_given_up(follow: Follow, server: Server, out: Path) -> None:
    follower = follow()
    save(out, 1, 2)
    list(follower.round())
    shutil.rmtree(out / "step_1")
    assert "step_1 was deleted; its evaluation" in words(list(follower.round()))
    assert happened(list(follower.round())) == [(ENDED, 1)]
    assert list(follower.round()) == []


def test_a_checkpoint_that_is_deleted_while_its_job_runs_is_left_to_it(follow: Follow, server: Server, out: Path) -> None:
    follower, server.has_started = follow(), True
    save(out, 1, 2)
    list(follower.round())
    shutil.rmtree(out / "step_1")
    assert "going on" in words(list(follower.round()))
    assert list(follower.round()) == []


def test_a_checkpoint_that_is_deleted_before_its_turn_is_said_to_be(follow: Follow, server: Server, out: Path) -> None:
    follower = follow(max_outstanding=1)
    save(out, 1, 2)
    list(follower.round())
    shutil.rmtree(out / "step_1")
    assert happened(list(follower.round())) == [(SKIPPED, 1)]
    server.finish()
    list(follower.round())
    assert follower.is_idle


def test_a_file_system_that_goes_away_gives_nothing_up(follow: Follow, server: Server, out: Path) -> None:
    follower = follow()
    save(out, 1, 2)
    list(follower.round())
    out.rename(out.with_name("away"))
    assert happened(list(follower.round())) == []
    out.mkdir()
    assert happened(list(follower.round())) == [], "an empty mount point"
    assert not any(server.evaluations.values())


def test_a_checkpoint_that_is_written_anew_is_evaluated_anew(follow: Follow, server: Server, out: Path) -> None:
    follower = follow()
    save(out, 1)
    list(follower.round())
    save(out, 1, text="other weights")
    news = list(follower.round())
    assert "step_1 was written anew" in words(news)
    assert happened(news) == [(SUBMITTED, 1)]
    assert server.names == ["step_1", "step_1"]


@pytest.mark.parametrize("error", [UnavailableError("gone"), QueueFullError("full")])
def test_a_server_that_can_not_answer_now_is_asked_again_and_that_is_said_once(
    follow: Follow, server: Server, out: Path, error: EvalrpcError
) -> None:
    follower, server.error = follow(), error
    save(out, 1)
    assert [each.text for each in follower.round()] == [f"{error}; trying again"]
    assert list(follower.round()) == []
    server.error = None
    assert happened(list(follower.round())) == [(SUBMITTED, 1)]
    server.error = error
    assert [each.text for each in follower.round()] == [f"{error}; trying again"]


def test_an_evaluation_that_can_not_be_read_now_stops_no_other_one(follow: Follow, server: Server, out: Path) -> None:
    follower = follow()
    save(out, 1, 2)
    list(follower.round())
    server.error_of["step_2"] = FileUnavailableError("its results can't be read")
    server.finish("step_1")
    save(out, 3)
    news = list(follower.round())
    assert happened(news) == [(ENDED, 1), (SUBMITTED, 3)]
    assert words(news).strip() == "its results can't be read; trying again"
    assert list(follower.round()) == []
    server.error_of.clear()
    server.finish()
    assert happened(list(follower.round())) == [(ENDED, 2), (ENDED, 3)]


def test_an_evaluation_that_can_not_be_given_up_now_stops_no_other_one(follow: Follow, server: Server, out: Path) -> None:
    follower = follow(max_outstanding=2)
    save(out, 1, 2, 3)
    list(follower.round())
    server.error_of["step_2"] = StoreUnavailableError("the disk is full")
    for step in (1, 2):
        shutil.rmtree(out / f"step_{step}")
    assert happened(list(follower.round())) == [(SKIPPED, 1)]
    assert happened(list(follower.round())) == [], "said once"
    save(out, 4)
    server.finish("step_3")
    assert happened(list(follower.round())) == [(ENDED, 3), (SUBMITTED, 4)]
    server.error_of.clear()
    assert "cancelled, as it has not started" in words(list(follower.round()))


@pytest.mark.parametrize("error", [InvalidRequestError("no such task"), RequestTooLargeError("too many bytes")])
def test_a_request_that_will_never_do_ends_it(follow: Follow, server: Server, out: Path, error: EvalrpcError) -> None:
    server.error = error
    save(out, 1)
    with pytest.raises(type(error)):
        list(follow().round())


def test_a_baseline_that_was_deleted_is_said_of_each_checkpoint_and_ends_nothing(
    follow: Follow, server: Server, out: Path
) -> None:
    follower = follow()
    save(out, 1)
    list(follower.round())
    server.error_of["submit"] = SuiteRunNotFoundError("there is no suite run")
    save(out, 2)
    server.finish()
    news = list(follower.round())
    assert happened(news) == [(ENDED, 1), (REFUSED, 2)]
    assert "there is no suite run" in words(news)
    assert list(follower.round()) == []


def test_what_was_submitted_with_other_options_is_left_as_it_is(follow: Follow, server: Server, out: Path) -> None:
    save(out, 1)
    list(follow().round())
    server.options = "other labels"
    save(out, 2)
    follower = follow()
    assert happened(list(follower.round())) == [(SUBMITTED, 2), (REFUSED, 1)]
    assert list(follower.round()) == []


def test_an_evaluation_that_somebody_deletes_is_said_to_be_gone(follow: Follow, server: Server, out: Path) -> None:
    follower = follow()
    save(out, 1)
    list(follower.round())
    server.evaluations.clear()
    (news,) = follower.round()
    assert (news.happening, news.text) == (Happening.LOST, "step_1: there is no such job")
    assert follower.is_idle
