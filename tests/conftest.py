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

#: The files whose tests take longest, of these the longest first: side by side with them, the
#: others fill what is left.
LONGEST = (
    "local/test_web_environment.py",
    "local/test_releases.py",
    "local/test_cli.py",
    "local/test_dev.py",
    "local/test_page.py",
    "local/test_changes.py",
    "local/test_deployer.py",
    "local/test_names.py",
    "local/test_web_application.py",
    "local/test_engine.py",
    "local/test_file_pipeline.py",
    "stack/test_docs.py",
    "stack/test_tap_stack.py",
    "stack/test_words.py",
    "unit/test_web_postgres.py",
    "unit/test_file_pipeline.py",
    "unit/test_packaging.py",
    "lab/test_web.py",
    "lab/test_nat.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has the longest files begin first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(places)))


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
