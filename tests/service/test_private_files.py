"""Files of a server and its runs are private to its account, except those that the operator shares."""

import os
import stat
from pathlib import Path

import pytest
from serving import COMPLETED, Launch, ServerThere, Site
from used_folders import seen_below


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def set_up(site: Site, **settings: str) -> Path:
    """Give the site an output root, and more settings."""
    root = site.folder / "shared" / "results"
    site.set_up(output_root=str(root), **settings)
    return root


def run_into(server: ServerThere, output_dir: str) -> None:
    """Run a job whose results go there."""
    request = {"output_dir": output_dir, "tasks": ["good", "also_good"], "tasks_separately": True}
    assert server.api.run("each", request=request).status == COMPLETED


def test_nobody_else_can_read_what_a_server_keeps(launch: Launch, site: Site) -> None:
    data_dir = site.folder / "data"
    data_dir.mkdir(mode=0o755)
    data_dir.chmod(0o755)  # as an earlier version made it
    server = launch()
    job = server.api.run("good")
    assert job.status == COMPLETED
    modes = seen_below(data_dir, mode_of)
    assert data_dir / "jobs" / job.job_id / "attempt-1" / "log" in modes
    assert data_dir / "evalrpc.sqlite3" in modes
    assert [path for path, mode in modes.items() if mode & 0o077] == []
    assert mode_of(data_dir) == 0o700


@pytest.mark.parametrize(
    ("settings", "file_mode", "folder_mode"),
    [
        ({}, 0o640, 0o750),
        ({"output_mode": "0600"}, 0o600, 0o700),
        ({"output_mode": "0660"}, 0o660, 0o770),
        ({"output_mode": "0644"}, 0o644, 0o755),
    ],
)
def test_results_below_the_output_root_have_the_rights_that_the_operator_gives(
    launch: Launch, site: Site, settings: dict[str, str], file_mode: int, folder_mode: int
) -> None:
    root = set_up(site, **settings)
    run_into(launch(), "team/run-1")
    modes = seen_below(root.parent, mode_of)
    assert any(path.name.endswith("_results.json") for path in modes)
    for path, mode in modes.items():
        assert oct(mode) == oct(folder_mode if path.is_dir() else file_mode), path
    assert [path for path, mode in seen_below(site.folder / "data", mode_of).items() if mode & 0o077] == []


def test_a_folder_that_is_there_already_stays_as_it_is(launch: Launch, site: Site) -> None:
    root = set_up(site)
    (root / "team").mkdir(parents=True)
    (root / "team").chmod(0o711)
    run_into(launch(), "team/run-1")
    assert mode_of(root / "team") == 0o711
    assert mode_of(root / "team" / "run-1") == 0o750


def test_results_below_the_output_root_belong_to_the_operators_group(launch: Launch, site: Site) -> None:
    group_id = os.getgid() if os.getuid() else 54321
    root = set_up(site, output_group=str(group_id))
    run_into(launch(), "team/run-1")
    for path, found in seen_below(root, Path.lstat).items():
        assert found.st_gid == group_id, path
        assert stat.S_IMODE(found.st_mode) == (0o2750 if path.is_dir() else 0o640), path


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        ("no-such-group", "this machine has no group 'no-such-group'"),
        ("\u0663", "this machine has no group"),
        ("4294967295", "a group's number is at most 4294967294"),
        ("99999999999999", "a group's number is at most 4294967294"),
    ],
)
def test_a_group_that_is_not_there_keeps_the_server_from_starting(launch: Launch, site: Site, group: str, problem: str) -> None:
    set_up(site, output_group=group)
    with pytest.raises(AssertionError, match=rf"setting output_group \(--output-group\): {problem}"):
        launch()
