"""What the handlers of the local cloud's resource types share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taplocal.errors import TapLocalError
from taplocal.resources import base


def missing(*reasons: str) -> Callable[[], str]:
    """A look that says these reasons in turn."""
    said = iter(reasons)
    return lambda: next(said)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LOOK_SECONDS", 0)


def test_what_is_missing_is_waited_for() -> None:
    look = missing("it starts", "it starts", "", "never asked")
    base.settled(look, 60)
    assert look() == "never asked"


def test_what_is_missing_for_too_long_is_the_error() -> None:
    with pytest.raises(TapLocalError, match=r"^it starts$"):
        base.settled(lambda: "it starts", 0)
