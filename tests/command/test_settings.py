"""Settings: their order of precedence, and all errors reported at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import hypothesis
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from support.programs import Ended

from msggan.errors import UsageError
from orchestration.commands.terminal import settings_options
from orchestration.settings import Setting, Settings, read_settings, settings_table, without_secrets

RunProgram = Callable[..., Ended]
NAMES = [spec.name for spec in settings_table()]
ONE_VALUE = [spec for spec in settings_table() if spec.kind is not dict]
HIDDEN = "c2VjcmV0LWtleQ"

# Other settings that a setting requires to be valid.
COMPANIONS = {
    "services": {"ssh_key": "id.pub"},
    "ssh_key": {"services": "ssh"},
    "min_nodes": {"max_nodes": "1000"},
    "storage_account": {"storage_container": "images"},
    "storage_container": {"storage_account": "account"},
}


def read(folder: Path, toml: str | None = None, *, flags: dict[str, Any] | None = None, **environ: str) -> Settings:
    if toml is not None:
        (folder / "msggan.toml").write_text(toml, encoding="utf-8")
    return read_settings(flags or {}, folder=folder, environ=environ)


def complaints(folder: Path, toml: str | None = None, **sources: Any) -> list[str]:
    with pytest.raises(UsageError) as raised:
        read(folder, toml, **sources)
    return list(raised.value.problems)


# --- Which source wins ------------------------------------------------------------------------------------------------


def values_of(spec: Setting) -> st.SearchStrategy[Any]:
    if spec.kind is bool:
        return st.booleans()
    if spec.range is not None:
        low, high = spec.range.low, spec.range.high
        return st.integers(int(low), int(high)) if spec.kind is int else st.floats(0.5, high)
    if spec.name == "subnet":
        return st.just(
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/default"
        )
    if spec.name == "services":
        return st.sampled_from(["ssh", "vscode,ssh"])
    if spec.name == "data_mode":
        return st.sampled_from(["download", "mount"])
    if spec.name == "identity":
        return st.sampled_from(["none", "system"])
    if spec.name == "max_cost":
        return st.integers(1, 500).map("{} EUR".format)
    if spec.name in ("vm_size", "instance_type"):
        return st.sampled_from(["Standard_A", "Standard_B,Standard_A"])
    names = st.text("abcdefghij", min_size=3, max_size=8)  # which every other pattern allows
    return names.map("http://{}".format) if spec.name == "tracking_uri" else names


def as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose msggan.toml each example rewrites."""
    return tmp_path_factory.mktemp("settings")


@pytest.mark.parametrize("spec", ONE_VALUE, ids=lambda spec: spec.name)
@hypothesis.settings(deadline=None, max_examples=20)  # on a busy machine reading the file takes longer
@given(data=st.data())
def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(
    folder: Path, spec: Setting, data: st.DataObject
) -> None:
    values = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(("flag", "variable", "file"), values_of(spec))))
    flags: dict[str, Any] = dict(COMPANIONS.get(spec.name, {})) if values else {}
    if "flag" in values:
        flags[spec.name] = values["flag"] if spec.kind is bool else as_text(values["flag"])
    environ = {spec.variables[0]: as_text(values["variable"])} if "variable" in values else {}
    toml = f"[azure]\n{spec.name} = {json.dumps(values['file'])}\n" if "file" in values else ""
    settings = read(folder, toml, flags=flags, **environ)

    name = spec.name.replace("_", "-")
    sources = {
        "flag": f"flag --no-{name}" if values.get("flag") is False else f"flag {spec.flag or f'--{name}'}",
        "variable": f"variable MSGGAN_{spec.name.upper()}",
        "file": str(folder / "msggan.toml"),
    }
    winner = next((source for source in sources if source in values), None)
    assert settings.source(spec.name) == (sources[winner] if winner else "default")
    if winner:
        assert getattr(settings, spec.name) == values[winner]
        assert type(getattr(settings, spec.name)) is spec.kind


def test_without_settings_everything_has_its_default(tmp_path: Path) -> None:
    settings = read(tmp_path)
    assert {name: getattr(settings, name) for name in NAMES} == {
        "runs_dir": "runs",
        "tracking_uri": "sqlite:///runs/mlflow.db",
        "compute": "msggan-gpu",
        "vm_size": "Standard_NC4as_T4_v3",
        "min_nodes": 0,
        "max_nodes": 1,
        "idle_minutes": 2,
        "low_priority": False,
        "identity": "none",
        "location": None,
        "subnet": None,
        "public_ip": True,
        "instance_type": None,
        "storage_account": None,
        "storage_container": None,
        "datastore": None,
        "data_mode": "auto",
        "environment": "curated",
        "experiment": "msggan",
        "description": None,
        "timeout_hours": 24.0,
        "tags": {},
        "env": {},
        "services": None,
        "ssh_key": None,
        "max_cost": None,
    }
    assert {settings.source(name) for name in NAMES} == {"default"}
    assert settings.workspace is None


def test_an_empty_variable_is_ignored_and_an_empty_flag_is_an_error(tmp_path: Path) -> None:
    assert read(tmp_path, MSGGAN_RUNS_DIR="").runs_dir == "runs"
    assert complaints(tmp_path, flags={"runs_dir": ""}) == ["--runs-dir : must be non-empty text."]


def test_runs_are_tracked_beside_them_unless_a_uri_is_set(tmp_path: Path) -> None:
    assert read(tmp_path, flags={"runs_dir": "/r"}).tracking_uri == "sqlite:////r/mlflow.db"
    assert read(tmp_path, MSGGAN_TRACKING_URI="none", MLFLOW_TRACKING_URI="http://h").tracking_uri == "none"
    toml = "[azure]\ntracking_uri = 'http://file'\n"
    settings = read(tmp_path, toml, MLFLOW_TRACKING_URI="http://mlflow")
    assert settings.tracking_uri == "http://mlflow"
    assert settings.source("tracking_uri") == "variable MLFLOW_TRACKING_URI"
    assert read(tmp_path).tracking_uri == "http://file"


def test_an_account_has_a_datastore_of_our_own_name(tmp_path: Path) -> None:
    account = "[azure]\nstorage_account = 'account'\nstorage_container = 'images'\n"
    assert read(tmp_path, account).datastore == "msggan"
    assert read(tmp_path, flags={"datastore": "other"}).datastore == "other"


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("false", False), ("No", False)]
)
def test_yes_and_no_in_a_variable(tmp_path: Path, text: str, value: bool) -> None:
    assert read(tmp_path, MSGGAN_LOW_PRIORITY=text).low_priority is value


@pytest.mark.parametrize("value", ["4.5 EUR", "EUR 4.50", " 4.50eur"])
def test_a_maximum_cost_is_a_number_of_us_dollars_or_names_its_currency(tmp_path: Path, value: str) -> None:
    assert read(tmp_path, flags={"max_cost": value}).max_cost == "4.5 EUR"
    assert read(tmp_path, MSGGAN_MAX_COST="5").max_cost == read(tmp_path, "[azure]\nmax_cost = 5\n").max_cost == "5 USD"
    assert read(tmp_path, "[azure]\nmax_cost = 0.526\n").max_cost == "0.526 USD"
    wrong = "must be an amount above 0, in US dollars or with its currency, such as 5, 5USD or 4.50EUR."
    assert complaints(tmp_path, flags={"max_cost": "5 GBP"}) == [f"--max-cost 5 GBP: {wrong}"]
    assert complaints(tmp_path, "[azure]\nmax_cost = 0\n") == [f"{tmp_path / 'msggan.toml'}: max_cost 0: {wrong}"]


# --- msggan.toml ------------------------------------------------------------------------------------------------------


def test_paths_in_a_parent_file_are_relative_to_its_folder_and_others_to_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    inner = tmp_path / "inner"
    inner.mkdir()
    toml = "[azure]\nruns_dir = 'r'\ntracking_uri = 'sqlite:///t.db'\nenvironment = 'job'\n"
    assert read(tmp_path, toml).runs_dir == "r"
    settings = read(inner)
    assert settings.runs_dir == str(tmp_path / "r")
    assert settings.tracking_uri == f"sqlite:///{(tmp_path / 't.db').as_posix()}"
    assert settings.environment == str(tmp_path / "job")
    settings = read(inner, flags={"runs_dir": "r", "environment": "job"}, MSGGAN_TRACKING_URI="sqlite:///t.db")
    assert (settings.runs_dir, settings.tracking_uri, settings.environment) == ("r", "sqlite:///t.db", "job")


def test_uris_and_images_in_a_parent_file_are_unchanged(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name, value in [
        ("runs_dir", "/r"),
        ("tracking_uri", "sqlite:////t.db"),
        ("tracking_uri", "http://127.0.0.1:5000"),
        ("tracking_uri", "none"),
        ("environment", "pytorch/pytorch:2.6"),
    ]:
        (tmp_path / "msggan.toml").write_text(f"[azure]\n{name} = '{value}'\n")
        assert getattr(read(tmp_path / "inner"), name) == value


def test_sizes_and_regions_may_be_several_in_order_of_preference(tmp_path: Path) -> None:
    found = read(tmp_path, "[azure]\nvm_size = ['Standard_B', 'Standard_A']\n", MSGGAN_LOCATION="westeurope, eastus")
    assert (found.vm_size, found.location) == ("Standard_B,Standard_A", "westeurope,eastus")
    several = "or several different ones separated by commas."
    for sizes in (
        "a100",
        "Standard_A,,Standard_B",
        "Standard_A,",
        ",",
        "Standard_A,STANDARD_A",
        "Standard_A;Standard_B",
    ):
        (problem,) = complaints(tmp_path, "", flags={"vm_size": sizes})
        assert problem == f"--vm-size {sizes}: must be a size such as Standard_NC4as_T4_v3, {several}"
    for value, shown in (("['Standard_A', '']", "Standard_A,"), ("[]", ""), ("[4]", "4"), ("4", "4")):
        (problem,) = complaints(tmp_path, f"[azure]\nvm_size = {value}\n")
        assert problem.startswith(f"{tmp_path / 'msggan.toml'}: vm_size {shown}: must be a size")


def test_only_the_nearest_file_counts(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "msggan.toml").write_text("[azure]\ncompute = 'outer'\nexperiment = 'outer'\n")
    (tmp_path / "a" / "msggan.toml").write_text("[azure]\ncompute = 'nearer'\n")
    settings = read(inner)
    assert (settings.compute, settings.experiment) == ("nearer", "msggan")


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("[azure]\nvmsize = 'x'\n", "[azure] vmsize: is unknown. Did you mean vm_size?"),
        ("[azur]\n", "azur: is unknown. Did you mean azure?"),
        ("[workspace]\nname = 'w'\n", "[workspace] name: is unknown. Did you mean workspace_name?"),
        ("runs_dir = 'x'\n", "runs_dir: belongs under [azure]."),
        ("[azure]\nresource_group = 'x'\n", "[azure] resource_group: belongs under [workspace]."),
        ("[azure]\nzzzzz = 1\n", "[azure] zzzzz: is unknown."),
        ("azure = 3\n", "azure must be a table: write [azure] on a line of its own."),
        ("[azure]\nmin_nodes = '1'\n", "min_nodes 1: is not a whole number: in a file it must not have quotes."),
        ("[azure]\nmin_nodes = true\n", "min_nodes true: is not a whole number."),
        ("[azure]\nmin_nodes = 1.5\n", "min_nodes 1.5: is not a whole number."),
        (
            "[azure]\nlow_priority = 'yes'\n",
            "low_priority yes: is not true or false: in a file it must not have quotes.",
        ),
        ("[azure]\nexperiment = 5\n", "experiment 5: is not a text: in a file it must have quotes."),
        ("[azure]\ntimeout_hours = inf\n", "timeout_hours inf: must be more than 0, at most 504."),
        (f"[azure]\ntimeout_hours = 1{'0' * 400}\n", f"timeout_hours 1{'0' * 400}: is not a number."),
    ],
)
def test_unknown_keys_in_the_file_are_reported(tmp_path: Path, toml: str, problem: str) -> None:
    assert f"{tmp_path / 'msggan.toml'}: {problem}" in complaints(tmp_path, toml)


def test_invalid_toml_is_reported_with_its_line(tmp_path: Path) -> None:
    (problem,) = complaints(tmp_path, "[azure]\nmin_nodes 3\n")
    assert problem.startswith(f"{tmp_path / 'msggan.toml'}: is not TOML: ")
    assert "line 2" in problem


@pytest.mark.parametrize("content", [b"[azure]\nrun = '\xff'\n", b"x = " + b"[" * 100_000, b"x = 1" + b"0" * 5000])
def test_any_other_file_is_reported_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "msggan.toml").write_bytes(content)
    problems = complaints(tmp_path)
    assert problems[0].startswith(f"{tmp_path / 'msggan.toml'}: ")
    assert len(problems) == 1


def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "msggan.toml").mkdir()
    (problem,) = complaints(tmp_path)
    assert problem.startswith(f"{tmp_path / 'msggan.toml'}: cannot be read: ")


def test_a_file_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeff[azure]\ncompute = 'mine'\n").compute == "mine"


# --- Complaints -------------------------------------------------------------------------------------------------------


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    flags = {"min_nodes": "few", "compute": "-", "timeout_hours": "0", "resource_group": "g"}
    variables = {"MSGGAN_MAX_NODES": "0", "MSGGAN_LOW_PRIORITY": "maybe"}
    problems = complaints(tmp_path, "[azure]\nvmsize = 'x'\nidle_minutes = 0\n", flags=flags, **variables)
    path = tmp_path / "msggan.toml"
    assert problems == [
        f"{path}: [azure] vmsize: is unknown. Did you mean vm_size?",
        "--compute -: must be 3 to 24 letters, digits and -, start with a letter and not end with -.",
        "--min-nodes few: is not a whole number.",
        "MSGGAN_MAX_NODES 0: must be 1 or more, at most 1000.",
        f"{path}: idle_minutes 0: must be 1 or more, at most 1440.",
        "MSGGAN_LOW_PRIORITY maybe: is not true or false.",
        "--timeout-hours 0: must be more than 0, at most 504.",
        "--subscription-id: is not set; a workspace requires all three parts.",
        "--workspace-name: is not set; a workspace requires all three parts.",
    ]


def test_tags_and_variables_of_all_sources_are_merged_by_name(tmp_path: Path) -> None:
    toml = '[azure]\nenv = {NCCL_DEBUG = "WARN"}\n[azure.tags]\nteam = "vision"\n"cost center" = "1"\nowner = "f"\n'
    flags = {"tags": ("team=audio", "url=a=b"), "env": ()}
    settings = read(tmp_path, toml, flags=flags, MSGGAN_TAGS="team=x, owner=v")
    assert settings.tags == {"team": "audio", "url": "a=b", "owner": "v", "cost center": "1"}
    assert settings.env == {"NCCL_DEBUG": "WARN"}
    assert settings.source("tags") == f"flag --tag, variable MSGGAN_TAGS, {tmp_path / 'msggan.toml'}"
    in_python = read_settings({}, folder=tmp_path / "empty", environ={}, keywords={"tags": {"a": "b"}})
    assert in_python.tags["a"] == "b"


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"tags": ("team",)}, "--tag team: must be NAME=VALUE."),
        ({"tags": ("=x",)}, "--tag : the name of a tag has 1 to 100 characters."),
        ({"tags": ("n" * 101 + "=x",)}, f"--tag {'n' * 101}: the name of a tag has 1 to 100 characters."),
        ({"tags": ("n=" + "x" * 1001,)}, "--tag n: the value has 1001 characters; at most 1000 are allowed."),
        *(
            ({"tags": (f"{name}=x",)}, f"--tag {name}: msggan and Azure ML use tags of this name themselves.")
            for name in ("msggan", "MSGGAN.run", "mlflow.user", "_aml_system_x")
        ),
        ({"tags": (f"n=https://a/?sig={HIDDEN}",)}, "--tag n: contains a secret."),
        ({"env": ("1=x",)}, "--env 1: the name of a variable has letters, digits and _"),
        *(
            ({"env": (f"{name}={HIDDEN}",)}, f"--env {name}: looks like a secret")
            for name in ("HF_TOKEN", "KEY", "WANDB_APIKEY", "MY_SECRET", "DB_PASSWORD", "BLOB_SAS", "x_secret_y")
        ),
        *(
            ({"env": (f"X={value}",)}, "X=@keyvault:https://VAULT.vault.azure.net/secrets/SECRET.")
            for value in (
                f"sv=1&sig={HIDDEN}",
                f"https://me:{HIDDEN}@host",
                f"ghp_{HIDDEN}xxxxxxxxx",
                f"AccountKey={HIDDEN}",
                f"Server=x;Password={HIDDEN}",
                f"abc8Q~{HIDDEN:x<30}",
                f"-----BEGIN RSA PRIVATE KEY-----{HIDDEN}",
            )
        ),
        ({"env": ("T_TOKEN=@keyvault:http://v/secrets/s",)}, "--env T_TOKEN: after @keyvault: write https://VAULT"),
    ],
)
def test_a_wrong_tag_or_variable_is_refused_and_its_value_not_repeated(
    tmp_path: Path, flags: dict[str, Any], problem: str
) -> None:
    (found,) = complaints(tmp_path, flags=flags)
    assert problem in found
    assert HIDDEN not in found


def test_tags_and_variables_in_a_file_are_tables_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "msggan.toml"
    assert complaints(tmp_path, '[azure]\ntags = "a=b"\nenv = 3\n') == [
        f"{path}: tags: must be a table of names and values in quotes.",
        f"{path}: env: must be a table of names and values in quotes.",
    ]
    assert complaints(tmp_path, "[azure.tags]\na = 3\n") == [
        f"{path}: tags a: must be NAME=VALUE, with the value in quotes."
    ]


def test_variables_that_are_no_secrets_and_references_to_secrets_are_allowed(tmp_path: Path) -> None:
    reference = "@keyvault:https://my-vault.vault.azure.net/secrets/hf-token"
    env = {"TOKENIZERS_PARALLELISM": "false", "NCCL_DEBUG": "INFO", "HF_TOKEN": reference, "EMPTY": ""}
    assert read(tmp_path, flags={"env": tuple(f"{name}={value}" for name, value in env.items())}).env == env


def test_conflicting_values_are_reported(tmp_path: Path) -> None:
    assert complaints(tmp_path, "[azure]\nmax_nodes = 2\n", flags={"min_nodes": "3"}) == [
        f"--min-nodes 3: must be at most max_nodes, which is 2 ({tmp_path / 'msggan.toml'})."
    ]
    assert complaints(tmp_path, "", MSGGAN_STORAGE_ACCOUNT="account") == [
        "MSGGAN_STORAGE_ACCOUNT account: requires storage_container too."
    ]


@pytest.mark.parametrize(
    "key", ["storage_key", "key", "sas", "storage_sas", "password", "sas_token", "account-key", "connection_string"]
)
def test_a_secret_in_the_file_is_refused_and_not_repeated(tmp_path: Path, key: str) -> None:
    for toml in (f"[azure]\n{key} = '{HIDDEN}'\n", f"{key} = '{HIDDEN}'\n"):
        (problem,) = complaints(tmp_path, toml)
        assert "MSGGAN_STORAGE_KEY or MSGGAN_STORAGE_SAS" in problem
        assert HIDDEN not in problem


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("storage_account", f"DefaultEndpointsProtocol=https;AccountKey={HIDDEN}"),
        ("storage_container", f"https://a.blob.core.windows.net/c?sv=1&sig={HIDDEN}"),
        ("storage_account", HIDDEN + "x" * (86 - len(HIDDEN)) + "=="),
        ("tracking_uri", f"https://me:{HIDDEN}@host/"),
    ],
)
def test_a_secret_within_a_value_is_refused_and_not_repeated(tmp_path: Path, name: str, value: str) -> None:
    by_file = complaints(tmp_path, f"[azure]\n{name} = '{value}'\n")
    by_flag = complaints(tmp_path, "", flags={name: value})
    for problems in (by_file, by_flag):
        assert "contains a secret" in problems[0]
        assert HIDDEN not in "".join(problems)


def test_a_uri_is_shown_without_its_secrets() -> None:
    shown = without_secrets(f"postgresql://me:{HIDDEN}@host/db?sslmode=require&password={HIDDEN}")
    assert shown == "postgresql://***@host/db?sslmode=***&password=***"
    assert without_secrets("sqlite:///runs/mlflow.db") == "sqlite:///runs/mlflow.db"


# --- Flags ------------------------------------------------------------------------------------------------------------


def flags_of(names: list[str], *args: str) -> dict[str, Any]:
    """The `flags` of a command with the options of these settings."""

    @click.command()
    @settings_options(*names)
    @click.option("--other")
    def command(*, flags: dict[str, Any], other: str | None) -> None:
        """A command."""
        click.echo(json.dumps(flags))

    result: dict[str, Any] = json.loads(CliRunner().invoke(command, args, catch_exceptions=False).stdout)
    return result


def test_a_command_has_exactly_the_requested_flags_and_gets_their_texts() -> None:
    assert flags_of(["runs_dir", "max_nodes"]) == {"runs_dir": None, "max_nodes": None}
    assert flags_of(["max_nodes"], "--max-nodes", "x", "--other", "y") == {"max_nodes": "x"}
    assert flags_of(["low_priority"], "--low-priority") == {"low_priority": True}
    assert flags_of(["low_priority"], "--no-low-priority") == {"low_priority": False}
    workspace = flags_of(["workspace"], "--resource-group", "g")
    assert workspace == {"subscription_id": None, "resource_group": "g", "workspace_name": None}


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_each_flag_names_its_variable(name: str) -> None:
    @click.command()
    @settings_options(name)
    def command(flags: dict[str, Any]) -> None:
        """A command."""

    result = " ".join(CliRunner().invoke(command, ["--help"]).stdout.split())
    (spec,) = (spec for spec in settings_table() if spec.name == name)
    assert (spec.flag or f"--{name.replace('_', '-')}") in result
    assert f"variable MSGGAN_{name.upper()}]" in result
    assert ("[default: " in result or "; default: " in result) == (spec.default is not None)


# --- config show ------------------------------------------------------------------------------------------------------


def test_config_show_prints_each_setting_with_its_value_and_source(run_program: RunProgram, tmp_path: Path) -> None:
    path = tmp_path / "msggan.toml"
    path.write_text(
        "[azure]\nmax_nodes = 3\n[workspace]\nsubscription_id='s'\nresource_group='g'\nworkspace_name='w'\n"
    )
    variables = {
        "MSGGAN_RUNS_DIR": "r",
        "MSGGAN_STORAGE_KEY": HIDDEN,
        "MSGGAN_TRACKING_URI": f"http://me:{HIDDEN}@host",
    }
    ended = run_program("msggan-aml", "config", "show", **variables)
    assert (ended.exit_code, ended.stderr) == (0, "")
    rows = [line.split(maxsplit=2) for line in ended.stdout.splitlines()]
    assert ended.stdout.startswith("NAME ")
    names = [row[0] for row in rows]
    assert names[1:4] == ["subscription_id", "resource_group", "workspace_name"]
    assert names[4:] == [*NAMES, "MSGGAN_STORAGE_KEY", "MSGGAN_STORAGE_SAS"]
    for row in (
        ["workspace_name", "w", str(path)],
        ["max_nodes", "3", str(path)],
        ["runs_dir", "r", "variable MSGGAN_RUNS_DIR"],
        ["tracking_uri", "http://***@host", "variable MSGGAN_TRACKING_URI"],
        ["low_priority", "false", "default"],
        ["instance_type", "not", "set default"],
        ["tags", "not", "set default"],
        ["MSGGAN_STORAGE_KEY", "set"],
        ["MSGGAN_STORAGE_SAS", "not", "set"],
    ):
        assert [" ".join(word.split()) for word in rows[names.index(row[0])]] == row

    result = run_program("msggan-aml", "config", "show", "-o", "json", **variables)
    assert result.json["workspace"] == {
        "subscription_id": "s",
        "resource_group": "g",
        "workspace_name": "w",
        "source": str(path),
    }
    assert list(result.json["settings"]) == NAMES
    assert result.json["settings"]["max_nodes"] == {"value": 3, "source": str(path)}
    assert result.json["settings"]["instance_type"] == {"value": None, "source": "default"}
    assert result.json["secrets"] == {"MSGGAN_STORAGE_KEY": True, "MSGGAN_STORAGE_SAS": False}
    assert HIDDEN not in ended.stdout + result.stdout


def test_config_show_credits_each_part_of_the_workspace_to_its_own_variable(run_program: RunProgram) -> None:
    variables = {"subscription_id": "AZUREML_ARM_SUBSCRIPTION", "resource_group": "AZUREML_ARM_RESOURCEGROUP"}
    variables |= {"workspace_name": "AZUREML_ARM_WORKSPACE_NAME"}
    ended = run_program("msggan-aml", "config", "show", **dict.fromkeys(variables.values(), "x"))
    rows = [line.split() for line in ended.stdout.splitlines()[1:4]]
    assert rows == [[part, "x", "variable", variable] for part, variable in variables.items()]


def test_config_show_reports_problems(run_program: RunProgram, tmp_path: Path) -> None:
    (tmp_path / "msggan.toml").write_text("[azure]\ncompute = 'x'\n")
    ended = run_program("msggan-aml", "config", "show", "-o", "xml")
    assert ended.exit_code == 2
    assert [line.split(":")[0] for line in ended.stderr.splitlines()] == ["Error", "Error"]
