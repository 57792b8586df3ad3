"""Is every command and every piece of Python that README.md shows true?"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, Ended, environment, run_in

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.split(" # ")[0].strip() for line in re.findall(r"^    (\S.*)$", README, flags=re.MULTILINE)]
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)

# What makes a command of the README short enough for a test; of an option given twice the last counts.
SHORT = ["--resolution", "8", "--latent-size", "8", "--kimg", "0.05"]
OFTEN = ["--sample-kimg", "0.02"]  # two sample grids at least, for a film


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `flowers` in it, drawn as `make demo` draws them, and a finished run of them."""
    folder = tmp_path_factory.mktemp("readme")
    draw = [sys.executable, str(REPOSITORY / "examples" / "draw_flowers.py"), "flowers", "40"]
    subprocess.run(draw, cwd=folder, check=True, capture_output=True)
    trained = submit(folder, shlex.join(["msggan-aml", "submit", "--data", "flowers", *OFTEN]))
    assert trained.exit_code == 0, trained.stderr
    return folder


def submit(folder: Path, command: str) -> Ended:
    return run_in(folder, "msggan-aml", *shlex.split(command)[1:], *SHORT)


def test_the_readme_shows_commands_and_python() -> None:
    assert any("make demo" in command for command in COMMANDS)
    assert sum("msggan-aml submit" in command for command in COMMANDS) >= 2
    assert sum("msggan-aml sample" in command for command in COMMANDS) >= 4
    assert len(PYTHON) >= 3


@pytest.mark.parametrize("command", [command for command in COMMANDS if "msggan-aml submit" in command])
def test_a_command_of_the_readme_trains(flowers: Path, command: str) -> None:
    ended = submit(flowers, command.replace("FOLDER", "flowers") + " --name readme")
    assert ended.exit_code == 0, ended.stderr
    assert (flowers / "runs" / "readme" / "generator.safetensors").exists()


@pytest.mark.parametrize("command", [command for command in COMMANDS if "msggan-aml sample" in command])
def test_a_command_of_the_readme_makes_images(flowers: Path, command: str) -> None:
    words = shlex.split(command.replace("--num 1000", "--num 20").replace("--scale 16", "--scale 4"))[1:]
    ended = run_in(flowers, "msggan-aml", *words, "--seconds", "0.4", "-o", "json")
    assert ended.exit_code == 0, ended.stderr
    assert ended.json["files"]
    assert all((flowers / file).is_file() for file in ended.json["files"])


@pytest.mark.parametrize("code", PYTHON)
def test_python_of_the_readme_runs(flowers: Path, code: str) -> None:
    code = code.replace("resolution=32, kimg=20", "resolution=8, latent_size=8, kimg=0.05")
    if "GAN_GEN_SHADOW_12.pth" in code:
        save_as_bmsg_gan(flowers / "GAN_GEN_SHADOW_12.pth")
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=flowers, env=environment(), capture_output=True, encoding="utf-8", check=False
    )
    assert ended.returncode == 0, ended.stderr


def save_as_bmsg_gan(path: Path) -> None:
    """A generator's state dict under the original's names, of the size that the README speaks of."""
    import torch

    from msggan import Generator

    named = {}
    for name, tensor in Generator(depth=6, latent_size=256).state_dict().items():
        theirs = name.replace("to_rgb.", "rgb_converters.").replace("first.", "layers.0.")
        theirs = re.sub(r"^blocks\.(\d+)", lambda match: f"layers.{int(match[1]) + 1}", theirs)
        named[f"module.{theirs}"] = tensor
    torch.save(named, path)
