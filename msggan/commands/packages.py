"""Which Python packages does a program need, which of them are not here, and what to do about it?

Stands on the standard library alone: it is what speaks when everything else is missing.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec

from msggan.errors import MsgganError

# What training imports, as it is imported.
TRAINING = ("click", "filelock", "numpy", "PIL", "safetensors", "torch", "torchvision")
OURS = ("msggan", "orchestration", "environments")
DISTRIBUTIONS = {
    "PIL": "pillow",
    "azure": "azure-ai-ml",
    "azureml": "azureml-mlflow",
    "azureml.mlflow": "azureml-mlflow",
    "imageio_ffmpeg": "imageio-ffmpeg",
}
JOB_VARIABLE = "AZUREML_RUN_ID"  # which Azure ML sets in its jobs
OUTPUT_VARIABLE = "MSGGAN_OUTPUT"  # as in msggan.commands.program, which stands on click


class MissingPackagesError(MsgganError):
    """This Python lacks packages. modules: what was to be imported."""

    code = "missing_packages"

    def __init__(self, modules: Iterable[str], environ: Mapping[str, str]) -> None:
        names = sorted({distribution_of(module) for module in modules})
        what = "Python packages that are needed are" if len(names) > 1 else "A Python package that is needed is"
        super().__init__(
            f"{what} not there: {', '.join(names)}. This Python is {sys.executable}.", _hint(names, environ)
        )


def training_packages(tracking_uri: str | None) -> tuple[str, ...]:
    """What training imports, with what it takes to tell MLflow at this address (None: no MLflow)."""
    if tracking_uri is None:
        return TRAINING
    return (*TRAINING, "mlflow", *(["azureml.mlflow"] if tracking_uri.startswith("azureml:") else []))


def require(modules: Iterable[str]) -> None:
    """Raises MissingPackagesError that names every one that is not here. Imports none of them."""
    missing = [module for module in modules if not _is_here(module)]
    if missing:
        raise MissingPackagesError(missing, os.environ)


def as_missing_package(error: ModuleNotFoundError) -> MissingPackagesError | None:
    """What to say of an import that failed; None where the module is ours or Python's own: that is a fault of ours."""
    top = (error.name or "").partition(".")[0]
    if not top or top in OURS or top in sys.stdlib_module_names:
        return None
    return MissingPackagesError([str(error.name)], os.environ)


def end_without_click(tracking_uri: str | None) -> None:
    """Ends the process, naming all that is missing, where there is no click: nothing else could read its options."""
    if _is_here("click"):
        return
    try:
        require(training_packages(tracking_uri))
    except MissingPackagesError as error:
        sys.stderr.write(f"Error: {error.message}\n{error.hint}\n")
        if os.environ.get(OUTPUT_VARIABLE) == "json":
            sys.stdout.write(json.dumps(error.as_json()) + "\n")
        sys.exit(error.exit_code)


def distribution_of(module: str) -> str:
    """What pip calls the package that a module is of."""
    top = module.partition(".")[0]
    return DISTRIBUTIONS.get(module) or DISTRIBUTIONS.get(top, top)


def _hint(names: list[str], environ: Mapping[str, str]) -> str:
    if environ.get(JOB_VARIABLE):
        return (
            f"The job's environment lacks them. Submit it again with --environment curated, which has all that "
            f"training needs, or add them to your own image or conda file: {' '.join(map(_requirement, names))}"
        )
    return f"Install: {shlex.join([sys.executable, '-m', 'pip', 'install', *map(_requirement, names)])}"


def _requirement(name: str) -> str:
    """The package with the bounds that msggan sets, as far as it is installed and tells them."""
    try:
        told = requires("msggan") or []
    except PackageNotFoundError:
        told = []
    lines = [line.partition(";")[0].strip() for line in told if "extra ==" not in line]
    return next((line for line in lines if re.match(rf"{re.escape(name)}(?![\w.-])", line)), name)


def _is_here(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # the package around it is not here; or it is loaded, from nowhere
        return module in sys.modules
