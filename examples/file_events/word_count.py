"""A consumer of the files' events: a rule, a function (counter.py) and a table of its own.

README.md says how it is deployed, and what it costs.
"""

import pulumi
import pulumi_aws as aws
from counter import count_words
from pulumi import Output, ResourceOptions

from tap_stack import (
    TABLE_KEY_USE,
    Alerts,
    Canary,
    Code,
    Encryption,
    FilePipeline,
    Function,
    Monitoring,
    TapStackArgs,
    allow,
    tagged,
)

args = TapStackArgs(
    environment_suffix="dev", project="word-count", files_table_capacity=20, files_events=True
)
encryption = Encryption("encryption", args)
alerts = Alerts("alerts", args, encryption.key)
files = FilePipeline("files", args, encryption.key)
bucket = files.uploads.bucket
options = tagged({**args.all_tags(), "Component": "words"})

table = aws.dynamodb.Table(
    "words-table",
    name=args.name("words"),
    billing_mode="PAY_PER_REQUEST",
    hash_key="id",
    range_key="version_id",
    attributes=[{"name": "id", "type": "S"}, {"name": "version_id", "type": "S"}],
    server_side_encryption={"enabled": True, "kms_key_arn": encryption.key.arn},
    opts=options,
)
function = Function(
    "words",
    args,
    encryption.key,
    component="words",
    code=Code(
        handler=count_words,
        environment={"WORDS_TABLE_NAME": table.name},
        timeout_seconds=30,
    ),
    canary=Canary(probes=[({"detail-type": "Probe", "detail": {}}, None)]),  # which is ignored
    statements=[
        allow("s3:GetObjectVersion", on=Output.concat(bucket.arn, "/*")),
        allow("dynamodb:PutItem", on=table.arn),
        encryption.key_use("dynamodb", *TABLE_KEY_USE),
    ],
    max_event_age_hours=6,
)
rule = aws.cloudwatch.EventRule(
    "words-rule",
    name=args.name("words"),
    description="Texts that are recorded, and deleted for good",
    event_pattern=Output.json_dumps(
        {
            "source": [args.project],
            "detail-type": ["FileRecorded", "FileDeleted"],
            "detail": {
                "bucket": [bucket.bucket],  # one account has several environments
                "record": [{"prefix": "version#"}],
                "content_type": [{"prefix": "text/"}],
            },
        }
    ),
    opts=options,
)
permission = aws.lambda_.Permission(
    "words-invoke",
    statement_id="events",
    action="lambda:InvokeFunction",
    principal="events.amazonaws.com",
    function=function.function.name,
    qualifier=function.alias.name,
    source_arn=rule.arn,
)
aws.cloudwatch.EventTarget(
    "words-target",
    rule=rule.name,
    target_id="count-words",
    arn=function.alias.arn,
    opts=ResourceOptions(depends_on=[permission]),
)
Monitoring("monitoring", args, components=[files, function], topic_arn=alerts.topic.arn)

pulumi.export("files_bucket_name", bucket.bucket)
pulumi.export("files_table_name", files.table.name)
pulumi.export("files_function_name", files.function.function.name)
pulumi.export("files_dead_letters_url", files.function.dead_letters_url)
pulumi.export("words_table_name", table.name)
