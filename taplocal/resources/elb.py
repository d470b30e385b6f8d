"""Elastic Load Balancing: load balancers, target groups, listeners; `taplocal/web` runs them."""

from __future__ import annotations

from typing import Any

from taplocal.cloud import Cloud
from taplocal.resources.base import (
    Handler,
    Inputs,
    Outputs,
    given,
    has_owner,
    removed_tags,
    settled,
    tag_list,
    tag_map,
)

LISTEN_SECONDS = 20  # the port may be an earlier supervisor's for a moment


class Tagged(Handler):
    """A resource whose id is its ARN, with tags."""

    noun = ""  # as in describe_<noun>s

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        elb, key = cloud.client("elbv2"), "".join(map(str.capitalize, self.noun.split("_")))
        for page in elb.get_paginator(f"describe_{self.noun}s").paginate(**self.parent(inputs)):
            for arn in (str(each[f"{key}Arn"]) for each in page[f"{key}s"]):
                (found,) = elb.describe_tags(ResourceArns=[arn])["TagDescriptions"]
                if has_owner(tag_map(found["Tags"]), inputs):
                    return arn
        return None

    @staticmethod
    def parent(_inputs: Inputs) -> dict[str, Any]:
        """The arguments that select a part of the resources of this kind."""
        return {}

    def retag(self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs) -> None:
        """Updates the tags."""
        elb = cloud.client("elbv2")
        if removed := removed_tags(old, new):
            elb.remove_tags(ResourceArns=[resource_id], TagKeys=removed)
        elb.add_tags(ResourceArns=[resource_id], Tags=tag_list(new.get("tags")))


class LoadBalancer(Tagged):
    noun = "load_balancer"
    distinct = "name"
    uses = """name loadBalancerType subnets securityGroups dropInvalidHeaderFields
        desyncMitigationMode enableDeletionProtection idleTimeout accessLogs tags"""
    replace_on = "name loadBalancerType"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        elb = cloud.client("elbv2")
        (made,) = elb.create_load_balancer(
            Name=inputs["name"],
            Type=inputs["loadBalancerType"],
            Subnets=inputs["subnets"],
            SecurityGroups=inputs["securityGroups"],
            Tags=tag_list(inputs.get("tags")),
        )["LoadBalancers"]
        arn = made["LoadBalancerArn"]
        self._modify_attributes(cloud, arn, inputs)
        suffix = arn.partition("loadbalancer/")[2]
        return arn, {"arn": arn, "dnsName": made["DNSName"], "arnSuffix": suffix}

    def settle(self, cloud: Cloud, inputs: Inputs) -> None:
        """Waits until it listens; TapLocalError if another program has its port."""
        name, elb = inputs["name"], cloud.client("elbv2")

        def look() -> str:
            (found,) = elb.describe_load_balancers(Names=[name])["LoadBalancers"]
            why = found["State"].get("Reason") or "nobody runs it: see web.log"
            return "" if found["State"]["Code"] == "active" else f"{name}: {why}"

        settled(look, LISTEN_SECONDS)

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        self._modify_attributes(cloud, resource_id, new)
        self.retag(cloud, resource_id, old, new)
        return outputs

    @staticmethod
    def _modify_attributes(cloud: Cloud, arn: str, inputs: Inputs) -> None:
        logs = inputs.get("accessLogs", {})
        attributes = {
            "idle_timeout.timeout_seconds": inputs["idleTimeout"],
            "routing.http.drop_invalid_header_fields.enabled": inputs["dropInvalidHeaderFields"],
            "routing.http.desync_mitigation_mode": inputs["desyncMitigationMode"],
            "access_logs.s3.enabled": logs.get("enabled", False),
            "access_logs.s3.bucket": logs.get("bucket", ""),
            "access_logs.s3.prefix": logs.get("prefix", ""),
        }
        cloud.client("elbv2").modify_load_balancer_attributes(
            LoadBalancerArn=arn,
            Attributes=[{"Key": k, "Value": str(v).lower()} for k, v in attributes.items()],
        )

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("elbv2").delete_load_balancer(LoadBalancerArn=resource_id)


class TargetGroup(Tagged):
    noun = "target_group"
    distinct = "name"
    uses = """name vpcId port protocol targetType deregistrationDelay
        loadBalancingAlgorithmType healthCheck tags"""
    replace_on = "name vpcId port protocol targetType"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        (made,) = cloud.client("elbv2").create_target_group(
            Name=inputs["name"],
            VpcId=inputs["vpcId"],
            Port=inputs["port"],
            Protocol=inputs["protocol"],
            TargetType=inputs["targetType"],
            **self._health_check(inputs),
            Tags=tag_list(inputs.get("tags")),
        )["TargetGroups"]
        arn = made["TargetGroupArn"]
        self._modify_attributes(cloud, arn, inputs)
        return arn, {"arn": arn, "arnSuffix": arn.rpartition(":")[2]}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        check = self._health_check(new)
        cloud.client("elbv2").modify_target_group(TargetGroupArn=resource_id, **check)
        self._modify_attributes(cloud, resource_id, new)
        self.retag(cloud, resource_id, old, new)
        return outputs

    @staticmethod
    def _health_check(inputs: Inputs) -> dict[str, Any]:
        check = inputs.get("healthCheck", {})
        matcher = check.get("matcher")
        return given(
            HealthCheckPath=check.get("path"),
            HealthCheckIntervalSeconds=check.get("interval"),
            HealthCheckTimeoutSeconds=check.get("timeout"),
            HealthyThresholdCount=check.get("healthyThreshold"),
            UnhealthyThresholdCount=check.get("unhealthyThreshold"),
            Matcher={"HttpCode": matcher} if matcher else None,
        )

    @staticmethod
    def _modify_attributes(cloud: Cloud, arn: str, inputs: Inputs) -> None:
        attributes = {
            "deregistration_delay.timeout_seconds": inputs.get("deregistrationDelay", 300),
            "load_balancing.algorithm.type": inputs.get(
                "loadBalancingAlgorithmType", "round_robin"
            ),
        }
        cloud.client("elbv2").modify_target_group_attributes(
            TargetGroupArn=arn,
            Attributes=[{"Key": key, "Value": str(value)} for key, value in attributes.items()],
        )

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("elbv2").delete_target_group(TargetGroupArn=resource_id)


class Listener(Tagged):
    noun = "listener"
    distinct = "loadBalancerArn port"
    uses = "loadBalancerArn port protocol sslPolicy certificateArn defaultActions tags"
    replace_on = "loadBalancerArn port protocol"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        (made,) = cloud.client("elbv2").create_listener(
            LoadBalancerArn=inputs["loadBalancerArn"],
            Port=inputs["port"],
            Protocol=inputs["protocol"],
            Tags=tag_list(inputs.get("tags")),
            **self._mutable_arguments(inputs),
        )["Listeners"]
        return made["ListenerArn"], {"arn": made["ListenerArn"]}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        cloud.client("elbv2").modify_listener(
            ListenerArn=resource_id, **self._mutable_arguments(new)
        )
        self.retag(cloud, resource_id, old, new)
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("elbv2").delete_listener(ListenerArn=resource_id)

    @staticmethod
    def parent(_inputs: Inputs) -> dict[str, Any]:
        return {"LoadBalancerArn": _inputs["loadBalancerArn"]}

    @staticmethod
    def _mutable_arguments(inputs: Inputs) -> dict[str, Any]:
        certificate = inputs.get("certificateArn")
        return given(
            SslPolicy=inputs.get("sslPolicy"),
            Certificates=[{"CertificateArn": certificate}] if certificate else None,
            DefaultActions=[_action(each) for each in inputs["defaultActions"]],
        )


def _action(action: Inputs) -> dict[str, Any]:
    if action["type"] == "forward":
        return {"Type": "forward", "TargetGroupArn": action["targetGroupArn"]}
    target = action["redirect"]
    redirect = {
        "Port": target["port"],
        "Protocol": target["protocol"],
        "StatusCode": target["statusCode"],
    }
    return {"Type": "redirect", "RedirectConfig": redirect}
