"""From images to a trained generator on Azure, using the commands."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from azure.ai.ml import load_job
from azure_local import AzureLocal
from PIL import Image
from support.azure_commands import Command, posix, sdk_warnings
from support.programs import fast_python, run_in, started, stopped, wait_for

from msggan import Generator, TrainConfig, load_generator
from msggan.config import resolve
from orchestration.azure.records import DAILY_FILE
from orchestration.azure.target import AzureTarget
from orchestration.copies import DOWNLOAD_FILE

WHAT = ["--resolution", "8", "--latent-size", "8", "--batch-size", "4", "--device", "cpu"]
SMALL = [*WHAT, "--kimg", "0.04"]
ENDLESS = [*WHAT, "--kimg", "1000000"]
RUN_KEYS = {"name", "target", "state", "run_dir", "job_id", "portal_url", "images_seen", "metrics", "next"}
STATUS_KEYS = RUN_KEYS | {"images_total", "created", "ended", "reason", "signs"}

pytestmark = [posix, sdk_warnings]


def test_from_images_to_a_generator(azure: AzureLocal, workdir: Path, msggan_aml: Command) -> None:
    submitted = run_in(
        workdir, "msggan-aml", "submit", "--data", "tiny", *SMALL, "--yes", "-o", "json", **azure.variables
    )
    assert submitted.exit_code == 0, submitted.stderr
    run = submitted.json
    assert run.keys() == RUN_KEYS
    assert (run["name"], run["target"], run["state"], run["job_id"]) == ("tiny", "azure", "completed", "tiny")
    assert (run["images_seen"], run["run_dir"]) == (40, DATASTORE + "msggan/runs/tiny/")
    assert run["next"] == ["msggan-aml sample tiny", "msggan-aml download tiny"]
    assert run["portal_url"].startswith("https://ml.azure.com/runs/tiny")
    written = azure.artifact("tiny", "user_logs/std_log.txt").decode().splitlines()
    assert [line for line in submitted.stderr.splitlines() if line in written] == written
    assert {metric.key for metric in azure.job("tiny").metrics} >= {"d_loss", "g_loss", "swd", "images_per_second"}

    # The same command again has nothing left to do, and costs nothing.
    again = msggan_aml("submit", "--data", "tiny", *SMALL, "-o", "json")
    assert (again.exit_code, again.json["state"], list(azure.cloud.jobs)) == (0, "completed", ["tiny"])
    assert "the datastore" not in again.stderr  # the images are not looked at

    for more in ([], ["--kimg", "0.02"], ["--detach"]):
        again = msggan_aml("submit", "--data", "tiny", *SMALL, "--num-samples", "9", *more, "-o", "json")
        assert (again.exit_code, again.json["state"], list(azure.cloud.jobs)) == (0, "completed", ["tiny"])
        assert again.stderr.count("Nothing to do: tiny has already been trained this long.") == 1
        assert again.json["images_seen"] == 40

    status = msggan_aml("status", "tiny", "-o", "json").json
    assert status.keys() == STATUS_KEYS
    assert (status["state"], status["images_seen"], status["images_total"]) == ("completed", 40, 40)
    assert status["metrics"].keys() >= {"images", "kimg", "d_loss", "g_loss", "swd"}
    assert status["created"] <= status["ended"]
    assert msggan_aml("logs", "tiny", "--tail", "2", "-o", "json").json == {"name": "tiny", "lines": written[-2:]}

    sampled = msggan_aml("sample", "tiny", "-o", "json")
    assert sampled.exit_code == 0, sampled.stderr
    sampled = msggan_aml("sample", "tiny", "--best", "-o", "json")
    assert [Path(path).name for path in sampled.json["files"]] == ["grid_seeds0-15_8px_best.png"]
    copied = {path.name for path in (workdir / "runs" / "tiny").glob("*.safetensors")}
    assert copied == {"generator.safetensors", "generator_best.safetensors"}
    assert "Train with --snapshot-kimg N" in msggan_aml("sample", "tiny", "--at", "20").stderr

    downloaded = msggan_aml("download", "tiny", "--out", "result", "-o", "json")
    assert downloaded.exit_code == 0, downloaded.stderr
    files = [path for path in (workdir / "result").rglob("*") if path.is_file() and path.name != DOWNLOAD_FILE]
    size = sum(path.stat().st_size for path in files)
    assert downloaded.json == {"files": len(files), "bytes": size, "path": "result"}
    assert {path.name for path in files} >= {"config.json", "metrics.jsonl", "generator.safetensors", "000000040.json"}
    assert isinstance(load_generator(workdir / "result"), Generator)


DATASTORE = "azureml://datastores/workspaceblobstore/paths/"
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4Vd3Fk ann@example.org"


def test_a_dry_run_prints_what_is_sent_and_makes_no_requests(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    azure.hold_jobs("no node is free")
    (workdir / "id.pub").write_text(f"{PUBLIC_KEY}\n")
    args = ["submit", "--data", "tiny", *SMALL, "--compute", "msggan-gpu", "--timeout-hours", "2"]
    args += [
        "--environment",
        "python:3.11-slim",
        "--tag",
        "team=vision",
        "--env",
        "NCCL_DEBUG=INFO",
        "--service",
        "ssh,vscode,tensorboard",
        "--ssh-key",
        "id.pub",
    ]
    dry = msggan_aml(*args, "--dry-run", "-o", "json", HTTPS_PROXY="http://127.0.0.1:9")
    assert dry.exit_code == 0, dry.stderr
    assert azure.requests == []
    (planned,) = dry.json["requests"]
    detached = msggan_aml(*args, "--detach", "--yes", "-o", "json")
    assert (detached.exit_code, detached.json["state"]) == (0, "queued")
    (sent,) = azure.made("PUT", "/jobs/tiny")
    assert (planned["method"], planned["path"]) == (sent.method, sent.path)
    differing = leaves_differing(planned["body"], sent.body)
    assert {path for path, value in differing.items() if "<resolved-at-submit:" not in str(value)} <= {
        "properties.isArchived",
        "properties.tags.msggan.configuration",  # which the hash of the images is part of
    }, differing
    assert sent.body["properties"]["limits"]["timeout"] == "PT2H"
    assert sent.body["properties"]["tags"]["msggan.run"] == "tiny"
    assert sent.body["properties"]["tags"]["team"] == "vision"
    assert sent.body["properties"]["environmentVariables"] == {
        "PYTHONUNBUFFERED": "1",
        "NCCL_DEBUG": "INFO",
        "MSGGAN_TENSORBOARD": "tensorboard",
    }
    assert sent.body["properties"]["services"] == {
        "ssh": {"jobServiceType": "SSH", "properties": {"sshPublicKeys": PUBLIC_KEY}},
        "vscode": {"jobServiceType": "VSCode"},
        "tensorboard": {"jobServiceType": "TensorBoard", "properties": {"logDir": "tensorboard"}},
    }
    assert planned["body"]["properties"]["services"] == sent.body["properties"]["services"]
    assert detached.json["portal_url"].startswith("https://ml.azure.com/runs/tiny?")
    assert f"  {detached.json['portal_url']}" in msggan_aml("status", "tiny").stdout.splitlines()

    exported = msggan_aml("export", "tiny", "--yaml")
    assert exported.exit_code == 0, exported.stderr
    assert "_azureml" not in exported.stdout
    (workdir / "job.yml").write_text(exported.stdout)
    again = load_job(workdir / "job.yml", params_override=[{"name": "again"}])  # az ml job create --set name=again
    AzureTarget.from_config().client.ml.jobs.create_or_update(again)
    assert azure.made("PUT", "/jobs/again")[-1].body == sent.body

    refused = msggan_aml(*args)
    assert refused.exit_code == 2
    assert "msggan-aml logs tiny --follow" in refused.stderr
    status = msggan_aml("status", "tiny", "-o", "json").json
    assert (status["state"], status["reason"]) == ("queued", "no node is free")
    cancelled = msggan_aml("cancel", "tiny", "-o", "json")
    assert (cancelled.exit_code, cancelled.json["state"]) == (0, "cancelled")
    assert " --name tiny --resolution 8 " in cancelled.json["next"][1]  # nothing else knows it: no run folder was made


def test_debug_logs_the_requests_with_their_ids_and_no_secrets(
    azure: AzureLocal, workdir: Path, msggan_aml: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(workdir))
    azure.hold_jobs("no node is free")
    ended = msggan_aml("submit", "--data", "tiny", *SMALL, "--detach", "--yes", "--debug", "-o", "json")
    assert (ended.exit_code, ended.json["state"]) == (0, "queued")
    urls = re.findall(r"Request URL: '(\S+)'", ended.stderr)
    assert any(url.startswith("https://management.azure.com/") for url in urls)
    assert any(".blob.core.windows.net/" in url for url in urls)
    assert {"x-ms-client-request-id", "Response status: 200"} <= set(
        re.findall(r"x-ms-client-request-id|Response status: 200", ended.stderr)
    )
    assert "'Authorization': 'REDACTED'" in ended.stderr
    assert set(re.findall(r"[?&]sig=([^&'\s]*)", ended.stderr)) <= {"REDACTED"}
    assert azure.account_key not in ended.stderr
    assert "Bearer " not in ended.stderr

    (named,) = re.findall(r"The requests to Azure are logged to (\S+), without secrets\.", ended.stderr)
    file = Path(named)
    assert (file.parent, file.stat().st_mode & 0o777) == (workdir, 0o600)
    logged = file.read_text()
    assert set(logged.splitlines()) <= set(ended.stderr.splitlines())
    assert sorted(re.findall(r"Request URL: '(\S+)'", logged)) == sorted(urls)

    quiet = msggan_aml("status", "tiny")
    assert "Request" not in quiet.stderr
    assert "Request URL" in msggan_aml("status", "tiny", "--debug").stderr
    assert (logging.getLogger("azure").handlers, logging.getLogger("azure").level) == ([], logging.NOTSET)
    assert logging.root.manager.disable == logging.NOTSET
    msggan_aml("cancel", "tiny")


def test_an_unchanged_folder_is_packed_once(azure: AzureLocal, workdir: Path, msggan_aml: Command) -> None:
    azure.hold_jobs("no node is free")
    images, records = sorted((workdir / "tiny").iterdir()), workdir / "runs" / ".azure-packs.json"

    def submit(name: str) -> tuple[bool, bool, str]:
        """Whether it packed, whether it uploaded, and the pack."""
        before = len(azure.requests)
        ended = msggan_aml("submit", "--data", "tiny", *SMALL, "--name", name, "--detach", "--yes")
        assert ended.exit_code == 0, ended.stderr
        uploads = [
            request
            for request in azure.requests[before:]
            if request.method == "PUT" and "/msggan/data/" in request.path
        ]
        return "Packed" in ended.stderr, bool(uploads), azure.job(name).properties["inputs"]["data"]["uri"]

    packed, uploaded, pack = submit("first")
    assert (packed, uploaded) == (True, True)
    assert submit("unchanged") == (False, False, pack)
    records.write_bytes(records.read_bytes()[:-20])
    assert submit("damaged") == (True, False, pack)
    images[0].unlink()
    azure.cloud.blobs.container(azure.cloud.account, azure.container).delete_blob(pack.partition("/paths/")[2])
    packed, uploaded, other = submit("changed")
    assert (packed, uploaded, other != pack) == (True, True, True)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_environment_unless_another_one_is_set(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    azure.hold_jobs("no node is free")
    (workdir / "own.txt").write_text("pillow-heif\n")

    def submit(name: str, *args: str) -> tuple[str, str]:
        """The version of the job's environment, and the image that it is based on."""
        ended = msggan_aml("submit", "--data", "tiny", *SMALL, "--name", name, *args, "--detach", "--yes", "-o", "json")
        assert ended.exit_code == 0, ended.stderr
        azure.end_jobs()
        used = azure.job(ended.json["job_id"]).properties["environmentId"].rpartition("/")[2]
        created = azure.cloud.environments["msggan", used].properties
        return used, created["tags"].get("msggan.curated", created.get("image", ""))[-3:]

    first, base = submit("one")
    assert base == ":10"
    azure.cloud.curated_versions = ("9", "10", "11")
    assert submit("one") == (first, base)  # the newest version is looked up once a day
    (workdir / "runs" / DAILY_FILE).unlink()
    renewed, base = submit("one")
    assert (renewed != first, base) == (True, ":11")  # it has not started: there is nothing to keep
    config = resolve(
        TrainConfig(resolution=8, latent_size=8, batch_size=4, kimg=0.04),
        shorter_side_px=8,
        device="cpu",
        has_fast_bfloat16=False,
    )
    azure.put_blob("msggan/runs/one/config.json", json.dumps({"format_version": 1, **asdict(config)}).encode())
    azure.cloud.curated_versions = ("9", "10", "11", "12")
    assert submit("one") == submit("one", "--environment", "curated") == (renewed, ":11")
    assert submit("one", "--environment", "own.txt")[1] == ":11"
    assert submit("one", "--environment", "python:3.11")[1] == ".11"
    (workdir / "runs" / DAILY_FILE).unlink()
    assert submit("two")[1] == ":12"


def leaves_differing(planned: object, sent: object, path: str = "") -> dict[str, object]:
    """The planned values, by path, that differ from the sent ones or are missing on one side."""
    if not (isinstance(planned, dict) and isinstance(sent, dict)):
        return {} if planned == sent else {path: planned}
    found: dict[str, object] = {}
    for key in planned.keys() | sent.keys():
        found |= leaves_differing(planned.get(key), sent.get(key), f"{path}.{key}" if path else key)
    return found


def test_ctrl_c_while_the_job_is_queued_does_not_cancel_it(azure: AzureLocal, workdir: Path) -> None:
    azure.hold_jobs()
    args = ["submit", "--data", "tiny", *ENDLESS, "--yes"]
    with started(workdir, "msggan-aml", *args, python=fast_python(), **azure.variables) as follower:
        wait_for(lambda: "tiny" in azure.cloud.jobs, follower)
        assert follower.stderr is not None
        assert any("waiting for a machine" in line for line in iter(follower.stderr.readline, ""))
        left = stopped(follower, "Ctrl-C")
    assert left.exit_code == 130
    assert "tiny continues as job tiny" in left.stderr
    assert azure.job("tiny").status == "Queued"


@pytest.mark.slow
def test_ctrl_c_does_not_stop_the_run_and_logs_follow_it_to_its_end(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    args = ["submit", "--data", "tiny", *ENDLESS, "--yes"]
    with started(workdir, "msggan-aml", *args, **azure.variables) as follower:
        wait_for(
            lambda: "tiny" in azure.cloud.jobs and b"Training" in azure.artifact("tiny", "user_logs/std_log.txt"),
            follower,
        )
        left = stopped(follower, "Ctrl-C")
    assert left.exit_code == 130
    assert "tiny continues as job tiny" in left.stderr
    assert "msggan-aml logs tiny --follow" in left.stderr
    assert "Error" not in left.stderr
    assert azure.job("tiny").status == "Running"

    with started(workdir, "msggan-aml", "logs", "tiny", "--follow", **azure.variables) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline()
        left = stopped(follower, "Ctrl-C")
    assert left.exit_code == 130
    assert left.stderr.splitlines()[-1] == "Stopped following. The run continues."
    assert "Error" not in left.stderr
    assert azure.job("tiny").status == "Running"

    cancelled = msggan_aml("cancel", "tiny", "-o", "json")
    assert (cancelled.exit_code, cancelled.json["state"]) == (0, "cancelled")
    followed = msggan_aml("logs", "tiny", "--follow")
    assert followed.stdout.splitlines() == azure.artifact("tiny", "user_logs/std_log.txt").decode().splitlines()

    # It has already trained for this smaller --kimg, and stays as it is.
    smaller = msggan_aml("submit", "--data", "tiny", *WHAT, "--kimg", "0.004", "-o", "json")
    assert (smaller.exit_code, smaller.json["state"], list(azure.cloud.jobs)) == (0, "cancelled", ["tiny"])

    # The same command resumes from the last checkpoint, as another job.
    resumed = msggan_aml("submit", "--data", "tiny", *ENDLESS, "--detach", "-o", "json")
    assert resumed.json["job_id"] == "tiny-2"
    listed = msggan_aml("list", "-o", "json").json["runs"]
    assert [(run["name"], run["job_id"], run["target"]) for run in listed] == [("tiny", "tiny-2", "azure")]


def test_a_failed_job_shows_its_last_lines_and_its_exit_code(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    azure.put_blob("other/notes.png", b"no image")
    failed = msggan_aml("submit", "--data", DATASTORE + "other/", *SMALL, "--name", "bad", "--yes", "-o", "json")
    assert failed.exit_code == 1
    assert failed.json["state"] == "failed"
    assert "exit code 2" in failed.stderr
    last = azure.artifact("bad", "user_logs/std_log.txt").decode().splitlines()[-1]
    assert last in failed.stderr


def test_bad_input_is_refused_before_anything_is_sent(azure: AzureLocal, workdir: Path, msggan_aml: Command) -> None:
    sas = "https://msgganstore.blob.core.windows.net/c/images?sv=2024&sig=s3cr3tsecret"
    refused = msggan_aml("submit", "--data", sas, *SMALL, "--yes", "-o", "json")
    assert (refused.exit_code, refused.json["error"]["code"]) == (2, "usage")
    assert "s3cr3tsecret" not in refused.stdout + refused.stderr
    for args, message in (
        (["--data", DATASTORE + "x/", "--target", "local"], "only a job on Azure can read this"),
        (["--data", "tiny", "--target", "local", "--env", "A=b"], "has the variables of your shell: set them there"),
        (["--data", "s3://bucket/x", "--yes"], "is not an address that a job can read"),
        (["--data", "tiny", "--dry-run", "--environment", "no.yml"], "environment no.yml: cannot be read as a conda"),
        (["--data", "tiny", "--dry-run", "--env", "AZUREML_RUN_ID=x"], "Azure ML sets variables of this name itself"),
    ):
        ended = msggan_aml("submit", *args, *SMALL)
        assert (ended.exit_code, message in ended.stderr) == (2, True), ended.stderr
    assert azure.requests == []
    (workdir / "blank").mkdir()
    for grey in range(8):
        Image.new("L", (8, 8), grey).save(workdir / "blank" / f"{grey}.png")
    refused = msggan_aml("submit", "--data", "blank", *SMALL, "--yes", "-o", "json")
    assert (refused.exit_code, refused.json["error"]["message"]) == (2, "blank: all images have one colour only.")
    for args, message in (
        (["--data", "tiny", "--compute", "other"], "Create it: msggan-aml provision --compute other."),
        (["--data", "azureml:nothing:1"], "--data azureml:nothing:1: workspace msggan-ws has no such data asset."),
        (["--data", "azureml:nothing@latest"], "az ml data list --workspace-name msggan-ws --resource-group msggan-rg"),
        (["--data", DATASTORE + "nowhere/"], "there is nothing at this path"),
        (["--data", "tiny", "--instance-type", "Standard_NC4as_T4_v4"], "Standard_NC4as_T4_v3 (1 GPU, 4 cores, 28 GB)"),
    ):
        ended = msggan_aml("submit", *args, *SMALL, "--yes")
        assert (ended.exit_code, message in ended.stderr) == (2, True), ended.stderr
    assert azure.cloud.jobs == {}
    assert azure.blobs_below("msggan/data/") == []
