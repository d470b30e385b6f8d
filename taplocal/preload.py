"""What the server of `taplocal dev` imports, so that no process of a change has to."""

from __future__ import annotations

import os

from taplocal import (
    ready,
    watch,  # noqa: F401 - with Pulumi and boto3
)
from taplocal.dev import SERVICES

ready.load(os.environ[SERVICES].split())
