"""The kinds of source that --data accepts; secrets in it are rejected and never printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration import LocalTarget
from orchestration.data_source import (
    FORMS,
    DataAsset,
    DatastorePath,
    StoragePath,
    WorkspaceName,
    in_datastore,
    is_remote,
    read_address,
)
from orchestration.spec import default_name, is_file, source_problems

WORKSPACE = "subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w/"
ADDRESSES = [
    "azureml://datastores/store/paths/images/",
    "azureml://datastores/store/paths/a/b.zip",
    f"azureml://{WORKSPACE}datastores/store/paths/images",
    "azureml://subscriptions/s/resourcegroups/g/workspaces/w/datastores/store/paths/images",
    "azureml:flowers:3",
    "azureml:flowers.of-spring_1:2024-01-02",
    "azureml:flowers@latest",
    "azureml://registries/r/data/flowers/versions/1",
    f"azureml:/{WORKSPACE}data/flowers/versions/1",
    "https://account1.blob.core.windows.net/container/images/",
    "https://account1.blob.core.windows.net/container/images.safetensors",
    "https://account1.dfs.core.windows.net/container/images/",
    "https://account1.blob.core.usgovcloudapi.net/container/images/",
    "wasbs://container@account1.blob.core.windows.net/images",
    "abfss://file-system@account1.dfs.core.windows.net/images/",
]


@pytest.mark.parametrize("data", ADDRESSES)
def test_an_azure_uri_is_accepted_and_is_not_a_local_path(data: str) -> None:
    assert is_remote(data)
    assert source_problems(data) == []
    assert LocalTarget().problems(data, None) == [
        f"--data {data}: only a job on Azure can read this. Download the images and use their folder, "
        "or train on Azure: --target azure."
    ]


@pytest.mark.parametrize(
    "data",
    [
        "s3://bucket/images",
        "http://account1.blob.core.windows.net/container/images/",
        "https://example.org/images.zip",
        "https://account1.blob.core.windows.net/container",
        "https://account1.file.core.windows.net/container/images",
        "azureml://datastores/store/images",
        "azureml://datastores/store/paths/",
        "azureml:flowers",
        "azureml:flowers@newest",
        "azureml://registries/r/models/flowers/versions/1",
        "wasb://container@account1.blob.core.windows.net/images",
        "abfss://container@account1.blob.core.windows.net/images",
        "wasbs://container@account1.blob.core.windows.net",
        "file:///images",
    ],
)
def test_other_uris_are_refused_with_the_valid_forms(data: str) -> None:
    assert source_problems(data) == [f"--data {data}: is not an address that a job can read. {FORMS}"]


def test_a_local_path_is_checked_locally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("images", "images.zip", "azureml:flowers:3", "what?sig=x"):
        Path(name).mkdir()
        assert not is_remote(name)
        assert source_problems(name) == []
        assert LocalTarget().problems(name, None) == []
    assert source_problems("imagez") == ["--data imagez: not found. Did you mean images or images.zip?"]
    assert (
        source_problems(None)
        == source_problems("")
        == ["--data is required. Name a folder, a zip or a pack of images."]
    )


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        (ADDRESSES[0], DatastorePath("store", "images/")),
        (ADDRESSES[2], DatastorePath("store", "images")),
        (ADDRESSES[3], DatastorePath("store", "images")),
        ("azureml://datastores/store/paths/a%20b/c", DatastorePath("store", "a b/c")),
        ("azureml:flowers:3", None),
        (ADDRESSES[9], None),
    ],
)
def test_a_path_in_a_datastore_is_read_in_both_forms(uri: str, path: DatastorePath | None) -> None:
    assert in_datastore(uri) == path


NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{2,12}", fullmatch=True)
CONTAINERS = st.from_regex(r"[a-z0-9](-?[a-z0-9]){2,8}", fullmatch=True)
ACCOUNTS = st.from_regex(r"[a-z0-9]{3,24}", fullmatch=True)
PATHS = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters=" ._-/"), min_size=1)
SUFFIXES = st.sampled_from(["core.windows.net", "core.usgovcloudapi.net", "core.chinacloudapi.cn"])
WORKSPACES = st.none() | st.builds(WorkspaceName, NAMES, NAMES, NAMES)


@given(store=NAMES, path=PATHS, workspace=WORKSPACES)
def test_the_workspace_of_a_datastore_is_the_one_that_its_address_names(
    store: str, path: str, workspace: WorkspaceName | None
) -> None:
    prefix = f"azureml:/{workspace.scope if workspace else ''}"
    address = DatastorePath(store, path, workspace)
    assert read_address(f"{prefix}/datastores/{store}/paths/{quote(path)}") == address
    assert read_address(address.uri) == replace(address, workspace=None)


@given(name=NAMES, version=st.none() | NAMES, registry=st.none() | NAMES, workspace=WORKSPACES)
def test_a_data_asset_is_read_in_all_its_forms(
    name: str, version: str | None, registry: str | None, workspace: WorkspaceName | None
) -> None:
    if version is None:
        assert read_address(f"azureml:{name}@latest") == DataAsset(name, None)
        return
    assert read_address(f"azureml:{name}:{version}") == DataAsset(name, version)
    ending = f"data/{name}/versions/{version}"
    if registry:
        assert read_address(f"azureml://registries/{registry}/{ending}") == DataAsset(name, version, registry)
    if workspace:
        assert read_address(f"azureml:{workspace.scope}/{ending}") == DataAsset(name, version, None, workspace)


@given(account=ACCOUNTS, suffix=SUFFIXES, container=CONTAINERS, path=PATHS)
def test_the_four_forms_of_a_path_in_a_storage_account_are_the_same_place(
    account: str, suffix: str, container: str, path: str
) -> None:
    forms = (
        f"https://{account}.blob.{suffix}/{container}/{quote(path)}",
        f"https://{account}.dfs.{suffix}/{container}/{quote(path)}",
        f"wasbs://{container}@{account}.blob.{suffix}/{quote(path)}",
        f"abfss://{container}@{account}.dfs.{suffix}/{quote(path)}",
    )
    assert {read_address(form) for form in forms} == {StoragePath(account, suffix, container, path)}
    assert [source_problems(form) for form in forms] == [[]] * 4


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("azureml:flowers:3", "flowers"),
        ("azureml:flowers@latest", "flowers"),
        ("azureml://registries/r/data/flowers/versions/1", "flowers"),
        ("abfss://fs@account1.dfs.core.windows.net/garden/roses/", "roses"),
        ("azureml://datastores/store/paths/a/roses/", "roses"),
        ("https://account1.blob.core.windows.net/container/tulips.zip", "tulips"),
    ],
)
def test_a_run_is_named_after_the_images_wherever_they_are(data: str, name: str) -> None:
    assert default_name(data) == name


def test_a_file_is_distinguished_from_a_folder_by_its_name() -> None:
    assert [is_file(data) for data in ("a/b.zip", "a/b.SAFETENSORS", "a/b/", "a/b", "a/b.png")] == [True] * 2 + [
        False
    ] * 3


# --- Secrets ----------------------------------------------------------------------------------------------------------

S3CR3T = "s3cr3ts3cr3ts3cr3t"
PLACES = [
    "https://account1.blob.core.windows.net/container/images",
    "https://account1.blob.core.windows.net/container/",
    "azureml://datastores/store/paths/images",
    "azureml:flowers:3",
    "wasbs://container@account1.blob.core.windows.net/images",
    "account1.blob.core.windows.net/container/images",
    "",
]
OTHERS = ["sv=2024-11-04", "se=2030-01-01T00:00:00Z", "sp=rl", "sr=c", "skoid=x"]


@settings(deadline=None)
@given(
    address=st.sampled_from(PLACES),
    mark=st.sampled_from(["?", "&", ";", "#", "?a=b#", "/?"]),
    name=st.sampled_from(["sig", "SIG", "Sig", "AccountKey", "SharedAccessSignature", "sharedaccesskey"]),
    others=st.lists(st.sampled_from(OTHERS), unique=True),
    times_quoted=st.integers(0, 3),
)
def test_a_key_or_a_signature_in_whatever_form_is_refused_and_not_repeated(
    address: str, mark: str, name: str, others: list[str], times_quoted: int
) -> None:
    query = mark + "&".join([*others, f"{name}={S3CR3T}", *others])
    for _ in range(times_quoted):
        query = quote(query, safe="")
    (problem,) = source_problems(address + query)
    assert "contains a secret" in problem
    assert S3CR3T not in problem


@pytest.mark.parametrize("login", [f"me:{S3CR3T}", f"me:{S3CR3T}@{S3CR3T}", f":{S3CR3T}%20{S3CR3T}", S3CR3T])
@pytest.mark.parametrize("form", ["https://{}@account1.blob.core.windows.net/c/i", "wasbs://c:{}@account1.blob.x.y/i"])
def test_a_password_in_a_uri_is_refused_and_not_repeated(login: str, form: str) -> None:
    (problem,) = source_problems(form.format(login))
    assert "contains a secret" in problem
    assert S3CR3T not in problem
