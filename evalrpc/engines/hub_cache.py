"""The models in a cache of the Hugging Face Hub: which commit of each is there as a whole.

CACHE/models--ORG--NAME/refs/REVISION        the commit that a branch or a tag stood for when it was last looked up
CACHE/models--ORG--NAME/snapshots/COMMIT/    its files
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from evalrpc.files.regular import read_named_file

_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_REVISION: Final = re.compile(r"[A-Za-z0-9][\w.-]*")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.pth")
_DEFAULT_REVISION: Final = "main"


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Return where programs with this environment have their cache."""
    if own := environment.get("HF_HUB_CACHE"):
        return Path(own)
    if home := environment.get("HF_HOME"):
        return Path(home) / "hub"
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface" / "hub"


def commit_of(cache: Path, model: str, revision: str) -> str:
    """Return the commit of a model that a program loads from its cache; empty: that can't be told, or it is not there as a
    whole. `revision`: a commit, a branch or a tag; empty: the default one. Blocks on the disk."""
    if not _NAME.fullmatch(model) or not (revision == "" or _REVISION.fullmatch(revision)):
        return ""
    commit = revision
    if not _COMMIT.fullmatch(commit):
        try:
            commit = read_named_file(_folder(cache, model) / "refs" / (revision or _DEFAULT_REVISION)).decode().strip()
        except (OSError, UnicodeDecodeError):
            return ""
    is_there = _COMMIT.fullmatch(commit) and _is_whole(snapshot(cache, model, commit))
    return commit if is_there else ""


def snapshot(cache: Path, model: str, commit: str) -> Path:
    """Return the folder with the files of a commit."""
    return _folder(cache, model) / "snapshots" / commit


def _folder(cache: Path, model: str) -> Path:
    return cache / f"models--{model.replace('/', '--')}"


def _is_whole(folder: Path) -> bool:
    """Return whether a folder has a model's weights, and all parts of them that an index names. Harnesses often have only its
    tokenizer there."""
    try:
        weights = [path for pattern in _WEIGHTS for path in folder.glob(pattern)]
        parts = {
            str(part)
            for index in folder.glob("*.index.json")
            for part in json.loads(read_named_file(index)).get("weight_map", {}).values()
        }
    except (OSError, ValueError, AttributeError):
        return False
    return bool(weights) and all(path.is_file() for path in (*weights, *(folder / part for part in parts)))
