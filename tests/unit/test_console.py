"""What a person sees while `up` is at work."""

from __future__ import annotations

import io

import pytest
import rich.console
from rich.text import Text

from demo.report import Report
from taplocal.console import SPINNER, Console
from taplocal.steps import BEGUN, Step

WIDTH = 80


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    made, written = Console(), io.StringIO()
    made._rich = made._terminal = rich.console.Console(
        file=written, force_terminal=terminal, width=WIDTH, highlight=False, soft_wrap=True
    )
    return made, written


def test_a_terminal_shows_how_many_are_done_and_what_is_at_work_in_one_line() -> None:
    made, _ = console(terminal=True)
    with made.working("deploying"):
        for number in range(30):
            made.step(Step(BEGUN, "aws:sqs/queue:Queue", f"queue-{number}"))
        made.step(Step("created", "aws:sqs/queue:Queue", "queue-0", 0.1))
        made.step(Step("unchanged", "aws:sqs/queue:Queue", "queue-1"))
        assert made._spinner
        shown = str(made._spinner.status)
        assert shown.startswith("2 resources done; at work: Queue queue-2, Queue queue-3, ")
        assert len(shown) == WIDTH - SPINNER
        for number in range(2, 30):
            made.step(Step("unchanged", "aws:sqs/queue:Queue", f"queue-{number}"))
        assert str(made._spinner.status) == "30 resources done"


def test_without_a_terminal_there_are_lines_of_what_changed_alone() -> None:
    made, written = console(terminal=False)
    with made.working("deploying"):
        made.step(Step(BEGUN, "aws:sqs/queue:Queue", "one"))
        made.step(Step("created", "aws:sqs/queue:Queue", "one", 0.1))
        made.step(Step("unchanged", "aws:sqs/queue:Queue", "two"))
    (line,) = written.getvalue().splitlines()
    assert line.startswith("+ created")
    assert "\x1b" not in line


@pytest.mark.parametrize("terminal", [True, False])
def test_no_line_of_the_demonstration_is_wider_than_the_screen(terminal: bool) -> None:
    written = io.StringIO()
    shown = rich.console.Console(file=written, force_terminal=terminal, width=WIDTH)
    report = Report(shown)
    report.step("word " * 30)
    assert report.check("each request " * 10, {"a": 1}, {"a": 1})
    assert report.check("short", "x" * 200, "x" * 200)
    assert not report.check("wrong", "[b]" * 50, "other")
    report.say("what [it] means " * 20)
    assert report.summary() == 1
    text = written.getvalue()
    assert "[b]" in text
    assert ("\x1b" in text) == terminal
    lines = Text.from_ansi(text).plain.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert [line for line in lines if "actual: other" in line]


def test_a_quiet_one_writes_nothing_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    made = Console(quiet=True)
    assert made._terminal.stderr  # where a terminal sees the spinner
    with made.working("deploying"):
        made.say("text")
        made.step(Step("created", "aws:sqs/queue:Queue", "one", 0.1))
    assert capsys.readouterr() == ("", "")
