"""What pip installs: the packages tap_stack, with py.typed, and taplocal; the checkout if editable.

A module of one file cannot carry py.typed (PEP 561), so mypy needs MYPYPATH for an editable one.
"""

from __future__ import annotations

import re
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
    "docs/operations.md": "tap_stack/docs/operations.md",
}
#: What the local cloud has of other packages: at the top level they would be in others' way, too.
OPS = "ops/__init__.py", "ops/redrive.py", "ops/report.py"


class Wheel(BuildHookInterface[Any]):
    """Called by hatchling before it builds a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """An editable wheel with the files would hide the checkout's.

        In the package the program imports the modules beside it as those of the package: at the top
        level of an environment one would be in the way of a distribution that is named like it.
        """
        if version == "standard":
            self.made = tempfile.TemporaryDirectory()  # it is gone with this object
            included = build_data["force_include"]
            included |= FILES
            own = "|".join(MODULES)
            self._include(
                included, PROGRAM, "tap_stack/__init__.py", rf"^from ({own}) ", r"from .\1 "
            )
            for path in sorted(Path(self.root, "taplocal").rglob("*")):
                name = path.relative_to(self.root).as_posix()
                if path.suffix == ".py":
                    self._include(included, name, name, r"^from ops\b", "from taplocal.ops")
                elif path.is_file() and path.suffix != ".pyc":
                    included[name] = name
            included |= {each: f"taplocal/{each}" for each in OPS}

    def _include(self, included: dict[str, str], name: str, to: str, line: str, by: str) -> None:
        """Includes a file with other lines."""
        source = Path(self.root, name).read_text(encoding="utf-8")
        made = Path(self.made.name, to)
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(re.sub(line, by, source, flags=re.MULTILINE), encoding="utf-8")
        included[str(made)] = to
