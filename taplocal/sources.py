"""The lines of a program's functions, for the stack traces in their logs."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

Functions = ast.FunctionDef, ast.AsyncFunctionDef


class Sources:
    """The functions of a program: those of its file, then of the modules that they import.

    A bundle has lines of its own, so a log names a function and the line inside it.
    """

    def __init__(self, main: Path):
        self._lines: dict[str, tuple[Path, int]] = {}
        files = [main]
        for path in files:  # which grows
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for name, line in _functions(tree, ""):
                self._lines.setdefault(name, (path, line))
            found = (_file(name, path.parent) for name in sorted(_imported(tree)))
            files += [each for each in found if each and each not in files]

    def line(self, name: str) -> tuple[Path, int] | None:
        """The file that defines a function, and its first line there."""
        return self._lines.get(name)

    def locate(self, entry: str) -> str:
        """An entry of a stack, a function and the line in it, as the line of a file, if known."""
        name, _, inside = entry.rpartition(":")
        if name not in self._lines:
            return entry
        path, line = self._lines[name]
        return f"{path.name}:{line + int(inside)} in {name}"


def _file(module: str, folder: Path) -> Path | None:
    """The file of a module that is one file: in this folder, or wherever Python finds it."""
    beside, spec = folder / f"{module}.py", importlib.util.find_spec(module)
    if beside.exists():
        return beside
    origin = Path(spec.origin) if spec and spec.origin else folder
    return origin if origin.name == beside.name else None


def _imported(tree: ast.Module) -> set[str]:
    """The modules that a file imports, without those of Python and of packages."""
    nodes = list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {each for each in names - sys.stdlib_module_names if "." not in each}


def _functions(node: ast.AST, within: str) -> Iterator[tuple[str, int]]:
    """The qualified names of the functions below a node, and each one's first line."""
    for child in ast.iter_child_nodes(node):
        name = f"{within}{child.name}" if isinstance(child, (*Functions, ast.ClassDef)) else ""
        if isinstance(child, Functions):
            yield name, min(each.lineno for each in (child, *child.decorator_list))
            yield from _functions(child, f"{name}.<locals>.")
        else:
            yield from _functions(child, f"{name}." if name else within)
