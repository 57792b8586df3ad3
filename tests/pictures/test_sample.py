"""`msggan-aml sample` and `python -m msggan.sample` as programs: files, error messages, exit codes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.builders import save_run
from support.programs import Ended, started, stopped, wait_for

from msggan.errors import UsageError
from orchestration.runs import find_run

RunProgram = Callable[..., Ended]
posix = pytest.mark.skipif(os.name == "nt", reason="signals between processes are POSIX's")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The run `flowers`, in `runs` of the test's folder."""
    save_run(tmp_path / "runs" / "flowers", samples=2)
    return tmp_path / "runs" / "flowers"


def test_both_programs_make_the_same_files_of_a_run(run_program: RunProgram, tmp_path: Path, run: Path) -> None:
    args = ["--files", "--grid", "--seeds", "3,7", "--scale", "8", "--device", "cpu", "-o", "json"]
    named = run_program("msggan-aml", "sample", "flowers", *args)
    foldered = run_program("msggan.sample", "--run-dir", "runs/flowers", "--out", "out", *args)
    assert named.exit_code == 0, named.stderr
    assert foldered.exit_code == 0, foldered.stderr
    names = ["grid_seeds3,7_8px.png", "seed000003_8px.png", "seed000007_8px.png"]
    folders = [str(Path("runs/flowers/generated")), "out"]
    for ended, folder in zip([named, foldered], folders, strict=True):
        assert ended.json == {"files": [str(Path(folder) / name) for name in names], "count": 3}
    for name in names:
        assert (tmp_path / folders[0] / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_films_are_made_in_text_that_names_them(run_program: RunProgram, tmp_path: Path, run: Path) -> None:
    args = ["--film", "loop.mp4", "--progress-film", "training.webp", "--seconds", "0.2", "--num", "3"]
    ended = run_program("msggan-aml", "sample", "runs/flowers", "--out", "films", *args)
    assert ended.exit_code == 0, ended.stderr
    assert ended.stdout.splitlines() == [str(Path("films/loop.mp4")), str(Path("films/training.webp"))]
    assert "Making 10 pictures" in ended.stderr
    assert (tmp_path / "films" / "loop.mp4").read_bytes()[4:8] == b"ftyp"
    assert (tmp_path / "films" / "training.webp").read_bytes()[8:12] == b"WEBP"


def test_many_files_are_reported_in_few_lines(run_program: RunProgram, run: Path) -> None:
    ended = run_program("msggan.sample", "--run-dir", run, "--files", "--num", "30", "--out", "out")
    lines = ended.stdout.splitlines()
    assert (len(lines), lines[-1]) == (5, "and 26 more.")


@pytest.mark.parametrize(
    ("program", "args", "where"),
    [
        ("msggan-aml", ["sample", "flwers"], "No run 'flwers' in runs"),
        ("msggan.sample", ["--run-dir", "x"], "--run-dir"),
    ],
)
@pytest.mark.usefixtures("run")
def test_all_wrong_options_are_reported_at_once_and_nothing_is_loaded(
    run_program: RunProgram, program: str, args: list[str], where: str
) -> None:
    ended = run_program(program, *args, "--seeds", "a,3-1", "--film", "x.gif", "--truncation", "2", "-o", "json")
    assert ended.exit_code == 2
    result = ended.json["error"]["message"].splitlines()
    assert result[0].startswith(where)
    assert [line.split(":")[0] for line in result[1:]] == [
        "--seeds a,3-1",
        "--film x.gif",
        "--truncation 2",
    ]
    assert "--seeds a,3-1: a is not a seed; 3-1 goes backwards. Write 0-15 or 3,7,9." in result
    assert ended.stderr.count("Error: ") == 4


def damage(run: Path) -> None:
    (run / "generator.safetensors").write_bytes(b"nonsense")


def lose(run: Path) -> None:
    (run / "generator.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "message", "hint"),
    [
        (damage, "is not a complete generator.safetensors", "resume the run"),
        (
            lose,
            "flowers: has no weights yet.",
            "The first checkpoint writes them. Show its progress: msggan-aml status runs",
        ),
    ],
)
def test_unusable_weights_are_reported_once_with_the_next_step(
    run_program: RunProgram, run: Path, spoil: Callable[[Path], None], message: str, hint: str
) -> None:
    spoil(run)
    ended = run_program("msggan-aml", "sample", "flowers", "-o", "json")
    error = ended.json["error"]
    assert (ended.exit_code, error["code"]) == (2, "checkpoint")
    assert message in error["message"]
    assert hint in error["hint"]
    assert ended.stderr.count("Error: ") == 1
    assert "Traceback" not in ended.stderr


def test_existing_files_are_overwritten_only_with_force(run_program: RunProgram, run: Path) -> None:
    existing = run / "generated" / "grid_seeds0-15_16px.png"
    existing.parent.mkdir()
    existing.write_text("mine")
    refused = run_program("msggan-aml", "sample", "flowers")
    assert (refused.exit_code, existing.read_text()) == (2, "mine")
    assert "grid_seeds0-15_16px.png: already exists." in refused.stderr
    assert "Use --force to overwrite, or another --out." in refused.stderr
    assert run_program("msggan-aml", "sample", "flowers", "--force").exit_code == 0
    assert existing.read_bytes().startswith(b"\x89PNG")


@posix
@pytest.mark.parametrize(
    ("by", "exit_code", "code"),
    [("Ctrl-C", 130, "interrupted"), pytest.param("SIGTERM", 6, "cancelled", marks=pytest.mark.slow)],
)
def test_a_stopped_program_reports_it_and_leaves_complete_files(
    tmp_path: Path, run: Path, by: str, exit_code: int, code: str
) -> None:
    with started(tmp_path, "msggan-aml", "sample", "flowers", "--files", "--num", "100000", "-o", "json") as process:
        wait_for(lambda: list(run.glob("generated/seed*.png")), process)
        ended = stopped(process, by)
    assert ended.exit_code == exit_code, ended.stderr
    assert ended.json["error"]["code"] == code
    assert "Traceback" not in ended.stderr
    assert not list(run.glob("generated/.*"))


# Which run is meant


def test_a_name_is_a_run_in_its_folder_before_it_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowers").mkdir()
    assert find_run("flowers", "runs") == ("flowers", ".")
    (tmp_path / "runs" / "flowers").mkdir(parents=True)
    assert find_run("flowers", "runs") == ("flowers", "runs")
    assert find_run(str(tmp_path / "flowers"), "runs") == ("flowers", ".")
    with pytest.raises(UsageError):
        find_run("", "runs")


def test_an_unknown_name_is_reported_with_a_suggestion_or_the_existing_runs(tmp_path: Path) -> None:
    runs = str(tmp_path)
    with pytest.raises(UsageError, match=r"There are no runs yet\. Start one: msggan-aml submit --data FOLDER$"):
        find_run("flowers", runs)
    for name in ("flowers", "flowers-2", "shoes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    (tmp_path / "images").mkdir()  # no run
    assert find_run("flowers", runs)[0] == "flowers"
    with pytest.raises(UsageError, match=r"Did you mean flowers or flowers-2\?$"):
        find_run("flower", runs)
    with pytest.raises(UsageError, match=r"Available: flowers, flowers-2, shoes\.$"):
        find_run("x", runs)
