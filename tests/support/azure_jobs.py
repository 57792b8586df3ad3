"""The plan of a job and its request body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from msggan.commands.options import Hardware
from msggan.config import TrainConfig
from orchestration.azure.jobs import (
    JobData,
    JobPlan,
)
from orchestration.settings import read_settings
from orchestration.spec import RunSpec

SCOPE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"


CODE = f"azureml:{SCOPE}/codes/c/versions/1"


ENVIRONMENT = f"azureml:{SCOPE}/environments/msggan/versions/1"


SPEC = RunSpec(TrainConfig(resolution=8, kimg=2), "flowers", "flowers", Hardware("cpu", 3))


SIZE = "Standard_NC4as_T4_v3"


BODY: dict[str, Any] = {
    "displayName": "flowers-2",
    "command": (
        'python -m msggan.train --data "${{inputs.data}}" --run-dir "${{outputs.run}}" --resolution 8 --kimg 2.0 '
        "--device cpu --workers 3"
    ),
    "codeId": CODE,
    "computeId": f"{SCOPE}/computes/gpu",
    "properties": {},
    "experimentName": "garden",
    "isArchived": False,
    "inputs": {
        "data": {
            "uri": "azureml://datastores/store/paths/a b/",
            "mode": "Download",
            "jobInputType": "uri_folder",
        }
    },
    "outputs": {
        "run": {
            "uri": "azureml://datastores/store/paths/msggan/runs/flowers/",
            "mode": "ReadWriteMount",
            "jobOutputType": "uri_folder",
        }
    },
    "environmentId": ENVIRONMENT,
    "tags": {"msggan.run": "flowers"},
    "environmentVariables": {"PYTHONUNBUFFERED": "1"},
    "resources": {"properties": {}, "shmSize": "8g"},
    "limits": {"timeout": "PT1H30M", "jobLimitsType": "Command"},
    "jobType": "Command",
}


SERVERLESS: dict[str, Any] = {
    **{key: value for key, value in BODY.items() if key != "computeId"},
    "resources": {"instanceCount": 1, "instanceType": SIZE, "properties": {}, "shmSize": "8g"},
}


SETTINGS = replace(
    read_settings({}, folder=Path("/"), environ={}), compute="gpu", timeout_hours=1.5, experiment="garden"
)


def job_plan(
    *,
    data: JobData | None = None,
    tags: Mapping[str, str] | None = None,
    identity: str | None = None,
    settings_tags: Mapping[str, str] | None = None,
    **settings: Any,
) -> JobPlan:
    return JobPlan(
        name="flowers-2",
        spec=SPEC,
        data=data or JobData("azureml://datastores/store/paths/a b/", "uri_folder"),
        datastore="store",
        code=CODE,
        environment=ENVIRONMENT,
        settings=replace(SETTINGS, tags=settings_tags or {}, **settings),
        tags={"msggan.run": "flowers"} if tags is None else tags,
        identity=identity,
    )
