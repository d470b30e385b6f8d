"""Prints each check: what was done, the expected and the actual result; counts the failures."""

from __future__ import annotations

import json
from typing import Any

import rich.console
from rich.markup import escape

WIDTH = 46


class Report:
    """The demonstration's output and its result."""

    def __init__(self) -> None:
        self._console = rich.console.Console(highlight=False, soft_wrap=True, emoji=False)
        self._step = 0
        self.checks = 0
        self.failures: list[str] = []

    def step(self, title: str) -> None:
        """Prints the heading of a step."""
        self._step += 1
        self._console.print(f"\n[bold]{self._step}. {escape(title)}[/]")
        self._console.print(f"[dim]   {'check':{WIDTH}} {'expected':28} actual[/]")

    def check(self, what: str, expected: Any, actual: Any) -> bool:
        """Prints a check; True if the actual result is the expected one."""
        self.checks += 1
        passed = bool(expected == actual)
        sign = "[green]✓[/]" if passed else "[red]✗[/]"
        line = f"{what:{WIDTH}} {_text(expected):28} {_text(actual)}"
        self._console.print(f" {sign} {escape(line)}")
        if not passed:
            self.failures.append(f"{what}: expected {_json(expected)}, got {_json(actual)}")
        return passed

    def say(self, text: str) -> None:
        """Prints an explanation."""
        self._console.print(f"   [dim]{escape(text)}[/]")

    def summary(self) -> int:
        """Prints the result and returns the exit status."""
        if self.failures:
            self._console.print(
                f"\n[bold red]{len(self.failures)} of {self.checks} checks failed:[/]"
            )
            for each in self.failures:
                self._console.print(f"  {escape(each)}")
            return 1
        self._console.print(f"\n[bold green]All {self.checks} checks passed.[/]")
        return 0


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else _json(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=list)
