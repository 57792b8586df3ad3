"""Datastores and their secrets."""

from __future__ import annotations

import re
from typing import Any

from . import bodies
from .arm import missing, page, resource
from .cloud import Cloud
from .messages import Reply, Request, ServiceError, json_reply
from .routing import WORKSPACE, Routes
from .shapes import boolean, record, whole

routes = Routes()
STORES = WORKSPACE + "/datastores"


@routes.add("GET", STORES)
def list_datastores(cloud: Cloud, request: Request, **where: str) -> Reply:
    only_default = request.query.get("isDefault", "").lower() == "true"
    names = [name for name, store in sorted(cloud.datastores.items()) if store["isDefault"] or not only_default]
    return page(cloud, request, [datastore_resource(cloud, name) for name in names])


@routes.add("GET", STORES + "/{name}")
def get_datastore(cloud: Cloud, request: Request, name: str, **where: str) -> Reply:
    find_datastore(cloud, name)
    return json_reply(datastore_resource(cloud, name))


@routes.add("PUT", STORES + "/{name}")
def put_datastore(cloud: Cloud, request: Request, name: str, **where: str) -> Reply:
    sent = request.json
    bodies.check(bodies.DATASTORE, sent)
    if not re.fullmatch(r"[a-z0-9_]{1,255}", name):
        raise ServiceError(400, "InvalidDatastoreName", f"Datastore name {name} may have a-z, 0-9 and _ only.")
    there = name in cloud.datastores
    given = {key: value for key, value in sent["properties"].items() if value is not None}
    cloud.datastores[name] = {"protocol": "https", "endpoint": cloud.hosts.storage, **given, "isDefault": False}
    return json_reply(datastore_resource(cloud, name), 200 if there else 201)


@routes.add("DELETE", STORES + "/{name}")
def delete_datastore(cloud: Cloud, request: Request, name: str, **where: str) -> Reply:
    if find_datastore(cloud, name)["isDefault"]:
        raise ServiceError(400, "DefaultDatastore", f"The default datastore {name} cannot be deleted.")
    del cloud.datastores[name]
    return Reply(200)


@routes.add("POST", STORES + "/{name}/listSecrets")
def list_secrets(cloud: Cloud, request: Request, name: str, **where: str) -> Reply:
    """The account key or the SAS; a SAS in place of the key if the caller requests an expirable secret."""
    bodies.check(record(expirableSecret=boolean, expireAfterHours=whole(1)), sent := _body(request))
    store = find_datastore(cloud, name)
    credentials = store["credentials"]
    if credentials["credentialsType"] == "None":
        raise ServiceError(400, "NoSecrets", f"Datastore {name} has no credentials.")
    if not cloud.shared_keys:
        raise ServiceError(
            403,
            "KeyBasedAuthenticationNotPermitted",
            "Key based authentication is not permitted on this storage account.",
        )
    secrets = credentials["secrets"]
    if sent.get("expirableSecret") and "key" in secrets and store["accountName"] in cloud.blobs.keys:
        url = cloud.blobs.signed_container_url(store["accountName"], store["containerName"])
        return json_reply({"secretsType": "Sas", "sasToken": url.partition("?")[2]})
    return json_reply({**secrets, "secretsType": credentials["credentialsType"]})


def _body(request: Request) -> dict[str, Any]:
    return request.json or {} if request.body else {}


def find_datastore(cloud: Cloud, name: str) -> dict[str, Any]:
    if name not in cloud.datastores:
        raise missing("Datastore", name)
    return cloud.datastores[name]


def datastore_resource(cloud: Cloud, name: str) -> dict[str, Any]:
    """The datastore as it is returned, without its secrets."""
    properties = dict(cloud.datastores[name])
    properties["credentials"] = {"credentialsType": properties["credentials"]["credentialsType"]}
    return resource(cloud, "datastores", name, properties)
