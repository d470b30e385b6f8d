"""The API's local tests once more, on a stack whose functions use the SDK: the setting `api_client`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taplocal import session
from taplocal.session import Session
from tests.local.conftest import ROOT
from tests.local.test_items import *  # noqa: F403 - its tests, with the fixtures below


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The dev environment with the SDK, in a local cloud of its own."""
    folder: Path = tmp_path_factory.mktemp("sdk")
    config = {"api_client": "sdk"}
    try:
        yield session.up(
            ROOT, "dev", folder=folder, config=config, say=lambda _: None, report=lambda _: None
        )[0]
    finally:
        session.down(ROOT, None, folder=folder, report=lambda _: None)
