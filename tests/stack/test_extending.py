"""docs/extending.md: a resource can be changed from outside, as the guide shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from taplocal.errors import TapLocalError
from taplocal.program import run
from taplocal.project import Project
from tests.stack.conftest import ROOT, Graph, Recorder

EXAMPLE = ROOT / "examples" / "custom_resource_options"


def recorded(folder: Path) -> Recorder:
    """What the program in a folder registers."""
    recorder = Recorder()
    run(Project.load(folder, "dev", {}), recorder)
    return recorder


def test_the_example_changes_two_resources_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    custom = {each.name: each for each in recorded(EXAMPLE).resources}
    retention = {
        name: each.inputs["retentionInDays"]
        for name, each in custom.items()
        if each.type == "aws:cloudwatch/logGroup:LogGroup"
    }
    assert retention.pop("api-items-logs") == 30
    assert set(retention.values()) == {14}
    memory = {
        name: each.inputs["memorySize"]
        for name, each in custom.items()
        if each.type == "aws:lambda/function:Function"
    }
    assert memory.pop("files-records-function") == 1024
    assert 1024 not in memory.values()
    # What was changed is still the component's: its place in the tree and its tags stay.
    assert custom["api-items-logs"].parent == custom["api-rotation-logs"].parent.replace(
        "::api-rotation", "::api-items"
    )
    assert custom["api-items-logs"].inputs["tags"]["ManagedBy"] == "pulumi"


def test_the_example_rejects_a_name_that_no_resource_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    for each in EXAMPLE.iterdir():
        if each.is_file():
            text = each.read_text().replace("api-items-logs", "api-items-log")
            (tmp_path / each.name).write_text(text)
    with pytest.raises(TapLocalError, match="no resource is named api-items-log"):
        recorded(tmp_path)


def test_every_route_wants_a_scope_that_the_user_pool_has(graph: Graph) -> None:
    known = {
        f"{each.inputs['identifier']}/{scope['scopeName']}"
        for each in graph.of("ResourceServer")
        for scope in each.inputs["scopes"]
    }
    routes = [each.inputs for each in graph.of("aws:apigatewayv2/route:Route")]
    wanted = {scope for each in routes for scope in each.get("authorizationScopes", [])}
    assert wanted
    assert wanted <= known


def test_the_guide_quotes_the_example() -> None:
    quoted = re.findall(
        r"```python\n(.+?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL
    )
    assert quoted
    for each in quoted:
        assert each in (EXAMPLE / "custom.py").read_text()
