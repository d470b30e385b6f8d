"""What every handler is: the inputs it uses, how the resource is made, changed, removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from botocore.exceptions import ClientError

from taplocal.cloud import Cloud
from taplocal.errors import UnsupportedError

Inputs = Mapping[str, Any]
Outputs = dict[str, Any]

#: Error codes that mean that a thing is not there (any more).
GONE = {
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

    `uses` names the inputs that take effect here, as dotted paths; a path covers all below it. What
    stands in `not_emulated` is taken as well, and reported with its reason: the emulator does
    nothing with it. Any other input is refused. A change of an input in `replace_on` makes a new
    resource, as on AWS; one in `ignored` is no change.
    """

    uses = ""
    replace_on = ""
    ignored = ""
    not_emulated: Mapping[str, str] = {}

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        """Makes the resource; returns its id and what AWS computes."""
        raise NotImplementedError

    def update(
        self, cloud: Cloud, identity: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        """Changes it in place. As it stands: for types whose creation overwrites."""
        return self.create(cloud, new)[1]

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        """Removes it."""
        raise NotImplementedError

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        """The id of one that an interrupted run may have made; as it stands: its name."""
        name = inputs.get("name")
        return name if isinstance(name, str) else None

    def notes(self, inputs: Inputs) -> list[tuple[str, str]]:
        """What of these inputs has no effect here, and why."""
        paths = set(flatten(inputs))
        return [
            (path, why)
            for path, why in self.not_emulated.items()
            if any(_covers(path, each) for each in paths)
        ]

    def remove(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        """Deletes it, or finds it gone."""
        try:
            self.delete(cloud, identity, inputs, outputs)
        except ClientError as error:
            if error.response["Error"]["Code"] not in GONE:
                raise

    def replaces(self) -> set[str]:
        """The inputs whose change replaces the resource."""
        return set(self.replace_on.split())

    def check(self, name: str, inputs: Inputs) -> None:
        """Raises UnsupportedError for an input that is neither used nor known to have no effect."""
        known = [*self.uses.split(), *self.not_emulated]
        if unknown := sorted(
            path for path in flatten(inputs) if not any(_covers(each, path) for each in known)
        ):
            raise UnsupportedError(
                f"{name}: the local cloud does not know the input {unknown[0]} of "
                f"{type(self).__name__}; add it to {type(self).__module__.replace('.', '/')}.py"
            )


class Recorded(Handler):
    """A resource that the emulator lacks: it is kept in the state, and `up` says so."""

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        return str(inputs.get("name") or inputs.get("resourceId")), {}

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        """There is nothing."""


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


def _covers(known: str, path: str) -> bool:
    return path == known or path.startswith(f"{known}.")


def given(**values: Any) -> dict[str, Any]:
    """Arguments of an API call without those that are absent."""
    return {key: value for key, value in values.items() if value is not None}


def pascal(value: Any) -> Any:
    """Pulumi's property names as most AWS APIs write them: `minimumLength` -> `MinimumLength`."""
    if isinstance(value, Mapping):
        return {key[0].upper() + key[1:]: pascal(each) for key, each in value.items()}
    return [pascal(each) for each in value] if isinstance(value, list) else value


def tag_list(
    tags: Mapping[str, str] | None, key: str = "Key", value: str = "Value"
) -> list[dict[str, str]]:
    """Tags in the list form of many APIs."""
    return [{key: name, value: text} for name, text in sorted((tags or {}).items())]


def lost_tags(old: Inputs, new: Inputs) -> list[str]:
    """The keys of tags that are to be removed."""
    return sorted((old.get("tags") or {}).keys() - (new.get("tags") or {}).keys())
