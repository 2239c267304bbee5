"""The notebooks run from the first cell to the last, and are committed without what they printed."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "examples" / "notebooks").glob("*.ipynb"))
CELL_TIMEOUT_S = 100


RUN = """
import feddkd
settings = {"rounds": 1, "partition.clients": 2, "partition.name": "iid", "training.epochs": 1, "runtime.client_processes": 1}
hashes = {feddkd.run(settings, algorithm="fedavg", engine=engine).summary.model_sha256 for engine in ("in-process", "grpc")}
assert len(hashes) == 1
"""


def read(notebook: Path) -> nbformat.NotebookNode:
    content: nbformat.NotebookNode = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    return content


def test_there_are_notebooks() -> None:
    assert [notebook.stem for notebook in NOTEBOOKS] == ["own_algorithm", "quickstart"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_outputs_are_stripped(notebook: Path) -> None:
    cells = [cell for cell in read(notebook).cells if cell.cell_type == "code"]
    assert cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_every_cell_runs(notebook: Path, tmp_path: Path) -> None:
    content = read(notebook)
    NotebookClient(content, timeout=CELL_TIMEOUT_S, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in content.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("<th" in output.get("data", {}).get("text/html", "") for output in outputs)


def test_a_cell_shows_progress_as_text_and_can_start_client_processes(tmp_path: Path) -> None:
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(RUN)])  # type: ignore[no-untyped-call]
    NotebookClient(content, timeout=CELL_TIMEOUT_S, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = content.cells[0].outputs
    assert {(output.output_type, output.name) for output in outputs} == {("stream", "stdout")}
    text = "".join(output.text for output in outputs)
    assert text.count("1/1") == 2
    assert "\x1b" not in text
