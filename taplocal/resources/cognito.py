"""Cognito: user pools, resource servers, clients, domains."""

from __future__ import annotations

from typing import Any

from taplocal.cloud import Cloud
from taplocal.resources.base import (
    Handler,
    Inputs,
    Named,
    Outputs,
    arn_by_tag,
    given,
    id_by_name,
    pascal,
)


class UserPool(Handler):
    uses = """name usernameAttributes usernameConfiguration autoVerifiedAttributes
        adminCreateUserConfig passwordPolicy mfaConfiguration softwareTokenMfaConfiguration
        accountRecoverySetting deletionProtection userPoolTier userPoolAddOns
        emailConfiguration tags"""
    replace_on = distinct = "name usernameAttributes usernameConfiguration"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cognito = cloud.client("cognito-idp")
        pool = cognito.create_user_pool(
            PoolName=inputs["name"],
            UsernameAttributes=inputs.get("usernameAttributes", []),
            UsernameConfiguration=pascal(
                inputs.get("usernameConfiguration", {"caseSensitive": True})
            ),
            **_pool(inputs),
        )["UserPool"]
        self._mfa(cloud, pool["Id"], inputs)
        endpoint = f"cognito-idp.{cloud.region}.amazonaws.com/{pool['Id']}"
        return pool["Id"], {"arn": pool["Arn"], "endpoint": endpoint}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        cloud.client("cognito-idp").update_user_pool(UserPoolId=resource_id, **_pool(new))
        self._mfa(cloud, resource_id, new)
        return outputs

    @staticmethod
    def _mfa(cloud: Cloud, pool_id: str, inputs: Inputs) -> None:
        token = inputs.get("softwareTokenMfaConfiguration")
        cloud.client("cognito-idp").set_user_pool_mfa_config(
            UserPoolId=pool_id,
            MfaConfiguration=inputs.get("mfaConfiguration", "OFF"),
            **given(SoftwareTokenMfaConfiguration=pascal(token)),
        )

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("cognito-idp").delete_user_pool(UserPoolId=resource_id)

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        arns = arn_by_tag(cloud, inputs, "cognito-idp:userpool")
        return next((arn.rpartition("/")[2] for arn in arns), None)


class ResourceServer(Handler):
    uses = "identifier name userPoolId scopes"
    id_input = "identifier"
    replace_on = "identifier userPoolId"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("cognito-idp").create_resource_server(**_server(inputs))
        return inputs["identifier"], self._outputs(inputs)

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        cloud.client("cognito-idp").update_resource_server(**_server(new))
        return self._outputs(new)

    @staticmethod
    def _outputs(inputs: Inputs) -> Outputs:
        return {
            "scopeIdentifiers": [
                f"{inputs['identifier']}/{each['scopeName']}" for each in inputs["scopes"]
            ]
        }

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("cognito-idp").delete_resource_server(
            UserPoolId=inputs["userPoolId"], Identifier=resource_id
        )


class UserPoolClient(Handler):
    uses = """name userPoolId generateSecret allowedOauthFlowsUserPoolClient allowedOauthFlows
        allowedOauthScopes callbackUrls logoutUrls supportedIdentityProviders explicitAuthFlows
        accessTokenValidity idTokenValidity refreshTokenValidity tokenValidityUnits
        enableTokenRevocation preventUserExistenceErrors"""
    replace_on = "userPoolId generateSecret"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        made = cloud.client("cognito-idp").create_user_pool_client(
            GenerateSecret=bool(inputs.get("generateSecret")), **_client(inputs)
        )["UserPoolClient"]
        secret = made.get("ClientSecret")
        return made["ClientId"], given(clientSecret=secret)

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        cloud.client("cognito-idp").update_user_pool_client(ClientId=resource_id, **_client(new))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("cognito-idp").delete_user_pool_client(
            UserPoolId=inputs["userPoolId"], ClientId=resource_id
        )

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        clients = cloud.client("cognito-idp").list_user_pool_clients(
            UserPoolId=inputs["userPoolId"], MaxResults=60
        )
        return id_by_name(clients["UserPoolClients"], "ClientId", "ClientName", inputs["name"])


class UserPoolDomain(Named):
    uses = "domain userPoolId"
    id_input = "domain"
    replace_on = "domain userPoolId"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("cognito-idp").create_user_pool_domain(
            Domain=inputs["domain"], UserPoolId=inputs["userPoolId"]
        )
        return inputs["domain"], {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("cognito-idp").delete_user_pool_domain(
            Domain=resource_id, UserPoolId=inputs["userPoolId"]
        )

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        found = cloud.client("cognito-idp").describe_user_pool_domain(Domain=inputs["domain"])
        same = found["DomainDescription"].get("UserPoolId") == inputs["userPoolId"]
        return str(inputs["domain"]) if same else None


def _pool(inputs: Inputs) -> dict[str, Any]:
    policy = inputs.get("passwordPolicy")
    return given(
        Policies=policy and {"PasswordPolicy": pascal(policy)},
        AutoVerifiedAttributes=inputs.get("autoVerifiedAttributes"),
        AdminCreateUserConfig=pascal(inputs.get("adminCreateUserConfig")),
        AccountRecoverySetting=pascal(inputs.get("accountRecoverySetting")),
        DeletionProtection=inputs.get("deletionProtection"),
        UserPoolAddOns=pascal(inputs.get("userPoolAddOns")),
        UserPoolTier=inputs.get("userPoolTier"),
        UserPoolTags=inputs.get("tags"),
    )


def _server(inputs: Inputs) -> dict[str, Any]:
    return {
        "UserPoolId": inputs["userPoolId"],
        "Identifier": inputs["identifier"],
        "Name": inputs["name"],
        "Scopes": pascal(inputs["scopes"]),
    }


def _client(inputs: Inputs) -> dict[str, Any]:
    return given(
        UserPoolId=inputs["userPoolId"],
        ClientName=inputs["name"],
        AllowedOAuthFlowsUserPoolClient=inputs.get("allowedOauthFlowsUserPoolClient"),
        AllowedOAuthFlows=inputs.get("allowedOauthFlows"),
        AllowedOAuthScopes=inputs.get("allowedOauthScopes"),
        CallbackURLs=inputs.get("callbackUrls"),
        LogoutURLs=inputs.get("logoutUrls"),
        SupportedIdentityProviders=inputs.get("supportedIdentityProviders"),
        ExplicitAuthFlows=inputs.get("explicitAuthFlows"),
        AccessTokenValidity=inputs.get("accessTokenValidity"),
        IdTokenValidity=inputs.get("idTokenValidity"),
        RefreshTokenValidity=inputs.get("refreshTokenValidity"),
        TokenValidityUnits=pascal(inputs.get("tokenValidityUnits")),
        EnableTokenRevocation=inputs.get("enableTokenRevocation"),
        PreventUserExistenceErrors=inputs.get("preventUserExistenceErrors"),
    )
