"""The Pulumi project: where the program is, and the configuration of one of its stacks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from taplocal.errors import TapLocalError

STACK_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")  # Pulumi's own rule


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it, that has a Pulumi.yaml; else the folder itself."""
    above = (folder, *folder.resolve().parents)
    return next((each for each in above if (each / "Pulumi.yaml").exists()), folder)


@dataclass(frozen=True)
class Project:
    """A Pulumi project folder and the configuration of one of its stacks."""

    folder: Path
    name: str
    main: Path
    stack: str
    config: dict[str, str] = field(default_factory=dict)

    @property
    def region(self) -> str:
        """The AWS region of the stack."""
        return self.config.get("aws:region", "us-east-1")

    @classmethod
    def load(
        cls, folder: Path, stack_name: str, overrides: Mapping[str, str] | None = None
    ) -> Project:
        """Reads Pulumi.yaml and Pulumi.<stack>.yaml as the Pulumi CLI does; overrides win.

        A stack such as dev-jane needs no file of its own; it inherits nothing from Pulumi.dev.yaml.
        Raises TapLocalError for a missing or broken file and for an unknown stack. Which settings
        there are, and their values, is for the program to check.
        """
        path = folder / "Pulumi.yaml"
        if not path.exists():
            raise TapLocalError(
                f"there is no Pulumi.yaml in {folder.resolve()} or above: use --program"
            )
        project = _yaml(path)
        if missing := [key for key in ("name", "main") if not project.get(key)]:
            raise TapLocalError(f"{path} must have the key {missing[0]}")
        name = str(project["name"])
        defaults = {key: _default(each) for key, each in (project.get("config") or {}).items()}
        config: dict[str, str] = {}
        for layer in defaults, _stack_config(folder, stack_name), overrides or {}:
            for key, value in layer.items():
                if value is not None:
                    config[key if ":" in key else f"{name}:{key}"] = _text(value)
        return cls(folder, name, folder / project["main"], stack_name, config)


def _stack_config(folder: Path, stack_name: str) -> dict[str, Any]:
    """The configuration in the stack's file; a scalar is the text in the file, as for Pulumi."""
    if not STACK_NAME.fullmatch(stack_name):
        raise TapLocalError(
            'the environment must be letters, digits, "-", "_" and ".", '
            f"not {json.dumps(stack_name)}"
        )
    path = folder / f"Pulumi.{stack_name}.yaml"
    if path.exists():
        config = _yaml(path).get("config") or {}
        texts = _yaml(path, yaml.BaseLoader).get("config") or {}
        return {
            key: text if isinstance(text, str) else value
            for (key, text), value in zip(texts.items(), config.values(), strict=True)
        }
    stacks = sorted(each.stem.removeprefix("Pulumi.") for each in folder.glob("Pulumi.*.yaml"))
    if stack_name.partition("-")[0] in stacks:
        return {}
    choices = (
        f"use one of {', '.join(stacks)}, or one of them with a name behind it, "
        f"as in {stacks[0]}-jane"
        if stacks
        else "there is no other either"
    )
    raise TapLocalError(f"there is no {path.name} in {folder}: {choices}")


def _yaml(path: Path, loader: type[Any] = yaml.SafeLoader) -> dict[str, Any]:
    try:
        return dict(yaml.load(path.read_text(), loader) or {})  # noqa: S506 - both loaders are safe
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise TapLocalError(f"{path} is not valid YAML: {error}") from None


def _default(declaration: Any) -> Any:
    """The value of a configuration key in Pulumi.yaml: plain, or in a typed declaration."""
    if isinstance(declaration, dict):
        return declaration.get("value", declaration.get("default"))
    return declaration


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
