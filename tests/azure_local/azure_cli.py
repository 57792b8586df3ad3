"""A replacement for the Azure CLI: a script `az` that returns tokens for the local Azure, or fails if not signed in."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path

from .cloud import Cloud
from .entra import make_token

VERSION = json.dumps({"azure-cli": "2.80.0", "azure-cli-core": "2.80.0", "extensions": {"ml": "2.40.0"}})
SIGNED_OUT = """\
#!/bin/sh
echo "ERROR: Please run 'az login' to setup account." >&2
exit 1
"""


def write_az(folder: Path, cloud: Cloud, signed_in: bool) -> Path:
    """Writes `az` to a folder to be put first in PATH: `az account get-access-token`, and `az version` if signed in."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "az"
    script.write_text(signed_in_script(cloud) if signed_in else SIGNED_OUT)
    script.chmod(0o755)
    return script


def signed_in_script(cloud: Cloud) -> str:
    cases = "".join(
        f"'account get-access-token '*{audience}*) echo '{answer(cloud, audience)}';;\n"
        for audience in cloud.hosts.audiences
    )
    cases += f"version*) echo '{VERSION}';;\n"
    return f'#!/bin/sh\ncase "$*" in\n{cases}*) echo "ERROR: this az does not know: $*" >&2; exit 2;;\nesac\n'


def answer(cloud: Cloud, audience: str) -> str:
    token = make_token(cloud.tenant, audience, oid=cloud.object_id, upn="somebody@example.org", name="Somebody")
    ends = int(time.time()) + 3600
    return json.dumps(
        {
            "accessToken": token,
            "expiresOn": datetime.fromtimestamp(ends).strftime("%Y-%m-%d %H:%M:%S.%f"),
            "expires_on": ends,
            "subscription": cloud.subscription,
            "tenant": cloud.tenant,
            "tokenType": "Bearer",
        }
    )
