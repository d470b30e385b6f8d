"""Writes what the code already says into the files that repeat it: `make docs`.

The README's tables of settings and outputs. A test fails when a file is not what this would write.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tap_stack import OUTPUTS, TIERS, TapStackArgs  # noqa: E402


def files() -> Iterator[tuple[Path, str]]:
    """Every generated file with the text that it should have."""
    yield ROOT / "README.md", readme((ROOT / "README.md").read_text())


def readme(text: str) -> str:
    """The README with its two tables."""
    for name, rows in {"settings": settings_rows(), "outputs": outputs_rows()}.items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}<!-- {name} -->\n" + "\n".join(rows) + f"\n{end}{after}"
    return text


def settings_rows() -> Iterator[str]:
    """The settings table."""
    yield "| setting | what it is | dev | staging | prod |"
    yield "| --- | --- | --- | --- | --- |"
    tiers = [TapStackArgs(environment_suffix=tier) for tier in TIERS]
    for name, each in settings().items():
        values = [shown(getattr(args, name)) for args in tiers]
        yield f"| `{name}` | {each.metadata['doc']} | {' | '.join(values)} |"


def outputs_rows() -> Iterator[str]:
    """The outputs table."""
    yield "| output | what it is |"
    yield "| --- | --- |"
    for name, doc in OUTPUTS.items():
        yield f"| `{name}` | {doc} |"


def settings() -> dict[str, Any]:
    """The fields of TapStackArgs by name."""
    return {each.name: each for each in dataclasses.fields(TapStackArgs)}


def shown(value: Any) -> str:
    """A setting's value in the README."""
    if isinstance(value, bool):
        return str(value).lower()
    if not value:
        return "none"
    return ", ".join(f"`{each}`" for each in value) if isinstance(value, tuple) else f"`{value}`"


if __name__ == "__main__":
    for path, text in files():
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")
