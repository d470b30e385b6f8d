"""Components one by one: a network, a database and a bastion, and no web tier.

README.md says how it is deployed, and what it costs.
"""

import pulumi

from tap_stack import Alerts, Bastion, Database, Encryption, Network, TapStackArgs

args = TapStackArgs(
    environment_suffix="dev", project="shop", vpc_cidr="10.9.0.0/20", systems=["web"]
)
encryption = Encryption("encryption", args)
key = encryption.key
alerts = Alerts("alerts", args, key)
network = Network("network", args, key)
database = Database("database", args, key, topic_arn=alerts.topic.arn, network=network)
bastion = Bastion("bastion", args, key, network=network)

pulumi.export("vpc_id", network.vpc.id)
pulumi.export("database_secret_arn", database.secret_arn)
