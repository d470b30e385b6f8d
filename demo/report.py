"""Prints each check: what was done and what came of it; counts the failures."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rich.console
from rich.padding import Padding
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

WIDTH = 52  # of what was checked


class Report:
    """The demonstration's output and its result; on a terminal it shows that a step goes on."""

    def __init__(self, console: rich.console.Console | None = None) -> None:
        self._console = console or rich.console.Console(highlight=False, emoji=False)
        self._going_on: Progress | None = None
        self._step = 0
        self._began = time.monotonic()
        self.checks = 0
        self.failures: list[str] = []

    def step(self, title: str) -> None:
        """Prints the heading of a step, which lasts until the next one."""
        self._step += 1
        self._end()
        self._console.print(Text(f"\n{self._step}. {title}", "bold"))
        self._begin()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Leaves the terminal to another program."""
        self._end()
        yield
        self._begin()

    def check(self, what: str, expected: Any, actual: Any) -> bool:
        """Prints a check, one line if all is well; True if the actual result is the expected one."""
        self.checks += 1
        passed = bool(expected == actual)
        line = Text.assemble((" ✓ ", "green") if passed else (" ✗ ", "red"), f"{what:{WIDTH}} ")
        if passed:
            line.append(_text(actual), "dim")
        line.truncate(self._console.width - 1, overflow="ellipsis")
        self._console.print(line)
        if not passed:
            self.failures.append(f"{what}: expected {_text(expected)}, got {_text(actual)}")
            self._indented(f"expected: {_text(expected)}\n  actual: {_text(actual)}", "red")
        return passed

    def say(self, text: str) -> None:
        """Prints an explanation."""
        self._indented(text, "dim")

    def summary(self) -> int:
        """Prints the result and returns the exit status."""
        self._end()
        if self.failures:
            failed = f"\n{len(self.failures)} of {self.checks} checks failed:"
            self._console.print(Text(failed, "bold red"))
            for each in self.failures:
                self._indented(each)
            return 1
        took = f"{self._step} steps, {time.monotonic() - self._began:.0f} s"
        self._console.print(Text(f"\nAll {self.checks} checks passed: {took}.", "bold green"))
        return 0

    def _indented(self, text: str, style: str = "") -> None:
        self._console.print(Padding(Text(text, style), (0, 0, 0, 3), expand=False))

    def _begin(self) -> None:
        columns = SpinnerColumn(), TextColumn("step {task.description}"), TimeElapsedColumn()
        off = not self._console.is_terminal
        self._going_on = Progress(*columns, console=self._console, transient=True, disable=off)
        self._going_on.add_task(str(self._step))
        self._going_on.start()

    def _end(self) -> None:
        if self._going_on:
            self._going_on.stop()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=list)
