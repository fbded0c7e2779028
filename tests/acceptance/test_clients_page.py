"""The commands of docs/clients.md generate stubs from this schema, with each plugin that the machine has."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text()
PLUGINS = re.findall(r"^  - \{ (local|protoc_builtin): ([\w-]+), out: (gen/\w+).*\}$", PAGE, re.MULTILINE)
COMMANDS = re.findall(r"^    (.*\bprotoc .*)$", PAGE, re.MULTILINE)


def generate(folder: Path, *command: str) -> set[str]:
    """Run a command beside the schema, and return the subjects that the files it has generated are named after."""
    shutil.copytree(ROOT / "protos", folder / "protos")
    shutil.copy(ROOT / "buf.yaml", folder)
    (folder / "gen").mkdir()
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {re.sub(r"\W|_", "", path.stem).lower() for path in (folder / "gen").rglob("*") if path.is_file()}


@pytest.mark.parametrize(("kind", "plugin", "out"), PLUGINS, ids=[f"{plugin}-{out}" for _, plugin, out in PLUGINS])
def test_a_plugin_of_the_template_generates_stubs_where_the_page_says(tmp_path: Path, kind: str, plugin: str, out: str) -> None:
    tool = plugin if kind == "local" else "protoc"
    if not shutil.which(tool):
        pytest.skip(f"there is no {tool}")
    (line,) = (line for line in PAGE.splitlines() if f": {plugin}, out: {out}" in line)
    (tmp_path / "buf.gen.yaml").write_text(f"version: v2\nplugins:\n{line}\n")
    subjects = generate(tmp_path, str(Path(sys.executable).with_name("buf")), "generate")
    assert any(subject.startswith("evaluationservice") for subject in subjects)
    assert {path.name for path in (tmp_path / "gen").iterdir()} == {out.removeprefix("gen/")}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_generates_stubs(tmp_path: Path, command: str) -> None:
    words = shlex.split(command)
    for word in words:
        if (plugin := re.fullmatch(r"--(go[\w-]*)_out=.*", word)) and not shutil.which(f"protoc-gen-{plugin[1]}"):
            pytest.skip(f"there is no protoc-gen-{plugin[1]}")
    if words[0] == "python":
        words[0] = sys.executable
    elif not shutil.which(words[0]):
        pytest.skip(f"there is no {words[0]}")
    subjects = generate(tmp_path, "sh", "-c", " ".join(words))
    assert any(subject.startswith("evaluationservice") for subject in subjects)


def test_the_page_has_a_template_and_commands() -> None:
    assert {out for _, _, out in PLUGINS} == {f"gen/{name}" for name in ("python", "typescript", "go", "java", "cpp", "csharp")}
    assert len(COMMANDS) == 2
