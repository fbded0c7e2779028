"""Files below a folder of the operator's: links are followed as long as they stay below it, whatever is exchanged meanwhile."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from special_files import KINDS, put
from used_folders import opened_below

from evalrpc.files import linked
from evalrpc.files.linked import open_below


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a file, and a file beside it."""
    (tmp_path / "real" / "a" / "b").mkdir(parents=True)
    (tmp_path / "root").symlink_to("real")
    (tmp_path / "real" / "file").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    return tmp_path / "root"


def read(root: Path, path: Path | str) -> str:
    with open_below(root, Path(path)) as descriptor:
        return os.read(descriptor, 100).decode()


@pytest.mark.parametrize(
    "target",
    [
        "../../file",
        "../../a/.././a/b/../../file",
        "{root}/file",
        "{real}/file",
        "{root}/a/../file",
        "{real}/other",
        "../up/file",
    ],
)
def test_a_link_that_stays_below_is_followed(root: Path, target: str) -> None:
    (root / "other").symlink_to("file")
    (root / "a" / "up").symlink_to("b/../..")
    (root / "a" / "b" / "link").symlink_to(target.format(root=root, real=root.resolve()))
    assert read(root, "a/b/link") == read(root, root / "a" / "b" / "link") == read(root, "a/up/a/b/link") == "inside"


@pytest.mark.parametrize(
    "target",
    [
        "../../../secret",
        "{outside}/secret",
        "{root}/../secret",
        "{real}/../secret",
        "/proc/self/cwd/file",
        "../../../real/file",
    ],
)
def test_a_link_that_leads_out_is_refused_even_if_it_comes_back(root: Path, target: str) -> None:
    (root / "a" / "b" / "link").symlink_to(target.format(root=root, real=root.resolve(), outside=root.parent))
    with pytest.raises(OSError, match="it leads out of the folder"):
        read(root, "a/b/link")


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "/etc/passwd"])
def test_a_path_that_leads_out_is_refused(root: Path, path: str) -> None:
    with pytest.raises(OSError, match="it leads out of the folder"):
        read(root, path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "link" not in kind])
def test_what_is_no_regular_file_is_refused_also_behind_a_link(root: Path, kind: str) -> None:
    put(kind, root / "odd")
    (root / "link").symlink_to("odd")
    for path in ("odd", "link"):
        with pytest.raises(OSError, match=r"not a regular file|No such device"):
            read(root, path)


def test_links_without_end_and_folders_without_end_are_refused(root: Path) -> None:
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    (root / "deep").symlink_to("a/" * 2000)
    (root / "a" / "a").symlink_to(".")
    deep = root.joinpath(*["d"] * 70)
    deep.mkdir(parents=True)
    for path in ("one", "deep/file", "", ".", "a/..", deep / "file"):
        with pytest.raises(OSError):
            read(root, path)


def test_no_descriptor_stays_open(root: Path) -> None:
    (root / "a" / "b" / "link").symlink_to("../../file")
    (root / "out").symlink_to("a/b/../../../secret")
    assert read(root, "a/b/link") == "inside"
    for path in ("out", "a/b/none", "a/b"):
        with pytest.raises(OSError):
            read(root, path)
    assert opened_below(root.parent) == []


@pytest.mark.parametrize("function", ["open", "readlink"])
def test_what_is_exchanged_in_the_middle_of_the_walk_leads_nowhere(
    root: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """At each step of the walk, a folder or the file is exchanged for a link that leads out."""

    def exchange(path: Path) -> None:
        path.rename(path.with_name("old"))
        path.symlink_to(root.parent if path.name != "file" else root.parent / "secret")

    (root.parent / "b").mkdir()
    for place in (root.parent, root.parent / "b"):
        (place / "file").write_text("outside")
    for victim in ("a", "a/b", "a/b/file"):
        for step in range(8):
            (root / "a" / "b" / "file").write_text("inside")
            with monkeypatch.context() as patch:
                patch.setattr(linked.os, function, before_call(step, getattr(os, function), lambda: exchange(root / victim)))  # noqa: B023
                with suppress(OSError):
                    assert read(root, "a/b/file") == "inside"
            if (root / victim).is_symlink():
                (root / victim).unlink()
                (root / victim).with_name("old").rename(root / victim)


def before_call(step: int, function: Callable[..., object], act: Callable[[], None]) -> Callable[..., object]:
    """Return the function, which does something before its call of this number."""
    count = 0

    def call(*arguments: object, **options: object) -> object:
        nonlocal count
        count += 1
        if count == step + 1:
            act()
        return function(*arguments, **options)

    return call


def test_a_link_that_is_exchanged_all_the_time_never_leads_out(root: Path) -> None:
    ends = threading.Event()

    def exchange() -> None:
        while not ends.is_set():
            for target in ("../../file", "../../../secret"):
                (root / "new").unlink(missing_ok=True)
                (root / "new").symlink_to(target)
                (root / "new").rename(root / "a" / "b" / "link")

    (root / "a" / "b" / "link").symlink_to("../../file")
    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        for _ in range(2000):
            with suppress(OSError):
                assert read(root, "a/b/link") == "inside"
    finally:
        ends.set()
        thread.join()
