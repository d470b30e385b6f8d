"""What a change costs: the estimate of an environment beside that of another commit.

    make cost-difference ENV=prod BASE=origin/main [LIMIT=20] [APPROVED=true]

Prints a table in Markdown. The exit code is 1 if a month without traffic costs more than LIMIT
dollars more than before, and nobody approved that.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[1]
Costs = dict[str, float]


def costs(folder: Path, env: str) -> Costs:
    """Dollars a month of each system without traffic, and of what traffic adds, in a checkout."""
    command = [sys.executable, "-m", "cost", "--env", env, "--json", "--no-choices"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise typer.BadParameter(f"the estimate of {folder} failed: {ran.stderr.strip()}")
    found: dict[str, Any] = json.loads(ran.stdout)

    def total(rows: list[dict[str, Any]]) -> float:
        return float(sum(row["dollars"] for row in rows))

    systems = {system: total(rows) for system, rows in found["fixed"].items()}
    return {**systems, "traffic": total(found["by_use"])}


def at(commit: str, env: str) -> Costs:
    """The same of a commit, in a worktree that is removed again."""
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(ROOT), "worktree"]
        add = [*git, "add", "--quiet", "--detach", f"{folder}/base", commit]
        if subprocess.run(add, check=False).returncode:
            raise typer.BadParameter(f"BASE must be a commit of this repository, not {commit}")
        try:
            return costs(Path(folder, "base"), env)
        finally:
            subprocess.run([*git, "remove", "--force", f"{folder}/base"], check=True)


def table(env: str, before: Costs, after: Costs) -> str:
    """Both, and their difference, in Markdown."""
    rows = [
        f"| {env}, dollars a month | before | after | difference |",
        "| --- | --- | --- | --- |",
    ]
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, 0.0), after.get(name, 0.0)
        rows.append(f"| {name} | {old:,.2f} | {new:,.2f} | {new - old:+,.2f} |")
    return "\n".join(rows)


def idle(found: Costs) -> float:
    """The dollars of a month without traffic."""
    return sum(dollars for name, dollars in found.items() if name != "traffic")


def main(
    env: Annotated[str, typer.Option(help="dev, staging or prod")],
    base: Annotated[str, typer.Option(help="the commit to compare with")],
    limit: Annotated[float, typer.Option(help="dollars a month that need no approval")] = 20,
    approved: Annotated[bool, typer.Option(help="somebody has approved more")] = False,
) -> None:
    """Prints what this checkout costs beside another commit."""
    before, after = at(base, env), costs(ROOT, env)
    typer.echo(table(env, before, after))
    if (more := idle(after) - idle(before)) > limit and not approved:
        typer.echo(
            f"\n{env} would cost ${more:,.2f} a month more, and ${limit:,.0f} is the limit: "
            "label the pull request cost-approved, or raise LIMIT"
        )
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
