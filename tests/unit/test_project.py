"""The configuration of a stack, read as the Pulumi CLI reads it, and handed to the program."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from taplocal.errors import TapLocalError
from taplocal.program import run
from taplocal.project import Project
from taplocal.recorder import Recorder
from tests.conftest import LONGEST
from tests.environments import ROOT

PROJECT = """
name: shop
runtime: python
main: shop.py
config:
  aws:region: eu-west-1
  size:
    type: integer
    default: 5
  color:
    value: red
  owner:
    type: string
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with the stacks dev and staging."""
    (tmp_path / "Pulumi.yaml").write_text(PROJECT)
    (tmp_path / "Pulumi.dev.yaml").write_text("config: {}\n")
    (tmp_path / "Pulumi.staging.yaml").write_text("config:\n  shop:color: blue\n")
    return tmp_path


def command(*arguments: str, cwd: Path, **variables: str) -> str:
    """What the command line prints in another folder than the checkout's."""
    program = Path(__file__).parents[2] / "ops/taplocal"
    done = subprocess.run(
        [program, *arguments],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_commands_run_in_a_folder_below_the_program(folder: Path) -> None:
    (folder / ".taplocal/env").mkdir(parents=True)
    (folder / ".taplocal/env/staging.json").touch()
    (folder / "docs/more").mkdir(parents=True)
    for below in ("docs", "docs/more"):
        shown = json.loads(command("status", "--json", cwd=folder / below))
        assert shown["environments"] == ["staging"]


def test_a_shell_completes_commands_and_environments(tmp_path: Path) -> None:
    shell = {"_TAPLOCAL_COMPLETE": "complete_bash"}
    words = {"COMP_WORDS": "taplocal sta", "COMP_CWORD": "1"}
    assert command(cwd=tmp_path, **shell, **words).split() == ["status"]
    words = {"COMP_WORDS": "taplocal up --env ", "COMP_CWORD": "3"}
    assert command(cwd=tmp_path, **shell, **words).split() == ["dev", "staging", "prod"]


def config_of(folder: Path, stack: str = "dev", **overrides: str) -> dict[str, str]:
    """The configuration without its namespace."""
    config = Project.load(folder, stack, overrides).config
    return {key.removeprefix("shop:"): value for key, value in config.items()}


def test_defaults_and_values_of_typed_declarations_are_read(folder: Path) -> None:
    assert config_of(folder) == {"aws:region": "eu-west-1", "size": "5", "color": "red"}
    assert Project.load(folder, "dev").region == "eu-west-1"


def test_an_override_wins_over_the_stack_file_and_that_over_the_project_file(folder: Path) -> None:
    assert config_of(folder, "staging")["color"] == "blue"
    assert config_of(folder, "staging", color="green")["color"] == "green"


def test_a_setting_that_is_not_declared_reaches_the_program(folder: Path) -> None:
    assert config_of(folder, sice="6")["sice"] == "6"


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("true", "true"),
        ("007", "007"),
        ("1.50", "1.50"),
        ("2026-01-01", "2026-01-01"),
        ("'007'", "007"),
        ("", ""),
        ("[1, true, a]", '[1, true, "a"]'),
        ("{a: {b: 1}}", '{"a": {"b": 1}}'),
    ],
)
def test_a_value_is_handed_on_as_the_engine_does(folder: Path, written: str, text: str) -> None:
    (folder / "Pulumi.dev.yaml").write_text(f"config:\n  shop:size: {written}\n")
    assert config_of(folder)["size"] == text


def test_a_stack_with_a_name_behind_a_known_one_has_only_the_projects_values(folder: Path) -> None:
    project = Project.load(folder, "staging-eu")
    assert project.stack == "staging-eu"
    assert project.config == Project.load(folder, "dev").config


def test_such_a_stack_may_have_a_file_of_its_own(folder: Path) -> None:
    (folder / "Pulumi.staging-eu.yaml").write_text("config:\n  shop:color: white\n")
    assert config_of(folder, "staging-eu")["color"] == "white"


def test_without_any_stack_none_is_proposed(folder: Path) -> None:
    for each in folder.glob("Pulumi.*.yaml"):
        each.unlink()
    with pytest.raises(TapLocalError, match=r"no Pulumi.dev.yaml in .*: there is no other either$"):
        Project.load(folder, "dev")


@pytest.mark.parametrize("stack", ["prdo", "stagin-eu", "prdo-dev"])
def test_an_unknown_environment_names_those_there_are(folder: Path, stack: str) -> None:
    expected = (
        f"no Pulumi.{stack}.yaml in .*: use one of dev, staging, "
        "or one of them with a name behind it, as in dev-jane"
    )
    with pytest.raises(TapLocalError, match=expected):
        Project.load(folder, stack)


@pytest.mark.parametrize("stack", ["", "dev-/../../x", "dev x"])
def test_a_name_that_pulumi_would_reject_is_rejected(folder: Path, stack: str) -> None:
    with pytest.raises(TapLocalError, match=f"must be letters.*, not {json.dumps(stack)}"):
        Project.load(folder, stack)


@pytest.mark.parametrize(
    ("text", "message"),
    [("name: shop", "must have the key main"), ("{", "not valid YAML"), ("3", "not valid YAML")],
)
def test_a_broken_project_file_is_an_error(folder: Path, text: str, message: str) -> None:
    (folder / "Pulumi.yaml").write_text(text)
    with pytest.raises(TapLocalError, match=message):
        Project.load(folder, "dev")


def test_a_folder_without_a_project_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TapLocalError, match=r"no Pulumi\.yaml"):
        Project.load(tmp_path, "dev")


def test_the_program_sees_its_stack_and_configuration(folder: Path) -> None:
    (folder / "shop.py").write_text(
        "import pulumi\n"
        "pulumi.export('stack', pulumi.get_stack())\n"
        "pulumi.export('project', pulumi.get_project())\n"
        "pulumi.export('size', pulumi.Config().require_int('size'))\n"
        "pulumi.export('region', pulumi.Config('aws').require('region'))\n"
    )
    outputs = run(Project.load(folder, "staging-eu", {"size": "6"}), Recorder())
    assert outputs == {"stack": "staging-eu", "project": "shop", "size": 6, "region": "eu-west-1"}


def test_the_files_of_tests_that_begin_first_are_there() -> None:
    assert all((ROOT / "tests" / name).is_file() for name in LONGEST)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("size = 1\n\nsize / 0\n", r"ZeroDivisionError: division by zero \(shop\.py:3\)$"),
        ("size = 1\nif\n", r"SyntaxError: invalid syntax \(shop\.py:2\)$"),
    ],
)
def test_a_failure_of_the_program_names_its_line(folder: Path, program: str, said: str) -> None:
    (folder / "shop.py").write_text(program)
    with pytest.raises(TapLocalError, match=said):
        run(Project.load(folder, "dev", {"shop:owner": "ann"}), Recorder())
