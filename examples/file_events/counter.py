"""What the function runs: it counts the words of each text, and forgets those of deleted versions.

Events come at least once and in any order. Each version has one item: its words are put where there
is none yet, and its deletion over whatever there is. So all orders and repetitions end alike.
"""

import os
from typing import Any

from tap_stack import Event, error_code, sdk_client


def count_words(event: Event, _context: Any) -> None:
    """Lambda handler of FileRecorded and FileDeleted: a version has its words in a table, once."""
    file = event["detail"]
    if event["detail-type"] == "FileDeleted":
        put(file, "deleted_at", {"S": file["deleted_at"]})
    elif event["detail-type"] == "FileRecorded":
        try:
            count = {"N": str(words(file))}
            put(file, "words", count, ConditionExpression="attribute_not_exists(id)")
        except Exception as error:
            known = ("ConditionalCheckFailedException", "NoSuchKey", "NoSuchVersion")
            if error_code(error) not in known:
                raise  # Lambda tries again, then the event is a dead letter


def words(file: dict[str, str]) -> int:
    """The number of words in one version of a file, read line by line."""
    stored = sdk_client("s3").get_object(
        Bucket=file["bucket"], Key=file["key"], VersionId=file["version_id"]
    )
    return sum(len(line.split()) for line in stored["Body"].iter_lines())


def put(file: dict[str, str], name: str, value: dict[str, str], **condition: str) -> None:
    """Puts the item of a version."""
    item = {each: {"S": file[each]} for each in ("id", "version_id", "key")} | {name: value}
    table = os.environ["WORDS_TABLE_NAME"]
    sdk_client("dynamodb").put_item(TableName=table, Item=item, **condition)
