"""The base of the handlers: the inputs of a resource type, and its create, update and delete."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from botocore.exceptions import ClientError

from taplocal.cloud import Cloud
from taplocal.errors import TapLocalError, UnsupportedError

Inputs = Mapping[str, Any]
Outputs = dict[str, Any]

#: The tag by which a resource is known as one that this stack made.
OWNER = "taplocal:owner"
LOOK_SECONDS = 0.05  # between two looks at what is waited for
#: Error codes of a resource that does not exist.
NOT_FOUND = re.compile("404|NoSuch.+|.*NotFound.*|.*Non[Ee]xistent.*|QueueDoesNotExist")


class Handler:
    """One resource type.

    `uses` lists the inputs that are known here, as dotted paths; a path includes everything below
    it. What one of them has no effect on is a row of taplocal/differences.py. Any other input is an
    UnsupportedError. A change of an input in `replace_on` replaces the resource, as on
    AWS; a change of one in `ignored` is no change. A change of one in `distinct` lets the new one
    exist beside the old one, which then goes at the end of the run, after all that depends on it.
    """

    uses = ""
    id_input = "name"  # the input that is the id, where AWS does not generate one
    replace_on = ""
    ignored = ""
    distinct = ""

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
        """The id of what an interrupted run of this stack may have created.

        By default `id_input`, for what is part of a resource of this stack's own; what others may
        have made under the same name is known by its tag.
        """
        resource_id = inputs.get(self.id_input)
        return resource_id if isinstance(resource_id, str) else None

    def remains(self, cloud: Cloud, inputs: Inputs) -> str | None:
        """As `find`; nothing is left where what it is part of is gone."""
        try:
            return self.find(cloud, inputs)
        except ClientError as error:
            if NOT_FOUND.fullmatch(error.response["Error"]["Code"]):
                return None
            raise

    def settle(self, cloud: Cloud, inputs: Inputs) -> None:
        """Waits until it serves, at the end of a run: it may just have been started again."""

    def owned(self, inputs: Inputs, owner: str) -> Inputs:
        """The inputs with the tag that names the owner, for the types that have tags."""
        if "tags" not in self.uses.split():
            return inputs
        return {**inputs, "tags": {**inputs.get("tags", {}), OWNER: owner}}

    def remove(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        """Deletes it; no error if it does not exist."""
        try:
            self.delete(cloud, resource_id, inputs, outputs)
        except ClientError as error:
            if not NOT_FOUND.fullmatch(error.response["Error"]["Code"]):
                raise

    def replaces(self) -> set[str]:
        """The inputs whose change replaces the resource."""
        return set(self.replace_on.split())

    def check(self, name: str, inputs: Inputs) -> None:
        """Raises UnsupportedError for an input that is not in `uses`."""
        known = self.uses.split()
        if unknown := sorted(
            path for path, _ in leaves(inputs) if not any(includes(each, path) for each in known)
        ):
            raise UnsupportedError(
                f"{name}: the local cloud does not support the input {unknown[0]} of "
                f"{type(self).__name__}; add it to {type(self).__module__.replace('.', '/')}.py"
            )


class Named(Handler):
    """A resource whose id is a name that the program chooses, so that another stack may have it."""

    overwrites = False  # whether its creation takes over what has the name, without an error
    tag_operation = ""  # service, operation, parameter and key of the result

    def __init__(self) -> None:
        self.distinct = self.id_input

    def name(self, cloud: Cloud, inputs: Inputs) -> str:
        """The value of the parameter of `tag_operation`: the name or the ARN."""
        return str(inputs[self.id_input])

    def tags(self, cloud: Cloud, inputs: Inputs) -> Mapping[str, str] | None:
        """The tags of the resource with this name, whoever made it; None if there is none."""
        service, operation, parameter, key = self.tag_operation.split()
        try:
            found = getattr(cloud.client(service), operation)(
                **{parameter: self.name(cloud, inputs)}
            )
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "NoSuchTagSet":  # S3's answer for a bucket without tags
                return {}
            if NOT_FOUND.fullmatch(code):
                return None
            raise
        return tag_map(found.get(key, {}))

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        tags = self.tags(cloud, inputs) or {}
        return self.resource_id(cloud, inputs) if has_owner(tags, inputs) else None

    def resource_id(self, cloud: Cloud, inputs: Inputs) -> str:
        """The id of the resource with this name."""
        return str(inputs[self.id_input])


class Recorded(Handler):
    """A resource that the emulator does not have: only the state has it, and `up` reports that."""

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        return str(inputs.get("name") or inputs.get("resourceId")), {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        """Nothing to delete."""


def settled(look: Callable[[], str], seconds: float) -> None:
    """Waits until `look`, which says what is missing, says nothing; it raises what never ends.

    TapLocalError with what is still missing after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while missing := look():
        if time.monotonic() > deadline:
            raise TapLocalError(missing)
        time.sleep(LOOK_SECONDS)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted paths and the values of all leaves; the elements of a list share their path."""
    children: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        children = [(f"{path}.{key}".lstrip("."), each) for key, each in value.items()]
    elif isinstance(value, list):
        children = [(path, each) for each in value if isinstance(each, Mapping | list)]
    if not children and path:
        yield path, value
    for below, each in children:
        yield from leaves(each, below)


def includes(known: str, path: str) -> bool:
    """Whether a path is a known one, or below it."""
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


def tag_map(tags: Any) -> dict[str, str]:
    """Tags as a mapping, however an API returns them."""
    if isinstance(tags, Mapping):
        return dict(tags)
    return {each["Key"]: each["Value"] for each in tags}


def has_owner(tags: Mapping[str, str], inputs: Inputs) -> bool:
    """Whether these are the tags of a resource that this stack made from these inputs."""
    return bool(tags.get(OWNER) == inputs["tags"][OWNER])


def arn_by_tag(cloud: Cloud, inputs: Inputs, resource_type: str) -> Iterator[str]:
    """The ARNs of the resources that this stack made from these inputs."""
    pages = cloud.client("resourcegroupstaggingapi").get_paginator("get_resources")
    wanted = [{"Key": OWNER, "Values": [inputs["tags"][OWNER]]}]
    for page in pages.paginate(TagFilters=wanted, ResourceTypeFilters=[resource_type]):
        yield from (each["ResourceARN"] for each in page["ResourceTagMappingList"])


def removed_tags(old: Inputs, new: Inputs) -> list[str]:
    """The keys of the tags to remove."""
    return sorted((old.get("tags") or {}).keys() - (new.get("tags") or {}).keys())
