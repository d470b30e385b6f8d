"""What the api function runs: the handler of tap_stack.py, and one more header in its responses.

Shipped are `with_hsts`, what that uses of this file, and what this file imports from tap_stack.
"""

from typing import Any

from tap_stack import Event, Response, api

HSTS = "max-age=63072000"  # two years, in which a browser does not use http for this host


def with_hsts(event: Event, context: Any) -> Response:
    """Lambda handler of the HTTP API: responses say that the host is reached by https only."""
    response = api(event, context)
    response["headers"]["strict-transport-security"] = HSTS
    return response
