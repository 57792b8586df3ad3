"""What is the same submission with the bare SDK? As Microsoft's tutorials write it: a folder, a folder of code, a job.

python -m benchmarks.bare_submit NAME IMAGES CODE ENVIRONMENT
"""

from __future__ import annotations

import os
import sys

from azure.ai.ml import Input, MLClient, Output, command
from azure.identity import DefaultAzureCredential


def main(name: str, images: str, code: str, environment: str) -> None:
    """Uploads the images and the code where they are not there yet, and sends the job."""
    client = MLClient(
        DefaultAzureCredential(),
        os.environ["AZUREML_ARM_SUBSCRIPTION"],
        os.environ["AZUREML_ARM_RESOURCEGROUP"],
        os.environ["AZUREML_ARM_WORKSPACE_NAME"],
        enable_telemetry=False,
    )
    run = Output(type="uri_folder", path=f"azureml://datastores/workspaceblobstore/paths/runs/{name}/", mode="rw_mount")
    job = command(
        name=name,
        experiment_name="msggan",
        code=code,
        command="python -m msggan.train --data ${{inputs.data}} --run-dir ${{outputs.run}} --resolution 32",
        environment=environment,
        compute="msggan-gpu",
        inputs={"data": Input(type="uri_folder", path=images, mode="download")},
        outputs={"run": run},
    )
    client.jobs.create_or_update(job)


if __name__ == "__main__":
    main(*sys.argv[1:])
