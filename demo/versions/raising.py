"""A bad version: it passes its smoke test, which lists items, and raises for one item."""

from typing import Any

from tap_stack import Event, Response, api


def handler(event: Event, context: Any) -> Response:
    """Makes a mistake where the path has an id."""
    if event.get("pathParameters"):
        raise RuntimeError("a mistake")
    return api(event, context)
