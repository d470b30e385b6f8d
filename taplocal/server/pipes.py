"""Pipes from the stream of a table to an event bus, and what rules of the bus invoke.

MiniStack's pipes have neither filters nor templates, do not deliver to a bus, and ask for nobody's
rights; streams do not outlive its process. Here a pipe does what its role may: it reads the stream,
and publishes what its filters let through, in order, again and again until it is published. As on
AWS an event comes at least once. A record stays until the pipes of its table have read it, for a
day at most. A rule invokes a function as Lambda's asynchronous callers do.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from ministack.services import dynamodb, eventbridge, pipes

from taplocal.server import keys, rights

PIPES = "pipes.amazonaws.com"
#: What a pipe's role does with a stream.
READS = "DescribeStream GetRecords GetShardIterator ListStreams"
#: The parameters of a pipe that are more than MiniStack keeps.
PARAMETERS = ("SourceParameters", "TargetParameters")
LOG = logging.getLogger("pipes")

Json = dict[str, Any]


class UnknownPath(Exception):  # noqa: N818 - what the log says
    """A template names what a record does not have: what AWS does then is not documented."""


class Pipes:
    """Makes pipes and delivers what they read; `count` counts metrics, `changed` has them kept."""

    def __init__(self, count: Callable[..., None], changed: Callable[[], None]):
        self.count, self.changed = count, changed
        self.deliver_elsewhere, self.poll_one = pipes._deliver_batch, pipes._poll_pipe
        self.updated = pipes._update_pipe

    def create(self, name: str, body: Json) -> Any:
        """CreatePipe: not RUNNING before it has all of its parameters."""
        if name in pipes._pipes:
            return pipes._error(409, "ConflictException", f"Pipe {name} already exists.")
        if refusal := invalid(body):
            return refusal
        start = body["SourceParameters"]["DynamoDBStreamParameters"]["StartingPosition"]
        made = pipes.register_pipe(
            name=name,
            source=body["Source"],
            target=body["Target"],
            role_arn=body["RoleArn"],
            desired_state="STOPPED",
            starting_position=start,
            tags=body.get("Tags") or {},
            description=body.get("Description", ""),
        )
        made |= {each: body.get(each) or {} for each in PARAMETERS}
        made["DesiredState"] = made["CurrentState"] = body.get("DesiredState", "RUNNING")
        return pipes._json_resp(200, pipes._lifecycle_response(made))

    def update(self, name: str, body: Json) -> Any:
        """UpdatePipe: filters and template too; where it starts cannot change."""
        found = pipes._pipes.get(name)
        if found is None:
            return pipes._not_found(name)
        started = found["SourceParameters"].get("DynamoDBStreamParameters", {})
        read = {**(body.get("SourceParameters") or {}), "DynamoDBStreamParameters": started}
        new = {**found, **body, "SourceParameters": read}
        if refusal := invalid(new):
            return refusal
        found |= {each: new[each] for each in PARAMETERS}
        return self.updated(name, body)

    def poll(self, _dynamodb: Any, pipe: Json, account: str) -> None:
        """Lets a pipe read on, then drops what all pipes of the table have read."""
        self.poll_one(_dynamodb, pipe, account)
        if source := pipes._dynamodb_stream_source(pipe["Source"]):
            forget(source[1])

    def deliver(self, pipe: Json, batch: list[Json]) -> bool:
        """Publishes records; False if they are to come again."""
        if pipes._arn_service(pipe["Target"]) != "events":
            return bool(self.deliver_elsewhere(pipe, batch))
        done = False
        try:
            if why := denied(pipe):
                LOG.error("pipe %s: %s", pipe["Name"], why)
                return False
            for record in batch:
                if passes(pipe, record):
                    publish(pipe, record)
            done = True
        except UnknownPath as error:
            LOG.error("pipe %s: %s", pipe["Name"], error)
        finally:
            values = {"Invocations": 1, "EventCount": len(batch), "ExecutionFailed": not done}
            self.count("AWS/EventBridge/Pipes", {"PipeName": pipe["Name"]}, **values)
        if done:
            self.changed()
        return done


def invalid(body: Json) -> Any:
    """The refusal of a pipe that cannot be; None of one that can."""
    patterns = [each["Pattern"] for each in filters(body)]
    errors = [x for x in map(eventbridge._event_pattern_error, patterns) if x]
    template = (body.get("TargetParameters") or {}).get("InputTemplate") or ""
    names = eventbridge._PLACEHOLDER_RE.findall(template)
    errors += [f"<{each}> is no path of a record" for each in names if not each.startswith("$.")]
    return pipes._error(400, "ValidationException", "; ".join(errors)) if errors else None


def filters(pipe: Mapping[str, Any]) -> list[Json]:
    """The filters of a pipe; without any it takes all."""
    criteria = (pipe.get("SourceParameters") or {}).get("FilterCriteria") or {}
    return list(criteria.get("Filters") or [])


def passes(pipe: Mapping[str, Any], record: Json) -> bool:
    """Whether one of a pipe's filters lets a record through."""
    patterns = [eventbridge._compiled_pattern(each["Pattern"]) for each in filters(pipe)]
    return not patterns or any(
        eventbridge._matches_detail(record, alternative)
        for alternatives in patterns
        for alternative in alternatives
    )


def denied(pipe: Mapping[str, Any]) -> str:
    """Why the role of a pipe may not read its source or publish; empty if it may."""
    role, stream = rights.of_role(pipe["RoleArn"], PIPES, pipe["Arn"]), pipe["Source"]
    needed = [(f"dynamodb:{each}", stream) for each in READS.split()]
    for action, resource in [*needed, ("events:PutEvents", pipe["Target"])]:
        if rights.denial(role, action, resource):
            return f"{pipe['RoleArn']} may not {action} on {resource}"
    refusal = keys.refused(role, "dynamodb", keys.of_table(stream), ("kms:Decrypt",))
    return refusal.message if refusal else ""


def publish(pipe: Mapping[str, Any], record: Json) -> None:
    """Puts a record onto the bus, in the form of the pipe's template."""
    target = pipe["TargetParameters"]
    to = target.get("EventBridgeEventBusParameters") or {}
    entry = {
        "EventBusName": pipe["Target"],
        "Source": to.get("Source", f"Pipe {pipe['Name']}"),
        "DetailType": to.get("DetailType", "Event from aws:dynamodb"),
        "Detail": rendered(target.get("InputTemplate") or "", record),
    }
    eventbridge._put_events({"Entries": [entry]})


def rendered(template: str, record: Json) -> str:
    """What a template makes of a record; without one the record itself."""
    names = eventbridge._PLACEHOLDER_RE.findall(template)
    values = {name: at(record, name) for name in names}
    text = eventbridge._render_input_template(template, values) if template else json.dumps(record)
    return str(text)


def at(record: Json, path: str) -> Any:
    """The value at a path such as `$.dynamodb.NewImage.id.S`."""
    found: Any = record
    for step in path.removeprefix("$.").split("."):
        if not isinstance(found, dict) or step not in found:
            raise UnknownPath(f"a record has nothing at {path}")
        found = found[step]
    return found


def forget(table: str) -> None:
    """Drops what all pipes have read of a table's stream, so that snapshots stay small."""
    readers = [each for each in pipes._pipes.values() if f"table/{table}/stream/" in each["Source"]]
    read = min((int(pipes._positions.get(each["Arn"], 0)) for each in readers), default=0)
    if (done := read - dynamodb._stream_trimmed.get(table, 0)) > 0:
        del dynamodb._stream_records[table][:done]
        dynamodb._stream_trimmed[table] = read


def keep_streams() -> None:
    """Has the state of pipes include the streams, which that of tables does not."""
    get_state, load = pipes.get_state, pipes.load_persisted_state
    kept = {"streams": dynamodb._stream_records, "trimmed": dynamodb._stream_trimmed}

    def state() -> Json:
        return {**get_state(), **kept}

    def loaded(data: Json) -> None:
        for name, store in kept.items():
            store.update(data.get(name) or {})
        load(data)

    pipes.get_state, pipes.load_persisted_state = state, loaded


def install(count: Callable[..., None], changed: Callable[[], None]) -> None:
    """Replaces MiniStack's functions."""
    made, describe = Pipes(count, changed), pipes._describe_response
    pipes._create_pipe, pipes._update_pipe = made.create, made.update
    pipes._poll_pipe, pipes._deliver_batch = made.poll, made.deliver
    pipes._describe_response = lambda pipe: {
        **describe(pipe),
        **{each: pipe.get(each) or {} for each in PARAMETERS},
    }
    keep_streams()
