"""The web environment's storage as it is registered: assets and logs."""

from __future__ import annotations

import tap_stack
from tests.stack.conftest import (
    Graph,
    statements,
)


def test_assets_are_under_the_key_and_logs_under_s3s_own(graph: Graph) -> None:
    kind = "BucketServerSideEncryptionConfiguration"
    for name, algorithm in (("storage-assets", "aws:kms"), ("storage-logs", "AES256")):
        (rule,) = graph.one(kind, f"{name}-encryption").inputs["rules"]
        by_default = rule["applyServerSideEncryptionByDefault"]
        assert by_default["sseAlgorithm"] == algorithm
        if algorithm == "aws:kms":
            assert by_default["kmsMasterKeyId"] == graph.outputs["key_arn"]
    granted = statements(graph.one("BucketPolicy", "storage-logs-policy").inputs["policy"])
    services = {each["Principal"].get("Service") for each in granted if each["Effect"] == "Allow"}
    assert services == {tap_stack.ACCESS_LOGS_SERVICE, tap_stack.LOAD_BALANCER_LOGS_SERVICE}
