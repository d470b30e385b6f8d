"""The installed package: typed, importable anywhere, the same functions; the packages of instances."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

import tap_stack
from ops import lock
from tests.environments import ROOT, UV, bare, clean, installed, output_of

KINDS = {f"machine_client_{each}": "dict[str, str]" for each in ("ids", "secrets")}
PROGRAM = (
    "from typing import assert_type",
    "from pulumi import Output",
    "from tap_stack import TapStack, TapStackArgs",
    'stack = TapStack("tap", TapStackArgs(environment_suffix="dev"))',
    *(
        f"assert_type(stack.{name}, Output[{KINDS.get(name, 'str')}] | None)"
        for name in tap_stack.OUTPUTS
    ),
    "stack.api_uri",
)
#: Of pulumi_aws nothing is in the types of outputs, and to read it takes mypy most of a minute.
MYPY = """[mypy]
strict = true
[mypy-pulumi_aws.*]
follow_imports = skip
"""
BUNDLES = """
import json, tap_stack as it
print(json.dumps([
    it.__file__,
    it.contract(),
    it.table_text(),
    it.bundle(it.api, it.open_services),
    it.bundle(it.rotate_paging_key),
    it.bundle(it.record_files, it.open_file_clients),
    it.bundle(it.take_snapshot),
    it.web_script("/tap-dev-web", "eu-west-1", "arn:secret", "db.example"),
    it.nat_script("10.0.0.0/16", "eipalloc-1", "rtb-1"),
    it.bundle(it.rollout_provider, modules=it.LAMBDA_MODULES | {"pulumi"}),
]))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which the package is installed."""
    return installed(tmp_path_factory.mktemp("installed"))


def test_every_output_of_the_installed_package_is_typed(python: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("\n".join(PROGRAM))
    (tmp_path / "mypy.ini").write_text(MYPY)
    options = ["--config-file", "mypy.ini", "--python-executable", str(python)]
    mypy = [sys.executable, "-m", "mypy", *options, "--no-error-summary", "program.py"]
    found = subprocess.run(mypy, cwd=tmp_path, env=clean(), capture_output=True, text=True)
    # mypy objects to one line alone: the name that is none.
    (complaint,) = (found.stdout + found.stderr).splitlines()
    assert complaint.startswith(f"program.py:{len(PROGRAM)}: error: ")
    assert "api_uri" in complaint


def test_the_installed_package_ships_the_same_functions(python: Path, tmp_path: Path) -> None:
    there, *installed_bundles = json.loads(output_of(python, "-c", BUNDLES, cwd=tmp_path))
    here, *bundles = json.loads(output_of(sys.executable, "-c", BUNDLES, cwd=ROOT))
    assert (Path(there).parts[-3:-1], Path(here)) == (
        ("site-packages", "tap_stack"),
        ROOT / "tap_stack.py",
    )
    assert installed_bundles == bundles


def test_the_installed_packages_are_two_names_at_the_top_level_and_a_program(
    python: Path, tmp_path: Path
) -> None:
    show = "from importlib.metadata import files; print(*files('tap-stack'), sep='\\n')"
    listed = output_of(python, "-c", show, cwd=tmp_path).split()
    names = {path.partition("/")[0].partition("-")[0] for path in listed if path[0] != "."}
    assert names == {"tap_stack", "taplocal"}
    assert [path for path in listed if path[0] == "."] == ["../../../bin/taplocal"]


def test_the_installed_local_cloud_has_all_that_it_reads(python: Path, tmp_path: Path) -> None:
    """That it deploys: tests/local/test_examples.py."""
    show = """
import importlib, pkgutil, taplocal
from taplocal.page import views, server
for each in pkgutil.walk_packages(taplocal.__path__, "taplocal."):
    if not each.name.endswith(("preload", "__main__", "server.debuggee", "web.shim")):
        importlib.import_module(each.name)
print(bool(views.section("files-dead-letters")), (views.ROOT / "openapi.yaml").exists())
"""
    assert output_of(python, "-c", show, cwd=tmp_path) == "True True\n"


def test_without_its_packages_the_command_says_how_to_install_them(tmp_path: Path) -> None:
    python = bare(tmp_path / "bare")
    options = ["--quiet", "--offline", "--no-deps", "--no-build-isolation", "--python", str(python)]
    with_hatchling = sysconfig.get_path("purelib")
    output_of(UV, "pip", "install", *options, str(ROOT), cwd=tmp_path, PYTHONPATH=with_hatchling)
    done = subprocess.run(
        [python.with_name("taplocal"), "up"],
        cwd=tmp_path, env=clean(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "typer is not installed: the local cloud needs the extra `local`" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_editable_install_is_the_file_of_the_checkout(tmp_path: Path) -> None:
    python = installed(tmp_path, "-e", str(ROOT))
    show = "import tap_stack; print(tap_stack.__file__)"
    assert output_of(python, "-c", show, cwd=tmp_path) == f"{ROOT / 'tap_stack.py'}\n"


# The packages of instances


def locked() -> dict[str, set[str]]:
    """Name and version of each package of requirements-dev.txt -> its digests."""
    text = (ROOT / "requirements-dev.txt").read_text()
    blocks = re.findall(r"^(\S+==\S+)(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: set(re.findall(r"--hash=(\S+)", rest)) for name, rest in blocks}


def test_the_instances_run_the_packages_that_the_tests_run_with() -> None:
    lines = tap_stack.text_beside("requirements-web.txt").strip().split("\n")
    for line in lines:
        name, digest = line.split(" --hash=")
        assert digest in locked().get(name, ()), f"{name} is stale: run `make lock`"
    file = tomllib.loads((ROOT / "pyproject.toml").read_text())
    web, project = set(file["dependency-groups"]["web"]), file["project"]
    assert web <= {*project["dependencies"], *project["optional-dependencies"]["local"]}
    wanted = {re.split(r"[\[>=]", each)[0] for each in web}
    assert wanted <= {line.partition("==")[0] for line in lines}


LOCK = """
[[packages]]
name = "six"
version = "1.17.0"
sdist = { hashes = { sha256 = "of the source" } }
wheels = [{ url = "six.whl", hashes = { sha256 = "of the wheel" } }]
"""


def test_the_lock_names_the_one_wheel_of_each_package() -> None:
    assert lock.packages(LOCK) == "six==1.17.0 --hash=sha256:of the wheel\n"
    with pytest.raises(ValueError, match="too many"):  # of two wheels none is the one
        lock.packages(LOCK.replace("}]", '}, { hashes = { sha256 = "x" } }]'))


def test_the_user_data_of_a_script_is_always_the_same() -> None:
    """Other bytes would replace all instances; tests/local/test_pythons.py compares the Pythons."""
    made = tap_stack.encode_user_data("#!/bin/bash\necho 'ü \"@\" \\'\n")
    assert hashlib.sha256(made.encode()).hexdigest() == (
        "41f9003ee9c2ba36d3686f80495ed586c1a3b00a9f8c6279cfe2b10e4d12046f"
    )


#: Lock -> why boto3 has another version in it.
OTHER_BOTO3 = {"requirements-checkov.txt": "checkov asks for exactly this version"}


def test_boto3_has_one_version_in_all_locks_or_a_reason() -> None:
    found = {
        path.name: set(re.findall(r"^boto(?:3|core)==(\S+)", path.read_text(), re.MULTILINE))
        for path in ROOT.glob("requirements*.txt")
    }
    ours = found["requirements-dev.txt"]
    assert {name for name, versions in found.items() if versions - ours} == OTHER_BOTO3.keys()


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*.txt")), ids=lambda x: x.name)
def test_each_lock_has_the_digests_of_its_packages_and_no_host(path: Path) -> None:
    text = path.read_text()
    packages = re.findall(r"^\S+==.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    assert packages
    assert [each for each in packages if "--hash=sha256:" not in each] == []
    assert "://" not in text


def test_make_installs_nothing_without_its_digest() -> None:
    makefile = (ROOT / "Makefile").read_text()
    installs = [line for line in makefile.splitlines() if re.search(r"\bpip install\b", line)]
    assert len(installs) == 3
    assert [line for line in installs if "--require-hashes" not in line] == []
