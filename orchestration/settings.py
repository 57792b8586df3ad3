"""The settings: their help, ranges and defaults, and how they are read.

A setting NAME is set by a keyword of `Target.from_config` or the flag --name, else the variable MSGGAN_NAME, else NAME
under [azure] in the nearest msggan.toml, else its default. The three parts of the workspace come from one source, the
first that sets any of them: keywords, flags, variables, then msggan.toml or Azure ML's config.json in the nearest
folder.

click only declares the flags. It could read all but the keywords, but a notebook reads the same settings without a
command line, and click stops at the first wrong value without naming its source.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cache, wraps
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

from msggan.commands.options import AZURE, WHERE, option
from msggan.commands.program import NO_TRACKING, TRACKING_VARIABLES, tracking_uri_complaint
from msggan.config import KINDS, Range, flag
from msggan.errors import UsageError

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
WORKSPACE_HELP = {
    "subscription_id": "The subscription of the Azure ML workspace.",
    "resource_group": "The resource group of the Azure ML workspace.",
    "workspace_name": "The name of the Azure ML workspace.",
}
# The one-line form of a workspace that `az configure` writes to config.json.
SCOPE = re.compile(
    r"/subscriptions/(?P<subscription_id>[^/]+)/resourceGroups/(?P<resource_group>[^/]+)"
    r"/providers/Microsoft\.MachineLearningServices/workspaces/(?P<workspace_name>[^/]+)",
    re.IGNORECASE,
)

# Secrets are read from these variables only: files get copied and committed, command lines are visible to all users.
SECRETS = ("MSGGAN_STORAGE_KEY", "MSGGAN_STORAGE_SAS")
SECRET_KEY = re.compile(
    r"(?:^|[_-])(?:keys?|sas|passwords?|pwd|secrets?|tokens?|credentials?|connection[_-]?string)(?:$|[_-])",
    re.IGNORECASE,
)
# A key in a connection string, a signature in an address, a password before a host, or a bare account key.
SECRET_VALUE = re.compile(r"AccountKey=|SharedAccess\w*=|[?&]sig=|//[^/@]*:[^/@]*@|[A-Za-z0-9+/]{86}==", re.IGNORECASE)
BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}

Flags = Mapping[str, str | bool | None]  # the values of flags by name; None: not given
SomeCommand = Callable[..., Any]


# --- The settings -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """The metadata of a setting. required: its pattern as text. also: variables that are read after its own."""

    help: str
    default: Any = None
    range: Range | None = None
    pattern: str = ".+"
    required: str = "non-empty text"
    also: tuple[str, ...] = ()
    name: str = ""
    kind: type = str

    @property
    def variables(self) -> tuple[str, ...]:
        return (f"MSGGAN_{self.name.upper()}", *self.also)


def _setting(help: str, default: Any = None, range: Range | None = None, **metadata: Any) -> Any:  # noqa: A002
    return field(metadata={"setting": Setting(help, default, range, **metadata)})


NAME: dict[str, Any] = {
    "pattern": r"[A-Za-z0-9][A-Za-z0-9_-]{0,254}",
    "required": "letters, digits, - and _, and start with a letter or digit",
}
SIZE: dict[str, Any] = {
    "pattern": r"[A-Za-z0-9_]+",
    "required": "a size such as Standard_NC4as_T4_v3: letters, digits and _",
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
    vm_size: str = _setting("The size of the cluster's machines.", "Standard_NC4as_T4_v3", **SIZE)
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
        "The region of the cluster. Default: the workspace's.",
        pattern=r"[a-z0-9]+",
        required="a region as Azure writes it, such as westeurope",
    )
    instance_type: str | None = _setting("Train on serverless compute of this size instead of the cluster.", **SIZE)
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
    environment: str = _setting(
        "Environment of jobs: `curated`, an image, a requirements or conda file, IMAGE+FILE or Dockerfile's folder.",
        "curated",
    )
    experiment: str = _setting("The experiment that jobs are listed under.", "msggan", **NAME)
    description: str | None = _setting("The description of the job in Azure ML studio.")
    timeout_hours: float = _setting("The maximum duration of a job, in hours.", 24.0, Range(0, 504, low_included=False))

    workspace: Workspace | None
    sources: Mapping[str, str]
    secrets: Mapping[str, bool]

    def source(self, name: str) -> str:
        """Where a setting is set: `flag --runs-dir`, `variable MSGGAN_RUNS_DIR`, a file's path or `default`."""
        return self.sources[name]

    def as_json(self) -> dict[str, Any]:
        """All settings and their sources, without secrets."""
        shown = {spec.name: without_secrets(getattr(self, spec.name)) for spec in settings_table()}
        return {
            "workspace": self.workspace.as_json() if self.workspace else None,
            "settings": {name: {"value": value, "source": self.sources[name]} for name, value in shown.items()},
            "secrets": dict(self.secrets),
        }

    def as_rows(self) -> list[tuple[str, str, str]]:
        """The same as rows of name, value and source."""
        sources = self.workspace.sources if self.workspace else {}
        rows = [(key, getattr(self.workspace, key, None), sources.get(key, "")) for key in WORKSPACE_VARIABLES]
        rows += [(name, one["value"], one["source"]) for name, one in self.as_json()["settings"].items()]
        rows += [(name, "set" if is_set else None, "") for name, is_set in self.secrets.items()]
        return [(name, "not set" if value is None else _written(value), source) for name, value, source in rows]


@dataclass(frozen=True)
class Workspace:
    """An Azure ML workspace. sources: by part, where it is set."""

    subscription_id: str
    resource_group: str
    workspace_name: str
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
            kind=next(iter(get_args(hints[spec.name])), hints[spec.name]),  # `str` for `str | None`
        )
        for spec in fields(Settings)
        if spec.metadata
    )


KEYS_OF = {SETTINGS_TABLE: [spec.name for spec in settings_table()], WORKSPACE_TABLE: list(WORKSPACE_VARIABLES)}
KNOWN = [key for keys in KEYS_OF.values() for key in keys]


def without_secrets(value: Any) -> Any:
    """An address without user, password and the values of its query; any other value as it is."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(?<=[?&])([^=&]+)=[^&]*", r"\1=***", re.sub(r"//[^/@]*@", "//***@", value))


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


# The settings that are options of submit and sweep, in the order of their help.
JOB_SETTINGS = (
    *("runs_dir", "tracking_uri", WORKSPACE_TABLE, "compute", "instance_type", "low_priority", "timeout_hours"),
    *("environment", "datastore", "experiment", "description"),
)


# --- Reading them -----------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """The values of one source, by name. source, label: of a setting, for `config show` and for messages.

    is_typed: values have their types already. folder: the base of relative paths, None for the current folder.
    """

    values: Mapping[str, Any]
    source: Callable[[str], str]
    label: Callable[[str], str]
    is_typed: bool = False
    folder: Path | None = None


_NO_LAYER = Layer({}, str, str)


def read_settings(
    flags: Flags, *, folder: Path, environ: Mapping[str, str], keywords: Mapping[str, Any] | None = None
) -> Settings:
    """The settings in a folder and an environment. Raises UsageError with every problem.

    keywords: values from Python code; they take precedence.
    """
    folder, keywords = folder.absolute(), keywords or {}
    path, tables, problems = _read_file(folder)
    explicit = [_keywords_layer(keywords), _flags_layer(flags), _variables_layer(environ)]
    values_in_file = _file_layer(path, SETTINGS_TABLE, tables, folder) if path else _NO_LAYER
    default = Layer({spec.name: spec.default for spec in settings_table()}, lambda _: "default", str, is_typed=True)
    layers = {
        spec.name: next(layer for layer in (*explicit, values_in_file, default) if spec.name in layer.values)
        for spec in settings_table()
    }
    problems = [f"{key}: is not a setting.{_suggestion(key, KNOWN)}" for key in keywords if key not in KNOWN] + problems
    values = {spec.name: _checked(spec, layers[spec.name], problems) for spec in settings_table()}
    workspace = next(_workspaces(explicit, folder, path, tables, problems), None)
    problems = problems or _cross_field_errors(values, layers)
    if problems:
        raise UsageError(problems)
    return Settings(
        **_with_derived_defaults(values),
        workspace=workspace,
        sources={name: layer.source(name) for name, layer in layers.items()},
        secrets={name: bool(environ.get(name)) for name in SECRETS},
    )


def settings_problems(flags: Flags, *, folder: Path, environ: Mapping[str, str]) -> list[str]:
    """Every problem that `read_settings` finds, to be reported together with others."""
    try:
        read_settings(flags, folder=folder, environ=environ)
    except UsageError as error:
        return list(error.problems)
    return []


def _keywords_layer(keywords: Mapping[str, Any]) -> Layer:
    values = {
        key: os.fspath(value) if isinstance(value, os.PathLike) else value
        for key, value in keywords.items()
        if value is not None
    }
    return Layer(values, lambda name: f"keyword {name}", str, is_typed=True)


def _flags_layer(flags: Flags) -> Layer:
    def flag_of(name: str) -> str:
        return _negative_flag(name) if flags.get(name) is False else flag(name)

    given = {name: value for name, value in flags.items() if value is not None}
    return Layer(given, lambda name: f"flag {flag_of(name)}", flag_of)


def _variables_layer(environ: Mapping[str, str]) -> Layer:
    """The variables that are set and not empty."""
    variables = {spec.name: spec.variables for spec in settings_table()}
    variables |= {key: (variable,) for key, variable in WORKSPACE_VARIABLES.items()}
    first = {name: next(filter(environ.get, names), names[0]) for name, names in variables.items()}
    values = {name: environ[variable] for name, variable in first.items() if environ.get(variable)}
    return Layer(values, lambda name: f"variable {first[name]}", lambda name: first[name])


def _file_layer(path: Path, table: str, tables: Mapping[str, Mapping[str, Any]], folder: Path) -> Layer:
    named = "" if table == SETTINGS_TABLE else f"[{table}] "
    elsewhere = None if path.parent == folder else path.parent
    return Layer(tables.get(table, {}), lambda _: str(path), lambda name: f"{path}: {named}{name}", True, elsewhere)


def _checked(spec: Setting, layer: Layer, problems: list[str]) -> Any:
    """The converted value of a setting; adds a problem if it is invalid."""
    value, label = layer.values[spec.name], layer.label(spec.name)
    if value is None:
        return None  # not set
    is_secret = isinstance(value, str) and SECRET_VALUE.search(value)
    # Only a variable may hold the address of a tracking server with its password.
    if is_secret and not (spec.name == "tracking_uri" and layer.source(spec.name).startswith("variable ")):
        variables = spec.variables if spec.name == "tracking_uri" else SECRETS
        problems.append(f"{label}: contains a secret. Set secrets only in variables: {' or '.join(variables)}.")
        return None
    try:
        converted = _converted(value, spec.kind, is_typed=layer.is_typed)
    except (ValueError, OverflowError):
        quotes = _quotes_hint(value, spec.kind) if FILE_NAME in label else ""
        problems.append(f"{label} {_written(value)}: is not {KINDS[spec.kind]}{quotes}.")
        return None
    if complaint := _complaint(spec, converted):
        problems.append(f"{label} {without_secrets(_written(value))}: {complaint}")
    return converted if layer.folder is None else _from_folder(spec.name, converted, layer.folder)


def _complaint(spec: Setting, value: Any) -> str:
    """What is wrong with a value of the right type, as the end of a sentence."""
    if spec.range is not None:
        return "" if value in spec.range else f"must be {spec.range}."
    if spec.kind is str and not re.fullmatch(spec.pattern, value):
        return f"must be {spec.required}."
    return tracking_uri_complaint(value) if spec.name == "tracking_uri" else ""


def _converted(value: Any, kind: type, *, is_typed: bool) -> Any:
    """The value converted to its type. Raises ValueError if it is invalid."""
    if type(value) is kind:
        return value
    if is_typed:
        if kind is float and type(value) is int:
            return float(value)
        raise ValueError(value)
    if kind is bool:
        if value.lower() not in BOOLEANS:
            raise ValueError(value)
        return BOOLEANS[value.lower()]
    return kind(value)


def _quotes_hint(value: Any, kind: type) -> str:
    if (kind is str) == isinstance(value, str):
        return ""
    return ": in a file it must have quotes" if kind is str else ": in a file it must not have quotes"


def _from_folder(name: str, value: Any, folder: Path) -> Any:
    """A path relative to `folder` as an absolute one; any other value as it is."""
    if name == "runs_dir":
        return str(folder / value)
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
    for one, other in (("storage_account", "storage_container"), ("storage_container", "storage_account")):
        if values[one] is not None and values[other] is None:
            problems.append(f"{layers[one].label(one)} {values[one]}: requires {other} too.")
    return problems


def _with_derived_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the defaults that follow from other settings."""
    uri = values["tracking_uri"] or f"sqlite:///{Path(values['runs_dir']).as_posix()}/mlflow.db"
    datastore = values["datastore"] or ("msggan" if values["storage_account"] else None)
    return {**values, "tracking_uri": uri, "datastore": datastore}


# --- The workspace ----------------------------------------------------------------------------------------------------


def _workspaces(
    explicit: list[Layer],
    folder: Path,
    path: Path | None,
    tables: Mapping[str, Mapping[str, Any]],
    problems: list[str],
) -> Iterator[Workspace | None]:
    """The workspaces of all sources, by precedence. In a folder msggan.toml precedes Azure ML's config.json."""
    for layer in explicit:
        if any(key in layer.values for key in WORKSPACE_VARIABLES):
            yield _workspace(layer, problems)
    for place in (folder, *folder.parents):
        if path is not None and path.parent == place and WORKSPACE_TABLE in tables:
            yield _workspace(_file_layer(path, WORKSPACE_TABLE, tables, folder), problems)
        for config in (place / ".azureml" / "config.json", place / "config.json"):
            if named := _named_in(config):
                yield _workspace(_file_layer(config, SETTINGS_TABLE, {SETTINGS_TABLE: named}, folder), problems)


def _workspace(layer: Layer, problems: list[str]) -> Workspace | None:
    """The workspace of a source, which must have all three parts; adds a problem for each part that is missing."""
    given = {key: layer.values[key] for key in WORKSPACE_VARIABLES if key in layer.values}
    found = [
        f"{layer.label(key)}: is not set; a workspace requires all three parts."
        for key in WORKSPACE_VARIABLES
        if key not in given
    ]
    for key, value in given.items():
        if not (isinstance(value, str) and re.fullmatch(r"[^\s/?#]+", value)):
            found.append(f"{layer.label(key)} {value}: must be a name without spaces and slashes.")
    problems += found
    return None if found else Workspace(**given, sources={key: layer.source(key) for key in given})


def _named_in(path: Path) -> dict[str, Any]:
    """The workspace in a config.json of Azure ML; {} for other files of that name, such as a run's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    if scope := SCOPE.fullmatch(str(content.get("Scope", ""))):
        return scope.groupdict()
    named = {key: content.get(key) for key in WORKSPACE_VARIABLES}
    return named if all(named.values()) else {}


# --- msggan.toml ------------------------------------------------------------------------------------------------------


def _read_file(folder: Path) -> tuple[Path | None, dict[str, dict[str, Any]], list[str]]:
    """The nearest msggan.toml in `folder` or above it, its tables, and every problem with it."""
    path = next((place / FILE_NAME for place in (folder, *folder.parents) if os.path.lexists(place / FILE_NAME)), None)
    if path is None:
        return None, {}, []
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        return path, {}, [f"{path}: cannot be read: {error.strerror or error}."]
    except UnicodeDecodeError:
        return path, {}, [f"{path}: is not UTF-8 text."]
    except (
        ValueError,
        RecursionError,
    ) as error:  # not only TOMLDecodeError: a number of 5,000 digits raises ValueError
        return path, {}, [f"{path}: is not TOML: {error}."]
    tables = {name: table for name, table in content.items() if name in KEYS_OF and isinstance(table, dict)}
    return path, tables, [f"{path}: {problem}" for problem in _misplaced(content)]


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
    if SECRET_KEY.search(key):
        return f"{shown}: secrets are not allowed in a file. Set the variable {' or '.join(SECRETS)} instead."
    home = next((name for name, keys in KEYS_OF.items() if key in keys), None)
    if home is not None:
        return f"{shown}: belongs under [{home}]."
    return f"{shown}: is unknown.{_suggestion(key, KEYS_OF[table] if table else KEYS_OF, cutoff=0.4)}"


def _suggestion(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    near = get_close_matches(name, names, n=1, cutoff=cutoff)
    return f" Did you mean {near[0]}?" if near else ""


# --- The flags ------------------------------------------------------------------------------------------------------


def settings_options(*names: str) -> Callable[[SomeCommand], SomeCommand]:
    """Adds the flags of these settings; `workspace` stands for its three parts.

    The command receives `flags`, their values by name, as `read_settings` takes them.
    """
    options = {name: add for named in names for name, add in _build_options(named).items()}

    def decorate(command: SomeCommand) -> SomeCommand:
        @wraps(command)
        def with_flags(**values: Any) -> Any:
            return command(flags={name: values.pop(name) for name in options}, **values)

        wrapped: SomeCommand = with_flags
        for add in reversed(options.values()):  # the innermost decorator comes last in the help
            wrapped = add(wrapped)
        return wrapped

    return decorate


def _build_options(named: str) -> dict[str, Callable[[SomeCommand], SomeCommand]]:
    if named == WORKSPACE_TABLE:
        helps = {key: f"{text}  [variable {WORKSPACE_VARIABLES[key]}]" for key, text in WORKSPACE_HELP.items()}
        return {key: option(flag(key), key, section=AZURE, metavar="TEXT", help=text) for key, text in helps.items()}
    (spec,) = (spec for spec in settings_table() if spec.name == named)
    section = WHERE if named in ("runs_dir", "tracking_uri") else AZURE
    if spec.kind is bool:
        both = f"{flag(named)}/{_negative_flag(named)}"
        return {named: option(both, named, section=section, default=None, help=_help(spec))}
    metavar = "DIR" if named == "runs_dir" else {int: "INTEGER", float: "NUMBER"}.get(spec.kind, "TEXT")
    return {named: option(flag(named), named, section=section, metavar=metavar, help=_help(spec))}


def _negative_flag(name: str) -> str:
    return flag(f"no_{name}")


def _help(spec: Setting) -> str:
    facts = [str(spec.range)] if spec.range else []
    if spec.kind is bool:
        facts.append(f"default: {flag(spec.name) if spec.default else _negative_flag(spec.name)}".replace("--", ""))
    elif spec.default is not None:
        facts.append(f"default: {_written(spec.default)}")
    return f"{spec.help}  [{'; '.join([*facts, f'variable {spec.variables[0]}'])}]"
