"""The index of the decisions has each of them under its own number and title."""

from __future__ import annotations

import re

from tests.stack.conftest import ROOT

FOLDER = ROOT / "docs" / "decisions"


def test_the_index_lists_every_decision_by_number_and_title() -> None:
    rows = re.findall(
        r"^\| (\d+) \| \[(.+?)\]\((.+?)\) \| .+ \|$",
        (FOLDER / "README.md").read_text(),
        re.MULTILINE,
    )
    headings = [
        (*path.read_text().partition("\n")[0].removeprefix("# ").split(". ", 1), path.name)
        for path in sorted(FOLDER.glob("[0-9]*.md"))
    ]
    assert rows == headings


def test_a_decisions_number_is_that_of_its_file() -> None:
    for path in FOLDER.glob("[0-9]*.md"):
        assert path.read_text().startswith(f"# {int(path.name[:4])}. "), path.name
