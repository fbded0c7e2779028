"""Ways to damage the output folder of a run: what a crash, a full disk, an odd model or a hostile program may leave there."""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

Damage = Callable[[Path], None]
"""Changes an output folder."""

_NUMBER = re.compile(rb"(?<=[:\[] )-?\d+(\.\d+)?")
_TEXT = re.compile(rb'(?<=: )"[^"]*"')
_YEAR = re.compile(r"20\d\d")


def files(folder: Path) -> Iterator[Path]:
    """Yield all files in a folder and below, sorted."""
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def rewrite(change: Callable[[bytes], bytes]) -> Damage:
    """Return a damage that changes the content of every file."""

    def apply(output_dir: Path) -> None:
        for path in files(output_dir):
            path.write_bytes(change(path.read_bytes()))

    return apply


def link_out(output_dir: Path) -> None:
    """Move all files out of the folder, to `outside` beside the attempt, and leave links to them."""
    outside = output_dir.parent.parent / "outside"
    shutil.copytree(output_dir, outside)
    for path in files(output_dir):
        path.unlink()
        path.symlink_to(outside / path.relative_to(output_dir))
    (output_dir / "linked").symlink_to(outside)


def _all_numbers(number: float) -> Damage:
    return rewrite(lambda content: _NUMBER.sub(json.dumps(number).encode(), content))


def _copy_to_other_times(output_dir: Path) -> None:
    for path in files(output_dir):
        for year in ("2020", "2030"):
            path.with_name(_YEAR.sub(year, path.name, count=1)).write_bytes(path.read_bytes())


def _copy_to_other_models(output_dir: Path) -> None:
    for name in ("ünï😀 model", "m" * 255, "-m", "a\nb", "\udcff"):
        shutil.copytree(output_dir, output_dir.parent / "copy")
        (output_dir.parent / "copy").rename(output_dir / name)


def _replace_files(make: Damage) -> Damage:
    def apply(output_dir: Path) -> None:
        for path in list(files(output_dir)):
            path.unlink()
            make(path)

    return apply


def _copy_to_long_names(output_dir: Path) -> None:
    for path in files(output_dir):
        stem, dot, suffix = path.name.rpartition(".")
        path.with_name(stem + "x" * (255 - len(path.name)) + dot + suffix).write_bytes(path.read_bytes())


def _forbid_reading(output_dir: Path) -> None:
    for path in files(output_dir):
        path.chmod(0)


DAMAGES: Final[Mapping[str, Damage]] = {
    "truncated a little": rewrite(lambda content: content[:-10]),
    "truncated in the middle": rewrite(lambda content: content[: len(content) // 2]),
    "truncated to nothing": rewrite(lambda _: b""),
    "an empty object": rewrite(lambda _: b"{}"),
    "a list": rewrite(lambda _: b"[]"),
    "brackets without end": rewrite(lambda _: b'{"results":' + b"[" * 100_000),
    "bytes that are no text": rewrite(lambda content: b"\xff\xfe\x00" + content),
    "NaN everywhere": _all_numbers(math.nan),
    "infinity everywhere": _all_numbers(-math.inf),
    "text for numbers": rewrite(lambda content: _NUMBER.sub(b'"N/A"', content)),
    "lists for objects": rewrite(lambda content: content.replace(b"{", b"[").replace(b"}", b"]")),
    "null for text": rewrite(lambda content: _TEXT.sub(b"null", content)),
    "two other timestamps": _copy_to_other_times,
    "several models": _copy_to_other_models,
    "links that lead out": link_out,
    "folders for files": _replace_files(Path.mkdir),
    "pipes for files": _replace_files(os.mkfifo),
    "very long names": _copy_to_long_names,
    "unreadable files": _forbid_reading,
}
"""By what they leave."""
