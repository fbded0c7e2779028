"""Helpers of tests do not fail now and then."""

from pathlib import Path

from lasting_ports import lasting_port
from used_folders import contents_below, seen_below


def test_the_port_of_a_server_that_is_started_again_is_given_to_nobody_meanwhile() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not any(first <= lasting_port() <= last for _ in range(10))


def test_what_is_removed_while_a_folder_is_looked_at_is_left_out(tmp_path: Path) -> None:
    for name in ("gone", "kept"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "folder" / name / "file").write_text(name)

    def remove_and_look(path: Path) -> str:
        (tmp_path / "folder" / "gone" / "file").unlink(missing_ok=True)
        return path.lstat() and path.name

    assert sorted(seen_below(tmp_path / "folder", remove_and_look).values()) == ["file", "folder", "gone", "kept"]
    assert contents_below(tmp_path) == {tmp_path / "folder" / "kept" / "file": b"kept"}
