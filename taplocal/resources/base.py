"""The base of the handlers: the inputs of a resource type, and its create, update and delete."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from botocore.exceptions import ClientError

from taplocal.cloud import Cloud
from taplocal.errors import UnsupportedError

Inputs = Mapping[str, Any]
Outputs = dict[str, Any]

#: Error codes of a resource that does not exist.
NOT_FOUND_CODES = {
    "404",
    "NoSuchBucket",
    "NoSuchEntity",
    "NotFound",
    "NotFoundException",
    "ParameterNotFound",
    "ResourceNotFound",
    "ResourceNotFoundException",
    "AWS.SimpleQueueService.NonExistentQueue",
    "QueueDoesNotExist",
}


class Handler:
    """One resource type.

    `uses` lists the inputs that the emulator supports, as dotted paths; a path includes everything
    below it. `not_emulated` maps inputs without effect to the reason, which `up` reports. Any other
    input is an UnsupportedError. A change of an input in `replace_on` replaces the resource, as on
    AWS; a change of one in `ignored` is no change.
    """

    uses = ""
    id_input = "name"  # the input that is the id, where AWS does not generate one
    replace_on = ""
    ignored = ""
    not_emulated: Mapping[str, str] = {}

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        """Creates the resource; returns its id and the outputs that AWS computes."""
        raise NotImplementedError

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        """Updates it in place; by default by `create`, for types whose creation overwrites."""
        return self.create(cloud, new)[1]

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        """Deletes it."""
        raise NotImplementedError

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        """The id of a resource that an interrupted run may have created; by default `id_input`."""
        resource_id = inputs.get(self.id_input)
        return resource_id if isinstance(resource_id, str) else None

    def notes(self, inputs: Inputs) -> list[tuple[str, str]]:
        """The inputs that have no effect on the emulator, each with the reason."""
        paths = set(flatten(inputs))
        return [
            (path, why)
            for path, why in self.not_emulated.items()
            if any(_includes(path, each) for each in paths)
        ]

    def remove(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        """Deletes it; no error if it does not exist."""
        try:
            self.delete(cloud, resource_id, inputs, outputs)
        except ClientError as error:
            if error.response["Error"]["Code"] not in NOT_FOUND_CODES:
                raise

    def replaces(self) -> set[str]:
        """The inputs whose change replaces the resource."""
        return set(self.replace_on.split())

    def check(self, name: str, inputs: Inputs) -> None:
        """Raises UnsupportedError for an input that is in neither `uses` nor `not_emulated`."""
        known = [*self.uses.split(), *self.not_emulated]
        if unknown := sorted(
            path for path in flatten(inputs) if not any(_includes(each, path) for each in known)
        ):
            raise UnsupportedError(
                f"{name}: the local cloud does not support the input {unknown[0]} of "
                f"{type(self).__name__}; add it to {type(self).__module__.replace('.', '/')}.py"
            )


class Recorded(Handler):
    """A resource that the emulator does not have: only the state has it, and `up` reports that."""

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        return str(inputs.get("name") or inputs.get("resourceId")), {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        """Nothing to delete."""


def flatten(value: Any, path: str = "") -> Iterator[str]:
    """The dotted paths of all leaves; the elements of a list share theirs."""
    children: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        children = [(f"{path}.{key}".lstrip("."), each) for key, each in value.items()]
    elif isinstance(value, list):
        children = [(path, each) for each in value if isinstance(each, Mapping | list)]
    if not children and path:
        yield path
    for below, each in children:
        yield from flatten(each, below)


def _includes(known: str, path: str) -> bool:
    return path == known or path.startswith(f"{known}.")


def given(**values: Any) -> dict[str, Any]:
    """The arguments that are not None."""
    return {key: value for key, value in values.items() if value is not None}


def id_by_name(items: list[dict[str, Any]], id_key: str, name_key: str, name: str) -> str | None:
    """The id of the first item with this name."""
    return next((str(each[id_key]) for each in items if each[name_key] == name), None)


def pascal(value: Any) -> Any:
    """Pulumi's property names as most AWS APIs write them: `minimumLength` -> `MinimumLength`."""
    if isinstance(value, Mapping):
        return {key[0].upper() + key[1:]: pascal(each) for key, each in value.items()}
    return [pascal(each) for each in value] if isinstance(value, list) else value


def tag_list(
    tags: Mapping[str, str] | None, key: str = "Key", value: str = "Value"
) -> list[dict[str, str]]:
    """Tags as a list, as many APIs take them."""
    return [{key: name, value: text} for name, text in sorted((tags or {}).items())]


def removed_tags(old: Inputs, new: Inputs) -> list[str]:
    """The keys of the tags to remove."""
    return sorted((old.get("tags") or {}).keys() - (new.get("tags") or {}).keys())
