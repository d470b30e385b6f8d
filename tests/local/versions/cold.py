"""A bad version: it starts on demand, and not where environments are initialized in advance."""

import os
from typing import Any

from tap_stack import Event, Handler, Response, api


def started(handler: Handler) -> Handler:
    """The handler, or an error in the init phase."""
    if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "provisioned-concurrency":
        raise RuntimeError("not in advance")
    return handler


HANDLER = started(api)


def handler(event: Event, context: Any) -> Response:
    """Responds as the API of tap_stack.py does."""
    response: Response = HANDLER(event, context)
    return response
