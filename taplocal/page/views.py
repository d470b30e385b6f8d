"""What the page shows and does: each view asks the emulator as any client of AWS would."""

from __future__ import annotations

import functools
import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from ops.redrive import redrive
from taplocal import access, snapshots
from taplocal import emulator as emulators
from taplocal.access import Response
from taplocal.architecture import Architecture, Drawing, Part
from taplocal.cloud import Cloud
from taplocal.errors import TapLocalError
from taplocal.page.server import View
from taplocal.page.trace import events, follow
from taplocal.session import Session, deployed_environments, state_path, web_parts
from taplocal.state import State

Json = dict[str, Any]
#: Where openapi.yaml and docs are: beside the program, in a checkout or installed.
ROOT = Path(str(getattr(find_spec("tap_stack"), "origin", None))).parent
FRESH_SECONDS = 0.8  # pages that are open at once share a look
LOOK_BACK_SECONDS = 900.0
LINES = 200  # of a log, at first
PERSON = "ann@example.com"
RUNBOOK = ROOT / "docs" / "operations.md"


@functools.cache
def views_of(folder: Path) -> Mapping[str, View]:
    """Method and path -> the view."""
    environments: dict[str, Environment] = {}
    lock = threading.Lock()

    def environment(query: Mapping[str, str]) -> Environment:
        name = query.get("env", "dev")
        if name not in deployed_environments(folder):
            raise TapLocalError(f"{name} is not deployed: run `python -m taplocal up --env {name}`")
        with lock:
            return environments.setdefault(name, Environment(folder, name))

    def of(view: Callable[[Environment, dict[str, str], bytes], Any]) -> View:
        def viewed(query: dict[str, str], body: bytes) -> Any:
            return view(environment(query), query, body)

        return viewed

    shown: dict[str, Callable[[Environment, dict[str, str], bytes], Any]] = {
        "GET /live": lambda env, query, _: env.live(float(query.get("since") or 0)),
        "GET /architecture": lambda env, *_: env.picture(),
        "GET /part": lambda env, query, _: env.part(query["name"]),
        "GET /dashboard": lambda env, query, _: env.dashboard(int(query.get("minutes", 15))),
        "GET /alarm": lambda env, query, _: env.alarm(query["name"]),
        "GET /trace": lambda env, query, _: follow(env.session, query["id"]),
        "GET /routes": lambda env, *_: env.routes(),
        "GET /letters": lambda env, *_: env.letters(),
        "POST /redrive": lambda env, *_: env.redrive(),
        "POST /call": lambda env, _, body: env.call(**json.loads(body)),
        "POST /upload": lambda env, query, body: env.upload(query, body),
        "GET /cost": lambda env, *_: cost(env.name),
    }
    return {name: of(view) for name, view in shown.items()} | {
        "GET /environments": lambda _query, _body: deployed_environments(folder),
        "GET /snapshots": lambda _query, _body: [vars(x) for x in snapshots.listed(folder, folder)],
        "POST /restore": lambda query, _body: restore(folder, query["name"], query["kind"]),
    }


class Environment:
    """One environment of the folder, opened again when its state has changed."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self._lock = threading.Lock()
        self._read: tuple[Any, Session, Architecture] | None = None
        self._last: tuple[float, Json] = (0.0, {})

    @property
    def session(self) -> Session:
        """What is deployed."""
        return self._opened()[1]

    @property
    def architecture(self) -> Architecture:
        """Its parts."""
        return self._opened()[2]

    def _opened(self) -> tuple[Any, Session, Architecture]:
        path = state_path(self.folder, self.name)
        stamp = [(x.stat().st_mtime_ns, x.stat().st_size) for x in self._files(path)]
        with self._lock:
            if self._read is None or self._read[0] != stamp:
                state, emulator = State(path), emulators.recorded(self.folder)
                if emulator is None:
                    raise TapLocalError(f"{self.name} is not deployed")
                session = Session(Cloud(emulator, state.region), state)
                self._read = stamp, session, Architecture(state.resources)
            return self._read

    @staticmethod
    def _files(path: Path) -> Iterable[Path]:
        return [each for each in (path, path.with_suffix(".journal")) if each.exists()]

    def picture(self) -> str:
        """The architecture as SVG, without colours: those are the page's."""
        return Drawing(self.architecture).svg(f"The architecture of {self.name}", style=False)

    # --- What is there now ---

    def live(self, since: float) -> Json:
        """All that changes; of requests and files those since a time in seconds, or the last."""
        with self._lock:
            at, found = self._last
        if since and time.time() - at < FRESH_SECONDS and found["since"] <= since:
            return found
        found = self._look(since)
        with self._lock:
            self._last = found["time"], found
        return found

    def _look(self, since: float) -> Json:
        began = time.time()
        session = self.session
        alarms = self._alarms()
        waiting, releases = self._waiting(), self._releases()
        since = since or began - LOOK_BACK_SECONDS
        logged = events(session, since - 2)
        return {
            "time": began,
            "since": since,
            "changed": str(self._opened()[0]),
            "complete": session.state.complete,
            "api": session.state.api_url,
            "alarms": alarms,
            "parts": self._parts(alarms, waiting, releases),
            "requests": [x for x in logged if "routeKey" in x["message"]][-LINES:],
            "lines": [x for x in logged if x["message"].get("message") in ("request", "file")][
                -LINES:
            ],
            "waiting": sum(waiting.values()),
            "web": web_parts(session.cloud, session.state),
            "releases": releases,
        }

    def _alarms(self) -> list[Json]:
        describe = self.session.cloud.client("cloudwatch").get_paginator("describe_alarms")
        pages = describe.paginate(AlarmTypes=["MetricAlarm", "CompositeAlarm"])
        parts = {x: name for name, names in self.architecture.alarms.items() for x in names}
        own = {
            each.id
            for each in self.session.state.resources.values()
            if each.type.endswith((":MetricAlarm", ":CompositeAlarm"))
        }
        return [
            {
                "name": each["AlarmName"],
                "state": each["StateValue"],
                "reason": each.get("StateReason", ""),
                "since": each["StateUpdatedTimestamp"].timestamp(),
                "about": each.get("AlarmDescription", ""),
                "part": parts.get(each["AlarmName"], ""),
            }
            for page in pages
            for each in (*page["MetricAlarms"], *page["CompositeAlarms"])
            if each["AlarmName"] in own
        ]

    def _waiting(self) -> dict[str, int]:
        """Dead letters by part."""
        sqs = self.session.cloud.client("sqs")
        found = {}
        for name, part in self.architecture.parts.items():
            if part.kind == "dead letters":
                asked = sqs.get_queue_attributes(
                    QueueUrl=part.id, AttributeNames=["ApproximateNumberOfMessages"]
                )
                found[name] = int(asked["Attributes"]["ApproximateNumberOfMessages"])
        return found

    def _parts(
        self, alarms: list[Json], waiting: Mapping[str, int], releases: list[Json]
    ) -> dict[str, Json]:
        """Part -> the number of its alarms that fire, its last change, what else there is."""
        firing = [each["part"] for each in alarms if each["state"] == "ALARM"]
        found: dict[str, Json] = {
            name: {"alarms": firing.count(name), "text": "", "changed": self._changed(part)}
            for name, part in self.architecture.parts.items()
        }
        for name, count in waiting.items():
            found[name]["text"] = f"{count} waiting" if count else ""
        for release in releases:
            found[release["part"]]["text"] = " + ".join(
                f"v{version}" if share == 1 else f"v{version} {share:.0%}"
                for version, share in release["shares"].items()
            )
        groups_ = [
            name for name, part in self.architecture.parts.items() if part.kind == "instances"
        ]
        scaling = self.session.cloud.client("autoscaling")
        for name in groups_:
            part = self.architecture.parts[name]
            asked = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[part.id])
            for each in asked["AutoScalingGroups"]:
                serving = [x for x in each["Instances"] if x["LifecycleState"] == "InService"]
                found[name]["text"] = f"{len(serving)} of {each['DesiredCapacity']}"
        return found

    def _releases(self) -> list[Json]:
        """For each function the shares of its versions, and the verdict on the last release."""
        functions = self.session.cloud.client("lambda")
        verdicts = {
            each.inputs.get("function", ""): (each.outputs.get("verdict", ""), each.pending)
            for each in self.session.state.resources.values()
            if each.type.endswith(":Rollout")
        }
        found = []
        for name, part in self.architecture.parts.items():
            if part.kind != "function":
                continue
            asked = functions.get_alias(FunctionName=part.id, Name="live")
            others = (asked.get("RoutingConfig") or {}).get("AdditionalVersionWeights") or {}
            shares = {asked["FunctionVersion"]: 1 - sum(others.values()), **others}
            verdict, pending = next(
                (x for arn, x in verdicts.items() if arn.endswith(f":{part.id}")), ("", "")
            )
            found.append(
                {
                    "part": name,
                    "function": part.id,
                    "shares": {x: share for x, share in shares.items() if share > 0},
                    "verdict": verdict,
                    "under_way": bool(pending),
                }
            )
        return found

    def _changed(self, part: Part) -> float:
        return max(self.session.state.resources[urn].changed for urn in part.urns)

    # --- One thing ---

    def part(self, name: str) -> Json:
        """The facts of a part, what it has to do with others, its alarms."""
        architecture = self.architecture
        if name not in architecture.parts:
            raise TapLocalError(f"there is no part {name}")
        part = architecture.parts[name]
        resource = self.session.state.resources[part.urns[0]]
        return {
            "name": name,
            "kind": part.kind,
            "id": part.id,
            "count": len(part.urns),
            "changed": self._changed(part),
            "arn": resource.outputs.get("arn", ""),
            "tags": resource.inputs.get("tags", {}),
            "does": [f"{x.verb} {x.target}" for x in architecture.edges if x.source == name],
            "is": [f"{x.source} {x.verb} it" for x in architecture.edges if x.target == name],
            "alarms": architecture.alarms.get(name, []),
            "command": command_of(part.kind, part.id, resource.inputs.get("name", "")),
        }

    def dashboard(self, minutes: int) -> list[Json]:
        """The graphs as the program defines them, each once, each metric with its data.

        The period is the widget's; of a few minutes 10 s, which AWS's metrics of services are not.
        """
        bodies = [
            json.loads(each.inputs["dashboardBody"])
            for each in self.session.state.resources.values()
            if each.type.endswith(":Dashboard")
        ]
        drawn = [
            x["properties"] for body in bodies for x in body["widgets"] if x["type"] == "metric"
        ]
        widgets = [*{each["title"]: each for each in drawn}.values()]
        queries, ends = [], time.time()
        for number, widget in enumerate(widgets):
            period = 10 if minutes <= 15 else widget["period"]
            for row, (namespace, name, *dimensions, last) in enumerate(widget["metrics"]):
                names = zip(dimensions[::2], dimensions[1::2], strict=True)
                metric = {
                    "Namespace": namespace,
                    "MetricName": name,
                    "Dimensions": [{"Name": each, "Value": value} for each, value in names],
                }
                stat = {"Metric": metric, "Period": period, "Stat": last["stat"]}
                queries.append({"Id": f"w{number}m{row}", "MetricStat": stat})
        data: Json = {}
        client = self.session.cloud.client("cloudwatch")
        for first in range(0, len(queries), 500):
            asked = client.get_metric_data(
                MetricDataQueries=queries[first : first + 500],
                StartTime=ends - 60 * minutes,
                EndTime=ends + 10,
            )
            data |= {each["Id"]: each for each in asked["MetricDataResults"]}
        return [
            {
                "title": widget["title"],
                "series": [
                    {
                        "name": f"{metric[1]} {metric[-1]['stat']}",
                        "points": sorted(
                            (at.timestamp(), value)
                            for at, value in zip(
                                data[f"w{number}m{row}"]["Timestamps"],
                                data[f"w{number}m{row}"]["Values"],
                                strict=True,
                            )
                        ),
                    }
                    for row, metric in enumerate(widget["metrics"])
                ],
            }
            for number, widget in enumerate(widgets)
        ]

    def alarm(self, name: str) -> Json:
        """The history of an alarm, and its section of the runbook."""
        client = self.session.cloud.client("cloudwatch")
        asked = client.describe_alarm_history(AlarmName=name, HistoryItemType="StateUpdate")
        items = asked["AlarmHistoryItems"]
        about = next(
            (
                str(each.inputs.get("alarmDescription", ""))
                for each in self.session.state.resources.values()
                if each.type.endswith((":MetricAlarm", ":CompositeAlarm")) and each.id == name
            ),
            "",
        )
        return {
            "history": [
                {"time": x["Timestamp"].timestamp(), "text": x["HistorySummary"]} for x in items
            ],
            "runbook": section(about.rpartition("#")[2]),
        }

    # --- Try it ---

    def routes(self) -> list[Json]:
        """The routes of the contract that the API serves, with an example of a body."""
        contract = yaml.safe_load((ROOT / "openapi.yaml").read_text())
        served = {
            each.inputs["routeKey"]
            for each in self.session.state.resources.values()
            if each.type == "aws:apigatewayv2/route:Route"
        }
        found = []
        for path, operations in contract["paths"].items():
            for method, operation in operations.items():
                if f"{method.upper()} {path}" in served and method not in ("head", "options"):
                    content = operation.get("requestBody", {}).get("content", {})
                    example = next((x.get("example") for x in content.values()), None)
                    found.append(
                        {
                            "method": method.upper(),
                            "path": path,
                            "summary": operation["summary"],
                            "example": example,
                            "body": bool(content),
                        }
                    )
        return found

    def call(self, method: str, path: str, user: str, body: str = "") -> Json:
        """Calls the API as a person, who is made if missing, and says which command does it."""
        began = time.time()
        token = access.person_token(self.session, user or PERSON)
        sent = time.time()
        answer = access.call(self.session, method, path, token, body or None)
        shown = ["python", "-m", "taplocal", "call", method, path, *([body] if body else [])]
        return {
            **shown_response(answer),
            "seconds": time.time() - sent,
            "sign_in_seconds": sent - began,
            "command": shlex.join([*shown, "--user", user or PERSON]),
        }

    def upload(self, query: Mapping[str, str], content: bytes) -> Json:
        """Uploads a file as a browser does."""
        name, kind = query["name"], query.get("type") or "application/octet-stream"
        token = access.person_token(self.session, query.get("user") or PERSON)
        form, answer = access.upload(
            self.session, token, name, content, kind, query.get("folder", "")
        )
        return {**shown_response(answer), "id": form.json().get("id", "")}

    def letters(self) -> list[Json]:
        """The dead letters of the file pipeline, which stay where they are."""
        return [] if "files_dead_letters_url" not in self.session.outputs else self._redrive(True)

    def redrive(self) -> list[Json]:
        """Redrives them; each with why it is still in the queue, or nothing."""
        return self._redrive(False)

    def _redrive(self, dry_run: bool) -> list[Json]:
        cloud, outputs = self.session.cloud, self.session.outputs
        target = outputs["files_dead_letters_url"], outputs["files_function_name"]
        found = redrive(cloud.client("sqs"), cloud.client("lambda"), *target, dry_run)
        return [{"id": x.id, "event": x.event, "error": x.error} for x in found]


def shown_response(answer: Response) -> Json:
    """A response for the page."""
    return {"status": answer.status, "headers": answer.headers, "body": answer.body}


def command_of(kind: str, id_: str, name: str) -> str:
    """The command of the AWS CLI that tells more of a part."""
    commands = {
        "HTTP API": "apigatewayv2 get-api --api-id {}",
        "function": "lambda get-function --function-name {}",
        "table": "dynamodb scan --table-name {} --max-items 5",
        "bucket": "s3 ls s3://{} --recursive",
        "dead letters": "sqs get-queue-attributes --attribute-names All --queue-url {}",
        "user pool": "cognito-idp list-users --user-pool-id {}",
        "parameter": "ssm get-parameter-history --name {} --query Parameters[].Version",
        "schedule": "scheduler get-schedule --name " + name,
        "topic": "sns list-subscriptions-by-topic --topic-arn {}",
        "key": "kms describe-key --key-id {}",
        "instances": "autoscaling describe-auto-scaling-groups --auto-scaling-group-names {}",
        "load balancer": "elbv2 describe-load-balancers --load-balancer-arns {}",
        "database": "rds describe-db-instances --db-instance-identifier {}",
        "pipe": "pipes describe-pipe --name " + name,
    }
    return f"python -m taplocal aws {commands[kind].format(id_)}" if kind in commands else ""


@functools.cache
def _sections() -> dict[str, str]:
    """Heading of the runbook as a link has it -> its text."""
    found: dict[str, str] = {}
    for text in ("\n" + RUNBOOK.read_text()).split("\n#")[1:]:
        heading, _, body = text.lstrip("#").partition("\n")
        found[heading.strip().lower().replace(" ", "-").strip("`")] = body.strip()
    return found


def section(name: str) -> str:
    """A section of the runbook; empty if there is none."""
    return _sections().get(name, "")


def cost(env: str) -> Json:
    """The estimate of a month, by the program of this checkout, in a process of its own."""
    if not (ROOT / "cost").exists():
        raise TapLocalError("the estimate is made in a checkout of tap-stack: `make cost`")
    command = [sys.executable, "-m", "cost", "--env", env, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TapLocalError(done.stderr.strip().removeprefix("error: ") or "no estimate was made")
    found: Json = json.loads(done.stdout)
    return found


def restore(folder: Path, name: str, kind: str) -> Json:
    """Begins to go back to a snapshot, which may stop the emulator, and this page for a moment."""
    known = [each for each in snapshots.listed(folder, folder) if each.name == name]
    if not known:
        raise TapLocalError(f"there is no snapshot {name}")
    command = [sys.executable, "-m", "taplocal", "restore", name, "--kind", kind]
    subprocess.Popen([*command, "--data", str(folder)], cwd=ROOT, start_new_session=True)
    return {"begun": name}
