"""Faults during submission: one job, or an error and no job, or an error that says there may be one."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from azure_local import AzureLocal
from azure_local.messages import Recorded
from support.azure_commands import sdk_warnings
from support.images import draw_tiny_images
from support.programs import environment, fast_python

from msggan.config import TrainConfig
from msggan.errors import MsgganError
from orchestration.azure.records import DAILY_FILE
from orchestration.settings import read_settings
from orchestration.spec import RunSpec
from orchestration.status import Reporter, RunStatus
from orchestration.sweeps.space import read_space
from orchestration.sweeps.spec import SweepSpec
from orchestration.sweeps.status import SweepStatus

if TYPE_CHECKING:
    from orchestration.azure.target import AzureTarget

pytestmark = sdk_warnings

Submit = Callable[..., RunStatus | SweepStatus]
SHORT = TrainConfig(resolution=8, latent_size=8, batch_size=4, kimg=0.04)

TIMEOUT_S = 60
MAX_DELETED = 256  # blobs that one request deletes


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of 24 images."""
    folder = tmp_path_factory.mktemp("pack")
    draw_tiny_images(folder / "tiny")
    args = ["--data", str(folder / "tiny"), "--out", str(folder / "tiny.safetensors"), "--resolution", "8"]
    subprocess.run([fast_python(), "-m", "msggan.pack", *args], check=True, env=environment(), capture_output=True)
    return folder / "tiny.safetensors"


@pytest.fixture
def build_target(azure: AzureLocal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], AzureTarget]:
    """Builds the target of another command, in this process. The SDK retries without waiting."""
    monkeypatch.setattr("azure.core.pipeline.transport.HttpTransport.sleep", lambda self, duration: None)
    for name, value in azure.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    from orchestration.azure.target import AzureTarget

    azure.add_cluster("msggan-gpu")
    azure.hold_jobs()

    def build() -> AzureTarget:
        settings = read_settings({}, folder=tmp_path, environ=os.environ)
        return AzureTarget(settings, Reporter(info=lambda line: None), wait_factor_s=0.01)

    return build


@pytest.fixture
def submit(build_target: Callable[[], AzureTarget], pack: Path) -> Submit:
    """submit(NAME): submits a run and does not follow it."""
    return lambda name="one": build_target().start(RunSpec(SHORT, pack, name))


@pytest.fixture
def submit_sweep(build_target: Callable[[], AzureTarget], pack: Path) -> Submit:
    """submit_sweep(NAME): submits a sweep of two trials and does not follow it."""

    def submit(name: str = "one") -> SweepStatus:
        space = read_space(("g_lr=0.001..0.01",), SHORT)
        return build_target().sweeps.submit_sweep(SweepSpec(SHORT, pack, name, space, trials=2), detach=True)

    return submit


def kind_of(request: Recorded) -> str:
    """What a request is for; the blobs of a snapshot are of one kind."""
    path = re.sub(r"(msggan/(?:code|environments))/.*|[0-9a-f]{8,}(-[0-9a-f-]+)?", r"\1*", request.path)
    return f"{request.method} {request.host.split('.')[0]} {path} {request.query.get('comp', '')}"


def kinds(requests: list[Recorded]) -> dict[str, int]:
    """The kinds of requests, and the number of the first of each."""
    found: dict[str, int] = {}
    for number, request in enumerate(requests, start=1):
        found.setdefault(kind_of(request), number)
    return found


def forget(azure: AzureLocal) -> None:
    """Removes what was submitted: the job, its images, its code and its environment, and what is known of them."""
    Path("runs", DAILY_FILE).unlink(missing_ok=True)
    azure.end_jobs()
    for kept in (azure.cloud.jobs, azure.cloud.codes, azure.cloud.environments):
        kept.clear()
    paths = azure.blobs_below("msggan/")
    for start in range(0, len(paths), MAX_DELETED):
        azure.cloud.blobs.container(azure.cloud.account, azure.container).delete_blobs(*paths[start:][:MAX_DELETED])
    azure.faults.clear()
    azure.recording.clear()


def outcome_of(submit: Submit) -> str:
    """`submitted`, or the error's message. Fails if it takes for ever."""
    outcome: list[str | BaseException] = []

    def attempt() -> None:
        try:
            submit()
            outcome.append("submitted")
        except MsgganError as error:
            outcome.append(f"{error}")
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=attempt, daemon=True)  # a daemon: one that hangs blocks nothing else
    thread.start()
    thread.join(TIMEOUT_S)
    assert outcome, f"submit hangs after {TIMEOUT_S} s"
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


@pytest.mark.slow
@pytest.mark.parametrize("drop", ["before", "after"])
def test_a_connection_cut_at_any_request_of_a_first_submit_leaves_one_job_or_an_error_and_no_job(
    azure: AzureLocal, submit: Submit, drop: str
) -> None:
    submit()
    numbers = kinds(azure.requests)
    for part in ("msggan/code*", "msggan/environments*", "msggan/data/*", "/codes/", "/environments/msggan/", "/jobs/"):
        assert any(kind.startswith("PUT") and part in kind for kind in numbers), part
    for kind, number in numbers.items():
        if drop == "after" and kind.startswith("GET"):  # the same as before, for the service
            continue
        forget(azure)
        fault = azure.fault(".*", ".", nth=number, drop=drop)
        outcome = outcome_of(submit)
        assert fault.count == 1, kind
        assert list(azure.cloud.jobs) == (["one"] if outcome == "submitted" else []), (kind, outcome)


@pytest.mark.slow
@pytest.mark.parametrize("drop", ["before", "after"])
def test_a_connection_cut_at_any_write_of_a_sweep_leaves_one_job_or_an_error_and_no_job(
    azure: AzureLocal, submit_sweep: Submit, drop: str
) -> None:
    submit_sweep()
    writes = {kind: number for kind, number in kinds(azure.requests).items() if kind.startswith("PUT")}
    assert [kind for kind in writes if "sweep.json" in kind], writes
    for kind, number in writes.items():
        forget(azure)
        fault = azure.fault(".*", ".", nth=number, drop=drop)
        outcome = outcome_of(submit_sweep)
        assert fault.count == 1, kind
        sweeps = [name for name, job in azure.cloud.jobs.items() if job.parent is None]
        assert sweeps == (["one"] if outcome == "submitted" else []), (kind, outcome)


def test_a_sweep_whose_request_cannot_be_recorded_is_not_submitted(azure: AzureLocal, submit_sweep: Submit) -> None:
    azure.fault("PUT", "sweep.json", times=10**6, status=503, retry_after=0.01)
    outcome = outcome_of(submit_sweep)
    assert outcome.startswith("Writing into azureml://datastores/workspaceblobstore/paths/msggan/runs/one/"), outcome
    assert list(azure.cloud.jobs) == []


@pytest.mark.parametrize("parts", [("/jobs/", "/environments/msggan/"), pytest.param(("",), marks=pytest.mark.slow)])
def test_a_server_error_at_any_write_of_submit_leaves_no_unreported_job(
    azure: AzureLocal, submit: Submit, parts: tuple[str, ...]
) -> None:
    submit()
    writes = {kind: number for kind, number in kinds(azure.requests).items() if kind.startswith("PUT")}
    chosen = {kind: number for kind, number in writes.items() if any(part in kind for part in parts)}
    assert len(chosen) >= len(parts)
    for kind, number in chosen.items():
        forget(azure)
        azure.fault(".*", ".", nth=number, times=10**6, status=503, retry_after=0.01)
        outcome = outcome_of(submit)
        if azure.cloud.jobs:
            assert outcome == "submitted" or "may exist" in outcome, (kind, outcome)
        else:
            assert outcome != "submitted", kind


@pytest.mark.parametrize(
    ("drop", "jobs", "outcome"), [("before", [], r"No job was submitted\.$"), ("after", ["one"], "submitted")]
)
def test_if_the_last_response_is_lost_the_job_is_looked_up(
    azure: AzureLocal, submit: Submit, drop: str, jobs: list[str], outcome: str
) -> None:
    azure.fault("PUT", "/jobs/one", drop=drop, times=100)
    assert re.search(outcome, outcome_of(submit).splitlines()[0])
    assert list(azure.cloud.jobs) == jobs


def test_if_the_job_cannot_be_looked_up_the_error_says_it_may_exist_and_a_repeated_submit_sends_no_second(
    azure: AzureLocal, submit: Submit
) -> None:
    azure.fault("PUT", "/jobs/one", drop="after", times=100)
    azure.fault("GET", "/jobs/one", nth=2, times=100, status=503, retry_after=0.01)
    with pytest.raises(MsgganError) as lost:
        submit()
    assert lost.value.code == "uncertain"
    assert "The job one may exist" in lost.value.message
    assert "msggan-aml status one" in lost.value.hint
    azure.faults.clear()
    with pytest.raises(MsgganError, match="already running as job one"):
        submit()
    assert list(azure.cloud.jobs) == ["one"]


@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        ("GET|HEAD|PUT", r"blob\.core\.windows\.net/.*msggan/code"),
        ("GET|HEAD|PUT", r"blob\.core\.windows\.net/.*msggan/data"),
        ("POST", "/listSecrets"),
    ],
)
def test_requests_that_are_throttled_for_a_moment_are_repeated(
    azure: AzureLocal, submit: Submit, method: str, pattern: str
) -> None:
    fault = azure.fault(method, pattern, times=2, status=429)
    assert (outcome_of(submit), fault.count) == ("submitted", 2)


def test_throttling_that_lasts_is_an_error_that_claims_no_more_than_was_done(azure: AzureLocal, submit: Submit) -> None:
    fault = azure.fault("PUT", "msggan/data", times=10**6, status=429, code="ServerBusy")
    first, *_, last = outcome_of(submit).splitlines()
    assert first.startswith("Uploading the images to the datastore workspaceblobstore: ")
    assert first.endswith("Azure is overloaded or unavailable (status 429).")
    assert re.fullmatch("Request ID: [0-9a-f-]{36}", last)
    assert fault.count == 5
    assert list(azure.cloud.jobs) == []


def test_an_error_of_each_service_ends_with_the_request_s_id(
    azure: AzureLocal, submit: Submit, build_target: Callable[[], AzureTarget]
) -> None:
    submit()
    services: dict[str, Callable[[AzureTarget], object]] = {
        "management.azure.com/.*/jobs/one": lambda target: target.status("one"),
        "/history/": lambda target: target.status("one"),
        r"\.blob\.core\.": lambda target: target.weights("one"),
    }
    for pattern, read in services.items():
        azure.faults.clear()
        azure.fault("GET|HEAD", pattern, times=10**6, status=400)
        with pytest.raises(MsgganError, match="This answer was asked for by a test") as error:
            read(build_target())
        ids = r"Request ID: [0-9a-f-]{16,}(, correlation ID: [0-9a-f-]{32,})?"
        assert re.fullmatch(ids, error.value.hint.splitlines()[-1]), pattern


@pytest.mark.parametrize("drop", ["before", "after"])
def test_a_post_that_may_be_repeated_is_repeated_after_a_cut_connection(
    azure: AzureLocal, submit: Submit, build_target: Callable[[], AzureTarget], drop: str
) -> None:
    secrets, cancel = azure.fault("POST", "/listSecrets", drop=drop), azure.fault("POST", "/cancel", drop=drop)
    submit()
    assert build_target().cancel("one").state == "cancelled"
    assert (secrets.count, cancel.count) == (1, 1)


def test_two_submissions_of_different_names_at_once_both_succeed(azure: AzureLocal, submit: Submit) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as threads:
        runs = list(threads.map(submit, ["one", "two"]))
    assert [run.job_id for run in runs] == ["one", "two"]
    assert set(azure.cloud.jobs) == {"one", "two"}


def test_a_second_submit_uploads_nothing_and_makes_few_requests(azure: AzureLocal, submit: Submit) -> None:
    submit("one")
    before = len(azure.requests)
    submit("two")
    requests = [str(request) for request in azure.requests[before:]]
    (sent,) = (request for request in requests if request.startswith("PUT"))
    assert "/jobs/two " in sent
    assert requests.index(sent) < 10, requests  # the bare SDK makes 9 requests, which read neither jobs nor cluster


def test_the_cluster_of_a_queued_job_is_not_read_at_each_poll(
    azure: AzureLocal, submit: Submit, build_target: Callable[[], AzureTarget]
) -> None:
    submit("one")
    azure.cloud.cluster_errors["msggan-gpu"] = ("OutOfCapacity", "No machines are free.")
    target, before = build_target(), len(azure.made("GET", "/computes/msggan-gpu"))
    for _ in range(5):
        assert "No machines are free." in str(target.status("one"))
    assert len(azure.made("GET", "/computes/msggan-gpu")) - before <= 2  # once a minute


def test_what_was_deleted_since_it_was_found_is_created_by_the_next_submit(azure: AzureLocal, submit: Submit) -> None:
    submit("one")
    azure.cloud.environments.clear()
    azure.cloud.codes.clear()
    with pytest.raises(MsgganError, match="was not found") as missing:
        submit("two")
    assert "run the same command again" in missing.value.hint
    assert list(azure.cloud.jobs) == ["one"]
    submit("two")
    assert list(azure.cloud.jobs) == ["one", "two"]
