"""Do runs on Azure do what they should beyond the straight way: other machines and images, ends, cuts, long lists?"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure_commands import Command
from azure_local import AzureLocal
from azure_local.cloud import BLOB_CONTAINER, Version, now

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals between processes are POSIX's"),
    # The SDK's own: of the libraries it stands on, and of connections that it leaves to the garbage collector.
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]

WHAT = ["--resolution", "8", "--latent-size", "8", "--batch-size", "4", "--device", "cpu"]
SMALL = [*WHAT, "--kimg", "0.04"]
DATASTORE = "azureml://datastores/workspaceblobstore/paths/"
BLOBS = f"https://msgganstore.blob.core.windows.net/{BLOB_CONTAINER}/"
SIZE = "Standard_NC4as_T4_v3"
STD_LOG = "user_logs/std_log.txt"


@pytest.fixture(scope="module", autouse=True)
def _left_behind() -> Iterator[None]:
    """The connections that the SDK left open are collected here, where their warnings are expected."""
    yield
    gc.collect()


@pytest.fixture
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the SDK waits before it repeats a request passes at once."""
    monkeypatch.setattr("azure.core.pipeline.transport.HttpTransport.sleep", lambda self, duration: None)


@pytest.fixture
def images(azure: AzureLocal, place: Path) -> str:
    """The images as the default datastore has them: their path. Jobs tell no MLflow, which takes long."""
    azure.cloud.job_environment["MSGGAN_TRACKING_URI"] = "none"
    for path in (place / "tiny").iterdir():
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


def test_a_run_whose_time_is_up_has_failed_and_says_what_to_do(
    azure: AzureLocal, images: str, msggan_aml: Command
) -> None:
    asset = {"dataType": "uri_folder", "dataUri": DATASTORE + images, "isAnonymous": False, "isArchived": False}
    azure.cloud.data["flowers", "3"] = Version("flowers", "3", asset, now())
    endless = [*WHAT, "--kimg", "1000000", "--timeout-hours", "0.0003"]
    ended = msggan_aml("submit", "--data", "azureml:flowers:3", *endless, "--yes", "-o", "json")
    assert (ended.exit_code, ended.json["name"], ended.json["state"]) == (1, "flowers", "failed")
    assert "The job exceeded its time limit of 1 seconds." in ended.stderr
    assert "Give it longer: --timeout-hours." in ended.stderr
    told = msggan_aml("status", "flowers", "-o", "json").json
    assert told["state"] == "failed"
    assert "time limit" in told["reason"]


def test_a_long_list_is_read_page_by_page_and_told_up_to_a_limit(azure: AzureLocal, msggan_aml: Command) -> None:
    azure.cloud.page_size = 7
    for number in range(60):
        output = {"jobOutputType": "uri_folder", "uri": f"{DATASTORE}msggan/runs/old-{number}/"}
        job = azure.add_ended_job(f"old-{number}", tags={"msggan.run": f"old-{number}"}, outputs={"run": output})
        job.created = f"2026-01-01T00:00:{number:02d}.000000Z"
    azure.add_ended_job("of-somebody-else", tags={"theirs": "yes"})
    told = msggan_aml("list", "-o", "json")
    assert told.exit_code == 0, told.stderr
    assert [run["name"] for run in told.json["runs"]] == [f"old-{number}" for number in range(59, 9, -1)]
    assert {run["state"] for run in told.json["runs"]} == {"completed"}
    assert "There are more than these 50 runs; the older ones are in the portal." in told.stderr
    listed = [request for request in azure.made("GET", "/jobs") if request.path.endswith("/jobs")]
    assert [request.query["tag"] for request in listed] == ["msggan.run"] * 9 + ["msggan.sweep"]


@pytest.mark.usefixtures("_no_waiting")
def test_a_download_that_was_cut_goes_on_where_it_ended(azure: AzureLocal, place: Path, msggan_aml: Command) -> None:
    content = {"a.json": b"{}", "generator.safetensors": os.urandom(36 << 20), "samples/1.png": b"picture"}
    add_run(azure, "old", content)
    # The SDK fetches 32 MiB first: the connection is cut at what follows, as often as it tries.
    azure.fault("GET", "generator.safetensors", nth=2, times=20, drop="before")
    cut = msggan_aml("download", "old", "-o", "json")
    assert cut.exit_code == 1
    assert "Downloading generator.safetensors" in cut.stderr
    (part,) = (place / "old-run").glob("*.part")
    assert part.read_bytes() == content["generator.safetensors"][: part.stat().st_size]
    assert part.stat().st_size >= 32 << 20
    assert not (place / "old-run" / "generator.safetensors").exists()

    azure.faults.clear()
    had, before = part.stat().st_size, len(azure.requests)
    whole = msggan_aml("download", "old", "-o", "json")
    assert whole.exit_code == 0, whole.stderr
    assert whole.json == {"files": 3, "bytes": sum(map(len, content.values())), "path": "old-run"}
    assert {
        path.relative_to(place / "old-run").as_posix(): path.read_bytes()
        for path in (place / "old-run").rglob("*")
        if path.is_file() and path.name != ".msggan-download.json"
    } == content
    fetched = [
        (request.path.rpartition("/")[2], request.headers.get("x-ms-range", "").partition("-")[0])
        for request in azure.requests[before:]
        if request.method == "GET" and "/msggan/runs/old/" in request.path
    ]
    assert fetched == [("generator.safetensors", f"bytes={had}"), ("1.png", "bytes=0")]


def add_run(azure: AzureLocal, name: str, content: dict[str, bytes]) -> None:
    """An ended run on Azure that has left these files."""
    for path, data in content.items():
        azure.put_blob(f"msggan/runs/{name}/{path}", data)
    output = {"jobOutputType": "uri_folder", "uri": f"{DATASTORE}msggan/runs/{name}/"}
    azure.add_ended_job(name, tags={"msggan.run": name}, outputs={"run": output})


def test_a_download_is_not_written_into_a_folder_that_no_download_of_the_run_made(
    azure: AzureLocal, place: Path, msggan_aml: Command
) -> None:
    for name in ("tiny", "other"):
        add_run(azure, name, {"config.json": b"{}", "generator.safetensors": b"weights"})
    images = sorted(path.name for path in (place / "tiny").iterdir())
    for words in (["tiny"], ["tiny", "--weights"], ["tiny", "--force"]):
        refused = msggan_aml("download", *words, "--out", "tiny", "-o", "json")
        assert (refused.exit_code, refused.json["error"]["code"]) == (2, "usage")
        assert "Error: tiny: is not empty and was not created by download.\n" in refused.stderr
        assert sorted(path.name for path in (place / "tiny").iterdir()) == images
    assert msggan_aml("download", "tiny", "-o", "json").json["path"] == "tiny-run"
    refused = msggan_aml("download", "other", "--out", "tiny-run", "--force")
    assert refused.exit_code == 2
    assert re.search(r"Error: tiny-run: holds a download of another run: \S+/msggan/runs/tiny/?\.", refused.stderr)


def test_a_download_that_is_repeated_fetches_only_what_has_changed(
    azure: AzureLocal, place: Path, msggan_aml: Command
) -> None:
    add_run(azure, "old", {"config.json": b"{}", "metrics.jsonl": b"1\n", "generator.safetensors": b"weights"})
    assert msggan_aml("download", "old").exit_code == 0
    azure.put_blob("msggan/runs/old/metrics.jsonl", b"1\n2\n")
    before = len(azure.requests)
    assert msggan_aml("download", "old", "-o", "json").json == {"files": 3, "bytes": 13, "path": "old-run"}
    fetched = [request.path for request in azure.requests[before:] if "/msggan/runs/old/" in request.path]
    assert [path.rpartition("/")[2] for path in fetched] == ["metrics.jsonl"]
    assert (place / "old-run" / "metrics.jsonl").read_bytes() == b"1\n2\n"

    (place / "old-run" / "config.json").write_bytes(b"[]")
    refused = msggan_aml("download", "old")
    assert refused.exit_code == 2
    assert "config.json: has changed since it was downloaded." in refused.stderr
    assert msggan_aml("download", "old", "--force").exit_code == 0
    assert (place / "old-run" / "config.json").read_bytes() == b"{}"


@pytest.mark.usefixtures("_no_waiting")
def test_weights_that_did_not_arrive_are_not_taken_for_a_run_of_this_machine(
    azure: AzureLocal, msggan_aml: Command
) -> None:
    add_run(azure, "old", {"config.json": b"{}", "generator.safetensors": b"weights"})
    azure.fault("GET", "generator.safetensors", nth=1, times=20, drop="before")
    cut = msggan_aml("sample", "old")
    assert (cut.exit_code, "Downloading generator.safetensors" in cut.stderr) == (1, True)
    told = msggan_aml("status", "old", "-o", "json")
    assert (told.exit_code, told.json["target"]) == (0, "azure"), told.stderr


@pytest.mark.usefixtures("_no_waiting")
def test_a_log_is_followed_through_a_busy_service_and_cut_connections(
    azure: AzureLocal, images: str, msggan_aml: Command
) -> None:
    azure.hold_jobs("no node is free")
    sent = msggan_aml("submit", "--data", DATASTORE + images, *SMALL, "--detach", "--yes", "-o", "json")
    assert sent.exit_code == 0, sent.stderr
    azure.release_jobs()
    struck = [
        azure.fault("GET", "images/details", nth=3, times=9, status=503),
        azure.fault("GET", "images/details", nth=13, times=9, drop="before"),
        azure.fault("GET", "std_log.txt", nth=1, times=6, status=503),
        azure.fault("GET", "std_log.txt", nth=8, times=6, drop="after"),
    ]
    followed = msggan_aml("logs", "images", "--follow")
    assert followed.exit_code == 0, followed.stderr
    assert all(fault.happened for fault in struck), struck
    written = azure.artifact("images", STD_LOG).decode().splitlines()
    assert followed.stdout.splitlines() == written
    assert any("Training" in line for line in written)
    assert azure.job("images").status == "Completed"
    assert followed.stderr.count("goes on, and is looked for until it answers") >= 1
