"""An exported generator computes the same images elsewhere; all obstacles to an export are reported at once."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from support.builders import CLASSES, save_run
from support.programs import REPOSITORY, Ended

from msggan import load_generator
from msggan.commands.options import CollectingCommand, argv_of
from msggan.commands.verbs import ExportOptions, export_options, parse_export
from msggan.errors import CheckpointError, ExportError, UsageError
from msggan.export import write_exports
from msggan.legacy import convert_state_dict, load_legacy
from msggan.networks import NO_CLASSES, Generator
from msggan.pictures.onnx_model import build_onnx
from msggan.randomness import latents

RunProgram = Callable[..., Ended]
Arrays = dict[str, NDArray[np.float32]]


def session_of(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, drawn: torch.Tensor) -> Arrays:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"latents": drawn.numpy()}), strict=True))


def drawn_generator(
    depth: int, *, equalized: bool, resampling: str = "nearest", classes: Mapping[str, int] = NO_CLASSES
) -> Generator:
    """Not trained, and with biases that are not zero either."""
    torch.manual_seed(depth)
    generator = Generator(depth, 8, equalized=equalized, resampling=resampling, classes=classes).eval()
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return generator


# The same images


@pytest.mark.parametrize(
    ("depth", "equalized", "scale", "resampling"),
    [
        (4, True, 8, "nearest"),
        pytest.param(3, True, None, "filtered", marks=pytest.mark.slow),
        pytest.param(1, False, None, "nearest", marks=pytest.mark.slow),
        *(
            pytest.param(*shape, "nearest", marks=pytest.mark.slow)
            for shape in [(2, True, None), (2, True, 8), (3, False, 4)]
        ),
        *(pytest.param(depth, depth == 4, None, "nearest", marks=pytest.mark.slow) for depth in (3, 4)),
    ],
)
def test_onnxruntime_makes_the_same_images_for_a_batch_of_any_size(
    depth: int, equalized: bool, scale: int | None, resampling: str
) -> None:
    generator = drawn_generator(depth, equalized=equalized, resampling=resampling)
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    session = session_of(build_onnx(generator, scale=scale).SerializeToString())
    for count in (1, 3, 17):
        drawn = latents(count, range(count), 8)
        with torch.no_grad():
            expected = {f"images_{level.shape[-1]}px": level.numpy() for level in generator(drawn)}
        if scale is not None:
            expected = {f"images_{scale}px": expected[f"images_{scale}px"]}
        made = run(session, drawn)
        assert list(made) == list(expected)
        for name, images in expected.items():
            np.testing.assert_allclose(made[name], images, rtol=0, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("scale", [None, 4])
def test_onnxruntime_makes_the_same_images_of_classes(scale: int | None) -> None:
    generator = drawn_generator(2, equalized=True, classes=CLASSES)
    session = session_of(build_onnx(generator, scale=scale).SerializeToString())
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == [*CLASSES]
    drawn, labels = latents(0, range(5), 8), np.array([2, 0, 1, 1, 2])
    with torch.no_grad():
        expected = generator(generator.with_labels(drawn, torch.from_numpy(labels)))
    made = session.run(None, {"latents": drawn.numpy(), "labels": labels})
    for ours, theirs in zip(made, expected, strict=scale is None):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-4)


def test_bmsg_gan_has_no_classes(tmp_path: Path) -> None:
    options = ExportOptions(pth=str(tmp_path / "x.pth"))
    with pytest.raises(ExportError, match="has classes, which BMSG-GAN does not know"):
        write_exports(save_run(tmp_path / "run", classes=CLASSES), options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bmsg_gan_32px", "bmsg_gan_32px_plain"])
def test_weights_of_the_original_make_its_own_images_in_onnxruntime(name: str) -> None:
    recorded = load_file(REPOSITORY / "tests" / "model" / "golden" / f"{name}.safetensors")
    prefix = "before.generator."
    theirs = {key.removeprefix(prefix): tensor for key, tensor in recorded.items() if key.startswith(prefix)}
    generator = Generator(4, 16, equalized=not name.endswith("plain"))
    generator.load_state_dict(convert_state_dict(theirs))
    made = run(session_of(build_onnx(generator).SerializeToString()), recorded["forward.latents"])
    for side in (4, 8, 16, 32):
        expected = recorded[f"forward.fakes.{side}"].numpy()
        np.testing.assert_allclose(made[f"images_{side}px"], expected, rtol=0, atol=1e-4)


# The file


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return build_onnx(drawn_generator(2, equalized=True))


def test_the_model_describes_its_inputs_and_outputs(model: onnx.ModelProto) -> None:
    session = session_of(model.SerializeToString())
    shapes = {value.name: (value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())}
    assert shapes == {
        "latents": ("tensor(float)", ["N", 8]),
        "images_4px": ("tensor(float)", ["N", 3, 4, 4]),
        "images_8px": ("tensor(float)", ["N", 3, 8, 8]),
    }
    result = session.get_modelmeta().custom_metadata_map
    assert result.keys() == {"format_version", "resolution", "latent_size", "scales", "latents", "images"}
    assert [result[key] for key in ("format_version", "resolution", "latent_size", "scales")] == ["1", "8", "8", "4, 8"]
    assert "multiplied by sqrt(8)" in result["latents"]
    assert "about -1 to 1" in result["images"]


def test_the_model_is_of_standard_parts_in_one_file_without_paths_of_this_machine(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert not model.functions
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    content = model.SerializeToString()
    assert str(REPOSITORY).encode() not in content
    assert b".py" not in content


def test_one_scale_takes_no_more_of_the_network_than_it_needs() -> None:
    part = build_onnx(drawn_generator(4, equalized=True), scale=4)
    assert [output.name for output in part.graph.output] == ["images_4px"]
    assert [node.op_type for node in part.graph.node].count("Conv") == 2
    assert not [tensor.name for tensor in part.graph.initializer if tensor.name.startswith(("blocks", "generator.bl"))]


def test_a_generator_too_large_for_one_file_is_refused_before_anything_is_made() -> None:
    with torch.device("meta"):
        generator = Generator(6, 4096)
    with pytest.raises(ExportError, match=r"weights take \d+\.\d GiB[\s\S]*load_generator"):
        build_onnx(generator)


# On the command line


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """The run `flowers`, in `runs` of the test's folder."""
    return save_run(tmp_path / "runs" / "flowers")


@pytest.mark.slow
def test_both_programs_write_the_same_files_and_nothing_but_them(
    run_program: RunProgram, tmp_path: Path, flowers: Path
) -> None:
    args = ["--onnx", "new/folder/a.onnx", "--pth", "GAN_GEN_SHADOW_1.PTH", "--scale", "8"]
    named = run_program("msggan-aml", "export", "flowers", *args, "-o", "json")
    assert named.exit_code == 0, named.stderr
    files = [str(Path("new/folder/a.onnx")), "GAN_GEN_SHADOW_1.PTH"]
    assert named.json == {"files": files, "count": 2}
    assert named.stderr.splitlines() == [f"Writing {files[0]}; this takes some seconds."]
    written = [(tmp_path / name).read_bytes() for name in files]
    assert sorted(path.name for path in tmp_path.rglob("*.*") if path.is_file() and flowers not in path.parents) == [
        "GAN_GEN_SHADOW_1.PTH",
        "a.onnx",
    ]
    foldered = run_program("msggan.export", "--run-dir", "runs/flowers", *args, "--force")
    assert (foldered.exit_code, foldered.stdout.splitlines()) == (0, files)
    assert [(tmp_path / name).read_bytes() for name in files] == written

    generator, drawn = load_generator(flowers), latents(0, range(3), 8)
    (images,) = run(session_of(written[0]), drawn).values()
    np.testing.assert_allclose(images, generator(drawn)[1].detach().numpy(), rtol=0, atol=1e-4)
    saved = torch.load(tmp_path / files[1], weights_only=True)
    assert all(name.startswith("module.") for name in saved)  # as BMSG-GAN's generate_samples.py loads it
    loaded = load_legacy(tmp_path / files[1])
    assert all(torch.equal(loaded[name], tensor) for name, tensor in generator.state_dict().items())


def test_the_page_on_onnx_runs_unchanged(
    tmp_path: Path, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (REPOSITORY / "docs" / "onnx.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    (tmp_path / "flowers.onnx").write_bytes(model.SerializeToString())
    monkeypatch.chdir(tmp_path)
    names: dict[str, NDArray[np.uint8]] = {}
    exec(code, names)  # noqa: S102 - our own page
    assert (names["pixels"].shape, names["pixels"].dtype) == ((5, 8, 8, 3), np.uint8)


def nonsense(run: Path) -> None:
    (run / "generator.safetensors").write_bytes(b"nonsense")


def no_weights_yet(run: Path) -> None:
    (run / "generator.safetensors").unlink()
    (run / "config.json").write_text('{"checkpoint_kimg": 1.5}')


def of_another_kind(run: Path) -> None:
    save_file({"first.weight": torch.zeros(1)}, run / "generator.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message", "hint"),
    [
        (nonsense, "is not a complete generator.safetensors", "Copy it again from where it was trained"),
        (no_weights_yet, "has no weights yet", "The first checkpoint is written at 1.5 kimg"),
        (of_another_kind, "is not a generator saved by msggan", "Specify a run folder"),
    ],
)
def test_unusable_weights_leave_no_file(
    tmp_path: Path, flowers: Path, spoil: Callable[[Path], None], message: str, hint: str
) -> None:
    spoil(flowers)
    with pytest.raises(CheckpointError) as raised:
        write_exports(flowers, ExportOptions(onnx=str(tmp_path / "new" / "a.onnx")))
    assert message in raised.value.message
    assert hint in raised.value.hint
    assert not (tmp_path / "new").exists()


def test_a_scale_of_another_network_is_reported_with_those_there_are(tmp_path: Path, flowers: Path) -> None:
    with pytest.raises(UsageError, match=r"--scale 32: must be a scale of this network: 4, 8, 16\."):
        write_exports(flowers, ExportOptions(onnx=str(tmp_path / "new" / "a.onnx"), scale=32))
    assert not (tmp_path / "new").exists()


def test_a_run_that_is_not_equalized_says_what_the_original_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_run(tmp_path / "run", equalized=False)
    write_exports(path, ExportOptions(pth=str(tmp_path / "a.pth")))
    assert "BMSG-GAN needs use_eql=False" in capsys.readouterr().err


def test_what_the_original_would_make_other_images_of_is_not_written_for_it(tmp_path: Path) -> None:
    path = save_run(tmp_path / "run", resampling="filtered")
    with pytest.raises(ExportError, match="--resampling filtered is not in BMSG-GAN"):
        write_exports(path, ExportOptions(pth=str(tmp_path / "a.pth")))
    assert not (tmp_path / "a.pth").exists()


def test_a_file_that_exists_stays_unless_force_is_given(run_program: RunProgram, tmp_path: Path, flowers: Path) -> None:
    existing = tmp_path / "a.pth"
    existing.write_text("mine")
    refused = run_program("msggan-aml", "export", "flowers", "--pth", "a.pth")
    assert (refused.exit_code, existing.read_text()) == (2, "mine")
    assert "a.pth: already exists. Use --force to overwrite it." in refused.stderr
    assert run_program("msggan-aml", "export", "flowers", "--pth", "a.pth", "--force").exit_code == 0
    assert load_legacy(existing)


# Options


def read(*args: str) -> ExportOptions:
    @click.command(cls=CollectingCommand, add_help_option=False)
    @export_options
    def command(*, problems: list[str], **values: object) -> None:
        """Only parsed."""

    with command.make_context("export", list(args)) as context:
        return parse_export(**context.params)


def problems(*args: str) -> tuple[str, ...]:
    with pytest.raises(UsageError) as raised:
        read(*args)
    return raised.value.problems


@given(
    onnx=st.none() | st.sampled_from(["a.onnx", "-a.onnx", "new folder/A.ONNX"]),
    pth=st.none() | st.sampled_from(["a.pth", "new/a.b.pth"]),
    scale=st.none() | st.sampled_from([4, 16, 1024]),
    force=st.booleans(),
)
def test_options_written_are_the_options_read(
    onnx: str | None, pth: str | None, scale: int | None, force: bool
) -> None:
    options = ExportOptions(onnx=onnx, pth=pth, scale=scale if onnx else None, force=force)
    if onnx or pth:
        assert read(*argv_of(options)) == options


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([], "Nothing to write. Add --onnx OUT.onnx for onnxruntime, or --pth OUT.pth for BMSG-GAN."),
        (["--onnx", "a"], "--onnx a: must end in .onnx, as a.onnx"),
        (["--onnx", "a.pth"], "--onnx a.pth: must end in .onnx"),
        (["--onnx", ""], "must end in .onnx, as generator.onnx"),
        (["--onnx", ".onnx/"], "must end in .onnx"),
        (["--pth", "a.onnx"], "--pth a.onnx: must end in .pth"),
        (["--pth", "folder"], "is a directory. Name the file to write: folder/generator.pth"),
        (["--onnx", "file/a.onnx"], "file is not a directory."),
        (["--onnx", "file/new/a.onnx"], "file is not a directory."),
        (["--onnx", "a.onnx", "--scale", "large"], "--scale large: is not a whole number."),
        (["--onnx", "a.onnx", "--scale", "2"], "--scale 2: must be 4 or more"),
        (["--pth", "a.pth", "--scale", "8"], "--scale 8: needs --onnx; a .pth file holds the whole generator."),
    ],
)
def test_an_invalid_format_is_reported_with_the_valid_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (problem,) = problems(*args)
    assert complaint in problem


def test_all_wrong_options_are_reported_at_once_and_nothing_is_loaded(run_program: RunProgram, flowers: Path) -> None:
    shutil.rmtree(flowers)
    args = ["--onnx", "a", "--pth", "b", "--scale", "x", "-o", "json"]
    for program, where in (("msggan-aml", ["export", "flowers"]), ("msggan.export", ["--run-dir", "flowers"])):
        ended = run_program(program, *where, *args)
        result = ended.json["error"]["message"].splitlines()
        assert (ended.exit_code, ended.stderr.count("Error: ")) == (2, 4)
        assert "flowers" in result[0]
        assert [line.split(":")[0] for line in result[1:]] == ["--onnx a", "--pth b", "--scale x"]
