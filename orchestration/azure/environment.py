"""The environment that jobs run in, specified in one of five ways, with one version for each content.

    curated          Azure ML's PyTorch image, its version resolved and pinned, and what msggan needs
    FILE.txt         the same with the packages of a pip requirements file added
    IMAGE            any image
    FILE.yml         a conda file, on an image of Azure ML; IMAGE+FILE.yml: on that one
    FOLDER           the folder of a Dockerfile

The version is a hash of the content: an edit creates a new one, and unchanged content is found again. The service
itself ignores an edit under a version that exists.
"""

from __future__ import annotations

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
from orchestration.azure.blobs import PROJECT_FOLDER, hash_files
from orchestration.azure.client import PROVISIONED_TAG, Client, is_provisioned
from orchestration.azure.errors import workspace_command
from orchestration.azure.records import once_a_day
from orchestration.status import Item

KIND = "environment"
NAME = "msggan"
CURATED = "curated"
REGISTRY = "azureml"
CURATED_NAME = "acpt-pytorch-2.8-cuda12.6"
CURATED_IMAGE = f"mcr.microsoft.com/azureml/curated/{CURATED_NAME}"
# The newest tag in the release notes of github.com/Azure/AzureML-Containers.
CONDA_IMAGE = "mcr.microsoft.com/azureml/openmpi4.1.0-cuda11.8-cudnn8-ubuntu22.04:20241202.v1"
CURATED_TAG = "msggan.curated"  # of an environment that is based on the curated image: that image
OURS = re.compile(rf"(?:(?:azureml:)?{NAME}:|.*/environments/{NAME}/versions/)(?P<version>[^/:]+)")
MOVING = re.compile(rb"^[ \t]*FROM[ \t]+(?:--\S+[ \t]+)*(\S+:latest)\b", re.IGNORECASE | re.MULTILINE)

DEFAULT_CONTEXT = Path(environments.__file__).parent / "default"
DOCKERFILE = "Dockerfile"
CONDA_FILE = "conda.yml"
CONTEXT_FOLDER = f"{PROJECT_FOLDER}/environments"  # in the workspace's default datastore
MAX_FILES = 100
MAX_BYTES = 2**20

IMAGE = re.compile(
    r"(?:[A-Za-z0-9.-]+(?::\d+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|@sha256:[0-9a-f]{64})"
)
CONDA_SUFFIXES = (".yml", ".yaml")
REQUIREMENTS = "requirements.txt"


@dataclass(frozen=True)
class Recipe:
    """The content of an environment: an image, an image with a conda file, or the files of a build context.

    made_from: how it was specified, for people. curated: the curated image that it is based on, empty for another.
    """

    made_from: str
    image: str = ""
    conda: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    curated: str = ""

    @property
    def version(self) -> str:
        """The first 16 of the 64 digits of the content's SHA-256."""
        return hash_files(self.files, self.image.encode(), self.conda.encode())[:16]

    @property
    def reference(self) -> str:
        """The ID by which a job refers to it."""
        return f"azureml:{NAME}:{self.version}"


# --- Reading the setting ----------------------------------------------------------------------------------------------


def read_recipe(setting: str, *, curated: str = CURATED_IMAGE) -> Recipe:
    """The recipe that the setting `environment` specifies. curated: the curated image, with its tag.

    Raises UsageError where there is no such file or folder, or its content is not valid.
    """
    if _is_curated(setting):
        made_from = f"curated image {curated.removeprefix('mcr.microsoft.com/azureml/curated/')}"
        files = read_context(DEFAULT_CONTEXT)
        base = f"FROM {curated}".encode()
        files[DOCKERFILE] = re.sub(rb"^FROM .*$", base, files[DOCKERFILE], count=1, flags=re.MULTILINE)
        if setting == CURATED:
            return Recipe(made_from, files=files, curated=curated)
        files[REQUIREMENTS] += _read_requirements(Path(setting))
        return Recipe(f"{made_from}, and {Path(setting).name}", files=files, curated=curated)
    if Path(setting).is_dir():
        return Recipe(f"folder {Path(setting).name}", files=read_context(Path(setting)))
    image, plus, path = setting.rpartition("+")
    if plus or Path(path).is_file() or path.endswith(CONDA_SUFFIXES):
        checked = _checked_image(image) if plus else CONDA_IMAGE
        return Recipe(f"conda file {Path(path).name}", image=checked, conda=_read_conda(Path(path)))
    return Recipe(f"image {setting}", image=_checked_image(setting))


def _is_curated(setting: str) -> bool:
    """Whether the environment is based on the curated image, whose newest version only the service knows."""
    return setting == CURATED or setting.endswith(".txt")


def _read_requirements(path: Path) -> bytes:
    """The lines of a requirements file, which must stand alone: options such as `-r other.txt` name other files."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError([f"environment {path}: cannot be read as a requirements file: {reason}."]) from error
    if other := next((line for line in lines if re.match(r"\s*(-r|-c|-e|--requirement|--constraint|\.)", line)), None):
        raise UsageError([f"environment {path}: {other.strip()} names another file; list the packages themselves."])
    return "\n".join([*lines, ""]).encode()


def _checked_image(image: str) -> str:
    if not IMAGE.fullmatch(image):
        raise UsageError(
            [f"environment {image}: must be {CURATED}, an existing file or folder, or an image with its tag."],
            f"Use {CURATED}, IMAGE:TAG such as python:3.11-slim, a conda file, or the folder of a Dockerfile.",
        )
    if image.endswith(":latest"):
        name = image.removesuffix(":latest")
        raise UsageError(
            [f"environment {image}: `latest` is another image after each update, also for a run that is resumed."],
            f"Use the tag of one version, {name}:TAG, or its digest, {name}@sha256:DIGEST, which this command prints:\n"
            f"docker buildx imagetools inspect {image}",
        )
    return image


def _read_conda(path: Path) -> str:
    """The text of a conda file that the SDK can read."""
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = Environment(image=CONDA_IMAGE, conda_file=str(path.absolute())).conda_file
    except (OSError, ValueError, AzureError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
        raise UsageError([f"environment {path}: cannot be read as a conda file: {reason}."]) from error
    if not isinstance(content, dict) or not isinstance(content.get("dependencies"), list):
        raise UsageError([f"environment {path}: is not a conda file: it has no list of dependencies."])
    return text


def read_context(folder: Path) -> dict[str, bytes]:
    """The files of a Dockerfile's folder by path, without hidden ones.

    Raises UsageError where they are more, or larger, than Azure ML allows.
    """
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
    ]
    links = [path for path in paths if path.is_symlink()]
    files = [path for path in paths if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    problems = [f"environment {link}: is a link, which cannot be uploaded." for link in links]
    if not (folder / DOCKERFILE).is_file():
        problems.append(f"environment {folder}: has no {DOCKERFILE}.")
    if len(files) > MAX_FILES:
        problems.append(f"environment {folder}: has {len(files)} files; Azure ML allows {MAX_FILES}.")
    if size > MAX_BYTES:
        problems.append(f"environment {folder}: has {size / 2**20:.1f} MiB; Azure ML allows {MAX_BYTES // 2**20} MiB.")
    if problems:
        raise UsageError(problems)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def build_environment(
    recipe: Recipe, *, conda_file: Path | None = None, context: str = "", tags: Mapping[str, str] | None = None
) -> Environment:
    """The environment for the SDK. conda_file, context: the recipe's, written to a file and uploaded to an URL."""
    return Environment(
        name=NAME,
        version=recipe.version,
        description=f"For msggan: {recipe.made_from}",
        tags={**(tags or {}), **PROVISIONED_TAG, **({CURATED_TAG: recipe.curated} if recipe.curated else {})},
        image=recipe.image or None,
        conda_file=str(conda_file) if recipe.conda else None,
        build=BuildContext(path=context, dockerfile_path=DOCKERFILE) if recipe.files else None,
    )


def builder_warning(client: Client, recipe: Recipe) -> str:
    """The warning that the workspace's builder may not reach its private registry; empty where there is no reason to.

    A registry behind a private endpoint is not known here; a workspace that is closed to the internet has one.
    """
    if not (recipe.files or recipe.conda) or not client.lacks_image_builder:
        return ""
    return (
        "Warning: the workspace is closed to the internet and names no cluster that builds images, so that the build "
        f"may fail. Name one: {workspace_command(client.workspace, 'update', '--image-build-compute', 'CLUSTER')}"
    )


def plan_environment(
    recipe: Recipe, existing: Environment | None, *, is_archived: bool = False, warning: str = ""
) -> Item:
    """What to do about the environment. Makes no requests. warning: of the image's build, shown with a new one."""
    name = f"{NAME}:{recipe.version}"
    if existing is None:
        changes = {"made_from": {"from": None, "to": recipe.made_from}}
        costs = (
            ("The image is built before the first job that uses it, in about 20 minutes on the workspace's builder.",)
            if recipe.files or recipe.conda
            else ()
        )
        return Item(KIND, name, "create", changes, costs=(*costs, *filter(None, [warning])))
    if is_archived:
        return Item(KIND, name, "change", {"archived": {"from": True, "to": False}}, recipe.made_from)
    return Item(KIND, name, "keep", reason=recipe.made_from)


# --- With the service -------------------------------------------------------------------------------------------------


def ensure_job_environment(client: Client, before: str) -> str:
    """The ID of the environment for a job. before: that of the job that it continues, empty for a new run.

    A run keeps its environment, so that resuming it neither changes PyTorch nor builds an image, unless the setting
    specifies another one. `curated` and its requirements files do not specify another version of the curated image,
    whose newest version a new run gets, as it was when the first one of the day was submitted.
    """
    kept = OURS.fullmatch(before)
    existing = _read_version(client, kept["version"]) if kept else None
    if kept is None or existing is None:
        what = f"environment {read_recipe(client.settings.environment).version}"
        return once_a_day(client, what, lambda: ensure_environment(client, resolve_recipe(client)))
    curated = (existing.tags or {}).get(CURATED_TAG, "")
    setting, is_default = client.settings.environment, client.settings.source("environment") == "default"
    if is_default or (setting == CURATED and curated):
        client.reporter.info(f"Using the environment of its last job, {NAME}:{kept['version']}.")
        return f"azureml:{NAME}:{kept['version']}"
    return ensure_environment(client, resolve_recipe(client, curated))


def resolve_recipe(client: Client, curated: str = "") -> Recipe:
    """The recipe that the setting `environment` specifies. curated: the curated image; empty: its newest version."""
    setting = client.settings.environment
    if not _is_curated(setting):
        recipe = read_recipe(setting)
        for image in MOVING.findall(recipe.files.get(DOCKERFILE, b"")):
            client.reporter.info(
                f"Warning: {setting}/{DOCKERFILE} is based on {image.decode(errors='replace')}, which changes without "
                "a new version of the environment. Use a tag of one version, or a digest."
            )
        return recipe
    return read_recipe(setting, curated=curated or newest_curated_image(client))


def newest_curated_image(client: Client) -> str:
    """The image of the newest version of the curated environment, as the registry names it."""
    operation, registry = f"Reading the newest version of {CURATED_NAME}", client.registry(REGISTRY)
    newest = client.find(operation, lambda: registry.environments.get(CURATED_NAME, label="latest"))
    if newest is None:
        raise UsageError(
            [f"The registry {REGISTRY} has no environment {CURATED_NAME} any more."],
            "Use another image that has Python and PyTorch: --environment IMAGE:TAG, or IMAGE:TAG+FILE.yml",
        )
    image = str(newest.image or "")
    # The registry may name only what the image was built from. Microsoft publishes it with the version as its tag.
    return image if IMAGE.fullmatch(image) else f"{CURATED_IMAGE}:{newest.version}"


def read_environment(client: Client, recipe: Recipe) -> Environment | None:
    """The environment of that version, None if it does not exist."""
    return _read_version(client, recipe.version)


def _read_version(client: Client, version: str) -> Environment | None:
    return client.find(
        f"Looking for the environment {NAME}:{version}", lambda: client.ml.environments.get(NAME, version=version)
    )


def ensure_environment(client: Client, recipe: Recipe) -> str:
    """Creates the environment if it does not exist. Returns the ID by which a job refers to it."""
    if read_environment(client, recipe) is not None:
        return recipe.reference
    context = ""
    if recipe.files:
        store = client.store(None)
        with client.errors(f"Uploading {len(recipe.files)} files to the datastore {store.datastore}"):
            context = store.upload_files(CONTEXT_FOLDER, recipe.files) + "/"  # which the image builder needs
    with tempfile.TemporaryDirectory() as folder, client.errors(f"Creating the environment {NAME}:{recipe.version}"):
        conda_file = Path(folder) / CONDA_FILE
        conda_file.write_text(recipe.conda, encoding="utf-8")
        tags = client.settings.tags
        environment = build_environment(recipe, conda_file=conda_file, context=context, tags=tags)
        try:
            with redirect_stderr(io.StringIO()):  # the SDK always prints colour codes there
                client.ml.environments.create_or_update(environment)
        except ResourceExistsError:  # somebody else created it at the same time, with the same content
            if read_environment(client, recipe) is None:
                raise
    return recipe.reference


def restore_environment(client: Client, recipe: Recipe) -> None:
    with client.errors(f"Restoring the environment {NAME}:{recipe.version} from the archive"):
        client.ml.environments.restore(NAME, version=recipe.version)


def read_versions(client: Client) -> list[str]:
    """The versions of our environment that were created here, without those in the archive."""
    operation = f"Listing the environment {NAME}"
    versions = client.find(operation, lambda: list(client.ml.environments.list(NAME)))
    return [str(found.version) for found in versions or () if is_provisioned(found.tags)]


def plan_environment_deletion(versions: list[str]) -> Item:
    """What to do about our environment's versions, at least one: Azure ML archives them, so old jobs keep theirs."""
    count = f"{len(versions)} version{'s' if len(versions) > 1 else ''}"
    return Item(KIND, NAME, "delete", reason=f"{count}; Azure ML keeps them in its archive, at no cost")


def archive_environments(client: Client, versions: list[str]) -> None:
    for version in versions:
        with client.errors(f"Archiving the environment {NAME}:{version}"):
            client.ml.environments.archive(NAME, version=version)
