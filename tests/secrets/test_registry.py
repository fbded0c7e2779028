"""The secrets of a server: read for a run, remembered for masks."""

import sys
from pathlib import Path

import pytest
from clocks import ManualClock

from evalrpc.config import SecretSettings
from evalrpc.errors import RunFailedError
from evalrpc.secrets.registry import PAUSE_SECONDS, Secrets


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    (tmp_path / "a").write_text("first-value\n")
    declared = {
        "A": SecretSettings(owners=("alice",), file=tmp_path / "a"),
        "B": SecretSettings(owners=("*",), variable="B"),
    }
    return Secrets(declared, {"B": "value-of-b"})


def test_values_are_read_anew_for_each_run(secrets: Secrets, tmp_path: Path) -> None:
    assert secrets.read(["A", "B"], "alice") == {"A": "first-value", "B": "value-of-b"}
    (tmp_path / "a").write_text("second-value\n")
    assert secrets.read(["A"], "alice") == {"A": "second-value"}


@pytest.mark.parametrize(
    ("name", "owner", "message"),
    [
        ("A", "bob", "secret A: it is not for the owner of the job any more"),
        ("C", "alice", "secret C: this server does not have it any more"),
        ("A", "alice", "secret A: its file can't be read: No such file or directory"),
    ],
)
def test_a_run_whose_secret_can_not_be_read_does_not_start(
    secrets: Secrets, tmp_path: Path, name: str, owner: str, message: str
) -> None:
    (tmp_path / "a").unlink()
    with pytest.raises(RunFailedError) as caught:
        secrets.read(["B", name], owner)
    assert caught.value.job_error.reason == "START_FAILED"
    assert caught.value.message == message
    assert caught.value.__cause__ is None


def test_every_value_that_a_secret_has_had_is_masked(secrets: Secrets, tmp_path: Path) -> None:
    secrets.read(["A"], "alice")
    (tmp_path / "a").write_text("second-value\n")
    secrets.read(["A"], "alice")
    assert secrets.mask(["A"]).text("first-value, second-value, value-of-b") == "***********, ************, value-of-b"


def test_after_a_restart_the_values_of_now_are_read(secrets: Secrets, tmp_path: Path) -> None:
    assert secrets.mask(["A", "B"]).text("first-value, value-of-b") == "***********, **********"


def test_a_value_that_is_not_known_and_can_not_be_read_is_reported(secrets: Secrets, tmp_path: Path) -> None:
    (tmp_path / "a").unlink()
    assert secrets.mask(["A", "B", "C"]).unreadable == ("A", "C")
    (tmp_path / "a").write_text("again")
    assert secrets.mask(["A"]).unreadable == ()
    (tmp_path / "a").unlink()
    assert secrets.mask(["A"]).unreadable == ()  # known by now


def test_a_command_that_has_failed_is_not_run_again_at_once_for_a_mask(tmp_path: Path) -> None:
    clock, runs = ManualClock(), tmp_path / "runs"
    code = f"open({str(runs)!r}, 'a').write('.'); raise SystemExit(1)"
    declared = {"A": SecretSettings(owners=("*",), command=(sys.executable, "-S", "-c", code))}
    secrets = Secrets(declared, {}, clock)
    assert [secrets.mask(["A"]).unreadable for _ in range(3)] == [("A",)] * 3
    assert runs.read_text() == "."
    clock.seconds += PAUSE_SECONDS
    assert secrets.mask(["A"]).unreadable == ("A",)
    with pytest.raises(RunFailedError):
        secrets.read(["A"], "alice")
    assert runs.read_text() == "..."


def test_the_log_of_the_server_is_masked_with_all_that_are_known(secrets: Secrets) -> None:
    assert secrets.mask_text("first-value, value-of-b") == "first-value, value-of-b"
    secrets.read(["A", "B"], "alice")
    assert secrets.mask_text("first-value, value-of-b") == "***********, **********"
