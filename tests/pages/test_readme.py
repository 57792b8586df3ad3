"""The commands and Python examples of README.md and docs/ work as shown."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import REPOSITORY, environment, fast_python, run_in

PAGES = ["README.md", *(f"docs/{name}.md" for name in ("first-run", "own-images", "reading-the-curves"))]
PAGES += ["docs/never-lost.md", "docs/sweeps.md"]
# What is run in tests/azure instead.
ON_AZURE = re.compile(r"^## (?:Train on|On) Azure ML$.*?(?=^## )", re.MULTILINE | re.DOTALL)


def local_part(page: str) -> str:
    """A page without its section on Azure."""
    return ON_AZURE.sub("", (REPOSITORY / page).read_text(encoding="utf-8"))


PYTHON = [
    code
    for page in ("README.md", "docs/sweeps.md")
    for code in re.findall(r"```python\n(.*?)```", local_part(page), flags=re.DOTALL)
]

# What makes a command short enough for a test; of an option given twice the last counts.
SMALL = ["--resolution", "8", "--latent-size", "8"]
SHORT = [*SMALL, "--kimg", "0.05", "--sample-kimg", "0.02"]  # two sample grids at least, for a film
ENDLESS = [*SMALL, "--kimg", "1000000"]
SHORTER = {
    "FOLDER": "runs/demo-images --name own",
    "--num 1000": "--num 20",
    "--scale 16": "--scale 4",
    "--resolution 32": "--resolution 8",
}


DRAW_FLOWERS = "python examples/draw_flowers.py"
FROM_THE_START = ["README.md", "docs/first-run.md"]  # typed after `make demo`; the other pages go on from these


def commands_of(page: str) -> list[str]:
    """The commands that a page shows, in their order; those for Azure are run in test_azure_page."""
    lines = re.findall(rf"^    (?:\.venv/bin/)?((?:msggan-aml|{DRAW_FLOWERS}) .*)$", local_part(page), re.MULTILINE)
    return [line.split(" # ")[0].strip() for line in lines]


def shortened(command: str) -> list[str]:
    for long, short in SHORTER.items():
        command = command.replace(long, short)
    args = shlex.split(command)[1:]
    if "--from-trial" in args:
        return [*args, "--kimg", "0.1"]  # all else is the trial's
    if args[0] == "sweep" and args[1] != "best":
        return [*args, *SHORT, "--trials", "2"]
    if args[0] == "submit":
        return [*args, *(ENDLESS if "--detach" in args else SHORT)]
    return [*args, "--seconds", "0.4"] if "film" in command else args


def run_command(folder: Path, command: str) -> None:
    """Runs a command that a page or the Makefile shows, shortened."""
    if command.startswith(DRAW_FLOWERS):
        script, drawn_to = REPOSITORY / "examples" / "draw_flowers.py", command.rsplit(maxsplit=1)[-1]
        subprocess.run([sys.executable, str(script), drawn_to, "40"], cwd=folder, check=True, capture_output=True)
        return
    ended = run_in(folder, "msggan-aml", *shortened(command))
    assert ended.exit_code == 0, f"{command}: {ended.stderr}"


@pytest.fixture
def after_demo(tmp_path: Path) -> Path:
    """A folder as `make demo` leaves it, by the Makefile's own commands."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8").replace("\\\n\t", "")
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    for line in recipe[1].splitlines():
        run_command(tmp_path, line.strip().replace("$(BIN)/", ""))
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `flowers` in it, and a finished run of them. Each test uses a copy."""
    folder = tmp_path_factory.mktemp("trained")
    run_command(folder, f"{DRAW_FLOWERS} flowers")
    run_command(folder, "msggan-aml submit flowers")
    return folder


@pytest.fixture
def flowers(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path, dirs_exist_ok=True))


def test_the_pages_show_commands_and_python() -> None:
    assert {command.split()[1] for page in PAGES for command in commands_of(page)} >= SHOWN
    assert all(commands_of(page) for page in PAGES)
    assert len(PYTHON) >= 4


SHOWN = {"submit", "sweep", "sample", "export", "pack", "status", "list", "logs", "cancel", "download", "config"}


@pytest.mark.parametrize(
    "page", [page if page == "README.md" else pytest.param(page, marks=pytest.mark.slow) for page in PAGES]
)
def test_the_commands_of_a_page_work_one_after_the_other(page: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue("after_demo" if page in FROM_THE_START else "flowers")
    before = set(folder.rglob("*"))
    for command in commands_of(page):
        run_command(folder, command)
    assert set(folder.rglob("*")) > before


@pytest.mark.parametrize("code", PYTHON)
def test_python_of_the_pages_runs(flowers: Path, code: str) -> None:
    code = re.sub(r"resolution=32, kimg=\d+", "resolution=8, latent_size=8, kimg=0.05", code)
    code = code.replace("trials=12", "trials=2")
    if "GAN_GEN_SHADOW_12.pth" in code:
        save_as_bmsg_gan(flowers / "GAN_GEN_SHADOW_12.pth")
    ended = subprocess.run(
        [fast_python(), "-c", code], cwd=flowers, env=environment(), capture_output=True, encoding="utf-8", check=False
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


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
@pytest.mark.parametrize(("environ", "result"), [({}, "true"), ({"UV_SYSTEM_CERTS": "false"}, "false")])
def test_make_lets_uv_trust_what_the_system_trusts(tmp_path: Path, environ: dict[str, str], result: str) -> None:
    """Behind a company's TLS proxy, `make demo` would install nothing otherwise."""
    (tmp_path / "more.mk").write_text("show:\n\t@echo $$UV_SYSTEM_CERTS\n")
    args = ["make", "--silent", "-f", "Makefile", "-f", str(tmp_path / "more.mk"), "show"]
    variables = {name: value for name, value in os.environ.items() if name != "UV_SYSTEM_CERTS"}
    assert subprocess.check_output(args, cwd=REPOSITORY, env=variables | environ, encoding="utf-8") == f"{result}\n"
