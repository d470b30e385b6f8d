"""The plain way, as public samples of S3, Lambda and DynamoDB have it: read the object, put an item.

It keeps the last event's view of a key, believes the declared type, reads the whole object, and
counts nothing; a record that fails takes the others of its event with it.
"""

from __future__ import annotations

import os
import urllib.parse
from decimal import Decimal
from typing import Any

import boto3

s3 = boto3.client("s3")
table = boto3.resource("dynamodb").Table(os.environ["FILES_TABLE_NAME"])


def handler(event: Any, context: Any) -> None:
    for record in event["Records"]:
        bucket = record["s3"]["bucket"]["name"]
        key = urllib.parse.unquote_plus(record["s3"]["object"]["key"])
        answer = s3.get_object(Bucket=bucket, Key=key)
        size = len(answer["Body"].read())
        item = {
            "id": f"sample#{bucket}/{key}",
            "record": "sample",
            "name": key.split("/")[-1],
            "size": Decimal(size),
            "content_type": answer["ContentType"],
            "uploaded_at": answer["LastModified"].isoformat(),
        }
        table.put_item(Item=item)
        print(f"stored {key}")
