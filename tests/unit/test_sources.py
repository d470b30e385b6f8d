"""Stack traces in logs name the lines of the program, wherever the bundle has them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import tap_stack
from taplocal.sources import Sources

PROGRAM = '''"""A program with a handler of its own."""

import functools

from tap_stack import stack_of

{padding}
def passed(function):
    @functools.wraps(function)
    def call(*values):
        return function(*values)  # called
    return call


class Shelf:
    @property
    def tea(self):
        return {{}}["missing"]  # raised


@passed
@passed
def find(shelf):
    def inner():
        return shelf.tea  # found
    return inner()  # asked


def handler(event, context):
    try:
        return find(Shelf())  # handled
    except KeyError as error:
        return stack_of(error)
'''


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_entry_of_a_stack_is_a_line_of_the_program(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(padding=""))
    index: dict[str, Any] = {}
    exec(compile(tap_stack.bundle(load(path).handler), "index.py", "exec"), index)  # noqa: S102
    path.write_text(PROGRAM.format(padding="\n" * 7))  # edited above: the bundle stays the same
    sources, lines = Sources(path), path.read_text().splitlines()
    found = [sources.locate(each).partition(" in ") for each in index["handler"]({}, None)]
    shown = [lines[int(at.partition(":")[2]) - 1].partition("# ")[2] for at, _, _ in found]
    assert shown == ["handled", "called", "called", "asked", "found", "raised"]
    assert {at.partition(":")[0] for at, _, _ in found} == {"program.py"}
    assert found[-1][2] == "Shelf.tea"


def test_a_function_of_another_file_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(padding=""))
    for entry in ("/usr/lib/python3.13/ssl.py:12", "nobody:3"):
        assert Sources(path).locate(entry) == entry
    for name, file in (("api", "tap_stack.py"), ("text_type", "content_types.py")):
        assert Sources(path).locate(f"{name}:0").startswith(f"{file}:"), "imported, or by that"


def test_an_endless_recursion_is_cut() -> None:
    def again() -> None:
        again()

    try:
        again()
    except RecursionError as error:
        assert len(tap_stack.stack_of(error)) == 50
