"""What AWS charges, in US dollars, us-east-1, on demand, without free tiers.

Every other place has its prices from here. None of AWS's price pages could be read from here: they
are from memory and, at the date of their page, agreed with what others have published. Look a price
up on its page before a decision depends on it, and renew the date of the page when you have;
`make cost` warns of one that is older than half a year. Other regions differ by up to a third.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

HOURS = 730  # of a month
MILLION = 1_000_000
FRESH_DAYS = 180


class Page(str):
    """A page of AWS's prices, by its path under aws.amazon.com, and when its prices were compared
    last."""

    def __new__(cls, path: str, year: int = 2026, month: int = 11, day: int = 24) -> Page:
        """`Page("vpc/pricing", 2026, 11, 24)`."""
        page = super().__new__(cls, path)
        page.compared = date(year, month, day)
        return page

    compared: date


class Price(float):
    """Dollars for a unit of something, and the page that lists them."""

    def __new__(cls, dollars: float, what: str, unit: str, page: Page) -> Price:
        """`Price(0.045, "NAT gateway", "hour", VPC)`."""
        price = super().__new__(cls, dollars)
        price.what, price.unit, price.page = what, unit, page
        return price

    what: str
    unit: str
    page: Page


EC2, RDS, VPC = Page("ec2/pricing/on-demand"), Page("rds/postgresql/pricing"), Page("vpc/pricing")
BALANCING, CLOUDWATCH = Page("elasticloadbalancing/pricing"), Page("cloudwatch/pricing")
DYNAMODB, LAMBDA, EVENTS = (
    Page("dynamodb/pricing"),
    Page("lambda/pricing"),
    Page("eventbridge/pricing"),
)
API_GATEWAY, S3, COGNITO = Page("api-gateway/pricing"), Page("s3/pricing"), Page("cognito/pricing")
ATHENA, GUARDDUTY, KMS = Page("athena/pricing"), Page("guardduty/pricing"), Page("kms/pricing")
PRIVATELINK, XRAY, WAF = Page("privatelink/pricing"), Page("xray/pricing"), Page("waf/pricing")
SECRETS, SSM = Page("secrets-manager/pricing"), Page("systems-manager/pricing")
EBS = Page("ebs/pricing")

#: Instance class -> dollars an hour, Linux or PostgreSQL, one zone.
HOURLY = {
    each.what: each
    for each in (
        Price(0.0042, "t4g.nano", "hour", EC2),
        Price(0.0084, "t4g.micro", "hour", EC2),
        Price(0.0168, "t4g.small", "hour", EC2),
        Price(0.0336, "t4g.medium", "hour", EC2),
        Price(0.0408, "m7g.medium", "hour", EC2),
        Price(0.016, "db.t4g.micro", "hour", RDS),
        Price(0.032, "db.t4g.small", "hour", RDS),
        Price(0.065, "db.t4g.medium", "hour", RDS),
        Price(0.168, "db.m7g.large", "hour", RDS),
    )
}
SPOT_DISCOUNT = 0.6  # a usual share off the price on demand
NAT_GATEWAY = Price(0.045, "NAT gateway", "hour", VPC)
NAT_GB = Price(0.045, "data through a NAT gateway", "GB", VPC)
BALANCER = Price(0.0225, "Application Load Balancer", "hour", BALANCING)
BALANCER_UNIT = Price(0.008, "capacity unit (LCU) of a load balancer", "hour", BALANCING)
PUBLIC_ADDRESS = Price(0.005, "public IPv4 address", "hour", VPC)
INTERFACE_ENDPOINT = Price(0.01, "interface endpoint in one zone", "hour", PRIVATELINK)
READ_UNIT = Price(0.00013, "DynamoDB, provisioned read unit", "hour", DYNAMODB)
WRITE_UNIT = Price(0.00065, "DynamoDB, provisioned write unit", "hour", DYNAMODB)
READ_MILLION = Price(0.125, "DynamoDB, read units on demand", "million", DYNAMODB)
WRITE_MILLION = Price(0.625, "DynamoDB, write units on demand", "million", DYNAMODB)
TABLE_GB = Price(0.25, "DynamoDB, storage", "GB and month", DYNAMODB)
BACKUP_GB = Price(0.20, "DynamoDB, point-in-time recovery", "GB and month", DYNAMODB)
EXPORT_GB = Price(0.10, "DynamoDB, export of a table to S3", "GB", DYNAMODB)
QUERY_TB = Price(5.00, "Athena, data that queries read", "TB", ATHENA)
WARM_GB_SECOND = Price(0.0000033334, "Lambda, provisioned concurrency, arm64", "GB-second", LAMBDA)
GB_SECOND = Price(0.0000133334, "Lambda, duration, arm64", "GB-second", LAMBDA)
SCAN_GB = Price(0.09, "GuardDuty Malware Protection for S3, data", "GB", GUARDDUTY)
SCAN_THOUSAND = Price(
    0.215, "GuardDuty Malware Protection for S3, objects", "1,000 objects", GUARDDUTY
)
PIPE_MILLION = Price(0.40, "EventBridge Pipes, requests", "million", EVENTS)
EVENT_MILLION = Price(1.00, "EventBridge, custom events", "million", EVENTS)
INVOCATION_MILLION = Price(0.20, "Lambda, requests", "million", LAMBDA)
HTTP_API_MILLION = Price(1.00, "HTTP API, requests up to 300 million", "million", API_GATEWAY)
HTTP_API_MORE = Price(0.90, "HTTP API, requests above 300 million", "million", API_GATEWAY)
TRACE_MILLION = Price(5.00, "X-Ray, recorded traces", "million", XRAY)
PARAMETER_CALLS = Price(0.05, "SSM, GetParameter with higher throughput", "10,000 calls", SSM)
USER = Price(0.015, "Cognito, Essentials, monthly active user above 10,000", "month", COGNITO)
PLUS_USER = Price(0.02, "Cognito, Plus, monthly active user", "month", COGNITO)
MACHINE_CLIENT = Price(6.00, "Cognito, app client of a machine", "month", COGNITO)
MACHINE_TOKEN = Price(0.00225, "Cognito, token of a machine", "token", COGNITO)
#: Up to so many GB a month -> dollars for one of them.
DATA_OUT_TIERS = (
    (10_240, Price(0.09, "data out to the internet, first 10 TB", "GB", EC2)),
    (51_200, Price(0.085, "data out to the internet, next 40 TB", "GB", EC2)),
    (153_600, Price(0.07, "data out to the internet, next 100 TB", "GB", EC2)),
    (float("inf"), Price(0.05, "data out to the internet, above 150 TB", "GB", EC2)),
)
CROSS_ZONE_GB = Price(0.01, "data to another zone, each way", "GB", EC2)
KMS_REQUESTS = Price(0.03, "KMS, requests", "10,000 requests", KMS)
KEY = Price(1.00, "KMS, customer-managed key", "month", KMS)
WEB_ACL = Price(5.00, "WAF, web ACL", "month", WAF)
WAF_RULE = Price(1.00, "WAF, rule or group of rules", "month", WAF)
WAF_MILLION = Price(0.60, "WAF, requests", "million", WAF)
SECRET = Price(0.40, "Secrets Manager, secret", "month", SECRETS)
ALARM = Price(0.10, "CloudWatch, standard alarm", "month", CLOUDWATCH)
COMPOSITE_ALARM = Price(0.50, "CloudWatch, composite alarm", "month", CLOUDWATCH)
METRIC = Price(0.30, "CloudWatch, custom or detailed metric", "month", CLOUDWATCH)
LOG_GB = Price(0.50, "CloudWatch Logs, ingestion", "GB", CLOUDWATCH)
LOG_STORAGE_GB = Price(0.03, "CloudWatch Logs, storage", "GB and month", CLOUDWATCH)
VOLUME_GB = Price(0.08, "EBS, gp3", "GB and month", EBS)
DATABASE_GB = Price(0.115, "RDS, gp3", "GB and month", RDS)
S3_PUTS = Price(5.00, "S3, PUT requests", "million", S3)
S3_GETS = Price(0.40, "S3, GET and HEAD requests", "million", S3)
S3_GB = Price(0.023, "S3 Standard", "GB and month", S3)
S3_INFREQUENT_GB = Price(0.0125, "S3 Standard-IA", "GB and month", S3)
S3_ARCHIVE_GB = Price(0.004, "S3 Glacier Instant Retrieval", "GB and month", S3)

SCHEDULE_MILLION = Price(1.00, "EventBridge Scheduler, invocations", "million", EVENTS)

VOLUME_SIZE_GB = 8  # of each instance
DETAILED_METRICS = 7  # of an instance with detailed monitoring
AGENT_METRICS = 3  # of a fleet: memory; disk with and without its device
ROUTE_METRICS = 6  # count, 4xx, 5xx, latency, integration latency, data


def stale(today: date) -> Iterator[str]:
    """A warning for each page whose prices nobody has compared for half a year."""
    pages = {each.page: each.page.compared for each in every()}
    for page, compared in sorted(pages.items()):
        if (days := (today - compared).days) > FRESH_DAYS:
            yield (
                f"the prices of https://aws.amazon.com/{page}/ are {days} days old, of {compared}: "
                "compare them, and renew the date in cost/prices.py"
            )


def every() -> list[Price]:
    """All prices, each once."""
    tiers = [price for _, price in DATA_OUT_TIERS]
    named = [each for each in globals().values() if isinstance(each, Price)]
    return [*{each.what: each for each in (*named, *HOURLY.values(), *tiers)}.values()]


def monthly(per_hour: float) -> float:
    """What something that is paid by the hour costs a month."""
    return per_hour * HOURS


def written(dollars: float) -> str:
    """A price as text: in cents from a dollar upwards, else with all its digits."""
    text = f"{dollars:,.2f}" if dollars >= 1 else f"{dollars:.10f}".rstrip("0")
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents:0<2}"


def invocations(millions: float, seconds: float, memory_mb: int = 512) -> float:
    """Lambda's requests and duration."""
    gigabyte_seconds = millions * MILLION * seconds * memory_mb / 1024
    return millions * INVOCATION_MILLION + gigabyte_seconds * GB_SECOND


def provisioned(environments: float, memory_mb: int = 512) -> float:
    """A month of provisioned concurrency."""
    return monthly(environments * memory_mb / 1024 * 3600 * WARM_GB_SECOND)


def walks() -> float:
    """A month of walks through the API, every five minutes, but for their alarm: each has eleven
    requests, with six read units and thirteen write units, and twelve traces; a token is good for
    an hour."""
    millions = HOURS * 12 / MILLION
    calls = invocations(millions, 1, 256) + 11 * invocations(millions, 0.050)
    calls += millions * (11 * HTTP_API_MILLION + 12 * TRACE_MILLION + SCHEDULE_MILLION)
    calls += millions * (6 * READ_MILLION + 13 * WRITE_MILLION + 11 * 1.1 * LOG_GB)
    return calls + HOURS * MACHINE_TOKEN + METRIC


def web_acl(groups: int) -> float:
    """A month of a web ACL with so many groups of rules."""
    return WEB_ACL + groups * WAF_RULE


#: Placeholder in the text of a setting -> the price as text.
PLACEHOLDERS = {
    # Six windows of each objective, with two metrics, or three for the web's availability.
    "burn_rates": written(6 * (3 * 2 + 3) * ALARM + 6 * COMPOSITE_ALARM),
    "cognito_plus": written(PLUS_USER),
    "database_gb": written(DATABASE_GB),
    "export_gb": written(EXPORT_GB),
    "file_event": written(PIPE_MILLION + EVENT_MILLION),
    # Each of three indexes has a quarter of the table's read units and half of its write units.
    "index_units": written(round(3 * monthly(READ_UNIT / 4 + WRITE_UNIT / 2), 2)),
    "interface_endpoint": written(monthly(INTERFACE_ENDPOINT)),
    "log_storage": written(LOG_STORAGE_GB),
    "machine_client": written(MACHINE_CLIENT),
    "metric": written(METRIC),
    "nat_gateway": written(monthly(NAT_GATEWAY)),
    "nat_gb": written(NAT_GB),
    # A public address of its own while it starts, and the one that it keeps for NAT.
    "nat_instance": written(
        monthly(HOURLY["t4g.nano"] + 2 * PUBLIC_ADDRESS)
        + VOLUME_SIZE_GB * VOLUME_GB
        + DETAILED_METRICS * METRIC
    ),
    "query_tb": written(QUERY_TB),
    "scan_files": written(SCAN_THOUSAND),
    "scan_gb": written(SCAN_GB),
    "synthetics": written(round(MACHINE_CLIENT + walks() + ALARM, 2)),
    "spot_discount": f"{SPOT_DISCOUNT:.0%}".replace("%", " %"),
    "unit_pair": written(round(monthly(READ_UNIT + WRITE_UNIT), 2)),
    "waf": written(web_acl(3)),
    "waf_million": written(WAF_MILLION),
    "warm_512": written(provisioned(1)),
}
