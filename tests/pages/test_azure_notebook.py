"""The Azure notebook trains on Azure, follows the run, and shows what was downloaded."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from azure_local import AzureLocal
from nbclient import NotebookClient
from PIL import Image
from support.programs import REPOSITORY, environment

NOTEBOOK = REPOSITORY / "examples" / "azure.ipynb"
# What makes it short enough for a test; tiny networks on the processor, which the local Azure's jobs run on.
SHORT = {
    "kimg = 200 ": "kimg = 0.04 ",
    "draw_flowers(images, 400)": "draw_flowers(images, 24)",
    "resolution=32, latent_size=64,": "resolution=8, latent_size=8, batch_size=4,",
}


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_stored_without_outputs_and_for_any_python() -> None:
    nbformat.validate(read())
    code = [cell for cell in read().cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None and cell.metadata == {} for cell in code)
    assert read().metadata["kernelspec"] == {"display_name": "Python 3", "language": "python", "name": "python3"}


def test_the_text_that_tests_shorten_is_in_the_notebook() -> None:
    assert all(long in json.dumps(json.loads(NOTEBOOK.read_text(encoding="utf-8"))) for long in SHORT)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_from_images_to_pictures_in_a_notebook(azure: AzureLocal, tmp_path: Path) -> None:
    folder = tmp_path / "examples"
    shutil.copytree(REPOSITORY / "examples", folder, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    notebook = read()
    for cell in notebook.cells:
        for long, short in SHORT.items():
            cell.source = cell.source.replace(long, short)
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment(**azure.variables))

    assert result(notebook, "azure.settings.workspace") == "('msggan-ws', 'msggan-gpu')"
    assert "+ create compute msggan-gpu" in result(notebook, "plan_provision")
    assert re.match(r"\('\w+',\s*'https://ml\.azure\.com/runs/flowers", result(notebook, "submit("))
    assert "0.04/0.04 kimg" in printed(notebook, "run.wait()")
    assert re.match(r"\('completed',\s*40,\s*\{.*'d_loss': \d", result(notebook, "run.wait()"), re.DOTALL)
    assert list(azure.cloud.jobs) == ["flowers"]
    home = folder / "runs" / "azure-flowers"
    assert (home / "generator.safetensors").read_bytes() == azure.blob("msggan/runs/flowers/generator.safetensors")
    assert "completed, 0.04/0.04 kimg" in data(notebook, "Run(home)")["text/html"]
    assert picture(notebook, "run.generator()").width > 16
    assert picture(notebook, "all_scales_sheet(pyramid)").height > 16


def outputs(notebook: nbformat.NotebookNode, text: str) -> list[nbformat.NotebookNode]:
    """What came of the last cell that has these text in it."""
    return list(next(cell for cell in reversed(notebook.cells) if text in cell.source and "outputs" in cell).outputs)


def data(notebook: nbformat.NotebookNode, text: str) -> dict[str, str]:
    return dict(outputs(notebook, text)[-1].data)


def result(notebook: nbformat.NotebookNode, text: str) -> str:
    return data(notebook, text)["text/plain"]


def printed(notebook: nbformat.NotebookNode, text: str) -> str:
    return "".join(output.text for output in outputs(notebook, text) if output.output_type == "stream")


def picture(notebook: nbformat.NotebookNode, text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data(notebook, text)["image/png"])))
