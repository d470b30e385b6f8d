"""A good version: one more header in each response."""

from typing import Any

from tap_stack import Event, Response, api

RELEASE = "$number"


def handler(event: Event, context: Any) -> Response:
    """Responds as the API of tap_stack.py does, and says which release it is."""
    response = api(event, context)
    response["headers"]["x-release"] = RELEASE
    return response
