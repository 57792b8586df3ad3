"""The request bodies that Azure ML accepts: the shapes of its REST API for the resources of the local Azure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from .messages import ServiceError
from .shapes import (
    Shape,
    anything,
    boolean,
    duration,
    list_of,
    mapping_of,
    number,
    one_of,
    record,
    tagged,
    text,
    whole,
)

NONEMPTY = text(r"(?s).*[a-zA-Z0-9_].*")
STRINGS = mapping_of(text())
RESOURCE = {"description": text(), "properties": STRINGS, "tags": STRINGS}
ASSET = {**RESOURCE, "isAnonymous": boolean, "isArchived": boolean, "autoDeleteSetting": anything}
KNOWN_IDENTITIES = one_of("None", "WorkspaceSystemAssignedIdentity", "WorkspaceUserAssignedIdentity")


def enveloped(properties: Shape, **beside: Shape) -> Shape:
    return record("properties", properties=properties, **beside)


# Compute

AML_COMPUTE = record(
    "vmSize scaleSettings",
    osType=one_of("Linux", "Windows"),
    vmSize=NONEMPTY,
    vmPriority=one_of("Dedicated", "LowPriority"),
    virtualMachineImage=record("id", id=text()),
    isolatedNetwork=boolean,
    scaleSettings=record(
        "maxNodeCount",
        maxNodeCount=whole(0, 1000),
        minNodeCount=whole(0, 1000),
        nodeIdleTimeBeforeScaleDown=duration,
    ),
    userAccountCredentials=record(
        "adminUserName", adminUserName=text(), adminUserSshPublicKey=text(), adminUserPassword=text()
    ),
    subnet=record("id", id=text()),
    remoteLoginPortPublicAccess=one_of("Enabled", "Disabled", "NotSpecified"),
    enableNodePublicIp=boolean,
    propertyBag=anything,
)
COMPUTE = enveloped(
    tagged(
        "computeType",
        {
            "AmlCompute": record(
                "properties",
                properties=AML_COMPUTE,
                computeLocation=text(),
                description=text(),
                resourceId=text(),
                disableLocalAuth=boolean,
            )
        },
    ),
    location=text(),
    tags=STRINGS,
    identity=record(
        "type",
        type=text(
            r"(?i)SystemAssigned|UserAssigned|SystemAssigned, ?UserAssigned|None"
        ),  # the SDK writes Systemassigned
        userAssignedIdentities=mapping_of(anything),
    ),
    sku=anything,
)

# Datastores

SERVICE_PRINCIPAL = record(
    "authorityUrl clientId secrets tenantId",
    authorityUrl=text(),
    clientId=NONEMPTY,
    tenantId=NONEMPTY,
    resourceUrl=text(),
    secrets=tagged("secretsType", {"ServicePrincipal": record("clientSecret", clientSecret=NONEMPTY)}),
)
NO_KEYS = tagged("credentialsType", {"None": record(), "ServicePrincipal": SERVICE_PRINCIPAL})  # as of ADLS Gen2
CREDENTIALS = tagged(
    "credentialsType",
    {
        "None": record(),
        "ServicePrincipal": SERVICE_PRINCIPAL,
        "AccountKey": record("secrets", secrets=tagged("secretsType", {"AccountKey": record("key", key=NONEMPTY)})),
        "Sas": record("secrets", secrets=tagged("secretsType", {"Sas": record("sasToken", sasToken=NONEMPTY)})),
    },
)
CONTAINER = text(r"[a-z0-9](-?[a-z0-9]){2,62}")
STORAGE = {
    **RESOURCE,
    "accountName": text(r"[a-z0-9]{3,24}"),
    "endpoint": text(),
    "serviceDataAccessAuthIdentity": KNOWN_IDENTITIES,
    "resourceGroup": text(),
    "subscriptionId": text(),
    "isDefault": boolean,
    "intellectualProperty": anything,
}
DATASTORE = enveloped(
    tagged(
        "datastoreType",
        {
            "AzureBlob": record(
                "credentials accountName containerName",
                **STORAGE,
                credentials=CREDENTIALS,
                containerName=CONTAINER,
                protocol=one_of("https", "wasbs"),
            ),
            "AzureDataLakeGen2": record(
                "credentials accountName filesystem",
                **STORAGE,
                credentials=NO_KEYS,
                filesystem=CONTAINER,
                protocol=one_of("https", "abfss"),
            ),
        },
    )
)

# Environments, code, data

ENVIRONMENT = enveloped(
    record(
        **ASSET,
        autoRebuild=one_of("Disabled", "OnBaseImageUpdate"),
        build=record("contextUri", contextUri=NONEMPTY, dockerfilePath=text()),
        condaFile=text(),
        image=NONEMPTY,
        inferenceConfig=anything,
        osType=one_of("Linux", "Windows"),
        stage=text(),
    )
)
# The SDK writes the version of its hash as a number among the properties.
CODE = enveloped(record("codeUri", **{**ASSET, "properties": mapping_of(anything)}, codeUri=text(r"https://.+")))
DATA = enveloped(
    tagged(
        "dataType",
        {
            kind: record("dataUri", **ASSET, dataUri=text(r"(azureml|https)://.+"), stage=text())
            for kind in ("uri_file", "uri_folder")
        },
    )
)
PENDING_UPLOAD = record(pendingUploadType=one_of("None", "TemporaryBlobReference"), pendingUploadId=text())

# Jobs

IDENTITY = tagged(
    "identityType",
    {
        "AMLToken": record(),
        "UserIdentity": record(),
        "Managed": record(clientId=text(), objectId=text(), resourceId=text()),
    },
)
ASSET_TYPES = ("uri_file", "uri_folder", "mltable", "custom_model", "mlflow_model", "triton_model")
INPUTS = mapping_of(
    tagged(
        "jobInputType",
        {
            "literal": record("value", value=text(), description=text()),
            **{
                kind: record(
                    "uri",
                    uri=NONEMPTY,
                    mode=one_of("ReadOnlyMount", "ReadWriteMount", "Download", "Direct", "EvalMount", "EvalDownload"),
                    description=text(),
                    pathOnCompute=text(),
                )
                for kind in ASSET_TYPES
            },
        },
    ),
    r"[A-Za-z_][A-Za-z0-9_]*",
)
OUTPUTS = mapping_of(
    tagged(
        "jobOutputType",
        {
            kind: record(
                mode=one_of("ReadWriteMount", "Upload", "Direct"),
                uri=text(r"(azureml|https)://.+"),
                description=text(),
                assetName=text(),
                assetVersion=text(),
                autoDeleteSetting=anything,
                pathOnCompute=text(),
            )
            for kind in ASSET_TYPES
        },
    ),
    r"[A-Za-z_][A-Za-z0-9_]*",
)
DISTRIBUTION = tagged(
    "distributionType",
    {
        "PyTorch": record(processCountPerInstance=whole(1)),
        "Mpi": record(processCountPerInstance=whole(1)),
        "TensorFlow": record(parameterServerCount=whole(0), workerCount=whole(1)),
    },
)
RESOURCES = record(
    instanceCount=whole(1),
    instanceType=NONEMPTY,
    locations=list_of(text()),
    maxInstanceCount=whole(1),
    dockerArgs=text(),
    shmSize=text(r"\d+[bBkKmMgG]"),
    properties=mapping_of(anything),
)
QUEUE = record(jobTier=one_of("Spot", "Basic", "Standard", "Premium", "Null"), priority=whole(0))
JOB = {
    **RESOURCE,
    "componentId": text(),
    "computeId": text(),
    "displayName": text(),
    "experimentName": text(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}"),
    "identity": IDENTITY,
    "isArchived": boolean,
    "notificationSetting": anything,
    "services": mapping_of(
        record(endpoint=text(), jobServiceType=text(), nodes=anything, port=whole(1, 65535), properties=STRINGS)
    ),
    "inputs": INPUTS,
    "outputs": OUTPUTS,
    "queueSettings": QUEUE,
}
TRIAL = {
    "codeId": text(r"/?(azureml:)?/?.+"),
    "command": NONEMPTY,
    "distribution": DISTRIBUTION,
    "environmentId": NONEMPTY,
    "environmentVariables": STRINGS,
    "resources": RESOURCES,
}
EVALUATED = {"evaluationInterval": whole(1), "delayEvaluation": whole(0)}
SWEEP = {
    "earlyTermination": tagged(
        "policyType",
        {
            "Bandit": record(**EVALUATED, slackAmount=number, slackFactor=number),
            "MedianStopping": record(**EVALUATED),
            "TruncationSelection": record(**EVALUATED, truncationPercentage=whole(1, 99)),
        },
    ),
    "limits": tagged(
        "jobLimitsType",
        {
            "Sweep": record(
                maxConcurrentTrials=whole(1, 1000),
                maxTotalTrials=whole(1, 1000),
                timeout=duration,
                trialTimeout=duration,
            )
        },
    ),
    "objective": record("goal primaryMetric", goal=text(r"(?i)minimize|maximize"), primaryMetric=NONEMPTY),
    "samplingAlgorithm": tagged(
        "samplingAlgorithmType",
        {
            "Grid": record(),
            "Random": record(logbase=text(), rule=one_of("Random", "Sobol"), seed=whole()),
            "Bayesian": record(),
        },
    ),
    "searchSpace": mapping_of(anything),
    "trial": record("command environmentId", **TRIAL),
    "resources": RESOURCES,
}
JOBS = enveloped(
    tagged(
        "jobType",
        {
            "Command": record(
                "command environmentId",
                **JOB,
                **TRIAL,
                autologgerSettings=record(mlflowAutologger=one_of("Enabled", "Disabled")),
                limits=tagged("jobLimitsType", {"Command": record(timeout=duration)}),
            ),
            "Sweep": record("objective samplingAlgorithm searchSpace trial", **JOB, **SWEEP),
        },
    )
)

# MLflow and run history

PARAM = record("key", key=text(), value=text())
METRIC = record("key", key=text(), value=anything, timestamp=anything, step=anything, run_id=text())


def check(shape: Shape, body: Any) -> None:
    """Raises ServiceError (400) with all problems of the body."""
    refuse(shape(body, "body"))


def refuse(complaints: Iterable[str]) -> None:
    found = list(complaints)
    if found:
        raise ServiceError(400, "ValidationError", "; ".join(found))


def wrong_placeholders(command: str, inputs: Iterable[str], outputs: Iterable[str]) -> Iterable[str]:
    """The `${{…}}` placeholders of a command that name no input or output."""
    known = {f"inputs.{name}" for name in inputs} | {f"outputs.{name}" for name in outputs}
    for placeholder in re.findall(r"\$\{\{(.*?)\}\}", command):
        if placeholder.strip() not in known:
            yield f"the command's ${{{{{placeholder}}}}} names no input or output"
