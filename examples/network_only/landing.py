"""One component alone: a network, with its key, that instances and functions of your own use.

README.md says how it is deployed, and what it costs.
"""

import pulumi

from tap_stack import Encryption, Network, TapStackArgs

args = TapStackArgs(
    environment_suffix="dev",
    project="landing",
    systems=["web"],
    vpc_cidr="10.20.0.0/16",
    nat="single",
)
encryption = Encryption("encryption", args)
network = Network("network", args, encryption.key)

pulumi.export("vpc_id", network.vpc.id)
for tier, subnets in network.subnets.items():
    pulumi.export(f"{tier}_subnet_ids", [each.id for each in subnets])
