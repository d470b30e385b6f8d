"""Two environments in one account: a stack each, whose name gives its resources theirs.

README.md says how it is deployed, and what it costs.
"""

import pulumi

from tap_stack import TapStack, TapStackArgs

stack = TapStack("tap", TapStackArgs.load())
for output, value in stack.outputs.items():
    pulumi.export(output, value)
