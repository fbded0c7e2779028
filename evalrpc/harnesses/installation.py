"""What is installed in a harness's own environment, read from the disk, and the command that queries it."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from evalrpc.config import HarnessSettings
from evalrpc.harnesses import preloading
from evalrpc.harnesses.base import Command, Preload
from evalrpc.v1.catalog_pb2 import HarnessInfo
from evalrpc.v1.results_pb2 import ModelResult

SCRIPTS: Final = Path(preloading.__file__).parent
"""The folder of what the harnesses' own interpreters run."""

_METADATA: Final = r"-(.+?)(?:-py[0-9.]+)?\.(?:dist|egg)-info"
"""How the names of folders of metadata go on after the package's: conda has some with the version of Python."""
_NO_TAG: Final = re.compile(r"0(?:\.[01])?(?:\.0)*(?:\.dev[0-9]+)?\+.*")
"""The versions that tools make up where the repository has no tag, such as a shallow clone. They say nothing."""
_PACKAGES: Final = ("lib*/python*/*-packages", "local/lib*/python*/*-packages")
"""Where packages lie below the folder of an installation, and of Debian's own."""
_WITH_SYSTEM: Final = re.compile(r"^include-system-site-packages\s*=\s*true\s*$", re.MULTILINE | re.IGNORECASE)
_HOME: Final = re.compile(r"^home\s*=\s*(.+?)\s*$", re.MULTILINE)


class Package(NamedTuple):
    """The package of a harness."""

    title: str
    """Its display name, such as `lmms-eval`."""
    name: str
    """Its name in the metadata folder, such as `lmms_eval`."""
    oldest: str = ""
    """The oldest version that takes the command line; empty: any. Newer ones are taken at their word."""


def describe(settings: HarnessSettings, kind: str, package: Package) -> HarnessInfo:
    """Report which version is installed beside the interpreter, or what to do."""
    version = _installed_version(settings, package)
    reason = _unavailable_reason(settings, version, package)
    return HarnessInfo(name=settings.name, kind=kind, version=version or "", available=not reason, unavailable_reason=reason)


def note_version(settings: HarnessSettings, package: Package, results: Mapping[str, ModelResult]) -> None:
    """Put the installed version into the results. lmms-eval itself reports the commit of whatever repository it is in."""
    if version := _installed_version(settings, package):
        for result in results.values():
            result.harness_versions[package.name] = version


def is_older(settings: HarnessSettings, package: Package, version: str) -> bool:
    """Return whether the installed version is known to be older than another."""
    return _is_older(_installed_version(settings, package), version)


def installed_modules(settings: HarnessSettings, *names: str) -> list[str]:
    """Return those modules of a harness that are installed beside the interpreter, and so none whose name a client made up."""
    return [name for name in names if _has_module(settings.python, name)]


@lru_cache(maxsize=1000)
def _has_module(interpreter: Path, name: str) -> bool:
    """Look once: it is asked for every task of a job. One that is installed later is only not preloaded until a restart."""
    path = f"{name.replace('.', '/')}.py"
    return any((folder / path).is_file() for folder in _package_folders(interpreter))


def _unavailable_reason(settings: HarnessSettings, version: str | None, package: Package) -> str:
    python = shutil.which(settings.python)
    if python is None:
        return f"there is no program {settings.python}: set harnesses.{settings.name}.python to {package.title}'s interpreter"
    if version is None and not _has_package(settings, package):
        return f"{package.title} is not installed for {python}: run `{python} -m pip install {package.name}`"
    if _is_older(version, package.oldest):
        newer = f"'{package.name}>={package.oldest}'"
        return f"{package.title} {version} of {python} is too old: run `{python} -m pip install {newer}`"
    missing = [str(folder) for folder in settings.include_path if not folder.is_dir()]
    return f"harnesses.{settings.name}.include_path: there is no folder {', '.join(missing)}" if missing else ""


def _is_older(installed: str | None, version: str) -> bool:
    return installed is not None and not _NO_TAG.fullmatch(installed) and _parts(installed) < _parts(version)


def _parts(version: str) -> list[int]:
    """Return the numbers of a version, in order. What follows them, such as `rc1`, is ignored."""
    numbers = re.match(r"[0-9.]*", version)
    return [int(part) for part in (numbers[0] if numbers else "").split(".") if part]


def _installed_version(settings: HarnessSettings, package: Package) -> str | None:
    """Return the version of the package that the interpreter finds; None without either, or where no metadata says it."""
    pattern = re.compile(re.escape(package.name) + _METADATA)
    folders = [folder for folder in _searched_folders(settings) if folder.is_dir()]
    names = (pattern.fullmatch(entry.name) for folder in folders for entry in sorted(folder.iterdir()))
    return next((match[1] for match in names if match), None)


def _has_package(settings: HarnessSettings, package: Package) -> bool:
    """Return whether the interpreter finds the package, perhaps as source code that was never installed."""
    return any((folder / package.name / "__init__.py").is_file() for folder in _searched_folders(settings))


def _searched_folders(settings: HarnessSettings) -> Iterator[Path]:
    """Yield the folders in which the interpreter looks for packages, in its order; none without it."""
    if shutil.which(settings.python) is not None:
        yield from map(Path, filter(None, settings.env.get("PYTHONPATH", "").split(os.pathsep)))
        yield from _package_folders(settings.python)


def _package_folders(interpreter: Path) -> Iterator[Path]:
    """Yield the folders of packages beside the interpreter, then those of the one that a virtual environment shares them with;
    none without it."""
    python = shutil.which(interpreter)
    if python is None:
        return
    prefix = Path(python).parent.parent
    for folder in (prefix, *_shared_prefix(prefix)):
        for pattern in _PACKAGES:
            yield from folder.glob(pattern)


def _shared_prefix(prefix: Path) -> Iterator[Path]:
    with suppress(OSError, UnicodeDecodeError):
        settings = (prefix / "pyvenv.cfg").read_text()
        home = _HOME.search(settings)
        if home and _WITH_SYSTEM.search(settings):
            yield Path(home[1]).parent


def catalog_command(settings: HarnessSettings, script: str, preload: Preload) -> Command:
    """Build the command that asks the installed harness for its names: `script` gets the operator's folders as JSON.

    `preload` is that of a run of any model.
    """
    folders = json.dumps([str(folder) for folder in settings.include_path])
    return question(settings, script, folders, preload)


def question(settings: HarnessSettings, script: str, argument: str, preload: Preload) -> Command:
    """Build the command that has the harness's interpreter run a script with one argument."""
    return Command(
        argv=(str(settings.python), "-c", script, argument),
        env=settings.env,
        cwd=settings.working_dir,
        preload=preload if settings.warm == "auto" else None,
        watched_dirs=settings.include_path,
    )
