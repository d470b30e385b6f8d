"""API Gateway: HTTP APIs."""

from __future__ import annotations

from typing import Any

from taplocal.cloud import Cloud
from taplocal.resources.base import (
    Handler,
    Inputs,
    Outputs,
    Recorded,
    given,
    has_owner,
    pascal,
    removed_tags,
)


class Api(Handler):
    uses = "name description protocolType corsConfiguration disableExecuteApiEndpoint tags"
    replace_on = distinct = "protocolType"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        made = cloud.client("apigatewayv2").create_api(
            ProtocolType=inputs["protocolType"], Tags=inputs.get("tags") or {}, **_api(inputs)
        )
        return made["ApiId"], self._outputs(cloud, made["ApiId"])

    @staticmethod
    def _outputs(cloud: Cloud, api_id: str) -> Outputs:
        return {
            "apiEndpoint": f"{cloud.emulator.url}/_aws/execute-api/{api_id}",
            "executionArn": cloud.arn("execute-api", api_id),
            "arn": f"arn:aws:apigateway:{cloud.region}::/apis/{api_id}",
        }

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        api = cloud.client("apigatewayv2")
        api.update_api(ApiId=resource_id, **_api(new))
        if old.get("corsConfiguration") and not new.get("corsConfiguration"):
            api.delete_cors_configuration(ApiId=resource_id)
        if removed := removed_tags(old, new):
            api.untag_resource(ResourceArn=outputs["arn"], TagKeys=removed)
        api.tag_resource(ResourceArn=outputs["arn"], Tags=new.get("tags") or {})
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("apigatewayv2").delete_api(ApiId=resource_id)

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        apis = cloud.client("apigatewayv2").get_apis()["Items"]
        return next((x["ApiId"] for x in apis if has_owner(x.get("Tags", {}), inputs)), None)


class DomainName(Recorded):
    uses = "domainName domainNameConfiguration tags"
    replace_on = "domainName"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        name, made = inputs["domainName"], {"hostedZoneId": "Z0LOCAL"}
        made["targetDomainName"] = f"d-local.execute-api.{cloud.region}.amazonaws.com"
        return name, {"domainNameConfiguration": {**inputs["domainNameConfiguration"], **made}}


class ApiMapping(Recorded):
    uses = "apiId domainName stage"
    replace_on = "domainName"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        return inputs["domainName"], {}


class ApiPart(Handler):
    """A resource that belongs to an API."""

    noun = ""  # as in create_<noun>, get_<noun>s and <Noun>Id
    replace_on = "apiId"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        made = getattr(cloud.client("apigatewayv2"), f"create_{self.noun}")(
            ApiId=inputs["apiId"], **self.arguments(inputs)
        )
        return made[self._key()], {}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        change = getattr(cloud.client("apigatewayv2"), f"update_{self.noun}")
        change(ApiId=new["apiId"], **{self._key(): resource_id}, **self.arguments(new))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        remove = getattr(cloud.client("apigatewayv2"), f"delete_{self.noun}")
        remove(ApiId=inputs["apiId"], **{self._key(): resource_id})

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        parts = getattr(cloud.client("apigatewayv2"), f"get_{self.noun}s")(ApiId=inputs["apiId"])[
            "Items"
        ]
        wanted = self.arguments(inputs)
        same = (
            part for part in parts if all(part.get(key) == value for key, value in wanted.items())
        )
        return next((part[self._key()] for part in same), None)

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        """The arguments of the API call."""
        raise NotImplementedError

    def _key(self) -> str:
        return f"{self.noun.capitalize()}Id"


class Authorizer(ApiPart):
    noun = "authorizer"
    uses = "name apiId authorizerType identitySources jwtConfiguration"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        jwt = inputs["jwtConfiguration"]
        return {
            "Name": inputs["name"],
            "AuthorizerType": inputs["authorizerType"],
            "IdentitySource": inputs["identitySources"],
            "JwtConfiguration": {"Issuer": jwt["issuer"], "Audience": jwt["audiences"]},
        }


class Integration(ApiPart):
    noun = "integration"
    uses = """apiId integrationType integrationMethod integrationUri payloadFormatVersion
        timeoutMilliseconds"""

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {
            "IntegrationType": inputs["integrationType"],
            "IntegrationMethod": inputs["integrationMethod"],
            "IntegrationUri": inputs["integrationUri"],
            "PayloadFormatVersion": inputs["payloadFormatVersion"],
            "TimeoutInMillis": inputs["timeoutMilliseconds"],
        }


class Route(ApiPart):
    noun = "route"
    uses = "apiId routeKey target authorizationType authorizerId authorizationScopes"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return given(
            RouteKey=inputs["routeKey"],
            Target=inputs["target"],
            AuthorizationType=inputs.get("authorizationType"),
            AuthorizerId=inputs.get("authorizerId"),
            AuthorizationScopes=inputs.get("authorizationScopes"),
        )


class Stage(Handler):
    uses = """name apiId autoDeploy tags accessLogSettings.destinationArn accessLogSettings.format
        defaultRouteSettings.throttlingRateLimit defaultRouteSettings.throttlingBurstLimit
        defaultRouteSettings.detailedMetricsEnabled routeSettings.detailedMetricsEnabled
        routeSettings.routeKey routeSettings.throttlingRateLimit
        routeSettings.throttlingBurstLimit"""
    replace_on = "name apiId"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("apigatewayv2").create_stage(Tags=inputs.get("tags") or {}, **_stage(inputs))
        return inputs["name"], {}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        cloud.client("apigatewayv2").update_stage(**_stage(new))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("apigatewayv2").delete_stage(ApiId=inputs["apiId"], StageName=resource_id)


def _api(inputs: Inputs) -> dict[str, Any]:
    return given(
        Name=inputs["name"],
        Description=inputs.get("description"),
        CorsConfiguration=pascal(inputs.get("corsConfiguration")),
    )


def _stage(inputs: Inputs) -> dict[str, Any]:
    own = pascal(inputs.get("routeSettings", []))
    return given(
        ApiId=inputs["apiId"],
        StageName=inputs["name"],
        AutoDeploy=inputs.get("autoDeploy"),
        AccessLogSettings=pascal(inputs.get("accessLogSettings", {})),
        DefaultRouteSettings=pascal(inputs.get("defaultRouteSettings")),
        RouteSettings={each.pop("RouteKey"): each for each in own},
    )
