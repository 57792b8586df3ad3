"""`check` finds what is wrong with a set of images, and nothing where nothing is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from support.programs import environment, run_in

from msggan import TrainConfig
from msggan.check import examine
from msggan.commands.verbs import CheckOptions, PackOptions
from msggan.data.survey import COPY_RMS, compare_mirrored, find_copies
from msggan.errors import DataError, UsageError
from msggan.pack import make_pack
from orchestration.azure.packs import refuse_too_few

RED = (224, 60, 40)
ORIENTATION = 0x0112


def photograph(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A picture without symmetry, with as much detail at each scale as at the next, the finer ones grey."""
    random = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0], 3))
    for side in (4, 8, 16, 32):
        values = random.integers(0, 256, (side, side, 3 if side < 16 else 1), dtype=np.uint8)
        layer = Image.fromarray(np.broadcast_to(values, (side, side, 3)).copy())
        total += np.asarray(layer.resize(size, Image.Resampling.BICUBIC)) / 4
    return Image.fromarray(total.astype(np.uint8))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 different pictures in four formats and four modes."""
    folder = tmp_path_factory.mktemp("images") / "clean"
    folder.mkdir()
    kinds = (("png", "RGB"), ("jpg", "RGB"), ("webp", "RGBA"), ("png", "L"), ("tif", "RGB"))
    for seed in range(200):
        suffix, mode = kinds[seed % len(kinds)]
        photograph(seed).convert(mode).save(folder / f"{seed:03d}.{suffix}")
    return folder


@pytest.fixture
def images(clean: Path, tmp_path: Path) -> Path:
    """A copy of the clean set, to spoil."""
    return Path(shutil.copytree(clean, tmp_path / "images"))


def checked(data: Path, **options: Any) -> dict[str, Any]:
    return examine(str(data), CheckOptions(**{"resolution": 32, "no_time": True, **options}))  # type: ignore[arg-type]


def findings(result: dict[str, Any]) -> dict[str, tuple[int, list[str]]]:
    """By kind, how many images, and their names."""
    return {each["kind"]: (each["count"], each["files"]) for each in result["findings"]}


def test_a_clean_set_has_no_findings_and_is_described(clean: Path) -> None:
    result = checked(clean)
    assert (result["findings"], result["usable"], result["verdict"]) == ([], True, "Fine: 200 different images.")
    assert result["formats"] == {"PNG": 80, "JPEG": 40, "WEBP": 40, "TIFF": 40}
    assert result["modes"] == {"RGB": 160, "L": 40}  # WebP without a transparent pixel is RGB
    assert result["shorter_side_px"] == {"least": 64, "median": 64, "most": 64}
    training = result["training"]
    assert (training["images"], training["batch_size"], training["device"]) == (200, 16, "cpu")


def test_each_fault_of_an_image_is_found_and_named(images: Path) -> None:
    (images / "cut.jpg").write_bytes((images / "001.jpg").read_bytes()[:900])
    (images / "text.png").write_text("no image")
    Image.new("RGB", (64, 64), "navy").save(images / "blank.png")
    photograph(300, (16, 20)).save(images / "small.png")
    photograph(301, (300, 64)).save(images / "wide.png")
    photograph(302).filter(ImageFilter.GaussianBlur(4)).save(images / "blurred.png")
    result = checked(images)
    assert findings(result) == {
        "unreadable": (2, ["cut.jpg: truncated", "text.png: not an image in a supported format"]),
        "too_small": (1, ["small.png: 16 x 20 px"]),
        "extreme_aspect": (1, ["wide.png: 300 x 64 px"]),
        "blank": (1, ["blank.png"]),
        "blurred": (1, ["blurred.png"]),
    }
    messages = [finding["message"].partition(" ")[2].split()[:2] for finding in result["findings"]]
    assert [" ".join(words) for words in messages[1:5]] == ["image is", "image loses", "image has", "image is"]
    verdict = "Usable: 204 different images. 2 files cannot be read. Repair or remove them; training skips them. "
    assert result["verdict"] == verdict + "There are 4 other findings."


def test_copies_are_found_however_they_were_made(images: Path) -> None:
    original = Image.open(images / "000.png")
    shutil.copy(images / "000.png", images / "same.png")
    original.save(images / "recompressed.jpg", quality=60)
    original.resize((48, 48), Image.Resampling.LANCZOS).save(images / "resized.png")
    original.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(images / "mirrored.png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned by a quarter, clockwise
    original.transpose(Image.Transpose.ROTATE_90).save(images / "turned.png", exif=exif)
    transparent = original.convert("RGBA")
    transparent.paste((0, 0, 0, 0), (0, 0, 8, 8))
    transparent.save(images / "transparent.webp", lossless=True)
    whitened = original.copy()
    whitened.paste("white", (0, 0, 8, 8))
    whitened.save(images / "white-corner.png")
    recoloured = Image.merge("RGB", original.split()[::-1])
    recoloured.save(images / "recoloured.png")  # another image: of the same layout, in other colours
    result = checked(images)
    assert (result["images"], result["different"]) == (208, 202)
    assert {name: count for name, (count, _) in findings(result).items()} == {"copies": 6}


def test_chains_of_copies_are_one_image_and_any_number_of_equal_ones_too() -> None:
    base = np.asarray(photograph(0, (32, 32))).transpose(2, 0, 1).astype(int) // 2
    chain = [base + step for step in range(0, 24, 4)]  # neighbours are copies, first and last are not
    others = [np.asarray(photograph(seed, (32, 32))).transpose(2, 0, 1) for seed in range(1, 9)]
    images = np.stack([*chain, *others, *[others[0]] * 50, others[1][..., ::-1]]).astype(np.uint8)
    assert 20 > COPY_RMS > 4
    assert find_copies(images).tolist() == [0] * 6 + list(range(6, 14)) + [6] * 50 + [7]
    assert find_copies(images[:1]).tolist() == [0]
    textures = np.random.default_rng(0).normal(128, 4, (9, 3, 32, 32)).astype(np.uint8)  # all of them the same grey
    assert find_copies(textures).tolist() == list(range(9))


def test_left_and_right_differ_only_where_there_is_evidence() -> None:
    """Pictures that are lighter at the left, of different layouts; and the same, half of them mirrored."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 160, (240, 3, 8, 8)).repeat(4, 2).repeat(4, 3)
    lit = np.clip(noise + np.linspace(60, 0, 32), 0, 255).astype(np.uint8)
    either = np.where(random.random((240, 1, 1, 1)) < 0.5, lit, lit[..., ::-1])
    found, by_chance = compare_mirrored(lit), compare_mirrored(either)
    assert found is not None
    assert by_chance is not None
    assert (found.differs, by_chance.differs) == (True, False)
    assert found.accuracy > 0.9
    assert compare_mirrored(lit[:199]) is None  # too few to decide


def test_few_images_and_useless_sets_are_named(clean: Path, tmp_path: Path) -> None:
    few, blank, copies = (tmp_path / name for name in ("few", "blank", "copies"))
    for folder in (few, blank, copies):
        folder.mkdir()
    for number in range(20):
        shutil.copy(clean / f"{number:03d}.{('png', 'jpg', 'webp', 'png', 'tif')[number % 5]}", few)
        Image.new("RGB", (32, 32), (10 * number, 0, 0)).save(blank / f"{number}.png")
        photograph(7, (40 + number, 40)).resize((40, 40)).save(copies / f"{number}.png")
    assert findings(checked(few)) == {"few": (20, [])}
    assert checked(blank)["verdict"] == (
        "Unusable. All images have one colour only. Use different images of one kind of object."
    )
    unusable = checked(copies)
    assert (unusable["usable"], unusable["different"]) == (False, 1)
    assert str(unusable["verdict"]).startswith("Unusable. All images are copies of one image. ")
    for number in range(2):  # now nearly all
        for folder in (blank, copies):
            photograph(20 + number).save(folder / f"other {number}.png")
    nearly = [checked(folder)["verdict"].partition(" Use")[0] for folder in (blank, copies)]
    assert nearly == [
        f"Unusable. 20 of 22 images {what}." for what in ("have one colour only", "are copies of one image")
    ]
    with pytest.raises(DataError, match="copies: of 22 images looked at, 20 are copies of one image") as refused:
        make_pack(str(copies), str(tmp_path / "images.safetensors"), PackOptions())
    assert refused.value.hint.endswith(f"To see these: msggan-aml check {copies} --html check.html")
    for path in sorted(few.iterdir())[3:]:
        path.unlink()
    assert findings(checked(few)) == {"too_few": (3, [])}


@pytest.mark.slow
def test_images_that_all_differ_in_left_and_right_are_fine_with_a_hint(tmp_path: Path) -> None:
    for seed in range(200):
        shaded = np.asarray(photograph(seed, (32, 32)), float) / 2 + np.linspace(127, 0, 32)[:, None]
        Image.fromarray(shaded.astype(np.uint8)).save(tmp_path / f"{seed}.png")
    verdict = "Fine: 200 different images. Use --no-mirror if generated images must not be mirrored."
    assert checked(tmp_path)["verdict"] == verdict


def test_the_page_is_one_file_that_shows_the_crop_and_escapes_names(images: Path, tmp_path: Path) -> None:
    photograph(1, (256, 64)).save(images / "<b>wide.png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    photograph(2, (256, 64)).save(images / "tall.jpg", exif=exif)
    page = tmp_path / "new" / "check.html"
    result = checked(images, html=str(page), resolution=8)
    content = page.read_text(encoding="utf-8")
    assert result["verdict"] in content.replace("&#x27;", "'")
    assert "&lt;b&gt;wide.png: 75 %" in content
    assert not re.search(r"<b>|<script|https?://", content)
    assert "color-scheme: light dark" in content
    sheet = content.partition("What cropping cuts off")[2]
    sources = dict(zip(re.findall(r'alt="(\S+):', sheet), re.findall(r"base64,([^\"]+)", sheet), strict=True))
    wide, tall = (_picture(sources[name]) for name in ("&lt;b&gt;wide.png", "tall.jpg"))
    # A quarter of the side of 192, in the middle, has a red line around it; the rest is darker.
    for picture in (wide, tall.transpose(1, 0, 2)):
        assert picture.shape == (48, 192, 3)
        assert {tuple(picture[24, column].tolist()) for column in (72, 73, 118, 119)} == {RED}
        assert picture[:, :64].mean() < 0.6 * picture[8:40, 80:112].mean()
    assert "Use --fit pad to keep whole images" in result["findings"][0]["hint"]
    padded = checked(images, html=str(page), force=True, resolution=8, fit="pad")
    assert (padded["findings"], padded["cut_off"], padded["padding"]["most"]) == ([], None, 0.75)
    sheet = page.read_text(encoding="utf-8").partition("What padding adds")[2]
    padding = _picture(re.findall(r"base64,([^\"]+)", sheet)[0])
    assert padding.shape == (192, 192, 3)
    assert padding[:72].min() == 255


def test_the_verdict_suggests_padding_where_cropping_cuts_off_much(tmp_path: Path) -> None:
    for seed in range(20):
        photograph(seed, (64, 36)).save(tmp_path / f"{seed}.png")
    hint = "Use --fit pad to keep whole images, if what they show is not in their centre square."
    assert checked(tmp_path)["verdict"].endswith(f" give varied results. {hint}")
    assert hint not in checked(tmp_path, fit="pad")["verdict"]


def _picture(encoded: str) -> np.ndarray:
    import base64

    return np.asarray(Image.open(BytesIO(base64.b64decode(encoded))))


def test_a_pack_is_examined_as_far_as_it_tells(images: Path, tmp_path: Path) -> None:
    shutil.copy(images / "000.png", images / "again.png")
    pack = tmp_path / "images.safetensors"
    make_pack(str(images), str(pack), PackOptions(resolution=16))
    result = checked(pack, resolution=None)
    assert (result["images"], result["different"], result["training"]["resolution"]) == (201, 200, 16)
    (kind, (count, names)) = next(iter(findings(result).items()))
    assert (kind, count) == ("copies", 1)
    assert re.fullmatch(r"image \d+ is a copy of image \d+", names[0])
    assert (result["formats"], result["shorter_side_px"], result["cut_off"]) == ({}, None, None)


def test_the_command_examines_a_zip_measures_the_time_and_keeps_a_page(clean: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "clean"), "zip", clean)
    args = ("check", "clean.zip", "--resolution", "8", "--html", "check.html")
    result = run_in(tmp_path, "msggan-aml", *args, "-o", "json")
    assert result.exit_code == 0, result.stderr
    assert (result.json["usable"], result.json["images"], result.json["findings"]) == (True, 200, [])
    assert result.json["training"]["images_per_second"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"clean.zip", "check.html"}
    again = run_in(tmp_path, "msggan-aml", *args)
    assert (again.exit_code, again.stderr.splitlines()[0]) == (
        2,
        "Error: --html check.html: already exists. Use --force to overwrite it.",
    )


def test_unusable_images_end_the_command_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "blank").mkdir()
    for number in range(20):
        Image.new("RGB", (32, 32), (10 * number, 0, 0)).save(tmp_path / "blank" / f"{number}.png")
    shown = run_in(tmp_path, "msggan-aml", "check", "blank", "--no-time")
    assert (shown.exit_code, shown.stdout.splitlines()[-1][:9]) == (2, "Unusable.")
    submitted = run_in(tmp_path, "msggan-aml", "submit", "blank", "--target", "local", "-o", "json")
    message = "--data blank: all images have one colour only."
    assert (submitted.exit_code, submitted.json["error"]["message"]) == (2, message)
    assert not (tmp_path / "runs" / "blank").exists()
    packed = run_in(tmp_path, "msggan-aml", "pack", "blank", "blank.safetensors")
    assert (packed.exit_code, packed.stderr.splitlines()[-2]) == (2, "Error: blank: all images have one colour only.")
    nothing = run_in(tmp_path, "msggan-aml", "check", "-o", "json")
    assert (nothing.exit_code, json.loads(nothing.stdout)["error"]["code"]) == (2, "usage")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no images"):
        checked(tmp_path / "empty")
    with pytest.raises(UsageError):
        CheckOptions(resolution=30).config  # noqa: B018


def test_without_pytorch_everything_but_the_time_is_found(clean: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from msggan.check import examine; "
        "from msggan.commands.verbs import CheckOptions; "
        f"result = examine({str(clean)!r}, CheckOptions(resolution=8)); print(result['verdict'], result['training'])"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], env=environment(), encoding="utf-8")
    assert printed.startswith("Fine: 200 different images. {'images': 200, 'held_out': 0, ")
    assert "'images_per_second': None" in printed


def test_too_few_images_for_a_step_are_refused_before_they_are_uploaded() -> None:
    packed = {"images": 3, "resolution": 32}
    with pytest.raises(DataError, match="--data few: 3 images to train on are fewer than --batch-size 4"):
        refuse_too_few("few", TrainConfig(), packed)
    refuse_too_few("few", TrainConfig(batch_size=2), packed)
