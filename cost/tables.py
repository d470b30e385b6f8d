"""The tables of the estimate that stand in the documents, in Markdown: `make docs` writes them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

from cost import prices
from cost.estimate import CHOICES, Estimate, estimate, with_defaults
from cost.prices import Price, monthly, provisioned, written
from tap_stack import TIERS, TapStackArgs, all_routes
from taplocal.errors import TapLocalError

SYSTEM_NAMES = ("api", "files", "web", "shared")
OTHER_ROUTES = 2  # preflights and $default
OTHER_METRICS = 2  # rejected and failed requests


@functools.cache
def of(tier: str) -> Estimate:
    """The estimate of a tier's defaults."""
    return estimate(with_defaults(tier))


def row(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def head(*cells: str) -> Iterator[str]:
    """The heading of a table: what is priced to the left, prices to the right."""
    yield row(*cells)
    yield row(*("--:" if cell in TIERS or "dollars" in cell else "---" for cell in cells))


def whole(amounts: Iterable[float]) -> list[str]:
    """Amounts in whole dollars."""
    return [f"{amount:,.0f}" for amount in amounts]


def systems() -> Iterator[str]:
    """A month without traffic, by system."""
    yield from head("system", *TIERS)
    for system in SYSTEM_NAMES:
        yield row(system, *whole(sum(of(tier).fixed.get(system, {}).values()) for tier in TIERS))
    yield row("**together**", *(f"**{each}**" for each in whole(of(x).total() for x in TIERS)))


def resources() -> Iterator[str]:
    """The same by kind of resource."""
    yield from head("system", "resources", *TIERS)
    for system in SYSTEM_NAMES:
        kinds = {kind for tier in TIERS for kind in of(tier).fixed.get(system, {})}
        for kind in sorted(kinds):
            amounts = (of(tier).fixed.get(system, {}).get(kind, 0.0) for tier in TIERS)
            yield row(system, kind, *(f"{each:,.2f}" for each in amounts))


def choices() -> Iterator[str]:
    """What each value of a setting adds to the month of each tier."""
    yield from head("setting", "value", *TIERS)
    for name, values in CHOICES.items():
        for value in values:
            yield row(f"`{name}`", f"`{value}`", *(added(x, name, value) for x in TIERS))


def added(tier: str, name: str, value: str) -> str:
    """What a value adds to a month of a tier; a dash where validation rejects it."""
    if value == str(getattr(TapStackArgs(environment_suffix=tier), name)).lower():
        return "default"
    try:
        other = estimate(with_defaults(tier, **{name: value}))
    except TapLocalError:
        return "–"
    return f"{other.total() - of(tier).total():+,.2f}".replace("-", "−")


def requests() -> Iterator[str]:
    """What a million requests cost."""
    written_units, read_units = 0.1 * 3, 0.9  # millions: the table and two indexes; the table
    metrics = len({metric for _, _, metric in all_routes().values()}) + OTHER_METRICS
    routes = len(all_routes()) + OTHER_ROUTES
    yield from head("a million requests", "dollars")
    yield row("HTTP API", written(prices.HTTP_API_MILLION))
    yield row("Lambda, 512 MB on arm64, 10 ms each", cents(prices.invocations(1, 0.010)))
    on_demand = written_units * prices.WRITE_MILLION + read_units * prices.READ_MILLION
    yield row("DynamoDB on demand, one in ten writes 1 KB to table and indexes", cents(on_demand))
    yield row("logs, 0.6 KB each in two groups", cents(2 * 0.6 * prices.LOG_GB))
    yield row(f"business metrics, {metrics} at most, a month", cents(metrics * prices.METRIC))
    detailed = prices.ROUTE_METRICS * routes
    yield row(
        f"`detailed_metrics`, {detailed} if all {routes} routes are used, a month",
        cents(detailed * prices.METRIC),
    )


def left_out() -> Iterator[str]:
    """What costs by use and is in no estimate."""
    yield from (f"- {each}" for each in of("prod").left_out)


def files() -> Iterator[str]:
    """What a million files cost."""
    yield from head("a million files", "dollars")
    yield row("S3 requests: PUT, HEAD, GET", written(prices.S3_PUTS + 2 * prices.S3_GETS))
    yield row("Lambda, 512 MB on arm64, 100 ms each", cents(prices.invocations(1, 0.100)))
    yield row("logs, 0.6 KB each", cents(0.6 * prices.LOG_GB))
    yield row("storage, a GB and month", written(prices.S3_GB))
    yield row("the same from the 30th day on", written(prices.S3_INFREQUENT_GB))
    yield row("the same from the 90th day on", written(prices.S3_ARCHIVE_GB))


def sign_ins() -> Iterator[str]:
    """What Cognito costs."""
    yield from head("people and machines", "dollars")
    yield row("a monthly active user above 10,000", written(prices.USER))
    yield row("with `threat_protection`, each monthly active user", written(prices.PLUS_USER))
    yield row("a machine, a month", written(prices.MACHINE_CLIENT))
    yield row("a thousand tokens of a machine", cents(1_000 * prices.MACHINE_TOKEN))


def cents(dollars: float) -> str:
    """An amount with two decimals."""
    return written(round(dollars, 2))


def unit_prices() -> Iterator[str]:
    """Each unit price with its unit and its page."""
    yield from head("what", f"dollars, {prices.AS_OF}", "per", "page under aws.amazon.com")
    named = [each for each in vars(prices).values() if isinstance(each, Price)]
    by_name = {each.what: each for each in (*named, *prices.HOURLY.values())}  # two may be equal
    for each in sorted(by_name.values(), key=lambda each: (each.page, each.what)):
        yield row(each.what, written(each), each.unit, each.page)


def load() -> Iterator[str]:
    """What a load of the API costs, at 10,000 and at a million requests an hour."""
    yield from head("", "10,000 an hour, dollars", "1,000,000 an hour, dollars")
    small, large = 0.01 * prices.HOURS, 1.0 * prices.HOURS  # millions a month
    yield row("requests", f"{small:.1f} million", f"{large:.0f} million")
    lines = {
        "HTTP API": [gateway(x) for x in (small, large)],
        "Lambda, requests and 50 ms of 512 MB": [
            prices.invocations(x, 0.050) for x in (small, large)
        ],
        "Lambda, provisioned concurrency, 2 and 20": [provisioned(2), provisioned(20)],
        "DynamoDB, a unit a read, three a write": [
            x * (0.8 * prices.READ_MILLION + 0.2 * 3 * prices.WRITE_MILLION) for x in (small, large)
        ],
        "logs, 1.1 KB a request": [x * 1.1 * prices.LOG_GB for x in (small, large)],
        "X-Ray, one a second and 5 % of the rest": [traces(x) for x in (small, large)],
    }
    for what, amounts in lines.items():
        yield row(what, *whole(amounts))
    sums = map(sum, zip(*lines.values(), strict=True))
    yield row("**together**", *(f"**{each}**" for each in whole(sums)))


def gateway(millions: float) -> float:
    """What the HTTP API costs for so many requests a month."""
    first = min(millions, 300.0)
    return first * prices.HTTP_API_MILLION + (millions - first) * prices.HTTP_API_MORE


def traces(millions: float) -> float:
    """What X-Ray costs by its default rule: one request a second and 5 % of the rest."""
    reservoir = monthly(3600) / prices.MILLION
    return (reservoir + 0.05 * (millions - reservoir)) * prices.TRACE_MILLION


def parameter_calls() -> Iterator[str]:
    """The price of SSM's higher throughput."""
    price = prices.PARAMETER_CALLS
    yield f"Higher throughput of SSM costs {written(price)} for {price.unit}."


def capacity() -> Iterator[str]:
    """What the files table costs, provisioned and on demand."""
    pair = 100 * monthly(prices.READ_UNIT + prices.WRITE_UNIT)
    index = 100 * monthly(prices.READ_UNIT / 4 + prices.WRITE_UNIT / 2)
    on_demand = 9 * prices.WRITE_MILLION
    yield from head("files table", "dollars a month")
    yield row("100 units for reading and for writing", cents(pair))
    yield row("each index: a quarter of the read, half of the write units", cents(index))
    yield row("the table with its three indexes", cents(pair + 3 * index))
    yield row("on demand instead, a million files of 9 write units", cents(on_demand))
    equal = (pair + 3 * index) / on_demand
    yield row("files a month at which both cost the same", f"{equal:.0f} million")
