"""The API and the file pipeline, with two of their resources changed from outside tap_stack.py.

README.md says how it is deployed, and what it costs.
"""

import pulumi

from tap_stack import TapStack, TapStackArgs

#: Logical name, as `pulumi stack --show-urns` shows it -> inputs in place of the stack's own.
CHANGES = {
    "api-items-logs": {"retention_in_days": 30},
    "files-records-function": {"memory_size": 1024},
}
changed = set()


def change(
    args: pulumi.ResourceTransformationArgs,
) -> pulumi.ResourceTransformationResult | None:
    """Called for every descendant of the stack before it is registered; None leaves it as it is."""
    if args.name not in CHANGES:
        return None
    changed.add(args.name)
    return pulumi.ResourceTransformationResult({**args.props, **CHANGES[args.name]}, args.opts)


stack = TapStack(
    "tap",
    TapStackArgs(environment_suffix="dev", project="custom", systems=["api", "files"]),
    pulumi.ResourceOptions(transformations=[change]),
)
if unknown := CHANGES.keys() - changed:
    raise pulumi.RunError(f"no resource is named {', '.join(sorted(unknown))}")
for output, value in stack.outputs.items():
    pulumi.export(output, value)
