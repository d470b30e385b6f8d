"""In CI a skipped test is a failure, unless CONTRIBUTING.md lists its reason."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

# Tests never assert a duration, and this machine may be busy.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

# A process of this user's would outlive the tests.
os.environ["TAPLOCAL_READY"] = "0"

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"


def listed_reasons() -> set[str]:
    """The first column of the table under "Skipped tests"."""
    section = CONTRIBUTING.read_text().partition("\n## Skipped tests\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| (.+?) \|", section, re.MULTILINE)[2:])  # after heading and rule


def fail_unlisted_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turns a skip for a reason that is not listed into a failure."""
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    *_, reason = report.longrepr if isinstance(report.longrepr, tuple) else (report.longreprtext,)
    reason = str(reason).removeprefix("Skipped: ")
    if reason not in listed_reasons():
        report.outcome = "failed"
        report.longrepr = (
            f"Skipped in CI: {reason}\nLet .ci/run install what the test needs, or list the reason "
            'in CONTRIBUTING.md under "Skipped tests".'
        )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """For skips of a test, by a mark or while it runs."""
    report = yield
    fail_unlisted_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """For skips of a whole file."""
    report = yield
    fail_unlisted_skip(report)
    return report
