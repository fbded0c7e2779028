"""The names that a harness knows: asked for once, kept on disk, and used for suggestions without asking."""

import json
import sys
from pathlib import Path

import pytest

from evalrpc.catalog import Catalog
from evalrpc.errors import CatalogUnavailableError
from evalrpc.harnesses.base import Command
from evalrpc.v1.evaluation_service_pb2 import HarnessInfo

SCRIPT = """
import json, pathlib, sys
with open("asked", "a") as asked:
    asked.write("x")
print("noise before it")
print(json.dumps({"tasks": ["mmmu_val", "mme", "mme"], "models": ["llava"]}))
"""


class Listing:
    """A harness of which only the catalog matters."""

    name = kind = "listing"

    def __init__(self, folder: Path, script: str = SCRIPT) -> None:
        self.version = "1"
        self._command = Command((sys.executable, "-c", script), cwd=folder, watched_dirs=(folder / "tasks",))

    def info(self) -> HarnessInfo:
        return HarnessInfo(version=self.version)

    def catalog_command(self) -> Command | None:
        return self._command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    return tmp_path


def times_asked(folder: Path) -> int:
    return len((folder / "asked").read_text())


def catalog_of(folder: Path, harness: Listing) -> Catalog:
    return Catalog({"listing": harness}, folder / "data")


def test_names_are_sorted_and_without_doubles(folder: Path) -> None:
    names = catalog_of(folder, Listing(folder)).names("listing")
    assert (names.tasks, names.models) == (("mme", "mmmu_val"), ("llava",))


def test_a_harness_is_asked_once_even_across_servers(folder: Path) -> None:
    first = catalog_of(folder, Listing(folder))
    assert first.names("listing") == first.names("listing") == catalog_of(folder, Listing(folder)).names("listing")
    assert times_asked(folder) == 1


def test_another_version_or_a_changed_task_file_is_asked_anew(folder: Path) -> None:
    harness = Listing(folder)
    catalog = catalog_of(folder, harness)
    catalog.names("listing")
    harness.version = "2"
    catalog.names("listing")
    (folder / "tasks" / "new.yaml").write_text("task: new")
    catalog.names("listing")
    assert times_asked(folder) == 3


def test_a_damaged_cache_is_asked_anew(folder: Path) -> None:
    catalog_of(folder, Listing(folder)).names("listing")
    (folder / "data" / "catalog" / "listing.json").write_text('{"fingerprint": 3, "tasks"')
    assert catalog_of(folder, Listing(folder)).names("listing").models == ("llava",)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("raise SystemExit('no torch here')", "no torch here"),
        ("print(3)", "it printed nothing"),
        (f"print({json.dumps(json.dumps({'tasks': 'mme'}))})", "something else than names"),
        ("", "it printed nothing"),
    ],
)
def test_a_harness_that_can_not_say_is_unavailable_with_its_own_words(folder: Path, script: str, reason: str) -> None:
    with pytest.raises(CatalogUnavailableError, match=reason):
        catalog_of(folder, Listing(folder, script)).names("listing")


def test_unknown_tasks_are_told_with_the_nearest_names_and_only_once_the_list_is_known(folder: Path) -> None:
    catalog = catalog_of(folder, Listing(folder))
    assert catalog.unknown_tasks("listing", ["mmmu_vla"]) == {}
    catalog.names("listing")
    assert catalog.unknown_tasks("listing", ["mme", "mmmu_vla", "zzz"]) == {
        1: "the harness lists no task 'mmmu_vla'; did you mean mmmu_val?",
        2: "the harness lists no task 'zzz'",
    }
