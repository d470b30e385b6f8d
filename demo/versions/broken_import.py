"""A bad version: an import fails when the function starts."""

import os
from typing import Any

from tap_stack import Event, Response, api

if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:  # not where `pulumi up` runs
    import botocore.nowhere as nowhere


def handler(event: Event, context: Any) -> Response:
    """Uses what no version of the SDK has."""
    nowhere.prepare(event)
    return api(event, context)
