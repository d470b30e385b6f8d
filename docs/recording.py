"""Records the demonstration as a moving picture for the README: a part of `make pictures`.

What `python -m demo` prints on a terminal of 80 columns, each line at its own time, SPEED times as
fast. Who wants no motion sees its end.
"""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
COLUMNS, ROWS, SPEED, END_SECONDS = 80, 28, 8, 4.0
LINE, CHARACTER, MARGIN, SIZE = 17, 7.8, 12, 13  # pixels
ERASED = re.compile(rb"[^\n]*\x1b\[2K|[^\n]*\r(?!\n)|\x1b\[\?25[lh]|\x1b\[1A")
SPINNER = re.compile("(\x1b\\[[0-9;]*m)*[\u2800-\u28ff]")
COLOURS = {"color(2)": "#5fd39b", "color(1)": "#ff8f85", "dim": "#93a0b8", "bold": "#ffffff"}


def run() -> list[tuple[float, str]]:
    """The lines of the demonstration, each with its seconds; what a spinner shows is left out."""
    terminal, child = pty.openpty()
    began = time.monotonic()
    size = {"COLUMNS": str(COLUMNS), "LINES": "200", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-m", "demo"], cwd=ROOT, stdout=child, stderr=child, stdin=child,
        env={**os.environ, **size},
    )  # fmt: skip
    os.close(child)
    lines, rest = [], b""
    while True:
        try:
            rest += os.read(terminal, 65_536)
        except OSError:  # it has ended
            break
        *whole, rest = rest.split(b"\n")
        at = time.monotonic() - began
        lines += [(at, ERASED.sub(b"", each.rstrip(b"\r")).decode()) for each in whole]
    if process.wait():
        raise SystemExit("the demonstration failed: nothing is recorded")
    shown = [(at, line) for at, line in lines if not SPINNER.match(line)]
    return [(at, re.sub("token=[0-9a-f]+", "token=...", line)) for at, line in shown]


def spans(line: str) -> str:
    """A line as SVG, with the colours that the terminal has."""
    console = Console(file=io.StringIO(), width=COLUMNS * 2, color_system="standard")
    parts = []
    for segment in Text.from_ansi(line).render(console):
        words = str(segment.style or "").split()
        colour = next((shown for word, shown in COLOURS.items() if word in words), "#d9e0ee")
        text = segment.text.rstrip("\n").replace("&", "&amp;").replace("<", "&lt;")
        weight = ' font-weight="bold"' if "bold" in words else ""
        parts.append(f'<tspan fill="{colour}"{weight}>{text}</tspan>')
    return "".join(parts)


def svg(lines: list[tuple[float, str]]) -> str:
    """The lines as a picture that scrolls as the terminal did."""
    last = lines[-1][0]
    whole = last / SPEED + END_SECONDS
    frames = [
        f"{100 * at / SPEED / whole:.2f}%{{transform:translateY({(ROWS - number) * LINE}px)}}"
        for number, (at, _) in enumerate(lines, 1)
    ]
    end = f"translateY({(ROWS - len(lines)) * LINE}px)"
    width, height = round(COLUMNS * CHARACTER) + 2 * MARGIN, ROWS * LINE + 2 * MARGIN
    texts = [
        f'<text x="{MARGIN}" y="{MARGIN + (number + 0.8) * LINE:g}">{spans(text)}</text>'
        for number, (_, text) in enumerate(lines)
        if text
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">',
            f"<title>make demo, {SPEED} times as fast: {last:.0f} s</title>",
            "<style>",
            f"text{{font:{SIZE}px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}}",
            f".all{{transform:{end}}}",
            f"@keyframes go{{0%{{transform:translateY({ROWS * LINE}px)}}{''.join(frames)}100%{{transform:{end}}}}}",
            f"@media(prefers-reduced-motion:no-preference){{.all{{animation:go {whole:.1f}s step-end infinite}}}}",
            "</style>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#131a25"/>',
            f'<clipPath id="window"><rect width="{width}" height="{height - 6}"/></clipPath>',
            '<g clip-path="url(#window)"><g class="all" xml:space="preserve">',
            *texts,
            "</g></g></svg>",
        ]
    )


if __name__ == "__main__":
    (ROOT / "docs" / "demo.svg").write_text(svg(run()) + "\n")
    print("wrote docs/demo.svg")
