"""Pulumi.yaml is a template: `pulumi new` of the repository makes a project of any name.

What Pulumi's CLI does was read in its source: pkg/cmd/pulumi/templates and project/newcmd.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from tap_stack import TapStackArgs
from taplocal import session
from taplocal.errors import TapLocalError
from taplocal.project import Project
from taplocal.session import Session
from tests.local.conftest import ROOT

TEMPLATE: dict[str, Any] = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["template"]
PLACEHOLDERS = tuple(f"${{{name}}}" for name in ("PROJECT", "DESCRIPTION"))
#: What no clone has, and the folder of all versions of the demonstration and the tests.
LEFT = shutil.ignore_patterns(".*", "__pycache__", "node_modules", "tests", "benchmarks")


def made(folder: Path, name: str, answers: Mapping[str, str]) -> Path:
    """What `pulumi new --stack dev` leaves in a folder, after these answers to its questions."""
    shutil.copytree(ROOT, folder, ignore=LEFT)
    for path in (each for each in folder.rglob("*") if each.is_file()):
        if any(each.encode() in path.read_bytes() for each in PLACEHOLDERS):
            path.write_text(path.read_text().replace(PLACEHOLDERS[0], name))
    project = yaml.safe_load((folder / "Pulumi.yaml").read_text())
    del project["template"]
    (folder / "Pulumi.yaml").write_text(yaml.safe_dump({**project, "name": name}))
    stack = yaml.safe_load((folder / "Pulumi.dev.yaml").read_text())
    asked = {key: answers.get(key, x.get("default", "")) for key, x in TEMPLATE["config"].items()}
    saved = {key if ":" in key else f"{name}:{key}": x for key, x in asked.items() if x}
    (folder / "Pulumi.dev.yaml").write_text(yaml.safe_dump({"config": stack["config"] | saved}))
    return folder


def test_the_manifest_has_what_pulumi_reads() -> None:
    """The fields of ProjectTemplate and of ProjectTemplateConfigValue; defaults are texts."""
    assert TEMPLATE.keys() <= {"displayName", "description", "quickstart", "config", "metadata"}
    for key, value in TEMPLATE["config"].items():
        assert key == "aws:region" or key in {each.name for each in fields(TapStackArgs)}
        assert value.keys() <= {"description", "default", "secret"}
        assert isinstance(value["description"], str)
        assert isinstance(value.get("default", ""), str)


def test_no_file_has_a_placeholder_by_chance() -> None:
    tracked = ("*.md", "*.py", "*.yaml", "*.yml", "*.toml", "*.sh", "*.json", "Makefile", ".ci/*")
    paths = [path for each in tracked for path in ROOT.rglob(each) if ".venv" not in path.parts]
    assert len(paths) > 300
    found = [x for x in paths if x.is_file() and any(p in x.read_text() for p in PLACEHOLDERS)]
    assert found == []


def test_a_project_of_another_name_is_deployed(
    deployed: Session, data: Path, tmp_path: Path
) -> None:
    answers = {"project": "shop", "systems": "api", "alarm_emails": "ann@acme.io,bob@acme.io"}
    folder = made(tmp_path / "shop-platform", "shop-platform", answers)
    project = Project.load(folder, "dev")
    assert (project.name, project.config["shop-platform:project"]) == ("shop-platform", "shop")
    options: dict[str, Any] = {"say": lambda _: None, "report": lambda _: None}
    opened, _ = session.up(folder, "dev", emulator=str(data), **options)
    try:
        assert opened.outputs["table_name"] == "shop-items-dev"
        resources = opened.state.resources.values()
        mails = {x.inputs["endpoint"] for x in resources if "Subscription" in x.type}
        assert mails == {"ann@acme.io", "bob@acme.io"}
        assert all(
            urn.startswith("urn:pulumi:dev::shop-platform::") for urn in opened.state.resources
        )
    finally:
        session.down(folder, None, report=lambda _: None)


def test_a_wrong_setting_of_such_a_project_is_named_without_the_project(tmp_path: Path) -> None:
    folder = made(tmp_path / "new", "new", {"project": "My Shop"})
    with pytest.raises(TapLocalError, match=r'project must be 2 to 22 .*, not "My Shop"'):
        session.up(folder, "dev", say=lambda _: None, report=lambda _: None)
    assert not (folder / session.FOLDER).exists()
