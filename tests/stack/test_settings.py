"""Settings against the program: what breaks a promise stops it before any resource."""

from __future__ import annotations

import json
import re

import pytest

from tap_stack import INSTANCE_SERVICES
from taplocal.errors import TapLocalError
from taplocal.program import run
from tests.stack.conftest import (
    ROOT,
    Recorder,
    graph_of,
    with_defaults,
)


@pytest.mark.parametrize("value", ["0", "many"])
def test_a_wrong_setting_stops_the_program_before_any_resource(value: str) -> None:
    recorder = Recorder()
    with pytest.raises(TapLocalError, match="throttle_rate must be") as caught:
        run(with_defaults("dev", throttle_rate=value, mfa="maybe"), recorder)
    assert "mfa must be" in str(caught.value)
    assert not recorder.resources


@pytest.mark.parametrize(
    ("tier", "settings", "expected"),
    [
        ("prod", {"nat": "single"}, "nat must be per_az or none in prod"),
        ("prod", {"nat": "instance"}, "nat must be per_az or none in prod"),
        ("prod", {"plain_http": "true"}, "plain_http must be false in prod"),
        ("prod", {"database_multi_az": "false"}, "database_multi_az must be true in prod"),
        ("prod", {"backup_days": "1"}, "backup_days must be 7 or more in prod"),
        ("prod", {"deletion_protection": "false"}, "deletion_protection must be true in prod"),
        ("prod", {"instances_min": "1"}, "instances_min must be 2 or more in prod"),
        ("prod", {"spot_percent": "100"}, "spot_percent must be 50 or less in prod"),
        (
            "staging",
            {"api_domain_name": "staging.example.com"},
            "api_domain_name must not be domain_name, staging.example.com",
        ),
        (
            "dev",
            {"api_certificate_arn": "arn:aws:acm:eu-west-1:111122223333:certificate/1"},
            "api_domain_name must be given with an api_certificate_arn",
        ),
        ("prod", {"mfa": "OFF"}, "mfa must be ON or OPTIONAL in prod"),
        (
            "prod",
            {"callback_urls": "http://localhost:3000/callback"},
            "callback_urls must be https URLs in prod",
        ),
        ("prod", {"logout_urls": "http://localhost"}, "logout_urls must be https URLs in prod"),
        (
            "dev",
            {"email_identity_arn": "arn:aws:ses:us-east-1:111122223333:identity/a.b"},
            "email_from must be given with an email_identity_arn",
        ),
        ("prod", {"domain_name": ""}, "domain_name or certificate_arn must be given"),
        ("staging", {"plain_http": "true"}, "plain_http must be false in staging"),
        ("dev", {"nat": "none"}, "nat must not be none without an image_id"),
        ("dev", {"zone_names": "eu-west-1"}, "zone_names must be a list of zones"),
        ("dev", {"zone_names": "eu-west-1a"}, "zone_names must be 2 different ones"),
        ("dev", {"zone_names": "eu-west-1a,eu-west-1x"}, "zone_names must be among eu-west-1a, eu"),
        (
            "dev",
            {"nat": "none", "interface_endpoints": "ec2,logs,monitoring,ssm"},
            "interface_endpoints must have autoscaling, secretsmanager, ssmmessages with nat none",
        ),
        ("dev", {"alternative_names": "www.tap.dev"}, "domain_name must be given with alt"),
        (
            "dev",
            {"domain_name": "a.tap.dev", "alternative_names": "b.tap.dev,a.tap.dev"},
            "domain_name must be given with alternative_names, which lack it and api_domain_name",
        ),
        (
            "dev",
            {
                "domain_name": "a.tap.dev",
                "alternative_names": "api.tap.dev",
                "api_domain_name": "api.tap.dev",
            },
            "domain_name must be given with alternative_names, which lack it and api_domain_name",
        ),
        *(
            ("dev", {name: f"{value},{value}"}, f"{name} must be a list of texts, each once")
            for name, value in {
                "alarm_emails": "a@tap.dev",
                "page_emails": "a@tap.dev",
                "interface_endpoints": "ssm",
                "zone_names": "eu-west-1a",
                "alternative_names": "b.tap.dev",
                "cors_origins": "https://a.tap.dev",
            }.items()
        ),
        ("dev", {"alternative_names": '[""]'}, "alternative_names must be a list of domain names"),
        *(
            ("dev", {"tags": json.dumps({tag: "x"})}, "tags must be .*; not Component, CreatedBy")
            for tag in ("Environment", "environment", "Project", "Component", "CreatedBy")
        ),
        ("dev", {"bastion_hours": "8-8"}, "bastion_hours must be two different hours"),
        ("dev", {"instances_min": "3"}, "3 is more than instances_max, 2"),
        ("dev", {"vpc_cidr": "10.0.0.0/28"}, "vpc_cidr must be /16 to /23"),
        ("dev", {"disjoint_cidrs": '["10.0.128.0/17"]'}, "share 32,768 addresses"),
        ("dev", {"snapshot_keep": "100"}, "snapshot_keep must be 1 to 90: a region keeps 100"),
        ("dev", {"backup_days": "0"}, "backup_days must be 1 to 35"),
        (
            "dev",
            {"systems": '["web", "mail"]'},
            "systems must be a list of some of api, files, web",
        ),
        ("dev", {"systems": "[]"}, "systems must be"),
        ("dev", {"bastion_hours": "8-25"}, "bastion_hours must be"),
        (
            "dev",
            {"machine_clients": '{"Billing": ["*"]}'},
            "machine_clients must be up to 48 names of 1 to 32 lower-case",
        ),
        (
            "dev",
            {"machine_clients": '{"a": ["*"], "a": ["items/read"]}'},
            "machine_clients must be an object of lists of texts, each name once, not ",
        ),
        ("dev", {"machine_clients": '{"a": "items/read"}'}, "an object of lists of texts"),
        *(
            (
                "dev",
                {"systems": "api,web", "machine_clients": f'{{"a": ["*"], "b": {scopes}}}'},
                "machine_clients.b must be a list of some of items/read, items/write, each once, "
                f"or *, not {scopes}".replace("*", r"\*").replace("[", r"\["),
            )
            for scopes in (
                "[]",
                '["items/delete"]',
                '["files/read"]',
                '["items/read", "items/read"]',
                '["*", "items/read"]',
            )
        ),
        (
            "dev",
            {"machine_clients": json.dumps({f"m{number}": ["*"] for number in range(50)})},
            "machine_clients must be up to 48 names",
        ),
        (
            "dev",
            {"environment_suffix": "dev-a-long-name1", "project": "a-long-name-of-it"},
            "32 at",
        ),
    ],
)
def test_what_breaks_a_promise_is_rejected(
    tier: str, settings: dict[str, str], expected: str
) -> None:
    with pytest.raises(TapLocalError, match=expected):
        graph_of(tier, **settings)


def test_instances_without_internet_have_an_endpoint_of_each_service_that_they_call() -> None:
    scripts = [(ROOT / f"scripts/{name}.sh").read_text() for name in ("start", "web", "agent")]
    called = {service for text in scripts for service in re.findall(r"\baws ([a-z0-9]+) ", text)}
    assert called and called <= INSTANCE_SERVICES


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, {"callback_urls", "domain_name"}),
        ({"systems": "api"}, {"callback_urls"}),
        ({"systems": "files", "alarm_emails": "ann@example.org"}, {"alarm_emails"}),
        ({"callback_urls": "https://a.tap.dev", "domain_name": "my-example.com"}, set()),
    ],
)
def test_a_placeholder_is_an_error_on_aws_before_anything_is_registered(
    settings: dict[str, str], found: set[str]
) -> None:
    recorder = Recorder()
    project = with_defaults("prod", **{"aws:endpoints": "", **settings})
    assert run(with_defaults("prod", **settings), Recorder())  # the local cloud takes it
    if not found:
        run(project, recorder)
        return
    with pytest.raises(TapLocalError) as caught:
        run(project, recorder)
    lines = str(caught.value).splitlines()[1:]
    assert {line.split()[1] for line in lines} == found
    assert all("example.com is a placeholder" in line for line in lines)
    assert not [each for each in recorder.resources if each.custom]


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(TapLocalError) as caught:
        graph_of("prod", nat="single", backup_days="1", plain_http="true", instances_max="2")
    for name in ("nat must", "backup_days must", "plain_http must", "3 is more than instances_max"):
        assert str(caught.value).count(name) == 1
