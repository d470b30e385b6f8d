"""Prints the estimate of an environment: `python -m cost [--env dev|staging|prod] [-c KEY=VALUE]`.

The program is run as the tests run it, its resources are recorded, and each is priced: what a month
without traffic costs, what the stated traffic adds, and what other choices would change. The
settings are those of Pulumi.<env>.yaml, and `-c` wins over them.
"""

from __future__ import annotations

import sys
from typing import Annotated

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


def compared(env: str, config: dict[str, str], base: Estimate) -> Table:
    """What each other choice would add to the month, or take from it."""
    table = Table(width=WIDTH)
    for heading in ("another choice", "value", "dollars"):
        table.add_column(heading, justify="right" if heading == "dollars" else "left")
    for name, values in CHOICES.items():
        for value in values:
            try:
                other = estimate(Project.load(ROOT, env, {**config, name: value}))
            except TapLocalError:
                continue  # this environment may not have it
            if difference := other.total() - base.total():
                table.add_row(name, value, f"{difference:+,.2f}")
    return table


def main(
    env: Annotated[str, typer.Option(help="dev, staging or prod")] = "dev",
    config: Annotated[list[str] | None, typer.Option("-c", help="a setting, as KEY=VALUE")] = None,
    choices: Annotated[bool, typer.Option(help="compare with other choices")] = True,
) -> None:
    """Prints what an environment costs a month."""
    settings = dict(each.split("=", 1) for each in config or () if "=" in each)
    console = Console(width=100)
    try:
        base = estimate(Project.load(ROOT, env, settings))
    except TapLocalError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    for system, rows in base.fixed.items():
        console.print(shown(f"{env}, {system}: a month without traffic", rows))
    console.print(f"{env} together: ${base.total():,.2f} a month without traffic\n")
    console.print(shown(f"with {USE}", base.by_use))
    console.print(f"left out: {'; '.join(base.left_out)}\n")
    if choices:
        console.print(compared(env, settings, base))


if __name__ == "__main__":
    typer.run(main)
