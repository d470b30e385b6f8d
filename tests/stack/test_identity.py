"""Identity as it is registered: the pool, its scopes, the clients of people and machines."""

from __future__ import annotations

import pytest

from tests.stack.conftest import ACCOUNT, REGION, Graph, graph_of

IDENTITY = "arn:aws:ses:us-east-1:111122223333:identity/hello@tap.dev"
SCOPES = ["items/read", "items/write", "files/read", "files/write"]
ALL_SCOPES = [*SCOPES, "files/report"]  # this one is for machines


def test_only_invited_people_with_long_passwords_get_in(graph: Graph, env: str) -> None:
    pool = graph.one("UserPool").inputs
    assert pool["adminCreateUserConfig"] == {"allowAdminCreateUserOnly": True}
    policy = pool["passwordPolicy"]
    assert policy["minimumLength"] == 14
    assert all(
        policy[f"require{kind}"] for kind in ("Lowercase", "Uppercase", "Numbers", "Symbols")
    )
    assert pool["accountRecoverySetting"]["recoveryMechanisms"] == [
        {"name": "verified_email", "priority": 1}
    ]
    assert pool["deletionProtection"] == ("ACTIVE" if env == "prod" else "INACTIVE")


def test_people_use_pkce_and_no_secret(graph: Graph) -> None:
    client = graph.one("UserPoolClient", "identity-people").inputs
    assert client["generateSecret"] is False
    assert client["allowedOauthFlows"] == ["code"]
    assert client["allowedOauthScopes"] == ["openid", "email", *SCOPES]
    assert not any("PASSWORD" in flow for flow in client["explicitAuthFlows"])


def test_a_machine_uses_client_credentials(graph: Graph) -> None:
    client = graph.one("UserPoolClient", "identity-machine-default").inputs
    assert client["generateSecret"] is True
    assert client["allowedOauthFlows"] == ["client_credentials"]
    assert client["allowedOauthScopes"] == ALL_SCOPES


def test_each_machine_has_a_client_with_its_scopes_and_is_accepted() -> None:
    graph = graph_of("dev", machine_clients='{"billing": ["items/read"], "nightly-2": ["*"]}')
    names = ("billing", "nightly-2")
    clients = [graph.one("UserPoolClient", f"identity-machine-{name}") for name in names]
    assert [each.inputs["allowedOauthScopes"] for each in clients] == [["items/read"], ALL_SCOPES]
    assert [each.inputs["name"] for each in clients] == [
        f"tap-stack-machine-{name}-dev" for name in names
    ]
    ids = {name: f"identity-machine-{name}-id" for name in names}
    assert graph.outputs["machine_client_ids"] == ids
    assert graph.one("Authorizer").inputs["jwtConfiguration"]["audiences"] == [
        "identity-people-id",
        *ids.values(),
    ]
    assert len(graph.of("UserPoolClient")) == 3


def test_a_stack_without_machines_has_people_only() -> None:
    graph = graph_of("dev", machine_clients="{}")
    assert [each.name for each in graph.of("UserPoolClient")] == ["identity-people"]
    assert graph.outputs["machine_client_ids"] == {}


def test_a_stack_without_files_has_no_scopes_of_files() -> None:
    graph = graph_of("dev", systems="api")
    assert [each.name for each in graph.of("ResourceServer")] == ["identity-items"]
    for client in graph.of("UserPoolClient"):
        scopes = set(client.inputs["allowedOauthScopes"]) - {"openid", "email"}
        assert scopes == {"items/read", "items/write"}


def test_clients_are_made_after_the_scopes_that_they_may_ask_for(graph: Graph) -> None:
    servers = {each.urn for each in graph.of("ResourceServer")}
    for client in graph.of("UserPoolClient"):
        assert servers <= set(client.depends_on)


def test_tokens_are_short_and_revocable_and_errors_say_nothing(graph: Graph) -> None:
    for client in graph.of("UserPoolClient"):
        assert (
            client.inputs["accessTokenValidity"],
            client.inputs["tokenValidityUnits"]["accessToken"],
        ) == (
            60,
            "minutes",
        )
        assert client.inputs["enableTokenRevocation"] is True
        assert client.inputs["preventUserExistenceErrors"] == "ENABLED"


def test_the_domain_is_unique_to_the_account(graph: Graph, env: str) -> None:
    assert graph.one("UserPoolDomain").inputs["domain"] == f"tap-stack-{env}-{ACCOUNT}"


def test_no_page_of_prod_is_on_somebodys_own_machine(graph: Graph, env: str) -> None:
    client = graph.one("UserPoolClient", "identity-people").inputs
    urls = [*client["callbackUrls"], *client.get("logoutUrls", [])]
    assert any("localhost" in each for each in urls) is (env != "prod")


def test_people_in_prod_have_a_second_factor() -> None:
    assert graph_of("prod").one("UserPool").inputs["mfaConfiguration"] == "ON"
    assert graph_of("prod", mfa="OPTIONAL").one("UserPool").inputs["mfaConfiguration"] == "OPTIONAL"


def test_where_people_are_sent_is_a_setting() -> None:
    url = "https://a.tap.dev/in?x=1"
    graph = graph_of("prod", callback_urls=url, logout_urls="https://a.tap.dev")
    client = graph.one("UserPoolClient", "identity-people").inputs
    assert (client["callbackUrls"], client["logoutUrls"]) == ([url], ["https://a.tap.dev"])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"emailSendingAccount": "COGNITO_DEFAULT"}),
        (
            {"email_from": "hello@tap.dev"},
            {
                "emailSendingAccount": "DEVELOPER",
                "fromEmailAddress": "hello@tap.dev",
                "sourceArn": f"arn:aws:ses:{REGION}:{ACCOUNT}:identity/tap.dev",
            },
        ),
        (
            {"email_from": "hello@tap.dev", "email_identity_arn": IDENTITY},
            {
                "emailSendingAccount": "DEVELOPER",
                "fromEmailAddress": "hello@tap.dev",
                "sourceArn": IDENTITY,
            },
        ),
    ],
)
def test_mail_is_sent_by_cognito_or_by_an_identity_of_ses(
    settings: dict[str, str], expected: dict[str, str]
) -> None:
    assert graph_of("dev", **settings).one("UserPool").inputs["emailConfiguration"] == expected


def test_threat_protection_and_second_factor_are_settings() -> None:
    pool = graph_of("dev", threat_protection="true", mfa="ON").one("UserPool").inputs
    assert (pool["userPoolTier"], pool["userPoolAddOns"]) == (
        "PLUS",
        {"advancedSecurityMode": "ENFORCED"},
    )
    assert (pool["mfaConfiguration"], pool["softwareTokenMfaConfiguration"]) == (
        "ON",
        {"enabled": True},
    )
    pool = graph_of("dev", mfa="OFF").one("UserPool").inputs
    assert pool["mfaConfiguration"] == "OFF"
    assert "softwareTokenMfaConfiguration" not in pool
