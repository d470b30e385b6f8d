"""Identity as it is registered: the pool, its scopes, the clients of people and machines."""

from __future__ import annotations

from tests.stack.conftest import ACCOUNT, Graph, graph_of

SCOPES = ["items/read", "items/write", "files/read", "files/write"]


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


def test_machines_use_client_credentials(graph: Graph) -> None:
    client = graph.one("UserPoolClient", "identity-machines").inputs
    assert client["generateSecret"] is True
    assert client["allowedOauthFlows"] == ["client_credentials"]
    assert client["allowedOauthScopes"] == SCOPES


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
