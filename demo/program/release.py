"""The stack of tap_stack.py with another handler of the API: a file of demo/versions, as version.py."""

import pulumi
from version import handler  # type: ignore[import-not-found]

from tap_stack import TapStack, TapStackArgs

stack = TapStack("tap", TapStackArgs.load(), api_handler=handler)
for output, value in stack.outputs.items():
    pulumi.export(output, value)
