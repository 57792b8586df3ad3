"""The programs: their results, their error messages and their exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from support.images import draw_tiny_images
from support.programs import Ended, environment, run_in, started, stopped, wait_for

from msggan.commands.options import Hardware, nearest
from msggan.commands.program import ReportedError
from msggan.commands.program import run_program as run_here
from msggan.config import TrainConfig
from msggan.errors import UsageError
from msggan.tracking.metrics_log import read_metrics
from msggan.train import train
from orchestration import LocalTarget, RunSpec, RunStatus
from orchestration.commands.main import msggan_aml
from orchestration.commands.terminal import as_typed
from orchestration.errors import JobFailedError
from orchestration.local.process import ExitResult
from orchestration.local.target import build_run
from orchestration.runs import next_commands
from orchestration.spec import default_name, name_problems
from orchestration.targets import choose

WHAT = ["--resolution", "8", "--latent-size", "8", "--batch-size", "4"]
SMALL = [*WHAT, "--kimg", "0.04", "--device", "cpu"]
# Reports begin early and every two dozen images, so that a test can see that the steps have begun.
ENDLESS = [*WHAT, "--kimg", "1000000", "--metric-kimg", "0.024", "--device", "cpu"]
WORKSPACE = {"subscription_id": "s", "resource_group": "g", "workspace_name": "w"}
RUN_KEYS = {"name", "target", "state", "run_dir", "job_id", "portal_url", "images_seen", "metrics", "next"}

TRACKED = {"MSGGAN_TRACKING_URI": ""}  # as if it were not set

RunProgram = Callable[..., Ended]
posix = pytest.mark.skipif(os.name == "nt", reason="signals between processes are POSIX's")


# --- Wrong options ----------------------------------------------------------------------------------------------------

WRONG_VALUES = {
    "--data": "flowrs",
    "--resolution": "48",
    "--kimg": "0",
    "--loss": "nonsense",
    "--device": "gpu",
    "--workers": "x",
}
WRONG = [word for flag_and_value in WRONG_VALUES.items() for word in flag_and_value]


@pytest.mark.parametrize(
    ("program", "more", "flags"),
    [
        ("msggan.train", [], {"--run-dir"}),
        ("msggan-aml", ["submit", "--name", "a/b", "--target", "moon"], {"--name", "--target"}),
    ],
)
def test_all_invalid_options_are_reported_at_once(
    run_program: RunProgram, tmp_path: Path, program: str, more: list[str], flags: set[str]
) -> None:
    (tmp_path / "flowers").mkdir()
    ended = run_program(program, *more, *WRONG)
    lines = ended.stderr.splitlines()
    assert ended.exit_code == 2
    assert ended.stdout == ""
    assert all(line.startswith("Error: --") for line in lines)
    assert {line.split()[1].rstrip(":") for line in lines} == flags | WRONG_VALUES.keys()
    assert "Error: --data flowrs: not found. Did you mean flowers?" in lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flowers"]


@pytest.mark.parametrize(
    ("program", "args", "message"),
    [
        ("msggan.train", ["--resolutio", "8"], "--resolution"),
        ("msggan-aml", ["submit", "--dataa", "x"], "Did you mean"),
        ("msggan-aml", ["submit", "--data"], "--data"),
        ("msggan-aml", ["submot"], "submot"),
        ("msggan.train", ["extra"], "extra"),
        ("msggan-aml", ["submit"], "--data is required."),
        ("msggan-aml", ["submit", "--data", ".", "--name", ""], "--name"),
        ("msggan-aml", ["submit", "--data", ".", "--name", "x" * 64], "has 64 characters; at most 63"),
    ],
)
def test_with_json_only_an_error_object_is_on_stdout_and_its_text_on_stderr(
    run_program: RunProgram, program: str, args: list[str], message: str
) -> None:
    ended = run_program(program, *args, MSGGAN_OUTPUT="json")
    error = ended.json["error"]
    assert ended.exit_code == 2
    assert error.keys() == {"code", "message", "hint"}
    assert error["code"] == "usage"
    assert message in error["message"]
    assert f"Error: {error['message']}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_json_flag_applies_to_errors_of_parsing(run_program: RunProgram) -> None:
    ended = run_program("msggan-aml", "submit", "-o", "json", "--nonsense")
    assert ended.json["error"]["hint"] == "See: msggan-aml submit --help"


def test_an_invalid_output_is_reported_with_the_other_problems(run_program: RunProgram) -> None:
    ended = run_program("msggan-aml", "submit", "-o", "xml")
    assert ended.stderr.splitlines() == [
        "Error: --data is required. Name a folder, a zip or a pack of images.",
        "Error: --output xml: must be one of text, json.",
    ]


def error_of(command: click.Command, *args: str) -> str:
    """What a command line that cannot be read is answered, without the hint after it."""
    response = StringIO()
    with redirect_stderr(response):
        assert run_here(command, name="msggan-aml", argv=args) == 2
    (line,) = (line for line in response.getvalue().splitlines() if line.startswith("Error: "))
    return line.removeprefix("Error: ")


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        ("train", "'submit'"),
        ("run", "'submit'"),
        ("start", "'submit'"),
        ("resume", "'submit'"),
        ("Submit", "'submit'"),
        ("submot", "'submit'"),
        ("sumbit photos", "'submit'"),
        ("ls", "'list'"),
        ("ps", "'list'"),
        ("show", "'status'"),
        ("stauts", "'status'"),
        ("stop", "'cancel'"),
        ("kill", "'cancel'"),
        ("generate", "'sample'"),
        ("samples", "'sample'"),
        ("log", "'logs'"),
        ("dowload", "'download'"),
        ("settings", "'config show'"),
        ("version", "'--version'"),
        ("help", "'--help'"),
        ("config shwo", "'show'"),
        ("config list", "'show'"),
        ("sweep bset s", "'best'"),
        ("sweep status s", "'msggan-aml status'"),
        ("images", "'submit images'"),
        ("images --kimg 1", "'submit images'"),
    ],
)
def test_an_unknown_command_gets_a_suggestion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: str, meant: str
) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    word = args.split()[args.startswith(("config", "sweep"))]
    assert error_of(msggan_aml, *args.split()) == f"No such command {word!r}. Did you mean {meant}?"


@pytest.mark.parametrize("word", ["delete", "rm", "remove"])
def test_an_attempt_to_delete_a_run_explains_how(word: str) -> None:
    assert error_of(msggan_aml, word, "one") == (
        f"No such command {word!r}. A run is a folder: delete the folder. To stop a run, use 'cancel'."
    )


def test_a_name_unlike_any_command_gets_no_suggestion() -> None:
    assert error_of(msggan_aml, "xyzzy") == "No such command 'xyzzy'."


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        ("submit --dataset x", "'--data'"),
        ("submit --images x", "'--data'"),
        ("submit --epochs 3", "'--kimg'"),
        ("submit --lr 1", "'--g-lr' or '--d-lr'"),
        ("submit --image-size 8", "'--resolution'"),
        ("submit --gpu 0", "'--device'"),
        ("submit --res 8", "'--resolution'"),
        ("submit --batch_size 8", "'--batch-size'"),
        ("submit --batchsize 8", "'--batch-size' or '--latent-size'"),
        ("submit --no-mirrors", "'--no-mirror' or '--mirror'"),
        ("submit --kmig 8", "'--kimg'"),
        ("submit -data x", "'--data'"),
        ("submit -kimg 8", "'--kimg'"),
        ("sweep --dataset x", "'--data'"),
        ("sweep best s --forec", "'--force'"),
        ("logs x --folow", "'--follow'"),
        ("logs x -f", "'--follow'"),
        ("download x --output-dir y", "'--out' or '--runs-dir'"),
        ("config show --ouput json", "'--output'"),
    ],
)
def test_an_unknown_option_gets_the_most_similar_one(args: str, meant: str) -> None:
    option = next(word for word in args.split() if word.startswith("-"))
    assert error_of(msggan_aml, *args.split()) == f"No such option {option!r}. Did you mean {meant}?"


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        ("--dataset x", "'--data'"),
        ("--epochs 3", "'--kimg'"),
        ("--output-dir x", "'--run-dir'"),
        ("--resolutio 8", "'--resolution'"),
    ],
)
def test_the_trainer_suggests_options_too(args: str, meant: str) -> None:
    option, _, value = args.partition(" ")
    assert error_of(train, option, value) == f"No such option {option!r}. Did you mean {meant}?"


def test_an_option_before_its_command_is_explained() -> None:
    answer = "No such option '--data'. Did you mean 'submit --data'?"
    assert error_of(msggan_aml, "--data", "images", "submit") == answer


def test_suggestions_are_sorted_by_similarity() -> None:
    assert nearest("--batch", ["--a", "--match", "--batches", "--batch-size"]) == [
        "--batches",
        "--match",
        "--batch-size",
    ]


@pytest.mark.parametrize(("args", "command"), [([], "submit"), (["config"], "show")])
def test_no_command_shows_the_help_and_is_a_usage_error(run_program: RunProgram, args: list[str], command: str) -> None:
    ended = run_program("msggan-aml", *args)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert command in ended.stderr


@pytest.mark.parametrize(
    ("program", "args"),
    [
        ("msggan-aml", ["submit"]),
        ("msggan-aml", ["sample"]),
        ("msggan-aml", ["config"]),
        ("msggan-aml", ["config", "show"]),
        ("msggan-aml", []),
        ("msggan.train", []),
        ("msggan.sample", []),
    ],
)
def test_help_goes_to_stdout(run_program: RunProgram, program: str, args: list[str]) -> None:
    ended = run_program(program, *args, "--help")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert "Usage:" in ended.stdout


# --- The images as an argument ----------------------------------------------------------------------------------------


def test_images_are_an_argument_or_an_option(run_program: RunProgram, tiny_images: Path) -> None:
    plans = [
        run_program("msggan-aml", *args, "--dry-run", "-o", "json")
        for args in (["submit", "tiny"], ["submit", *SMALL, "tiny"], ["submit", "--data", "tiny"])
    ]
    assert [plan.json["command"][3:5] for plan in plans] == 3 * [["--data", "tiny"]], plans
    assert plans[0] == plans[2]


def test_the_images_of_a_sweep_are_an_argument_or_an_option(run_program: RunProgram, tiny_images: Path) -> None:
    over = ["--over", "g_lr", "--trials", "2"]
    plans = [
        run_program("msggan-aml", "sweep", *args, "--dry-run", "-o", "json")
        for args in (["tiny", *over], [*over, "tiny"], ["--data", "tiny", *over])
    ]
    assert plans[0].json["run_dir"] == str(Path("runs/tiny-sweep"))
    assert plans[0] == plans[1] == plans[2]


def test_a_command_of_a_group_that_takes_images_takes_none() -> None:
    response = CliRunner().invoke(msggan_aml, ["sweep", "best", "--help"], prog_name="msggan-aml").stdout
    assert response.splitlines()[0] == "Usage: msggan-aml sweep best [OPTIONS] NAME"
    assert error_of(msggan_aml, "sweep", "--kimg", "1", "best", "s") == "Write 'best' before all options."


@pytest.mark.parametrize("command", ["submit", "sweep"])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tiny", "--data", "other"], "tiny and --data other: give the images once."),
        (["tiny", "nowhere"], "tiny, nowhere: give one folder, zip or pack of images."),
        (["my", "images"], "my, images: write a path with spaces in quotes: 'my images'."),
        (["tiny/00.png", "tiny/01.png", "tiny/02.png"], "tiny/00.png and 2 more: give the folder of the images: tiny."),
    ],
)
def test_several_paths_to_images_are_a_usage_error_with_the_right_command(
    tiny_images: Path, monkeypatch: pytest.MonkeyPatch, command: str, args: list[str], message: str
) -> None:
    tiny_images.with_name("my images").mkdir()
    monkeypatch.chdir(tiny_images.parent)
    assert error_of(msggan_aml, command, *args) == message


# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "flowers-2", "0_x", "x" * 63])
def test_good_names_have_no_problems(name: str) -> None:
    assert name_problems(name) == []


@pytest.mark.parametrize("name", ["", "a/b", "..", "-a", "_a", "a b", "a.b", "é", "x" * 64, "a\n"])
def test_bad_names_are_named(name: str) -> None:
    assert len(name_problems(name)) == 1
    with pytest.raises(UsageError):
        RunSpec(TrainConfig(), "images", name)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("flowers", "flowers"),
        ("/data/My Photos (2)/", "My-Photos-2"),
        ("/data/flowers.zip", "flowers"),
        ("/data/flowers.v2", "flowers-v2"),
        ("/data/__café__", "cafe"),
        ("/data/" + "x" * 80, "x" * 63),
        ("/data/flowers/../roses", "roses"),
    ],
)
def test_a_run_is_named_after_its_images(data: str, name: str) -> None:
    assert default_name(data) == name


@pytest.mark.parametrize("data", ["/", "/data/花", "/data/...", "."])
def test_every_path_gives_a_good_name_and_always_the_same(data: str) -> None:
    assert name_problems(default_name(data)) == []
    assert default_name(data) == default_name(data)


def test_names_in_other_scripts_stay_apart() -> None:
    assert default_name("/data/花") != default_name("/data/木")


# --- Which target -----------------------------------------------------------------------------------------------------


def test_without_a_workspace_auto_is_this_machine() -> None:
    assert choose("auto", None) == ("local", "no Azure ML workspace is configured")


def test_auto_is_azure_if_a_workspace_is_configured_and_reports_its_source(
    run_program: RunProgram, tmp_path: Path
) -> None:
    draw_tiny_images(tmp_path / "tiny")
    (tmp_path / "config.json").write_text(json.dumps(WORKSPACE))
    ended = run_program("msggan-aml", "submit", "--data", "tiny", "--dry-run", "-o", "json")
    assert ended.json["target"] == "azure"
    assert f" is set in {tmp_path / 'config.json'})." in ended.stderr


def test_azure_without_a_workspace_is_an_error_that_says_how_to_set_one(
    run_program: RunProgram, tmp_path: Path
) -> None:
    draw_tiny_images(tmp_path / "tiny")
    ended = run_program("msggan-aml", "submit", "--data", "tiny", "--target", "azure", "--dry-run")
    assert ended.exit_code == 2
    assert "No Azure ML workspace is configured." in ended.stderr
    assert "config.json" in ended.stderr


# --- Dry run ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny_images")
def test_a_dry_run_prints_the_command_and_starts_nothing(run_program: RunProgram, tmp_path: Path) -> None:
    args = ["submit", "--data", "tiny", "--target", "local", *SMALL, "--no-mirror"]
    run_dir = str(Path("runs/tiny"))
    args += ["--dry-run", "-o", "json"]
    plan = run_program("msggan-aml", *args, python=sys.executable, **TRACKED).json
    needed = plan.pop("plan")
    assert needed["memory_bytes"] > needed["disk_bytes"] > 0
    assert plan == {
        "target": "local",
        "command": [
            *[sys.executable, "-m", "msggan.train", "--data", "tiny", "--run-dir", run_dir],
            *[*WHAT, "--kimg", "0.04", "--no-mirror", "--device", "cpu"],
        ],
        "env": {"MSGGAN_OUTPUT": "json", "MSGGAN_TRACKING_URI": "sqlite:///runs/mlflow.db"},
        "run_dir": run_dir,
    }
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("tiny_images")
def test_a_dry_run_in_text_is_a_line_that_a_shell_can_run(run_program: RunProgram) -> None:
    args = ["submit", "--data", "tiny", "--dry-run"]
    ended = run_program("msggan-aml", *args, python=sys.executable, **TRACKED)
    (line,) = ended.stdout.splitlines()
    assert re.search(r"Besides its images, the run needs about \d.* MiB of memory and \d+ MiB of disk", ended.stderr)
    args = shlex.split(line)
    variables, command = args[:2], args[2:]
    assert variables == ["MSGGAN_OUTPUT=json", "MSGGAN_TRACKING_URI=sqlite:///runs/mlflow.db"]
    assert command == [sys.executable, "-m", "msggan.train", "--data", "tiny", "--run-dir", str(Path("runs/tiny"))]


def test_the_flag_for_the_runs_folder_precedes_the_variable(run_program: RunProgram, tiny_images: Path) -> None:
    args = ["submit", "--data", "tiny", "--dry-run", "-o", "json"]
    variables = {"MSGGAN_RUNS_DIR": "elsewhere"}
    assert run_program("msggan-aml", *args).json["run_dir"] == str(Path("runs/tiny"))
    assert run_program("msggan-aml", *args, **variables).json["run_dir"] == str(Path("elsewhere/tiny"))
    flagged = run_program("msggan-aml", *args, "--runs-dir", "here", **variables)
    assert flagged.json["run_dir"] == str(Path("here/tiny"))


def test_problems_of_settings_are_reported_with_all_others(run_program: RunProgram, tmp_path: Path) -> None:
    (tmp_path / "msggan.toml").write_text("[azure]\nrun_dir = 'x'\n")
    ended = run_program("msggan-aml", "submit", "--kimg", "0")
    assert ended.exit_code == 2
    assert ended.stderr.splitlines() == [
        "Error: --data is required. Name a folder, a zip or a pack of images.",
        f"Error: {tmp_path / 'msggan.toml'}: [azure] run_dir: is unknown. Did you mean runs_dir?",
        "Error: --kimg 0: must be more than 0.",
    ]


def test_the_command_contains_configuration_and_hardware() -> None:
    spec = RunSpec(TrainConfig(kimg=1), "images", "one", Hardware("cpu", 2))
    args = "python -m msggan.train --data /in --run-dir /out --kimg 1.0 --device cpu --workers 2"
    assert spec.command(data="/in", run_dir="/out") == args.split()


# --- The response of a child process ------------------------------------------------------------------------------

SPEC = RunSpec(TrainConfig(), "images", "one")


def ended(status: int, stdout: str = "", **more: Any) -> RunStatus:
    return build_run(SPEC, ExitResult(status, stdout, **more), "runs")


@pytest.mark.parametrize(("state", "status"), [("completed", 0), ("cancelled", 6), ("interrupted", 130)])
def test_a_result_becomes_a_run_with_the_childs_exit_code(state: str, status: int) -> None:
    response = {"state": state, "run_dir": "runs/one", "images_seen": 4000, "metrics": {"swd": 1.5}, "next": []}
    run = ended(status, f"a library's chatter\n{json.dumps(response)}\n")
    assert run.exit_code == status
    assert run.as_submitted().keys() == RUN_KEYS
    assert (run.state, run.images_seen, run.metrics) == (state, 4000, {"swd": 1.5})


@pytest.mark.parametrize(
    ("state", "commands"),
    [
        ("completed", ["sample one", "submit --data images --name one --target local --kimg 8.0"]),
        ("interrupted", ["submit --data images --name one --target local"]),
        ("cancelled", ["submit --data images --name one --target local"]),
        ("failed", ["submit --data images --name one --target local"]),
        ("running", ["logs one --follow", "cancel one"]),
    ],
)
def test_the_next_commands_continue_the_run(state: str, commands: list[str]) -> None:
    assert next_commands(SPEC, "runs", state, 4000) == [f"msggan-aml {command}" for command in commands]


@pytest.mark.parametrize(
    ("state", "asked_kimg", "images_seen", "next_kimg"),
    [
        ("completed", 4, 4000, "8.0"),
        ("completed", 1.5, 1504, "3.0"),  # the last batch goes beyond
        ("completed", 0.2, 60_000, "120.0"),  # it was that far before
        ("cancelled", 4, 1000, "4.0"),
        ("cancelled", 0.2, 1000, None),  # on to the --kimg that it was begun with
        ("failed", 4, 4000, None),  # its last checkpoint could not be written
    ],
)
def test_the_next_command_always_continues_training(
    state: str, asked_kimg: float, images_seen: int, next_kimg: str | None
) -> None:
    spec = RunSpec(TrainConfig(kimg=asked_kimg), "images", "one")
    args = next_commands(spec, "runs", state, images_seen)[-1].split()
    assert args[:2] == ["msggan-aml", "submit"]
    assert (args[args.index("--kimg") + 1] if "--kimg" in args else None) == next_kimg


def test_a_program_that_the_shell_does_not_find_is_shown_by_its_path(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "msggan-aml"
    program.parent.mkdir()
    program.touch(mode=0o755)
    assert as_typed("msggan-aml sample one", program=str(program), path="/nowhere") == f"{program} sample one"
    assert as_typed("msggan-aml sample one", program=str(program), path=str(program.parent)) == "msggan-aml sample one"
    assert as_typed("msggan-aml sample one", program="-c", path="/nowhere") == "msggan-aml sample one"


def test_a_childs_error_is_passed_on_unchanged() -> None:
    response = {"error": {"code": "data", "message": "No image.", "hint": "Add some."}}
    with pytest.raises(ReportedError) as raised:
        ended(2, json.dumps(response))
    assert raised.value.as_json() == response
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (-9, "killed by SIGKILL. The most common cause is running out of memory."),
        (-11, "killed by SIGSEGV."),
        (-15, "killed by SIGTERM."),
        (1, "ended with exit code 1 without a result."),
        (0, "ended with exit code 0 without a result."),
    ],
)
def test_a_child_that_dies_silently_has_failed_and_can_be_resumed(status: int, message: str) -> None:
    with pytest.raises(JobFailedError) as raised:
        ended(status, "no json\n")
    assert message in raised.value.message
    assert "same command again" in raised.value.hint
    assert raised.value.exit_code == 1


def test_a_child_terminated_before_its_response_is_cancelled() -> None:
    assert ended(-15, terminated_by_us=True).state == "cancelled"


@posix
def test_a_killed_training_process_is_an_error_and_not_a_result(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    with pytest.raises(JobFailedError, match="SIGKILL"):
        LocalTarget(tmp_path / "runs", python=str(python)).run(SPEC)


def test_an_interpreter_that_cannot_be_started_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match="Cannot start"):
        LocalTarget(tmp_path / "runs", python=str(tmp_path / "none")).run(SPEC)


# --- Training here ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A folder with the run `tiny` in it, trained to its end, and the output of the program."""
    folder = tmp_path_factory.mktemp("finished")
    draw_tiny_images(folder / "tiny")
    ended = run_in(folder, "msggan-aml", "submit", "--data", "tiny", *SMALL, "-o", "json")
    assert ended.exit_code == 0, ended.stderr
    return folder, ended


def test_submit_trains_to_the_end(finished: tuple[Path, Ended]) -> None:
    folder, ended = finished
    run = ended.json
    assert run.keys() == RUN_KEYS
    assert (run["name"], run["target"], run["state"], run["images_seen"]) == ("tiny", "local", "completed", 40)
    assert "Target: local (no Azure ML workspace is configured)." in ended.stderr
    assert "Traceback" not in ended.stderr
    run_dir = folder / run["run_dir"]
    assert (run_dir / "generator.safetensors").is_file()
    assert list((run_dir / "samples").glob("*_8px.png"))


def test_repeating_the_command_changes_nothing_and_shows_the_next(finished: tuple[Path, Ended]) -> None:
    folder, _ = finished
    ended = run_in(folder, "msggan-aml", "submit", "--data", "tiny", *SMALL)
    assert ended.exit_code == 0, ended.stderr
    summary, look, longer = ended.stdout.splitlines()
    assert summary == f"tiny: completed after 40 images. Samples: {Path('runs/tiny/samples')}"
    assert look == "Next: msggan-aml sample tiny"
    assert longer.startswith("Next: msggan-aml submit --data tiny --name tiny --target local ")
    assert "--kimg 0.08" in longer


def test_another_configuration_for_the_same_run_is_refused_once_and_by_name(finished: tuple[Path, Ended]) -> None:
    folder, _ = finished
    ended = run_in(folder, "msggan-aml", "submit", "--data", "tiny", *SMALL, "--seed", "5", "-o", "json")
    assert ended.exit_code == 2
    assert "--seed" in json.dumps(ended.json["error"])
    assert ended.stderr.count("Error: ") == 1


def test_the_printed_command_runs_the_training(run_program: RunProgram, tmp_path: Path, tiny_images: Path) -> None:
    plan = run_program("msggan-aml", "submit", "--data", "tiny", *SMALL, "--dry-run", "-o", "json").json
    ended = subprocess.run(
        plan["command"],
        env=environment(**plan["env"]),
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout).keys() == {"state", "run_dir", "images_seen", "metrics", "next"}


def test_a_folder_without_images_is_reported_once_with_the_childs_error(
    run_program: RunProgram, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    ended = run_program("msggan-aml", "submit", "--data", "empty", *SMALL, "-o", "json")
    assert (ended.exit_code, ended.json["error"]["code"]) == (2, "data")
    assert ended.stderr.count("Error: ") == 1
    assert "Traceback" not in ended.stderr


ENDINGS = {"Ctrl-C": ("interrupted", 130), "SIGTERM": ("cancelled", 6)}


@contextmanager
def endless(program: str, *args: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A training that goes on for ever, past its first steps."""
    with started(folder, program, *args, *ENDLESS, "-o", "json") as process:
        wait_for(lambda: any(path.stat().st_size for path in folder.glob("**/metrics.jsonl")), process)
        yield process


@posix
@pytest.mark.parametrize(
    ("program", "args"),
    [
        pytest.param("msggan.train", ["--data", "tiny", "--run-dir", "runs/tiny"], marks=pytest.mark.slow),
        ("msggan-aml", ["submit", "--data", "tiny"]),
    ],
)
@pytest.mark.parametrize("by", ["Ctrl-C", pytest.param("SIGTERM", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("tiny_images")
def test_a_stopped_run_saves_a_checkpoint_reports_it_and_resumes(
    tmp_path: Path, program: str, args: list[str], by: str
) -> None:
    state, exit_code = ENDINGS[by]
    with endless(program, *args, folder=tmp_path) as process:
        ended = stopped(process, by)
    assert ended.exit_code == exit_code, ended.stderr
    assert ended.json["state"] == state
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.glob("runs/tiny/checkpoints/*.safetensors"))

    seen = ended.json["images_seen"]
    again = run_in(tmp_path, program, *args, "--kimg", seen / 1000 + 0.04, "-o", "json")
    assert again.exit_code == 0, again.stderr
    assert f"{seen / 1000:g} of {seen / 1000 + 0.04:g} kimg done" in again.stderr
    assert again.json["state"] == "completed"


@posix
@pytest.mark.usefixtures("tiny_images")
def test_a_background_run_of_a_script_ignores_ctrl_c_but_not_sigterm(tmp_path: Path) -> None:
    metrics = tmp_path / "runs" / "tiny" / "metrics.jsonl"
    args = ["submit", "--data", "tiny", *ENDLESS, "-o", "json"]
    with started(tmp_path, "msggan-aml", *args, background=True) as process:
        wait_for(lambda: read_metrics(metrics), process)
        os.killpg(process.pid, signal.SIGINT)
        lines = len(read_metrics(metrics)) + 3  # one that was stopped would write one more
        wait_for(lambda: len(read_metrics(metrics)) >= lines, process)
        ended = stopped(process, "SIGTERM")
    assert (ended.exit_code, ended.json["state"]) == (6, "cancelled")


# --- The beginning and the end of any program -------------------------------------------------------------------------

PROGRAM = """
import click, os, signal, sys
from msggan.commands.program import run_program
@click.command()
def command(): {body}
sys.exit(run_program(command, name="command"))
"""


@pytest.mark.parametrize(
    ("body", "exit_code", "code", "text"),
    [
        ("raise KeyboardInterrupt", 130, "interrupted", "Interrupted."),
        ("os.kill(os.getpid(), signal.SIGTERM); signal.pause()", 6, "cancelled", "Stopped by SIGTERM."),
        ("open('none')", 1, "system", "Error: none: No such file or directory."),
        ("raise click.UsageError('No.')", 2, "usage", "Error: No."),
        (
            *("from msggan.errors import TrainingError; raise TrainingError('It broke.', 'Mend it.')", 1, "training"),
            "Error: It broke.\nMend it.",
        ),
        (
            *(r"from msggan.errors import DataError; raise DataError('No image.\n  a.png: cut.')", 2, "data"),
            "Error: No image.\n  a.png: cut.",
        ),
    ],
)
@posix
def test_every_outcome_has_its_exit_code_and_error(
    tmp_path: Path, body: str, exit_code: int, code: str, text: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        env=environment(MSGGAN_OUTPUT="json"),
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ended.returncode == exit_code
    assert json.loads(ended.stdout)["error"]["code"] == code
    assert ended.stderr.strip().startswith(text)


def test_text_that_the_locale_cannot_encode_does_not_crash_a_program() -> None:
    body = "from msggan.commands.program import print_json; click.echo('naïve → ×'); print_json({'name': 'naïve → ×'})"
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        env=environment(PYTHONIOENCODING="latin-1"),
        capture_output=True,
        encoding="latin-1",
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    text, response = ended.stdout.splitlines()
    assert (text, json.loads(response)) == ("naïve \\u2192 ×", {"name": "naïve → ×"})


def test_numbers_without_a_json_form_become_null() -> None:
    from msggan.commands.program import print_json

    @click.command()
    def command() -> None:
        print_json({"metrics": {"swd": float("nan"), "d_loss": 1.5}, "next": [float("inf")]})

    assert json.loads(CliRunner().invoke(command).stdout) == {"metrics": {"swd": None, "d_loss": 1.5}, "next": [None]}
