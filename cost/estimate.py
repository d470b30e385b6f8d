"""Prices the resources that the program registers, each by the inputs that decide its price."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cost import prices
from cost.load import ROWS, USUAL, Load
from cost.prices import monthly
from taplocal.errors import TapLocalError
from taplocal.program import Registration, run
from taplocal.project import Project
from taplocal.recorder import Recorder

ROOT = Path(__file__).parents[1]
#: Setting -> the values that are compared.
CHOICES = {
    "nat": ("per_az", "single", "instance", "instance_ha"),
    "database_multi_az": ("true", "false"),
    "spot_percent": ("0", "50", "100"),
    "files_table_capacity": ("10",),
    "provisioned_concurrency_min": ("10",),
    "files_events": ("true",),
    "files_malware_protection": ("true",),
    "files_analytics": ("true",),
    "detailed_metrics": ("true", "false"),
    "synthetics": ("true", "false"),
    "waf": ("true",),
}


@dataclass
class Estimate:
    """Dollars a month: without traffic, by system and kind of resource, and what a load adds."""

    load: Load
    fixed: dict[str, dict[str, float]] = field(default_factory=dict)
    by_use: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def total(self) -> float:
        """What a month without traffic costs."""
        return sum(sum(rows.values()) for rows in self.fixed.values())

    def together(self) -> float:
        """The same with the load."""
        return self.total() + sum(self.by_use.values())


def free(_inputs: Mapping[str, Any]) -> float:
    """Nothing."""
    return 0.0


def hourly(instance_class: str) -> float:
    """What an instance of a class costs an hour on demand."""
    if instance_class not in prices.HOURLY:
        raise TapLocalError(f"cost/prices.py has no price of {instance_class}: add it to HOURLY")
    return prices.HOURLY[instance_class]


def fleet(inputs: Mapping[str, Any]) -> float:
    """The instances of a group that are always there, their volumes and detailed metrics."""
    mixed = inputs["mixedInstancesPolicy"]
    kind = mixed["launchTemplate"]["overrides"][0]["instanceType"]
    on_demand: float = mixed["instancesDistribution"]["onDemandPercentageAboveBaseCapacity"] / 100
    price = hourly(kind) * (1 - (1 - on_demand) * prices.SPOT_DISCOUNT)
    least: int = inputs["minSize"]
    detailed = prices.DETAILED_METRICS * prices.METRIC if inputs["detailed"] else 0.0
    return least * (monthly(price) + prices.VOLUME_SIZE_GB * prices.VOLUME_GB + detailed)


def database(inputs: Mapping[str, Any]) -> float:
    """Instance, storage and secret, the first two twice with a standby."""
    one: float = monthly(hourly(inputs["instanceClass"]))
    one += inputs["allocatedStorage"] * prices.DATABASE_GB
    return one * (2 if inputs["multiAz"] else 1) + prices.SECRET


def table(inputs: Mapping[str, Any]) -> float:
    """Provisioned units of a table and its indexes; on demand there are none."""
    units = [inputs, *inputs.get("globalSecondaryIndexes", [])]
    return sum(
        monthly(each.get("readCapacity", 0) * prices.READ_UNIT)
        + monthly(each.get("writeCapacity", 0) * prices.WRITE_UNIT)
        for each in units
    )


def template(inputs: Mapping[str, Any]) -> float:
    """The public address of an instance and the metrics of its agent, where it has them."""
    (interface,) = inputs["networkInterfaces"]
    public = interface["associatePublicIpAddress"] == "true"
    has_agent = b"amazon-cloudwatch-agent" in base64.b64decode(inputs["userData"])
    agent: float = prices.AGENT_METRICS * prices.METRIC
    return (monthly(prices.PUBLIC_ADDRESS) if public else 0.0) + (agent if has_agent else 0.0)


def tracking(inputs: Mapping[str, Any]) -> float:
    """The alarms that a target tracking policy creates: two, and four for a table's units."""
    return (4 if inputs.get("serviceNamespace") == "dynamodb" else 2) * prices.ALARM


def balancer(inputs: Mapping[str, Any]) -> float:
    """A load balancer and a public address in each of its subnets."""
    return monthly(prices.BALANCER + len(inputs["subnets"]) * prices.PUBLIC_ADDRESS)


def endpoint(inputs: Mapping[str, Any]) -> float:
    """An interface endpoint in each zone; gateway endpoints are free."""
    return monthly(prices.INTERFACE_ENDPOINT) * len(inputs.get("subnetIds", []))


def alarm(inputs: Mapping[str, Any]) -> float:
    """An alarm; one on metric math costs each metric in it."""
    metrics = sum("metric" in each for each in inputs.get("metricQueries", ()))
    return prices.ALARM * max(1, metrics)


def app_client(inputs: Mapping[str, Any]) -> float:
    """A machine's app client; one of people is free."""
    return prices.MACHINE_CLIENT if "client_credentials" in inputs["allowedOauthFlows"] else 0.0


def provisioned_concurrency(inputs: Mapping[str, Any]) -> float:
    """Environments that are kept initialized, by the memory of their function."""
    return prices.provisioned(inputs["provisionedConcurrentExecutions"], inputs["memory"])


def walking(inputs: Mapping[str, Any]) -> float:
    """The walks through the API, if this schedule starts them; others are too few to count."""
    return prices.walks() if "-synthetics-" in inputs["name"] else 0.0


#: Type -> what it is, and dollars a month of one. A type in neither table fails a test.
PRICED: dict[str, tuple[str, Callable[[Mapping[str, Any]], float]]] = {
    "aws:appautoscaling/policy:Policy": ("alarms of target tracking", tracking),
    "aws:autoscaling/group:Group": ("instances, their volumes and metrics", fleet),
    "aws:autoscaling/policy:Policy": ("alarms of target tracking", tracking),
    "aws:cloudwatch/compositeAlarm:CompositeAlarm": ("alarms", lambda _: prices.COMPOSITE_ALARM),
    "aws:cloudwatch/metricAlarm:MetricAlarm": ("alarms", alarm),
    "aws:cognito/userPoolClient:UserPoolClient": ("app clients of machines", app_client),
    "aws:dynamodb/table:Table": ("tables, provisioned", table),
    "aws:ec2/eip:Eip": ("public addresses of NAT", lambda _: monthly(prices.PUBLIC_ADDRESS)),
    "aws:ec2/launchTemplate:LaunchTemplate": (
        "public addresses of instances, metrics of agents",
        template,
    ),
    "aws:ec2/natGateway:NatGateway": ("NAT gateways", lambda _: monthly(prices.NAT_GATEWAY)),
    "aws:ec2/vpcEndpoint:VpcEndpoint": ("interface endpoints", endpoint),
    "aws:kms/key:Key": ("key", lambda _: prices.KEY),
    "aws:lambda/provisionedConcurrencyConfig:ProvisionedConcurrencyConfig": (
        "provisioned concurrency",
        provisioned_concurrency,
    ),
    "aws:lb/loadBalancer:LoadBalancer": ("load balancer and its public addresses", balancer),
    "aws:rds/instance:Instance": ("database, storage, secret", database),
    "aws:scheduler/schedule:Schedule": ("walks of synthetics", walking),
    "aws:wafv2/webAcl:WebAcl": ("firewall", lambda x: prices.web_acl(len(x["rules"]))),
}
#: Type, or logical name -> what it costs by use that is in no row of `cost/load.py`.
LEFT_OUT = {
    "aws:athena/workgroup:Workgroup": "exports as long as they are kept, results of queries",
    "aws:cognito/userPool:UserPool": "people above 10,000",
    "aws:dynamodb/table:Table": "items of earlier months, restores",
    "aws:ec2/flowLog:FlowLog": "logs of network, instances, load balancer and database",
    "aws:ec2/launchTemplate:LaunchTemplate": "CPU credits beyond the baseline of t4g",
    "aws:ec2/vpcEndpoint:VpcEndpoint": "data through interface endpoints",
    "aws:guardduty/malwareProtectionPlan:MalwareProtectionPlan": "requests and tags of scans",
    "aws:kms/key:Key": "earlier versions of the key",
    "aws:pipes/pipe:Pipe": "reads of a table's stream by pipes",
    "aws:rds/instance:Instance": "storage that RDS adds, backups and snapshots, CPU credits",
    "aws:s3/bucket:Bucket": "files of earlier months, replaced versions, access logs",
    "aws:sns/topic:Topic": "notifications",
    "aws:sqs/queue:Queue": "requests to SQS, for what failed",
    "aws:wafv2/webAcl:WebAcl": "requests that WAF looks at",
}
#: Types that cost nothing by themselves.
FREE = {
    "acm/certificate", "acm/certificateValidation", "apigatewayv2/api",
    "apigatewayv2/apiMapping", "apigatewayv2/authorizer", "apigatewayv2/domainName",
    "apigatewayv2/integration", "apigatewayv2/route", "apigatewayv2/stage",
    "appautoscaling/target", "athena/namedQuery", "athena/workgroup", "autoscaling/schedule",
    "budgets/budget", "cloudwatch/dashboard", "cloudwatch/eventRule", "cloudwatch/eventTarget",
    "cloudwatch/logGroup", "cloudwatch/logMetricFilter", "cloudwatch/queryDefinition",
    "cognito/resourceServer", "cognito/userPool", "cognito/userPoolDomain",
    "ec2/defaultSecurityGroup", "ec2/flowLog", "ec2/internetGateway",
    "ec2/networkInterface", "ec2/route", "ec2/routeTable", "ec2/routeTableAssociation",
    "ec2/securityGroup", "ec2/subnet", "ec2/vpc", "glue/catalogDatabase", "glue/catalogTable",
    "guardduty/malwareProtectionPlan", "iam/instanceProfile", "iam/role",
    "iam/rolePolicy", "iam/serviceLinkedRole", "kms/alias", "lambda/alias", "lambda/function",
    "lambda/functionEventInvokeConfig", "lambda/invocation", "lambda/permission", "lb/listener",
    "lb/targetGroup", "pipes/pipe", "rds/eventSubscription", "rds/parameterGroup",
    "rds/subnetGroup", "route53/record", "s3/bucket", "s3/bucketCorsConfiguration",
    "s3/bucketLifecycleConfiguration",
    "s3/bucketLogging", "s3/bucketNotification", "s3/bucketOwnershipControls", "s3/bucketPolicy",
    "s3/bucketPublicAccessBlock", "s3/bucketServerSideEncryptionConfiguration",
    "s3/bucketVersioning", "scheduler/scheduleGroup",
    "sns/topic", "sns/topicPolicy",
    "sns/topicSubscription", "sqs/queue", "sqs/queuePolicy", "ssm/parameter",
    "vpc/securityGroupEgressRule", "vpc/securityGroupIngressRule", "wafv2/webAclAssociation",
}  # fmt: skip
#: Part of a load -> the resource without which there is none.
NEEDS = {"requests": "api-stage", "files": "files-uploads-bucket"}
#: Top component -> the system that it belongs to.
SYSTEMS = {
    "api": "api",
    "identity": "api",
    "synthetics": "api",
    "files": "files",
    **dict.fromkeys(("network", "storage", "database", "web", "bastion"), "web"),
}


def with_defaults(env: str, **config: str) -> Project:
    """An environment with its defaults and some settings; Pulumi.<stack>.yaml is not read."""
    keys = {key if ":" in key else f"tap-stack:{key}": value for key, value in config.items()}
    return Project(ROOT, "tap-stack", ROOT / "tap_stack.py", env, keys)


def estimate(project: Project, use: Load = USUAL) -> Estimate:
    """The estimate of a stack; raises TapLocalError if its settings are wrong."""
    return priced(recorded(project), use)


def recorded(project: Project) -> list[Registration]:
    """What a stack registers."""
    recorder = Recorder()
    run(project, recorder)
    return recorder.resources


def priced(resources: list[Registration], use: Load) -> Estimate:
    """The estimate of what was registered."""
    names = {each.name for each in resources}
    use = replace(use, **{x: 0 for x, needed in NEEDS.items() if needed not in names})
    found = Estimate(use)
    routes = sum(x.type == "aws:apigatewayv2/route:Route" for x in resources)
    functions = [x.inputs for x in resources if x.type.endswith("/function:Function")]
    memory = {each["name"]: each["memorySize"] for each in functions}
    templates = [x for x in resources if x.type.endswith("/launchTemplate:LaunchTemplate")]
    detailed = {f"{x.name}-id" for x in templates if x.inputs["monitoring"]["enabled"]}
    for each in resources:
        if not each.custom:
            continue
        part = SYSTEMS.get(each.name.partition("-")[0], "shared")
        label, price = PRICED.get(each.type, ("", free))
        of_others = {
            "memory": memory.get(each.inputs.get("functionName")),
            "detailed": _template_id(each.inputs) in detailed,
            "routes": routes,
        }
        inputs = {**each.inputs, **of_others}
        if dollars := price(inputs):
            rows = found.fixed.setdefault(part, {})
            rows[label] = rows.get(label, 0.0) + dollars
        for key, label, by_use in ROWS:
            if key in (each.name, each.type) and (dollars := by_use(use, inputs)):
                found.by_use[label] = found.by_use.get(label, 0.0) + dollars
    types = {each.type for each in resources}
    found.left_out = [what for kind, what in LEFT_OUT.items() if kind in types]
    return found


def _template_id(inputs: Mapping[str, Any]) -> str:
    """The launch template of an Auto Scaling group; empty for other resources."""
    template = inputs.get("mixedInstancesPolicy", {}).get("launchTemplate", {})
    return str(template.get("launchTemplateSpecification", {}).get("launchTemplateId", ""))


def unpriced(project: Project) -> set[str]:
    """Types that are neither in PRICED nor in FREE."""
    # A resource of another provider costs nothing at AWS.
    kinds = {each.type for each in recorded(project) if each.type.startswith("aws:")}
    return {each for each in kinds - set(PRICED) if each[4:].rpartition(":")[0] not in FREE}
