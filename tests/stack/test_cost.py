"""The estimate: every chargeable type has a price, and the arithmetic is AWS's."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from cost import prices
from cost.__main__ import main
from cost.estimate import FREE, LEFT_OUT, PRICED, Estimate, estimate, unpriced
from cost.tables import unit_prices
from docs import tables
from tap_stack import MANAGED_RULES, TapStackArgs
from taplocal.errors import TapLocalError
from tests.stack.conftest import ENVIRONMENTS, ISOLATED, ROOT, with_defaults

API, FILES, WEB = (f'["{each}"]' for each in ("api", "files", "web"))


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_every_type_is_priced_or_known_to_be_free(env: str) -> None:
    assert unpriced(with_defaults(env)) == set()
    more = {"api_domain_name": "a.tap.dev", "hosted_zone_id": "Z1"}
    more |= dict.fromkeys(("files_analytics", "files_events", "files_malware_protection"), "true")
    assert unpriced(with_defaults(env, **more)) == set()
    assert not {each[4:].rpartition(":")[0] for each in PRICED} & FREE


def test_a_type_without_a_price_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(PRICED, "aws:ec2/natGateway:NatGateway")
    assert unpriced(with_defaults("prod")) == {"aws:ec2/natGateway:NatGateway"}


def web(**settings: str) -> Estimate:
    return estimate(with_defaults("dev", systems=WEB, **settings))


def files(capacity: int) -> float:
    """What the files table costs with a capacity."""
    project = with_defaults("dev", systems=FILES, files_table_capacity=str(capacity))
    return estimate(project).fixed["files"]["tables, provisioned"]


def priced(placeholder: str) -> float:
    """The price behind a placeholder."""
    return float(prices.PLACEHOLDERS[placeholder].removeprefix("$"))


def test_a_unit_pair_and_its_indexes_cost_what_the_setting_says() -> None:
    per_unit = (files(110) - files(10)) / 100
    assert round(per_unit, 2) == round(priced("unit_pair") + priced("index_units"), 2)


def test_events_of_files_cost_two_alarms_and_a_price_for_each_million() -> None:
    without, with_events = (
        estimate(with_defaults("dev", systems=FILES, files_events=each))
        for each in ("false", "true")
    )
    assert round(with_events.total() - without.total(), 6) == 2 * prices.ALARM
    (added,) = with_events.by_use.keys() - without.by_use.keys()
    assert with_events.by_use[added] == 2 * priced("file_event")


def test_malware_protection_costs_two_alarms_and_a_price_for_each_file_and_gb() -> None:
    without, protected = (
        estimate(with_defaults("dev", systems=FILES, files_malware_protection=each))
        for each in ("false", "true")
    )
    assert round(protected.total() - without.total(), 6) == 2 * prices.ALARM
    (added,) = protected.by_use.keys() - without.by_use.keys()
    assert protected.by_use[added] == 1_000 * (priced("scan_files") + priced("scan_gb"))


def test_every_unit_price_is_in_the_table() -> None:
    rows = "\n".join(unit_prices())
    named = [each for each in vars(prices).values() if isinstance(each, prices.Price)]
    assert [each.what for each in named if f"| {each.what} |" not in rows] == []


def test_nat_costs_by_strategy() -> None:
    one = prices.monthly(prices.NAT_GATEWAY + prices.PUBLIC_ADDRESS)
    isolated = web(nat="none", **ISOLATED)
    without = isolated.total() - isolated.fixed["web"]["interface endpoints"]
    alarm = 2 * prices.ALARM  # each gateway has two
    assert round(web(nat="single").total() - without - alarm, 2) == round(one, 2)
    assert round(web(nat="per_az").total() - without - 2 * alarm, 2) == round(2 * one, 2)
    instance = web(nat="instance", spot_percent="0").total()
    second = web(nat="instance_ha", spot_percent="0").total() - instance - prices.ALARM
    assert round(second, 2) == priced("nat_instance")


def test_a_standby_doubles_the_database_but_not_its_secret() -> None:
    one, two = (web(database_multi_az=each).fixed["web"] for each in ("false", "true"))
    label = "database, storage, secret"
    assert round(two[label] - prices.SECRET, 2) == round(2 * (one[label] - prices.SECRET), 2)


def test_an_api_without_traffic_costs_its_key_and_alarms() -> None:
    found = estimate(with_defaults("dev", systems=API))
    assert found.fixed.pop("api") == {"app clients of machines": prices.MACHINE_CLIENT}
    assert set(found.fixed) == {"shared"}
    assert set(found.fixed["shared"]) == {"alarms", "key"}


def test_what_resources_bring_with_them_is_priced_too() -> None:
    prod = estimate(with_defaults("prod")).fixed
    tracking = {part: round(x.get("alarms of target tracking", 0), 6) for part, x in prod.items()}
    alarm = prices.ALARM  # two of a policy; of the units of the table and three indexes, four
    assert tracking == {"api": 2 * alarm, "files": 32 * alarm, "web": 4 * alarm, "shared": 0}
    dev = web(spot_percent="0").fixed["web"]  # instances of NAT, bastion and web
    hours = sum(prices.HOURLY[f"t4g.{each}"] for each in ("nano", "micro", "small"))
    each = 8 * prices.VOLUME_GB + 7 * prices.METRIC
    fleets = dev["instances, their volumes and metrics"]
    assert round(fleets, 6) == round(prices.monthly(hours) + 3 * each, 6)
    agents = dev["public addresses of instances, metrics of agents"]  # web and bastion have one
    addresses = 2 * prices.monthly(prices.PUBLIC_ADDRESS)
    assert round(agents - addresses, 6) == round(2 * 3 * prices.METRIC, 6)


def test_metrics_of_each_route_are_by_use() -> None:
    label = "metrics of each route, if all are used"
    assert label not in estimate(with_defaults("dev", systems=API)).by_use
    assert estimate(with_defaults("prod", systems=API)).by_use[label] > 10


def test_what_is_left_out_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    every = ("waf", "files_analytics", "files_events", "files_malware_protection")
    found = estimate(with_defaults("prod", **dict.fromkeys(every, "true")))
    assert found.left_out == list(LEFT_OUT.values())
    main("dev", ['systems=["files"]'], choices=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"left out: {LEFT_OUT['aws:dynamodb/table:Table']}; " in printed
    assert LEFT_OUT["aws:rds/instance:Instance"] not in printed


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_an_idle_month_is_below_what_the_budget_warns_of(env: str) -> None:
    budget = TapStackArgs(environment_suffix=env).budget_usd
    assert estimate(with_defaults(env)).total() < 0.8 * budget


def test_an_unknown_class_is_a_clear_error() -> None:
    with pytest.raises(TapLocalError, match=r"no price of db\.x2g\.large"):
        web(database_class="db.x2g.large")


@pytest.mark.parametrize(
    ("dollars", "text"),
    [
        (1234.5, "$1,234.50"),
        (1, "$1.00"),
        (0.3, "$0.30"),
        (0.045, "$0.045"),
        (3.4e-6, "$0.0000034"),
    ],
)
def test_a_price_is_written_with_all_its_digits_below_a_dollar(dollars: float, text: str) -> None:
    assert prices.written(dollars) == text


def test_every_placeholder_of_a_setting_is_a_price_and_every_price_is_used() -> None:
    docs = " ".join(tables.meanings().values())
    assert set(re.findall(r"{(\w+)}", docs)) == prices.PLACEHOLDERS.keys()


def test_the_price_of_the_firewall_has_all_its_groups_of_rules() -> None:
    assert prices.PLACEHOLDERS["waf"] == prices.written(prices.web_acl(len(MANAGED_RULES)))


def test_every_constant_of_the_prices_is_used() -> None:
    names = {name for name in vars(prices) if name.isupper()}
    used = {
        node.id if isinstance(node, ast.Name) else node.attr
        for path in [*ROOT.glob("cost/*.py"), *ROOT.glob("docs/*.py")]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert len(names) > 30
    assert names <= used, names - used


def without_generated(path: Path) -> str:
    """What people write in a file: generated blocks taken out."""
    return re.sub(r"<!-- (\w+) -->.*?<!-- end -->", "", path.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize(
    "path",
    [
        ROOT / "tap_stack.py",
        *sorted(ROOT.glob("*.md")),
        *sorted(ROOT.glob("docs/**/*.md")),
        *(path for path in sorted(ROOT.glob("cost/*.py")) if path.name != "prices.py"),
    ],
    ids=lambda path: path.name,
)
def test_a_price_is_written_by_hand_in_one_place_only(path: Path) -> None:
    assert re.findall(r".*\$ ?\d.*", without_generated(path)) == []
