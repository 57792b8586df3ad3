"""Prices: of machines from the service's list of VM sizes or, as of all else, from Azure's list of retail prices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from azure.core.rest import HttpRequest

from msggan.errors import MsgganError
from orchestration.azure.clouds import PUBLIC_CLOUD
from orchestration.azure.records import today
from orchestration.azure.sizes import Size, as_region
from orchestration.costs import HOURS_PER_MONTH, Estimate, Monthly
from orchestration.money import Amount, Price

if TYPE_CHECKING:
    from orchestration.azure.client import Client

RETAIL = "Azure's list of retail prices"
RETAIL_URL = "https://prices.azure.com/api/retail/prices"
RETAIL_API_VERSION = "2023-01-01-preview"
MAX_PAGES = 10
# The rows of a VM size that are not the price of a plain Linux machine of a cluster.
OTHER_PRODUCTS = ("Windows", "CloudServices", "Cloud Services")
LOW_PRIORITY, SPOT = " Low Priority", " Spot"


def read_price(client: Client, size: Size, location: str) -> tuple[Price | None, str]:
    """The price of a VM size in a region, in the currency of --max-cost; and why it is unknown if it is None."""
    currency, listed = price_currency(client), size.prices
    if currency == "USD" and listed.get("Standard"):
        return Price(listed["Standard"], listed.get("LowPriority"), "USD", "Azure ML's list of VM sizes", today()), ""
    if client.cloud.name != PUBLIC_CLOUD:
        return None, "Azure's list of retail prices covers the public cloud only."
    try:
        with client.errors("Reading Azure's list of retail prices"):
            conditions = {"serviceName": "Virtual Machines", "armRegionName": location, "armSkuName": size.name}
            rows = list(_retail_rows(client, currency, conditions))
    except MsgganError as error:
        return None, error.message
    price = retail_price(rows, currency)
    return price, "" if price else f"Azure's list of retail prices has none for {size.name} in {location}."


def read_max_cost(client: Client) -> Amount | None:
    return Amount.parse(client.settings.max_cost) if client.settings.max_cost else None


def price_currency(client: Client) -> str:
    """The currency of --max-cost, US dollars without it."""
    max_cost = read_max_cost(client)
    return max_cost.currency if max_cost else "USD"


def retail_price(rows: list[Mapping[str, Any]], currency: str) -> Price | None:
    """The price in the rows that the list of retail prices has for a VM size, None if there is none."""
    prices: dict[bool, float] = {}
    for row in sorted(rows, key=lambda row: str(row.get("effectiveStartDate"))):  # the newest counts
        sku, product = str(row.get("skuName")), str(row.get("productName"))
        if product.endswith(OTHER_PRODUCTS) or sku.endswith(SPOT) or row.get("unitOfMeasure") != "1 Hour":
            continue
        prices[sku.endswith(LOW_PRIORITY)] = float(row["retailPrice"])
    if not prices:
        return None
    return Price(prices.get(False), prices.get(True), currency, RETAIL, today())


def _retail_rows(client: Client, currency: str, conditions: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    """The rows of all pages, of which every one is on the same host."""
    filters = {**conditions, "priceType": "Consumption"}
    query = {
        "api-version": RETAIL_API_VERSION,
        "currencyCode": f"'{currency}'",
        "$filter": " and ".join(f"{name} eq '{value}'" for name, value in filters.items()),
    }
    page = client.send_public(HttpRequest("GET", RETAIL_URL, params=query)).json()
    for _ in range(MAX_PAGES):
        yield from page.get("Items") or []
        link = page.get("NextPageLink")
        if not link or urlsplit(link).hostname != urlsplit(RETAIL_URL).hostname:
            return
        page = client.send_public(HttpRequest("GET", link)).json()


# --- What is paid for beside machines ---------------------------------------------------------------------------------


class Meter(NamedTuple):
    """A meter in the list of retail prices, and how many of its units a month has, for one of what it counts."""

    service: str
    product: str
    name: str
    units: float


# As on the bill of a cluster (users' reports): see "Guesses" in tests/azure_local/README.md.
METERS = {
    "disk": Meter("Storage", "Premium SSD Managed Disks", "P10 LRS Disk", 1),
    "load_balancer": Meter(
        "Load Balancer", "Load Balancer", "Standard Included LB Rules and Outbound Rules", HOURS_PER_MONTH
    ),
    "public_ip": Meter("Virtual Network", "IP Addresses", "Standard IPv4 Static Public IP", HOURS_PER_MONTH),
    "gigabyte": Meter("Storage", "Blob Storage", "Hot LRS Data Stored", 1),
    "registry": Meter("Container Registry", "Container Registry", "Basic Registry Unit", HOURS_PER_MONTH / 24),
}


def read_monthly(client: Client, location: str, names: Sequence[str]) -> Monthly:
    """What one of each of these costs a month, by name in `METERS`; nothing of those whose price is unknown."""
    if client.cloud.name != PUBLIC_CLOUD:
        return Monthly({})
    region, currency = as_region(location), price_currency(client)

    def read(meter: Meter) -> Amount | None:
        conditions = {"serviceName": meter.service, "productName": meter.product, "meterName": meter.name}
        price = meter_price(_retail_rows(client, currency, conditions), region)
        return None if price is None else Amount(price * meter.units, currency)

    try:
        with client.errors("Reading Azure's list of retail prices"), ThreadPoolExecutor(len(names)) as threads:
            found = dict(zip(names, threads.map(read, [METERS[name] for name in names]), strict=True))
    except MsgganError:
        return Monthly({})
    return Monthly({name: amount for name, amount in found.items() if amount}, f"{RETAIL}, {today()}")


def meter_price(rows: Iterable[Mapping[str, Any]], region: str) -> float | None:
    """The price of a meter's first units in a region, or where it has the same everywhere."""
    prices = {
        str(row.get("armRegionName")).lower(): float(row["retailPrice"])
        for row in sorted(rows, key=lambda row: str(row.get("effectiveStartDate")))  # the newest counts
        if not row.get("tierMinimumUnits")
    }
    return next((prices[name] for name in (region, "global", "") if name in prices), None)


def estimate_cluster(client: Client, size: Size, location: str, values: Mapping[str, Any]) -> Estimate:
    """What a job on each machine of a cluster with these values would cost. --max-cost does not limit it."""
    price, no_price = read_price(client, size, as_region(location))
    return Estimate(
        size=size.name,
        low_priority=values["low_priority"],
        job_hours=client.settings.timeout_hours,
        idle_hours=values["idle_minutes"] / 60,
        jobs=values["max_nodes"],
        concurrent=values["max_nodes"],
        price=price,
        no_price=no_price,
        max_cost=read_max_cost(client),
    )
