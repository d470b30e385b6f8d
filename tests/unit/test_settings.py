"""Settings: defaults by environment, validation, all errors at once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

import pulumi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pulumi.runtime import config as pulumi_config

from tap_stack import MOST_TAGS, TIERS, PerTier, SettingsError, TapStackArgs

DEFAULTS = {each.name: each.metadata["default"] for each in fields(TapStackArgs)}


def test_environment_defaults_to_dev() -> None:
    assert TapStackArgs().environment_suffix == "dev"
    assert TapStackArgs().throttle_rate == DEFAULTS["throttle_rate"].dev


def defaults_of(tier: str) -> dict[str, Any]:
    """What the settings have in a tier, but for its name."""
    values = {
        key: getattr(value, tier) if isinstance(value, PerTier) else value
        for key, value in DEFAULTS.items()
    }
    return {**values, "environment_suffix": tier}


@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_is_valid_by_its_defaults(tier: str) -> None:
    assert vars(TapStackArgs(environment_suffix=tier)) == defaults_of(tier)


def loaded(monkeypatch: pytest.MonkeyPatch, stack: str, **config: str) -> TapStackArgs:
    """The settings of a stack, configured as Pulumi's language host does it: by the environment."""
    keys = {f"tap-stack:{key}": value for key, value in config.items()}
    pulumi_config.CONFIG.set({})  # what another test has configured
    monkeypatch.setenv("PULUMI_CONFIG", json.dumps({"aws:region": "eu-west-1", **keys}))
    monkeypatch.setattr(pulumi, "get_stack", lambda: stack)
    monkeypatch.setattr(pulumi.config, "get_project", lambda: "tap-stack")
    return TapStackArgs.load()


@pytest.mark.parametrize("name", ["", "-eu"])
@pytest.mark.parametrize("tier", TIERS)
def test_a_stack_has_the_defaults_of_its_tier_under_the_engine(
    tier: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {**defaults_of(tier), "environment_suffix": tier + name}
    assert vars(loaded(monkeypatch, tier + name)) == expected
    assert vars(loaded(monkeypatch, "any", environment_suffix=tier + name)) == expected


def test_a_stack_whose_name_and_environment_disagree_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", warnings.append)
    loaded(monkeypatch, "prod", environment_suffix="prod")
    loaded(monkeypatch, "prod-eu")
    assert warnings == []
    assert loaded(monkeypatch, "production").environment_suffix == "dev"
    loaded(monkeypatch, "prod", environment_suffix="staging")
    assert [each.split(": ")[0] for each in warnings] == [
        "the stack production deploys the environment dev",
        "the stack prod deploys the environment staging",
    ]


def test_a_stack_named_as_no_cognito_domain_may_be_is_refused_not_taken_for_dev(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SettingsError, match=r"environment_suffix must be .* without aws, amazon"):
        loaded(monkeypatch, "prod-aws")


def test_a_setting_that_does_not_exist_is_an_error_with_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(monkeypatch, "dev", memory_mbb="512", zzz="1")
    assert str(caught.value).splitlines()[1:] == [
        "  - there is no setting memory_mbb: did you mean memory_mb?",
        "  - there is no setting zzz: docs/settings.md lists all settings",
    ]


@pytest.mark.parametrize(
    ("text", "systems"),
    [
        ("api", ("api",)),
        ("api,files", ("api", "files")),
        (" api , files ", ("api", "files")),
        ('["api", "files"]', ("api", "files")),
    ],
)
def test_a_list_is_json_or_separated_by_commas(
    text: str, systems: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loaded(monkeypatch, "dev", systems=text).systems == systems


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"systems": '["api"'}, 'systems must be a list of texts, each once, not "[\\"api\\""'),
        ({"systems": "api,web2"}, 'a list of some of api, files, web, not ["api", "web2"]'),
        ({"memory_mb": "lots"}, 'memory_mb must be a whole number, not "lots"'),
        ({"deletion_protection": "True"}, 'must be true or false, not "True"'),
        ({"tags": "Team=blue"}, 'tags must be an object of texts, not "Team=blue"'),
    ],
)
def test_an_error_shows_the_value_as_it_was_written(
    config: Mapping[str, str], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(monkeypatch, "dev", **config)
    assert error in str(caught.value)


def test_an_environment_with_a_name_behind_it_follows_its_tier() -> None:
    args = TapStackArgs(environment_suffix="prod-eu")
    assert args.tier == "prod"
    assert args.deletion_protection is True
    assert args.name("items") == "tap-stack-items-prod-eu"


def test_a_value_given_wins_over_the_tier() -> None:
    assert TapStackArgs(environment_suffix="prod", throttle_rate=7).throttle_rate == 7


def test_own_tags_fill_what_aws_allows_with_those_of_the_stack() -> None:
    args = TapStackArgs(tags={f"t{number}": "x" for number in range(MOST_TAGS)})
    assert len({**args.all_tags(), "Component": "c", "Name": "n"}) == 50


def test_own_tags_are_merged_with_the_standard_ones() -> None:
    tags = TapStackArgs(tags={"Team": "blue", "Owner": "ann"}).all_tags()
    assert tags == {
        "Project": "tap-stack",
        "Environment": "dev",
        "ManagedBy": "pulumi",
        "Owner": "ann",
        "CostCenter": "engineering",
        "Team": "blue",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("environment_suffix", "qa"),
        ("environment_suffix", "production"),
        ("environment_suffix", "dev-"),
        ("environment_suffix", "dev-a-very-long-name"),
        ("environment_suffix", 5),
        *(
            ("environment_suffix", each)
            for each in ("dev-dawson", "prod-aws", "dev-amazon", "dev-cognito")
        ),
        ("project", "Tap"),
        ("project", "t" * 25),
        ("project", "a--b"),
        *(
            ("project", each)
            for each in ("a-", "internal", "internal-x", "sg-web", "ssm", "sthree-a", "amzn-x")
        ),
        ("owner", ""),
        ("cost_center", "a\nb"),
        ("tags", {"aws:x": "1"}),
        ("tags", {"a": 1}),
        ("tags", {"a": "x" * 257}),
        ("tags", "a=b"),
        ("tags", {"owner": "ann"}),
        ("tags", {"costcenter": "1"}),
        ("tags", {"A": "1", "a": "2"}),
        ("tags", {f"t{number}": "x" for number in range(44)}),
        ("table_name", "a b"),
        ("table_name", "ab"),
        ("cors_origins", ["https://a.example/path"]),
        ("cors_origins", "https://a.example"),
        ("callback_urls", []),
        ("callback_urls", ["http://app.example/callback"]),
        ("callback_urls", ["https://app.example/a b"]),
        ("callback_urls", ["https://app.example/#part"]),
        ("callback_urls", ["http://localhost.example/callback"]),
        ("callback_urls", ["https://" + "a" * 1_020]),
        ("logout_urls", [f"https://app.example/{number}" for number in range(101)]),
        ("email_from", "nobody"),
        ("api_domain_name", "https://api.example.com"),
        ("api_domain_name", "api"),
        ("api_certificate_arn", "arn:aws:iam::111122223333:server-certificate/a"),
        ("hosted_zone_id", "example.com"),
        ("email_identity_arn", "arn:aws:sns:eu-west-1:111122223333:identity/a.b"),
        ("instance_types", []),
        ("instance_types", ["t4g.small", "t3.micro"]),
        ("mfa", "on"),
        ("threat_protection", "yes"),
        ("throttle_rate", 0),
        ("throttle_rate", 10.5),
        ("throttle_burst", True),
        ("memory_mb", 64),
        ("timeout_seconds", 30),
        ("idempotency_hours", -1),
        ("log_retention_days", 31),
        ("deletion_protection", 1),
        ("alarm_emails", ["nobody"]),
        ("budget_usd", 0),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_is_allowed(key: str, value: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        TapStackArgs(**{key: value})
    line = next(
        line for line in str(caught.value).splitlines() if line.startswith(f"  - {key} must be ")
    )
    assert line.endswith(f"not {json.dumps(value)}")


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [
        ("throttle_burst", 1, 5_000),
        ("versions_kept", 2, 100),
        # An account has 80,000 write units, and three indexes have half of the table's each.
        ("files_table_capacity", 6, 32_000),
    ],
)
def test_limits_are_allowed_and_nothing_beyond_them(key: str, least: int, most: int) -> None:
    for value, allowed in {least - 1: False, least: True, most: True, most + 1: False}.items():
        with nullcontext() if allowed else pytest.raises(SettingsError, match=key):
            given: Any = {key: value}
            assert getattr(TapStackArgs(**given), key) == value


def test_a_name_may_fill_what_a_load_balancer_takes_and_no_more() -> None:
    args = TapStackArgs(project="a" * 20, environment_suffix="dev-jan")
    assert len(args.name("web")) == 32
    with pytest.raises(SettingsError, match=r"are too long: .* has 33 characters"):
        replace(args, environment_suffix="dev-jane")


def test_all_errors_come_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        TapStackArgs(throttle_rate=0, mfa="maybe", owner=7)  # type: ignore[arg-type]
    assert [line.split()[1] for line in str(caught.value).splitlines()[1:]] == [
        "owner",
        "throttle_rate",
        "mfa",
    ]


def test_one_name_does_not_point_to_the_api_and_to_the_load_balancer() -> None:
    names = {"api_domain_name": "a.tap.dev", "domain_name": "a.tap.dev"}
    with pytest.raises(SettingsError, match=r"must not be domain_name, a\.tap\.dev"):
        TapStackArgs(**names)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cors_origins", ["*"]),
        ("cors_origins", ["http://localhost:3000"]),
        ("deletion_protection", False),
        ("log_retention_days", 30),
    ],
)
def test_prod_rejects_what_breaks_its_promises_and_dev_does_not(key: str, value: Any) -> None:
    TapStackArgs(**{key: value})
    with pytest.raises(SettingsError, match=f"{key} must be .* in prod"):
        TapStackArgs(environment_suffix="prod", **{key: value})


# Anything at all

NAMES = sorted(DEFAULTS)
#: What looks like a value: of another setting, or nearly.
NEARLY = [
    "", " ", ",", "[]", "{}", "[[]]", '[""]', '{"a": ["*"]}', "true", "null", "-1", "0", "1e400", "NaN",
    "10.0.0.0/16", "10.0.0.0/99", "::/0", "0.0.0.0/0", "8-20", "25-3", "eu-west-1a,eu-west-1b", "prod",
    "prod-eu", "https://", "https://[", "https://a.example:x", "http://localhost:99999", "a@b", "@",
    "arn:aws:acm:eu-west-1:111122223333:certificate/1", "arn:", "*.example.com", "x" * 300, "\0", "é", "١",
]  # fmt: skip
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    leaves | st.sampled_from(NEARLY),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
texts = st.sampled_from(NEARLY) | st.text(max_size=20) | values.map(json.dumps)


def of_setting(key: str) -> st.SearchStrategy[tuple[str, Any]]:
    """A setting with a value: one that some tier has, one near it, or any."""
    default = DEFAULTS[key]
    good = list(default) if isinstance(default, PerTier) else [default]
    near = st.integers(0, 400) if isinstance(good[0], int) else st.sampled_from(NEARLY)
    value = st.sampled_from(good) | near | near.map(lambda x: (x,)) | values
    return st.tuples(st.just(key), value)


some_settings = st.lists(st.sampled_from(NAMES).flatmap(of_setting), max_size=6).map(dict)


def assert_each_names_its_setting(error: SettingsError, keys: set[str]) -> None:
    """Fails if a line of an error does not begin with one of its settings."""
    lines = str(error).split("\n  - ")[1:]
    assert lines
    for line in lines:
        known = re.match("there is no setting (.+?):", line, re.DOTALL) or re.match(r"(\w+)", line)
        assert known and (known[1] in keys or known[1] in DEFAULTS), line


@settings(max_examples=500)
@given(given_values=some_settings)
def test_any_value_makes_settings_or_errors_that_name_them(given_values: dict[str, Any]) -> None:
    try:
        args = TapStackArgs(**given_values)
    except SettingsError as error:
        assert_each_names_its_setting(error, set(given_values))
    else:
        assert {key: getattr(args, key) for key in NAMES}


@settings(max_examples=300)
@given(
    config=st.dictionaries(
        st.sampled_from(NAMES) | st.from_regex(r"[a-z_]{1,12}", fullmatch=True), texts, max_size=5
    ),
    stack=st.sampled_from([*TIERS, "dev-x", "prod-eu", "any", "", "-", "é"]),
)
def test_any_configuration_makes_settings_or_errors_that_name_them(
    config: dict[str, str], stack: str
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        try:
            loaded(patched, stack, **config)
        except SettingsError as error:
            assert_each_names_its_setting(error, set(config))
