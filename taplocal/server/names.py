"""The names of MiniStack that the additions use or replace, each as it was when they were written.

`names.txt` has them with a digest of their source, or with the type of what is no function and no
class. Most are private: another version of MiniStack may change them without notice. The emulator
starts only if all are the same, so that an addition never meets what it was not written for.

After a change of the additions, or their adaptation to another version of MiniStack:

    python -m taplocal.server.names > taplocal/server/names.txt
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from taplocal.errors import TapLocalError

TABLE = Path(__file__).with_name("names.txt")
FILES = (*TABLE.parent.glob("*.py"), TABLE.parents[1] / "keeper.py")


def check() -> None:
    """Raises TapLocalError for the first name that is not as the additions know it.

    Takes 10 ms if the files are the same, and a second if not.
    """
    (_, files), *names = (line.split() for line in TABLE.read_text().splitlines())
    if files == of_files(name for name, _ in names):
        return
    for name, expected in names:
        if digest(name) != expected:
            raise TapLocalError(
                f"MiniStack {version('ministack')} has another {name} than the local cloud was "
                "written for: install the locked version (`make dev`), or adapt taplocal/server "
                "and renew its names.txt"
            )


def of_files(names: Iterable[str]) -> str:
    """A digest of the files that have these names."""
    found = hashlib.sha256()
    for module in sorted({name.rpartition(".")[0] for name in names}):
        spec = importlib.util.find_spec(module)
        found.update(Path(spec.origin).read_bytes() if spec and spec.origin else b"missing")
    return found.hexdigest()[:16]


def digest(name: str) -> str:
    """What tells whether a name is the same; "missing" if there is none."""
    module, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(module), attribute, "missing")
    if value == "missing":
        return value
    if inspect.isfunction(value) or inspect.isclass(value):
        return hashlib.sha256(inspect.getsource(value).encode()).hexdigest()[:16]
    return type(value).__name__


def used() -> list[str]:
    """The names in MiniStack's modules that the source of the additions has, sorted."""
    return sorted({name for path in FILES for name in _used(ast.parse(path.read_text()))})


def _used(tree: ast.Module) -> Iterator[str]:
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ministack"):
            for each in node.names:
                name = f"{node.module}.{each.name}"
                if _is_module(name):
                    modules[each.asname or each.name] = name
                else:
                    yield name
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=alias), attr=name) if alias in modules:
                yield f"{modules[alias]}.{name}"


def _is_module(name: str) -> bool:
    parent, _, last = name.rpartition(".")
    value: Any = getattr(importlib.import_module(parent), last, None)
    return isinstance(value, ModuleType) or value is None


if __name__ == "__main__":
    digests = (f"{name} {digest(name)}\n" for name in used())
    sys.stdout.writelines([f"files {of_files(used())}\n", *digests])
