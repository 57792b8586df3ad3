"""The quickstart notebook runs, and each run has one display that is updated."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import IPython
import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image
from support.images import draw_tiny_images
from support.programs import REPOSITORY, environment, fast_python

from msggan.display.progress import Progress, choose_progress, in_notebook
from msggan.runs.folder import RunFolder

NOTEBOOK = REPOSITORY / "examples" / "quickstart.ipynb"
# What makes it short enough for a test: its settings, which stand in its first cell.
SHORT = {"kimg = 8 ": "kimg = 0.3 ", "longer_kimg = 10 ": "longer_kimg = 0.4 ", "400)": "40)"}

Message = dict[str, Any]


class Client(NotebookClient):
    """Runs a notebook, counts how often each display was given a new report, and tells of each message."""

    updates: Counter[str]
    on_message: Callable[[Client, Message], None] | None = None

    def process_message(self, msg: Message, cell: nbformat.NotebookNode, cell_index: int) -> Any:
        if msg["msg_type"] == "update_display_data" and "images/s" in msg["content"]["data"]["text/html"]:
            self.updates[msg["content"]["transient"]["display_id"]] += 1
        if self.on_message is not None:
            self.on_message(self, msg)
        return super().process_message(msg, cell, cell_index)


def run_notebook(
    notebook: nbformat.NotebookNode, folder: Path, on_message: Callable[[Client, Message], None] | None = None
) -> Counter[str]:
    """Runs every cell in a kernel of its own, which ends with it; returns how often each display was given a report."""
    kernel = Path(os.environ["JUPYTER_DATA_DIR"]) / "kernels" / "forked" / "kernel.json"
    kernel.parent.mkdir(parents=True, exist_ok=True)
    arguments = [fast_python(), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": arguments, "display_name": "Python", "language": "python"}))
    resources = {"metadata": {"path": str(folder)}}
    client = Client(notebook, kernel_name="forked", resources=resources)
    client.updates, client.on_message = Counter(), on_message
    client.execute(env=environment())
    return client.updates


def outputs_of(notebook: nbformat.NotebookNode, text: str) -> list[nbformat.NotebookNode]:
    """What came of the one cell that has these text in it."""
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and text in cell.source)
    return list(cell.outputs)


def shown(notebook: nbformat.NotebookNode, text: str) -> str:
    """The last HTML of a cell."""
    return str(outputs_of(notebook, text)[-1].data["text/html"])


def picture(notebook: nbformat.NotebookNode, text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(outputs_of(notebook, text)[-1].data["image/png"])))


def grids(html: str) -> list[Image.Image]:
    contents = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in contents]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[nbformat.NotebookNode, Counter[str], Path]:
    """The notebook after all its cells, how often its displays were given a report, and where it ran."""
    folder = tmp_path_factory.mktemp("notebook") / "examples"
    shutil.copytree(REPOSITORY / "examples", folder, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        for long, short in SHORT.items():
            cell.source = cell.source.replace(long, short)
    return notebook, run_notebook(notebook, folder), folder


# As it lies in the repository


def test_the_notebook_is_stored_without_outputs_and_for_any_python() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None and cell.metadata == {} for cell in code)
    assert notebook.metadata["kernelspec"] == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook.metadata["language_info"] == {"name": "python"}


def test_the_text_that_tests_shorten_is_in_the_notebook() -> None:
    assert all(long in json.dumps(json.loads(NOTEBOOK.read_text(encoding="utf-8"))) for long in SHORT)


# After all its cells


def test_the_notebook_prints_nothing_on_stdout_or_stderr(executed: tuple[nbformat.NotebookNode, Any, Any]) -> None:
    outputs = [output for cell in executed[0].cells for output in cell.get("outputs", [])]
    assert {output.output_type for output in outputs} == {"display_data", "execute_result"}


def test_a_runs_progress_is_shown_in_one_display(executed: tuple[nbformat.NotebookNode, Counter[str], Path]) -> None:
    notebook, updates, folder = executed
    read, trained = outputs_of(notebook, "result = trainer.run()")
    assert "images to train on at 16 px" in read.data["text/html"]
    html = trained.data["text/html"]
    assert "Training runs/quickstart on cpu" in html
    assert "Done: 0.3 kimg." in html
    assert re.search(r"0\.30/0\.3 kimg  \d+ images/s  0 s left", html)
    assert html.count("<svg") == 2
    (grid,) = grids(html)
    assert grid.tobytes() == Image.open(folder / "runs/quickstart/samples/000000300_16px.png").tobytes()
    assert [count >= 2 for count in updates.values()] == [True, True]  # the two runs


def test_the_run_and_the_configuration_show_themselves(
    executed: tuple[nbformat.NotebookNode, Counter[str], Path],
) -> None:
    notebook = executed[0]
    assert (
        "TrainConfig(resolution=16, latent_size=32"
        in outputs_of(notebook, "config = TrainConfig")[-1].data["text/plain"]
    )
    run = shown(notebook, "run = Run(run_dir)")
    assert "<b>runs/quickstart</b>: completed, 0.3/0.3 kimg  swd" in run
    assert len(grids(run)) == 1
    (longer,) = (cell for cell in notebook.cells if cell.source == "longer_result")
    assert "completed, 0.4/0.4 kimg" in longer.outputs[0].data["text/html"]


def test_a_run_in_the_background_is_started_and_cancelled(
    executed: tuple[nbformat.NotebookNode, Counter[str], Path],
) -> None:
    notebook = executed[0]
    states = [outputs_of(notebook, f"background.{verb}()")[-1].data["text/plain"] for verb in ("status", "cancel")]
    assert states == ["'running'", "'cancelled'"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("draw_flowers(images", (96, 96)),
        ("enlarged(grid(pyramid[-1]))", (518, 518)),
        ("all_scales_sheet(pyramid)", (530, 200)),
        ("TruncatedGenerator", (518, 518)),
    ],
)
def test_pictures_show_themselves(
    executed: tuple[nbformat.NotebookNode, Counter[str], Path], text: str, size: tuple[int, int]
) -> None:
    assert picture(executed[0], text).size == size


def test_the_film_plays_in_the_notebook(executed: tuple[nbformat.NotebookNode, Counter[str], Path]) -> None:
    notebook, _, folder = executed
    (content,) = re.findall(r'<video src="data:video/mp4;base64,([^"]+)"', shown(notebook, "interpolation("))
    assert base64.b64decode(content) == (folder / "runs" / "quickstart.mp4").read_bytes()


# The button


def test_an_interrupt_stops_the_run_cleanly_and_the_next_run_resumes(tmp_path: Path) -> None:
    draw_tiny_images(tmp_path / "tiny")
    begin = (
        "from msggan import TrainConfig, Trainer\n"
        "config = TrainConfig(resolution=8, latent_size=8, batch_size=4, kimg=1000)\n"
        "result = Trainer(config, data='tiny', run_dir='run').run()\n"
        "print(result.state)"
    )
    go_on = (
        "longer = TrainConfig(kimg=(result.images_seen + 20) / 1000)\n"
        "again = Trainer(longer, data='tiny', run_dir='run').run()\n"
        "print(again.state, again.images_seen - result.images_seen)"
    )
    cells = [nbformat.v4.new_code_cell(source) for source in (begin, go_on)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    interrupts: list[asyncio.Future[None]] = []

    def interrupt(client: Client, message: Message) -> None:
        """As the button does, once the first report is shown."""
        if not interrupts and "images/s" in str(message["content"]):
            interrupts.append(asyncio.ensure_future(client.km.interrupt_kernel()))

    run_notebook(notebook, tmp_path, interrupt)
    printed = [output.text for cell in notebook.cells for output in cell.outputs if output.output_type == "stream"]
    assert printed == ["interrupted\n", "completed 20\n"]
    assert "to resume." in notebook.cells[0].outputs[-2].data["text/html"]


# Elsewhere


def test_outside_notebooks_there_are_lines_even_if_ipython_is_loaded(tmp_path: Path) -> None:
    assert IPython.get_ipython() is None
    assert not in_notebook()
    assert type(choose_progress(RunFolder(tmp_path), total_images=1, stream=None)) is Progress


@pytest.mark.slow
def test_training_does_not_need_ipython(tmp_path: Path) -> None:
    draw_tiny_images(tmp_path / "tiny")
    code = (
        "import sys\n"
        "sys.modules['IPython'] = None\n"
        "from msggan import TrainConfig, Trainer\n"
        "config = TrainConfig(resolution=8, latent_size=8, batch_size=4, kimg=0.02)\n"
        "print(Trainer(config, data='tiny', run_dir='run').run().state)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, encoding="utf-8", check=True
    )
    assert ended.stdout == "completed\n"
