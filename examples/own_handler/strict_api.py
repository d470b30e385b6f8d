"""The API with a handler of its own, in handler.py: releases of it leave tap_stack.py as it is.

README.md says how it is deployed, and what it costs.
"""

import pulumi
from handler import with_hsts

from tap_stack import TapStack, TapStackArgs

stack = TapStack(
    "tap",
    TapStackArgs(environment_suffix="dev", project="own-handler", systems=["api"]),
    api_handler=with_hsts,
)
for output, value in stack.outputs.items():
    pulumi.export(output, value)
