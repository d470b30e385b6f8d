"""Prints the estimate of an environment: `python -m cost [--env dev|staging|prod] [-c KEY=VALUE]`.

The program is run as the tests run it, its resources are recorded, and each is priced: what a month
without traffic costs, what the stated traffic adds, and what other choices would change. The
settings are those of Pulumi.<env>.yaml, and `-c` wins over them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cost.estimate import CHOICES, ROOT, USE, Estimate, estimate
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
                other = estimate(Project.load(ROOT, env, {**config, name: value}))
            except TapLocalError:
                continue  # this environment may not have it
            if difference := other.total() - base.total():
                yield name, value, difference


def compared(rows: Iterable[tuple[str, str, float]]) -> Table:
    """The differences as a table."""
    table = Table(width=WIDTH)
    for heading in ("another choice", "value", "dollars"):
        table.add_column(heading, justify="right" if heading == "dollars" else "left")
    for name, value, difference in rows:
        table.add_row(name, value, f"{difference:+,.2f}")
    return table


def as_json(base: Estimate, rows: Iterable[tuple[str, str, float]]) -> str:
    """All of it for programs, in dollars a month, the dearest first."""

    def listed(parts: dict[str, float]) -> list[dict[str, Any]]:
        ordered = sorted(parts.items(), key=lambda row: -row[1])
        return [{"what": what, "dollars": round(dollars, 2)} for what, dollars in ordered]

    found = {
        "fixed": {system: listed(parts) for system, parts in base.fixed.items()},
        "use": USE,
        "by_use": listed(base.by_use),
        "left_out": list(base.left_out),
        "choices": [{"setting": x, "value": y, "dollars": round(z, 2)} for x, y, z in rows],
    }
    return json.dumps(found, indent=2)


def main(
    env: Annotated[str, typer.Option(help="dev, staging or prod")] = "dev",
    config: Annotated[list[str] | None, typer.Option("-c", help="a setting, as KEY=VALUE")] = None,
    choices: Annotated[bool, typer.Option(help="compare with other choices")] = True,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON value")] = False,
) -> None:
    """Prints what an environment costs a month."""
    settings = dict(each.split("=", 1) for each in config or () if "=" in each)
    console = Console(width=100)
    try:
        base = estimate(Project.load(ROOT, env, settings))
    except TapLocalError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    rows_of_choices = differences(env, settings, base) if choices else ()
    if json_:
        print(as_json(base, rows_of_choices))
        return
    for system, rows in base.fixed.items():
        console.print(shown(f"{env}, {system}: a month without traffic", rows))
    console.print(f"{env} together: ${base.total():,.2f} a month without traffic\n")
    console.print(shown(f"with {USE}", base.by_use))
    console.print(f"left out: {'; '.join(base.left_out)}\n")
    if choices:
        console.print(compared(rows_of_choices))


if __name__ == "__main__":
    typer.run(main)
