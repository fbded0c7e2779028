"""The file of the tokens: what is written is read, and what can't be read is no token."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from callers import add_token, revoke_token
from waiting import eventually

from evalrpc.errors import ConfigurationError, SignInUnavailableError
from evalrpc.server.auth.token_format import new_token, parse_token
from evalrpc.server.auth.token_store import FILE_NAME, StoredToken, TokenReader, TokenStore


@pytest.fixture
def reader(tmp_path: Path) -> TokenReader:
    return TokenReader(tmp_path)


def ids(tokens: object) -> list[str]:
    assert isinstance(tokens, list | tuple)
    return [token.token_id for token in tokens]


def test_a_new_token_has_an_id_and_32_random_bytes_and_is_recognised() -> None:
    made = [new_token() for _ in range(1000)]
    assert len({text for text, _ in made}) == len({parts.token_id for _, parts in made}) == 1000
    for text, parts in made:
        assert parse_token(text) == parts
        prefix, token_id, secret = text.split("_", 2)
        assert (prefix, token_id, len(token_id), len(secret)) == ("evr", parts.token_id, 16, 43)


@pytest.mark.parametrize("change", [str.upper, lambda t: t[:-1], lambda t: t + "A", lambda t: " " + t, lambda t: t + "\n"])
def test_what_is_no_token_is_not_taken_for_one(change: Callable[[str], str]) -> None:
    text, _ = new_token()
    assert parse_token(change(text)) is None


def test_the_file_has_no_secret_and_is_private(tmp_path: Path) -> None:
    token = add_token(tmp_path / "data")
    path = tmp_path / "data" / FILE_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert token.split("_", 2)[2].encode() not in path.read_bytes()


def test_it_is_made_on_demand_and_revoking_makes_none(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "data")
    assert store.tokens() == []
    assert not store.revoke("none", 1)
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
def test_root_makes_it_for_the_account_of_the_data_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12346)
    add_token(tmp_path)
    status = (tmp_path / FILE_NAME).stat()
    assert (status.st_uid, status.st_gid) == (12345, 12346)


def test_a_token_is_read_with_all_that_was_written(tmp_path: Path) -> None:
    stored = StoredToken("a" * 16, bytes(range(32)), "team@example.org", "operator", 5, 7)
    store = TokenStore(tmp_path)
    store.add(stored)
    assert store.tokens() == [stored]
    assert store.revoke("a" * 16, 9)
    assert store.revoke("a" * 16, 11), "it is revoked for good"
    assert store.tokens() == [stored._replace(revoked_ns=9)]


def test_a_reader_reads_only_what_has_changed(tmp_path: Path, reader: TokenReader) -> None:
    assert reader.read_if_changed() == ()
    assert reader.read_if_changed() is None
    first = add_token(tmp_path)
    assert ids(reader.read_if_changed()) == [first.split("_")[1]]
    assert reader.read_if_changed() is None
    add_token(tmp_path)
    assert len(ids(reader.read_if_changed())) == 2
    revoke_token(tmp_path, first)
    assert {token.revoked_ns for token in reader.read_if_changed() or ()} == {2, None}
    assert reader.read_if_changed() is None


def test_a_reader_notices_that_another_file_took_its_place_and_that_there_is_none(tmp_path: Path, reader: TokenReader) -> None:
    add_token(tmp_path)
    other = add_token(tmp_path / "other")
    reader.read_if_changed()
    (tmp_path / "other" / FILE_NAME).replace(tmp_path / FILE_NAME)
    assert ids(reader.read_if_changed()) == [other.split("_")[1]]
    (tmp_path / FILE_NAME).unlink()
    assert reader.read_if_changed() == ()


def corrupt(path: Path) -> None:
    path.write_bytes(b"this is no database" * 1000)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def execute(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def take_other_database(path: Path) -> None:
    path.unlink()
    execute(path, "CREATE TABLE jobs (job_id TEXT)")


def take_newer_version(path: Path) -> None:
    execute(path, "PRAGMA user_version = 2")


def change_role(path: Path) -> None:
    execute(path, "UPDATE tokens SET role = 'god'")


def change_owner(path: Path) -> None:
    execute(path, "UPDATE tokens SET owner = ''")


def shorten_digest(path: Path) -> None:
    execute(path, "UPDATE tokens SET digest = x''")


def change_type(path: Path) -> None:
    rename = "CREATE TABLE tokens AS SELECT token_id, 7 AS digest, owner, role, created_ns, expires_ns, revoked_ns FROM old"
    execute(path, "ALTER TABLE tokens RENAME TO old", rename)


@pytest.mark.parametrize(
    "spoil",
    [
        *(corrupt, damage, truncate, replace_by_folder, take_other_database, take_newer_version),
        *(change_role, change_owner, shorten_digest, change_type),
    ],
)
def test_a_file_that_can_not_be_read_is_an_error_until_it_can(
    tmp_path: Path, reader: TokenReader, spoil: Callable[[Path], None]
) -> None:
    token = add_token(tmp_path)
    path = tmp_path / FILE_NAME
    good = path.read_bytes()
    reader.read_if_changed()
    spoil(path)
    for _ in range(2):
        with pytest.raises(SignInUnavailableError, match=FILE_NAME):
            TokenReader(tmp_path).read_if_changed()
    with pytest.raises(ConfigurationError, match=FILE_NAME):
        TokenStore(tmp_path).tokens()
    path.rmdir() if path.is_dir() else path.unlink()
    path.write_bytes(good)
    assert ids(reader.read_if_changed()) == [token.split("_")[1]]


def test_a_locked_file_is_an_error_until_it_is_free(tmp_path: Path, reader: TokenReader) -> None:
    add_token(tmp_path)
    reader.read_if_changed()
    holder = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SignInUnavailableError, match="locked"):
        reader.read_if_changed()
    holder.close()
    assert len(ids(reader.read_if_changed())) == 1


HALF_A_CHANGE = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE tokens SET owner = 'mallory'")
connection.execute("CREATE TABLE more AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)"
                   " SELECT i, hex(randomblob(100)) AS t FROM n")
print("written", flush=True)
time.sleep(1000)
"""


def test_what_a_killed_writer_has_not_finished_was_never_written(tmp_path: Path, reader: TokenReader) -> None:
    add_token(tmp_path)
    path = tmp_path / FILE_NAME
    writer = subprocess.Popen((sys.executable, "-c", HALF_A_CHANGE, path), stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"written\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert eventually(path.with_name(f"{FILE_NAME}-journal").exists)
    assert b"mallory" in path.read_bytes(), "the change must have reached the file for this test"
    assert [token.owner for token in reader.read_if_changed() or ()] == ["alice"]
