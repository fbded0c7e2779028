"""The notebook of the examples, run from its first cell to its last against a real server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from server_process import ServerProcess

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
NOTEBOOK: Final = EXAMPLES / "notebook.ipynb"


def outputs_of(notebook: Any, kind: str) -> list[str]:
    """Return the outputs of this MIME type, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]

    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Jupyter are not ours
def test_the_notebook_runs_and_shows_what_it_promises(
    serve: Callable[[str], ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("nbclient", "ipykernel", "pandas", "matplotlib"):
        pytest.importorskip(library, reason=f"{library} is not installed: the extra `notebook`")
    import nbclient
    import nbformat

    settings = (EXAMPLES / "notebook" / "evalrpc.toml").read_text()
    server = serve(settings.replace("arithmetic.py", str(EXAMPLES / "notebook" / "arithmetic.py")))
    monkeypatch.setenv("EVALRPC_ADDRESS", server.address)
    notebook = nbformat.read(NOTEBOOK, as_version=4)

    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()

    pages = outputs_of(notebook, "text/html")
    assert len(pages) == 4  # the job, the history, the comparison, the samples
    assert "JobInfo" in pages[0]
    assert "sums" in pages[0]
    assert [f"{step}.0" in pages[1] for step in (250, 500, 1000, 2000)] == [True] * 4
    assert "BETTER" in pages[2]
    assert "question" in pages[3]
    assert len(outputs_of(notebook, "image/png")) == 1
    texts = "".join(output["text"] for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output)
    assert "QUEUED" in texts or "RUNNING" in texts
    assert "COMPLETED" in texts.splitlines()[-1]
