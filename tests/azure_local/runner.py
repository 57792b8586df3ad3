"""Runs a job as a process on this machine, with the environment that a node of Azure ML provides."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from . import entra, refusals
from .blobs import BlobLocation
from .cloud import ARTIFACT_CONTAINER, Cloud, now
from .folders import Mirror, fetch
from .jobs_state import ENDED, Job
from .locations import COMPUTE, USER, LocationError, find_location

SYNC_S = 0.1
LAST_LINES = 3  # of the log, in the error of a job that failed
GRACE_S = 5.0  # between SIGTERM and SIGKILL


def start(cloud: Cloud, job: Job) -> None:
    """Runs the job in a thread of its own."""
    job.thread = threading.Thread(target=run_job, args=(cloud, job), name=f"azure-job-{job.name}", daemon=True)
    job.thread.start()


def run_job(cloud: Cloud, job: Job) -> None:
    """The life cycle of a job after it was accepted."""
    try:
        wait_in_queue(cloud, job)
        while not job.cancelled.is_set():
            attempt = Attempt(cloud, job)
            again = attempt.run()
            if not again:
                break
            job.attempt += 1
            job.preempted.clear()
            wait_in_queue(cloud, job)
        with job.changed:  # a job is either cancelled in time or not at all
            end(job, "Canceled" if job.cancelled.is_set() else "Completed" if job.exit_code == 0 else "Failed")
    except LocationError as unreadable:
        job.error = job_error("UserError", str(unreadable))
        end(job, "Failed")
    except Exception as error:
        job.error = job_error("LocalAzureBroken", repr(error))
        end(job, "Failed")
        raise


def end(job: Job, status: str) -> None:
    if status == "Failed" and job.error is None:
        message = f"Execution failed. User process exited with status code {job.exit_code}."
        job.error = job_error("UserError", f"{message} Error: {job.last_lines}" if job.last_lines else message)
    job.ended = now()
    job.move_to(status)


def job_error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message}


def wait_in_queue(cloud: Cloud, job: Job) -> None:
    job.move_to("Queued")
    while cloud.queue_reason is not None and not job.cancelled.wait(0.02):
        pass


def cancel(job: Job) -> bool:
    """Requests cancellation, which the job's own thread carries out; False if the job has ended."""
    with job.changed:
        if job.status in ENDED:
            return False
        job.move_to("CancelRequested")
        job.cancelled.set()
        return True


class Attempt:
    """One start of a job: its folder, its process, and the uploads of its outputs."""

    def __init__(self, cloud: Cloud, job: Job) -> None:
        self.cloud, self.job = cloud, job
        self.folder = cloud.folder / f"{job.name}-{job.attempt}"
        self.work = self.folder / "wd"
        self.log = self.folder / "std_log.txt"
        self.placeholders: dict[str, str] = {}
        self.variables: dict[str, str] = {}
        self.mirrors: list[Mirror] = []
        self.at_the_end: list[Mirror] = []

    def run(self) -> bool:
        """True if the job was preempted and is to start again."""
        self.job.move_to("Preparing")
        self.prepare()
        if self.job.cancelled.is_set():
            return False
        self.job.started = self.job.started or now()
        self.start_process()
        if not self.job.cancelled.is_set():
            self.job.move_to("Running")
        try:
            self.follow()
        finally:
            self.kill()
        if self.job.preempted.is_set():  # what is not uploaded by now is lost
            self.clear_outputs()
            return True
        self.carry()
        self.job.last_lines = "\n".join(self.log.read_text(errors="replace").splitlines()[-LAST_LINES:])
        if not self.job.cancelled.is_set():
            self.job.move_to("Finalizing")
        for mirror in self.at_the_end:
            mirror.carry()
        shutil.rmtree(self.folder, ignore_errors=True)
        return False

    def prepare(self) -> None:
        self.work.mkdir(parents=True)
        properties = self.job.properties
        build_image(self.cloud, self.job.name, properties["environmentId"])
        if properties.get("codeId"):
            fetch(self.cloud.blobs, code_location(self.cloud, properties["codeId"]), self.work)
        for name, given in (properties.get("inputs") or {}).items():
            self.prepare_input(name, given)
        for name, given in (properties.get("outputs") or {}).items():
            self.prepare_output(name, given)
        for name in ("outputs", "logs"):
            location = artifact_location(self.cloud, self.job.name, name)
            (self.work / name).mkdir(exist_ok=True)
            self.mirrors.append(Mirror(self.cloud.blobs, self.work / name, location, deletes=False))
        log = artifact_location(self.cloud, self.job.name, self.log_name)
        self.log.touch()
        self.mirrors.append(Mirror(self.cloud.blobs, self.log, log, appends=True))

    @property
    def log_name(self) -> str:
        if self.job.attempt == 1 or not self.cloud.logs_by_attempt:
            return "user_logs/std_log.txt"
        return f"user_logs/retry_{self.job.attempt - 1:03d}/std_log_process_0.txt"

    def prepare_input(self, name: str, given: dict[str, Any]) -> None:
        if given["jobInputType"] == "literal":
            local = given["value"]
        elif given.get("mode") == "Direct":
            local = given["uri"]
        else:
            location = find_location(self.cloud, given["uri"], identity_of(self.cloud, self.job))
            if next(location.files(self.cloud.blobs), None) is None:
                raise LocationError(f"ScriptExecution.StreamAccess.NotFound: there is nothing at {given['uri']}")
            local = str(fetch(self.cloud.blobs, location, self.folder / "inputs" / name))
        self.placeholders[f"inputs.{name}"] = local
        self.variables[f"AZURE_ML_INPUT_{name}"] = local

    def prepare_output(self, name: str, given: dict[str, Any]) -> None:
        identity = identity_of(self.cloud, self.job)
        location = find_location(self.cloud, output_uri(self.job.name, name, given), identity)
        local = self.folder / "outputs" / name
        mirror = Mirror(self.cloud.blobs, local, location, deletes=True)
        if given.get("mode") in (None, "ReadWriteMount"):
            fetch(self.cloud.blobs, location, local)
            mirror.remember()
            self.mirrors.append(mirror)
        else:
            self.at_the_end.append(mirror)
        if given["jobOutputType"] == "uri_file":
            local.parent.mkdir(parents=True, exist_ok=True)
        else:
            local.mkdir(parents=True, exist_ok=True)
        self.placeholders[f"outputs.{name}"] = str(local)
        self.variables[f"AZURE_ML_OUTPUT_{name}"] = str(local)

    def start_process(self) -> None:
        command = re.sub(
            r"\$\{\{(.*?)\}\}", lambda found: self.placeholders[found[1].strip()], self.job.properties["command"]
        )
        with self.log.open("ab") as log:
            refusing = [sys.executable, refusals.__file__, ",".join(self.cloud.mounts_refuse)]
            self.job.process = subprocess.Popen(
                [*(refusing if self.cloud.mounts_refuse else []), "/bin/bash", "-c", command],
                cwd=self.work,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def environment(self) -> dict[str, str]:
        cloud, job = self.cloud, self.job
        audience = f"https://{cloud.hosts.management}"
        token = entra.make_token(cloud.tenant, audience, 86400, run=job.name, oid=cloud.object_id)
        path = os.pathsep.join([os.path.dirname(cloud.python), os.environ["PATH"]])
        inherited = dict(cloud.job_environment)
        if identity_of(cloud, job) != USER:
            del inherited["OBO_ENDPOINT"]
        context = {"run_attempt_count": job.attempt, "vm_priority": cloud.vm_priority, "node_count": 1, "gpu_count": 0}
        return {
            "PATH": path,
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            **inherited,
            "AZUREML_RUN_ID": job.name,
            "AZUREML_ROOT_RUN_ID": job.parent or job.name,
            "AZUREML_EXPERIMENT_NAME": job.experiment,
            "AZUREML_ARM_SUBSCRIPTION": cloud.subscription,
            "AZUREML_ARM_RESOURCEGROUP": cloud.group,
            "AZUREML_ARM_WORKSPACE_NAME": cloud.workspace,
            "AZUREML_ARM_PROJECT_NAME": job.experiment,
            "AZUREML_SERVICE_ENDPOINT": f"https://{cloud.api_host}",
            "AZUREML_DISCOVERY_SERVICE_ENDPOINT": f"https://{cloud.api_host}/discovery",
            "AZUREML_CR_COMPUTE_CONTEXT": json.dumps(context),
            "AZUREML_RUN_TOKEN": token,
            "AZUREML_RUN_TOKEN_EXPIRY": str(entra.read_token({"authorization": f"Bearer {token}"})["exp"]),
            "DEFAULT_IDENTITY_CLIENT_ID": cloud.client_id,
            "MLFLOW_TRACKING_URI": cloud.tracking_uri,
            "MLFLOW_TRACKING_TOKEN": token,
            "MLFLOW_EXPERIMENT_NAME": job.experiment,
            "MLFLOW_EXPERIMENT_ID": experiment_id(job.experiment),
            "MLFLOW_RUN_ID": job.name,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "6105",
            "NODE_RANK": "0",
            **self.variables,
            **job.variables,
            **(job.properties.get("environmentVariables") or {}),
        }

    def follow(self) -> None:
        """Uploads outputs until the process has ended or is to be stopped."""
        process = self.job.process
        assert process is not None
        limit_s = timeout_s(self.job.properties)
        began = time.monotonic()
        while not self.job.cancelled.is_set() and not self.job.preempted.is_set():
            try:
                self.job.exit_code = process.wait(SYNC_S)
                return
            except subprocess.TimeoutExpired:
                """It still runs."""
            self.carry()
            if limit_s is not None and time.monotonic() > began + limit_s:
                expire(self.job)

    def kill(self) -> None:
        """Stops the process and its children: with SIGTERM first if cancelled, with SIGKILL at once if preempted."""
        process = self.job.process
        assert process is not None
        if process.poll() is None and self.job.cancelled.is_set():
            signal_group(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        signal_group(process, signal.SIGKILL)
        process.wait()

    def carry(self) -> None:
        for mirror in self.mirrors:
            mirror.carry(self.job.preempted.is_set)

    def clear_outputs(self) -> None:
        """A preempted node loses ./outputs; mounted outputs are kept."""
        for name in ("outputs", "logs"):
            location = artifact_location(self.cloud, self.job.name, name)
            container = self.cloud.blobs.container(location.account, location.container)
            for blob, _ in list(location.files(self.cloud.blobs)):
                container.delete_blob(blob)
        shutil.rmtree(self.folder, ignore_errors=True)


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def build_image(cloud: Cloud, job: str, environment: str) -> None:
    """Builds a custom environment's image at its first job, which gets the log. Raises LocationError on failure."""
    if environment in cloud.built or environment.startswith("azureml://registries/"):
        return
    log = f"Step 1/2 : FROM the base of {environment}\nStep 2/2 : RUN the installation of its packages\n"
    log += "ERROR: No matching distribution found\n" if cloud.builds_fail else "Successfully built the image\n"
    location = artifact_location(cloud, job, "azureml-logs/20_image_build_log.txt")
    cloud.blobs.write(location.account, location.container, location.path, log.encode())
    if cloud.builds_fail:
        raise LocationError("ImageBuildFailure: the image could not be built; see azureml-logs/20_image_build_log.txt")
    cloud.built.add(environment)


def identity_of(cloud: Cloud, job: Job) -> str | None:
    """Whose identity reads what no credential opens: the caller's, the compute's, or None."""
    given = job.properties.get("identity") or {}
    if given.get("identityType") == "UserIdentity":
        return USER
    if not job.properties.get("computeId"):  # serverless compute has no system-assigned identity
        return COMPUTE if given.get("identityType") == "Managed" and given.get("resourceId") else None
    compute = cloud.computes.get(job.properties["computeId"].split("/")[-1], {})
    return COMPUTE if (compute.get("identity") or {"type": "None"})["type"].lower() != "none" else None


def code_location(cloud: Cloud, code_id: str) -> BlobLocation:
    match = re.search(r"/codes/([^/]+)/versions/([^/]+)$", code_id)
    assert match, "checked when the job was submitted"
    return find_location(cloud, cloud.codes[match[1], match[2]].properties["codeUri"])


def output_uri(job: str, name: str, given: dict[str, Any]) -> str:
    uri = given.get("uri") or f"azureml://datastores/workspaceblobstore/paths/azureml/{job}/{name}/"
    return uri.replace("${{name}}", job)


def artifact_location(cloud: Cloud, run: str, path: str = "") -> BlobLocation:
    return BlobLocation(cloud.account, ARTIFACT_CONTAINER, f"ExperimentRun/dcid.{run}/{path}".rstrip("/"))


def experiment_id(name: str) -> str:
    return f"experiment-{name}"


def expire(job: Job) -> None:
    """Cancels a job that exceeded its time limit, with the error that says so."""
    limit_s = timeout_s(job.properties) or 0
    job.error = job_error("UserError", f"The job exceeded its time limit of {limit_s:g} seconds.")
    job.cancelled.set()


def timeout_s(properties: dict[str, Any]) -> float | None:
    text = (properties.get("limits") or {}).get("timeout")
    if not text:
        return None
    match = re.fullmatch(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?)?", text)
    assert match, "checked when the job was submitted"
    return sum(float(part or 0) * unit for part, unit in zip(match.groups(), (86400, 3600, 60, 1), strict=True))


def unfinished(cloud: Cloud) -> Iterator[Job]:
    return (job for job in list(cloud.jobs.values()) if job.status not in ENDED)
