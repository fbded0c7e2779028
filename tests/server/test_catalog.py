"""The names that a harness knows: fetched once, cached on disk, and used for suggestions without asking again."""

import difflib
import json
import random
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from evalrpc.errors import CatalogUnavailableError
from evalrpc.executors.local.executor import LocalExecutor
from evalrpc.harnesses.base import Command
from evalrpc.secrets.masking import Mask
from evalrpc.server.catalog import Catalog
from evalrpc.v1.catalog_pb2 import HarnessInfo

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
    return Catalog({"listing": harness}, LocalExecutor(), folder / "data")


def test_names_are_sorted_and_without_doubles(folder: Path) -> None:
    names = catalog_of(folder, Listing(folder)).names("listing")
    assert (names.tasks, names.models) == (("mme", "mmmu_val"), ("llava",))


def test_a_name_that_no_message_can_carry_is_reported_as_far_as_it_can_be(folder: Path) -> None:
    script = 'import json; print(json.dumps({"tasks": ["half \\ud800"], "models": [1]}))'
    names = catalog_of(folder, Listing(folder, script)).names("listing")
    assert (names.tasks, names.models) == (("half ?",), ("1",))


def test_names_that_the_disk_does_not_take_are_reported_all_the_same(folder: Path) -> None:
    (folder / "data").write_text("no folder, so nothing can be kept in it")
    assert catalog_of(folder, Listing(folder)).names("listing").models == ("llava",)


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


def test_task_folders_too_large_to_look_at_are_no_reason_to_ask_each_time(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / "tasks" / name).symlink_to(folder / "tasks")  # a symlink loop
    catalog = catalog_of(folder, Listing(folder))
    assert catalog.names("listing") == catalog.names("listing")
    assert times_asked(folder) == 1


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


def test_asking_is_not_undone_by_what_python_leaves_in_the_task_folder(folder: Path) -> None:
    script = SCRIPT + "cache = pathlib.Path('tasks/__pycache__')\ncache.mkdir(exist_ok=True)\n(cache / 'x.pyc').touch()\n"
    script += "print(json.dumps({'tasks': [], 'models': []}))"
    catalog = catalog_of(folder, Listing(folder, script))
    catalog.names("listing")
    catalog.names("listing")
    assert times_asked(folder) == 1


def test_unknown_tasks_are_reported_with_the_nearest_names_and_only_once_the_list_is_known(folder: Path) -> None:
    catalog = catalog_of(folder, Listing(folder))
    assert catalog.lists_all("listing", ["mmmu_vla"])
    assert catalog.unknown_tasks("listing", ["mmmu_vla"]) == {}
    catalog.names("listing")
    assert catalog.lists_all("listing", ["mme", "mmmu_val"])
    assert not catalog.lists_all("listing", ["mme", "mmmu_vla"])
    assert catalog.unknown_tasks("listing", ["mme", "mmmu_vla", "zzz"]) == {
        1: "the harness lists no task 'mmmu_vla'; did you mean mmmu_val?",
        2: "the harness lists no task 'zzz'",
    }


def test_an_unknown_model_is_reported_with_the_nearest_names_and_only_once_the_list_is_known(folder: Path) -> None:
    catalog = catalog_of(folder, Listing(folder))
    assert catalog.lists_model("listing", "lava")
    assert catalog.unknown_model("listing", "lava") == ""
    catalog.names("listing")
    assert catalog.lists_model("listing", "llava")
    assert not catalog.lists_model("listing", "lava")
    assert catalog.unknown_model("listing", "llava") == ""
    assert catalog.unknown_model("listing", "lava") == "the harness lists no model 'lava'; did you mean llava?"
    assert catalog.unknown_model("listing", "zzz") == "the harness lists no model 'zzz'"


def test_the_provider_before_the_slash_of_a_model_suffices(folder: Path) -> None:
    catalog = catalog_of(folder, Listing(folder))
    catalog.names("listing")
    assert catalog.lists_model("listing", "llava/1.5")
    assert catalog.unknown_model("listing", "llava/1.5") == ""
    assert "'other/llava'" in catalog.unknown_model("listing", "other/llava")


def test_no_model_is_unknown_to_a_harness_that_lists_none(folder: Path) -> None:
    script = "import json; print(json.dumps({'tasks': ['mme'], 'models': []}))"
    catalog = catalog_of(folder, Listing(folder, script))
    catalog.names("listing")
    assert catalog.unknown_model("listing", "any") == ""


def test_what_an_earlier_server_asked_is_known_without_asking(folder: Path) -> None:
    catalog_of(folder, Listing(folder)).names("listing")
    catalog = catalog_of(folder, Listing(folder))
    catalog.load()
    assert not catalog.lists_all("listing", ["mmmu_vla"])
    assert list(catalog.unknown_tasks("listing", ["mmmu_vla"])) == [0]
    assert times_asked(folder) == 1


def test_what_an_earlier_version_said_is_not_known(folder: Path) -> None:
    catalog_of(folder, harness := Listing(folder)).names("listing")
    harness.version = "2"
    catalog = catalog_of(folder, harness)
    catalog.load()
    assert catalog.lists_all("listing", ["mmmu_vla"])


def test_nothing_is_unknown_to_a_harness_that_has_changed_since(folder: Path) -> None:
    catalog = catalog_of(folder, Listing(folder))
    catalog.names("listing")
    (folder / "tasks" / "new.yaml").write_text("task: new")
    assert catalog.unknown_tasks("listing", ["new"]) == {}


def test_only_the_first_few_unknown_tasks_get_suggestions(folder: Path) -> None:
    catalog = catalog_of(folder, Listing(folder))
    catalog.names("listing")
    warnings = catalog.unknown_tasks("listing", [f"mmmu_val{number}" for number in range(1000)])
    assert len(warnings) == 1000
    assert ["did you mean" in text for text in warnings.values()] == [True] * 5 + [False] * 995


def test_of_many_names_the_first_that_is_suggested_is_the_nearest_of_all(folder: Path) -> None:
    dice = random.Random(7)
    words = ["mmlu", "global", "arc", "val", "test", "de", "zh", "algebra", "physics", "history", "easy", "cot"]
    names = sorted({"_".join(dice.choices(words, k=dice.randint(1, 5))) for _ in range(1000)})
    script = f"import json\nprint(json.dumps({{'tasks': {names!r}, 'models': []}}))"
    catalog = catalog_of(folder, Listing(folder, script))
    catalog.names("listing")
    for name in dice.sample(names, 5):
        typo = name.replace("a", "e", 1) + "x"
        (nearest,) = difflib.get_close_matches(typo, names, n=1, cutoff=0.6)
        (warning,) = catalog.unknown_tasks("listing", [typo]).values()
        assert f"; did you mean {nearest}," in warning


def test_secrets_in_what_a_harness_says_are_masked(folder: Path) -> None:
    harness = Listing(folder, "raise ValueError('sk-123 is refused')")
    catalog = Catalog({"listing": harness}, LocalExecutor(), folder / "data", Mask(["sk-123"]).text)
    with pytest.raises(CatalogUnavailableError, match=r"ValueError: \*\*\*\*\*\* is refused"):
        catalog.names("listing")
    with patch.object(harness, "info", lambda: HarnessInfo(name="listing", unavailable_reason="no sk-123")):
        assert catalog.describe("listing").unavailable_reason == "no ******"
