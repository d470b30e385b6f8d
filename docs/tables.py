"""Writes what the code already says into the files that repeat it: `make docs`.

From the settings of `TapStackArgs`: Pulumi.yaml, Pulumi.<env>.yaml and the README's settings table.
From the stack's outputs: the README's outputs table. A test fails when a file is not what this
would write.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tap_stack import OUTPUTS, TIERS, TapStackArgs  # noqa: E402

# The Pulumi CLI knows no type for objects, so they are given as JSON text.
OBJECT = "Mapping[str, str]"
TYPES = {
    "str": "string",
    "int": "integer",
    "bool": "boolean",
    "Sequence[str]": "array",
    OBJECT: "string",
}


def files() -> Iterator[tuple[Path, str]]:
    """Every generated file with the text that it should have."""
    yield ROOT / "Pulumi.yaml", project_yaml()
    for tier in TIERS:
        yield ROOT / f"Pulumi.{tier}.yaml", stack_yaml(tier)
    yield ROOT / "README.md", readme((ROOT / "README.md").read_text())


def project_yaml() -> str:
    """Pulumi.yaml: the CLI wants a default for every key; dev's stand here."""
    project = {
        "name": "tap-stack",
        "description": "A production AWS platform in one Pulumi program",
        "runtime": "python",
        "main": "tap_stack.py",
        "config": {"aws:region": "us-east-1", **{name: declaration(name) for name in settings()}},
    }
    return "# Written by `make docs` from TapStackArgs.\n" + dump(project)


def declaration(name: str) -> dict[str, Any]:
    """A configuration key with its type, description and dev's value."""
    each, value = settings()[name], plain(getattr(TapStackArgs(), name))
    kind = TYPES[str(each.type)]
    items = {"items": {"type": "string"}} if kind == "array" else {}
    doc = each.metadata["doc"].replace("`", "")
    if each.type == OBJECT:
        doc, value = f"{doc} As a JSON object.", json.dumps(value)
    return {"type": kind, **items, "description": doc, "default": value}


def stack_yaml(tier: str) -> str:
    """Pulumi.<tier>.yaml: only what differs from Pulumi.yaml."""
    differing = {
        key: plain(value) for key, value in TIERS[tier].items() if value != TIERS["dev"][key]
    }
    config = {
        f"tap-stack:{key}": value
        for key, value in {"environment_suffix": tier, **differing}.items()
    }
    return "# Written by `make docs` from TIERS in tap_stack.py.\n" + dump({"config": config})


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


def plain(value: Any) -> Any:
    """A setting's value as YAML has it."""
    return (
        list(value)
        if isinstance(value, tuple)
        else dict(value)
        if isinstance(value, dict)
        else value
    )


def shown(value: Any) -> str:
    """A setting's value in the README."""
    if isinstance(value, bool):
        return str(value).lower()
    if not value:
        return "none"
    return ", ".join(f"`{each}`" for each in value) if isinstance(value, tuple) else f"`{value}`"


def dump(value: Any) -> str:
    """YAML in the order given."""
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110))


if __name__ == "__main__":
    for path, text in files():
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")
