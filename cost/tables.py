"""The tables of the estimate that stand in the documents, in Markdown: `make docs` writes them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping

from cost import prices
from cost.estimate import CHOICES, Estimate, estimate, priced, recorded, with_defaults
from cost.load import ASSUMED, USUAL, Load
from cost.prices import HOURS, monthly, provisioned, written
from tap_stack import TIERS, TapStackArgs
from taplocal.errors import TapLocalError
from taplocal.program import Registration

SYSTEM_NAMES = ("api", "files", "web", "shared")
#: Those of the documents.
LOADS = {
    "small": Load(requests=100_000, files=1_000, gb_out=5),
    "medium": USUAL,
    "large": Load(requests=100_000_000, files=10_000_000, gb_out=20_000),
}


def of(tier: str) -> Estimate:
    """The estimate of a tier's defaults."""
    return loaded(tier, USUAL)


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
    return f"{other.together() - of(tier).together():+,.2f}".replace("-", "−")


def by_use() -> Iterator[str]:
    """What each load adds to a month of prod, by what is paid."""
    found = [loaded("prod", each).by_use for each in LOADS.values()]
    yield from head("", *(f"{name}, dollars" for name in LOADS))
    for what in dearest(found[-1]):
        yield row(what, *(f"{each.get(what, 0.0):,.2f}" for each in found))
    sums = (f"**{sum(each.values()):,.2f}**" for each in found)
    yield row("**together**", *sums)


def loads() -> Iterator[str]:
    """A month of each tier, without traffic and with each load."""
    yield from head("", *TIERS)
    yield row("no traffic", *whole(of(tier).total() for tier in TIERS))
    for name, use in LOADS.items():
        yield row(f"{name}: {use}", *whole(loaded(tier, use).together() for tier in TIERS))


def dearest(dollars: Mapping[str, float]) -> list[str]:
    """The keys, that of the highest amount first."""
    return sorted(dollars, key=lambda each: (-dollars[each], each))


@functools.cache
def registered(tier: str) -> list[Registration]:
    """What a tier registers by its defaults."""
    return recorded(with_defaults(tier))


def loaded(tier: str, use: Load) -> Estimate:
    """The estimate of a tier with a load."""
    return priced(registered(tier), use)


def assumed() -> Iterator[str]:
    """What a load does not say."""
    yield from (f"- {each}" for each in ASSUMED)


def left_out() -> Iterator[str]:
    """What costs by use and is in no estimate."""
    yield from (f"- {each}" for each in of("prod").left_out)


def files() -> Iterator[str]:
    """What stored files cost, which the lifecycle makes cheaper."""
    yield from head("a GB of files, a month", "dollars")
    yield row("at first", written(prices.S3_GB))
    yield row("from the 30th day on", written(prices.S3_INFREQUENT_GB))
    yield row("from the 90th day on", written(prices.S3_ARCHIVE_GB))


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
    yield from head("what", "dollars", "per", "page", "compared")
    for each in sorted(prices.every(), key=lambda each: (each.page, each.what)):
        page = f"[{each.page}](https://aws.amazon.com/{each.page}/)"
        yield row(each.what, written(each), each.unit, page, f"{each.page.compared}")


def hourly() -> Iterator[str]:
    """What an API costs at 10,000 and at a million requests an hour."""
    uses = [Load(requests=each * HOURS, files=0, gb_out=0) for each in (10_000, 1_000_000)]
    api = recorded(with_defaults("prod", systems='["api"]'))
    found = [priced(api, each).by_use for each in uses]
    warm = {"Lambda, provisioned concurrency, 2 and 20": (provisioned(2), provisioned(20))}
    yield from head("", "10,000 an hour, dollars", "1,000,000 an hour, dollars")
    for what in dearest(found[-1]):
        yield row(what, *whole(each[what] for each in found))
    for what, amounts in warm.items():
        yield row(what, *whole(amounts))
    sums = (sum(x.values()) + y for x, y in zip(found, *warm.values(), strict=True))
    yield row("**together**", *(f"**{each}**" for each in whole(sums)))


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
