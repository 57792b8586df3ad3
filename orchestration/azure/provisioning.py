"""Provisioning: planning from what exists, applying the plan and verifying the result.

`plan_provisioning` only reads, `apply` applies the plan item by item, and `verify` reads again and raises an error if
anything is left to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from azure.ai.ml.entities import AmlCompute

from msggan.commands.options import refuse
from msggan.commands.program import Terminated, stopped
from msggan.errors import MsgganError
from orchestration.azure import compute, datastore, environment
from orchestration.azure.blobs import Store
from orchestration.azure.client import Client
from orchestration.azure.prices import estimate_cluster, read_monthly
from orchestration.azure.sizes import Choice, Size, read_usable, size_named
from orchestration.costs import cluster_costs, cluster_refusal
from orchestration.errors import AuthError, AzureServiceError
from orchestration.status import Item, ProvisionPlan, Step

# --- Planning ---------------------------------------------------------------------------------------------------------


def plan_provisioning(client: Client) -> ProvisionPlan:
    """What differs between the workspace and the settings. Only reads."""
    secret = datastore.read_secret(os.environ)
    # An invalid setting is reported before any request, and a missing workspace before any other problem.
    environment.read_recipe(client.settings.environment)
    refuse(compute.tag_problems(client.settings))
    _ = client.about
    recipe = environment.resolve_recipe(client)
    return ProvisionPlan((_compute_step(client), *_datastore_steps(client, secret), _environment_step(client, recipe)))


def _compute_step(client: Client) -> Step:
    settings = client.settings
    if settings.instance_type is not None:
        choice = read_usable(client, nodes=1 if "," in settings.instance_type else 0)[0]
        reason = "; ".join(filter(None, ["is serverless: no cluster is needed", choice.reason]))
        return Step(Item(compute.KIND, choice.size.name, "keep", reason=reason))
    existing = compute.read_cluster(client)
    if existing is None:
        return _new_cluster(client, read_usable(client, settings.max_nodes))
    item = compute.plan_cluster(settings, existing)
    if not isinstance(existing, AmlCompute):
        return Step(replace(item, hint=compute.name_hint(client)))
    errors = [f"it reports {code}: {text}" for code, text in client.cluster_errors(settings.compute)]
    if item.action == "refuse":
        if "vm_size" in item.changes:
            read_usable(client, nodes=0)  # raises UsageError if no region offers it
        item = replace(item, hint=item.hint or compute.name_hint(client))
        return Step(_with_reasons(item, *errors))
    location = str(existing.location)
    size = size_named(client, str(existing.size), location)
    item = _with_reasons(item, compute.check_growth(client, existing, item, size), *errors)
    item = _with_costs(client, item, size, location, compute.planned_values(settings, existing))
    return Step(item, lambda report: compute.ensure_cluster(client, [], report))


def _new_cluster(client: Client, choices: Sequence[Choice]) -> Step:
    """The step that creates the cluster. choices: its VM size, then those to try if Azure refuses that for quota."""
    item, *others = (_creation(client, choice) for choice in choices)
    if item.action == "refuse":
        return Step(item)
    allowed = [choices[0]]
    for choice, other in zip(choices[1:], others, strict=True):
        if other.action == "create":
            allowed.append(choice)
            costs = f"If Azure refuses it for lack of quota or capacity: {other.costs[0]} {other.costs[3]}"
            item = replace(item, costs=(*item.costs, costs))

    def create(report: Callable[[str], None]) -> Item | None:
        done = compute.ensure_cluster(client, allowed, report)
        return _creation(client, done) if done else None

    return Step(item, create)


def _creation(client: Client, choice: Choice) -> Item:
    """The item that creates the cluster with this VM size."""
    settings = choice.applied_to(client.settings)
    item = _with_reasons(compute.plan_cluster(settings, None), choice.reason)
    return _with_costs(client, item, choice.size, choice.location, compute.planned_values(settings, None))


def _with_reasons(item: Item, *reasons: str) -> Item:
    return replace(item, reason="; ".join(filter(None, [item.reason, *reasons])))


def _with_costs(client: Client, item: Item, size: Size, location: str, values: Mapping[str, Any]) -> Item:
    """The item with what the cluster costs, refused above --max-cost. values: as `planned_values` returns them."""
    estimate = estimate_cluster(client, size, location, values)
    if refusal := cluster_refusal(estimate, values["min_nodes"]):
        return Item(compute.KIND, item.name, "refuse", reason=refusal, hint="Use --min-nodes 0.")
    names = ("disk", "load_balancer", "public_ip")
    beside = client.once(("monthly", location), lambda: read_monthly(client, location, names))
    costs = (*cluster_costs(estimate, size.description, values["min_nodes"]), beside.as_line())
    cost = {**estimate.as_json(), **beside.as_json(), "around_the_clock": values["min_nodes"]}
    return replace(item, costs=costs, cost=cost)


def _datastore_steps(client: Client, secret: datastore.Secret | None) -> list[Step]:
    settings = client.settings
    if settings.storage_account is None:  # the workspace's own datastore, or one that `provision` did not create
        store = client.open_store(settings.datastore)
        reason = "is the workspace's own" if settings.datastore is None else "exists"
        return [_verified(client, store, Step(Item(datastore.KIND, store.datastore, "keep", reason=reason)))]
    item = datastore.plan_datastore(settings, datastore.read_datastore(client, str(settings.datastore)), secret)
    if item.action == "refuse":
        return [Step(item)]
    if item.action == "keep":
        try:
            return [_verified(client, client.open_store(settings.datastore), Step(item))]
        except AuthError:
            if secret is None:
                raise
            expired = {"credentials": {"from": "expired", "to": secret.kind}}
            item = Item(item.kind, item.name, "change", expired, costs=item.costs)
    steps = [Step(item, lambda report: datastore.ensure_datastore(client, secret))]
    if container := datastore.plan_container(client, secret):
        steps.insert(0, Step(container, lambda report: datastore.ensure_container(client, secret)))
    return steps


def _verified(client: Client, store: Store, step: Step) -> Step:
    """The step, refused if the datastore's container does not exist."""
    if datastore.check_access(client, store.container, None):
        return step
    name = store.container.container_name
    reason = f"its container {store.account}/{name} does not exist"
    hint = f"Create it: az storage container create --auth-mode login --account-name {store.account} --name {name}"
    return Step(Item(datastore.KIND, store.datastore, "refuse", reason=reason, hint=hint))


def _environment_step(client: Client, recipe: environment.Recipe) -> Step:
    existing = environment.read_environment(client, recipe)
    is_archived = existing is not None and recipe.version not in environment.read_versions(client)
    warning = environment.builder_warning(client, recipe)
    item = environment.plan_environment(recipe, existing, is_archived=is_archived, warning=warning)
    change = environment.restore_environment if is_archived else environment.ensure_environment
    return Step(item, lambda report: change(client, recipe))


def plan_deletion(client: Client) -> ProvisionPlan:
    """The plan to delete the resources with the names in the settings. Only reads.

    Resources that `provision` did not create are kept; those that do not exist are left out of the plan.
    """
    steps = []
    if (cluster := compute.read_cluster(client)) is not None:
        item = compute.plan_cluster_deletion(client.settings.compute, cluster)
        steps.append(Step(item, lambda report: compute.delete_cluster(client, report)))
    name = client.settings.datastore
    if name is not None and (store := datastore.read_datastore(client, name)) is not None:
        item = datastore.plan_datastore_deletion(name, store)
        steps.append(Step(item, lambda report: datastore.delete_datastore(client, name)))
    if versions := environment.read_versions(client):
        item = environment.plan_environment_deletion(versions)
        steps.append(Step(item, lambda report: environment.archive_environments(client, versions)))
    return ProvisionPlan(tuple(steps))


# --- Applying ---------------------------------------------------------------------------------------------------------


def apply(plan: ProvisionPlan, report: Callable[[str], None]) -> ProvisionPlan:
    """Applies a plan item by item, and returns what was done.

    The hint of an error lists what is done, what may be done and what is not.
    """
    done: dict[str, Item] = {}
    names = [_name(step) for step in plan.to_do]
    for number, step in enumerate(plan.to_do):
        report(f"{step.item.action.capitalize()} {step.item.kind} {step.item.name} …")
        try:
            result = step.apply(report) if step.apply else None
            done[step.item.kind] = result if isinstance(result, Item) else step.item
        except MsgganError as error:
            # Whether Azure may have carried out the step that failed.
            is_open = error.may_have_happened or type(error) is AzureServiceError
            error.hint = "\n".join(filter(None, [error.hint, *progress_lines(names, number, is_open=is_open)]))
            raise
        except (KeyboardInterrupt, Terminated) as stop:
            hint = "\n".join(progress_lines(names, number, is_open=True))
            raise stopped(type(stop), "Stopped. Azure completes the operation in progress.", hint) from None
    return ProvisionPlan(tuple(replace(step, item=done.get(step.item.kind, step.item)) for step in plan.steps))


def _name(step: Step) -> str:
    return f"{step.item.action} {step.item.kind} {step.item.name}"


def progress_lines(names: Sequence[str], number: int, *, is_open: bool) -> list[str]:
    """The state of the steps after the one with this number failed. is_open: it may have been carried out."""
    remaining = names[number + is_open :]
    lines = [
        f"Done: {', '.join(names[:number])}." if number else "",
        f"Possibly done or in progress: {names[number]}." if is_open else "",
        f"Not done: {', '.join(remaining)}." if remaining else "",
    ]
    return [*filter(None, lines), "Check the state: msggan-aml provision --dry-run"]


def verify(done: ProvisionPlan, read_plan: Callable[[], ProvisionPlan]) -> None:
    """Reads again after `apply`. Raises AzureServiceError if anything is left to do."""
    try:
        plan = read_plan()
    except MsgganError as error:
        names = ", ".join(map(_name, done.to_do))
        error.hint = "\n".join(filter(None, [error.hint, f"Done: {names}. Only the verification failed."]))
        raise
    if left := [step.item for step in plan.to_do]:
        lines = [f"{item.kind} {item.name} was not {item.action}d: {item.full_reason}." for item in left]
        raise AzureServiceError(
            "\n".join(lines), "Azure accepted the request but did not apply it. Run the same command again."
        )
