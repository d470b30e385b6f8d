"""What pip installs: a package tap_stack with py.typed, or the file itself if editable.

A module of one file cannot carry py.typed (PEP 561), so mypy needs MYPYPATH for an editable one.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILES = {
    "tap_stack.py": "tap_stack/__init__.py",
    "py.typed": "tap_stack/py.typed",
    "openapi.yaml": "tap_stack/openapi.yaml",
    "content_types.txt": "tap_stack/content_types.txt",
    "requirements-web.txt": "tap_stack/requirements-web.txt",
}


class Wheel(BuildHookInterface[Any]):
    """Called by hatchling before it builds a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """An editable wheel with the files would hide the checkout's."""
        if version == "standard":
            build_data["force_include"] |= FILES
