"""The commits of models in a cache of the Hugging Face Hub."""

import json
from pathlib import Path

import pytest

from evalrpc.engines.hub_cache import cache_folder, commit_of, snapshot

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with the model acme/tiny."""
    model = tmp_path / "models--acme--tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    folder = snapshot(tmp_path, "acme/tiny", COMMIT)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("1")
    return tmp_path


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_variables_of_the_hub_say(environment: dict[str, str], expected: str) -> None:
    assert cache_folder(environment) == Path(expected)
    assert cache_folder({}) == Path.home() / ".cache/huggingface/hub"


@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_a_model_is_known_by_the_commit_in_the_cache(cache: Path, revision: str) -> None:
    assert commit_of(cache, "acme/tiny", revision) == COMMIT


@pytest.mark.parametrize(
    ("model", "revision"),
    [
        ("acme/other", ""),
        ("acme/tiny", "v2"),
        ("acme/tiny", OTHER),
        ("acme/tiny", "../refs/main"),
        ("../acme/tiny", ""),
        ("acme/tiny/..", ""),
        ("", ""),
    ],
)
def test_what_is_not_in_the_cache_is_not_known(cache: Path, model: str, revision: str) -> None:
    assert commit_of(cache, model, revision) == ""


def test_a_commit_of_which_parts_are_missing_is_not_known(cache: Path) -> None:
    folder = snapshot(cache, "acme/tiny", COMMIT)
    parts = {"a": "model.safetensors", "b": "part-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert commit_of(cache, "acme/tiny", "") == ""
    (folder / "part-2.safetensors").touch()
    assert commit_of(cache, "acme/tiny", "") == COMMIT
    for part in folder.glob("*.safetensors"):
        part.unlink()
    assert commit_of(cache, "acme/tiny", "") == "", "as where only a tokenizer is there"


def test_what_a_reference_says_is_no_path(cache: Path) -> None:
    (cache / "models--acme--tiny" / "refs" / "main").write_text("../../..")
    assert commit_of(cache, "acme/tiny", "") == ""
