"""The files of the audit: what is written, in which order, and what a full disk leaves."""

import errno
import json
import logging
import os
import stat
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from clocks import ManualClock
from waiting import eventually

from evalrpc.errors import ConfigurationError, InvalidRequestError, PermissionDeniedError
from evalrpc.server import audit as audit_module
from evalrpc.server.app import SERVICE
from evalrpc.server.audit import MAX_REFUSALS, PERIOD_SECONDS, Audit, MethodAudit
from evalrpc.server.audit_file import AuditEntry, AuditFile
from evalrpc.server.call import ANONYMOUS
from evalrpc.v1.jobs_pb2 import CancelJobRequest

CHANGES = {
    *("SubmitJob", "CancelJob", "UpdateJob", "DeleteJob", "SubmitSuite", "CancelSuiteRun"),
    *("PauseQueue", "ResumeQueue", "CordonGpu", "UncordonGpu", "StopEngine"),
}


def entry(name: str = "CancelJob") -> AuditEntry:
    return AuditEntry("2026-02-14T10:30:00Z", name, "OK")


def names(file: AuditFile) -> list[str]:
    return [read["call"] for read in file.read()]


class FullDisk(AuditFile):
    """Takes nothing as long as it is full."""

    is_full = True

    def append(self, entries: Iterable[AuditEntry]) -> None:
        entries = list(entries)
        if self.is_full and entries:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "audit.jsonl")
        super().append(entries)


@pytest.fixture
def file(tmp_path: Path) -> AuditFile:
    return AuditFile(tmp_path / "audit.jsonl", 1_000_000, 4)


def test_an_entry_is_a_line_of_json_in_a_private_file(file: AuditFile, tmp_path: Path) -> None:
    file.append([entry()._replace(request_id="line\nbreak \x1b[31m")])
    path = tmp_path / "audit.jsonl"
    (line,) = path.read_bytes().splitlines()
    assert b"\x1b" not in line
    assert json.loads(line)["request_id"] == "line\nbreak \x1b[31m"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_files_are_rotated_by_size_and_bounded_in_number(tmp_path: Path) -> None:
    size_bytes = len(entry("00").line())
    file = AuditFile(tmp_path / "audit.jsonl", 2 * size_bytes, 3)
    for number in range(9):
        file.append([entry(f"{number:02}")])
    assert names(file) == ["04", "05", "06", "07", "08"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_several_writers_lose_nothing_while_the_files_are_rotated(tmp_path: Path) -> None:
    def write(writer: int) -> None:
        own = AuditFile(tmp_path / "audit.jsonl", 4 * len(entry("0-00").line()), 50)
        for number in range(20):
            own.append([entry(f"{writer}-{number:02}")])

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = names(AuditFile(tmp_path / "audit.jsonl", 1, 50))
    assert sorted(written) == [f"{writer}-{number:02}" for writer in range(4) for number in range(20)]
    for writer in "0123":
        own = [name for name in written if name.startswith(writer)]
        assert own == sorted(own)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "audit")
    with pytest.raises(OSError, match="it is a FIFO, not a regular file"):
        list(AuditFile(tmp_path / "audit", 1000, 3).read())


def test_a_line_that_was_cut_off_spoils_no_other(file: AuditFile, tmp_path: Path) -> None:
    file.append([entry("first")])
    with (tmp_path / "audit.jsonl").open("ab") as broken:
        broken.write(b'{"time": "20')
    file.append([entry("second")])
    assert names(file) == ["first", "second"]


def test_a_write_that_finds_no_room_leaves_no_part_of_a_line(
    file: AuditFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.append([entry("first")])
    before = (tmp_path / "audit.jsonl").read_bytes()
    write = os.write

    def write_a_part(descriptor: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", refuse)
        return write(descriptor, data[:10])

    def refuse(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", write_a_part)
    with pytest.raises(OSError, match="full"):
        file.append([entry("second")])
    monkeypatch.undo()
    assert (tmp_path / "audit.jsonl").read_bytes() == before


def test_a_full_disk_is_logged_once_and_what_it_did_not_take_comes_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "MAX_UNWRITTEN", 3)
    caplog.set_level(logging.INFO, "evalrpc.server.audit")
    file = FullDisk(tmp_path / "audit.jsonl", 1_000_000, 4)
    audit = Audit(file, ManualClock())
    for name in ("a", "b", "c", "d", "e"):  # of which there is no room for the last two
        audit.record(entry(name))
        eventually(lambda: not audit._is_scheduled)
    audit._writing.submit(int).result()
    assert names(file) == []
    file.is_full = False
    audit._writing.submit(audit._write).result()
    audit.record(entry("f"))
    audit.close()
    assert [(read["call"], read["left_out"]) for read in file.read()] == [("a", 0), ("b", 0), ("c", 0), ("f", 2)]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "can't write the audit: [Errno 28]" in caplog.text


def test_what_is_recorded_is_written_in_order_by_the_time_it_is_closed(file: AuditFile) -> None:
    audit = Audit(file, ManualClock())
    for number in range(1000):
        audit.record(entry(str(number)))
    audit.close()
    assert names(file) == [str(number) for number in range(1000)]


def test_a_server_does_not_start_with_an_audit_that_it_can_not_write(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"audit_file: can't write .*absent/audit.jsonl: No such file or directory"):
        Audit(AuditFile(tmp_path / "absent" / "audit.jsonl", 1000, 4), ManualClock())


def method(audit: Audit, name: str) -> MethodAudit:
    return MethodAudit(audit, SERVICE.methods_by_name[name])


def test_the_schema_says_which_calls_change_something(file: AuditFile) -> None:
    audit = Audit(file, ManualClock())
    changing = {each.name for each in SERVICE.methods if method(audit, each.name).changes}
    audit.close()
    assert changing == CHANGES


def test_no_flood_of_refused_calls_pushes_out_what_was_changed(file: AuditFile) -> None:
    clock = ManualClock()
    audit = Audit(file, clock)
    request = CancelJobRequest(job_id="j").SerializeToString()
    for _ in range(MAX_REFUSALS + 5):
        method(audit, "GetJob").failed(ANONYMOUS, "peer", b"", PermissionDeniedError("no"))
    method(audit, "CancelJob").answered(ANONYMOUS, "peer", request, b"")
    clock.seconds += PERIOD_SECONDS
    method(audit, "GetJob").failed(ANONYMOUS, "peer", b"", PermissionDeniedError("no"))
    audit.close()
    entries = list(file.read())
    assert [read["call"] for read in entries] == ["GetJob"] * MAX_REFUSALS + ["CancelJob", "GetJob"]
    assert [read["left_out"] for read in entries[-2:]] == [5, 0]


def test_which_calls_are_recorded(file: AuditFile) -> None:
    audit = Audit(file, ManualClock())
    invalid = InvalidRequestError("no")
    method(audit, "GetJob").failed(ANONYMOUS, "peer", b"", invalid)  # changes nothing, is no refusal
    method(audit, "GetJob").abandoned(ANONYMOUS, "peer", b"")
    method(audit, "CancelJob").abandoned(None, "peer", b"")  # left before it was known who calls
    method(audit, "CancelJob").failed(ANONYMOUS, "peer", b"\xff", invalid)
    method(audit, "CancelJob").abandoned(ANONYMOUS, "peer", b"")
    audit.close()
    assert [(read["call"], read["code"]) for read in file.read()] == [
        ("CancelJob", "INVALID_ARGUMENT"),
        ("CancelJob", "CANCELLED"),
    ]


def test_an_ipv6_address_is_written_as_people_write_it(file: AuditFile) -> None:
    audit = Audit(file, ManualClock())
    method(audit, "CancelJob").answered(ANONYMOUS, "ipv6:%5B::1%5D:50123", b"", b"")
    audit.close()
    assert [read["peer"] for read in file.read()] == ["ipv6:[::1]:50123"]


def test_secrets_are_masked_and_long_names_are_cut(file: AuditFile) -> None:
    audit = Audit(file, ManualClock(), mask_text=lambda text: text.replace("hunter2", "*******"))
    request = CancelJobRequest(job_id="hunter2" + "x" * 10_000).SerializeToString()
    method(audit, "CancelJob").answered(ANONYMOUS, "peer", request, b"")
    audit.close()
    (read,) = file.read()
    assert read["job_id"] == "*******" + "x" * 121
