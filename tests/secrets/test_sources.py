"""A value is read where the operator keeps it, and no error shows it."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from waiting import eventually

from evalrpc.config import SecretSettings
from evalrpc.secrets.sources import MAX_BYTES, UnreadableError, read_value


def secret(**source: Any) -> SecretSettings:
    return SecretSettings(owners=("*",), **source)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"sk-1", "sk-1"),
        (b"sk-1\n", "sk-1"),
        (b"sk-1\r\n", "sk-1"),
        (b" a b \n\n", " a b \n"),
        ("\u00e4\u20ac".encode(), "\u00e4\u20ac"),
    ],
)
def test_a_file_holds_a_value_without_the_line_break_at_its_end(tmp_path: Path, content: bytes, value: str) -> None:
    (tmp_path / "real").write_bytes(content)
    (tmp_path / "secret").symlink_to("real")  # as Kubernetes mounts them
    assert read_value(secret(file=tmp_path / "secret"), {}) == value


def test_a_variable_of_the_server_holds_a_value() -> None:
    assert read_value(secret(variable="A"), {"A": "sk-1"}) == "sk-1"


def test_a_command_prints_a_value_in_the_servers_environment_and_without_a_shell() -> None:
    code = "import os, sys; print(os.environ['VAULT'], sys.argv[1])"
    assert read_value(secret(command=(*python(code), "$(id)")), {"VAULT": "v"}) == "v $(id)"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"variable": "sk-123"}, "its variable is not set for the server"),
        ({"variable": "EMPTY"}, "its variable is empty"),
        ({"file": Path("/none/sk-123")}, "its file can't be read: No such file or directory"),
        ({"file": Path("/")}, "its file can't be read: Is a directory"),
        ({"file": Path("/dev/zero")}, "its file can't be read: it is a device, not a regular file"),
        ({"command": ("/none/sk-123",)}, "its command can't be read: No such file or directory"),
        ({"command": python("import sys; sys.exit('sk-123')")}, "its command ended with 1"),
        ({"command": python("print('sk-123'); import os; os.abort()")}, "its command ended with -6"),
        ({"command": python("print()")}, "its command is empty"),
        ({"command": python("print('sk-123\\0')")}, "its command has a NUL, which no variable can hold"),
        ({"command": python("import os; os.write(1, b'sk-123\\xff')")}, "its command has something else than UTF-8 text"),
        ({"command": python("while True: print('sk-123' * 1000)")}, "its command has more than 64 KiB"),
    ],
    ids=str,
)
def test_what_can_not_be_read_says_why_without_value_or_place(source: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        read_value(secret(**source), {"EMPTY": ""})
    assert str(caught.value) == problem


def test_the_largest_value_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x" * MAX_BYTES)
    assert len(read_value(secret(file=tmp_path / "secret"), {})) == MAX_BYTES


def test_a_command_that_takes_too_long_is_killed_with_all_that_it_has_started(tmp_path: Path) -> None:
    code = f"""
import os, time
child = os.fork()
open({str(tmp_path)!r} + f"/{{os.getpid()}}", "w").close()
time.sleep(1000)
"""
    with pytest.raises(UnreadableError, match=r"its command takes longer than 0\.5 seconds"):
        read_value(secret(command=python(code)), {**os.environ}, command_seconds=0.5)
    for path in tmp_path.iterdir():
        eventually(lambda pid=path.name: not Path(f"/proc/{pid}/exe").exists(), "for the command's processes to be gone")
