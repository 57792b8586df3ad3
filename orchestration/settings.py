"""What is set, and who said so? Each setting once, with its help, range and default, and the places it is read from.

A setting NAME is the flag --name, else the variable MSGGAN_NAME, else NAME under [azure] in the nearest msggan.toml,
else its default. A relative path in msggan.toml starts from that file's folder, any other from the current one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cache, wraps
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

from msggan.commands.options import AZURE, WHERE, option
from msggan.commands.tracking_uri import NO_TRACKING, TRACKING_VARIABLES, tracking_uri_complaint
from msggan.config import KINDS, Range, flag
from msggan.errors import UsageError
from orchestration.settings_file import SECRETS, SettingsFile, read_settings_file
from orchestration.workspace import WORKSPACE_HELP, WORKSPACE_TABLE, WORKSPACE_VARIABLES, Workspace, find_workspace

SETTINGS_TABLE = "azure"

# What the command line gives: by name a text, or true or false; None where nothing was said.
Flags = Mapping[str, str | bool | None]
SomeCommand = Callable[..., Any]

YES_AND_NO = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
# A key in a connection string, a signature in an address, a password before a host, an account's key alone.
SECRET_TEXT = re.compile(r"AccountKey=|SharedAccess\w*=|[?&]sig=|//[^/@]*:[^/@]*@|[A-Za-z0-9+/]{86}==", re.IGNORECASE)


# --- The settings -----------------------------------------------------------------------------------------------------


def setting(
    help: str,  # noqa: A002 - click's own word for it
    *,
    default: Any = None,
    range: Range | None = None,  # noqa: A002
    pattern: str = r".+",
    in_words: str = "a text that is not empty",
    complaint: Callable[[str], str] = lambda text: "",
    also: tuple[str, ...] = (),
) -> Any:
    """A field of Settings that can be said.

    complaint: what stands against a text that fits the pattern, the end of a sentence. also: variables that are looked
    at after its own.
    """
    about = {
        "help": help,
        "default": default,
        "range": range,
        "pattern": pattern,
        "in_words": in_words,
        "complaint": complaint,
        "also": also,
    }
    return field(metadata=about)


def _name_setting(help: str, default: str | None = None) -> Any:  # noqa: A002
    """A name as Azure ML has them."""
    return setting(
        help,
        default=default,
        pattern=r"[A-Za-z0-9][A-Za-z0-9_-]{0,254}",
        in_words="letters, digits, - and _, and start with a letter or digit",
    )


def _size_setting(help: str, default: str | None = None) -> Any:  # noqa: A002
    """A size of machine. Which ones there are, the service knows."""
    words = "a size such as Standard_NC4as_T4_v3: letters, digits and _"
    return setting(help, default=default, pattern=r"[A-Za-z0-9_]+", in_words=words)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting, as `read_settings` found it. None: not set, and there is no default."""

    runs_dir: str = setting("The folder of the run folders.", default="runs")
    tracking_uri: str = setting(
        f"Where MLflow keeps the runs; `{NO_TRACKING}`: nowhere. Default: mlflow.db in the folder of the runs.",
        complaint=tracking_uri_complaint,
        also=TRACKING_VARIABLES[1:],
    )
    compute: str = setting(
        "The cluster that trains.",
        default="msggan-gpu",
        pattern=r"[A-Za-z][A-Za-z0-9-]{1,22}[A-Za-z0-9]",
        in_words="3 to 24 letters, digits and -, start with a letter and not end with -",
    )
    vm_size: str = _size_setting("The size of the cluster's machines.", "Standard_NC4as_T4_v3")
    min_nodes: int = setting(
        "Machines that the cluster keeps when idle. More than 0 costs money day and night.",
        default=0,
        range=Range(0, 1000),
    )
    max_nodes: int = setting("The most machines of the cluster at a time.", default=1, range=Range(1, 1000))
    idle_minutes: int = setting(
        "Minutes without a job after which a machine is given back.", default=2, range=Range(1, 1440)
    )
    low_priority: bool = setting("Cheaper machines, which Azure may take away at any time.", default=False)
    identity: str = setting(
        "The identity of the cluster's machines: `none`, `system` (its own) or the resource ID of a managed one.",
        default="none",
        pattern=r"none|system|/subscriptions/[^/]+/resource[Gg]roups/[^/]+/providers/[^/]+/userAssignedIdentities/[^/]+",
        in_words="none, system or /subscriptions/…/userAssignedIdentities/NAME",
    )
    location: str | None = setting(
        "The region of the cluster. Default: the workspace's.",
        pattern=r"[a-z0-9]+",
        in_words="a region as Azure writes it, such as westeurope",
    )
    instance_type: str | None = _size_setting("Train serverless on machines of this size, not on the cluster.")
    storage_account: str | None = setting(
        "The storage account of the datastore. Default: the workspace's own.",
        pattern=r"[a-z0-9]{3,24}",
        in_words="3 to 24 small letters and digits",
    )
    storage_container: str | None = setting(
        "The blob container of the datastore, in that account.",
        pattern=r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*",
        in_words="3 to 63 small letters, digits and single -",
    )
    datastore: str | None = _name_setting(
        "The datastore of images and runs. Default: msggan where an account is named, else the workspace's own."
    )
    environment: str = setting(
        "What the job runs in: `curated`, an image, a conda file, IMAGE+FILE, or the folder of a Dockerfile.",
        default="curated",
    )
    experiment: str = _name_setting("The experiment that jobs are listed under.", "msggan")
    timeout_hours: float = setting(
        "Hours after which a job is ended, done or not.", default=24.0, range=Range(0, 504, low_included=False)
    )

    workspace: Workspace | None
    sources: Mapping[str, str]
    secrets: Mapping[str, bool]  # by variable whether it is set; never what it is set to

    def source(self, name: str) -> str:
        """Where a setting comes from: `flag --runs-dir`, `variable MSGGAN_RUNS_DIR`, a file's path or `default`."""
        return self.sources[name]

    def as_json(self) -> dict[str, Any]:
        """All that is set and who said so, fit to be shown."""
        shown = {spec.name: without_secrets(getattr(self, spec.name)) for spec in settings_table()}
        return {
            "workspace": self.workspace.as_json() if self.workspace else None,
            "settings": {name: {"value": shown[name], "source": self.sources[name]} for name in shown},
            "secrets": dict(self.secrets),
        }

    def as_rows(self) -> list[tuple[str, str, str]]:
        """The same for people: name, value and source."""
        told = self.as_json()
        sources = self.workspace.sources if self.workspace else {}
        rows = [(key, getattr(self.workspace, key, None), sources.get(key, "")) for key in WORKSPACE_VARIABLES]
        rows += [(name, one["value"], one["source"]) for name, one in told["settings"].items()]
        rows += [(name, "set" if is_set else None, "") for name, is_set in told["secrets"].items()]
        return [(name, "not set" if value is None else _written(value), source) for name, value, source in rows]


class Setting(NamedTuple):
    """What the table says of a setting. `variables` are looked at in that order."""

    name: str
    kind: type
    help: str
    default: Any
    range: Range | None
    pattern: str
    in_words: str
    complaint: Callable[[str], str]
    variables: tuple[str, ...]


@cache
def settings_table() -> tuple[Setting, ...]:
    """Every setting, in the order in which they are shown."""
    hints = get_type_hints(Settings)
    return tuple(
        Setting(
            spec.name,
            next(iter(get_args(hints[spec.name])), hints[spec.name]),  # of `str | None` the str
            **{key: about for key, about in spec.metadata.items() if key != "also"},
            variables=(f"MSGGAN_{spec.name.upper()}", *spec.metadata["also"]),
        )
        for spec in fields(Settings)
        if spec.metadata
    )


def without_secrets(value: Any) -> Any:
    """An address without what stands before its host and after its question mark; any other value as it is."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(?<=[?&])([^=&]+)=[^&]*", r"\1=***", re.sub(r"//[^/@]*@", "//***@", value))


# --- Reading them -----------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    """A value as somebody said it. label: what a complaint calls it. folder: where a relative path in it starts."""

    value: Any
    source: str
    label: str
    has_kind: bool = False  # values in a file are numbers, texts or true and false already
    folder: Path | None = None


def read_settings(
    flags: Flags, *, folder: Path, environ: Mapping[str, str], keywords: Mapping[str, Any] | None = None
) -> Settings:
    """The settings that hold in a folder and its environment. Raises UsageError with every complaint at once.

    keywords: those that Python code gives, which precede all others.
    """
    folder = folder.absolute()
    keywords = dict(keywords or {})
    known = {SETTINGS_TABLE: [spec.name for spec in settings_table()], WORKSPACE_TABLE: list(WORKSPACE_VARIABLES)}
    file = read_settings_file(folder, known)
    problems = [*_unknown_keywords(keywords, known), *file.problems]
    flags = {**flags, **{key: value for key, value in keywords.items() if key in WORKSPACE_VARIABLES}}
    said = {
        spec.name: _of_keyword(spec.name, keywords) or _said(spec, flags, environ, file, folder)
        for spec in settings_table()
    }
    values = {spec.name: _checked(spec, said[spec.name], problems) for spec in settings_table()}
    workspace = None
    try:
        workspace = find_workspace(flags, folder=folder, environ=environ, file=file)
    except UsageError as error:
        problems += error.problems
    problems = problems or _misfits(values, said)
    if problems:
        raise UsageError(problems)
    return Settings(
        **_filled(values),
        workspace=workspace,
        sources={name: one.source for name, one in said.items()},
        secrets={name: bool(environ.get(name)) for name in SECRETS},
    )


def settings_problems(flags: Flags, *, folder: Path, environ: Mapping[str, str]) -> list[str]:
    """Every complaint of `read_settings`, for those who have others to tell beside them."""
    try:
        read_settings(flags, folder=folder, environ=environ)
    except UsageError as error:
        return list(error.problems)
    return []


def _unknown_keywords(keywords: Mapping[str, Any], known: Mapping[str, Collection[str]]) -> list[str]:
    names = [name for names in known.values() for name in names]
    nearest = {key: get_close_matches(key, names, n=1) for key in keywords if key not in names}
    return [f"{key}: is not a setting.{f' Did you mean {near[0]}?' if near else ''}" for key, near in nearest.items()]


def _of_keyword(name: str, keywords: Mapping[str, Any]) -> Said | None:
    value = keywords.get(name)
    if value is None:
        return None
    return Said(os.fspath(value) if isinstance(value, os.PathLike) else value, f"keyword {name}", name, has_kind=True)


def _said(
    spec: Setting,
    flags: Flags,
    environ: Mapping[str, str],
    file: SettingsFile,
    folder: Path,
) -> Said:
    """What the first place says that says anything; an empty variable says nothing."""
    value = flags.get(spec.name)
    if value is not None:
        name = _negative_flag(spec.name) if value is False else flag(spec.name)
        return Said(value, f"flag {name}", name)
    for variable in spec.variables:
        if environ.get(variable):
            return Said(environ[variable], f"variable {variable}", variable)
    table = file.tables.get(SETTINGS_TABLE, {})
    if file.path is not None and spec.name in table:
        elsewhere = None if file.path.parent == folder else file.path.parent
        return Said(table[spec.name], str(file.path), f"{file.path}: {spec.name}", has_kind=True, folder=elsewhere)
    return Said(spec.default, "default", spec.name)


def _checked(spec: Setting, said: Said, problems: list[str]) -> Any:
    """The value that was said, converted; one complaint more where it cannot be used."""
    if said.source == "default":
        return said.value
    if isinstance(said.value, str) and SECRET_TEXT.search(said.value) and not _may_be_secret(spec, said):
        problems.append(f"{said.label}: holds a secret. {_home_of_secrets(spec)}")
        return None
    try:
        value = _converted(said, spec.kind)
    except (ValueError, OverflowError):
        problems.append(f"{said.label} {_written(said.value)}: is not {KINDS[spec.kind]}{_in_quotes(said, spec.kind)}.")
        return None
    if spec.range is not None and value not in spec.range:
        problems.append(f"{said.label} {_written(said.value)}: must be {spec.range}.")
    elif spec.kind is str and not re.fullmatch(spec.pattern, value):
        problems.append(f"{said.label} {value}: must be {spec.in_words}.")
    elif spec.kind is str and (complaint := spec.complaint(value)):
        problems.append(f"{said.label} {without_secrets(value)}: {complaint}")
    return value if said.folder is None else _from_folder(spec.name, value, said.folder)


def _may_be_secret(spec: Setting, said: Said) -> bool:
    """A tracking server's address may hold a password where it stands in a variable."""
    return spec.name == "tracking_uri" and said.source.startswith("variable ")


def _home_of_secrets(spec: Setting) -> str:
    homes = spec.variables if spec.name == "tracking_uri" else SECRETS
    return f"Secrets belong in variables alone: {' or '.join(homes)}."


def _converted(said: Said, kind: type) -> Any:
    """The value as its kind. Raises ValueError where it is of another."""
    value = said.value
    if type(value) is kind:
        return value
    if said.has_kind:
        if kind is float and type(value) is int:
            return float(value)
        raise ValueError(value)
    if kind is bool:
        if value.lower() not in YES_AND_NO:
            raise ValueError(value)
        return YES_AND_NO[value.lower()]
    return kind(value)


def _in_quotes(said: Said, kind: type) -> str:
    if not said.has_kind or said.label.isidentifier() or (kind is str) == isinstance(said.value, str):
        return ""
    return ": in a file it has quotes" if kind is str else ": in a file it has no quotes"


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _from_folder(name: str, value: Any, folder: Path) -> Any:
    """A path that starts from `folder` as one that may be used from anywhere; any other value as it is."""
    if name == "runs_dir":
        return str(folder / value)
    if name == "tracking_uri" and value.startswith("sqlite:///"):
        return "sqlite:///" + (folder / value.removeprefix("sqlite:///")).as_posix()
    if name == "environment":
        image, plus, path = value.rpartition("+")
        if os.path.exists(folder / path):  # else it is the name of an image
            return f"{image}{plus}{folder / path}"
    return value


def _misfits(values: Mapping[str, Any], said: Mapping[str, Said]) -> list[str]:
    """Complaints about values that are good alone and bad together."""
    problems = []
    if values["min_nodes"] > values["max_nodes"]:
        problems.append(
            f"{said['min_nodes'].label} {values['min_nodes']}: must be at most max_nodes, which is "
            f"{values['max_nodes']} ({said['max_nodes'].source})."
        )
    for one, other in (("storage_account", "storage_container"), ("storage_container", "storage_account")):
        if values[one] is not None and values[other] is None:
            problems.append(f"{said[one].label} {values[one]}: needs {other} too.")
    return problems


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the defaults that follow from others."""
    filled = dict(values)
    if filled["tracking_uri"] is None:
        filled["tracking_uri"] = f"sqlite:///{Path(filled['runs_dir']).as_posix()}/mlflow.db"
    if filled["datastore"] is None and filled["storage_account"] is not None:
        filled["datastore"] = "msggan"
    return filled


# --- Their flags ------------------------------------------------------------------------------------------------------


def settings_options(*names: str) -> Callable[[SomeCommand], SomeCommand]:
    """Adds the flags of these settings; `workspace` stands for the three that name one.

    The command gets `flags`, what was said by name, as `read_settings` takes it.
    """
    options = {name: add for named in names for name, add in _build_options(named).items()}

    def decorate(command: SomeCommand) -> SomeCommand:
        @wraps(command)
        def with_flags(**texts: Any) -> Any:
            return command(flags={name: texts.pop(name) for name in options}, **texts)

        wrapped: SomeCommand = with_flags
        for add in reversed(options.values()):  # the decorator nearest to the function comes last in the help
            wrapped = add(wrapped)
        return wrapped

    return decorate


def _build_options(named: str) -> dict[str, Callable[[SomeCommand], SomeCommand]]:
    if named == WORKSPACE_TABLE:
        return {
            key: option(
                flag(key), key, section=AZURE, metavar="TEXT", help=f"{about}  [variable {WORKSPACE_VARIABLES[key]}]"
            )
            for key, about in WORKSPACE_HELP.items()
        }
    (spec,) = (spec for spec in settings_table() if spec.name == named)
    section = WHERE if named in ("runs_dir", "tracking_uri") else AZURE
    if spec.kind is bool:
        declaration = f"{flag(named)}/{_negative_flag(named)}"
        return {named: option(declaration, named, section=section, default=None, help=_help(spec))}
    return {named: option(flag(named), named, section=section, metavar=_metavar(spec), help=_help(spec))}


def _negative_flag(name: str) -> str:
    return flag(f"no_{name}")


def _metavar(spec: Setting) -> str:
    return "DIR" if spec.name == "runs_dir" else {int: "INTEGER", float: "NUMBER"}.get(spec.kind, "TEXT")


def _help(spec: Setting) -> str:
    facts = [str(spec.range)] if spec.range else []
    if spec.default is not None:
        facts.append(f"default: {_default_in_words(spec)}")
    return f"{spec.help}  [{'; '.join([*facts, f'variable {spec.variables[0]}'])}]"


def _default_in_words(spec: Setting) -> str:
    if spec.kind is bool:
        return (flag(spec.name) if spec.default else _negative_flag(spec.name)).removeprefix("--")
    return _written(spec.default)
