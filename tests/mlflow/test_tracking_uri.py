"""Tracking URIs: valid ones are accepted, others are rejected with a suggestion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.programs import Ended

from msggan.commands.program import (
    absolute_uri,
    chosen_tracking_uri,
    sqlite_file,
    tracking_uri_problems,
    view_command,
    without_password,
)

GOOD = [
    "none",
    "sqlite:///runs/mlflow.db",
    "sqlite:////tmp/with a blank/mlflow.db",
    "http://127.0.0.1:5000",
    "https://mlflow.example.com/behind/a/path",
    "azureml://westeurope.api.azureml.ms/mlflow/v1.0/subscriptions/1/resourceGroups/2",
    "databricks",
    "databricks://profile",
    "postgresql://person@host/mlflow",
    "mysql+pymysql://host/mlflow",
]


@pytest.mark.parametrize("uri", GOOD)
def test_an_address_that_may_be_an_mlflow_is_accepted(uri: str) -> None:
    assert tracking_uri_problems(uri, {}) == []
    assert tracking_uri_problems(None, {"MLFLOW_TRACKING_URI": uri}) == []


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("", "plain files. For a file on this machine use sqlite:///PATH/mlflow.db."),
        ("runs/mlruns", "plain files. For a file on this machine use sqlite:///PATH/mlflow.db."),
        ("file:///tmp/mlruns", "plain files. For a file on this machine use sqlite:///PATH/mlflow.db."),
        ("htp://host", "Did you mean http://?"),
        ("ftp://host", "is not one of http, https, azureml"),
        ("sqlite://runs/mlflow.db", "three slashes"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////tmp", "is a folder. Name a file in it: sqlite:////tmp/mlflow.db."),
        ("http://", "has no host"),
        ("http://host:port", "is not a valid address"),
        ("http://host:99999", "is not a valid address"),
        ("http://[::1", "is not a valid address"),
        ("http://a host", "contains a space"),
        ("https://host/?token=abc", "must end before its ? or #."),
    ],
)
def test_another_is_refused_with_what_to_type_instead(uri: str, complaint: str) -> None:
    (problem,) = tracking_uri_problems(uri, {})
    assert problem.startswith(f"--tracking-uri {uri}:")
    assert complaint in problem


@pytest.mark.parametrize(
    ("uri", "instead"),
    [
        ("https://me:secret@host", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("postgresql://me:secret@host/mlflow", "MSGGAN_TRACKING_URI"),
        ("postgresql://me:pass@secret@host/mlflow", "MSGGAN_TRACKING_URI"),
    ],
)
def test_a_password_is_accepted_in_a_variable_but_not_on_a_command_line(uri: str, instead: str) -> None:
    (problem,) = tracking_uri_problems(uri, {})
    assert instead in problem
    assert "secret" not in problem
    assert tracking_uri_problems(None, {"MSGGAN_TRACKING_URI": uri}) == []
    assert "secret" not in without_password(uri) + view_command(uri)


@pytest.mark.parametrize(
    ("uri", "look"),
    [
        ("sqlite:///a/mlflow.db", "mlflow ui --backend-store-uri sqlite:///a/mlflow.db"),
        ("http://me:secret@host:5000", "http://host:5000"),
        ("azureml://host/mlflow/v2.0/subscriptions/s", ""),
    ],
)
def test_only_an_address_that_can_be_opened_is_offered_to_view(uri: str, look: str) -> None:
    assert view_command(uri) == look


def test_a_complaint_about_a_variable_names_it() -> None:
    (problem,) = tracking_uri_problems(None, {"MLFLOW_TRACKING_URI": "mlruns"})
    assert problem.startswith("MLFLOW_TRACKING_URI mlruns:")


def test_the_option_comes_before_our_variable_and_that_before_mlflows() -> None:
    ours, theirs = {"MSGGAN_TRACKING_URI": "http://ours"}, {"MLFLOW_TRACKING_URI": "http://theirs"}
    assert chosen_tracking_uri("http://option", {**ours, **theirs}) == "http://option"
    assert chosen_tracking_uri(None, {**ours, **theirs}) == "http://ours"
    assert chosen_tracking_uri(None, {"MSGGAN_TRACKING_URI": "", **theirs}) == "http://theirs"
    assert chosen_tracking_uri(None, {}) is None


def test_none_switches_it_off_whatever_else_is_set() -> None:
    theirs = {"MLFLOW_TRACKING_URI": "http://theirs"}
    assert chosen_tracking_uri("none", theirs) is None
    assert chosen_tracking_uri(None, {"MSGGAN_TRACKING_URI": "none", **theirs}) is None


def test_an_sqlite_file_is_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = absolute_uri("sqlite:///runs/mlflow.db?timeout=9")
    assert uri == f"sqlite:///{tmp_path.as_posix()}/runs/mlflow.db?timeout=9"
    assert absolute_uri(uri) == uri
    assert sqlite_file(uri) == tmp_path / "runs" / "mlflow.db"
    assert absolute_uri("http://host:5000") == "http://host:5000"
    assert sqlite_file("http://host:5000") is None


def test_it_is_refused_together_with_everything_else_before_anything_starts(run_program: Callable[..., Ended]) -> None:
    ended = run_program("msggan.train", "--run-dir", "run", "--kimg", "x", "--tracking-uri", "mlruns")
    assert ended.exit_code == 2
    assert [line.partition(":")[2][1:15] for line in ended.stderr.splitlines()] == [
        "--data is requ",
        "--tracking-uri",
        "--kimg x: is n",
    ]
