"""In CI a skip is a failure unless its reason is listed: a small suite of its own with our conftest."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).parents[1] / "conftest.py"
LISTED, UNLISTED = "the moon is full", "there is no telescope"
CONTRIBUTING = f"""# Contributing

## Skipped tests

| reason | why CI may skip it |
| --- | --- |
| {LISTED} | it is so once a month |

## Other

| table | column |
| --- | --- |
| {UNLISTED} | stands in another section |
"""
#: File -> a test that is skipped in one of the ways that pytest knows.
SKIPS = {
    "by_mark": "@pytest.mark.skip(reason={0!r})\ndef test_it(): assert False",
    "by_condition": "@pytest.mark.skipif(True, reason={0!r})\ndef test_it(): assert False",
    "by_call": "def test_it(): pytest.skip({0!r})",
    "by_fixture": "@pytest.fixture\ndef it(): pytest.skip({0!r})\ndef test_it(it): pass",
    "as_a_file": "pytest.skip({0!r}, allow_module_level=True)",
}
EXPECTED_FAILURE = "@pytest.mark.xfail\ndef test_it(): assert False"


def run(folder: Path, reason: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the suite, skipped for a reason, in a process of its own."""
    (folder / "tests").mkdir()
    shutil.copy(CONFTEST, folder / "tests")
    (folder / "CONTRIBUTING.md").write_text(CONTRIBUTING)
    for name, test in {**SKIPS, "expected": EXPECTED_FAILURE}.items():
        text = f"import pytest\n{test.format(reason)}\n"
        (folder / "tests" / f"test_{name}.py").write_text(text)
    others = {
        key: value for key, value in os.environ.items() if key not in ("CI", "PYTEST_ADDOPTS")
    }
    options = ["-p", "no:cacheprovider", "--continue-on-collection-errors", "tests"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=folder,
        env={**others, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_unlisted_skip_fails_in_ci_and_says_what_to_do(tmp_path: Path) -> None:
    completed = run(tmp_path, UNLISTED, CI="true")
    assert completed.returncode == 1
    failed = re.findall(r"^(?:FAILED|ERROR) tests/test_(\w+)\.py", completed.stdout, re.MULTILINE)
    assert set(failed) == set(SKIPS), completed.stdout
    assert f"Skipped in CI: {UNLISTED}\n" in completed.stdout
    assert "list the reason in CONTRIBUTING.md" in completed.stdout


def test_a_listed_skip_is_one_in_ci_too(tmp_path: Path) -> None:
    completed = run(tmp_path, LISTED, CI="true")
    assert (completed.returncode, "5 skipped, 1 xfailed" in completed.stdout) == (0, True), (
        completed.stdout
    )


def test_without_ci_a_test_may_be_skipped(tmp_path: Path) -> None:
    completed = run(tmp_path, UNLISTED)
    assert (completed.returncode, "5 skipped, 1 xfailed" in completed.stdout) == (0, True), (
        completed.stdout
    )
