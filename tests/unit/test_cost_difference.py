"""The cost of a change: what is compared, and when it stops a pull request."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ops import cost_difference
from ops.cost_difference import Costs

BEFORE: Costs = {"api": 6, "web": 70.5, "traffic": 100}


def ran(monkeypatch: pytest.MonkeyPatch, after: Costs, *more: str) -> tuple[int, str]:
    """Exit code and output of the command for these costs."""
    app = typer.Typer()
    app.command()(cost_difference.main)
    monkeypatch.setattr(cost_difference, "at", lambda commit, env: BEFORE)
    monkeypatch.setattr(cost_difference, "costs", lambda folder, env: after)
    result = CliRunner().invoke(app, ["--env", "prod", "--base", "x", *more])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("after", "more", "code"),
    [
        (BEFORE, [], 0),
        ({**BEFORE, "web": 90.5}, [], 0),
        ({**BEFORE, "web": 90.51}, [], 1),
        ({**BEFORE, "files": 135}, [], 1),
        ({**BEFORE, "files": 135}, ["--approved"], 0),
        ({**BEFORE, "files": 135}, ["--limit", "135"], 0),
        ({**BEFORE, "traffic": 1_000}, [], 0),  # nobody knows how much there will be
        ({"api": 6, "traffic": 100}, [], 0),
    ],
)
def test_more_than_the_limit_needs_approval(
    monkeypatch: pytest.MonkeyPatch, after: Costs, more: list[str], code: int
) -> None:
    found, output = ran(monkeypatch, after, *more)
    assert found == code
    assert ("cost-approved" in output) == bool(code)


def test_each_system_has_a_row_also_one_that_is_new_or_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, output = ran(monkeypatch, {"files": 10, "web": 70.5, "traffic": 90})
    assert "| api | 6.00 | 0.00 | -6.00 |" in output
    assert "| files | 0.00 | 10.00 | +10.00 |" in output
    assert "| traffic | 100.00 | 90.00 | -10.00 |" in output


def test_another_commit_is_looked_at_in_a_worktree_that_is_removed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        command = [
            "git",
            "-C",
            str(tmp_path),
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b.c",
            *arguments,
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init", "--quiet")
    folder = tmp_path / "cost"
    folder.mkdir()
    for dollars in (1, 2):
        found = {"fixed": {"api": [{"what": "x", "dollars": dollars}]}, "by_use": []}
        (folder / "__main__.py").write_text(f"print({json.dumps(json.dumps(found))})")
        git("add", "-A")
        git("commit", "--quiet", "-m", str(dollars))
    monkeypatch.setattr(cost_difference, "ROOT", tmp_path)
    assert cost_difference.at("HEAD~1", "dev") == {"api": 1, "traffic": 0}
    assert cost_difference.costs(tmp_path, "dev") == {"api": 2, "traffic": 0}
    assert git("worktree", "list").count("\n") == 1
    with pytest.raises(typer.BadParameter, match="BASE must be a commit"):
        cost_difference.at("nothing", "dev")
    (folder / "__main__.py").write_text("import sys; sys.exit('no such setting')")
    with pytest.raises(typer.BadParameter, match="no such setting"):
        cost_difference.costs(tmp_path, "dev")
