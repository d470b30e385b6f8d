"""Prints the estimate of an environment: `python -m cost [--env dev|staging|prod] [-c KEY=VALUE]`.

The program is run as the tests run it, its resources are recorded, and each is priced: what a month
without traffic costs, what a load adds (requests, files, GB out), the same in the other
environments, and what other choices would change. The settings are those of Pulumi.<env>.yaml, and
`-c` wins over them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cost.chart import bars
from cost.estimate import CHOICES, ROOT, Estimate, estimate
from cost.load import ASSUMED, USUAL, Load
from cost.prices import stale
from tap_stack import TIERS
from taplocal.errors import TapLocalError
from taplocal.project import Project

WIDTH = 80


def shown(title: str, rows: dict[str, float]) -> Table:
    """A table of dollars, the dearest first, and their sum."""
    table = Table(width=WIDTH)
    table.add_column(title)
    table.add_column("dollars", justify="right")
    for what, dollars in sorted(rows.items(), key=lambda row: -row[1]):
        table.add_row(what, f"{dollars:,.2f}")
    table.add_section()
    table.add_row("together", f"{sum(rows.values()):,.2f}")
    return table


def differences(
    env: str, config: dict[str, str], base: Estimate
) -> Iterator[tuple[str, str, float]]:
    """Setting, value, and what this choice would add to the month, or take from it."""
    for name, values in CHOICES.items():
        for value in values:
            try:
                other = estimate(Project.load(ROOT, env, {**config, name: value}), base.load)
            except TapLocalError:
                continue  # this environment may not have it
            if difference := other.together() - base.together():
                yield name, value, difference


def compared(rows: Iterable[tuple[str, str, float]]) -> Table:
    """The differences as a table."""
    table = Table(width=WIDTH)
    for heading in ("another choice", "value", "dollars"):
        table.add_column(heading, justify="right" if heading == "dollars" else "left")
    for name, value, difference in rows:
        table.add_row(name, value, f"{difference:+,.2f}")
    return table


def environments(env: str, config: dict[str, str], base: Estimate) -> dict[str, Estimate]:
    """Each tier with the same settings and load; not one that refuses them."""
    found = {env: base}
    for tier in TIERS:
        try:
            found.setdefault(tier, estimate(Project.load(ROOT, tier, config), base.load))
        except TapLocalError:
            continue
    return {**{tier: found[tier] for tier in TIERS if tier in found}, **found}


def beside(estimates: Mapping[str, Estimate]) -> Table:
    """The environments as a table."""
    table = Table(width=WIDTH)
    for heading in ("environment", "no traffic", "the load", "together"):
        table.add_column(heading, justify="left" if heading == "environment" else "right")
    for env, each in estimates.items():
        amounts = each.total(), each.together() - each.total(), each.together()
        table.add_row(env, *(f"{dollars:,.2f}" for dollars in amounts))
    return table


def listed(parts: Mapping[str, float]) -> list[dict[str, Any]]:
    """Rows of dollars, the dearest first."""
    ordered = sorted(parts.items(), key=lambda row: -row[1])
    return [{"what": what, "dollars": round(dollars, 2)} for what, dollars in ordered]


def as_json(
    base: Estimate, others: Mapping[str, Estimate], rows: Iterable[tuple[str, str, float]]
) -> str:
    """All of it for programs, in dollars a month, the dearest first."""
    found = {
        "fixed": {system: listed(parts) for system, parts in base.fixed.items()},
        "load": asdict(base.load),
        "use": str(base.load),
        "by_use": listed(base.by_use),
        "assumed": list(ASSUMED),
        "left_out": list(base.left_out),
        "environments": listed({env: each.together() for env, each in others.items()}),
        "choices": [{"setting": x, "value": y, "dollars": round(z, 2)} for x, y, z in rows],
    }
    return json.dumps(found, indent=2)


def today() -> date:
    """The day, in UTC."""
    return datetime.now(UTC).date()


def main(
    env: Annotated[str, typer.Option(help="dev, staging or prod")] = "dev",
    config: Annotated[list[str] | None, typer.Option("-c", help="a setting, as KEY=VALUE")] = None,
    requests: Annotated[
        float, typer.Option(min=0, help="requests to the API, a month")
    ] = USUAL.requests,
    files: Annotated[float, typer.Option(min=0, help="files uploaded, a month")] = USUAL.files,
    gb_out: Annotated[float, typer.Option(min=0, help="GB downloaded, a month")] = USUAL.gb_out,
    file_mb: Annotated[float, typer.Option(min=0.001, help="MB of a file")] = USUAL.file_mb,
    choices: Annotated[bool, typer.Option(help="compare with other choices")] = True,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON value")] = False,
) -> None:
    """Prints what an environment costs a month."""
    settings = dict(each.split("=", 1) for each in config or () if "=" in each)
    console = Console(width=100)
    for warning in stale(today()):
        print(f"warning: {warning}", file=sys.stderr)
    load = Load(requests=requests, files=files, gb_out=gb_out, file_mb=file_mb)
    try:
        base = estimate(Project.load(ROOT, env, settings), load)
    except TapLocalError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    others = environments(env, settings, base) if choices else {}
    rows_of_choices = differences(env, settings, base) if choices else ()
    if json_:
        print(as_json(base, others, rows_of_choices))
        return
    for system, rows in base.fixed.items():
        console.print(shown(f"{env}, {system}: a month without traffic", rows))
    console.print(f"{env} together: ${base.total():,.2f} a month without traffic\n")
    console.print(shown(f"with {base.load}", base.by_use))
    console.print(f"{env} with this load: ${base.together():,.2f} a month")
    console.print(f"assumed: {'; '.join(ASSUMED)}")
    console.print(f"left out: {'; '.join(base.left_out)}\n")
    if choices:
        console.print(beside(others))
        for line in bars(others, WIDTH):
            console.print(line, markup=False, highlight=False)
        console.print()
        console.print(compared(rows_of_choices))


if __name__ == "__main__":
    typer.run(main)
