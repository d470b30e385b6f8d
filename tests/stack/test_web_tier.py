"""The web tier as it is registered: load balancer, certificate, what its instances run."""

from __future__ import annotations

import tap_stack
from tests.stack.conftest import (
    Graph,
    graph_of,
    user_data,
)

WEB = '["web"]'


def test_the_load_balancer_speaks_tls_and_nothing_else_outside_dev(graph: Graph, env: str) -> None:
    balancer = graph.one("LoadBalancer").inputs
    assert balancer["dropInvalidHeaderFields"] is True
    assert balancer["accessLogs"]["enabled"] is True
    assert balancer["enableDeletionProtection"] is (env == "prod")
    listeners = {each.inputs["port"]: each.inputs for each in graph.of("Listener")}
    actions = {port: each["defaultActions"][0]["type"] for port, each in listeners.items()}
    if env == "dev":
        assert actions == {80: "forward"}
        return
    assert actions == {80: "redirect", 443: "forward"}
    assert listeners[443]["sslPolicy"] == tap_stack.TLS_POLICY
    assert listeners[443]["certificateArn"]


def test_a_given_certificate_is_used_and_none_is_requested() -> None:
    arn = "arn:aws:acm:eu-west-1:111122223333:certificate/1"
    graph = graph_of("staging", systems=WEB, certificate_arn=arn)
    assert not graph.of("Certificate")
    assert not graph.of("Record")
    assert graph.one("Listener", "web-https").inputs["certificateArn"] == arn


def test_the_zone_of_the_name_gets_the_proof_and_the_name() -> None:
    graph = graph_of("staging", systems=WEB, domain_name="a.tap.dev", hosted_zone_id="Z01")
    assert graph.one("Certificate").inputs["domainName"] == "a.tap.dev"
    assert graph.one("Record", "web-certificate-record-a.tap.dev").inputs["zoneId"] == "Z01"
    record = graph.one("Record", "web-a-record-a.tap.dev").inputs
    assert (record["zoneId"], record["name"], record["type"]) == ("Z01", "a.tap.dev", "A")
    assert record["aliases"][0]["name"] == "balancer.example"
    assert graph.outputs["web_url"] == "https://a.tap.dev"
    assert "subjectAlternativeNames" not in graph.one("Certificate").inputs


def test_further_names_are_in_the_certificate_and_the_zone() -> None:
    names = {"domain_name": "a.tap.dev", "alternative_names": "b.tap.dev,c.tap.dev"}
    graph = graph_of("staging", systems=WEB, hosted_zone_id="Z01", **names)
    certificate = graph.one("Certificate").inputs
    assert certificate["domainName"] == "a.tap.dev"
    assert certificate["subjectAlternativeNames"] == ["b.tap.dev", "c.tap.dev"]
    records = [each.inputs for each in graph.of("Record")]
    pointing = {each["name"] for each in records if each.get("aliases")}
    assert pointing == {"a.tap.dev", "b.tap.dev", "c.tap.dev"}
    assert len(records) == 2 * len(pointing)
    for name in pointing:
        proof = graph.one("Record", f"web-certificate-record-{name}").inputs
        assert (proof["name"], proof["records"]) == (f"_proof.{name}", ["_value"])
    assert not graph_of("staging", systems=WEB, **names).of("Record")


def test_the_balancers_own_name_is_an_output_whatever_the_web_environment_is_called() -> None:
    for name in ("", "a.tap.dev"):
        graph = graph_of("dev", systems=WEB, domain_name=name)
        assert graph.outputs["web_domain_target"] == "balancer.example"


def test_the_instances_get_the_application_and_exactly_these_packages() -> None:
    script = user_data(graph_of("dev"), "web-fleet")
    source = tap_stack.bundle(
        tap_stack.web, tap_stack.run_command, tap_stack.INSTANCE_MODULES
    ).rstrip()
    assert source in script
    compile(source, "index.py", "exec")
    packages = tap_stack.text_beside("requirements-web.txt").splitlines()
    assert all(" --hash=sha256:" in each for each in packages)
    assert {each.partition("==")[0] for each in packages} >= {"gunicorn", "psycopg", "boto3"}


def test_the_firewall_is_a_choice() -> None:
    assert not graph_of("dev", systems=WEB).of("WebAcl")
    graph = graph_of("dev", systems=WEB, waf="true")
    acl = graph.one("WebAcl").inputs
    assert (acl["scope"], acl["defaultAction"]) == ("REGIONAL", {"allow": {}})
    assert [each["priority"] for each in acl["rules"]] == [0, 1, 2]
    for rule in acl["rules"]:  # a group's own actions count: nothing is only watched
        assert rule["overrideAction"] == {"none": {}}
        group = rule["statement"]["managedRuleGroupStatement"]
        assert (group["vendorName"], group["name"]) == ("AWS", rule["name"])
    association = graph.one("WebAclAssociation").inputs
    assert association["webAclArn"].endswith("web-firewall")
    assert association["resourceArn"].endswith("web-balancer")
