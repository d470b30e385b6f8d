"""What a month's use adds to the price: requests to the API, files, data that people download.

What a load does not say is assumed here, and the estimate prints it. A table has a row for each
thing that is paid by use; what is not in it is among LEFT_OUT of `cost/estimate.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cost import prices
from cost.prices import HOURS, MILLION, invocations, monthly

READS = 0.8  # of the requests, one item each; the others write one, to the table and two indexes
ITEM_KB = 1
REQUEST_SECONDS, FILE_SECONDS = 0.050, 0.100  # of a function, billed
REQUEST_LOG_KB, ACCESS_LOG_KB, FILE_LOG_KB = 0.6, 0.5, 0.6
RECORD_KB = 2  # of a file in its table, and as much again in the indexes
QUERIES = 100  # of analytics, each of a whole table
WEB_GB = 100  # through each NAT gateway, and from the load balancer to other zones
ASSUMED = (
    "four reads to a write, items of 1 KB, 50 ms for a request and 100 ms for a file",
    "what is stored is there for a month, logs as long as they are kept",
    "all data out are files",
    "one token an hour for each machine",
    "one capacity unit of the load balancer, 100 GB through each NAT gateway and to other zones",
)


@dataclass(frozen=True, kw_only=True)
class Load:
    """A month's use: requests to the API, those for uploads and downloads among them; files that
    are uploaded, of so many MB each; GB that are downloaded."""

    requests: float = 1_000_000
    files: float = 100_000
    gb_out: float = 100
    file_mb: float = 1

    def __str__(self) -> str:
        files = f"{self.files:,.0f} files of {self.file_mb:g} MB"
        return f"{self.requests:,.0f} requests, {files}, {self.gb_out:,.0f} GB out"

    @property
    def file_gb(self) -> float:
        """All files together."""
        return self.files * self.file_mb / 1000


USUAL = Load()
Inputs = Mapping[str, Any]  # of the resource
Pricing = Callable[[Load, Inputs], float]  # dollars a month


def gb(count: float, kilobytes: float) -> float:
    """GB of so many things of so many KB."""
    return count * kilobytes / MILLION


def gateway(load: Load, _: Inputs) -> float:
    """HTTP API: what is above 300 million is cheaper."""
    millions = load.requests / MILLION
    first = min(millions, 300.0)
    return first * prices.HTTP_API_MILLION + (millions - first) * prices.HTTP_API_MORE


def data_out(load: Load, _: Inputs) -> float:
    """Data to the internet, cheaper by tiers."""
    total, below = 0.0, 0.0
    for limit, price in prices.DATA_OUT_TIERS:
        total += max(0.0, min(load.gb_out, limit) - below) * price
        below = limit
    return total


def traced(requests: float) -> float:
    """Traces of X-Ray by its default rule: the first request of a second, 5 % of the others."""
    first = min(requests, monthly(3600))
    return (first + 0.05 * (requests - first)) / MILLION * prices.TRACE_MILLION


def traced_files(load: Load, _: Inputs) -> float:
    """Those of files: the rule is one for all functions."""
    return traced(load.requests + load.files) - traced(load.requests)


def logs(count: str, kilobytes: float) -> Pricing:
    """Lines of a log group: their ingestion, and their storage as long as they are kept."""

    def price(load: Load, group: Inputs) -> float:
        kept = prices.LOG_STORAGE_GB * group["retentionInDays"] / 30
        return gb(getattr(load, count), kilobytes) * float(prices.LOG_GB + kept)

    return price


def calls(count: str, seconds: float) -> Pricing:
    """Requests and duration of a function."""

    def price(load: Load, function: Inputs) -> float:
        return invocations(getattr(load, count) / MILLION, seconds, function["memorySize"])

    return price


def stored(gigabytes: float, copies: int) -> float:
    """A table's items, with those of its indexes, and the table's backup."""
    return gigabytes * (copies * prices.TABLE_GB + prices.BACKUP_GB)


def items(load: Load, _: Inputs) -> float:
    """Reads and writes of the items table, on demand."""
    reads, writes = READS * load.requests, 3 * (1 - READS) * load.requests
    return (reads * prices.READ_MILLION + writes * prices.WRITE_MILLION) / MILLION


def custom_metrics(load: Load, dashboard: Inputs) -> float:
    """The metrics of the stack's own on a system's dashboard, a month of each; that of synthetics
    is in its price."""
    widgets = json.loads(dashboard["dashboardBody"])["widgets"]
    shown = (line for each in widgets for line in each["properties"].get("metrics", ()))
    own = {name for namespace, name, *_ in shown if not namespace.startswith(("AWS/", "CWAgent"))}
    return len(own - {"WalksPassed"}) * prices.METRIC if load.requests or load.files else 0.0


def keys(load: Load, _: Inputs) -> float:
    """KMS: who uses a table keeps its key for five minutes (KMS developer guide,
    services-dynamodb), and so does the api function with the keys of page tokens."""
    calls = HOURS * 12 if load.requests or load.files else 0
    return calls / 10_000 * prices.KMS_REQUESTS


def uploads(load: Load, _: Inputs) -> float:
    """S3's requests: PUT, HEAD and GET of a file, a GET for each download."""
    gets = 2 * load.files + 1000 * load.gb_out / load.file_mb
    return (load.files * prices.S3_PUTS + gets * prices.S3_GETS) / MILLION


def tokens(_: Load, client: Inputs) -> float:
    """Of a machine; those of synthetics are in its price."""
    return HOURS * prices.MACHINE_TOKEN if "-machine-" in client["name"] else 0.0


def events(load: Load, _: Inputs) -> float:
    """Of one pipe: each file is recorded, and deleted."""
    return load.files / MILLION * (prices.PIPE_MILLION + prices.EVENT_MILLION)


def scans(load: Load, _: Inputs) -> float:
    """Of each file, by their number and size."""
    return load.file_gb * prices.SCAN_GB + load.files / 1000 * prices.SCAN_THOUSAND


def analytics(load: Load, _: Inputs) -> float:
    """An export each night, and queries."""
    table = gb(load.files, RECORD_KB)
    return 30 * table * prices.EXPORT_GB + QUERIES * table / 1000 * prices.QUERY_TB


def detailed(load: Load, stage: Inputs) -> float:
    """Metrics of each route."""
    on = stage["defaultRouteSettings"].get("detailedMetricsEnabled") and load.requests
    return stage["routes"] * prices.ROUTE_METRICS * prices.METRIC if on else 0.0


def balancer(_load: Load, _: Inputs) -> float:
    """One capacity unit, and data both ways between zones."""
    return monthly(prices.BALANCER_UNIT) + 2 * WEB_GB * prices.CROSS_ZONE_GB


LOGS, KMS, LAMBDA = "logs, as long as they are kept", "KMS, requests", "Lambda"
METRICS = "metrics of the stack's own, if all are used"
STORED, TRACES = "DynamoDB, what is stored and its backup", "X-Ray, traces"
#: Type or logical name of a resource, what of it is paid by use, and its price.
ROWS: tuple[tuple[str, str, Pricing], ...] = (
    ("api-stage", "HTTP API, requests", gateway),
    ("api-stage", "metrics of each route, if all are used", detailed),
    ("api-access-logs", LOGS, logs("requests", ACCESS_LOG_KB)),
    ("api-items-function", LAMBDA, calls("requests", REQUEST_SECONDS)),
    ("api-items-function", TRACES, lambda load, _: traced(load.requests)),
    ("api-items-logs", LOGS, logs("requests", REQUEST_LOG_KB)),
    ("api-items", "DynamoDB, reads and writes on demand", items),
    ("api-items", STORED, lambda x, _: stored(gb((1 - READS) * x.requests, ITEM_KB), 3)),
    ("api-items", KMS, keys),
    ("api-paging-key", KMS, keys),
    ("aws:cognito/userPoolClient:UserPoolClient", "Cognito, tokens of machines", tokens),
    ("monitoring-api-dashboard", METRICS, custom_metrics),
    ("monitoring-files-dashboard", METRICS, custom_metrics),
    ("files-uploads-bucket", "S3, requests", uploads),
    ("files-uploads-bucket", "S3, files stored", lambda load, _: load.file_gb * prices.S3_GB),
    ("files-records-function", LAMBDA, calls("files", FILE_SECONDS)),
    ("files-records-function", TRACES, traced_files),
    ("files-records-logs", LOGS, logs("files", FILE_LOG_KB)),
    ("files-table", STORED, lambda load, _: stored(gb(load.files, RECORD_KB), 2)),
    ("files-table", KMS, keys),
    ("aws:pipes/pipe:Pipe", "events of files", events),
    ("aws:guardduty/malwareProtectionPlan:MalwareProtectionPlan", "scans of files", scans),
    ("aws:athena/workgroup:Workgroup", "analytics, exports and queries", analytics),
    ("encryption-key", "data out to the internet", data_out),
    ("aws:ec2/natGateway:NatGateway", "NAT gateways, data", lambda *_: WEB_GB * prices.NAT_GB),
    ("aws:lb/loadBalancer:LoadBalancer", "load balancer, data", balancer),
)  # fmt: skip
