"""Prints each step: what was done, what was expected, what came; counts what did not match."""

from __future__ import annotations

from typing import Any

import rich.console
from rich.markup import escape

WIDTH = 46


class Report:
    """The demonstration's output and its verdict."""

    def __init__(self) -> None:
        self._console = rich.console.Console(highlight=False, soft_wrap=True, emoji=False)
        self._step = 0
        self.checks = 0
        self.mismatches: list[str] = []

    def step(self, title: str) -> None:
        """Begins a part of the demonstration."""
        self._step += 1
        self._console.print(f"\n[bold]{self._step}. {escape(title)}[/]")
        self._console.print(f"[dim]   {'done':{WIDTH}} {'expected':28} came[/]")

    def check(self, done: str, expected: Any, came: Any) -> bool:
        """One thing that was done; True if what came is what was expected."""
        self.checks += 1
        good = bool(expected == came)
        sign = "[green]✓[/]" if good else "[red]✗[/]"
        line = f"{done:{WIDTH}} {_text(expected):28} {_text(came)}"
        self._console.print(f" {sign} {escape(line)}")
        if not good:
            self.mismatches.append(f"{done}: expected {expected!r}, came {came!r}")
        return good

    def say(self, text: str) -> None:
        """A line that explains."""
        self._console.print(f"   [dim]{escape(text)}[/]")

    def verdict(self) -> int:
        """Prints the result and returns the exit status."""
        if self.mismatches:
            self._console.print(
                f"\n[bold red]{len(self.mismatches)} of {self.checks} did not match:[/]"
            )
            for each in self.mismatches:
                self._console.print(f"  {escape(each)}")
            return 1
        self._console.print(f"\n[bold green]All {self.checks} checks came as expected.[/]")
        return 0


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
