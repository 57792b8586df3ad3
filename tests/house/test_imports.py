"""Light modules do not import heavy packages, and all imports point down."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest
from support.programs import REPOSITORY, environment

import msggan
import orchestration

HEAVY = {
    "torch",
    "torchvision",
    "matplotlib",
    "imageio_ffmpeg",
    "numpy",
    "onnx",
    "optuna",
    "PIL",
    "safetensors",
    "mlflow",
    "azure",
}

LIGHT_MODULES = [
    "environments",
    "msggan",
    "msggan.config",
    "msggan.errors",
    "msggan.losses",
    "msggan.resources",
    "msggan.signs",
    "msggan.schedules",
    "msggan.export",
    "msggan.evaluate",
    "msggan.runs.files",
    "msggan.display.html",
    "msggan.commands.options",
    "msggan.pack",
    "msggan.initial",
    "msggan.check",
    "msggan.tracking.mlflow_worker",
    "msggan.commands.program",
    "msggan.display.progress",
    "msggan.runs.folder",
    "msggan.sample",
    "msggan.commands.verbs",
    "msggan.tracking.metrics_log",
    "msggan.train",
    "orchestration",
    "orchestration.local.process",
    "orchestration.commands.main",
    "orchestration.costs",
    "orchestration.money",
    "orchestration.errors",
    "orchestration.copies",
    "orchestration.local.target",
    "orchestration.local.rehearsal",
    "orchestration.runs",
    "orchestration.sweeps.space",
    "orchestration.pairs",
    "orchestration.settings",
    "orchestration.data_source",
    "orchestration.spec",
    "orchestration.sweeps.trials",
    "orchestration.local.sweep",
    "orchestration.sweeps.spec",
    "orchestration.sweeps.record",
    "orchestration.sweeps.status",
    "orchestration.commands.submit",
    "orchestration.commands.sweep",
    "orchestration.commands.runs",
    "orchestration.sweeps.report",
    "orchestration.targets",
    "orchestration.commands.terminal",
    "orchestration.status",
]

# The floors as CONTRIBUTING draws them: a module is on the floor of the longest of these names that it is in.
FLOORS = (
    "msggan msggan.config msggan.errors msggan.losses msggan.resources msggan.schedules msggan.signs msggan.commands "
    "orchestration environments",
    "msggan.networks msggan.augmentation msggan.metrics msggan.health msggan.randomness msggan.device msggan.graphs "
    "msggan.legacy msggan.data msggan.runs msggan.tracking msggan.pictures msggan.display msggan.evaluation",
    "msggan.steps msggan.measuring msggan.trainer msggan.train msggan.sample msggan.pack msggan.initial msggan.check "
    "msggan.export msggan.evaluate",
    "orchestration.spec orchestration.settings orchestration.pairs orchestration.data_source "
    "orchestration.errors orchestration.status orchestration.runs "
    "orchestration.copies orchestration.costs orchestration.money",
    "orchestration.sweeps orchestration.targets",
    "orchestration.local orchestration.azure",
    "orchestration.commands",
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
# The rooms of msggan that orchestration may enter: none of their modules that it imports loads torch.
LIGHT_ROOMS = (
    "msggan.config",
    "msggan.errors",
    "msggan.resources",
    "msggan.signs",
    "msggan.commands",
    "msggan.runs",
    "msggan.tracking",
    "msggan.display",
)
KNOWS_MLFLOW = ("msggan.tracking", "orchestration.azure")


def floor(module: str) -> int:
    """The floor of the house that a module is on."""
    rooms = [room for room in FLOOR_OF if module == room or module.startswith(f"{room}.")]
    room = max(rooms, key=len)
    assert room == module or room not in ("msggan", "orchestration"), f"{module} is on no floor of CONTRIBUTING"
    return FLOOR_OF[room]


def is_in(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


@cache
def modules() -> dict[str, Path]:
    """Each module of both packages and its file."""
    found = {}
    for package in ("environments", "msggan", "orchestration"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


@cache
def imports(path: Path, *, also_in_functions: bool) -> frozenset[str]:
    """The modules that a file imports when it runs; what only a type checker reads is left out."""
    return frozenset(_imported(ast.parse(path.read_text(encoding="utf-8")).body, also_in_functions))


def _imported(statements: list[ast.stmt], also_in_functions: bool) -> Iterator[str]:
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, "imports are absolute"
            base = statement.module or ""
            for alias in statement.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in modules() else base
        elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and not also_in_functions:
            continue
        elif isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            yield from _imported(statement.orelse, also_in_functions)
        else:
            for block in ("body", "orelse", "finalbody", "handlers", "cases"):
                for inner_statement in getattr(statement, block, []):
                    inside = [inner_statement] if isinstance(inner_statement, ast.stmt) else inner_statement.body
                    yield from _imported(inside, also_in_functions)


def package_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_a_light_module_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    loaded = subprocess.check_output([sys.executable, "-c", code], env=environment(), encoding="utf-8")
    assert loaded.split() == []


def test_help_loads_no_command() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from orchestration.commands.main import msggan_aml\n"
        "assert 'Train on a folder' in CliRunner().invoke(msggan_aml, ['--help']).output\n"
        "print(*[name for name in sys.modules if name.startswith('orchestration.')])"
    )
    loaded = subprocess.check_output([sys.executable, "-c", code], env=environment(), encoding="utf-8")
    assert loaded.split() == [f"orchestration.commands{name}" for name in ("", ".groups", ".main")]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from orchestration.commands.main import msggan_aml\n"
        "assert CliRunner().invoke(msggan_aml, ['submit', '--help']).exit_code == 0\n"
        f"print(*sorted({HEAVY!r} & sys.modules.keys()))"
    )
    loaded = subprocess.check_output([sys.executable, "-c", code], env=environment(), encoding="utf-8")
    assert loaded.split() == []


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module: str) -> None:
    ours = [name for name in imports(modules()[module], also_in_functions=False) if name in modules()]
    assert [name for name in ours if floor(name) > floor(module)] == []


def test_there_are_no_circular_imports_and_no_chain_is_longer_than_eight_modules() -> None:
    imported = {name: imports(path, also_in_functions=False) & modules().keys() for name, path in modules().items()}
    length: dict[str, int] = {}
    for name in TopologicalSorter(imported).static_order():  # raises CycleError
        length[name] = 1 + max((length[other] for other in imported[name] - {name}), default=0)
    assert {name for name in length if length[name] > 8} == set()


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_what_its_layer_allows(module: str) -> None:
    imported = imports(modules()[module], also_in_functions=True)
    packages = {package_of(name) for name in imported}
    if module.startswith("msggan"):
        assert not packages & {"orchestration", "azure"}
    if module.startswith("orchestration"):
        assert not packages & {"torch", "torchvision", "numpy", "PIL", "imageio_ffmpeg", "safetensors"}
        assert [name for name in imported if name.startswith("msggan.") and not is_in(name, LIGHT_ROOMS)] == []
    if floor(module) == 0:
        assert packages - ({"torch"} if module == "msggan.losses" else set()) <= {
            *(*sys.stdlib_module_names, "click", "filelock", "msggan"),
        }
    if floor(module) == 1 and not is_in(module, ("msggan.runs", "msggan.tracking", "msggan.display")):
        assert "msggan.config" not in imported
    if floor(module) == 3:  # tomllib is tomli before Python 3.11
        assert packages <= {*sys.stdlib_module_names, "click", "tomli", "tomllib", "msggan", "orchestration"}
    if not module.startswith(KNOWS_MLFLOW):
        assert "mlflow" not in packages
    if not module.startswith("orchestration.azure"):
        assert "azure" not in packages


@pytest.mark.parametrize("module", [name for name in modules() if floor(name) == 6])
def test_the_command_line_loads_a_target_only_when_it_serves(module: str) -> None:
    at_once = imports(modules()[module], also_in_functions=False)
    assert [name for name in at_once if name in modules() and floor(name) == 5] == []


@pytest.mark.parametrize("package", [msggan, orchestration])
def test_every_public_name_is_importable_and_listed(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    assert all(hasattr(package, name) for name in names if name != "__version__")
    assert set(names) <= set(dir(package))
    assert not hasattr(package, "nonsense")


def test_the_installed_package_is_found_beside_a_folder_of_its_name(tmp_path: Path) -> None:
    """As in the folder above a clone: a folder without `__init__.py` would do as a package, where there is no other."""
    for name in ("msggan", "orchestration", "environments"):
        (tmp_path / name).mkdir()
    code = "import environments, msggan, orchestration; print(msggan.TrainConfig, environments.__file__)"
    variables = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=variables, capture_output=True, encoding="utf-8", check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "None" not in ended.stdout


def test_the_version_is_the_installed_one() -> None:
    assert msggan.__version__ == version("msggan")
