"""The stack files belong to the user: the program reads them, and no test or document does."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import tap_stack
from cost.estimate import with_defaults
from taplocal.program import run
from taplocal.project import Project
from taplocal.recorder import Recorder
from tests.stack.conftest import ENVIRONMENTS, ROOT

#: What the README, docs/settings.md and docs/deploy.md tell a user to set.
CHOSEN = {
    "aws:region": "eu-north-1",
    "tap-stack:domain_name": "app.your-company.com",
    "tap-stack:api_domain_name": "api.your-company.com",
    "tap-stack:hosted_zone_id": "Z0123456789ABC",
    "tap-stack:alarm_emails": ["you@your-company.com"],
    "tap-stack:callback_urls": ["https://app.your-company.com/callback"],
    "tap-stack:cors_origins": ["https://app.your-company.com"],
    "tap-stack:throttle_rate": "200",
    "tap-stack:systems": "api,files,web",
    "tap-stack:tags": {"Team": "payments"},
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The program and its project files, with the stack files of a user."""
    beside = (
        "content_types.py",
        "content_types.txt",
        "http_connection.py",
        "openapi.yaml",
        "requirements-web.txt",
        "Pulumi.yaml",
    )
    for name in ("tap_stack.py", *beside):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("queries", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for env in ENVIRONMENTS:
        stack = {"encryptionsalt": "v1:salt", "config": CHOSEN}
        (tmp_path / f"Pulumi.{env}.yaml").write_text(yaml.safe_dump(stack))
    return tmp_path


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_what_a_user_sets_is_deployed(checkout: Path, env: str) -> None:
    project = Project.load(checkout, env)
    recorder = Recorder()
    outputs = run(project, recorder)
    assert project.region == "eu-north-1"
    found = {each.name: each.inputs for each in recorder.resources}
    mails = [x["endpoint"] for x in found.values() if x.get("protocol") == "email"]
    assert mails == 2 * ["you@your-company.com"]  # of alerts, and of pages
    assert outputs["web_url"].endswith("//app.your-company.com")
    assert outputs["api_url"] == "https://api.your-company.com"
    assert found["api-items"]["tags"]["Team"] == "payments"


@pytest.mark.parametrize("env", ["dev", "prod"])
def test_the_readme_sets_all_that_aws_needs(env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pulumi.Config", lambda _: {})  # no endpoints: AWS
    _, _, block = (ROOT / "README.md").read_text().partition(f"pulumi stack init {env}\n")
    line = r"    pulumi config set (?:--path ')?(\w+)(\[0\])?'? (\S+)\n"
    found = re.findall(line, block.partition("pulumi up\n")[0])
    values: dict[str, Any] = {name: [value] if in_list else value for name, in_list, value in found}
    tap_stack.reject_placeholders(tap_stack.TapStackArgs(environment_suffix=env, **values))
    assert values["alarm_emails"]


def test_tests_and_documents_do_not_depend_on_what_a_user_sets(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registered(checkout, monkeypatch) == registered(ROOT, monkeypatch)


def registered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the tests of the graph and the estimate see of a checkout."""
    monkeypatch.setattr("cost.estimate.ROOT", folder)
    recorder = Recorder()
    run(with_defaults("prod"), recorder)
    return {each.name: each.inputs for each in recorder.resources if "code" not in each.inputs}


def test_no_test_of_the_graph_loads_the_stack_files() -> None:
    for path in [*ROOT.glob("tests/stack/*.py"), *ROOT.glob("docs/*.py"), ROOT / "cost/tables.py"]:
        if path != Path(__file__):
            assert "Project.load(ROOT," not in path.read_text(), path.name
