"""What is written down is what the code does: tables, configuration files, contract, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tap_stack
from docs import tables
from taplocal.program import run
from taplocal.project import Project
from tests.contract import contract, operations
from tests.stack.conftest import ROOT, Recorder


def test_generated_files_are_up_to_date() -> None:
    for path, text in tables.files():
        assert path.read_text() == text, f"{path.name} is out of date: run `make docs`"


def test_the_contract_has_every_route_with_its_scope_and_no_other() -> None:
    assert operations().keys() == tap_stack.all_routes().keys()
    for route, (operation, scope, _) in tap_stack.all_routes().items():
        documented = operations()[route]
        assert documented["operationId"] == operation.__name__
        assert documented["security"] == [{"tokens": [scope]}]
    flows = contract()["components"]["securitySchemes"]["tokens"]["flows"]
    for flow in flows.values():
        assert flow["scopes"] == {
            f"{server}/{scope}": doc for server, scope, doc in tap_stack.SCOPES
        }


def test_the_contract_states_the_codes_own_limits() -> None:
    schemas = contract()["components"]["schemas"]
    assert schemas["Id"]["pattern"] == f"^{tap_stack.ITEM_ID.pattern}$"
    assert f"up to {tap_stack.MAX_DEPTH} levels" in schemas["NewItem"]["description"]


@pytest.mark.parametrize(
    "path",
    sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")),
    ids=lambda path: path.name,
)
def test_links_and_named_files_exist(path: object) -> None:
    text = path.read_text()  # type: ignore[attr-defined]
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text):
        assert (path.parent / target).exists(), target  # type: ignore[attr-defined]


def test_the_readme_names_only_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text())) <= targets | {
        "sure"
    }


@pytest.mark.parametrize("example", sorted((ROOT / "examples").iterdir()), ids=lambda x: x.name)
def test_each_example_registers_and_says_how_it_is_run(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    recorder = Recorder()
    project = Project.load(example, "dev", {})
    assert run(project, recorder)
    assert len(recorder.resources) > 30
    assert f"--program examples/{example.name}" in project.main.read_text()
