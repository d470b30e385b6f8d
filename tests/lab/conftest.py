"""Machines that run what the launch templates hold, in a VPC of network namespaces."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import image
from tests.lab.vpc import sh

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the lab where it cannot run; the first test builds the image."""
    own = [each for each in items if HERE in each.path.parents]
    mark = pytest.mark.timeout(900)
    if own and (reason := image.why_not()):
        mark = pytest.mark.skip(reason=reason)
    for each in own:
        each.add_marker(mark)


@pytest.fixture(scope="session")
def built() -> Path:
    """The root file system of all machines."""
    return image.build()


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A folder for the machines of a file, in memory; short, as sockets are below it."""
    folder = Path(tempfile.mkdtemp(prefix="lab"))
    sh("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
    yield folder
    sh("umount", folder)
    folder.rmdir()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the figures that tests recorded: docs/architecture.md has a table of them."""
    for report in terminalreporter.getreports("passed"):
        for what, figure in report.user_properties:
            terminalreporter.line(f"{report.nodeid}: {what} {figure}")
