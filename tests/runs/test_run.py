"""`Run` shows what is in a run folder, damaged or not."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.builders import save_run, small_config

from msggan import Run
from msggan.commands.verbs import SampleOptions
from msggan.errors import CheckpointError, RunFolderError
from msggan.pictures.grids import thumbnail
from msggan.pictures.sampler import Sampler
from msggan.runs.folder import RunFolder, owned, record_end, record_start
from msggan.runs.run import curve

METRICS = """\
{"images": 250, "kimg": 0.25, "d_loss": 0.5, "g_loss": 1.5}
{"images": 500, "kimg": 0.5, "d_loss": NaN, "g_loss": 1.0, "swd": 131.4}
[1, 2]
"<b>"
{"images": 750, "kimg": "<b>", "d_loss": 9.0}
{"images": 750, "kimg": 0.75, "d_loss": "<script>", "g_loss": null, "swd": true}
{"images": 800, "kimg": 0.8, "d_loss": 1"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of 1 kimg that has just started."""
    folder = RunFolder(tmp_path / "one")
    folder.prepare(small_config(), {})
    return folder


def ended(folder: RunFolder, state: str, *, images_seen: int, reason: str = "") -> Run:
    record_end(folder, record_start(folder, data="x", images_seen=0), state, images_seen=images_seen, reason=reason)
    return Run(folder.path)


def pictures(html: str) -> list[Image.Image]:
    contents = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in contents]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is not a run folder\.\nList the runs: msggan-aml list"):
        Run(tmp_path)


def test_a_run_without_reports_is_shown_as_such(folder: RunFolder) -> None:
    html = Run(folder.path)._repr_html_()
    assert "No samples or metrics yet." in html
    assert "<svg" not in html
    assert "<img" not in html


def test_a_run_shows_its_state_newest_finest_samples_and_curves(tmp_path: Path) -> None:
    folder = RunFolder(save_run(tmp_path / "one", samples=2))
    folder.prepare(small_config(), {})
    folder.metrics.write_text(METRICS)
    run = ended(folder, "completed", images_seen=1000)
    html = run._repr_html_()
    assert f"{folder}</b>: completed, 1/1 kimg  swd 131<" in html
    assert repr(run) == f"Run('{folder}'): completed, 1/1 kimg  swd 131"
    (picture,) = pictures(html)
    assert picture.tobytes() == Image.open(folder.samples / "000001000_16px.png").tobytes()
    assert html.count("<svg") == 2
    assert "a larger kimg continues training" in html


def test_a_curve_has_just_the_reports_that_have_a_number(folder: RunFolder) -> None:
    folder.metrics.write_text(METRICS)
    metrics = Run(folder.path).metrics
    assert curve(metrics, "g_loss") == [(0.25, 1.5), (0.5, 1.0)]
    assert curve(metrics, "swd") == [(0.5, 131.4)]
    assert str(curve(metrics, "d_loss")) == "[(0.25, 0.5), (0.5, nan)]"


def test_an_integer_too_large_for_a_chart_is_skipped() -> None:
    assert curve([{"kimg": 1, "swd": 10**400}, {"kimg": 2, "swd": 3}], "swd") == [(2, 3)]


def test_the_content_of_files_is_escaped_in_html(folder: RunFolder) -> None:
    folder.metrics.write_text(METRICS)
    html = ended(folder, "failed", images_seen=750, reason="<script>alert('x')</script>")._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in html
    assert "failed, 0.75/1 kimg" in html
    assert "same configuration, data and run_dir resumes it" in html


def test_a_running_run_shows_how_to_follow_it(folder: RunFolder) -> None:
    with owned(folder):
        record_start(folder, data="x", images_seen=0)
        assert f"msggan-aml logs {folder} --follow" in Run(folder.path)._repr_html_()


def test_damaged_files_are_reported_and_the_rest_is_shown(folder: RunFolder) -> None:
    folder.samples.mkdir()
    (folder.samples / "000001000_16px.png").write_bytes(b"none")
    folder.config.write_text("{}")
    run = ended(folder, "completed", images_seen=1000)
    assert "16px.png: is not a readable picture." in run._repr_html_()
    assert "completed, 1 kimg" in repr(run)
    with pytest.raises(RunFolderError):
        _ = run.config


def test_the_generator_of_a_run_is_loaded_lazily_and_once(tmp_path: Path, folder: RunFolder) -> None:
    run = Run(save_run(tmp_path / "two"))
    assert run.generator is run.generator
    assert not run.generator.training
    with pytest.raises(CheckpointError):
        _ = Run(folder.path).generator


def test_the_images_of_seeds_are_those_that_sample_writes(tmp_path: Path) -> None:
    run = Run(save_run(tmp_path / "two"))
    images = run.images(seeds=range(3))
    assert (images.shape, images.dtype) == ((3, 16, 16, 3), np.uint8)
    options = SampleOptions(seeds=range(3), files=True)
    for image, path in zip(images, Sampler(run.path, options, messages=io.StringIO()).run(), strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(path)))
    np.testing.assert_array_equal(run.images([2, 0]), images[[2, 0]])
    assert run.images([]).shape == (0, 16, 16, 3)


@pytest.mark.parametrize(("size", "shown"), [((40, 30), (40, 30)), ((100, 50), (50, 25)), ((50, 200), (12, 50))])
def test_a_large_picture_is_shown_small(tmp_path: Path, size: tuple[int, int], shown: tuple[int, int]) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", size, "red").save(path)
    picture = Image.open(io.BytesIO(thumbnail(path, 50)))
    assert picture.size == shown
    assert picture.getpixel((0, 0)) == (255, 0, 0)
