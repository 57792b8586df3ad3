"""What do jobs run in? Four ways to say it, and one version of our environment for each content.

    curated          Azure ML's PyTorch image, its version resolved and pinned, with what msggan needs beside it
    IMAGE            any image
    FILE.yml         a conda file, on an image of Azure ML; IMAGE+FILE.yml: on that one
    FOLDER           the folder of a Dockerfile

The version is a hash of the content: what was edited is made anew, and what was not is there already. The service
itself would ignore an edit under a version that it knows.
"""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azure.ai.ml.entities import BuildContext, Environment
from azure.core.exceptions import AzureError, ResourceExistsError

import environments
from msggan.errors import UsageError
from orchestration.azure.blobs import ensure_uploaded, open_store
from orchestration.azure.client import PROVISIONED_TAG, Client, is_provisioned
from orchestration.settings import Settings
from orchestration.spec import Item

KIND = "environment"
NAME = "msggan"
CURATED = "curated"
REGISTRY = "azureml"
CURATED_NAME = "acpt-pytorch-2.8-cuda12.6"
CURATED_IMAGE = f"mcr.microsoft.com/azureml/curated/{CURATED_NAME}"
CONDA_IMAGE = "mcr.microsoft.com/azureml/openmpi4.1.0-cuda11.8-cudnn8-ubuntu22.04:latest"

DEFAULT_CONTEXT = Path(environments.__file__).parent / "default"
DOCKERFILE = "Dockerfile"
CONDA_FILE = "conda.yml"
CONTEXT_FOLDER = "msggan/environments"  # in the workspace's default datastore
MOST_FILES = 100
MOST_BYTES = 2**20

IMAGE = re.compile(
    r"(?:[A-Za-z0-9.-]+(?::\d+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|@sha256:[0-9a-f]{64})"
)
ENDINGS = (".yml", ".yaml")


@dataclass(frozen=True)
class Recipe:
    """What an environment is made of: an image, an image with a conda file, or the files of a build context.

    made_from: how it was asked for, in words.
    """

    made_from: str
    image: str = ""
    conda: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """The first 16 of the 64 digits of the content's SHA-256."""
        content = hashlib.sha256()
        parts = [self.image.encode(), self.conda.encode()]
        for path in sorted(self.files):
            parts += [path.encode(), self.files[path]]
        for part in parts:
            content.update(len(part).to_bytes(8, "big") + part)
        return content.hexdigest()[:16]

    @property
    def reference(self) -> str:
        """How a job names it."""
        return f"azureml:{NAME}:{self.version}"


# --- Reading what is asked for ----------------------------------------------------------------------------------------


def read_recipe(said: str, *, curated_version: str = "") -> Recipe:
    """The recipe that the setting `environment` names. curated_version: which one `curated` is to be.

    Raises UsageError where there is no such file or folder, or it cannot be one.
    """
    if said == CURATED:
        image = f"{CURATED_IMAGE}:{curated_version}"
        files = read_context(DEFAULT_CONTEXT)
        return Recipe(f"curated image {CURATED_NAME}, version {curated_version}", files=_standing_on(image, files))
    if Path(said).is_dir():
        return Recipe(f"folder {Path(said).name}", files=read_context(Path(said)))
    image, plus, path = said.rpartition("+")
    if plus or Path(path).is_file() or path.endswith(ENDINGS):
        checked = _checked_image(image) if plus else CONDA_IMAGE
        return Recipe(f"conda file {Path(path).name}", image=checked, conda=_read_conda(Path(path)))
    return Recipe(f"image {said}", image=_checked_image(said))


def _standing_on(image: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The default build context on this version of its image."""
    dockerfile = re.sub(rb"^FROM .*$", b"FROM " + image.encode(), files[DOCKERFILE], count=1, flags=re.MULTILINE)
    return {**files, DOCKERFILE: dockerfile}


def _checked_image(said: str) -> str:
    if not IMAGE.fullmatch(said):
        raise UsageError(
            [f"environment {said}: is not {CURATED}, nor a file or folder that is there, nor an image with its tag."],
            f"Say {CURATED}, IMAGE:TAG such as python:3.11-slim, a conda file, or the folder of a Dockerfile.",
        )
    return said


def _read_conda(path: Path) -> str:
    """The text of the conda file, which the SDK must be able to read as one."""
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = Environment(image=CONDA_IMAGE, conda_file=str(path.absolute())).conda_file
    except (OSError, ValueError, AzureError) as error:
        raise UsageError([f"environment {path}: cannot be read as a conda file: {_one_line(error)}."]) from error
    if not isinstance(content, dict) or not isinstance(content.get("dependencies"), list):
        raise UsageError([f"environment {path}: is not a conda file: it has no list of dependencies."])
    return text


def _one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")


def read_context(folder: Path) -> dict[str, bytes]:
    """The files of a Dockerfile's folder by path, without those whose name begins with a dot.

    Raises UsageError where they are more, or larger, than Azure ML takes.
    """
    paths = [path for path in sorted(folder.rglob("*")) if not _is_hidden(path.relative_to(folder))]
    links = [path for path in paths if path.is_symlink()]
    files = [path for path in paths if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    problems = [f"environment {link}: is a link, which would not arrive." for link in links]
    if not (folder / DOCKERFILE).is_file():
        problems.append(f"environment {folder}: has no {DOCKERFILE}.")
    if len(files) > MOST_FILES:
        problems.append(f"environment {folder}: has {len(files)} files; Azure ML takes {MOST_FILES}.")
    if size > MOST_BYTES:
        problems.append(f"environment {folder}: has {size / 2**20:.1f} MiB; Azure ML takes {MOST_BYTES // 2**20} MiB.")
    if problems:
        raise UsageError(problems)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def build_environment(recipe: Recipe, *, conda_file: Path | None = None, context: str = "") -> Environment:
    """The environment of a recipe. conda_file, context: where the recipe's own are written and uploaded."""
    given: dict[str, Any] = {"image": recipe.image or None}
    if recipe.files:
        given = {"build": BuildContext(path=context, dockerfile_path=DOCKERFILE)}
    if recipe.conda:
        given["conda_file"] = str(conda_file)
    return Environment(
        name=NAME,
        version=recipe.version,
        description=f"For msggan: {recipe.made_from}",
        tags=dict(PROVISIONED_TAG),
        **given,
    )


def plan_environment(recipe: Recipe, there: Environment | None, *, is_archived: bool = False) -> Item:
    """What is to be done about the environment. Pure."""
    name = f"{NAME}:{recipe.version}"
    if there is None:
        changes = {"made_from": {"from": None, "to": recipe.made_from}}
        costs = (
            ("The image is built before the first job that uses it, in about 20 minutes on the workspace's builder.",)
            if recipe.files or recipe.conda
            else ()
        )
        return Item(KIND, name, "create", changes, costs=costs)
    if is_archived:
        return Item(KIND, name, "change", {"archived": {"from": True, "to": False}}, recipe.made_from)
    return Item(KIND, name, "keep", reason=recipe.made_from)


# --- With the service -------------------------------------------------------------------------------------------------


def check_said(said: str) -> None:
    """Raises UsageError where the setting `environment` names nothing that can be one; asks nobody."""
    read_recipe(said, curated_version="latest")


def resolve_recipe(client: Client, said: str) -> Recipe:
    """The recipe that is asked for; of the curated image, on its newest version."""
    return read_recipe(said, curated_version=newest_curated(client) if said == CURATED else "")


def newest_curated(client: Client) -> str:
    """The newest version of the curated PyTorch environment."""
    with client.errors(f"Asking for the newest version of {CURATED_NAME}"):
        found = client.registry(REGISTRY).environments.get(CURATED_NAME, label="latest")
    return str(found.version)


def read_environment(client: Client, recipe: Recipe) -> Environment | None:
    """The environment's version, None where there is none."""
    return client.find(
        f"Looking for the environment {NAME}:{recipe.version}",
        lambda: client.ml.environments.get(NAME, version=recipe.version),
    )


def ensure_environment(client: Client, recipe: Recipe) -> str:
    """Makes the environment where there is none, and returns how a job names it."""
    if read_environment(client, recipe) is None:
        context = upload_context(client, recipe) if recipe.files else ""
        with tempfile.TemporaryDirectory() as folder, client.errors(f"Making the environment {NAME}:{recipe.version}"):
            conda_file = Path(folder) / CONDA_FILE
            conda_file.write_text(recipe.conda, encoding="utf-8")
            environment = build_environment(recipe, conda_file=conda_file, context=context)
            try:
                with redirect_stderr(io.StringIO()):  # the SDK writes colour codes there, whatever it is told
                    client.ml.environments.create_or_update(environment)
            except ResourceExistsError:  # somebody else made it at the same time: the same content
                if read_environment(client, recipe) is None:
                    raise
    return recipe.reference


def upload_context(client: Client, recipe: Recipe) -> str:
    """The address of the recipe's build context, with the slash at its end that the image builder asks for."""
    return ensure_uploaded(client, open_store(client, None), CONTEXT_FOLDER, recipe.files) + "/"


def resolve_environment(settings: Settings, client: Client) -> str:
    """How a job names the environment that the settings ask for, made first where there is none."""
    return ensure_environment(client, resolve_recipe(client, settings.environment))


def restore_environment(client: Client, recipe: Recipe) -> None:
    with client.errors(f"Fetching the environment {NAME}:{recipe.version} out of the archive"):
        client.ml.environments.restore(NAME, version=recipe.version)


def read_ours(client: Client) -> list[str]:
    """The versions of our environment that were made here, without those in the archive."""
    doing = f"Listing the environment {NAME}"
    versions = client.find(doing, lambda: list(client.ml.environments.list(NAME)))
    return [str(one.version) for one in versions or () if is_provisioned(one.tags)]


def plan_environment_deletion(versions: list[str]) -> Item:
    """What becomes of our environment: Azure ML archives environments, and jobs of the past keep theirs. Pure.

    versions: at least one.
    """
    many = f"{len(versions)} version{'s' if len(versions) > 1 else ''}"
    return Item(KIND, NAME, "delete", reason=f"{many}; Azure ML keeps them in its archive, where they cost nothing")


def archive_environments(client: Client, versions: list[str]) -> None:
    for version in versions:
        with client.errors(f"Archiving the environment {NAME}:{version}"):
            client.ml.environments.archive(NAME, version=version)
