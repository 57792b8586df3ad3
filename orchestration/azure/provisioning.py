"""Provisioning: planning from what exists, applying the plan and verifying the result.

`plan_provisioning` only reads, `apply` applies the plan item by item, and `verify` reads again and raises an error if
anything is left to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from msggan.commands.program import Terminated, stopped
from msggan.errors import MsgganError
from orchestration.azure import compute, datastore, environment
from orchestration.azure.blobs import Store, open_store
from orchestration.azure.client import Client
from orchestration.errors import AuthError, AzureServiceError, UnreachableError
from orchestration.settings import Settings
from orchestration.status import Item, ProvisionPlan, Step

Report = Callable[[str], None]


# --- Planning ---------------------------------------------------------------------------------------------------------


def plan_provisioning(client: Client, settings: Settings) -> ProvisionPlan:
    """What differs between the workspace and the settings. Only reads."""
    secret = datastore.read_secret(os.environ)
    environment.read_recipe(
        settings.environment, curated_version="latest"
    )  # invalid recipes are found without a request
    _ = client.about  # first check that the workspace exists and is accessible
    recipe = environment.resolve_recipe(client, settings.environment)
    return ProvisionPlan(
        (
            _compute_step(client, settings),
            *_datastore_steps(client, settings, secret),
            _environment_step(client, recipe),
        )
    )


def _compute_step(client: Client, settings: Settings) -> Step:
    location = settings.location or str(client.about.location)
    size = compute.read_size(client, settings)
    if settings.instance_type is not None:
        return Step(Item(compute.KIND, size.name, "keep", reason="is serverless: no cluster is needed"))
    item = compute.plan_cluster(settings, compute.read_cluster(client, settings.compute), size)
    if item.action == "refuse":
        return Step(_with_hint(item, compute.name_hint(client, settings.compute)))
    there, wanted = _most_nodes(item)
    if wanted > there:
        quotas = compute.read_quotas(client, location)
        compute.check_quota(size, wanted - there, quotas, low_priority=settings.low_priority, there=there)
    return Step(item, lambda report: compute.ensure_cluster(client, settings, location, report))


def _most_nodes(item: Item) -> tuple[int, int]:
    """The current and the wanted maximum number of machines of the cluster; (0, 0) if it does not change."""
    change = item.changes.get("max_nodes")
    return (change["from"] or 0, change["to"]) if change else (0, 0)


def _with_hint(item: Item, hint: str) -> Item:
    return Item(item.kind, item.name, item.action, item.changes, item.reason, hint)


def _datastore_steps(client: Client, settings: Settings, secret: datastore.Secret | None) -> list[Step]:
    if settings.storage_account is None:
        return [_existing_datastore_step(client, settings.datastore)]
    there = datastore.read_datastore(client, str(settings.datastore))
    item = datastore.plan_datastore(settings, there, secret)
    if item.action == "refuse":
        return [Step(item)]
    if item.action == "keep":
        try:
            return [_verified_access(client, open_store(client, settings.datastore), Step(item))]
        except AuthError:
            if secret is None:
                raise
            item = datastore.with_credentials(item, secret)  # its stored credentials no longer work
    step = Step(item, lambda report: datastore.ensure_datastore(client, settings, secret))
    container = datastore.plan_container(client, settings, secret)
    return (
        [Step(container, lambda report: datastore.ensure_container(client, settings, secret)), step]
        if container
        else [step]
    )


def _existing_datastore_step(client: Client, name: str | None) -> Step:
    """The workspace's own datastore, or one that `provision` did not create."""
    store = open_store(client, name)
    reason = "is the workspace's own" if name is None else "exists"
    return _verified_access(client, store, Step(Item(datastore.KIND, store.datastore, "keep", reason=reason)))


def _verified_access(client: Client, store: Store, step: Step) -> Step:
    """The step, refused if the datastore's container does not exist."""
    try:
        datastore.check_access(client, store.container, None)
    except datastore.ContainerMissing:
        name = store.container.container_name
        reason = f"its container {store.account}/{name} does not exist"
        hint = f"Create it: az storage container create --auth-mode login --account-name {store.account} --name {name}"
        return Step(Item(datastore.KIND, store.datastore, "refuse", reason=reason, hint=hint))
    return step


def _environment_step(client: Client, recipe: environment.Recipe) -> Step:
    there = environment.read_environment(client, recipe)
    if there is not None and recipe.version not in environment.read_versions(client):
        item = environment.plan_environment(recipe, there, is_archived=True)
        return Step(item, lambda report: environment.restore_environment(client, recipe))
    item = environment.plan_environment(recipe, there)
    return Step(item, lambda report: environment.ensure_environment(client, recipe))


def plan_deletion(client: Client, settings: Settings) -> ProvisionPlan:
    """The plan to delete the resources with the names in the settings. Only reads.

    Resources that `provision` did not create are kept; those that do not exist are left out of the plan.
    """
    steps = []
    if (cluster := compute.read_cluster(client, settings.compute)) is not None:
        item = compute.plan_cluster_deletion(settings.compute, cluster)
        steps.append(Step(item, lambda report: compute.delete_cluster(client, settings.compute, report)))
    name = settings.datastore
    if name is not None and (store := datastore.read_datastore(client, name)) is not None:
        item = datastore.plan_datastore_deletion(name, store)
        steps.append(Step(item, lambda report: datastore.delete_datastore(client, name)))
    if versions := environment.read_versions(client):
        item = environment.plan_environment_deletion(versions)
        steps.append(Step(item, lambda report: environment.archive_environments(client, versions)))
    return ProvisionPlan(tuple(steps))


# --- Applying ---------------------------------------------------------------------------------------------------------


def apply(plan: ProvisionPlan, report: Report) -> None:
    """Applies a plan item by item. The hint of an error lists what is done, what may be done and what is not."""
    to_do = plan.to_do
    for number, step in enumerate(to_do):
        report(f"{step.item.action.capitalize()} {step.item.kind} {step.item.name} …")
        try:
            if step.apply is not None:
                step.apply(report)
        except MsgganError as error:
            error.hint = "\n".join(filter(None, [error.hint, *how_far(to_do, number, is_open=_is_open(error))]))
            raise
        except (KeyboardInterrupt, Terminated) as stop:
            hint = "\n".join(how_far(to_do, number, is_open=True))
            raise stopped(type(stop), "Stopped. Azure completes the operation in progress.", hint) from None


def _is_open(error: MsgganError) -> bool:
    """Whether the step that failed may have been carried out."""
    return type(error) is AzureServiceError or (isinstance(error, UnreachableError) and error.may_have_happened)


def how_far(steps: Sequence[Step], number: int, *, is_open: bool) -> list[str]:
    """The state of the steps after the one with this number failed. is_open: it may have been carried out."""
    names = [f"{step.item.action} {step.item.kind} {step.item.name}" for step in steps]
    undone = names[number + is_open :]
    lines = [
        f"Done: {', '.join(names[:number])}." if number else "",
        f"Possibly done or in progress: {names[number]}." if is_open else "",
        f"Not done: {', '.join(undone)}." if undone else "",
    ]
    return [*filter(None, lines), "Check the state: msggan-aml provision --dry-run"]


def verify(done: ProvisionPlan, read_plan: Callable[[], ProvisionPlan]) -> None:
    """Reads again after `apply`. Raises AzureServiceError if anything is left to do."""
    try:
        plan = read_plan()
    except MsgganError as error:
        names = ", ".join(f"{step.item.action} {step.item.kind} {step.item.name}" for step in done.to_do)
        error.hint = "\n".join(filter(None, [error.hint, f"Done: {names}. Only the verification failed."]))
        raise
    left = [item for item in plan.items if item.is_to_do]
    if left:
        lines = [f"{item.kind} {item.name} was not {item.action}d: {item.full_reason}." for item in left]
        raise AzureServiceError(
            "\n".join(lines), "Azure accepted the request but did not apply it. Run the same command again."
        )
