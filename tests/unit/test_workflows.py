"""GitHub's workflows: pinned, with no more rights than they need, and only of our own commands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bootstrap.account import DEPLOY_SECONDS, SESSION_SECONDS, BootstrapArgs
from tap_stack import REFRESH_SECONDS

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
#: Workflow -> the role that it assumes, and the claim of its token that bootstrap trusts.
ROLES = {"preview": "plan", "deploy-one": "deploy", "drift": "drift"}


def jobs(path: Path) -> dict[str, Any]:
    """The jobs of a workflow."""
    found: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_each_action_is_pinned_and_no_text_of_others_is_run(path: Path) -> None:
    for job in jobs(path).values():
        for step in job.get("steps", []):
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), step
            # An expression in a script is pasted into it before the shell reads it.
            assert "${{" not in step.get("run", ""), step
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_each_job_says_its_rights_and_has_an_end(path: Path) -> None:
    text = yaml.safe_load(path.read_text())
    assert text["permissions"] in ({}, {"contents": "read"})
    for name, job in jobs(path).items():
        assert "uses" in job or "timeout-minutes" in job, name
        rights = job.get("permissions", text["permissions"])
        assert rights.get("contents") == "read"
        assert set(rights.values()) <= {"read", "write"}
        needs_token = any("configure-aws" in each.get("uses", "") for each in job.get("steps", []))
        assert ("id-token" in rights) == (needs_token or "uses" in job), name


@pytest.mark.parametrize("name", ROLES)
def test_the_role_is_one_that_bootstrap_makes_for_each_environment(name: str) -> None:
    ((_, job),) = [
        each
        for each in jobs(ROOT / f".github/workflows/{name}.yml").items()
        if each[0] not in ("scan", "comment")
    ]
    (assume,) = [each for each in job["steps"] if "configure-aws" in each.get("uses", "")]
    environment = "inputs.environment" if name == "deploy-one" else "matrix.environment"
    project = "${{ vars.PROJECT || 'tap-stack' }}"  # a copy has a name of its own
    expected = f"role/{project}-${{{{ {environment} }}}}-{ROLES[name]}"
    assert assume["with"]["role-to-assume"].endswith(expected)
    environments = list(BootstrapArgs(repository="a/b").environments)
    if name == "deploy-one":
        assert job["environment"] == "${{ inputs.environment }}"
        deploy = jobs(ROOT / ".github/workflows/deploy.yml")
        assert list(deploy) == environments
        assert [each.get("needs") for each in deploy.values()] == [None, *environments[:-1]]
    else:
        assert job["strategy"]["matrix"]["environment"] == environments
        assert "environment" not in job  # whose token would name it instead


@pytest.mark.parametrize("name", ROLES)
def test_the_keys_of_a_role_live_as_long_as_its_job(name: str) -> None:
    for job in jobs(ROOT / f".github/workflows/{name}.yml").values():
        for step in (x for x in job["steps"] if "configure-aws" in x.get("uses", "")):
            asked = step["with"].get("role-duration-seconds", 3_600)  # the action's default
            longest = DEPLOY_SECONDS if name == "deploy-one" else SESSION_SECONDS
            assert job["timeout-minutes"] * 60 <= asked <= longest
    if name == "deploy-one":  # a rollout, and another that takes it back
        assert 2 * REFRESH_SECONDS < DEPLOY_SECONDS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_each_target_of_make_exists(path: Path) -> None:
    runs = [step.get("run", "") for job in jobs(path).values() for step in job.get("steps", [])]
    for target in re.findall(r"\bmake (?:--silent )?([a-z-]+)", "\n".join(runs)):
        assert target in TARGETS


def test_a_label_that_approves_a_cost_starts_the_preview_again() -> None:
    text = yaml.safe_load((ROOT / ".github/workflows/preview.yml").read_text())
    events = text[True]["pull_request"]  # YAML reads "on" as a truth value
    assert events["types"] == ["opened", "synchronize", "reopened", "labeled"]


def test_one_job_writes_what_the_others_found_and_installs_nothing() -> None:
    found = jobs(ROOT / ".github/workflows/preview.yml")
    comment = found["comment"]
    assert comment["needs"] == ["preview", "scan"]
    assert comment["permissions"] == {"contents": "read", "pull-requests": "write"}
    assert [step.get("run") for step in comment["steps"]] == [None, "make comment"]
    assert list(found["preview"]["outputs"]) == list(BootstrapArgs(repository="a/b").environments)
    assert list(found["scan"]["outputs"]) == ["scan"]
    assert found["scan"]["permissions"] == {"contents": "read"}


@pytest.mark.parametrize(("job", "output"), [("preview", "prod"), ("scan", "scan")])
@pytest.mark.parametrize("code", [0, 1])
def test_what_is_found_is_an_output_and_fails_the_job_too(
    tmp_path: Path, job: str, output: str, code: int
) -> None:
    steps = jobs(ROOT / ".github/workflows/preview.yml")[job]["steps"]
    (step,) = [each for each in steps if "id" in each]
    make = tmp_path / "make"
    make.write_text(f"#!/bin/bash\necho '| one |'\necho '| two |'\nexit {code}\n")
    make.chmod(0o755)
    path, written = f"{tmp_path}:/usr/bin:/bin", tmp_path / "output"
    variables = {"PATH": path, "GITHUB_OUTPUT": str(written), "ENVIRONMENT": "prod"}
    command = ["bash", "-e", "-c", step["run"]]  # as GitHub runs a step
    done = subprocess.run(command, env={**variables, "BASE": "x", "APPROVED": ""}, check=False)
    assert done.returncode == code
    name, *lines, end = written.read_text().splitlines()
    assert (name.partition("<<")[::2], lines) == ((output, end), ["| one |", "| two |"])


@pytest.mark.parametrize(
    ("outputs", "code", "walked"),
    [
        (
            '{"api_url": "https://api.tap.dev", "key_arn": "arn"}',
            0,
            "smoke URL=https://api.tap.dev",
        ),
        ('{"key_arn": "arn"}', 0, ""),  # a project without the system api
        ("", 1, ""),
    ],
)
def test_an_api_is_walked_through_if_there_is_one(
    tmp_path: Path, outputs: str, code: int, walked: str
) -> None:
    step = jobs(ROOT / ".github/workflows/deploy-one.yml")["deploy"]["steps"][-1]
    called = tmp_path / "called"
    called.write_text("")
    programs = {"make": f"echo $@ > {called}", "pulumi": f"echo '{outputs}'; exit {code}"}
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin"
    variables = {"PATH": path, "ENVIRONMENT": "dev"}
    done = subprocess.run(["bash", "-e", "-c", step["run"]], env=variables, check=False)
    assert (done.returncode, called.read_text().strip()) == (code, walked)
