"""The batch script of a run: one text with all that it needs, so that nothing has to be installed on the nodes."""

from functools import cache
from pathlib import Path
from typing import Final

from evalrpc.executors.local import shim
from evalrpc.executors.slurm import batch

_LOADER: Final = """\
#!{python} -IS
import __future__, sys, types
def load(name, source):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec", __future__.annotations.compiler_flag), module.__dict__)
    return module
for name in ("evalrpc", "evalrpc.executors", "evalrpc.executors.local"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["evalrpc.executors.local"].shim = load("evalrpc.executors.local.shim", {shim!r})
load("evalrpc.executors.slurm.batch", {batch!r}).main({traces_dir!r})
"""


def batch_script(python: str, traces_dir: Path) -> str:
    """Return the text of the script for the run with this folder. `python`: the interpreter on the nodes."""
    return _LOADER.format(python=python, shim=_source(shim), batch=_source(batch), traces_dir=str(traces_dir))


@cache
def _source(module: object) -> str:
    return Path(str(module.__file__)).read_text()  # type: ignore[attr-defined]
