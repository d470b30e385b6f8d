"""One component alone: the file pipeline, with its key and alarms on a topic, and no API.

README.md says how it is deployed, and what it costs.
"""

import pulumi

from tap_stack import Alerts, Encryption, FilePipeline, Monitoring, TapStackArgs

args = TapStackArgs(environment_suffix="dev", project="drop-box", files_table_capacity=20)
encryption = Encryption("encryption", args)
alerts = Alerts("alerts", args, encryption.key)
files = FilePipeline("files", args, encryption.key)
Monitoring("monitoring", args, components=[files], topic_arn=alerts.topic.arn)

pulumi.export("files_bucket_name", files.uploads.bucket.bucket)
pulumi.export("files_table_name", files.table.name)
pulumi.export("files_function_name", files.function.function.name)
pulumi.export("files_dead_letters_url", files.function.dead_letters_url)
