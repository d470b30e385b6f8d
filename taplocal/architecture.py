"""The architecture as it is registered: parts, and who invokes, notifies, reads or writes which.

Everything comes from the resources' types, inputs and outputs: of what is deployed, for the page,
or of what a recorder has registered, for the pictures in the documents. Nothing is drawn by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from taplocal.state import Deployed

#: Type -> its name for people, the column of its parts, what ends their logical names.
PARTS = {
    "aws:apigatewayv2/api:Api": ("HTTP API", 0, "-http"),
    "aws:lb/loadBalancer:LoadBalancer": ("load balancer", 0, ""),
    "aws:wafv2/webAcl:WebAcl": ("firewall", 0, ""),
    "aws:scheduler/schedule:Schedule": ("schedule", 0, "-schedule"),
    "aws:cloudwatch/eventRule:EventRule": ("event rule", 0, ""),
    "aws:lambda/function:Function": ("function", 1, "-function"),
    "aws:autoscaling/group:Group": ("instances", 1, "-group"),
    "aws:ec2/natGateway:NatGateway": ("NAT gateway", 1, ""),
    "aws:s3/bucket:Bucket": ("bucket", 2, "-bucket"),
    "aws:dynamodb/table:Table": ("table", 2, ""),
    "aws:ssm/parameter:Parameter": ("parameter", 2, ""),
    "aws:cognito/userPool:UserPool": ("user pool", 2, ""),
    "aws:rds/instance:Instance": ("database", 2, "-instance"),
    "aws:kms/key:Key": ("key", 1, "-key"),
    "aws:sqs/queue:Queue": ("dead letters", 3, "-dead-letters"),
    "aws:sns/topic:Topic": ("topic", 3, "-topic"),
    "aws:pipes/pipe:Pipe": ("pipe", 3, ""),
    "aws:glue/catalogTable:CatalogTable": ("Athena table", 3, "-catalog"),
    "aws:guardduty/malwareProtectionPlan:MalwareProtectionPlan": ("malware scan", 1, "-protection"),
    "aws:budgets/budget:Budget": ("budget", 2, "-budget"),
}
#: System -> the components of its parts, by the first word of their logical names.
SYSTEMS = {
    "Serverless API": ("api", "identity", "synthetics"),
    "File pipeline": ("files",),
    "Web environment": ("web", "network", "storage", "database", "bastion"),
    "Shared": ("encryption", "alerts", "monitoring"),
}
#: A resource of the first type, by the value at the path, stands for one of the third, or the
#: other way round: an alias for its function, a role for who acts with it.
STANDS = (
    ("Alias", "functionName", "Function", True),
    ("Group", "targetGroupArns.*", "TargetGroup", False),
    ("Function", "role", "Role", False),
    ("Schedule", "target.roleArn", "Role", False),
    ("Pipe", "roleArn", "Role", False),
    ("MalwareProtectionPlan", "role", "Role", False),
    ("InstanceProfile", "role", "Role", False),
    ("LaunchTemplate", "iamInstanceProfile.arn", "InstanceProfile", False),
    ("Group", "mixedInstancesPolicy.launchTemplate.launchTemplateSpecification.launchTemplateId",
     "LaunchTemplate", False),
    ("LoadBalancer", "securityGroups.*", "SecurityGroup", False),
    ("LaunchTemplate", "networkInterfaces.*.securityGroups.*", "SecurityGroup", False),
    ("Instance", "vpcSecurityGroupIds.*", "SecurityGroup", False),
)  # fmt: skip
#: What a resource of a type says: the part at a path, or itself, does it with another's.
SAYS = (
    ("Integration", "apiId Api", "invokes", "integrationUri Alias"),
    ("Authorizer", "apiId Api", "trusts", "jwtConfiguration.issuer UserPool"),
    ("BucketNotification", "bucket Bucket", "notifies",
     "lambdaFunctions.*.lambdaFunctionArn Alias"),
    ("Schedule", "", "invokes", "target.arn Alias"),
    ("Schedule", "", "fails to", "target.deadLetterConfig.arn Queue"),
    ("FunctionEventInvokeConfig", "functionName Function", "fails to",
     "destinationConfig.onFailure.destination Queue"),
    ("EventTarget", "rule EventRule", "invokes", "arn Alias"),
    ("Pipe", "", "reads", "source Table"),
    ("CatalogTable", "", "reads", "storageDescriptor.location Bucket"),
    ("Listener", "loadBalancerArn LoadBalancer", "forwards to",
     "defaultActions.*.targetGroupArn TargetGroup"),
    ("SecurityGroupIngressRule", "referencedSecurityGroupId SecurityGroup", "connects to",
     "securityGroupId SecurityGroup"),
    ("WebAclAssociation", "webAclArn WebAcl", "guards", "resourceArn LoadBalancer"),
    ("EventSubscription", "sourceIds.* Instance", "tells", "snsTopic Topic"),
    ("Budget", "", "tells", "notifications.*.subscriberSnsTopicArns.* Topic"),
    ("BucketLogging", "bucket Bucket", "logs to", "targetBucket Bucket"),
    ("LoadBalancer", "", "logs to", "accessLogs.bucket Bucket"),
)  # fmt: skip
#: First words of an action's operation -> what it does; of other services it says nothing.
VERBS = {
    "reads": ("Get", "List", "Query", "Scan", "Describe", "BatchGet"),
    "writes": ("Put", "Update", "Delete", "Create", "Send", "BatchWrite"),
    "invokes": ("Invoke",),
    "exports": ("Export",),
    "connects to": ("connect",),
}
SILENT = ("kms", "logs", "xray", "ec2", "autoscaling", "cloudwatch")
#: Dimension of an alarm -> the type of its part.
DIMENSIONS = {
    "FunctionName": "Function",
    "TableName": "Table",
    "QueueName": "Queue",
    "TopicName": "Topic",
    "ApiId": "Api",
    "LoadBalancer": "LoadBalancer",
    "AutoScalingGroupName": "Group",
    "DBInstanceIdentifier": "Instance",
    "PipeName": "Pipe",
    "NatGatewayId": "NatGateway",
}
#: Outputs by which other resources name one; an ARN, URL or suffix is of one resource only.
NAMES = ("arn", "url", "invokeArn", "streamArn", "arnSuffix", "resourceId", "endpoint")


@dataclass(frozen=True)
class Part:
    """What a reader sees as one thing; NAT gateways of several zones are one, with their count."""

    name: str
    label: str
    type: str
    kind: str
    lane: str
    column: int
    id: str
    urns: list[str] = field(default_factory=list, compare=False)


@dataclass(frozen=True)
class Edge:
    """What one part does with another: `verb` as a sentence has it, such as "reads, writes"."""

    source: str
    verb: str
    target: str


class Architecture:
    """Parts by name; edges; the alarms of each part. The order of registration changes nothing."""

    def __init__(self, resources: Mapping[str, Deployed]):
        self._resources = resources = dict(sorted(resources.items()))
        self._by_name: dict[tuple[str, str], str] = {}
        for urn, each in resources.items():
            self._by_name |= {(_kind(each.type), name): urn for name in _names(each)}
        self.parts: dict[str, Part] = {}
        self._part_of: dict[str, str] = {}
        for urn, each in resources.items():
            if each.type in PARTS:
                self._add(urn, each)
        self._stands = self._standing()
        self.edges = self._edges()
        self.alarms = self._alarms()

    def _add(self, urn: str, each: Deployed) -> None:
        kind, column, end = PARTS[each.type]
        name = re.sub(r"-\d+(?=-|$)", "", each.name)
        if name not in self.parts:
            word = name.partition("-")[0]
            lane = next((x for x, words in SYSTEMS.items() if word in words), word)
            label = name.removesuffix(end).replace("-", " ")
            self.parts[name] = Part(name, label, each.type, kind, lane, column, each.id)
        self.parts[name].urns.append(urn)
        self._part_of[urn] = name

    def _standing(self) -> dict[str, list[str]]:
        """URN -> those of what stands for it, or which it stands for."""
        found: dict[str, list[str]] = {}
        for kind, path, other, forward in STANDS:
            for urn, each in self._of(kind):
                for target in self._named(each.inputs, path, other):
                    here, there = (urn, target) if forward else (target, urn)
                    found.setdefault(here, []).append(there)
        return found

    def _of(self, kind: str) -> Iterator[tuple[str, Deployed]]:
        return (x for x in self._resources.items() if _kind(x[1].type) == kind)

    def _named(self, inputs: Any, path: str, kind: str) -> Iterator[str]:
        for text in map(str, _at(inputs, path.split("."))):
            rest = text.partition("://")[2]  # an issuer's URL, or a place in a bucket
            for name in (text, rest, rest.partition("/")[0]):
                if urn := self._by_name.get((kind, name)):
                    yield urn
                    break

    def _parts(self, urn: str) -> set[str]:
        """The parts that a resource is, or stands for."""
        if urn in self._part_of:
            return {self._part_of[urn]}
        return {name for each in self._stands.get(urn, ()) for name in self._parts(each)}

    def _edges(self) -> list[Edge]:
        verbs: dict[tuple[str, str], dict[str, None]] = {}
        for sources, verb, targets in [*self._said(), *self._allowed()]:
            for source in sorted(sources):
                for target in sorted(targets - {source}):
                    verbs.setdefault((source, target), {})[verb] = None
        return [Edge(one, _sentence(said), other) for (one, other), said in sorted(verbs.items())]

    def _said(self) -> Iterator[tuple[set[str], str, set[str]]]:
        for kind, source, verb, target in SAYS:
            for urn, each in self._of(kind):
                whose = self._named(each.inputs, *source.split()) if source else [urn]
                whom = list(self._named(each.inputs, *target.split()))
                for one in whose:
                    for other in whom:
                        yield self._parts(one), verb, self._parts(other)

    def _allowed(self) -> Iterator[tuple[set[str], str, set[str]]]:
        """What policies of roles allow to be done with parts."""
        for _, each in self._of("RolePolicy"):
            principals = {
                name
                for role in self._named(each.inputs, "role", "Role")
                for name in self._parts(role)
            }
            for statement in json.loads(each.inputs["policy"])["Statement"]:
                resources = statement.get("Resource", ())
                targets = {
                    name
                    for arn in ([resources] if isinstance(resources, str) else resources)
                    for name in self._of_arn(arn)
                }
                if statement["Effect"] == "Allow" and targets:
                    for verb in _verbs(statement["Action"]):
                        yield principals, verb, targets

    def _of_arn(self, arn: str) -> set[str]:
        """The parts of an ARN, of one below it, or of one that has a part's id in it."""
        at = arn
        while at:
            if found := [self._by_name[k] for k in self._kinds(at)]:
                return {name for urn in found for name in self._parts(urn)}
            at = at[: max(at.rfind("/"), at.rfind(":"), 0)]
        users = re.fullmatch(r"arn:aws[\w-]*:rds-db:.*:dbuser:(.+)/.+", arn)
        found = [self._by_name[k] for k in self._kinds(users[1])] if users else []
        return {name for urn in found for name in self._parts(urn)}

    def _kinds(self, name: str) -> list[tuple[str, str]]:
        """The keys by which an ARN or an own id is known."""
        return [key for kind in _ARN_KINDS if (key := (kind, name)) in self._by_name]

    def _alarms(self) -> dict[str, list[str]]:
        """Name of a part -> the names of the alarms on its metrics."""
        found: dict[str, list[str]] = {}
        for _, each in self._of("MetricAlarm"):
            for name, value in metrics_of(each.inputs)[0].get("dimensions", {}).items():
                urn = self._by_name.get((DIMENSIONS.get(name, ""), value))
                if urn and urn in self._part_of:
                    found.setdefault(self._part_of[urn], []).append(each.inputs["name"])
                    break
        return found

    def of(self, lane: str) -> Architecture:
        """The same with the parts of one lane, and those of others that they have to do with."""
        of_lane = {name for name, part in self.parts.items() if part.lane == lane}
        ends = [{each.source, each.target} for each in self.edges]
        kept = of_lane.union(*(each for each in ends if each & of_lane))
        gone = {urn for urn, name in self._part_of.items() if name not in kept}
        return Architecture({x: each for x, each in self._resources.items() if x not in gone})


_ARN_KINDS = ("Function", "Alias", "Bucket", "Table", "Parameter", "Queue", "Topic", "Instance")


def metrics_of(alarm: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What an alarm looks at: the metrics of its expression, or itself, if it names one."""
    return [x["metric"] for x in alarm.get("metricQueries", ()) if "metric" in x] or [alarm]


def _kind(type_: str) -> str:
    return type_.rpartition(":")[2]


def _names(each: Deployed) -> set[str]:
    """The texts by which other resources of a program name this one."""
    texts = {each.id, *(str(each.outputs.get(name, "")) for name in NAMES)}
    for name in ("name", "bucket", "identifier"):
        texts.add(str(each.inputs.get(name, "")))
    return texts - {""}


def _at(value: Any, path: list[str]) -> Iterator[Any]:
    """The values at a path; * stands for each element of a list."""
    if not path:
        yield value
    elif path[0] == "*":
        for each in value if isinstance(value, list) else ():
            yield from _at(each, path[1:])
    elif isinstance(value, Mapping) and path[0] in value:
        yield from _at(value[path[0]], path[1:])


def _verbs(actions: str | Iterable[str]) -> dict[str, None]:
    verbs: dict[str, None] = {}
    for action in [actions] if isinstance(actions, str) else actions:
        service, _, operation = action.partition(":")
        if service not in SILENT:
            verbs |= {verb: None for verb, starts in VERBS.items() if operation.startswith(starts)}
    return verbs


def _sentence(verbs: Iterable[str]) -> str:
    """The verbs without what another says better: who sends to a queue of failures fails to it."""
    said = list(verbs)
    if "fails to" in said or "connects to" in said:
        said = [each for each in said if each not in ("reads", "writes")]
    return ", ".join(said)


# --- The drawing ---

WIDTH, HEIGHT, GAP_X, GAP_Y = 180, 40, 58, 14
MARGIN, HEAD = 14, 26
STYLE = """
  .area { fill: #f3f5f9; stroke: #d5dbe5 } .box { fill: #fff; stroke: #8793a6 }
  text { font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1b2333 }
  .name { font-weight: 600 } .kind, .lane { fill: #5b6678; font-size: 11px }
  .lane { font-weight: 600; letter-spacing: .04em }
  .edge { fill: none; stroke: #6f86b5; stroke-width: 1.3; marker-end: url(#arrow) }
  .logs { stroke-dasharray: 2 4 } .fails { stroke-dasharray: 5 3; stroke: #b5706f }
  #arrow path { fill: #6f86b5 }
  @media (prefers-color-scheme: dark) {
    .area { fill: #171d28; stroke: #2b3444 } .box { fill: #202938; stroke: #5f6d84 }
    text { fill: #e6eaf2 } .kind, .lane { fill: #9aa7bb }
  }
"""


class Drawing:
    """It as SVG: a lane for each system, a column for each role, from doors to failures."""

    def __init__(self, architecture: Architecture):
        self.architecture = architecture
        self.cells: dict[str, tuple[float, float]] = {}
        self.columns: dict[str, list[list[str]]] = {lane: [[], [], [], []] for lane in SYSTEMS}
        for name, part in architecture.parts.items():
            columns = self.columns.setdefault(part.lane, [[], [], [], []])
            columns[self._column(part)].append(name)
        self.columns = {lane: found for lane, found in self.columns.items() if any(found)}
        self._order()
        self.height = float(MARGIN)
        self.areas = list(self._place())
        self.width = 2 * MARGIN + 4 * WIDTH + 3 * GAP_X + 2 * MARGIN

    def _column(self, part: Part) -> int:
        """A bucket is a door if it notifies, and the last if only logs come to it."""
        if part.kind != "bucket":
            return part.column
        edges = self.architecture.edges
        if any(each.verb == "notifies" and each.source == part.name for each in edges):
            return 0
        coming = [each.verb for each in edges if each.target == part.name]
        return 3 if coming and set(coming) == {"logs to"} else part.column

    def _order(self) -> None:
        """Sorts each column by the mean of its neighbours' places, four times."""
        near: dict[str, list[str]] = {name: [] for name in self.architecture.parts}
        for each in self.architecture.edges:
            near[each.source].append(each.target)
            near[each.target].append(each.source)
        for _ in range(4):
            place = {
                name: 10 * number + row  # another lane is farther than any row of this one
                for number, columns in enumerate(self.columns.values())
                for column in columns
                for row, name in enumerate(column)
            }
            means = {
                name: sum(place[x] for x in names) / len(names) if names else place[name]
                for name, names in near.items()
            }
            for columns in self.columns.values():
                for column in columns:
                    column.sort(key=means.__getitem__)

    def _place(self) -> Iterator[tuple[str, float, float]]:
        """Sets the cells; yields each lane with its top and its height."""
        for lane, columns in self.columns.items():
            rows = max(map(len, columns))
            height = HEAD + rows * (HEIGHT + GAP_Y)
            for number, column in enumerate(columns):
                for row, name in enumerate(column):
                    x = 2 * MARGIN + number * (WIDTH + GAP_X)
                    self.cells[name] = x, self.height + HEAD + row * (HEIGHT + GAP_Y)
            yield lane, self.height, height
            self.height += height + MARGIN

    def svg(self, title: str, style: bool = True) -> str:
        """The text of the picture; without a style for a page that has its own."""
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height:g}" '
            f'class="architecture">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>',
        ]
        if style:
            lines.append(f"<style>{STYLE}</style>")
        for lane, top, height in self.areas:
            width = self.width - 2 * MARGIN
            lines.append(
                f'<rect class="area" x="{MARGIN}" y="{top:g}" width="{width}" '
                f'height="{height:g}" rx="8"/><text class="lane" x="{2 * MARGIN}" '
                f'y="{top + 18:g}">{escape(lane)}</text>'
            )
        lines += map(self._edge, self.architecture.edges)
        lines += map(self._part, self.architecture.parts.values())
        return "\n".join([*lines, "</svg>"]) + "\n"

    def _part(self, part: Part) -> str:
        x, y = self.cells[part.name]
        count = len(part.urns)
        kind = f"{count} × {part.kind}" if count > 1 else part.kind
        return (
            f'<g class="part" data-part={quoteattr(part.name)} transform="translate({x:g} {y:g})">'
            f"<title>{escape(part.name)}</title>"
            f'<rect class="box" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
            f'<text class="name" x="12" y="17">{escape(part.label)}</text>'
            f'<text class="kind" x="12" y="32">{escape(kind)}</text></g>'
        )

    def _edge(self, edge: Edge) -> str:
        words = {"fails to": " fails", "logs to": " logs"}
        return (
            f'<path class="edge{words.get(edge.verb, "")}" data-source={quoteattr(edge.source)} '
            f'data-target={quoteattr(edge.target)} d="{self._path(edge)}">'
            f"<title>{escape(f'{edge.source} {edge.verb} {edge.target}')}</title></path>"
        )

    def _path(self, edge: Edge) -> str:
        """A curve from side to side; past the boxes between, through the gap above or below."""
        (x1, y1), (x2, y2) = self.cells[edge.source], self.cells[edge.target]
        y1, y2 = y1 + HEIGHT / 2, y2 + HEIGHT / 2
        if x1 == x2:  # around, at the left
            return f"M{x1:g} {y1:g}C{x1 - 34:g} {y1:g} {x2 - 34:g} {y2:g} {x2:g} {y2:g}"
        step = WIDTH + GAP_X
        forth = 1 if x2 > x1 else -1
        at, end = (x1 + WIDTH, x2) if forth > 0 else (x1, x2 + WIDTH)
        y, path = y1, f"M{at:g} {y1:g}"
        between = range(1, round(abs(x2 - x1) / step))
        for number in between:
            ideal = y1 + (y2 - y1) * number / (len(between) + 1)
            gap = self._gap(x1 + forth * number * step, ideal)
            near = x1 + forth * number * step + (0 if forth > 0 else WIDTH)
            path += _curve(at, y, near, gap) + f"H{near + forth * WIDTH:g}"
            at, y = near + forth * WIDTH, gap
        return path + _curve(at, y, end, y2)

    def _gap(self, x: float, ideal: float) -> float:
        """The height nearest to one at which no box of a column is."""
        taken = [y for cx, y in self.cells.values() if cx == x]
        free = [ideal, *(y - GAP_Y / 2 for y in taken), *(y + HEIGHT + GAP_Y / 2 for y in taken)]
        return min(
            (each for each in free if not any(y <= each <= y + HEIGHT for y in taken)),
            key=lambda each: abs(each - ideal),
        )


def _curve(x1: float, y1: float, x2: float, y2: float) -> str:
    middle = (x1 + x2) / 2
    return f"C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}"
