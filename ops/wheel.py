"""What pip installs: a package tap_stack with py.typed, or the file itself if editable.

A module of one file cannot carry py.typed (PEP 561), so mypy needs MYPYPATH for an editable one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROGRAM, MODULES = "tap_stack.py", ("content_types", "http_connection")
FILES = {
    **{f"{each}.py": f"tap_stack/{each}.py" for each in MODULES},
    "py.typed": "tap_stack/py.typed",
    "openapi.yaml": "tap_stack/openapi.yaml",
    "content_types.txt": "tap_stack/content_types.txt",
    "queries": "tap_stack/queries",
    "requirements-web.txt": "tap_stack/requirements-web.txt",
    "scripts": "tap_stack/scripts",
}


class Wheel(BuildHookInterface[Any]):
    """Called by hatchling before it builds a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """An editable wheel with the files would hide the checkout's.

        In the package the program imports the modules beside it as those of the package: at the top
        level of an environment one would be in the way of a distribution that is named like it.
        """
        if version == "standard":
            self.made = tempfile.TemporaryDirectory()  # it is gone with this object
            program = Path(self.made.name, PROGRAM)
            source = Path(self.root, PROGRAM).read_text(encoding="utf-8")
            for each in MODULES:
                source = source.replace(f"\nfrom {each} ", f"\nfrom .{each} ")
            program.write_text(source, encoding="utf-8")
            build_data["force_include"] |= {**FILES, str(program): "tap_stack/__init__.py"}
