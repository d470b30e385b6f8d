"""One component alone: the API under another name, with its key, its user pool, and no monitoring.

README.md says how it is deployed, and what it costs.
"""

import pulumi

from tap_stack import Encryption, Identity, ServerlessApi, TapStackArgs

args = TapStackArgs(
    environment_suffix="dev", project="orders", table_name="orders", throttle_rate=10
)
encryption = Encryption("encryption", args)
identity = Identity("identity", args)
api = ServerlessApi(
    "orders", args, encryption.key, issuer=identity.issuer, audience=identity.audience
)

pulumi.export("api_url", api.url)
pulumi.export("user_pool_id", identity.pool.id)
pulumi.export("people_client_id", identity.people.id)
pulumi.export("machine_client_ids", {x: each.id for x, each in identity.machines.items()})
