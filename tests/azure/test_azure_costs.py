"""Costs on Azure: the price before a job, the ceiling during it, the consent for an amount, and what `cost` reports."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from azure_local import AzureLocal
from azure_local.jobs_state import Job
from support.azure_commands import Command, posix, sdk_warnings

from msggan import TrainConfig
from orchestration import AzureTarget

WHAT = ["--resolution", "8", "--latent-size", "8", "--batch-size", "4", "--device", "cpu", "--kimg", "0.04"]
T4 = "Standard_NC4as_T4_v3"
SUBMIT = ["submit", "--data", "tiny", *WHAT, "--detach", "-o", "json"]

pytestmark = [posix, sdk_warnings]


def test_the_price_is_shown_before_the_question_and_consent_is_for_an_amount(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    azure.hold_jobs("no node is free")
    asked = msggan_aml(*SUBMIT)
    assert (asked.exit_code, azure.cloud.jobs) == (2, {})
    # 24 hours, 15 minutes to start and 2 minutes of idling, at 0.526 US dollars an hour.
    assert "Cost: 12.78 USD at most: 24.3 machine hours of Standard_NC4as_T4_v3, 0.526 USD per hour" in asked.stderr
    assert "at low priority 0.1052 USD per hour (Azure ML's list of VM sizes, 20" in asked.stderr
    assert "In storage: 0.0 MiB so far" in asked.stderr
    assert "Use --yes" in asked.stderr

    (workdir / "runs").mkdir()
    consent = workdir / "runs" / ".azure-agreed.json"
    consent.write_text(json.dumps([f"{azure.cloud.subscription}/{azure.cloud.group}/{azure.cloud.workspace}"]))
    assert msggan_aml(*SUBMIT).exit_code == 2  # the first format of the file has no amount

    assert msggan_aml(*SUBMIT, "--yes", "--name", "one").exit_code == 0
    azure.recording.clear()
    assert msggan_aml(*SUBMIT, "--name", "two").exit_code == 0
    assert azure.made("GET", "/vmSizes") == []  # the same hours of the same machine need no price
    (put,) = azure.made("PUT", "/jobs/two")
    before = azure.requests[: azure.requests.index(put)]
    assert sum(request.path.endswith("/computes/msggan-gpu") for request in before) == 1
    assert msggan_aml(*SUBMIT, "--name", "three", "--timeout-hours", "2").exit_code == 0

    azure.add_cluster("big", "Standard_NC48ads_A100_v4")
    assert msggan_aml(*SUBMIT, "--name", "four", "--compute", "big", "--timeout-hours", "1").exit_code == 0
    more = msggan_aml(*SUBMIT, "--name", "five", "--compute", "big", "--timeout-hours", "504")
    assert (more.exit_code, "3704.47 USD at most" in more.stderr) == (2, True), more.stderr
    assert sorted(azure.cloud.jobs) == ["four", "one", "three", "two"]


def test_a_ceiling_sets_the_time_limit_or_refuses(azure: AzureLocal, workdir: Path, msggan_aml: Command) -> None:
    azure.hold_jobs("no node is free")
    refused = msggan_aml(*SUBMIT, "--yes", "--max-cost", "0.10")
    assert (refused.exit_code, refused.json["error"]["code"], azure.cloud.jobs) == (3, "refused", {})
    assert "even the shortest useful job costs 0.20 USD" in refused.json["error"]["message"]

    # 2.63 US dollars are 5 hours, of which 17 minutes are to start and to be released.
    (workdir / "msggan.toml").write_text("[azure]\nmax_cost = 2.63\n")
    planned = msggan_aml(*SUBMIT, "--dry-run").json
    assert planned["cost"]["at_most"] == 2.63
    assert planned["requests"][0]["body"]["properties"]["limits"]["timeout"] == "PT4H43M"
    assert msggan_aml(*SUBMIT, "--yes").exit_code == 0
    (sent,) = azure.made("PUT", "/jobs/tiny")
    assert sent.body["properties"]["limits"]["timeout"] == "PT4H43M"

    target, before = AzureTarget.from_config(), len(azure.requests)
    target.submit(TrainConfig(resolution=8, kimg=1), data="tiny", name="python", max_cost="0.526USD")
    assert target.status("python").state == "queued"
    assert [request.host for request in azure.requests[before:] if request.path.endswith("/token")] == [
        "login.microsoftonline.com"
    ]
    (sent,) = azure.made("PUT", "/jobs/python")
    assert sent.body["properties"]["limits"]["timeout"] == "PT43M"


def test_of_several_serverless_sizes_the_first_with_quota_is_priced_and_sent(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    azure.cloud.quotas["StandardNCADSA100v4Family"] = 0
    args = (*SUBMIT, "--instance-type", "Standard_NC24ads_A100_v4,Standard_NC4as_T4_v3")
    planned = msggan_aml(*args, "--dry-run")
    assert (planned.json["cost"]["machine"], planned.json["cost"]["price"]["per_hour"]) == (T4, 0.526)
    assert planned.json["requests"][0]["body"]["properties"]["resources"]["instanceType"] == T4
    submitted = msggan_aml(*args, "--yes")
    assert submitted.exit_code == 0, submitted.stderr
    assert f"{T4} in eastus is the first that can be used; 1 machine Standard_NC24ads_A100_v4" in submitted.stderr
    assert f"tiny trains on a machine of size {T4} in workspace" in submitted.stderr
    (sent,) = azure.made("PUT", "/jobs/tiny")
    assert sent.body["properties"]["resources"]["instanceType"] == T4


def test_a_ceiling_of_a_sweep_covers_all_its_trials(azure: AzureLocal, workdir: Path, msggan_aml: Command) -> None:
    azure.hold_jobs("no node is free")
    words = ["sweep", "--data", "tiny", "--over", "g_lr", "--trials", "8", "--concurrent", "4", *WHAT, "--detach"]
    assert msggan_aml(*words, "--yes", "--max-cost", "0.5", "-o", "json").exit_code == 3
    planned = msggan_aml(*words, "--max-cost", "5.26", "--dry-run", "-o", "json").json
    assert planned["cost"]["at_most"] == 5.26
    started = msggan_aml(*words, "--max-cost", "5.26", "--yes", "-o", "json")
    assert started.exit_code == 0, started.stderr
    (sent,) = azure.made("PUT", "/jobs/tiny-sweep")
    limits = sent.body["properties"]["limits"]
    assert (limits["timeout"], limits["trialTimeout"]) == ("PT2H13M", "PT2H13M")  # 10 hours on 4 machines
    assert planned["requests"][0]["body"]["properties"]["limits"] == limits


def test_prices_come_from_the_public_list_or_are_unknown(azure: AzureLocal, workdir: Path, msggan_aml: Command) -> None:
    euros = msggan_aml(*SUBMIT, "--dry-run", "--max-cost", "100EUR").json["cost"]
    assert (euros["currency"], euros["price"]["per_hour"], euros["at_most"]) == ("EUR", 0.4734, 11.5)
    assert euros["price"]["low_priority_per_hour"] == 0.09468
    (asked,) = azure.made("GET", "/api/retail/prices")
    assert "authorization" not in asked.headers
    azure.cloud.lists_prices = False
    dollars = msggan_aml(*SUBMIT, "--dry-run").json["cost"]
    assert (dollars["price"]["per_hour"], dollars["price"]["source"]) == (0.526, "Azure's list of retail prices")

    azure.cloud.retail_prices.clear()
    unknown = msggan_aml(*SUBMIT, "--dry-run")
    assert (unknown.exit_code, unknown.json["cost"]["price"], unknown.json["cost"]["at_most"]) == (0, None, None)
    assert "Cost: unknown, 24.3 machine hours of Standard_NC4as_T4_v3 at most." in unknown.stderr
    assert "has none for Standard_NC4as_T4_v3 in eastus" in unknown.stderr
    refused = msggan_aml(*SUBMIT, "--yes", "--max-cost", "5")
    assert (refused.exit_code, "the price of Standard_NC4as_T4_v3 is unknown" in refused.stderr) == (3, True)
    azure.fault("GET", "/api/retail/prices", times=9, status=503)
    assert "status 503" in msggan_aml(*SUBMIT, "--dry-run").stderr


def test_the_likely_cost_follows_from_the_speed_of_an_earlier_job(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    trained = msggan_aml("submit", "--data", "tiny", *WHAT, "--yes", "-o", "json")
    assert trained.exit_code == 0, trained.stderr
    speed = trained.json["metrics"]["images_per_second"]
    again = msggan_aml("submit", "--data", "tiny", *WHAT[:-1], "400", "--dry-run", "-o", "json")
    assert again.json["cost"]["likely_hours"] == pytest.approx((400_000 - 40) / speed / 3600, abs=1e-3)
    assert "of training at the speed of its earlier job" in again.stderr
    assert again.json["cost"]["stored_bytes"] > 1000


def test_cost_adds_up_machine_hours_and_names_what_still_costs(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    nothing = msggan_aml("cost", "-o", "json")
    assert (nothing.exit_code, nothing.json["runs"], nothing.json["ongoing"]) == (0, [], []), nothing.stderr
    for name, hours in (("photos", 2), ("photos-2", 1)):
        add_ended_job(azure, name, "photos", hours)
    planned = msggan_aml(
        "sweep",
        "--data",
        "tiny",
        "--over",
        "g_lr",
        *WHAT,
        "--name",
        "find",
        "--data-mode",
        "mount",
        "--dry-run",
        "-o",
        "json",
    )
    properties = planned.json["requests"][0]["body"]["properties"]
    properties.pop("identity", None)  # which is resolved at submit
    properties["trial"] |= {"codeId": f"{azure.cloud.scope}/codes/c/versions/1", "environmentId": "azureml:e:1"}
    add_ended_job(azure, "find", "find", 0, **properties)
    for number in range(3):
        add_ended_job(azure, f"find_{number}", "find", 0.5).parent = "find"
    azure.cloud.idle_nodes["msggan-gpu"] = 2
    azure.add_compute_instance("notebook")
    azure.add_compute_instance("stopped")
    azure.cloud.computes["stopped"]["properties"]["properties"]["state"] = "Stopped"
    azure.put_blob("msggan/runs/photos/a", bytes(3 << 20))
    registry = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ContainerRegistry/registries/images"
    azure.cloud.container_registry = registry
    azure.add_endpoint("flowers", "Standard_DS3_v2", 3)
    for tells in (True, False):
        azure.cloud.tells_compute = tells
        costs = msggan_aml("cost", "-o", "json")
        assert costs.exit_code == 0, costs.stderr
        assert {run["name"]: (run["machine_hours"], run["cost"]) for run in costs.json["runs"]} == {
            "photos": (3, 1.578),  # at 0.526 US dollars an hour
            "find": (1.5, 0.789),
        }
        assert costs.json["total"] == 2.367
        assert {run["machine"] for run in costs.json["runs"]} == {"Standard_NC4as_T4_v3"}
    where = "--resource-group msggan-rg --workspace-name msggan-ws"
    assert {(cost["kind"], cost["name"]): (cost["per_hour"], cost["end"]) for cost in costs.json["ongoing"]} == {
        ("cluster", "msggan-gpu"): (1.052, f"az ml compute delete --name msggan-gpu {where}"),
        ("compute instance", "notebook"): (0.229, f"az ml compute stop --name notebook {where}"),
        ("compute instance", "stopped"): (
            pytest.approx(19.71 / 730 + 0.025),
            f"az ml compute delete --name stopped {where}",
        ),
        ("storage", f"msgganstore/{azure.container}/msggan"): (
            pytest.approx(0.0208 * 3 / 1024 / 730),
            "az storage blob delete-batch --auth-mode login --account-name msgganstore "
            f"--source {azure.container} --pattern 'msggan/*'",
        ),
        ("endpoint", "flowers"): (pytest.approx(0.687), f"az ml online-endpoint delete --name flowers {where} --yes"),
    }
    text = msggan_aml("cost").stdout
    assert (
        "3.0 MiB of images and runs, all of which the command deletes; 0.00 USD per month. End it: az storage" in text
    )
    assert "Container registry images: 5.07 USD per month in the tier Basic" in text
    assert "In addition each machine has a disk: 0.027 USD per hour" in text
    azure.cloud.metered.clear()
    text = msggan_aml("cost").stdout
    assert "its disk and load balancer remain; price unknown" in text
    assert "In addition each machine has a disk: price unknown" in text
    assert all(
        request.method == "GET"
        for request in azure.requests
        if request.host == "management.azure.com" and not request.path.endswith("/listSecrets")
    )

    shown = msggan_aml("cost", "photos").stdout.splitlines()
    assert shown[1].split() == ["photos", "completed", "Standard_NC4as_T4_v3", "3.00", "1.58", "USD"]
    assert shown[2:] == ["Together: 1.58 USD", "Nothing else is known to cost money now.", shown[-1]]
    assert shown[-1].startswith("Prices: Azure ML's list of VM sizes, 20")
    missing = msggan_aml("cost", "other")
    assert (missing.exit_code, "No run 'other' in workspace msggan-ws." in missing.stderr) == (2, True)


def add_ended_job(azure: AzureLocal, name: str, run: str, hours: float, **properties: object) -> Job:
    tags = {"msggan.run": run}
    compute = f"{azure.cloud.scope}/computes/msggan-gpu"
    job = azure.add_ended_job(name, **{"tags": tags, "computeId": compute, **properties})
    job.tags = dict(properties.get("tags") or tags)  # type: ignore[call-overload]
    start = datetime(2026, 11, 1, tzinfo=timezone.utc)
    job.started, job.ended = start.isoformat(), (start + timedelta(hours=hours)).isoformat()
    return job
