"""What the documents name is there: files, modules, messages, the targets of links; and the map of the packages is whole."""

import pkgutil
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool

import evalrpc
import evalrpc.v1.evaluation_service_pb2

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "evalrpc"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DOCUMENTS = [path for folder in (ROOT, ROOT / "docs", ROOT / "examples") for path in sorted(folder.glob("*.md"))]
OTHER_NAMES = {"evalrpc.toml", "evalrpc.baseline", "evalrpc.suite", "evalrpc.training.trainer"}
"""Files and labels, which look like modules, and a module that needs transformers."""
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def missing_paths(text: str, _: Path = ROOT) -> set[str]:
    """Return the paths below `evalrpc/`, and the quoted paths of Python files, that lead nowhere. The latter may begin below
    `evalrpc/` or `tests/`."""
    below = {path.rstrip(".") for path in re.findall(r"(?<![\w./-])evalrpc/[\w./-]+", text)}
    quoted = set(re.findall(r"`((?:[\w-]+/)+[\w-]+\.py)`", text))
    return {path for path in below | quoted if not any((folder / path).exists() for folder in (ROOT, PACKAGE, ROOT / "tests"))}


def missing_names(text: str, _: Path = ROOT) -> set[str]:
    """Return the dotted names below `evalrpc` that are neither a module, nor what one has, nor in the schema."""
    names = set(re.findall(r"(?<![\w./-])evalrpc(?:\.\w+)+", text)) - OTHER_NAMES
    return {name for name in names if not _is_in_schema(name) and not _is_in_a_module(name)}


def missing_targets(text: str, document: Path) -> set[str]:
    """Return the targets of relative links that lead to no file, or to no heading of one."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    targets = {target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if not re.match(r"\w+:", target)}
    return {target for target in targets if not _leads_somewhere(target, document)}


def _is_in_schema(name: str) -> bool:
    try:
        descriptor_pool.Default().FindFileContainingSymbol(name)
    except KeyError:
        return False
    return True


def _is_in_a_module(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def _leads_somewhere(target: str, document: Path) -> bool:
    name, _, anchor = target.partition("#")
    path = document.parent / name if name else document
    return path.exists() and (not anchor or anchor in _anchors(path.read_text()))


def _anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


Find = Callable[[str, Path], set[str]]


@pytest.mark.parametrize("find", [missing_paths, missing_names, missing_targets])
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_all_that_a_document_names_is_there(document: Path, find: Find) -> None:
    assert find(document.read_text(), document) == set()


@pytest.mark.parametrize(
    ("find", "good", "bad"),
    [
        (missing_paths, "see evalrpc/clock.py.", "evalrpc/none.py"),
        (missing_paths, "in `jobs/ids.py` and `server/test_catalog.py`", "`jobs/none.py`"),
        (missing_names, "`evalrpc.clock.Clock`, evalrpc.v1.JobInfo", "evalrpc.clock.None_"),
        (missing_names, "an `evalrpc.toml` and evalrpc.store", "evalrpc.none"),
        (missing_targets, "[a](docs/testing.md), [b](README.md#the-calls), [c](https://example.org)", "[d](docs/none.md)"),
        (missing_targets, "[a](#the-calls)", "[b](#the-cakes)"),
    ],
)
def test_what_is_not_there_is_found(find: Find, good: str, bad: str) -> None:
    assert find(good, ROOT / "README.md") == set()
    (missing,) = find(f"{good} {bad}", ROOT / "README.md")
    assert missing in bad


def rows_of_packages() -> list[tuple[tuple[str, ...], str]]:
    """Return the rows of the map: the names of packages and modules, and what is where in them."""
    section = ARCHITECTURE.read_text().partition("\n## Packages")[2].partition("\n## ")[0]
    rows: list[tuple[tuple[str, ...], str]] = []
    for names, text in re.findall(r"^\| (.*?) ?\| (.*) \|$", section, re.MULTILINE)[1:]:
        rows.append((tuple(re.findall(r"`([\w.]+)/?`", names)) or rows[-1][0], text))
    return rows


def test_the_map_has_every_package_in_the_order_of_the_imports() -> None:
    (layers,) = (contract["layers"] for contract in CONTRACTS if contract.get("containers") == ["evalrpc"])
    mapped = [name.removesuffix(".py") for names in dict.fromkeys(names for names, _ in rows_of_packages()) for name in names]
    for layer in (*layers, "v1"):
        siblings = set(layer.split(" | "))
        assert set(mapped[: len(siblings)]) == siblings
        del mapped[: len(siblings)]
    assert mapped == []


@pytest.mark.parametrize(("packages", "text"), rows_of_packages())
def test_a_package_has_the_files_that_the_map_names(packages: tuple[str, ...], text: str) -> None:
    files = {path.name for package in packages for path in (PACKAGE / package).rglob("*")}
    assert set(re.findall(r"`(\w+(?:\.py|/))`", text)) - files - {f"{name}/" for name in files} == set()


@pytest.mark.parametrize(("page", "known"), [("python", "SampleFilter"), ("suites", "SuiteOutcome")])
def test_what_a_page_uses_in_python_can_be_imported_from_the_package(page: str, known: str) -> None:
    used = set(re.findall(r"(?<![\w.])[A-Z]\w*[a-z](?=\(|\.[A-Z])", (ROOT / "docs" / f"{page}.md").read_text()))
    assert {"EvalClient", known} <= used <= set(evalrpc.__all__)
    assert all(hasattr(evalrpc, name) for name in used)
