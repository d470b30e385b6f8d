"""The serverless API as it is registered: table, functions, routes, stage, paging key."""

from __future__ import annotations

import json

import pytest

import tap_stack
from tests.stack.conftest import ACCOUNT, REGION, ROOT, Graph, graph_of, statements


def test_the_table_is_on_demand_recoverable_and_indexed_for_its_queries(
    graph: Graph, env: str
) -> None:
    table = graph.one("Table", "api-items").inputs
    assert table["billingMode"] == "PAY_PER_REQUEST"
    assert (table["hashKey"], table["rangeKey"]) == ("owner", "id")
    assert table["pointInTimeRecovery"] == {"enabled": True}
    assert table["ttl"] == {"attributeName": "expires_at", "enabled": True}
    assert table["deletionProtectionEnabled"] is (env == "prod")
    keys = {
        each["name"]: [key["attributeName"] for key in each["keySchemas"]]
        for each in table["globalSecondaryIndexes"]
    }
    assert keys == {
        "by_owner": ["owner", "created_at"],
        "by_category": ["owner_category", "created_at"],
    }


def test_the_table_can_be_named() -> None:
    assert graph_of("dev", table_name="orders").one("Table", "api-items").inputs["name"] == "orders"
    assert graph_of("dev", table_name="orders").outputs["table_name"] == "orders"


def test_traffic_goes_to_the_live_alias_and_only_this_api_may_send_it(graph: Graph) -> None:
    alias = graph.one("aws:lambda/alias:Alias", "api-items-live")
    assert alias.inputs["name"] == "live"
    assert f"functions/{alias.name}/" in graph.one("Integration").inputs["integrationUri"]
    permission = graph.one("Permission", "api-invoke").inputs
    assert (permission["qualifier"], permission["principal"]) == (
        "live",
        "apigateway.amazonaws.com",
    )
    assert permission["sourceArn"] == f"arn:aws:execute-api:{REGION}:{ACCOUNT}:api/*"


OPEN_ROUTES = {"GET /health", "HEAD /health", "GET /openapi.yaml", "HEAD /openapi.yaml"}


def test_every_route_wants_a_token_with_its_scope(graph: Graph) -> None:
    routes = {
        each.inputs["routeKey"]: each.inputs for each in graph.of("aws:apigatewayv2/route:Route")
    }
    assert routes.keys() == {*tap_stack.all_routes(), "$default", "OPTIONS /{proxy+}"}
    for key in tap_stack.all_routes().keys() - OPEN_ROUTES:
        assert (routes[key]["authorizationType"], routes[key]["authorizationScopes"]) == (
            "JWT",
            [tap_stack.all_routes()[key].scope],
        )
    assert routes["$default"]["authorizationType"] == "JWT"
    # The listed exceptions; a browser's preflight carries no token.
    free = {key for key, route in routes.items() if route["authorizationType"] == "NONE"}
    assert free == {*OPEN_ROUTES, "OPTIONS /{proxy+}"}


def test_a_file_is_in_the_package_of_the_function_that_reads_it_only(graph: Graph) -> None:
    packages = {each.name: each.inputs["code"] for each in graph.of("aws:lambda/function:Function")}
    readers = {"openapi.yaml": "api-items-function", "content_types.txt": "files-records-function"}
    for name, function in readers.items():
        package = packages.pop(function)
        assert package.keys() == {"index.py", name}
        assert package[name] == (ROOT / name).read_text()
    assert all(files.keys() == {"index.py"} for files in packages.values())


def test_tokens_come_from_the_pool_for_its_clients(graph: Graph, env: str) -> None:
    jwt = graph.one("Authorizer").inputs["jwtConfiguration"]
    assert jwt["issuer"] == f"https://cognito-idp.{REGION}.amazonaws.com/pool"
    walker = [] if env == "dev" else ["identity-synthetics-id"]
    assert jwt["audiences"] == ["identity-people-id", "identity-machine-default-id", *walker]


def test_the_default_address_is_the_only_one_without_a_domain_name(graph: Graph) -> None:
    assert "disableExecuteApiEndpoint" not in graph.one("Api").inputs
    assert not graph.of("DomainName") and not graph.of("ApiMapping")
    assert graph.outputs["api_url"] == "https://api.example"


DOMAIN = {"systems": "api", "api_domain_name": "api.tap.dev"}


def test_the_apis_own_domain_name_is_its_only_address_over_tls_1_2() -> None:
    graph = graph_of("dev", **DOMAIN, hosted_zone_id="Z01")
    domain = graph.one("DomainName").inputs
    certificate = graph.one("CertificateValidation", "api-certificate-validation")
    assert domain["domainName"] == graph.one("Certificate").inputs["domainName"] == "api.tap.dev"
    assert domain["domainNameConfiguration"] == {
        "certificateArn": f"arn:aws:test:{REGION}:{ACCOUNT}:CertificateValidation/{certificate.name}",
        "endpointType": "REGIONAL",
        "ipAddressType": "dualstack",
        "securityPolicy": "TLS_1_2",
    }
    mapping = graph.one("ApiMapping").inputs
    assert (mapping["apiId"], mapping["domainName"]) == ("api-http-id", "api-domain-id")
    assert (mapping["stage"], "apiMappingKey" in mapping) == ("$default", False)
    assert graph.one("Api").inputs["disableExecuteApiEndpoint"] is True
    assert graph.outputs["api_url"] == "https://api.tap.dev"
    assert graph.outputs["api_domain_target"] == "d-1.execute-api.example"
    for kind in ("A", "AAAA"):
        record = graph.one("Record", f"api-{kind.lower()}-record-api.tap.dev").inputs
        assert (record["zoneId"], record["name"], record["type"]) == ("Z01", "api.tap.dev", kind)
        target = {"name": "d-1.execute-api.example", "zoneId": "ZAPI"}
        assert record["aliases"] == [{**target, "evaluateTargetHealth": False}]
    assert graph.one("Record", "api-certificate-record-api.tap.dev").inputs["zoneId"] == "Z01"


def test_a_given_certificate_of_the_api_needs_no_zone() -> None:
    arn = "arn:aws:acm:eu-west-1:111122223333:certificate/1"
    graph = graph_of("dev", **DOMAIN, api_certificate_arn=arn)
    assert not graph.of("Certificate") and not graph.of("Record")
    assert graph.one("DomainName").inputs["domainNameConfiguration"]["certificateArn"] == arn


def test_callers_of_the_default_address_can_move_before_it_is_gone() -> None:
    graph = graph_of("dev", **DOMAIN, api_default_endpoint="true")
    assert "disableExecuteApiEndpoint" not in graph.one("Api").inputs
    assert graph.outputs["api_url"] == "https://api.tap.dev"


def test_the_stage_throttles_with_both_limits_and_logs_json(graph: Graph, env: str) -> None:
    stage = graph.one("Stage").inputs
    limits = stage["defaultRouteSettings"]
    tier = tap_stack.TapStackArgs(environment_suffix=env)
    assert limits["throttlingRateLimit"] == tier.throttle_rate > 0
    assert limits["throttlingBurstLimit"] == tier.throttle_burst > 0
    assert limits["detailedMetricsEnabled"] is tier.detailed_metrics
    assert json.loads(stage["accessLogSettings"]["format"])["requestId"] == "$context.requestId"


def test_totals_leave_half_of_the_table_to_others(graph: Graph, env: str) -> None:
    stage = graph.one("Stage", "api-stage")
    settings = {each["routeKey"]: each for each in stage.inputs["routeSettings"]}
    totals = settings["GET /files/totals"]
    assert totals["detailedMetricsEnabled"] is (env != "dev"), "a setting of a route wins whole"
    assert (totals["throttlingRateLimit"], totals["throttlingBurstLimit"]) == (0.75, 10)
    dear = [f"{method} /files/{x}" for x in ("totals", "report") for method in ("GET", "HEAD")]
    rates = [settings[key]["throttlingRateLimit"] for key in dear]
    assert rates == [0.75, 0.06, 0.38, 0.06]
    assert sum(rates) * tap_stack.TOTALS_READ_UNITS <= 100 / 2
    assert graph.one("Route", "api-get-files-totals").urn in stage.depends_on
    open_routes = settings.keys() - {*dear}
    # What no page may ask for has a small rate; preflights have that of the stage.
    assert open_routes == {*OPEN_ROUTES, *(() if env == "dev" else ("OPTIONS /{proxy+}",))}
    assert {settings[key]["throttlingRateLimit"] for key in open_routes} == {10}


def test_a_page_of_totals_takes_no_more_units_than_the_throttle_reckons_with() -> None:
    owner, content_type = "0" * 36, "application/vnd.openxmlformats-officedocument"
    record = f"{owner}/2026-11-24/{content_type}/f"
    attributes = {"id": "totals#2026-11", "record": record, "count": "123", "bytes": "123456789"}
    attributes |= {f"deleted_{x}": attributes[x] for x in ("count", "bytes")}
    item = sum(map(len, attributes)) + len("totals#2026-11") + len(record) + 2 * (3 + 6)
    read = (100 + 1) * tap_stack.TOTAL_SHARDS * item
    # Half a unit for 4 KB, of each query (developer guide).
    assert read / 4_096 / 2 + tap_stack.REPORT_MONTHS / 2 <= tap_stack.TOTALS_READ_UNITS


@pytest.mark.parametrize(("units", "rate"), [("6", 0.04), ("1000", 7.5), ("32000", 50)])
def test_the_throttle_of_totals_follows_the_table(units: str, rate: float) -> None:
    graph = graph_of("dev", files_table_capacity=units)
    settings = graph.one("Stage", "api-stage").inputs["routeSettings"]
    (totals,) = [each for each in settings if each["routeKey"] == "GET /files/totals"]
    assert totals["throttlingRateLimit"] == rate
    assert min(each["throttlingRateLimit"] for each in settings) >= 0.01, "0 would be none at all"


def test_cors_lets_only_configured_origins_in(graph: Graph, env: str) -> None:
    cors = graph.one("Api").inputs.get("corsConfiguration")
    assert (cors or {}).get("allowOrigins", []) == list(
        tap_stack.TapStackArgs(environment_suffix=env).cors_origins
    )
    own = (
        graph_of("prod", cors_origins='["https://app.example.com"]')
        .one("Api")
        .inputs["corsConfiguration"]
    )
    assert own["allowOrigins"] == ["https://app.example.com"]
    assert {"if-match", "idempotency-key"} <= set(own["allowHeaders"])
    assert {key.split()[0] for key in tap_stack.all_routes()} == set(own["allowMethods"])
    assert {"etag", "link", "location", "retry-after"} <= set(own["exposeHeaders"])


def test_the_paging_key_is_written_by_nobody_but_the_rotation(graph: Graph) -> None:
    parameter = graph.one("Parameter").inputs
    assert (parameter["type"], parameter["valueWo"]) == ("SecureString", "unset")
    assert "value" not in parameter
    writers = [
        each.name
        for each in graph.of("RolePolicy")
        if any(
            "ssm:PutParameter" in statement["Action"]
            for statement in statements(each.inputs["policy"])
        )
    ]
    assert writers == ["api-rotation-role-policy"]


def test_what_replaces_the_paging_key_rotates_it_at_once_and_a_refresh_does_not(
    graph: Graph,
) -> None:
    parameter = graph.one("Parameter")
    (trigger,) = graph.one("Invocation").inputs["triggers"].values()
    # A refresh removes valueWo from the inputs in the state, and another name is another parameter.
    replacing = parameter.inputs.keys() - {"name", "tags", "valueWo"}
    assert set(parameter.replace_on_changes) == replacing
    assert [key for key in replacing if str(parameter.inputs[key]) not in trigger] == []


def test_the_rotation_is_retried_within_bounds_and_leaves_a_dead_letter(graph: Graph) -> None:
    retries = graph.one("FunctionEventInvokeConfig", "api-rotation-retries").inputs
    destination = retries["destinationConfig"]["onFailure"]["destination"]
    assert destination.endswith(":Queue/api-rotation-dead-letters")
    assert (retries["maximumRetryAttempts"], retries["maximumEventAgeInSeconds"]) == (2, 3600)
    assert retries["qualifier"] == "live"
    target = graph.one("Schedule", "api-rotation-schedule").inputs["target"]
    assert target["arn"].endswith("api-rotation-live")
    assert target["retryPolicy"]["maximumRetryAttempts"] == 10
