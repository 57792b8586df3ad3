"""Do runs on Azure do what they should beyond the straight way: other machines and images, ends, cuts, long lists?"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient
from azure_commands import Command
from azure_local import AzureLocal
from azure_local.cloud import BLOB_CONTAINER, Version, now

from orchestration.azure import blobs, following

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
GENERATOR = "generator.safetensors"


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


RANGE = 1 << 10  # bytes that a download asks for at a time in these tests; the SDK's own is 32 MiB


@pytest.fixture
def _small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blobs are downloaded in several ranges, as large ones are."""
    sizes = {"max_single_get_size": RANGE, "max_chunk_get_size": RANGE}
    monkeypatch.setattr(blobs, "ContainerClient", partial(ContainerClient, **sizes))


def add_old_run(azure: AzureLocal, content: dict[str, bytes]) -> None:
    """A completed run `old` with these files."""
    for name, data in content.items():
        azure.put_blob(f"msggan/runs/old/{name}", data)
    output = {"jobOutputType": "uri_folder", "uri": f"{DATASTORE}msggan/runs/old/"}
    azure.add_ended_job("old", tags={"msggan.run": "old"}, outputs={"run": output})


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("_no_waiting", "_small_ranges")
def test_a_download_that_was_cut_goes_on_where_it_ended(azure: AzureLocal, place: Path, msggan_aml: Command) -> None:
    content = {"a.json": b"{}", GENERATOR: os.urandom(4 * RANGE), "samples/1.png": b"picture"}
    add_old_run(azure, content)
    azure.fault("GET", GENERATOR, nth=3, times=20, drop="before")
    cut = msggan_aml("download", "old", "-o", "json")
    assert cut.exit_code == 1
    assert "Downloading generator.safetensors" in cut.stderr
    (part,) = (place / "old").glob("*.part")
    assert part.read_bytes() == content[GENERATOR][: 2 * RANGE]
    assert not (place / "old" / GENERATOR).exists()

    azure.faults.clear()
    before = len(azure.requests)
    whole = msggan_aml("download", "old", "-o", "json")
    assert whole.exit_code == 0, whole.stderr
    assert whole.json == {"files": 3, "bytes": sum(map(len, content.values())), "path": "old"}
    assert files_in(place / "old") == content
    fetched = [
        (request.path.rpartition("/")[2], request.headers.get("x-ms-range", "").partition("-")[0])
        for request in azure.requests[before:]
        if request.method == "GET" and "/msggan/runs/old/" in request.path
    ]
    assert fetched == [(GENERATOR, "bytes=2048"), (GENERATOR, "bytes=3072"), ("1.png", "bytes=0")]


@pytest.mark.usefixtures("_no_waiting", "_small_ranges")
@pytest.mark.parametrize(
    ("is_resumed", "at_range", "ranges"), [(False, 1, 3), (False, 2, 4), (True, 1, 4), (True, 1, 5), (True, 2, 3)]
)
def test_a_file_that_changes_while_it_is_downloaded_is_of_one_version(
    azure: AzureLocal, place: Path, msggan_aml: Command, *, is_resumed: bool, at_range: int, ranges: int
) -> None:
    """It changes before the first or the second request, to a content that is shorter, longer or of the same size."""
    older, newer = os.urandom(4 * RANGE), os.urandom(ranges * RANGE)
    add_old_run(azure, {GENERATOR: older})
    if is_resumed:
        azure.fault("GET", GENERATOR, nth=3, times=20, drop="before")
        assert msggan_aml("download", "old").exit_code == 1
        azure.faults.clear()
    azure.fault("GET", GENERATOR, nth=at_range, meanwhile=lambda: azure.put_blob(f"msggan/runs/old/{GENERATOR}", newer))
    ended = msggan_aml("download", "old", "-o", "json")
    assert ended.exit_code == 0, ended.stderr
    assert files_in(place / "old") == {GENERATOR: newer}
    assert ended.json == {"files": 1, "bytes": len(newer), "path": "old"}


@pytest.mark.usefixtures("_no_waiting", "_small_ranges")
@pytest.mark.parametrize("newer", [b"newer", None])
def test_no_part_is_left_of_a_file_that_changed_or_went_between_two_downloads(
    azure: AzureLocal, place: Path, msggan_aml: Command, newer: bytes | None
) -> None:
    add_old_run(azure, {"a.json": b"{}", GENERATOR: os.urandom(4 * RANGE)})
    azure.fault("GET", GENERATOR, nth=3, times=20, drop="before")
    assert msggan_aml("download", "old").exit_code == 1
    azure.faults.clear()
    azure.delete_blob(f"msggan/runs/old/{GENERATOR}")
    if newer is not None:
        azure.put_blob(f"msggan/runs/old/{GENERATOR}", newer)
    assert msggan_aml("download", "old").exit_code == 0
    assert files_in(place / "old") == {"a.json": b"{}"} | ({} if newer is None else {GENERATOR: newer})


@pytest.mark.usefixtures("_no_waiting", "_small_ranges")
def test_a_file_that_changes_at_every_read_is_given_up_and_left_out(
    azure: AzureLocal, place: Path, msggan_aml: Command
) -> None:
    add_old_run(azure, {GENERATOR: os.urandom(2 * RANGE)})

    def change() -> None:
        azure.put_blob(f"msggan/runs/old/{GENERATOR}", os.urandom(2 * RANGE))

    azure.fault("GET", GENERATOR, times=10**6, meanwhile=change)
    ended = msggan_aml("download", "old")
    assert ended.exit_code == 1
    assert "generator.safetensors: changes faster than it can be read.\nDownload it again later." in ended.stderr
    assert files_in(place / "old") == {}


@pytest.mark.usefixtures("_no_waiting", "_small_ranges")
def test_a_file_that_the_run_takes_away_meanwhile_is_left_out(
    azure: AzureLocal, place: Path, msggan_aml: Command
) -> None:
    add_old_run(azure, {"a.json": b"{}", "checkpoints/1.json": b"{1}"})
    azure.fault("GET", "checkpoints/1", meanwhile=lambda: azure.delete_blob("msggan/runs/old/checkpoints/1.json"))
    ended = msggan_aml("download", "old", "-o", "json")
    assert ended.exit_code == 0, ended.stderr
    assert ended.json == {"files": 1, "bytes": 2, "path": "old"}
    assert files_in(place / "old") == {"a.json": b"{}"}


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
    assert all(fault.happened for fault in struck), struck
    written = azure.artifact("images", STD_LOG).decode().splitlines()
    assert followed.stdout.splitlines() == written
    assert any("Training" in line for line in written)
    assert azure.job("images").status == "Completed"
    assert followed.stderr.count("goes on, and is looked for until it answers") == len(["busy", "cut"])
