"""The Pulumi project: where the program is, and the configuration of one of its stacks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from taplocal.errors import TapLocalError


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
        """Reads Pulumi.yaml and Pulumi.<stack>.yaml as the Pulumi CLI does; overrides win."""
        project = _yaml(folder / "Pulumi.yaml")
        own = _yaml(folder / f"Pulumi.{stack_name}.yaml").get("config") or {}
        declared = project.get("config") or {}
        name = str(project["name"])
        config = {
            _full(name, key): _text(value)
            for key, each in declared.items()
            if (value := _default(each)) is not None
        }
        config.update(
            {_full(name, key): _text(value) for key, value in {**own, **(overrides or {})}.items()}
        )
        known = {_full(name, key) for key in declared}
        if unknown := sorted(
            key for key in config if key.startswith(f"{name}:") and key not in known
        ):
            choices = ", ".join(sorted(key for key in declared if ":" not in key))
            raise TapLocalError(
                f"there is no setting {unknown[0].split(':')[1]!r}; Pulumi.yaml declares {choices}"
            )
        return cls(folder, name, folder / project["main"], stack_name, config)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(path.read_text()) or {})
    except FileNotFoundError:
        stacks = ", ".join(
            sorted(each.stem.removeprefix("Pulumi.") for each in path.parent.glob("Pulumi.*.yaml"))
        )
        raise TapLocalError(
            f"there is no {path.name} in {path.parent}; "
            f"the environments here are: {stacks or 'none'}"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise TapLocalError(f"{path} is not valid YAML: {error}") from None


def _full(project: str, key: str) -> str:
    return key if ":" in key else f"{project}:{key}"


def _default(declaration: Any) -> Any:
    """The value of a configuration key in Pulumi.yaml: plain, or in a typed declaration."""
    if isinstance(declaration, dict):
        return declaration.get("value", declaration.get("default"))
    return declaration


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
