"""Azure's public list of retail prices, https://prices.azure.com, which requires no sign-in."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

from .cloud import REGION, Cloud, Size
from .hosts import PRICES, PRICES_HOST
from .messages import Reply, Request, ServiceError, json_reply
from .routing import Routes

routes = Routes()
PATH = "/api/retail/prices"
PER_US_DOLLAR = {"USD": 1.0, "EUR": 0.9}
LOAD_BALANCER = "Standard Included LB Rules and Outbound Rules"
LARGEST_PAGE = 1000
NAMES = {"priceType": "type"}  # of a filter → of an item
# Service, product, SKU, meter, unit, US dollars per unit, region; "Global": the same everywhere.
METERS = (
    ("Storage", "Premium SSD Managed Disks", "P10 LRS", "P10 LRS Disk", "1/Month", 19.71, REGION),
    ("Storage", "Blob Storage", "Hot LRS", "Hot LRS Data Stored", "1 GB/Month", 0.0208, REGION),
    ("Storage", "Files v2", "Hot LRS", "Hot LRS Data Stored", "1 GB/Month", 0.0287, REGION),
    ("Load Balancer", "Load Balancer", "Standard", LOAD_BALANCER, "1 Hour", 0.025, "Global"),
    ("Virtual Network", "IP Addresses", "Standard", "Standard IPv4 Static Public IP", "1 Hour", 0.005, ""),
    ("Container Registry", "Container Registry", "Basic", "Basic Registry Unit", "1/Day", 0.1666, REGION),
)
FILTER = re.compile(r"(\w+) eq '([^']*)'")


@routes.add("GET", PATH, PRICES)
def retail_prices(cloud: Cloud, request: Request) -> Reply:
    """The items that match the filter. Names and values are case-sensitive, and only `eq` and `and` are known."""
    currency = request.query.get("currencyCode", "USD").strip("'")
    if currency not in PER_US_DOLLAR:
        raise ServiceError(400, "BadRequest", f"Invalid currency code {currency}.")
    conditions = request.query.get("$filter", "")
    wanted = FILTER.findall(conditions)
    if " and ".join(f"{name} eq '{value}'" for name, value in wanted) != conditions:
        raise ServiceError(400, "BadRequest", f"Invalid OData parameters supplied: {conditions}")
    found = [
        item
        for item in items(cloud, currency)
        if all(item.get(NAMES.get(name, name)) == value for name, value in wanted)
    ]
    start = int(request.query.get("$skip", 0))
    end = start + min(LARGEST_PAGE, cloud.page_size)
    query = urlencode({**request.query, "$skip": end})
    return json_reply(
        {
            "BillingCurrency": currency,
            "CustomerEntityId": "Default",
            "CustomerEntityType": "Retail",
            "Items": found[start:end],
            "NextPageLink": f"https://{PRICES_HOST}:443{PATH}?{query}" if end < len(found) else None,
            "Count": len(found[start:end]),
        }
    )


def items(cloud: Cloud, currency: str) -> list[dict[str, Any]]:
    """The rows of `METERS` that have a price, and four for each size that has one: Windows, spot, low priority and the
    plain one, in this order.
    """
    of_sizes = [
        item(currency, price, product, sku, sku, armSkuName=size.name)
        for size in cloud.sizes
        if size.name in cloud.retail_prices
        for price, sku, product in rows(size, cloud.retail_prices[size.name])
    ]
    return of_sizes + [
        item(currency, price * factor, product, sku, meter, serviceName=service, unitOfMeasure=unit, **other)
        for service, product, sku, meter, unit, price, region in METERS
        if meter in cloud.metered
        for factor, other in (
            (1, {"armRegionName": region}),
            (0.5, {"armRegionName": region, "tierMinimumUnits": 51200.0}),
            (3, {"armRegionName": "brazilsouth"}),
        )
    ]


def rows(size: Size, price: float) -> list[tuple[float, str, str]]:
    sku, product = size.name.removeprefix("Standard_").replace("_", " "), f"Virtual Machines {size.family}"
    yours = [(2 * price, sku, f"{product} Windows"), (price / 10, f"{sku} Spot", product), (price, sku, product)]
    return [*yours, (price / 5, f"{sku} Low Priority", product)] if size.low_priority else yours


def item(currency: str, price: float, product: str, sku: str, meter: str, **other: Any) -> dict[str, Any]:
    converted = round(price * PER_US_DOLLAR[currency], 6)
    return {
        "currencyCode": currency,
        "tierMinimumUnits": 0.0,
        "retailPrice": converted,
        "unitPrice": converted,
        "armRegionName": REGION,
        "location": "US East",
        "effectiveStartDate": "2024-03-01T00:00:00Z",
        "meterId": "0001b1c0-0000-4000-8000-000000000000",
        "meterName": meter,
        "productId": "DZH318Z08M8B",
        "skuId": "DZH318Z08M8B/000G",
        "productName": product,
        "skuName": sku,
        "serviceName": "Virtual Machines",
        "serviceId": "DZH313Z7MMC8",
        "serviceFamily": "Compute",
        "unitOfMeasure": "1 Hour",
        "type": "Consumption",
        "isPrimaryMeterRegion": True,
        "armSkuName": "",
        **other,
    }
