"""`make drill`: each alarm's condition is brought about, the alarm seen, the runbook followed.

Deploys dev with all options on a local cloud of its own, whose minutes take 0.6 s (those of the web
environment a second). A drill breaks something through the system, waits until the topic has
delivered each of its alarms, prints what the runbook says, does that, and waits until the alarms
are OK again and the system serves. What this machine cannot measure is put as data of the very
metric: such rows say so. Recoveries are drills without alarms, which count what was lost. A run
writes its rows of the tables of docs/operations.md.
"""

from __future__ import annotations

from taplocal.cloud import isolate

isolate()  # before any SDK client is made

import contextlib  # noqa: E402
import functools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import uuid  # noqa: E402
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence  # noqa: E402
from contextlib import ExitStack, contextmanager  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from datetime import UTC, datetime  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402
from urllib.parse import urlsplit  # noqa: E402

import psycopg  # noqa: E402
from botocore.exceptions import BotoCoreError, ClientError  # noqa: E402
from rich.console import Console  # noqa: E402

from demo.visitors import Visitors  # noqa: E402
from demo.web import WebEnvironment, refused  # noqa: E402
from docs import tables  # noqa: E402
from ops.redrive import redrive  # noqa: E402
from ops.walk import Walk  # noqa: E402
from tap_stack import FILE_INDEXES, ITEM_INDEXES  # noqa: E402
from taplocal import access, session, web  # noqa: E402
from taplocal.resources.dynamodb import Table  # noqa: E402
from taplocal.server.malware import EICAR  # noqa: E402
from taplocal.session import Session  # noqa: E402
from taplocal.steps import Summary  # noqa: E402
from taplocal.web.processes import RECORD  # noqa: E402
from tests import needs  # noqa: E402
from tests.local import proof  # noqa: E402
from tests.local.proof import OPTIONS, ROOT, Files, Proof, failure  # noqa: E402
from tests.local.small import code, eventually, total  # noqa: E402
from tests.local.test_policies import as_role  # noqa: E402

CONFIG = {
    **OPTIONS,
    "canary_percent": "100",
    "files_concurrency": "0",
    "files_table_capacity": "20",
    "availability_objective": "99.9",
    "latency_objective": "99",
}  # so that all alarms exist
RUNBOOK = ROOT / "docs" / "operations.md"
WAIT_SECONDS = 60  # a guard against hanging
LONGEST_SECONDS = 150  # of the drill whose functions run until Lambda ends them
Meanwhile = Callable[[], object]  # what is done again and again until the alarms are seen
Say = Callable[[str], object]
Steps = Callable[["Site"], Iterator[Meanwhile]]


class DrillFailed(Exception):  # noqa: N818 - of the drill, which is what it says
    """An alarm was not seen, did not end, or the system did not serve."""


#: What a drill fails with: then the others go on.
FAILURES = (DrillFailed, proof.Denied, AssertionError, BotoCoreError, ClientError, psycopg.Error)


@dataclass(frozen=True)
class Drill:
    """Alarms by their keys, what brings them about and what ends it, in words of the runbook."""

    name: str
    alarms: tuple[str, ...]
    forced: str
    recovered: str
    steps: Steps
    config: Mapping[str, str] = field(default_factory=dict)  # of the stack, beside CONFIG
    wait_seconds: float = WAIT_SECONDS
    calm_seconds: float = WAIT_SECONDS


@dataclass(frozen=True)
class Result:
    """What became of an alarm in a drill; seconds of this machine."""

    alarm: str
    drill: Drill
    seen: float
    topic: str
    recovered: float | None  # nobody waits for one that looks at three days


THREE_DAYS = "slow-burn-long"  # what such an alarm looks at: 40 minutes here
#: Without data in a new stack, which their steps begin with.
SILENT = ("snapshot-missing", "synthetics")
DRILLS: dict[str, Drill] = {}


def drill(alarms: str, forced: str, recovered: str, **more: Any) -> Callable[[Steps], Steps]:
    """Makes a function a drill of the table. It breaks something, yields what is done meanwhile,
    and goes on, when the alarms are seen, with the recovery."""

    def added(steps: Steps) -> Steps:
        name = more.pop("name", steps.__name__.replace("_", "-"))
        DRILLS[name] = Drill(name, tuple(alarms.split()), forced, recovered, steps, **more)
        return steps

    return added


Recovery = Generator[None, None, str]


@dataclass(frozen=True)
class Repair:
    """A recovery: what was broken, and how it is mended; its steps return what was lost."""

    name: str
    broken: str
    recovered: str
    steps: Callable[[Site], Recovery]


REPAIRS: dict[str, Repair] = {}


def recovery(broken: str, recovered: str) -> Callable[[Any], Any]:
    """Makes a function a recovery of the table: it breaks something, yields, mends it, and returns
    what was lost."""

    def added(steps: Any) -> Any:
        name = steps.__name__.replace("_", "-")
        REPAIRS[name] = Repair(name, broken, recovered, steps)
        return steps

    return added


def nothing() -> None:
    """Is done meanwhile by a drill that has only to wait."""


def section(key: str) -> str:
    """The text below a heading of the runbook."""
    _, _, rest = RUNBOOK.read_text().partition(f"\n## {key}\n")
    return rest.partition("\n## ")[0].strip()


class Site(Proof):
    """The deployed stack, its alarms, and a subscriber of their topics."""

    def __init__(self, deployed: Session):
        super().__init__(deployed)
        self.functions, self.watch = self.client("lambda"), self.client("cloudwatch")
        self.folder = deployed.folder
        self.web = WebEnvironment(deployed)
        self.topics: dict[str, str] = {}  # alarm -> topic that has told of it
        self.queue = self._subscribed()
        self.walk = Walk(deployed.state.api_url or "", self.token)  # whatever its own name is
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        """Looks at the alarms all the time, as CloudWatch does: the emulator does when asked."""
        while True:
            with contextlib.suppress(BotoCoreError, ClientError):  # at the end of all
                self.alarms()
            time.sleep(0.1)

    # --- Alarms -----------------------------------------------------------------------------------

    def alarms(self) -> dict[str, Any]:
        """The alarms of the stack as they are, by key; looking has them evaluated."""
        pages = self.watch.get_paginator("describe_alarms").paginate(
            AlarmTypes=["MetricAlarm", "CompositeAlarm"]
        )
        found = (
            x
            for page in pages
            for kind in ("MetricAlarms", "CompositeAlarms")
            for x in page.get(kind, ())
        )
        ends = "tap-stack-", f"-{self.env}"
        return {
            each["AlarmName"].removeprefix(ends[0]).removesuffix(ends[1]): each
            for each in found
            if each["AlarmName"].startswith(ends[0]) and each["AlarmName"].endswith(ends[1])
        }  # fmt: skip

    def _subscribed(self) -> str:
        """The URL of a queue that gets what the topics of the alarms deliver."""
        sqs, name = self.client("sqs"), "drills-pager"
        url, arn = (
            sqs.create_queue(QueueName=name)["QueueUrl"],
            self.deployed.cloud.arn("sqs", name),
        )
        allow = {"Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"}, "Resource": arn}
        allowed = {"Version": "2012-10-17", "Statement": [{**allow, "Action": "sqs:SendMessage"}]}
        sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": json.dumps(allowed)})
        actions = {x for each in self.alarms().values() for x in each["AlarmActions"]}
        for topic in actions:
            self.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
        return str(url)

    def told(self) -> Iterator[tuple[str, str, str, str]]:
        """The notifications since the last look: alarm, state, reason, topic."""
        for key, each in self.alarms().items():
            if not each["AlarmActions"] and serious(each):  # one that only others are made of
                yield key, each["StateValue"], each["StateReason"], "nobody: part of others"
        sqs = self.client("sqs")
        while found := sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get(
            "Messages"
        ):
            for each in found:
                sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=each["ReceiptHandle"])
                body = json.loads(each["Body"])
                of = json.loads(body["Message"])
                key = of["AlarmName"].removeprefix("tap-stack-").removesuffix(f"-{self.env}")
                topic = body["TopicArn"].rpartition(":")[2]
                yield key, of["NewStateValue"], of["NewStateReason"], topic

    def wait_for_alarms(
        self, drill: Drill, meanwhile: Meanwhile, say: Say
    ) -> dict[str, tuple[float, str]]:
        """Seconds and topic of each alarm's notification; DrillFailed if one does not come."""
        began, seen = time.monotonic(), dict[str, tuple[float, str]]()
        while missing := [each for each in drill.alarms if each not in seen]:
            if time.monotonic() - began > drill.wait_seconds:
                raise DrillFailed(f"no notification of {', '.join(missing)}")
            meanwhile()
            for key, state, reason, topic in self.told():
                if state != "OK" and key not in seen:
                    seen[key] = time.monotonic() - began, topic
                    say(f"{topic}: {key} is in {state} ({reason}) after {seen[key][0]:.1f} s")
            time.sleep(0.05)
        return seen

    def wait_for_calm(self, keys: Sequence[str], seconds: float = WAIT_SECONDS) -> None:
        """Waits until alarms are OK."""
        deadline = time.monotonic() + seconds
        while wrong := [key for key, x in self.alarms().items() if key in keys and serious(x)]:
            if time.monotonic() > deadline:
                raise DrillFailed(f"{', '.join(wrong)}: not OK again after {seconds:.0f} s")
            time.sleep(0.05)
        [*self.told()]

    def inject(self, *keys: str) -> None:
        """Data of the very metrics of alarms, beyond their thresholds."""
        for key in keys:
            of = self.known[key]
            above = of["ComparisonOperator"].startswith("Greater")
            value = 2 * of["Threshold"] + 1 if above else 0.0
            datum = {"MetricName": of["MetricName"], "Dimensions": of["Dimensions"]}
            many = {"Values": [float(value)], "Counts": [100.0]}
            self.watch.put_metric_data(Namespace=of["Namespace"], MetricData=[{**datum, **many}])

    @functools.cached_property
    def state_bucket(self) -> str:
        """The bucket of Pulumi's state, made as in any account."""
        config = {"repository": "acme/tap-stack", "environments": self.env}
        own = self.folder / "bootstrap"
        made, _ = up(own, config, ROOT / "bootstrap", "prod-bootstrap", emulator=str(self.folder))
        return str(urlsplit(made.outputs["state_url"]).netloc)

    def of_workflow(self, role: str, service: str) -> Any:
        """A client of a workflow's role, which here the account may have: there is no GitHub."""
        name = f"tap-stack-{self.env}-{role}"
        account = {"AWS": f"arn:aws:iam::{self.deployed.cloud.account}:root"}
        trust = {"Effect": "Allow", "Principal": account, "Action": "sts:AssumeRole"}
        document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
        self.client("iam").update_assume_role_policy(RoleName=name, PolicyDocument=document)
        return as_role(self.deployed, name, service)

    @functools.cached_property
    def known(self) -> dict[str, Any]:
        """The alarms as they were at first."""
        return self.alarms()

    def runbook(self, key: str) -> str:
        """The section of the runbook to which an alarm's description leads."""
        return str(self.known[key]["AlarmDescription"]).rpartition("#")[2]

    # --- What drills share ------------------------------------------------------------------------

    def serves(self) -> None:
        """A user's walk: an item and a file; and the page, where there is one."""
        wrong = [x for part in (self.walk.item, self.walk.file) for x in part() if not x.passed]
        if wrong:
            raise DrillFailed(f"the API does not serve: {wrong}")
        if "visits" not in self.web.page():
            raise DrillFailed("the web environment does not serve")

    def ask(self, method: str = "GET", path: str = "/items", body: Any = None) -> access.Response:
        """A request of the caller, whatever its response."""
        text = None if body is None else json.dumps(body)
        return access.call(self.deployed, method, path, self.token, text)

    @contextmanager
    def without(self, holder: str, *actions: str) -> Iterator[None]:  # type: ignore[override]
        """Takes permissions from a role, for a while."""
        (role,) = (x for x in self.holders if x.name == holder and x.type.endswith("RolePolicy"))
        grants = [*needs.granted(role)]
        left = [each for each in grants if each.action not in actions]
        if len(left) == len(grants):
            raise DrillFailed(f"{holder} has none of {actions}")
        self.write(role, left)
        try:
            yield
        finally:
            self.write(role, grants)

    @contextmanager
    def release(self, function: str, **settings: Any) -> Iterator[None]:
        """A version with other settings, from which the alias goes back."""
        name, live = f"tap-stack-{function}-{self.env}", {"Name": "live"}
        before = self.functions.get_function_configuration(FunctionName=name)
        version = self.functions.get_alias(FunctionName=name, **live)["FunctionVersion"]
        if variables := settings.pop("variables", None):
            settings["Environment"] = {
                "Variables": {**before["Environment"]["Variables"], **variables}
            }
        self.functions.update_function_configuration(FunctionName=name, **settings)
        new = self.functions.publish_version(FunctionName=name)["Version"]
        self.functions.update_alias(FunctionName=name, **live, FunctionVersion=new)
        try:
            yield
        finally:
            self.functions.update_alias(FunctionName=name, **live, FunctionVersion=version)
            same = {key: before[key] for key in settings}
            self.functions.update_function_configuration(FunctionName=name, **same)

    def adopt(self, name: str, handler: Any, **found: Any) -> None:
        """What `pulumi refresh` and `pulumi up` do with a resource that has lost some settings."""
        (of,) = (x for x in self.deployed.state.resources.values() if x.name == name)
        handler.update(self.deployed.cloud, of.id, {**of.inputs, **found}, of.inputs, of.outputs)

    def event(self, function: str, event: bytes = b"{}") -> None:
        """An asynchronous event of a function."""
        live = {"FunctionName": f"tap-stack-{function}-{self.env}", "Qualifier": "live"}
        self.functions.invoke(**live, InvocationType="Event", Payload=event)

    def letters(self) -> int:
        """How many messages the dead-letter queue of files has."""
        url, name = self.outputs["files_dead_letters_url"], "ApproximateNumberOfMessages"
        of = self.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=[name])
        return int(of["Attributes"][name])

    def wait_for_letters(self, count: int) -> None:
        """Waits until so many events are dead letters at least."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self.letters() < count:
            if time.monotonic() > deadline:
                raise DrillFailed(f"{self.letters()} dead letters, not {count}")
            time.sleep(0.1)

    def redrive(self) -> None:
        """Redrives the dead letters of files as the runbook says, until none is left."""
        target = self.outputs["files_dead_letters_url"], self.outputs["files_function_name"]
        deadline = time.monotonic() + WAIT_SECONDS
        while self.letters():
            failed = [x for x in redrive(self.client("sqs"), self.functions, *target) if x.error]
            if failed and time.monotonic() > deadline:
                raise DrillFailed(f"{len(failed)} events fail again: {failed[0].error}")


def serious(alarm: Mapping[str, Any]) -> bool:
    """Whether an alarm is in a state that notifies of something wrong."""
    silent = alarm["StateValue"] == "INSUFFICIENT_DATA" and alarm["InsufficientDataActions"]
    return alarm["StateValue"] == "ALARM" or bool(silent)


class Proxy:
    """A way to the emulator on which each response comes so many seconds later."""

    def __init__(self, url: str, seconds: float):
        self.seconds, (host, port) = seconds, url.removeprefix("http://").split(":")
        self.target, self.listener = (host, int(port)), socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.target)
            for ends in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, late: bool) -> None:
        try:
            while data := source.recv(65536):
                time.sleep(self.seconds if late else 0)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


def tried(site: Site, function: str, event: Any) -> None:
    """Invokes a function, whatever becomes of it."""
    with contextlib.suppress(proof.Denied, ClientError, BotoCoreError):
        site.invoke(function, event)


@contextmanager
def crowd(count: int, work: Callable[[], object]) -> Iterator[None]:
    """So many threads do something again and again."""
    over = threading.Event()

    def repeat() -> None:
        while not over.is_set():
            work()

    threads = [threading.Thread(target=repeat, daemon=True) for _ in range(count)]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        over.set()
        for each in threads:
            each.join()


# === The API and its functions ====================================================================


BURNS = ("fast-burn", "burn", "slow-burn")
BURNING = [
    f"{system}-{rate}{window}"
    for system in ("api", "web")
    for rate in (*BURNS, *(f"{of}-{x}" for of in ("availability", "latency") for x in BURNS))
    for window in (("-long", "-short") if rate not in BURNS else ("",))
]


@drill(
    " ".join(BURNING),
    "the api function's role may not read the table, which is slow; inserts are slow and fail",
    "the role as in the program; the trigger is dropped",
    calm_seconds=500,  # six hours, of the web environment, are six minutes
)
def outage(site: Site) -> Iterator[Meanwhile]:
    proxy = Proxy(site.deployed.cloud.emulator.url, 2.3)
    slow = {"AWS_ENDPOINT_URL_DYNAMODB": proxy.url}
    denied = site.without("api-items-role-policy", "dynamodb:GetItem")
    inserts = slow_inserts(site, "RAISE EXCEPTION 'drill'")
    release, callers = (
        site.release("api", variables=slow),
        crowd(6, lambda: site.ask("GET", site.item)),
    )
    with denied, release, inserts, callers, site.web.visitors(7):
        yield nothing
    proxy.listener.close()


@drill("api-5xx", "the api function's role may not read the table", "the role as in the program")
def table_denied(site: Site) -> Iterator[Meanwhile]:
    denied = site.without("api-items-role-policy", "dynamodb:GetItem")
    with denied, crowd(2, lambda: site.ask("GET", site.item)):
        yield nothing


@drill("api-latency api-duration", "DynamoDB responds 2.3 s late", "without intervention")
def slow_table(site: Site) -> Iterator[Meanwhile]:
    proxy = Proxy(site.deployed.cloud.emulator.url, 2.3)
    with site.release("api", variables={"AWS_ENDPOINT_URL_DYNAMODB": proxy.url}):
        with crowd(6, lambda: site.ask("GET", site.item)):
            yield nothing
        proxy.seconds = 0
    proxy.listener.close()


@drill(
    "synthetics", "the api function's role may not write the table", "the role as in the program"
)
def walks_fail(site: Site) -> Iterator[Meanwhile]:
    with crowd(1, lambda: tried(site, "synthetics", {})):
        site.wait_for_calm(["synthetics"])
        with site.without("api-items-role-policy", "dynamodb:PutItem"):
            yield nothing
        site.wait_for_calm(["synthetics"])


@drill("api-errors", "a release that does not start", "`aws lambda update-alias`")
def bad_release(site: Site) -> Iterator[Meanwhile]:
    with site.release("api", Handler="index.gone"):
        yield site.ask


@drill(
    "api-throttles rotation-throttles snapshots-throttles files-throttles",
    "reserved concurrency of 1, and four calls at once",
    "`aws lambda delete-function-concurrency`",
)
def throttled(site: Site) -> Iterator[Meanwhile]:
    names = [f"tap-stack-{x}-{site.env}" for x in ("api", "rotation", "snapshots", "files")]
    for name in names:
        site.functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    event = {"dry_run": True, "Records": [{"eventName": "Probe"}]}

    def call() -> None:
        for each in ("rotation", "snapshots", "files"):
            tried(site, each, event)

    with crowd(4, call), crowd(4, site.ask):
        yield nothing
    for name in names:
        site.functions.delete_function_concurrency(FunctionName=name)


@drill(
    "rotation-errors rotation-dead-letters rotation-async-events-dropped "
    "snapshots-errors snapshots-dead-letters snapshots-async-events-dropped",
    "releases that do not start, and the day's events",
    "`aws lambda update-alias`, by hand once more, `aws sqs purge-queue`",
)
def schedules_fail(site: Site) -> Iterator[Meanwhile]:
    names = ("rotation", "snapshots")
    with ExitStack() as stack:
        for each in names:
            stack.enter_context(site.release(each, Handler="index.gone"))
            site.event(each)
        yield nothing
    for each in names:
        site.invoke(each, {})
        name = f"tap-stack-{each}-{site.env}-dead-letters"
        url = site.client("sqs").get_queue_url(QueueName=name)["QueueUrl"]
        site.client("sqs").purge_queue(QueueUrl=url)


@drill(
    "rotation-destination-failures snapshots-destination-failures",
    "the same, and the roles may not send to their queues",
    "the role as in the program",
)
def letters_denied(site: Site) -> Iterator[Meanwhile]:
    roles = {"rotation": "api-rotation-role-policy", "snapshots": "database-snapshots-role-policy"}
    with ExitStack() as stack:
        for name, role in roles.items():
            stack.enter_context(site.without(role, "sqs:SendMessage"))
            stack.enter_context(site.release(name, Handler="index.gone"))
            site.event(name)
        yield nothing
    for name in roles:
        site.invoke(name, {})


# === Items and files ==============================================================================


def capacities(site: Site, table: str, units: Callable[[str, str], int]) -> None:
    """Gives a table and its indexes units per second, by index and kind."""
    found = site.client("dynamodb").describe_table(TableName=table)["Table"]
    names = [each["IndexName"] for each in found["GlobalSecondaryIndexes"]]

    def throughput(index: str) -> dict[str, int]:
        return {f"{x}CapacityUnits": units(index, x) for x in ("Read", "Write")}

    indexes = [{"IndexName": x, "ProvisionedThroughput": throughput(x)} for x in names]
    site.client("dynamodb").update_table(
        TableName=table, BillingMode="PROVISIONED", ProvisionedThroughput=throughput(""),
        GlobalSecondaryIndexUpdates=[{"Update": each} for each in indexes],
    )  # fmt: skip


def script(site: Site, table: str, index: str) -> Meanwhile:
    """Somebody's script: reads and writes of an item until a table, or its index, is throttled."""
    dynamodb = site.client("dynamodb")
    of_index = {"IndexName": index} if index else {}
    keys = dynamodb.describe_table(TableName=table)["Table"]["KeySchema"]

    def first() -> Any:  # as soon as the units are there, after what others have used
        with contextlib.suppress(ClientError):
            (item, *_) = dynamodb.scan(TableName=table, **of_index, Limit=1)["Items"]
            key = {x["AttributeName"]: item[x["AttributeName"]] for x in keys}
            return dynamodb.get_item(TableName=table, Key=key)["Item"]

    whole = eventually(first, WAIT_SECONDS)

    def put() -> Any:  # another item each time: an index takes nothing for the same one
        padding = {"S": uuid.uuid4().hex + "x" * 350_000}
        return dynamodb.put_item(TableName=table, Item={**whole, "padding": padding})

    def use_up() -> None:
        while not code(put):
            pass
        while not code(lambda: dynamodb.scan(TableName=table, **of_index)):
            pass

    return use_up


@contextmanager
def one_unit(site: Site, table: str, index: str) -> Iterator[None]:
    """Leaves a table, or an index of it, one unit a second, for a while."""
    before = site.client("dynamodb").describe_table(TableName=table)["Table"]
    capacities(site, table, lambda each, kind: 1 if each == index else 10_000)
    try:
        yield
    finally:
        if before.get("BillingModeSummary", {}).get("BillingMode") == "PAY_PER_REQUEST":
            site.client("dynamodb").update_table(TableName=table, BillingMode="PAY_PER_REQUEST")
        else:
            places = [{**before, "IndexName": ""}, *before["GlobalSecondaryIndexes"]]
            units = {x["IndexName"]: x["ProvisionedThroughput"] for x in places}
            capacities(site, table, lambda each, kind: units[each][f"{kind}CapacityUnits"])


def throttled_place(name: str, index: str) -> Steps:
    """Steps that leave a table, or an index of it, too little."""

    def steps(site: Site) -> Iterator[Meanwhile]:
        table = f"tap-stack-{name}-{site.env}"

        recorded(site, uploaded(site)[0])  # which each index of files has
        use_up = script(site, table, index)

        def meanwhile() -> None:
            use_up()
            site.ask("POST", f"/{name}", {"category": "drill", "name": "drill"})
            site.ask("GET", f"/{name}")

        with one_unit(site, table, index):
            yield meanwhile

    return steps


PLACES = {"items": ITEM_INDEXES, "files": FILE_INDEXES}
for _name, _indexes in PLACES.items():
    for _index in ("", *_indexes):
        _key = f"{_name}-{_index.replace('_', '-')}" if _index else _name
        drill(
            f"{_key}-read-throttles {_key}-write-throttles",
            "capacity of 1 unit a second, used up by a script",
            "on demand again" if _name == "items" else "the capacity as in the program",
            name=f"{_key}-throttles",
        )(throttled_place(_name, _index))


@drill(
    "files-read-capacity files-write-capacity", "a script that reads and writes", "it is stopped"
)
def busy_table(site: Site) -> Iterator[Meanwhile]:
    table, dynamodb = site.outputs["files_table_name"], site.client("dynamodb")
    keys = [{"id": {"S": "drill"}, "record": {"S": str(number)}} for number in range(4)]

    def write() -> None:
        for key in keys:  # which no index has, so that it is the table that is busy
            big = {**key, "padding": {"S": "x" * 100_000}}
            code(functools.partial(dynamodb.put_item, TableName=table, Item=big))

    def read() -> None:
        code(functools.partial(dynamodb.scan, TableName=table, ConsistentRead=True))

    write()
    with crowd(2, read), crowd(1, write):
        yield nothing
    for key in keys:
        delete = functools.partial(dynamodb.delete_item, TableName=table, Key=key)
        eventually(lambda delete=delete: not code(delete), WAIT_SECONDS)  # type: ignore[misc]
    first = functools.partial(dynamodb.scan, TableName=table, Limit=1)
    eventually(lambda: not code(first), WAIT_SECONDS)


def uploaded(site: Site, text: bytes = b"drill") -> tuple[str, str]:
    """Path and key of a new file, which is not recorded yet."""
    name = f"{uuid.uuid4().hex}.txt"
    form, stored = access.upload(site.deployed, site.token, name, text, "text/plain", "drill")
    proof.expect(stored.status == 204, stored.body)
    return f"/files/{form.json()['id']}", str(form.json()["fields"]["key"])


def recorded(site: Site, *paths: str) -> None:
    """Waits until files are recorded and scanned: nothing was lost."""
    deadline = time.monotonic() + WAIT_SECONDS
    while missing := [x for x in paths if "scan_result" not in site.ask("GET", x).json()]:
        if time.monotonic() > deadline:
            raise DrillFailed(f"{len(missing)} of {len(paths)} files are not recorded")
        time.sleep(0.1)


@drill(
    "files-duration rotation-duration snapshots-duration",
    "the files table is throttled; SSM does not respond; RDS is slow and has old snapshots to delete",
    "the capacity as in the program; without intervention",
    wait_seconds=LONGEST_SECONDS,
)
def slow_functions(site: Site) -> Iterator[Meanwhile]:
    url, table = site.deployed.cloud.emulator.url, site.outputs["files_table_name"]
    proxies = silent, slow = Proxy(url, 600), Proxy(url, 2.6)  # below the SDK's read timeout
    file = Files(site)
    record = proof.s3_event("ObjectCreated:Put", file.key, file.version)
    record["s3"]["bucket"]["name"] = file.bucket
    changed = {
        "rotation": {"AWS_ENDPOINT_URL_SSM": silent.url},
        "snapshots": {"AWS_ENDPOINT_URL_RDS": slow.url, "SNAPSHOT_DAYS": "0", "SNAPSHOT_KEEP": "0"},
    }
    tag = {"Key": "CreatedBy", "Value": f"tap-stack-snapshots-{site.env}"}
    taken = site.web.rds.get_waiter("db_snapshot_available")
    for old in [proof.own_snapshot(site, [tag]) for _ in range(20)]:
        taken.wait(DBSnapshotIdentifier=old, WaiterConfig={"Delay": 0.1, "MaxAttempts": 600})
    with ExitStack() as stack:
        for name, variables in changed.items():
            stack.enter_context(site.release(name, variables=variables))
        items = [{"id": {"S": "drill"}, "record": {"S": str(number)}} for number in range(25)]
        puts = [{"PutRequest": {"Item": {**x, "padding": {"S": "x" * 350_000}}}} for x in items]
        write = functools.partial(
            site.client("dynamodb").batch_write_item, RequestItems={table: puts}
        )
        stack.enter_context(one_unit(site, table, ""))
        write()  # 8,750 units more than there are: a minute and a half of the local cloud's pace
        files: list[tuple[str, Any]] = [("files", {"Records": [record]})] * 2
        scheduled: list[tuple[str, Any]] = [(each, {}) for each in changed]  # they run once
        for number in range(6):  # ends of files are in several minutes, which are short here
            for name, event in [*files, *(scheduled if number == 0 else [])]:
                threading.Thread(target=tried, args=[site, name, event]).start()
            time.sleep(0.5)
        yield lambda: code(write)
    for each in proxies:
        each.listener.close()


@drill(
    "files-errors files-dead-letters files-async-events-dropped",
    "the files function's role may not write the table, and uploads",
    "the role as in the program, then `python -m ops.redrive`",
)
def records_denied(site: Site) -> Iterator[Meanwhile]:
    with site.without("files-records-role-policy", "dynamodb:PutItem"):
        paths = [uploaded(site)[0] for _ in range(5)]
        yield nothing
        site.wait_for_letters(5)
    site.redrive()
    recorded(site, *paths)


@drill(
    "files-destination-failures",
    "the files function's role may neither write the table nor send to the queue",
    "the role as in the program, then the object copied onto itself",
)
def records_lost(site: Site) -> Iterator[Meanwhile]:
    before = lost_events(site)
    with site.without("files-records-role-policy", "dynamodb:PutItem", "sqs:SendMessage"):
        path, key = uploaded(site)
        yield nothing
        eventually(lambda: lost_events(site) >= before + 2, WAIT_SECONDS)  # with that of its scan
    of = {"Bucket": site.outputs["files_bucket_name"], "Key": key}
    again: Any = {"TaggingDirective": "REPLACE", "ServerSideEncryption": "AES256"}
    site.client("s3").copy_object(**of, CopySource=of, **again)
    recorded(site, path)
    kept = site.ask("GET", path).json()["declared_type"]
    proof.expect(kept == "text/plain", f"its type is {kept}")


def lost_events(site: Site) -> int:
    """How many events of the files function have reached no dead-letter queue."""
    function, metric = f"tap-stack-files-{site.env}", "DestinationDeliveryFailures"
    return int(total(site.client("cloudwatch"), "AWS/Lambda", metric, {"FunctionName": function}))


@drill(
    "files-async-event-age rotation-async-event-age snapshots-async-event-age",
    "reserved concurrency of 1, and a call that hangs for ten minutes of the local cloud",
    "the call ends, the queue is worked off",
)
def queues_wait(site: Site) -> Iterator[Meanwhile]:
    proxy = Proxy(site.deployed.cloud.emulator.url, 8)
    with ExitStack() as stack:
        for name in ("files", "rotation", "snapshots"):
            function = {"FunctionName": f"tap-stack-{name}-{site.env}"}
            stack.enter_context(site.release(name, variables={"AWS_ENDPOINT_URL": proxy.url}))
            site.functions.put_function_concurrency(**function, ReservedConcurrentExecutions=1)
            stack.callback(site.functions.delete_function_concurrency, **function)
            for _ in range(3):  # of which none becomes a dead letter
                site.event(name, b'{"Records": [{"eventName": "Probe"}]}')
        path, _ = uploaded(site)
        yield nothing
        proxy.seconds = 0
    recorded(site, path)
    proxy.listener.close()


@drill(
    "files-recorded-events files-deleted-events",
    "the role of the pipes may not put events",
    "the role as in the program: the stream has kept the changes",
)
def events_denied(site: Site) -> Iterator[Meanwhile]:
    with site.without("files-events-role-policy", "events:PutEvents"):
        path, _ = uploaded(site)
        recorded(site, path)
        site.http("DELETE", path, 204)
        yield nothing


@drill("files-infected", "EICAR's test file is uploaded", "`aws s3api delete-object`")
def infected(site: Site) -> Iterator[Meanwhile]:
    path, key = uploaded(site, EICAR)
    yield nothing
    recorded(site, path)
    if (status := site.ask("GET", f"{path}/content").status) != 409:
        raise DrillFailed(f"its content is {status}")
    version = site.ask("GET", path).json()["version_id"]
    bucket = site.outputs["files_bucket_name"]
    site.client("s3").delete_object(Bucket=bucket, Key=key, VersionId=version)


@drill(
    "files-unscanned",
    "GuardDuty's role may not read the bucket",
    "the role as in the program, then `aws guardduty send-object-malware-scan`",
)
def unscanned(site: Site) -> Iterator[Meanwhile]:
    with site.without("files-malware-role-policy", "s3:GetObject", "s3:GetObjectVersion"):
        path, key = uploaded(site)
        yield nothing
    recorded(site, path)
    found = site.ask("GET", path).json()
    version = {"Bucket": site.outputs["files_bucket_name"], "Key": key}
    site.client("guardduty").send_object_malware_scan(
        S3Object={**version, "VersionId": found["version_id"]}
    )
    eventually(lambda: site.ask("GET", f"{path}/content").status == 302, WAIT_SECONDS)


@drill(
    "analytics-export", "the schedule's role may not export the table", "the role as in the program"
)
def export_denied(site: Site) -> Iterator[Meanwhile]:
    role = "files-analytics-schedule-role"
    with site.without(f"{role}-policy", "dynamodb:ExportTableToPointInTime"):
        threading.Thread(target=failure, args=[functools.partial(proof.export, site, role)]).start()
        yield nothing
    proof.export(site, role)


# === The web environment ==========================================================================


@drill("web-5xx", "the database is stopped", "`aws rds start-db-instance`")
def database_stopped(site: Site) -> Iterator[Meanwhile]:
    named = {"DBInstanceIdentifier": site.outputs["database_name"]}
    with site.web.visitors(30):
        site.web.rds.stop_db_instance(**named)
        yield nothing
    site.web.rds.start_db_instance(**named)
    site.web.available()


@drill(
    "web-hosts web-instances balancer-5xx",
    "the group is set to no instances",
    "`aws autoscaling update-auto-scaling-group`",
)
def no_instances(site: Site) -> Iterator[Meanwhile]:
    site.web.scaling.update_auto_scaling_group(
        AutoScalingGroupName=site.web.group, MinSize=0, DesiredCapacity=0
    )
    with site.web.visitors(30):
        yield nothing
    site.web.resize(1)


@contextmanager
def slow_inserts(site: Site, end: str = "RETURN new") -> Iterator[None]:
    """A trigger that somebody has made, by which an insert takes 2.5 s."""
    body = f"BEGIN PERFORM pg_sleep(2.5); {end}; END"
    with site.web.connect() as connection:
        connection.execute(
            f"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"
        )
        connection.execute(
            "CREATE TRIGGER slow BEFORE INSERT ON visits FOR EACH ROW EXECUTE FUNCTION slow()"
        )
        try:
            yield
        finally:
            connection.execute("DROP FUNCTION slow CASCADE")


@drill("web-latency", "a trigger makes each insert slow", "the slow statement is mended")
def slow_insert(site: Site) -> Iterator[Meanwhile]:
    with slow_inserts(site), site.web.visitors(7):
        yield nothing


@drill(
    "web-unhealthy",
    "the application hangs, and the group is to wait a day for it",
    "the grace period as in the program: the group replaces the instance",
)
def hanging_application(site: Site) -> Iterator[Meanwhile]:
    grace = site.web.described()["HealthCheckGracePeriod"]
    hangs, *_ = site.web.resize(1)

    def wait(seconds: int) -> None:
        site.web.scaling.update_auto_scaling_group(
            AutoScalingGroupName=site.web.group, HealthCheckGracePeriod=seconds
        )

    wait(86_400)
    for group, command in json.loads((web.home(site.folder) / RECORD).read_text()).items():
        if "gunicorn" in command and hangs in command:
            os.killpg(int(group), signal.SIGSTOP)
    yield nothing
    wait(grace)
    eventually(lambda: site.web.healthy() not in ([], [hangs]), WAIT_SECONDS)


@drill("balancer-rejected", "more connections than the balancer takes", "they are closed")
def too_many_connections(site: Site) -> Iterator[Meanwhile]:
    opened: list[Any] = []

    def more() -> None:
        for _ in range(500):
            connection = site.web.visitors().connect()
            connection.connect()
            opened.append(connection)

    yield more
    for each in opened:
        each.close()


@drill("database-connections", "sessions that are left open", "`pg_terminate_backend`")
def connections_left(site: Site) -> Iterator[Meanwhile]:
    with site.web.connect() as connection:
        opened = [site.web.connect() for _ in range(75)]
        yield nothing
        proof.expect(not any(each.closed for each in opened), "sessions were ended")
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        connection.execute(f"{query} WHERE usename = current_user AND pid <> pg_backend_pid()")


# === What the local cloud does not measure ========================================================

#: Why a metric is put as data -> alarms.
UNMEASURED = {
    "these instances are records": "nat-instances",
    "nobody can log in": "bastion-logins",
    "an account's concurrency is not limited": "claimed-concurrency",
    "RDS measures it": "database-memory database-latency database-read-latency "
    "database-io-credits database-byte-credits database-transaction-ids",
    "it would take all processors of this machine": "database-cpu web-cpu",
    "it would fill the disk of this machine": "database-storage web-disk",
    "it would fill the memory of this machine": "web-memory",
    "no message is refused": "alerts-undelivered pages-undelivered",
    "as a release puts it": "api-release",
}
#: The same in a stack with gateways, certificates, and warm instances of the API.
UNMEASURED_THERE = {
    "these instances are records": "bastion-instances",
    "no packet is forwarded": "nat-0-ports nat-0-drops",
    "an account's concurrency is not limited": "api-spillover",
}
THERE = {
    "nat": "single", "bastion_hours": "", "synthetics": "true", "plain_http": "false",
    "domain_name": "app.example.com", "api_domain_name": "api.example.com",
    "provisioned_concurrency_min": "1", "provisioned_concurrency_max": "1",
}  # fmt: skip


def injected(alarms: str) -> Steps:
    """Steps that put data of the metrics of alarms."""

    def steps(site: Site) -> Iterator[Meanwhile]:
        yield lambda: site.inject(*alarms.split())

    return steps


for _config, _rows in (({}, UNMEASURED), (THERE, UNMEASURED_THERE)):
    for _why, _alarms in _rows.items():
        drill(
            _alarms, f"metric injected: {_why}", "the metric ends",
            name=_alarms.partition(" ")[0], config=_config,
        )(injected(_alarms))  # fmt: skip


def minutes(site: Site, *keys: str) -> None:
    """Makes the periods of alarms a minute, for good: a day takes a quarter of an hour here."""
    names = site.watch.meta.service_model.operation_model("PutMetricAlarm").input_shape.members
    for key in keys:
        same = {name: value for name, value in site.known[key].items() if name in names}
        site.watch.put_metric_alarm(**{**same, "Period": 60})


@drill(
    "snapshot-missing", "no snapshot for 26 hours, which are minutes here", "`aws lambda invoke`"
)
def snapshot_missing(site: Site) -> Iterator[Meanwhile]:
    minutes(site, "snapshot-missing")
    site.invoke("snapshots", {})
    site.wait_for_calm(["snapshot-missing"])
    yield nothing
    site.invoke("snapshots", {})


CERTIFICATES = "api-certificate", "web-certificate"


@drill(
    " ".join(CERTIFICATES),
    "metric injected: no certificate comes to its end, and a day is a minute here",
    "the metric ends",
    config=THERE,
)
def certificates_end(site: Site) -> Iterator[Meanwhile]:
    minutes(site, *CERTIFICATES)
    yield lambda: site.inject(*CERTIFICATES)


# === Recoveries ===================================================================================


def made(site: Site, count: int) -> dict[str, Any]:
    """New items by their paths."""
    return {
        path: site.ask("GET", path).json() for path in (proof.item_put(site) for _ in range(count))
    }


def lost(site: Site, items: Mapping[str, Any]) -> str:
    """How many items are not as they were; DrillFailed if any."""
    gone = [path for path, item in items.items() if site.ask("GET", path).json() != item]
    if gone:
        raise DrillFailed(f"{len(gone)} of {len(items)} items are lost")
    return f"nothing of {len(items)} items"


@recovery("events that are dead letters", "`python -m ops.redrive`")
def redriven(site: Site) -> Recovery:
    with site.without("files-records-role-policy", "dynamodb:PutItem"):
        paths = [uploaded(site)[0] for _ in range(5)]
        site.wait_for_letters(len(paths))
    yield
    site.redrive()
    recorded(site, *paths)
    return f"nothing of {len(paths)} files"


@recovery("a release whose handler does not exist", "`aws lambda update-alias`")
def taken_back(site: Site) -> Recovery:
    items = made(site, 5)
    with site.release("api", Handler="index.gone"):
        proof.expect(site.ask().status == 500, "it serves")
        yield
    return lost(site, items)


@recovery("a launch template whose instances do not start", "the refresh rolls back by itself")
def poisoned(site: Site) -> Recovery:
    bad = site.web.new_version(lambda script: script.replace("python3.11-pip", "python4"))
    with site.web.visitors(2, 0.1) as visitors:
        yield
        status = site.web.refresh(bad)["Status"]
    proof.expect(status == "RollbackSuccessful", status)
    return visits(site, visitors)


@recovery("a deleted file", "`POST /files/{id}/versions`")
def deleted_version(site: Site) -> Recovery:
    path, _ = uploaded(site, b"before")
    recorded(site, path)
    version = site.ask("GET", path).json()["version_id"]
    site.http("DELETE", path, 204)
    eventually(lambda: "deleted_at" in site.ask("GET", path).json())
    yield
    site.http("POST", f"{path}/versions", 201, {"version_id": version})
    eventually(lambda: site.ask("GET", f"{path}/content").status == 302)
    location = site.ask("GET", f"{path}/content").headers["location"]
    proof.expect(access.request("GET", location).body == "before", location)
    return "nothing of its content"


def kept_by_the_stack(site: Site, table: str) -> dict[str, Any]:
    """What a table has that a restore does not keep."""
    dynamodb, named = site.client("dynamodb"), {"TableName": table}
    of = dynamodb.describe_table(**named)["Table"]
    backups = dynamodb.describe_continuous_backups(**named)["ContinuousBackupsDescription"]
    tags = dynamodb.list_tags_of_resource(ResourceArn=of["TableArn"])["Tags"]
    return {
        "recovery": backups["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"],
        "ttl": dynamodb.describe_time_to_live(**named)["TimeToLiveDescription"],
        "tags": {x["Key"]: x["Value"] for x in tags if not x["Key"].startswith("taplocal:")},
        "protected": of.get("DeletionProtectionEnabled"),
        "key": of["SSEDescription"],
        "indexes": sorted(each["IndexName"] for each in of["GlobalSecondaryIndexes"]),
    }


@recovery("a script deletes items and writes wrong ones", "the steps of Restoring a table")
def table_restored(site: Site) -> Recovery:
    items, table = made(site, 10), site.outputs["table_name"]
    dynamodb, before = site.client("dynamodb"), kept_by_the_stack(site, site.outputs["table_name"])
    time.sleep(1)  # a restore is of a second
    at = datetime.now(UTC)
    time.sleep(1)
    for number, path in enumerate(items):
        site.ask("DELETE" if number % 2 else "PUT", path, None if number % 2 else {"wrong": True})
    yield
    copy = f"{table}-restored"
    dynamodb.restore_table_to_point_in_time(
        SourceTableName=table, TargetTableName=copy, RestoreDateTime=at
    )
    dynamodb.get_waiter("table_exists").wait(TableName=copy)
    backup = dynamodb.create_backup(TableName=copy, BackupName=copy)["BackupDetails"]["BackupArn"]
    dynamodb.update_table(TableName=table, DeletionProtectionEnabled=False)
    dynamodb.delete_table(TableName=table)
    dynamodb.get_waiter("table_not_exists").wait(TableName=table)
    key = {"Enabled": True, "SSEType": "KMS", "KMSMasterKeyId": site.outputs["key_arn"]}
    dynamodb.restore_table_from_backup(
        TargetTableName=table, BackupArn=backup, SSESpecificationOverride=key
    )
    dynamodb.get_waiter("table_exists").wait(TableName=table)
    site.adopt(
        "api-items",
        Table(),
        ttl=None,
        pointInTimeRecovery=None,
        tags={},
        deletionProtectionEnabled=False,
    )
    if (after := kept_by_the_stack(site, table)) != before:
        raise DrillFailed(f"the table has {after}, not {before}")
    dynamodb.delete_table(TableName=copy)
    dynamodb.delete_backup(BackupArn=backup)
    return lost(site, items)


@recovery("rows are deleted by mistake", "a snapshot restored beside, the rows copied")
def rows_restored(site: Site) -> Recovery:
    name = f"{site.web.database}-beside"
    with site.web.visitors(2, 0.05) as visitors:
        eventually(lambda: len(visitors.acknowledged) > 20)
    site.web.snapshot(name)
    with site.web.connect() as connection:
        connection.execute("DELETE FROM visits")
    yield
    site.web.rds.restore_db_instance_from_db_snapshot(
        DBInstanceIdentifier=name, DBSnapshotIdentifier=name
    )
    site.web.available(name)
    with site.web.connect(name) as beside, site.web.connect() as connection:
        rows = beside.execute("SELECT id, at FROM visits").fetchall()
        connection.cursor().executemany(
            "INSERT INTO visits VALUES (%s, %s) ON CONFLICT DO NOTHING", rows
        )
    site.web.rds.delete_db_instance(DBInstanceIdentifier=name, SkipFinalSnapshot=True)
    site.web.rds.delete_db_snapshot(DBSnapshotIdentifier=name)
    return visits(site, visitors)


@recovery("a leaked key of page tokens", "`aws lambda invoke` of the rotation, twice")
def paging_key(site: Site) -> Recovery:
    items = made(site, 3)
    token = site.ask("GET", "/items?limit=1").json()["next"]
    yield
    statuses = []
    for _ in range(2):
        site.invoke("rotation", {})
        restarted(site, "api")
        statuses.append(site.ask("GET", f"/items?limit=1&next={token}").status)
    proof.expect(statuses == [200, 400], statuses)
    return lost(site, items)


@recovery("the customer-managed key is disabled", "`aws kms enable-key`")
def key_disabled(site: Site) -> Recovery:
    items, key = made(site, 3), {"KeyId": site.outputs["key_arn"]}
    site.client("kms").disable_key(**key)
    proof.expect(site.ask("GET", site.item).status == 500, "it serves")
    yield
    site.client("kms").enable_key(**key)
    return lost(site, items)


def visits(site: Site, visitors: Visitors) -> str:
    """How many acknowledged visits are lost; DrillFailed if any."""
    if gone := visitors.acknowledged - site.web.visits():
        raise DrillFailed(f"{len(gone)} of {len(visitors.acknowledged)} visits are lost")
    failed = visitors.failures.total()
    return f"nothing of {len(visitors.acknowledged)} visits; {failed} of {visitors.answers} requests failed"


@recovery("the master's password has leaked", "`aws secretsmanager rotate-secret`")
def master_secret(site: Site) -> Recovery:
    old, arn = site.web.secret()["password"], site.outputs["database_secret_arn"]
    with site.web.visitors(2, 0.1) as visitors:
        yield
        site.client("secretsmanager").rotate_secret(SecretId=arn)
        eventually(lambda: site.web.secret()["password"] != old)
        eventually(lambda: refused(lambda: site.web.visits(password=old)) == "refused")
    return visits(site, visitors)


@recovery(
    "a zone is lost: an instance and the primary database", "failover and group, by themselves"
)
def zone_lost(site: Site) -> Recovery:
    site.web.resize(2)
    site.web.standby(True)
    with site.web.visitors(2, 0.1) as visitors:
        eventually(lambda: len(visitors.acknowledged) > 20)
        yield
        again = site.web.kill("gunicorn")
        site.web.rds.reboot_db_instance(DBInstanceIdentifier=site.web.database, ForceFailover=True)
        eventually(lambda: again() and len(site.web.healthy()) == 2)
        site.web.available()
    found = visits(site, visitors)
    site.web.standby(False)
    site.web.resize(1)
    return found


def state_of(site: Site) -> dict[str, str]:
    """Where Pulumi has the stack's state. There is no Pulumi here: it is the local cloud's own."""
    return {"Bucket": site.state_bucket, "Key": f".pulumi/stacks/tap-stack/{site.env}.json"}


@recovery(
    "Pulumi's state: half of it is written over it, then it is deleted",
    "`aws s3api copy-object` of the version before",
)
def state_lost(site: Site) -> Recovery:
    s3, of, path = site.client("s3"), state_of(site), session.state_path(site.folder, site.env)
    state = path.read_bytes()
    for body in (state, state[: len(state) // 2]):
        s3.put_object(**of, Body=body)
    s3.delete_object(**of)
    yield
    found = s3.list_object_versions(Bucket=of["Bucket"], Prefix=of["Key"])["Versions"]
    version = found[1]["VersionId"]  # the newest first, which is the half
    s3.copy_object(**of, CopySource={**of, "VersionId": version})
    back = s3.get_object(**of)["Body"].read()
    proof.expect(back == state, f"{len(back)} bytes, not these {len(state)}")
    path.write_bytes(back)
    _, done = up(site.folder, {})
    proof.expect(done.counts().keys() == {"unchanged"}, done.counts())
    return f"nothing of {done.counts()['unchanged']} resources"


@recovery(
    "a killed update has left its lock, and the stack is locked",
    "`aws s3 rm` of the lock, by the role that deploys",
)
def stack_locked(site: Site) -> Recovery:
    bucket, s3 = {"Bucket": site.state_bucket}, site.of_workflow("deploy", "s3")
    locks = {**bucket, "Prefix": f".pulumi/locks/organization/tap-stack/{site.env}/"}
    lock = {"pid": 1, "username": "runner", "hostname": "gone", "timestamp": "2026-11-30T08:00:00Z"}
    s3.put_object(**state_of(site), Body=b"state")
    s3.put_object(**bucket, Key=f"{locks['Prefix']}{uuid.uuid4()}.json", Body=json.dumps(lock))
    yield
    for each in s3.list_objects_v2(**locks)["Contents"]:
        s3.delete_object(**bucket, Key=each["Key"])
    proof.expect("Contents" not in s3.list_objects_v2(**locks), "it is locked")
    proof.expect(s3.get_object(**state_of(site))["Body"].read() == b"state", "another state")
    return "nothing of its state"


def restarted(site: Site, function: str) -> None:
    """Ends the environments of a function, which keep what they have read for a while."""
    with site.release(function, Description=uuid.uuid4().hex):
        site.ask()


# === The run ======================================================================================


def perform(site: Site, drill: Drill, say: Say) -> Iterator[Result]:
    """Forces, sees, recovers, sees; raises DrillFailed."""
    site.wait_for_calm([x for x in drill.alarms if x not in SILENT])
    say(f"\n{drill.name}: {drill.forced}")
    seen, steps = dict[str, tuple[float, str]](), drill.steps(site)
    try:
        seen = site.wait_for_alarms(drill, next(steps), say)
        for anchor in dict.fromkeys(site.runbook(key) for key in drill.alarms):
            say(f"{RUNBOOK.name}#{anchor}:\n\n{section(anchor)}\n")
    finally:
        began = time.monotonic()
        next(steps, None)
    ending = [key for key in drill.alarms if not key.endswith(THREE_DAYS)]
    site.wait_for_calm(ending, drill.calm_seconds)
    seconds = time.monotonic() - began
    site.serves()
    say(f"{drill.recovered}: all OK after {seconds:.1f} s, and it serves")
    for key in drill.alarms:
        yield Result(key, drill, *seen[key], None if key.endswith(THREE_DAYS) else seconds)


def repair(site: Site, repair: Repair, say: Say) -> str:
    """Breaks, mends; a row of the table. Raises DrillFailed."""
    say(f"\n{repair.name}: {repair.broken}")
    steps, began = repair.steps(site), time.monotonic()
    next(steps)
    began, left = time.monotonic(), ""
    try:
        next(steps)
    except StopIteration as end:
        left = end.value
    seconds = time.monotonic() - began
    site.serves()
    say(f"{repair.recovered}: lost {left}, {seconds:.1f} s")
    return f"| {repair.broken} | {repair.recovered} | {left} | {seconds:.1f} s |"


def attempts(site: Site, work: Iterable[Drill | Repair], say: Say) -> dict[str, str]:
    """Does drills and recoveries, writes the rows of those that succeed; why the others failed."""
    failures = dict[str, str]()
    for each in work:
        try:
            if isinstance(each, Repair):
                new = {each.broken: repair(site, each, say)}
                write("recoveries", new, [x.broken for x in REPAIRS.values()])
            else:
                new = {x.alarm: row(x) for x in perform(site, each, say)}
                write("drills", new, [key for x in DRILLS.values() for key in x.alarms])
        except FAILURES as error:
            failures[each.name] = str(error) or type(error).__name__
            say(f"FAILED: {failures[each.name]}")
    return failures


def up(
    folder: Path,
    config: Mapping[str, str],
    program: Path = ROOT,
    env: str = "dev",
    **more: Any,
) -> tuple[Session, Summary]:
    """A program deployed quietly: by default the stack, with all options."""
    more |= {"say": lambda _: None, "report": lambda _: None}
    own = CONFIG if program == ROOT else {}
    return session.up(program, env, folder=folder, config={**own, **config}, **more)


def deployed(folder: Path, config: Mapping[str, str]) -> Site:
    """The stack on a local cloud of its own, whose minutes pass a hundred times faster."""
    os.environ["TAPLOCAL_METRICS_DELAY"] = "1"
    try:
        return Site(up(folder, config)[0])
    finally:
        del os.environ["TAPLOCAL_METRICS_DELAY"]


def row(result: Result) -> str:
    """A row of the table of drills."""
    of = result.drill
    found = (result.alarm, of.forced, f"{result.seen:.1f} s", result.topic, of.recovered)
    ended = "not awaited" if result.recovered is None else f"{result.recovered:.1f} s"
    return f"| {' | '.join(found)} | {ended} |"


def write(name: str, new: Mapping[str, str], order: Iterable[str]) -> None:
    """Writes rows, by their first cells, into a table of the runbook; the others stay."""
    text = RUNBOOK.read_text()
    _, _, rest = text.partition(f"<!-- {name} -->\n")
    head, line, *old = rest.partition("<!-- end -->")[0].splitlines()
    known = {each.split(" | ")[0].strip("| "): each for each in old} | {**new}
    kept = (known[each] for each in order if each in known)
    RUNBOOK.write_text(tables.filled(text, name, iter((head, line, *kept))))


def main(names: Sequence[str]) -> int:
    """Deploys, drills, prints, and writes the rows of what succeeded."""
    say, every = Console(highlight=False, markup=False, soft_wrap=True).print, DRILLS | REPAIRS
    if unknown := {*names} - every.keys():
        say(f"there is no drill {', '.join(unknown)}: NAME is one of {', '.join(every)}")
        return 2
    wanted = [each for each in every.values() if not names or each.name in names]
    failures, began = dict[str, str](), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            for config in ({}, THERE):
                if work := [each for each in wanted if getattr(each, "config", {}) == config]:
                    failures |= attempts(deployed(Path(folder), config), work, say)
        finally:
            session.down(ROOT, None, folder=Path(folder), report=lambda _: None)
    for name, why in failures.items():
        say(f"FAILED: {name}: {why}")
    say(f"{len(wanted)} drills, {len(failures)} failed, {time.monotonic() - began:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
