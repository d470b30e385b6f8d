"""A bad version: it answers the requests of its release, and raises for users' items."""

from typing import Any

from tap_stack import PROBE_ID, Event, Response, api


def handler(event: Event, context: Any) -> Response:
    """Makes a mistake where the path has an id, unless the release asks."""
    if event.get("pathParameters") and event["requestContext"]["requestId"] != PROBE_ID:
        raise RuntimeError("a mistake")
    return api(event, context)
