"""Settings: defaults by environment, validation, all errors at once."""

from __future__ import annotations

from typing import Any

import pytest

from tap_stack import TIERS, SettingsError, TapStackArgs


def test_environment_defaults_to_dev() -> None:
    assert TapStackArgs().environment_suffix == "dev"
    assert TapStackArgs().throttle_rate == TIERS["dev"]["throttle_rate"]


@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_is_valid_by_its_defaults(tier: str) -> None:
    args = TapStackArgs(environment_suffix=tier)
    assert {key: getattr(args, key) for key in TIERS[tier]} == TIERS[tier]


def test_an_environment_with_a_name_behind_it_follows_its_tier() -> None:
    args = TapStackArgs(environment_suffix="prod-eu")
    assert args.tier == "prod"
    assert args.deletion_protection is True
    assert args.name("items") == "tap-stack-items-prod-eu"


def test_a_value_given_wins_over_the_tier() -> None:
    assert TapStackArgs(environment_suffix="prod", throttle_rate=7).throttle_rate == 7


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
        ("project", "Tap"),
        ("project", "t" * 25),
        ("project", "a--b"),
        ("owner", ""),
        ("cost_center", "a\nb"),
        ("tags", {"aws:x": "1"}),
        ("tags", {"a": 1}),
        ("tags", {"a": "x" * 257}),
        ("tags", "a=b"),
        ("table_name", "a b"),
        ("table_name", "ab"),
        ("cors_origins", ["https://a.example/path"]),
        ("cors_origins", "https://a.example"),
        ("callback_urls", []),
        ("callback_urls", ["http://app.example/callback"]),
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
    shown = tuple(value) if isinstance(value, list) else value
    assert line.endswith(f"not {shown!r}")


def test_all_errors_come_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        TapStackArgs(throttle_rate=0, mfa="maybe", owner=7)  # type: ignore[arg-type]
    assert [line.split()[1] for line in str(caught.value).splitlines()[1:]] == [
        "owner",
        "mfa",
        "throttle_rate",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cors_origins", ["*"]),
        ("cors_origins", ["http://localhost:3000"]),
        ("deletion_protection", False),
        ("log_retention_days", 30),
    ],
)
def test_prod_refuses_what_breaks_its_promises_and_dev_does_not(key: str, value: Any) -> None:
    TapStackArgs(**{key: value})
    with pytest.raises(SettingsError, match=f"{key} must be .* in prod"):
        TapStackArgs(environment_suffix="prod", **{key: value})
