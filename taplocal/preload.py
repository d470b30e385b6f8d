"""What the server of `taplocal dev` imports, so that no process of a change has to."""

from __future__ import annotations

import importlib
import os

from taplocal import watch  # noqa: F401 - with Pulumi and boto3
from taplocal.dev import SERVICES

for name in os.environ[SERVICES].split():
    getattr(importlib.import_module(name), "__all__", None)  # a provider's load at their first use
