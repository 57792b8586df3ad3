"""Runs on Azure beyond the usual case: serverless, other images, errors, interrupted downloads, long lists."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient
from azure_local import AzureLocal
from azure_local.cloud import BLOB_CONTAINER, Version, now
from azure_local.jobs_state import Job
from support.azure_commands import Command, posix, sdk_warnings

from msggan import TrainConfig, Trainer
from orchestration.azure import blobs, following
from orchestration.azure.history import LAST_BYTES
from orchestration.copies import DOWNLOAD_FILE
from orchestration.settings import read_settings
from orchestration.spec import RunSpec
from orchestration.status import Reporter

pytestmark = [posix, sdk_warnings]

WHAT = ["--resolution", "8", "--latent-size", "8", "--batch-size", "4", "--device", "cpu"]
SMALL = [*WHAT, "--kimg", "0.04"]
DATASTORE = "azureml://datastores/workspaceblobstore/paths/"
BLOBS = f"https://msgganstore.blob.core.windows.net/{BLOB_CONTAINER}/"
SIZE = "Standard_NC4as_T4_v3"
STD_LOG = "user_logs/std_log.txt"
GENERATOR = "generator.safetensors"


@pytest.fixture
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK retries without waiting."""
    monkeypatch.setattr("azure.core.pipeline.transport.HttpTransport.sleep", lambda self, duration: None)


@pytest.fixture
def images(azure: AzureLocal, workdir: Path) -> str:
    """The path of the images in the default datastore. Jobs do not log to MLflow, which takes long."""
    azure.cloud.job_environment["MSGGAN_TRACKING_URI"] = "none"
    for path in (workdir / "tiny").iterdir():
        azure.put_blob(f"images/{path.name}", path.read_bytes())
    return "images/"


def test_blobs_are_trained_on_serverless(azure: AzureLocal, images: str, msggan_aml: Command) -> None:
    ended = msggan_aml(
        *("submit", "--data", BLOBS + images, *SMALL, "--instance-type", SIZE, "--yes", "-o", "json"),
    )
    assert ended.exit_code == 0, ended.stderr
    assert (ended.json["name"], ended.json["state"], ended.json["images_seen"]) == ("images", "completed", 40)
    assert azure.blobs_below("msggan/data/") == []  # nothing was uploaded
    sent = azure.job("images").properties
    assert "computeId" not in sent
    assert sent["resources"]["instanceType"] == SIZE
    assert sent["inputs"]["data"]["uri"] == BLOBS + images


@pytest.mark.slow
def test_a_job_starts_from_a_local_run_and_resumes_without_it(
    azure: AzureLocal, images: str, workdir: Path, msggan_aml: Command
) -> None:
    config = TrainConfig(resolution=4, latent_size=8, batch_size=4, kimg=0.004)
    Trainer(config, data=workdir / "tiny", run_dir=workdir / "runs" / "small", messages=StringIO()).run()
    args = ["submit", "--data", DATASTORE + images, *SMALL, "--name", "grown", "--yes", "-o", "json"]
    for init, *options, complaint in (
        ("smal", "A run on Azure has to be downloaded first: msggan-aml download NAME"),
        ("small", "--latent-size", "16", "--latent-size 16: the weights of --init small need --latent-size 8."),
    ):
        refused = msggan_aml(*args, "--init", init, *options)
        assert (refused.exit_code, complaint in str(refused.json)) == (2, True), refused.stdout
    assert (azure.blobs_below("msggan/"), azure.cloud.jobs) == ([], {})

    (planned,) = msggan_aml(*args, "--init", "small", "--dry-run").json["requests"]
    ended = msggan_aml(*args, "--init", "small")
    assert (ended.exit_code, ended.json["state"]) == (0, "completed"), ended.stderr
    (weights,) = azure.blobs_below("msggan/init/")
    stored = json.loads(azure.blob("msggan/runs/grown/config.json") or b"")
    assert stored["init"] == f"small@sha256:{Path(weights).stem}"
    sent, given = azure.job("grown").properties, f"--init {stored['init']}"
    assert sent["inputs"]["init"] == {
        **planned["body"]["properties"]["inputs"]["init"],
        "uri": sent["inputs"]["init"]["uri"],
    }
    assert '--init-file "${{inputs.init}}" --run-dir' in sent["command"]
    assert given in sent["command"]
    log = azure.artifact("grown", STD_LOG).decode()
    assert "of the generator's weights (new: 8 px) and" in log

    shutil.rmtree(workdir / "runs" / "small")
    longer = msggan_aml(*args, "--init", "small", "--kimg", "0.08")
    assert (longer.exit_code, longer.json["images_seen"]) == (0, 80), longer.stderr
    assert "init" not in azure.job("grown-2").properties["inputs"]
    assert "--init is small@sha256" in msggan_aml(*args, "--init", "other", "--kimg", "0.1").stderr


def test_a_run_that_reached_its_time_limit_has_failed_with_a_hint(
    azure: AzureLocal, images: str, msggan_aml: Command
) -> None:
    asset = {"dataType": "uri_folder", "dataUri": DATASTORE + images, "isAnonymous": False, "isArchived": False}
    azure.cloud.data["flowers", "3"] = Version("flowers", "3", asset, now())
    endless = [*WHAT, "--kimg", "1000000", "--timeout-hours", "0.0003"]
    ended = msggan_aml("submit", "--data", "azureml:flowers:3", *endless, "--yes", "-o", "json")
    assert (ended.exit_code, ended.json["name"], ended.json["state"]) == (1, "flowers", "failed")
    assert "The job exceeded its time limit of 1 seconds." in ended.stderr
    assert "Increase --timeout-hours." in ended.stderr
    status = msggan_aml("status", "flowers", "-o", "json").json
    assert status["state"] == "failed"
    assert "time limit" in status["reason"]


def test_a_long_list_is_read_page_by_page_up_to_a_limit(azure: AzureLocal, msggan_aml: Command) -> None:
    azure.cloud.page_size = 7
    for number in range(60):
        output = {"jobOutputType": "uri_folder", "uri": f"{DATASTORE}msggan/runs/old-{number}/"}
        job = azure.add_ended_job(f"old-{number}", tags={"msggan.run": f"old-{number}"}, outputs={"run": output})
        job.created = f"2026-01-01T00:00:{number:02d}.000000Z"
    azure.add_ended_job("of-somebody-else", tags={"theirs": "yes"})
    listed = msggan_aml("list", "-o", "json")
    assert listed.exit_code == 0, listed.stderr
    assert [run["name"] for run in listed.json["runs"]] == [f"old-{number}" for number in range(59, 9, -1)]
    assert {run["state"] for run in listed.json["runs"]} == {"completed"}
    assert "Only the newest 50 runs on Azure are listed. Use --limit N for more." in listed.stderr
    requests = [request for request in azure.made("GET", "/jobs") if request.path.endswith("/jobs")]
    assert [request.query["tag"] for request in requests] == ["msggan.run"] * 9 + ["msggan.sweep"]
    some = msggan_aml("list", "--limit", "2", "-o", "json")
    assert [run["name"] for run in some.json["runs"]] == ["old-59", "old-58"]
    assert "--limit 4" in some.stderr
    before = len(azure.requests)
    assert msggan_aml("status", "-o", "json").json["name"] == "old-59"
    details = [request.path for request in azure.requests[before:] if request.path.endswith("/details")]
    assert {path.split("/")[-2] for path in details} == {"old-59"}
    for number in range(10):
        del azure.cloud.jobs[f"old-{number}"]
    all_of_them = msggan_aml("list", "-o", "json")
    assert (all_of_them.json, "Only the newest" in all_of_them.stderr) == (listed.json, False)


def add_jobs(azure: AzureLocal, run: str, **statuses: str) -> list[Job]:
    """The past jobs of a run by name, one per minute, each with two lines of log."""
    output = {"jobOutputType": "uri_folder", "uri": f"{DATASTORE}msggan/runs/{run}/"}
    jobs = []
    for minute, (name, status) in enumerate(statuses.items()):
        job = azure.add_ended_job(name.replace("_", "-"), status, tags={"msggan.run": run}, outputs={"run": output})
        job.created, job.ended = f"2026-01-01T00:{minute:02d}:00.000000Z", f"2026-01-01T00:{minute:02d}:30.123456Z"
        azure.put_artifact(job.name, STD_LOG, f"{job.name} began\n{job.name} ended\n".encode())
        jobs.append(job)
    return jobs


def test_the_jobs_of_a_run_are_one_run_with_the_logs_of_all(azure: AzureLocal, msggan_aml: Command) -> None:
    jobs = add_jobs(azure, "old", old="Failed", old_2="Canceled", old_4="Completed")
    add_jobs(azure, "of-somebody-else", old_3="Failed")  # which has taken the name
    status = msggan_aml("status", "old", "-o", "json").json
    assert (status["state"], status["job_id"]) == ("completed", "old-4")
    assert (status["created"], status["ended"]) == ("2026-01-01T00:00:00Z", "2026-01-01T00:02:30Z")
    lines = [f"{job.name} {what}" for job in jobs for what in ("began", "ended")]
    assert msggan_aml("logs", "old", "-o", "json").json["lines"] == lines
    assert msggan_aml("logs", "old", "--tail", "3").stdout.splitlines() == lines[-3:]
    assert msggan_aml("logs", "old", "--follow").stdout.splitlines() == lines
    azure.add_ended_job("sweep", tags={"msggan.run": "sweep", "msggan.sweep": "sweep"})
    listed = msggan_aml("list", "-o", "json").json["runs"]
    assert [(run["name"], run["job_id"]) for run in listed if run["name"] == "old"] == [("old", "old-4")]
    assert "sweep" not in [run["name"] for run in listed]


def test_following_an_active_run_shows_its_earlier_jobs_too_without_tail(
    azure: AzureLocal, msggan_aml: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PAUSES_S", (0,))
    _, newest = add_jobs(azure, "old", old="Failed", old_2="Running")

    def end() -> None:
        newest.status = "Completed"

    for args, lines in (
        ([], ["old began", "old ended", "old-2 began", "old-2 ended"]),
        (["--tail", "1"], ["old-2 ended"]),
    ):
        newest.status = "Running"
        azure.fault("GET", "old-2/details", nth=2, meanwhile=end)
        followed = msggan_aml("logs", "old", "--follow", *args)
        assert followed.exit_code == 0, followed.stderr
        assert followed.stdout.splitlines() == lines
        azure.faults.clear()


@pytest.mark.parametrize(
    ("status", "error", "state", "reason", "verb"),
    [
        (
            "Canceled",
            "The job exceeded its time limit of 1 seconds.",
            "failed",
            "Increase --timeout-hours.",
            "logs",
        ),
        ("Canceled", "Somebody did.", "cancelled", "", "logs"),
        ("Failed", "Execution failed. User process exited with status code 7.", "failed", "exit code 7", "logs"),
        ("Failed", "AggregatedUnauthorizedAccessError: Failed to pull Docker image x.", "failed", "AcrPull", "logs"),
        ("Failed", "ScriptExecution.StreamAccess.Authentication: no", "failed", "Storage Blob Data Contr", "logs"),
        ("NotResponding", "", "interrupted", "", "logs"),
        ("Completed", "", "completed", "", "sample"),
        ("CancelRequested", "", "running", "", "logs"),
        ("SomethingNew", "", "running", "", "logs"),
    ],
)
def test_the_status_of_a_job_has_our_state_and_a_reason(
    azure: AzureLocal, msggan_aml: Command, *, status: str, error: str, state: str, reason: str, verb: str
) -> None:
    (job,) = add_jobs(azure, "old", old=status)
    job.error = {"code": "UserError", "message": error} if error else None
    status = msggan_aml("status", "old", "-o", "json").json
    assert status["state"] == state
    assert reason in status["reason"]
    assert bool(status["reason"]) is bool(reason)
    assert (status["ended"] is None) is (state == "running")
    assert status["next"][0].startswith(f"msggan-aml {verb} old")
    assert status["next"][0].endswith("--follow") is (state == "running")


def test_progress_is_read_from_the_end_of_the_reports(azure: AzureLocal, msggan_aml: Command) -> None:
    report = '{{"images": {}, "d_loss": 1.5, "note": "{}"}}\n'
    long = "".join(report.format(number, "x" * 1000) for number in range(1000))
    add_run(azure, "old", {"metrics.jsonl": long.encode(), "config.json": b'{"kimg": 1.001}'})
    status = msggan_aml("status", "old", "-o", "json").json
    assert (status["images_seen"], status["images_total"], status["metrics"]["d_loss"]) == (999, 1001, 1.5)
    (read,) = [
        request for request in azure.made("GET", "runs/old/metrics.jsonl") if request.host.startswith("msgganstore")
    ]
    assert read.headers["x-ms-range"].startswith(f"bytes={len(long) - LAST_BYTES}-")
    azure.put_blob("msggan/runs/old/config.json", b"{")
    assert msggan_aml("status", "old", "-o", "json").json["images_total"] is None


def test_a_run_whose_storage_cannot_be_read_has_the_status_of_its_job(azure: AzureLocal, msggan_aml: Command) -> None:
    add_run(azure, "old", {"metrics.jsonl": b'{"images": 40}\n'})
    azure.cloud.shared_keys, azure.cloud.blob_role = False, None
    ended = msggan_aml("status", "old", "-o", "json")
    assert (ended.exit_code, ended.json["state"], ended.json["images_seen"]) == (0, "completed", None)
    assert "KeyBasedAuthenticationNotPermitted" in ended.stderr


RANGE = 1 << 10  # bytes per request of a download in these tests; the SDK's default is 32 MiB


@pytest.fixture
def _small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blobs are downloaded in several ranges, as large ones are."""
    sizes = {"max_single_get_size": RANGE, "max_chunk_get_size": RANGE}
    monkeypatch.setattr(blobs, "ContainerClient", partial(ContainerClient, **sizes))


def add_run(azure: AzureLocal, name: str, content: dict[str, bytes]) -> None:
    """Adds a completed run with these files."""
    for path, data in content.items():
        azure.put_blob(f"msggan/runs/{name}/{path}", data)
    output = {"jobOutputType": "uri_folder", "uri": f"{DATASTORE}msggan/runs/{name}/"}
    azure.add_ended_job(name, tags={"msggan.run": name}, outputs={"run": output})


def files_in(folder: Path) -> dict[str, bytes]:
    """The files in a downloaded folder, without its record."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != DOWNLOAD_FILE]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.usefixtures("_no_waiting", "_small_ranges")
def test_a_download_that_was_cut_resumes_where_it_ended(azure: AzureLocal, workdir: Path, msggan_aml: Command) -> None:
    content = {"a.json": b"{}", GENERATOR: os.urandom(4 * RANGE), "samples/1.png": b"picture"}
    add_run(azure, "old", content)
    azure.fault("GET", GENERATOR, nth=3, times=20, drop="before")
    cut = msggan_aml("download", "old", "-o", "json")
    assert cut.exit_code == 1
    assert "Downloading generator.safetensors" in cut.stderr
    (part,) = (workdir / "old-run").glob("*.part")
    assert part.read_bytes() == content[GENERATOR][: 2 * RANGE]
    assert not (workdir / "old-run" / GENERATOR).exists()

    azure.faults.clear()
    before = len(azure.requests)
    whole = msggan_aml("download", "old", "-o", "json")
    assert whole.exit_code == 0, whole.stderr
    assert whole.json == {"files": 3, "bytes": sum(map(len, content.values())), "path": "old-run"}
    assert files_in(workdir / "old-run") == content
    fetched = [
        (request.path.rpartition("/")[2], request.headers.get("x-ms-range", "").partition("-")[0])
        for request in azure.requests[before:]
        if request.method == "GET" and "/msggan/runs/old/" in request.path
    ]
    assert [start for name, start in fetched if name == GENERATOR] == ["bytes=2048", "bytes=3072"]


def test_several_files_are_downloaded_at_once(azure: AzureLocal, workdir: Path, msggan_aml: Command) -> None:
    content = {f"samples/{number}.png": b"picture" for number in range(3)}
    add_run(azure, "old", content)
    all_requested = threading.Barrier(3, timeout=30)
    azure.fault("GET", "samples/", times=3, meanwhile=all_requested.wait)
    ended = msggan_aml("download", "old")
    assert (ended.exit_code, files_in(workdir / "old-run")) == (0, content), ended.stderr
    assert not all_requested.broken


@pytest.mark.usefixtures("_no_waiting", "_small_ranges")
@pytest.mark.parametrize(
    ("is_resumed", "at_range", "ranges"), [(False, 1, 3), (False, 2, 4), (True, 1, 4), (True, 1, 5), (True, 2, 3)]
)
def test_a_file_that_changes_while_it_is_downloaded_is_downloaded_from_one_version(
    azure: AzureLocal, workdir: Path, msggan_aml: Command, *, is_resumed: bool, at_range: int, ranges: int
) -> None:
    """It changes before the first or the second request, to a content that is shorter, longer or of the same size."""
    older, newer = os.urandom(4 * RANGE), os.urandom(ranges * RANGE)
    add_run(azure, "old", {GENERATOR: older})
    if is_resumed:
        azure.fault("GET", GENERATOR, nth=3, times=20, drop="before")
        assert msggan_aml("download", "old").exit_code == 1
        azure.faults.clear()
    azure.fault("GET", GENERATOR, nth=at_range, meanwhile=lambda: azure.put_blob(f"msggan/runs/old/{GENERATOR}", newer))
    ended = msggan_aml("download", "old", "-o", "json")
    assert ended.exit_code == 0, ended.stderr
    assert files_in(workdir / "old-run") == {GENERATOR: newer}
    assert ended.json == {"files": 1, "bytes": len(newer), "path": "old-run"}


@pytest.mark.usefixtures("_no_waiting", "_small_ranges")
@pytest.mark.parametrize("newer", [b"newer", None])
def test_no_partial_file_remains_if_a_file_changed_or_was_removed_between_two_downloads(
    azure: AzureLocal, workdir: Path, msggan_aml: Command, newer: bytes | None
) -> None:
    add_run(azure, "old", {"a.json": b"{}", GENERATOR: os.urandom(4 * RANGE)})
    azure.fault("GET", GENERATOR, nth=3, times=20, drop="before")
    assert msggan_aml("download", "old").exit_code == 1
    azure.faults.clear()
    azure.delete_blob(f"msggan/runs/old/{GENERATOR}")
    if newer is not None:
        azure.put_blob(f"msggan/runs/old/{GENERATOR}", newer)
    assert msggan_aml("download", "old").exit_code == 0
    assert files_in(workdir / "old-run") == {"a.json": b"{}"} | ({} if newer is None else {GENERATOR: newer})


@pytest.mark.usefixtures("_no_waiting", "_small_ranges")
def test_a_file_that_changes_at_every_request_is_an_error(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    add_run(azure, "old", {GENERATOR: os.urandom(2 * RANGE)})

    def change() -> None:
        azure.put_blob(f"msggan/runs/old/{GENERATOR}", os.urandom(2 * RANGE))

    azure.fault("GET", GENERATOR, times=10**6, meanwhile=change)
    ended = msggan_aml("download", "old")
    assert ended.exit_code == 1
    assert "generator.safetensors: changes faster than it can be downloaded.\nDownload it again later." in ended.stderr
    assert files_in(workdir / "old-run") == {}


@pytest.mark.usefixtures("_no_waiting", "_small_ranges")
def test_a_file_that_the_run_removes_meanwhile_is_skipped(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    add_run(azure, "old", {"a.json": b"{}", "checkpoints/1.json": b"{1}"})
    azure.fault("GET", "checkpoints/1", meanwhile=lambda: azure.delete_blob("msggan/runs/old/checkpoints/1.json"))
    ended = msggan_aml("download", "old", "-o", "json")
    assert ended.exit_code == 0, ended.stderr
    assert ended.json == {"files": 1, "bytes": 2, "path": "old-run"}
    assert files_in(workdir / "old-run") == {"a.json": b"{}"}


def test_partial_hidden_and_lock_files_are_not_downloaded(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    kept = {"a.json": b"{}", "samples/1.png": b"picture"}
    left = ["run.lock", "a.json.part", ".amlignore", "samples/.thumbnail.png", ".cache/x"]
    add_run(azure, "old", {**kept, **dict.fromkeys(left, b"1")})
    container = azure.cloud.blobs.container(azure.cloud.account, azure.container)
    container.upload_blob(
        "msggan/runs/old/samples", b"", metadata={"hdi_isfolder": "true"}
    )  # how a mount marks folders
    ended = msggan_aml("download", "old", "-o", "json")
    assert ended.exit_code == 0, ended.stderr
    assert files_in(workdir / "old-run") == kept


@pytest.mark.usefixtures("msggan_aml")
def test_the_blob_by_which_a_mount_marks_a_folder_is_not_a_file(azure: AzureLocal, images: str, workdir: Path) -> None:

    from orchestration.azure.client import Client
    from orchestration.azure.data import ensure_data
    from orchestration.azure.jobs import JobData

    container = azure.cloud.blobs.container(azure.cloud.account, azure.container)
    container.upload_blob(images.rstrip("/"), b"", metadata={"hdi_isfolder": "true"})
    client = Client(read_settings({}, folder=workdir, environ=os.environ), Reporter())
    spec = RunSpec(TrainConfig(), DATASTORE + images.rstrip("/"), "images")
    found = ensure_data(spec, client.store(None), client)
    assert found == JobData(str(spec.data), "uri_folder", has_credential=True, size=found.size)


@pytest.mark.usefixtures("_no_waiting", "_small_ranges")
def test_a_download_does_not_resume_the_files_of_another_run(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    add_run(azure, "old", {"a.json": b"{}", GENERATOR: os.urandom(4 * RANGE)})
    azure.fault("GET", GENERATOR, nth=3, times=20, drop="before")
    assert msggan_aml("download", "old").exit_code == 1
    azure.faults.clear()
    add_jobs(azure, "another", another="Completed")
    azure.put_blob("msggan/runs/another/a.json", b"[]")
    refused = msggan_aml("download", "another", "--out", "old-run")
    assert refused.exit_code == 2
    assert (workdir / "old-run" / "a.json").read_bytes() == b"{}"

    (part,) = (workdir / "old-run").glob("*.part")
    part.write_bytes(bytes(5 * RANGE))  # longer than the file: it cannot be of it
    failed = msggan_aml("download", "old")
    assert failed.exit_code == 1
    assert "generator.safetensors: received 5120 bytes instead of 4096.\nDownload it again." in failed.stderr
    assert msggan_aml("download", "old").exit_code == 0
    assert files_in(workdir / "old-run").keys() == {"a.json", GENERATOR}


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize(("becomes", "exit_code"), [("Completed", 0), ("Running", 1)])
def test_a_job_that_ends_while_it_is_cancelled_keeps_its_final_state(
    azure: AzureLocal, msggan_aml: Command, becomes: str, exit_code: int
) -> None:
    (job,) = add_jobs(azure, "old", old="Running")

    def end() -> None:
        job.status = becomes

    azure.fault("POST", "/jobs/old/cancel", status=400, meanwhile=end)
    ended = msggan_aml("cancel", "old", "-o", "json")
    assert ended.exit_code == exit_code, ended.stderr
    if exit_code:
        assert ended.json["error"]["message"].startswith("Cancelling old: ")
    else:
        assert ended.json["state"] == "completed"
    refused = msggan_aml("cancel", "old") if becomes == "Completed" else None
    assert refused is None or (refused.exit_code, "old: is not running; its state is completed." in refused.stderr) == (
        2,
        True,
    )


def test_a_download_is_not_written_into_another_folder(azure: AzureLocal, workdir: Path, msggan_aml: Command) -> None:
    for name in ("tiny", "other"):
        add_run(azure, name, {"config.json": b"{}", "generator.safetensors": b"weights"})
    images = sorted(path.name for path in (workdir / "tiny").iterdir())
    for args in (["tiny"], ["tiny", "--weights"], ["tiny", "--force"]):
        refused = msggan_aml("download", *args, "--out", "tiny", "-o", "json")
        assert (refused.exit_code, refused.json["error"]["code"]) == (2, "usage")
        assert "Error: tiny: is not empty and was not created by download.\n" in refused.stderr
        assert sorted(path.name for path in (workdir / "tiny").iterdir()) == images
    assert msggan_aml("download", "tiny", "-o", "json").json["path"] == "tiny-run"
    refused = msggan_aml("download", "other", "--out", "tiny-run", "--force")
    assert refused.exit_code == 2
    assert re.search(r"Error: tiny-run: contains a download of another run: \S+/msggan/runs/tiny/?\.", refused.stderr)


def test_a_repeated_download_requests_only_what_has_changed(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    add_run(azure, "old", {"config.json": b"{}", "metrics.jsonl": b"1\n", "generator.safetensors": b"weights"})
    assert msggan_aml("download", "old").exit_code == 0
    azure.put_blob("msggan/runs/old/metrics.jsonl", b"1\n2\n")
    before = len(azure.requests)
    assert msggan_aml("download", "old", "-o", "json").json == {"files": 3, "bytes": 13, "path": "old-run"}
    fetched = [request.path for request in azure.requests[before:] if "/msggan/runs/old/" in request.path]
    assert [path.rpartition("/")[2] for path in fetched] == ["metrics.jsonl"]
    assert (workdir / "old-run" / "metrics.jsonl").read_bytes() == b"1\n2\n"

    azure.put_blob("msggan/runs/old/generator_best.safetensors", b"best")
    args = ["old", "--weights", "--out", "only", "-o", "json"]
    assert msggan_aml("download", *args).json == {"files": 2, "bytes": 11, "path": "only"}

    (workdir / "old-run" / "config.json").write_bytes(b"[]")
    refused = msggan_aml("download", "old")
    assert refused.exit_code == 2
    assert "config.json: has changed since it was downloaded." in refused.stderr
    assert msggan_aml("download", "old", "--force").exit_code == 0
    assert (workdir / "old-run" / "config.json").read_bytes() == b"{}"


@pytest.mark.usefixtures("_no_waiting")
def test_an_interrupted_download_of_weights_is_not_mistaken_for_a_local_run(
    azure: AzureLocal, msggan_aml: Command
) -> None:
    add_run(azure, "old", {"config.json": b"{}", "generator.safetensors": b"weights"})
    azure.fault("GET", "generator.safetensors", nth=1, times=20, drop="before")
    cut = msggan_aml("sample", "old")
    assert (cut.exit_code, "Downloading generator.safetensors" in cut.stderr) == (1, True)
    ended = msggan_aml("status", "old", "-o", "json")
    assert (ended.exit_code, ended.json["target"]) == (0, "azure"), ended.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("_no_waiting")
def test_a_log_is_followed_through_a_busy_service_and_cut_connections(
    azure: AzureLocal, images: str, msggan_aml: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PAUSES_S", (0.1,))
    azure.hold_jobs("no node is free")
    sent = msggan_aml("submit", "--data", DATASTORE + images, *SMALL, "--detach", "--yes", "-o", "json")
    assert sent.exit_code == 0, sent.stderr
    azure.release_jobs()
    struck = [
        azure.fault("GET", "images/details", nth=3, times=9, status=429),
        azure.fault("GET", "images/details", nth=13, times=9, drop="before"),
        azure.fault("GET", "std_log.txt", nth=1, times=6, status=503),
        azure.fault("GET", "std_log.txt", nth=8, times=6, drop="after"),
    ]
    followed = msggan_aml("logs", "images", "--follow")
    assert followed.exit_code == 0, followed.stderr
    assert all(fault.count for fault in struck), struck
    written = azure.artifact("images", STD_LOG).decode().splitlines()
    assert followed.stdout.splitlines() == written
    assert any("Training" in line for line in written)
    assert azure.job("images").status == "Completed"
    assert followed.stderr.count("Job images continues; retrying until Azure answers.") == len(["busy", "cut"])
