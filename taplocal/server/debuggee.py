"""Runs in a function's process under `taplocal dev --debug`, for breakpoints in the program.

The function runs its bundle, each statement of which is compiled here as one of the file that it
comes from. The first request waits for a debugger; the requests by which a release tests a version
do not.
"""

from __future__ import annotations
import __future__

import ast
import functools
import importlib.abc
import importlib.util
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

HOST = "127.0.0.1"
PORT_SECONDS = 30  # until the process of the version before has given it back


class Program(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a bundle, a module of this folder, as statements of the program's files."""

    def __init__(self, folder: str, module: str, handler: str, told: Mapping[str, Any]):
        self._path, self._module, self._handler = Path(folder, f"{module}.py"), module, handler
        self._port, self._files = told["port"], told["files"]

    def find_spec(self, name: str, *_: object) -> Any:
        """The spec of the bundle."""
        return importlib.util.spec_from_loader(name, self) if name == self._module else None

    def exec_module(self, module: ModuleType) -> None:
        """Runs the bundle, with the handler in one that waits for a debugger."""
        of_file: dict[str, tuple[str, int]] = {}
        for file in reversed(self._files):
            of_file |= {text: (file, node.lineno) for node, text in statements(Path(file))}
        for node, text in statements(self._path):
            file, line = of_file.get(text, (str(self._path), node.lineno))
            ast.increment_lineno(node, line - node.lineno)
            flags = __future__.annotations.compiler_flag
            code = compile(ast.Module([node], []), file, "exec", flags, dont_inherit=True)
            exec(code, module.__dict__)  # noqa: S102 - the function's own code
        handler = getattr(module, self._handler)

        @functools.wraps(handler)
        def waiting(event: Any, context: Any) -> Any:
            version = context.invoked_function_arn.rpartition(":")[2]
            if not version.isdigit():
                self._wait()
            return handler(event, context)

        setattr(module, self._handler, waiting)

    @functools.cache  # noqa: B019 - one of a process: what waits is the first request
    def _wait(self) -> None:
        import debugpy

        deadline = time.monotonic() + PORT_SECONDS
        while not free(self._port) and time.monotonic() < deadline:
            time.sleep(0.05)
        debugpy.listen((HOST, self._port))
        debugpy.wait_for_client()
        debugpy.debug_this_thread()


def statements(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """The statements of a file's top level, each with its text."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in ast.parse(source).body:
        first = min(x.lineno for x in (node, *getattr(node, "decorator_list", ())))
        yield node, "\n".join(lines[first - 1 : node.end_lineno])


def free(port: int) -> bool:
    """Whether nobody listens at a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name == "posix")
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
