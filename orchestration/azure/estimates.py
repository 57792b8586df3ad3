"""What a run or a sweep would cost on the machines that the settings name. Only reads."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

from msggan.config import TrainConfig
from msggan.errors import MsgganError, RefusedError
from orchestration.azure.blobs import PROJECT_FOLDER
from orchestration.azure.client import Client
from orchestration.azure.compute import require_cluster, values_of
from orchestration.azure.history import RunJobs, find_jobs, read_progress
from orchestration.azure.prices import read_max_cost, read_price
from orchestration.azure.sizes import as_region, serverless_size, size_named
from orchestration.costs import Estimate
from orchestration.settings import Settings
from orchestration.spec import RunSpec
from orchestration.sweeps.spec import SweepSpec

MAX_BLOBS = 20_000  # that are listed to measure what is stored


def estimate_hours(client: Client) -> Estimate:
    """The machine and the hours of one job, without a price. Raises UsageError if there is no such machine."""
    settings = client.settings
    if settings.instance_type is not None:
        size, low_priority, idle_hours = serverless_size(client).name, settings.low_priority, 0.0
    else:
        values = values_of(require_cluster(client))
        size, low_priority, idle_hours = values["vm_size"], values["low_priority"], values["idle_minutes"] / 60
    return Estimate(size=size, low_priority=low_priority, job_hours=settings.timeout_hours, idle_hours=idle_hours)


def with_price(client: Client, estimate: Estimate) -> Estimate:
    """The estimate with its price, in the currency of --max-cost, and within that. Raises RefusedError."""
    if client.settings.instance_type is not None:
        location, size = str(client.about["location"]), serverless_size(client)
    else:
        location = str(require_cluster(client).location)
        size = size_named(client, estimate.size, location)
    price, no_price = read_price(client, size, as_region(location))
    return replace(estimate, price=price, no_price=no_price).within(read_max_cost(client))


def estimate_run(client: Client, spec: RunSpec) -> Estimate:
    """What the next job of a run would cost. Raises RefusedError if that is more than --max-cost allows."""
    priced = with_price(client, estimate_hours(client))
    run = find_jobs(client, spec.name)
    return replace(priced, likely_hours=_likely_hours(client, spec.config, run), stored_bytes=read_stored(client))


def hours_of_sweep(client: Client, spec: SweepSpec, trials: int | None = None) -> Estimate:
    """The machines and the hours of a sweep, without a price. trials: of the next job, by default all."""
    jobs = spec.trials if trials is None else trials
    return replace(
        estimate_hours(client), jobs=jobs, concurrent=min(spec.concurrent, jobs), total_hours=spec.timeout_hours
    )


def estimate_sweep(client: Client, spec: SweepSpec) -> Estimate:
    """What a sweep would cost. Raises RefusedError if that is more than --max-cost allows."""
    return replace(with_price(client, hours_of_sweep(client, spec)), stored_bytes=read_stored(client))


def estimated(client: Client, estimate: Callable[[], Estimate], sweep: SweepSpec | None = None) -> Estimate:
    """The result of `estimate`, which is reported; only its hours if the workspace cannot be read, with the reason."""
    settings = client.settings
    try:
        result = estimate()
    except RefusedError:
        raise
    except MsgganError as error:
        result = Estimate(
            size=settings.instance_type or settings.vm_size,
            low_priority=settings.low_priority,
            job_hours=settings.timeout_hours,
            idle_hours=0 if settings.instance_type else settings.idle_minutes / 60,
            jobs=sweep.trials if sweep else 1,
            concurrent=sweep.concurrent if sweep else 1,
            total_hours=sweep.timeout_hours if sweep else None,
            no_price=error.message,
        )
    for line in result.as_lines():
        client.reporter.info(line)
    return result


def estimated_settings(settings: Settings, estimate: Estimate) -> Settings:
    """The settings with the time limit and the serverless size of an estimate."""
    size = settings.instance_type and estimate.size
    return replace(settings, timeout_hours=estimate.job_hours, instance_type=size)


def _likely_hours(client: Client, config: TrainConfig, run: RunJobs) -> float | None:
    """The hours that the rest of a run takes at the speed of its earlier job, None if that is unknown."""
    if run.newest is None or run.is_sweep or run.folder is None:
        return None
    try:
        store, folder = run.open_folder(client)
        with client.errors(f"Reading the progress of {run.run}"):
            images_total, metrics = read_progress(store, folder)
    except MsgganError:
        return None
    images, speed = metrics.get("images"), metrics.get("images_per_second")
    total = images_total if config.kimg is None else 1000 * config.kimg
    if total is None or images is None or not speed:
        return None
    return max(0.0, total - images) / speed / 3600


def read_stored(client: Client) -> int | None:
    """The bytes in the datastore that are this project's, None if they cannot be read or are too many to list."""
    try:
        store = client.store(client.settings.datastore)
        with client.errors(f"Listing {PROJECT_FOLDER} in the datastore {store.datastore}"):
            sizes = [blob.size for blob in itertools.islice(store.list_blobs(PROJECT_FOLDER), MAX_BLOBS + 1)]
    except MsgganError:
        return None
    return sum(sizes) if len(sizes) <= MAX_BLOBS else None
