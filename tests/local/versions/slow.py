"""A bad version: it passes its smoke test, which lists items, and is slow for one item."""

import time
from typing import Any

from tap_stack import Event, Response, api


def handler(event: Event, context: Any) -> Response:
    """Takes longer than a release may where the path has an id."""
    if event.get("pathParameters"):
        time.sleep(2.3)
    return api(event, context)
