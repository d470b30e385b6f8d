"""The output for people: coloured lines and a spinner on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import linecache
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rich.box
import rich.console
from rich.markup import escape
from rich.padding import Padding
from rich.status import Status
from rich.table import Table
from rich.text import Text

from ops.report import Report, bars
from taplocal import page
from taplocal.access import Response
from taplocal.differences import by_meaning
from taplocal.errors import InterruptError
from taplocal.session import Session
from taplocal.steps import BEGUN, Step, Summary

SPINNER = 3  # columns of the spinner, before its text
SIGNS = {
    "created": "[green]+[/]",
    "updated": "[yellow]~[/]",
    "replaced": "[yellow]±[/]",
    "deleted": "[red]-[/]",
    "kept": "[yellow]=[/]",
}


class Console:
    """Prints progress and results; a quiet one shows a terminal that it works, for --json."""

    def __init__(self, quiet: bool = False):
        self._rich = rich.console.Console(quiet=quiet, highlight=False, soft_wrap=True, emoji=False)
        self._terminal = rich.console.Console(stderr=True) if quiet else self._rich
        self._spinner: Status | None = None
        self._at_work: dict[tuple[str, str], None] = {}  # type and name, the longest first
        self._done = 0

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Shows a spinner on a terminal; turns Ctrl-C into an InterruptError."""
        self._spinner = self._terminal.status(what) if self._terminal.is_terminal else None
        try:
            with self._spinner or nullcontext():
                yield
        except KeyboardInterrupt:
            hint = "`up` continues, `down` deletes"
            raise InterruptError(f"interrupted while {what}: {hint}") from None

    def say(self, text: str) -> None:
        """Prints a line."""
        self._rich.print(escape(text))

    def step(self, step: Step) -> None:
        """Prints the line of a step, none for an unchanged resource; on a terminal what goes on."""
        self.progress(step)
        if step.action in SIGNS:
            why = f" ({', '.join(step.why)})" if step.why else ""
            kind = step.type.split(":")[-1]
            took = f"[dim]{escape(why)} {step.seconds:.2f} s[/]"
            line = f"{step.action:9} {kind:26} {escape(step.name)}{took}"
            self._rich.print(f"{SIGNS[step.action]} {line}")

    def progress(self, step: Step) -> None:
        """Shows on a terminal what goes on."""
        resource = step.type, step.name
        if step.action == BEGUN:
            self._at_work[resource] = None
        else:
            self._at_work.pop(resource, None)
            self._done += 1
        if self._spinner:
            names = ", ".join(f"{kind.split(':')[-1]} {name}" for kind, name in self._at_work)
            text = f"{self._done} resources done" + (f"; at work: {names}" if names else "")
            width = max(self._terminal.width - SPINNER, 1)  # a longer line would wrap
            self._spinner.update(escape(text if len(text) <= width else f"{text[: width - 1]}…"))

    def live(self, saved: Iterable[str], what: str, seconds: float) -> None:
        """Prints what a change of files did, and when it was live."""
        names = ", ".join(sorted(Path(each).name for each in saved))
        self._rich.print(
            f"[green]saved {escape(names)}[/]: {escape(what)} in {seconds * 1000:.0f} ms"
        )

    def refused(self, message: str, at: tuple[str, int] | None) -> None:
        """Prints an error of the program, with the lines around it."""
        where = f": {Path(at[0]).name}:{at[1]}" if at else ""
        self._rich.rule(f"[red]not deployed{escape(where)}", style="red", align="left")
        self.say(message)
        if at:
            linecache.checkcache(at[0])
            for number in range(max(at[1] - 2, 1), at[1] + 3):
                sign = ">" if number == at[1] else " "
                self.say(f"{sign} {number:5} {linecache.getline(at[0], number).rstrip()}".rstrip())
        self._rich.rule("[dim]what was deployed goes on", style="dim", align="left")

    def summary(self, env: str, summary: Summary, opened: Session, explain: bool) -> None:
        """Prints the end of `up`: what differs from AWS, the counts, the outputs, what to try."""
        if explain:
            self._explain(summary.differences)
        elif count := len(summary.differences):
            self.say(f"\n{count} things are not as on AWS: `up --explain` lists them")
        counts = ", ".join(
            f"{count} {action}" for action, count in sorted(summary.counts().items())
        )
        self._rich.print(f"\n[bold green]{env} is up[/]: {counts} in {summary.seconds:.1f} s\n")
        self.fields(opened.outputs)
        self.say("\n" + hints(opened, env))

    def _explain(self, differences: Mapping[str, list[str]]) -> None:
        for meaning, rows in by_meaning(differences).items():
            self._rich.print(f"\n[bold]{meaning}:[/]")
            for each in rows:
                first, *others = sorted(differences[each.key])
                more = f" and {len(others)} more" if others else ""
                self._rich.print(Text(f"- {each.here}"), soft_wrap=False)
                aws = Text(f"AWS: {each.aws} ({first}{more})", "dim")
                self._rich.print(Padding(aws, (0, 0, 0, 2), expand=False), soft_wrap=False)

    def fields(self, fields: Mapping[str, Any]) -> None:
        """Prints names and values in two columns; values are not truncated."""
        width = max(map(len, fields), default=0)
        for name, value in fields.items():
            shown = value if isinstance(value, str) else json.dumps(value)
            self._rich.print(f"[bold]{escape(f'{name:{width}}')}[/]  {escape(shown)}")

    def report(self, report: Report) -> None:
        """Prints a report as a table, and its last column as bars; it may be empty."""
        self._rich.print(f"\n[bold]{escape(report.name)}[/]  {escape(report.description)}")
        if not report.rows:
            self.say("Nothing: there are no such files, or no export yet.")
            return
        table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
        for number, name in enumerate(report.columns):
            right = not isinstance(report.rows[0][number], str)
            table.add_column(name, justify="right" if right else "left", overflow="fold")
        for row in report.rows:
            table.add_row(*(escape(x) if isinstance(x, str) else f"{x:,}" for x in row))
        self._rich.print(table, soft_wrap=False)
        for each in bars(report):
            self.say(each)

    def response(self, response: Response) -> None:
        """Prints an HTTP response: status, headers, body."""
        colour = "green" if response.status < 400 else "red"
        self._rich.print(f"[bold {colour}]{response.status}[/]")
        for name, value in sorted(response.headers.items()):
            self._rich.print(f"[dim]{escape(name)}: {escape(value)}[/]")
        if response.body:
            self._rich.print("\n" + escape(_pretty(response.body)))

    def event(self, event: Mapping[str, Any]) -> None:
        """Prints a log event."""
        at = datetime.fromtimestamp(event["time"] / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]
        message = event["message"]
        stack: list[str] = message.pop("stack", []) if isinstance(message, dict) else []
        text = message if isinstance(message, str) else json.dumps(message)
        self._rich.print(
            f"[dim]{at} {escape(event['log_group'].rpartition('/')[2])}[/] {escape(text)}"
        )
        for each in stack:
            self._rich.print(f"    {escape(each)}")

    def trace(self, found: Mapping[str, Any]) -> None:
        """Prints what is known of a request or a file, in the order of time."""
        for each in found["lines"]:
            self.event({**each, "time": each["time"] * 1000, "log_group": each["group"]})
        for each in found["calls"]:
            took = f"{each['milliseconds']:8.2f} ms"
            self.say(
                f"{took}  {each['what']} {each['on']} {each['status']} {each['error']}".rstrip()
            )
        rows = ("record", "metrics", "alarms")
        self.fields({name: found[name] for name in rows if found[name]})


def hints(opened: Session, env: str) -> str:
    """The next commands to try, ready to copy, and where to look."""
    state, page_url = opened.state, page.address(opened.folder, env)
    option = "" if env == "dev" else f" --env {env}"
    ann = f"--user ann@example.com{option}"
    script = Path(sys.executable).with_name("taplocal")  # where `make` has linked it
    program, module = (script, "") if script.exists() else (Path(sys.executable), " -m taplocal")
    inside = program.is_relative_to(Path.cwd())
    taplocal = f"{os.path.relpath(program) if inside else program}{module}"
    looks = [f"Look at:  {each}" for each in (page_url, state.web_url) if each]
    ends = [*looks, f"Stop it:  {taplocal} down"]
    if not state.api_url:
        return "\n".join([f"Watch it: {taplocal} logs -f{option}", *ends])
    return "\n".join(
        [
            "Try it:",
            f'  {taplocal} call POST /items \'{{"name": "tea"}}\' {ann}',
            f"  {taplocal} call GET /items {ann}",
            f"  {taplocal} upload README.md {ann}",
            f"  {taplocal} logs -f{option}",
            f'  curl -H "Authorization: Bearer $({taplocal} token{option})" \\',
            f"    {state.api_url}/items",
            *ends,
        ]
    )


def _pretty(body: str) -> str:
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:
        return body
