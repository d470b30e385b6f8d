"""The emulator, which writes down what each request of the account's root would need."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from ministack.core import iam_evaluator

from taplocal import ministack_server

REQUESTS = "requests.jsonl"  # in the data folder


def record() -> None:
    """Makes the check of a request write it down first."""
    enforce = iam_evaluator.enforce

    def enforced(
        access_key: str, action: str, service: str, region: str, resource_arn: str = "*",
        service_context: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        from ministack.services import sts
        from ministack.services.tagging import resource_tags

        if sts._sessions.get(access_key, {}).get("Arn", "").endswith(":root"):
            tags = {
                f"aws:ResourceTag/{k}": v for k, v in (resource_tags(resource_arn) or {}).items()
            }
            row = [action, resource_arn, {**tags, **(service_context or {})}]
            with open(REQUESTS, "a") as file:
                file.write(json.dumps(row) + "\n")
        return enforce(access_key, action, service, region, resource_arn, service_context)

    iam_evaluator.enforce = enforced


if __name__ == "__main__":
    os.umask(0o077)
    record()
    ministack_server.main()
