"""Buckets as they are registered: private, encrypted, versioned, logged, kept as long as said."""

from __future__ import annotations

from typing import Any

import tap_stack
from tests.stack.conftest import (
    ACCOUNT,
    REGION,
    Graph,
    statements,
)

BUCKETS = ("files-uploads", "files-logs")


def test_buckets_are_private_encrypted_versioned_and_their_owners_alone(
    graph: Graph, env: str
) -> None:
    for name in BUCKETS:
        bucket = graph.one("Bucket", f"{name}-bucket").inputs
        assert bucket["forceDestroy"] is (env == "dev")
        block = graph.one("BucketPublicAccessBlock", f"{name}-private").inputs
        assert [value for value in block.values() if value is True] == [True] * 4
        ownership = graph.one("BucketOwnershipControls", f"{name}-ownership").inputs
        assert ownership["rule"] == {"objectOwnership": "BucketOwnerEnforced"}
        kind = "BucketServerSideEncryptionConfiguration"
        (rule,) = graph.one(kind, f"{name}-encryption").inputs["rules"]
        assert rule["applyServerSideEncryptionByDefault"] == {"sseAlgorithm": "AES256"}
        versioning = graph.one("BucketVersioning", f"{name}-versioning").inputs
        assert versioning["versioningConfiguration"] == {"status": "Enabled"}
        (denied,) = (
            each
            for each in statements(graph.one("BucketPolicy", f"{name}-policy").inputs["policy"])
            if each["Effect"] == "Deny"
        )
        arn = f"arn:aws:test:{REGION}:{ACCOUNT}:Bucket/{name}-bucket"
        assert (denied["Action"], denied["Resource"]) == (["s3:*"], [arn, f"{arn}/*"])


def rules(graph: Graph, name: str) -> dict[str, Any]:
    (found,) = (
        each.inputs["rules"]
        for each in graph.of("BucketLifecycleConfiguration")
        if each.name == f"{name}-lifecycle"
    )
    assert all(each["status"] == "Enabled" for each in found)
    return {each["id"]: each for each in found}


def test_nothing_is_kept_longer_or_dearer_than_said(graph: Graph, env: str) -> None:
    tier, uploads, logs = (
        tap_stack.TapStackArgs(environment_suffix=env),
        rules(graph, "files-uploads"),
        rules(graph, "files-logs"),
    )
    for each in (uploads, logs):
        assert each["unfinished"]["abortIncompleteMultipartUpload"] == {"daysAfterInitiation": 7}
        retention = {"noncurrentDays": tier.noncurrent_days}
        assert each["noncurrent"]["noncurrentVersionExpiration"] == retention
    assert [each["days"] for each in uploads["cooler"]["transitions"]] == [30, 90]
    assert uploads["expired"]["expiration"] == {"expiredObjectDeleteMarker": True}
    assert logs["expired"]["expiration"] == {"days": tier.log_retention_days}
    cooler = logs.get("cooler", {}).get("transitions", [])
    assert all(each["days"] < tier.log_retention_days for each in cooler)


def test_access_is_logged_into_the_other_bucket_which_takes_it_from_this_one_only(
    graph: Graph, env: str
) -> None:
    logging = graph.one("BucketLogging", "files-uploads-logging").inputs
    names = [f"tap-stack-{each}-{env}-{ACCOUNT}" for each in ("files", "files-logs")]
    assert [logging["bucket"], logging["targetBucket"]] == names
    granted = statements(graph.one("BucketPolicy", "files-logs-policy").inputs["policy"])
    (delivery,) = (each for each in granted if each["Effect"] == "Allow")
    assert delivery["Principal"] == {"Service": "logging.s3.amazonaws.com"}
    assert delivery["Action"] == ["s3:PutObject"]
    assert delivery["Condition"] == {
        "StringEquals": {"aws:SourceAccount": ACCOUNT},
        "ArnEquals": {"aws:SourceArn": [f"arn:aws:s3:::{names[0]}"]},
    }
