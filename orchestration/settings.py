"""The settings: their help, ranges and defaults, and how they are read.

A setting NAME is set by a keyword of `Target.from_config` or the flag --name, else the variable MSGGAN_NAME, else NAME
under [azure] in the nearest msggan.toml, else its default. The three parts of the workspace come from one source, the
first that sets any of them: keywords, flags, variables, then msggan.toml or Azure ML's config.json in the nearest
folder. Notebooks read the same settings, so click only declares the flags (`orchestration.commands.terminal`).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from msggan.commands.program import NO_TRACKING, TRACKING_VARIABLES, default_tracking_uri, tracking_uri_complaint
from msggan.config import KINDS, Range, flag
from msggan.errors import UsageError
from orchestration.data_source import WorkspaceName
from orchestration.money import Amount
from orchestration.pairs import SECRET_NAME, SECRET_VALUE, pair_problems, read_pairs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME = "msggan.toml"
SETTINGS_TABLE, WORKSPACE_TABLE = "azure", "workspace"
WORKSPACE_VARIABLES = {
    "subscription_id": "AZUREML_ARM_SUBSCRIPTION",
    "resource_group": "AZUREML_ARM_RESOURCEGROUP",
    "workspace_name": "AZUREML_ARM_WORKSPACE_NAME",
}
# The one-line form of a workspace that `az configure` writes to config.json.
SCOPE = re.compile(
    r"/subscriptions/(?P<subscription_id>[^/]+)/resourceGroups/(?P<resource_group>[^/]+)"
    r"/providers/Microsoft\.MachineLearningServices/workspaces/(?P<workspace_name>[^/]+)",
    re.IGNORECASE,
)

# Secrets are read from these variables only: files get copied and committed, command lines are visible to all users.
SECRETS = ("MSGGAN_STORAGE_KEY", "MSGGAN_STORAGE_SAS")
BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}

# The values of flags by name; None, or () for one that may be repeated: not given.
Flags = Mapping[str, str | bool | tuple[str, ...] | None]


# --- The settings -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """The metadata of a setting.

    required: its pattern as text. also: variables that are read after its own. normalize: the text of a value, which
    may also be a number in msggan.toml; raises ValueError. flag: if it is not `--name-with-dashes`. kind: dict for a
    setting that has several values, NAME=VALUE each.
    """

    help: str
    default: Any = None
    range: Range | None = None
    pattern: str = ".+"
    required: str = "non-empty text"
    also: tuple[str, ...] = ()
    flag: str = ""
    normalize: Callable[[Any], str] | None = None
    name: str = ""
    kind: type = str

    @property
    def variables(self) -> tuple[str, ...]:
        return (f"MSGGAN_{self.name.upper()}", *self.also)


def _setting(help: str, default: Any = None, range: Range | None = None, **metadata: Any) -> Any:  # noqa: A002
    return field(metadata={"setting": Setting(help, default, range, **metadata)})


def _in_order(pattern: str, value: Any) -> str:
    """Values in order of preference, separated by commas; msggan.toml and Python may have a list. Raises ValueError."""
    names = [name.strip() for name in (value.split(",") if isinstance(value, str) else value)]
    if len({name.lower() for name in names}) < max(1, len(names)):
        raise ValueError(value)
    if not all(re.fullmatch(pattern, name) for name in names):
        raise ValueError(value)
    return ",".join(names)


NAME: dict[str, Any] = {
    "pattern": r"[A-Za-z0-9][A-Za-z0-9_-]{0,254}",
    "required": "letters, digits, - and _, and start with a letter or digit",
}
SIZES: dict[str, Any] = {
    "normalize": partial(_in_order, r"[A-Za-z]+_[A-Za-z0-9_]+"),
    "required": "a size such as Standard_NC4as_T4_v3, or several different ones separated by commas",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting, as `read_settings` found it; None: not set. secrets: by variable, whether it is set."""

    runs_dir: str = _setting("The folder that contains the run folders.", "runs")
    tracking_uri: str = _setting(
        f"The MLflow tracking URI; `{NO_TRACKING}` turns tracking off. Default: mlflow.db in the folder of the runs.",
        also=TRACKING_VARIABLES[1:],
    )
    compute: str = _setting(
        "The compute cluster to train on.",
        "msggan-gpu",
        pattern=r"[A-Za-z][A-Za-z0-9-]{1,22}[A-Za-z0-9]",
        required="3 to 24 letters, digits and -, start with a letter and not end with -",
    )
    vm_size: str = _setting(
        "The size of the cluster's machines. Several, separated by commas: the first that is offered and has quota.",
        "Standard_NC4as_T4_v3",
        **SIZES,
    )
    min_nodes: int = _setting(
        "The number of machines that the cluster keeps when idle. More than 0 costs money around the clock.",
        0,
        Range(0, 1000),
    )
    max_nodes: int = _setting("The maximum number of the cluster's machines.", 1, Range(1, 1000))
    idle_minutes: int = _setting("The minutes without a job after which a machine is released.", 2, Range(1, 1440))
    low_priority: bool = _setting("Use cheaper machines, which Azure may reclaim at any time.", False)
    identity: str = _setting(
        "The identity of the cluster's machines: `none`, `system` (its own) or the resource ID of a managed identity.",
        "none",
        pattern=r"none|system|/subscriptions/[^/]+/resource[Gg]roups/[^/]+/providers/[^/]+/userAssignedIdentities/[^/]+",
        required="none, system or /subscriptions/…/userAssignedIdentities/NAME",
    )
    location: str | None = _setting(
        "The region of the cluster, or several as for --vm-size. Default: the workspace's.",
        normalize=partial(_in_order, r"[a-z0-9]+"),
        required="a region as Azure writes it, such as westeurope, or several different ones separated by commas",
    )
    subnet: str | None = _setting(
        "The subnet of the cluster's machines, by its resource ID: az network vnet subnet show --query id.",
        pattern=r"/subscriptions/[^/]+/resource[Gg]roups/[^/]+/providers/[^/]+/virtual[Nn]etworks/[^/]+/subnets/[^/]+",
        required="/subscriptions/…/virtualNetworks/NETWORK/subnets/SUBNET",
    )
    public_ip: bool = _setting("Give the cluster's machines public IP addresses.", True)
    instance_type: str | None = _setting(
        "Train on serverless compute of this size, or of several the first with quota, instead of the cluster.", **SIZES
    )
    storage_account: str | None = _setting(
        "The storage account of the datastore. Default: the workspace's own.",
        pattern=r"[a-z0-9]{3,24}",
        required="3 to 24 lowercase letters and digits",
    )
    storage_container: str | None = _setting(
        "The blob container of the datastore, in that account.",
        pattern=r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*",
        required="3 to 63 lowercase letters, digits and single -",
    )
    datastore: str | None = _setting(
        "The datastore of images and runs. Default: msggan if storage_account is set, else the workspace's own.", **NAME
    )
    data_mode: str = _setting(
        "How jobs get the images: `download` to the machine, `mount`, or `auto`: download what is small.",
        "auto",
        pattern="auto|download|mount",
        required="auto, download or mount",
    )
    environment: str = _setting(
        "Environment of jobs: `curated`, an image, a requirements or conda file, IMAGE+FILE or Dockerfile's folder.",
        "curated",
    )
    experiment: str = _setting("The experiment that jobs are listed under.", "msggan", **NAME)
    description: str | None = _setting("The description of the job in Azure ML studio.")
    timeout_hours: float = _setting("The maximum duration of a job, in hours.", 24.0, Range(0, 504, low_included=False))
    tags: Mapping[str, str] = _setting(
        "A tag of jobs and of what provision creates, added to those in msggan.toml. May be repeated.", flag="--tag"
    )
    env: Mapping[str, str] = _setting(
        "An environment variable of jobs. Of a secret only its address, from which the job reads it: "
        "NAME=@keyvault:https://VAULT.vault.azure.net/secrets/SECRET. May be repeated.",
        flag="--env",
    )
    services: str | None = _setting(
        "How to enter the running job, separated by commas: `ssh`, `vscode`, `jupyter`, `tensorboard`. Not for sweeps.",
        pattern=r"(ssh|vscode|jupyter|tensorboard)(,(ssh|vscode|jupyter|tensorboard))*",
        required="ssh, vscode, jupyter or tensorboard, or several of them separated by commas",
        flag="--service",
    )
    ssh_key: str | None = _setting("The file of the public key that may enter by `ssh`, such as ~/.ssh/id_ed25519.pub.")

    max_cost: str | None = _setting(
        "The maximum cost of a job, or of a sweep with all its trials; limits their time. US dollars, or as 4.50EUR.",
        required="an amount above 0, in US dollars or with its currency, such as 5, 5USD or 4.50EUR",
        normalize=lambda value: Amount.parse(value).as_setting(),
    )

    workspace: Workspace | None
    sources: Mapping[str, str]
    secrets: Mapping[str, bool]

    def source(self, name: str) -> str:
        """Where a setting is set: `flag --runs-dir`, `variable MSGGAN_RUNS_DIR`, a file's path or `default`."""
        return self.sources[name]

    def as_json(self) -> dict[str, Any]:
        """All settings and their sources, without secrets."""
        return {
            "workspace": self.workspace.as_json() if self.workspace else None,
            "settings": {
                spec.name: {"value": without_secrets(getattr(self, spec.name)), "source": self.sources[spec.name]}
                for spec in settings_table()
            },
            "secrets": dict(self.secrets),
        }

    def as_rows(self) -> list[tuple[str, str, str]]:
        """The same as rows of name, value and source."""
        sources = self.workspace.sources if self.workspace else {}
        rows = [(key, getattr(self.workspace, key, None), sources.get(key, "")) for key in WORKSPACE_VARIABLES]
        rows += [(name, entry["value"], entry["source"]) for name, entry in self.as_json()["settings"].items()]
        rows += [(name, "set" if is_set else None, "") for name, is_set in self.secrets.items()]
        return [
            (name, "not set" if value in (None, {}) else format_value(value), source) for name, value, source in rows
        ]


@dataclass(frozen=True)
class Workspace(WorkspaceName):
    """The workspace in the settings. sources: by part, where it is set."""

    sources: Mapping[str, str]

    @property
    def source(self) -> str:
        """Where the workspace's name is set."""
        return self.sources["workspace_name"]

    def as_json(self) -> dict[str, str]:
        return {**{key: getattr(self, key) for key in WORKSPACE_VARIABLES}, "source": self.source}


@cache
def settings_table() -> tuple[Setting, ...]:
    """Every setting, in the order in which they are shown."""
    hints = get_type_hints(Settings)
    return tuple(
        replace(
            spec.metadata["setting"],
            name=spec.name,
            kind=_kind(hints[spec.name]),
        )
        for spec in fields(Settings)
        if spec.metadata
    )


def _kind(hint: Any) -> type:
    """`str` for `str | None`, `dict` for `Mapping[str, str]`."""
    return dict if get_origin(hint) is Mapping else next(iter(get_args(hint)), hint)


KEYS_OF = {SETTINGS_TABLE: [spec.name for spec in settings_table()], WORKSPACE_TABLE: list(WORKSPACE_VARIABLES)}


def without_secrets(value: Any) -> Any:
    """An address without user, password and the values of its query; any other value unchanged."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(?<=[?&])([^=&]+)=[^&]*", r"\1=***", re.sub(r"//[^/@]*@", "//***@", value))


def format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={text}" for name, text in value.items())
    if isinstance(value, list):
        return ",".join(map(format_value, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


# The settings that are options of submit and sweep, in the order of their help.
JOB_SETTINGS = (
    *("runs_dir", "tracking_uri", WORKSPACE_TABLE, "compute", "instance_type", "low_priority", "timeout_hours"),
    "max_cost",
    *("environment", "datastore", "data_mode", "experiment", "description", "tags", "env"),
)


# --- Reading them -----------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """The values of one source, by name.

    origin: `keyword`, `flag`, `variable`, `default` or the path of a file. label: how the source writes a name, for
    messages. is_typed: values have their types already. folder: the base of relative paths, None for the current one.
    """

    origin: str
    values: Mapping[str, Any]
    label: Callable[[str], str] = str
    is_typed: bool = True
    folder: Path | None = None

    def source(self, name: str) -> str:
        """Where a setting is set, as `config show` prints it."""
        return f"{self.origin} {self.label(name)}" if self.origin in ("keyword", "flag", "variable") else self.origin


def read_settings(
    flags: Flags, *, folder: Path, environ: Mapping[str, str], keywords: Mapping[str, Any] | None = None
) -> Settings:
    """The settings in a folder and an environment. Raises UsageError with every problem.

    keywords: values from Python code; they take precedence.
    """
    folder, keywords = folder.absolute(), keywords or {}
    known = [key for keys in KEYS_OF.values() for key in keys]
    problems = [f"{key}: is not a setting.{_suggestion(key, known)}" for key in keywords if key not in known]
    file, tables = _read_file(folder, problems)
    explicit = [_keywords_layer(keywords), _flags_layer(flags), _variables_layer(environ)]
    defaults = Layer("default", {spec.name: spec.default for spec in settings_table()})
    layers = [*explicit, _file_layer(file, SETTINGS_TABLE, tables, folder), defaults]
    having = {spec.name: [layer for layer in layers if spec.name in layer.values] for spec in settings_table()}
    chosen = {name: found[0] for name, found in having.items()}
    values: dict[str, Any] = {
        spec.name: _merged(spec, layers, problems) if spec.kind is dict else _checked(spec, chosen[spec.name], problems)
        for spec in settings_table()
    }
    layer = next(_workspace_layers(explicit, folder, file, tables, problems), None)
    workspace = None if layer is None else _workspace(layer, problems)
    problems = problems or _cross_field_errors(values, chosen)
    if problems:
        raise UsageError(problems)
    values["tracking_uri"] = values["tracking_uri"] or default_tracking_uri(values["runs_dir"])
    values["datastore"] = values["datastore"] or ("msggan" if values["storage_account"] else None)
    return Settings(
        **values,
        workspace=workspace,
        sources={spec.name: _sources(spec, having[spec.name]) for spec in settings_table()},
        secrets={name: bool(environ.get(name)) for name in SECRETS},
    )


def with_keyword(settings: Settings, name: str, value: Any) -> Settings:
    """The settings with one that is set by a keyword. Raises UsageError if its value is invalid."""
    (spec,) = (spec for spec in settings_table() if spec.name == name)
    layer = _keywords_layer({name: value})
    problems: list[str] = []
    checked = _checked(spec, layer, problems)
    if problems:
        raise UsageError(problems)
    changed: Any = {name: checked}
    return replace(settings, **changed, sources={**settings.sources, name: layer.source(name)})


def _keywords_layer(keywords: Mapping[str, Any]) -> Layer:
    set_values = {name: value for name, value in keywords.items() if value is not None}
    paths = {name: os.fspath(value) for name, value in set_values.items() if isinstance(value, os.PathLike)}
    return Layer("keyword", set_values | paths)


def _flags_layer(flags: Flags) -> Layer:
    set_values = {name: value for name, value in flags.items() if value not in (None, ())}
    own = {spec.name: spec.flag for spec in settings_table() if spec.flag}
    return Layer(
        "flag",
        set_values,
        lambda name: own.get(name) or flag(f"no_{name}" if flags.get(name) is False else name),
        is_typed=False,
    )


def _variables_layer(environ: Mapping[str, str]) -> Layer:
    """The variables that are set and not empty."""
    variables = {spec.name: spec.variables for spec in settings_table()}
    variables |= {key: (variable,) for key, variable in WORKSPACE_VARIABLES.items()}
    first = {name: next(filter(environ.get, names), names[0]) for name, names in variables.items()}
    values = {name: environ[variable] for name, variable in first.items() if environ.get(variable)}
    return Layer("variable", values, lambda name: first[name], is_typed=False)


def _file_layer(path: Path, table: str, tables: Mapping[str, Mapping[str, Any]], folder: Path) -> Layer:
    prefix = "" if table == SETTINGS_TABLE else f"[{table}] "
    base = None if path.parent == folder else path.parent
    return Layer(str(path), tables.get(table, {}), lambda name: f"{path}: {prefix}{name}", folder=base)


def _checked(spec: Setting, layer: Layer, problems: list[str]) -> Any:
    """The converted value of a setting; adds a problem if it is invalid."""
    value, label = layer.values[spec.name], layer.label(spec.name)
    if value is None:
        return None  # not set
    # Only a variable may hold the address of a tracking server with its password.
    may_be_secret = spec.name == "tracking_uri" and layer.origin == "variable"
    if isinstance(value, str) and SECRET_VALUE.search(value) and not may_be_secret:
        variables = spec.variables if spec.name == "tracking_uri" else SECRETS
        problems.append(f"{label}: contains a secret. Set secrets only in variables: {' or '.join(variables)}.")
        return None
    try:
        if spec.normalize is not None:
            return spec.normalize(value)
    except (ValueError, TypeError, AttributeError):
        problems.append(f"{label} {without_secrets(format_value(value))}: must be {spec.required}.")
        return None
    try:
        converted = _converted(value, spec.kind, is_typed=layer.is_typed)
    except (KeyError, ValueError, OverflowError):
        hint = ""
        if layer.origin.endswith(FILE_NAME) and (spec.kind is str) != isinstance(value, str):
            hint = f": in a file it must {'' if spec.kind is str else 'not '}have quotes"
        problems.append(f"{label} {format_value(value)}: is not {KINDS[spec.kind]}{hint}.")
        return None
    if complaint := _complaint(spec, converted):
        problems.append(f"{label} {without_secrets(format_value(value))}: {complaint}")
    return converted if layer.folder is None else _from_folder(spec.name, converted, layer.folder)


def _merged(spec: Setting, layers: Iterable[Layer], problems: list[str]) -> dict[str, str]:
    """The names and values of all sources, of which the first with a name wins; adds a problem for each that is wrong.

    Values, which may be secret, are not shown.
    """
    found: dict[str, str] = {}
    for layer in layers:
        label, value = layer.label(spec.name), layer.values.get(spec.name)
        if layer.is_typed and not isinstance(value or {}, Mapping):
            problems.append(f"{label}: must be a table of names and values in quotes.")
            continue
        for name, text in read_pairs(value or ()):
            if text is None:
                quoted = ", with the value in quotes" if layer.is_typed else ""
                problems.append(f"{label} {_shown(name)}: must be NAME=VALUE{quoted}.")
                continue
            problems += [f"{label} {name}: {problem}" for problem in pair_problems(spec.name, name, text)]
            found.setdefault(name, text)
    return found


def _sources(spec: Setting, layers: Sequence[Layer]) -> str:
    """Where a setting is set. layers: those that set it, by precedence, and at last its default."""
    used = layers[:-1] if spec.kind is dict else layers[:1]
    return ", ".join(layer.source(spec.name) for layer in used or layers)


def _shown(name: str) -> str:
    return "***" if SECRET_VALUE.search(name) else name


def _converted(value: Any, kind: type, *, is_typed: bool) -> Any:
    """The value converted to its type. Raises KeyError, ValueError or OverflowError if it is invalid."""
    if type(value) is kind:
        return value
    if is_typed and not (kind is float and type(value) is int):
        raise ValueError(value)
    return BOOLEANS[value.lower()] if kind is bool else kind(value)


def _complaint(spec: Setting, value: Any) -> str:
    """What is wrong with a value of the right type, as the end of a sentence."""
    if spec.range is not None:
        return "" if value in spec.range else f"must be {spec.range}."
    if spec.kind is str and not re.fullmatch(spec.pattern, value):
        return f"must be {spec.required}."
    return tracking_uri_complaint(value) if spec.name == "tracking_uri" else ""


def _from_folder(name: str, value: Any, folder: Path) -> Any:
    """A path relative to `folder` as an absolute one; any other value unchanged."""
    if name == "runs_dir":
        return str(folder / value)
    if name == "ssh_key":
        return str(folder / Path(value).expanduser())
    if name == "tracking_uri" and value.startswith("sqlite:///"):
        return "sqlite:///" + (folder / value.removeprefix("sqlite:///")).as_posix()
    if name == "environment":
        image, plus, path = value.rpartition("+")
        if os.path.exists(folder / path):  # otherwise it is the name of an image
            return f"{image}{plus}{folder / path}"
    return value


def _cross_field_errors(values: Mapping[str, Any], layers: Mapping[str, Layer]) -> list[str]:
    """The problems of values that are valid separately but not together."""
    problems = []
    if values["min_nodes"] > values["max_nodes"]:
        problems.append(
            f"{layers['min_nodes'].label('min_nodes')} {values['min_nodes']}: must be at most max_nodes, which is "
            f"{values['max_nodes']} ({layers['max_nodes'].source('max_nodes')})."
        )
    for name, other in (("storage_account", "storage_container"), ("storage_container", "storage_account")):
        if values[name] is not None and values[other] is None:
            problems.append(f"{layers[name].label(name)} {values[name]}: requires {other} too.")
    if ("ssh" in (values["services"] or "").split(",")) != (values["ssh_key"] is not None):
        problems.append("--service ssh and --ssh-key FILE.pub require each other: only that key may enter the job.")
    return problems


# --- The workspace ----------------------------------------------------------------------------------------------------


def _workspace_layers(
    explicit: list[Layer], folder: Path, file: Path, tables: Mapping[str, Mapping[str, Any]], problems: list[str]
) -> Iterator[Layer]:
    """The sources that set a workspace, by precedence. In one folder msggan.toml precedes Azure ML's config.json.

    Adds a problem for a broken config.json: without it, runs would train on this machine or in another workspace.
    """
    yield from (layer for layer in explicit if any(key in layer.values for key in WORKSPACE_VARIABLES))
    for parent in (folder, *folder.parents):
        if file.parent == parent and WORKSPACE_TABLE in tables:
            yield _file_layer(file, WORKSPACE_TABLE, tables, folder)
        for path in (parent / ".azureml" / "config.json", parent / "config.json"):
            try:
                parts = _read_config_json(path)
            except ValueError as error:
                problems.append(f"{path}: {error}")
                return
            if parts:
                yield Layer(str(path), parts, partial("{}: {}".format, path))


def _workspace(layer: Layer, problems: list[str]) -> Workspace | None:
    """The workspace of a source, which must have all three parts; adds a problem for each part that is missing."""
    parts = {key: layer.values[key] for key in WORKSPACE_VARIABLES if key in layer.values}
    found = [
        f"{layer.label(key)}: is not set; a workspace requires all three parts."
        for key in WORKSPACE_VARIABLES
        if key not in parts
    ]
    for key, value in parts.items():
        if not (isinstance(value, str) and re.fullmatch(r"[^\s/?#]+", value)):
            found.append(f"{layer.label(key)} {value}: must be a name without spaces and slashes.")
    problems += found
    return None if found else Workspace(**parts, sources={key: layer.source(key) for key in parts})


def _read_config_json(path: Path) -> dict[str, Any]:
    """The parts of the workspace in a config.json of Azure ML; {} for other files of that name, such as a run's.

    Raises ValueError with the end of a message if it is Azure ML's and cannot be read.
    """
    again = "Download it again from Azure ML Studio, or delete it."
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return {}
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}.") from error
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        if not raw.strip():
            raise ValueError(f"is empty. {again}") from error
        if any(key.encode() in raw for key in WORKSPACE_VARIABLES):
            raise ValueError(f"is not JSON: {str(error).partition(' (char')[0]}. {again}") from error
        return {}
    if not isinstance(content, dict):
        return {}
    scope = str(content.get("Scope", ""))
    if workspace := SCOPE.fullmatch(scope):
        return workspace.groupdict()
    if scope.startswith("/subscriptions/"):
        raise ValueError(f"Scope is not the resource ID of a workspace. {again}")
    return {key: content[key] for key in WORKSPACE_VARIABLES if key in content}


# --- msggan.toml ------------------------------------------------------------------------------------------------------


def _read_file(folder: Path, problems: list[str]) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The nearest msggan.toml in `folder` or above it, and its tables; adds every problem with it."""
    candidates = [parent / FILE_NAME for parent in (folder, *folder.parents)]
    path = next(filter(os.path.lexists, candidates), None)
    if path is None:
        return candidates[0], {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror or error}.")
    except UnicodeDecodeError:
        problems.append(f"{path}: is not UTF-8 text.")
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits raises only ValueError
        problems.append(f"{path}: is not TOML: {error}.")
    else:
        problems += [f"{path}: {problem}" for problem in _misplaced(content)]
        return path, {name: table for name, table in content.items() if name in KEYS_OF and isinstance(table, dict)}
    return path, {}


def _misplaced(content: Mapping[str, Any]) -> Iterator[str]:
    """A message for each unknown table and key. Their values, which may be secret, are not shown."""
    for name, table in content.items():
        if name not in KEYS_OF:
            yield _unknown_key(name, "")
        elif not isinstance(table, dict):
            yield f"{name} must be a table: write [{name}] on a line of its own."
        else:
            yield from (_unknown_key(key, name) for key in table if key not in KEYS_OF[name])


def _unknown_key(key: str, table: str) -> str:
    """The message for a key in a table, or for a top-level key or table if `table` is empty."""
    shown = f"[{table}] {key}" if table else key
    if SECRET_NAME.search(key):
        return f"{shown}: secrets are not allowed in a file. Set the variable {' or '.join(SECRETS)} instead."
    home = next((name for name, keys in KEYS_OF.items() if key in keys), None)
    if home is not None:
        return f"{shown}: belongs under [{home}]."
    return f"{shown}: is unknown.{_suggestion(key, KEYS_OF[table] if table else KEYS_OF)}"


def _suggestion(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, names, n=1, cutoff=0.4)
    return f" Did you mean {near[0]}?" if near else ""
