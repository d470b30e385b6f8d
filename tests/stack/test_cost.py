"""The estimate: every chargeable type has a price, and the arithmetic is AWS's."""

from __future__ import annotations

import ast
import json
import re
from datetime import date, timedelta
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cost import chart, prices
from cost.__main__ import main
from cost.estimate import FREE, LEFT_OUT, PRICED, Estimate, estimate, unpriced
from cost.load import USUAL, Load
from cost.tables import unit_prices
from docs import tables
from tap_stack import MANAGED_RULES, TapStackArgs
from taplocal.errors import TapLocalError
from tests.stack.conftest import ENVIRONMENTS, ISOLATED, ROOT, graph_of, with_defaults

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
    millions = USUAL.files / 1_000_000
    assert with_events.by_use[added] == pytest.approx(2 * millions * priced("file_event"))


def test_malware_protection_costs_two_alarms_and_a_price_for_each_file_and_gb() -> None:
    without, protected = (
        estimate(with_defaults("dev", systems=FILES, files_malware_protection=each))
        for each in ("false", "true")
    )
    assert round(protected.total() - without.total(), 6) == 2 * prices.ALARM
    (added,) = protected.by_use.keys() - without.by_use.keys()
    assert protected.by_use[added] == 100 * (priced("scan_files") + priced("scan_gb"))


def test_every_unit_price_is_in_the_table() -> None:
    rows = "\n".join(unit_prices())
    assert len(prices.every()) > 60
    assert [
        x.what for x in prices.every() if f"| {x.what} | {prices.written(x)} |" not in rows
    ] == []


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


#: Settings and load of a month -> what each thing costs, added up by hand from the unit prices.
BY_HAND = {
    "an API with a million requests": (
        ("dev", API, Load(requests=1_000_000, files=0, gb_out=0)),
        {
            "HTTP API, requests": 1.00,
            "Lambda": 0.533335,  # 0.20, and 25,000 GB-seconds
            "DynamoDB, reads and writes on demand": 0.475,  # 800,000 and 600,000 units
            "DynamoDB, what is stored and its backup": 0.19,  # 0.2 GB: three times, and once
            "logs, as long as they are kept": 0.5654,  # 1.1 GB, for 14 days
            "X-Ray, traces": 5.00,
            "KMS, requests": 0.05256,  # two times 8,760
            "Cognito, tokens of machines": 1.6425,  # 730
            "metrics of the stack's own, if all are used": 2.70,  # nine
        },
    ),
    "200,000 files of 5 MB, 2 TB out": (
        ("dev", FILES, Load(requests=7, files=200_000, gb_out=2_000, file_mb=5)),
        {
            "S3, requests": 1.32,  # 200,000 PUT, 800,000 GET and HEAD
            "S3, files stored": 23.00,  # 1,000 GB
            "Lambda": 0.173334,  # 0.04, and 10,000 GB-seconds
            "X-Ray, traces": 1.00,
            "logs, as long as they are kept": 0.06168,  # 0.12 GB, for 14 days
            "DynamoDB, what is stored and its backup": 0.28,  # 0.4 GB: two times, and once
            "KMS, requests": 0.02628,
            "data out to the internet": 180.00,
            "metrics of the stack's own, if all are used": 1.80,  # six
        },
    ),
    "prod with 500 million requests, 20 million files of 2 MB, 60 TB out": (
        (
            "prod",
            '["api", "files"]',
            Load(requests=500_000_000, files=20_000_000, gb_out=60_000, file_mb=2),
        ),
        {
            "HTTP API, requests": 480.00,  # 300 million, and 200 million cheaper
            "metrics of each route, if all are used": 48.60,  # 27 with six each
            "Lambda": 284.0009,  # 104.00, and 13.5 million GB-seconds
            "DynamoDB, reads and writes on demand": 237.50,  # 400 and 300 million units
            "DynamoDB, what is stored and its backup": 123.00,  # 100 GB of items, 40 GB of records
            "logs, as long as they are kept": 486.13,  # 562 GB, for a year
            "X-Ray, traces": 142.483,  # 2,628,000 and 5 % of 517,372,000
            "KMS, requests": 0.07884,
            "Cognito, tokens of machines": 1.6425,
            "S3, requests": 128.00,  # 20 million PUT, 70 million GET and HEAD
            "S3, files stored": 920.00,  # 40,000 GB
            "data out to the internet": 5_019.20,  # 921.60 and 3,481.60 and 616.00
            "metrics of the stack's own, if all are used": 6.90,  # 23
        },
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_load_costs_what_it_does_by_hand(name: str) -> None:
    (env, systems, load), expected = BY_HAND[name]
    found = estimate(with_defaults(env, systems=systems), load)
    assert {what: round(dollars, 6) for what, dollars in found.by_use.items()} == expected
    assert round(found.together() - found.total(), 4) == round(sum(expected.values()), 4)


def test_no_load_costs_what_does_not_depend_on_it() -> None:
    found = estimate(with_defaults("dev", systems=API), Load(requests=0, files=0, gb_out=0))
    assert {what: round(each, 4) for what, each in found.by_use.items()} == {
        "Cognito, tokens of machines": 1.6425
    }


def test_synthetics_cost_what_the_setting_says() -> None:
    without, walked = (
        estimate(with_defaults("dev", systems=API, synthetics=each)) for each in ("false", "true")
    )
    assert round(walked.together() - without.together(), 2) == priced("synthetics") == 8.89


@pytest.mark.parametrize(
    ("days", "warned"), [(180, 0), (181, len({x.page for x in prices.every()}))]
)
def test_prices_that_nobody_compared_for_half_a_year_are_a_warning(
    days: int, warned: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cost.__main__.today", lambda: date(2026, 11, 24) + timedelta(days))
    main("dev", [f"systems={FILES}"], choices=False, json_=True)
    printed = capsys.readouterr()
    assert printed.err.count("warning: the prices of https://aws.amazon.com/") == warned
    assert warned == 0 or f"{days} days old, of 2026-11-24: compare them" in printed.err
    assert json.loads(printed.out)["load"]["files"] == 100_000


def test_a_load_is_given_as_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    main("dev", [f"systems={API}"], 2_000_000, gb_out=10, choices=False, json_=True)
    found = json.loads(capsys.readouterr().out)
    assert found["use"] == "2,000,000 requests, 0 files of 1 MB, 10 GB out", (
        "no files without files"
    )
    rows = {each["what"]: each["dollars"] for each in found["by_use"]}
    assert (rows["HTTP API, requests"], rows["data out to the internet"]) == (2.0, 0.9)


def test_bars_fit_a_terminal_and_grow_with_the_dollars() -> None:
    estimates = {env: estimate(with_defaults(env, systems=API)) for env in ("dev", "prod")}
    *lines, _ = chart.bars(estimates, 80)
    assert [len(each) for each in lines] == [80, 80]
    drawn = [len(re.sub("[^#=+:-]", "", each[17:67])) for each in lines]
    assert drawn[1] == 50, "the highest has all the room"
    share = estimates["dev"].together() / estimates["prod"].together()
    assert drawn[0] == round(50 * share)
    picture = ElementTree.fromstring(chart.svg(estimates))  # noqa: S314 - it is ours
    assert "prefers-color-scheme: dark" in chart.svg(estimates)
    wide = [float(x.get("width", 0)) for x in picture.iter("{http://www.w3.org/2000/svg}rect")]
    assert round(sum(wide[-5:])) == chart.BAR
    assert round(sum(wide[-10:-5]) / chart.BAR, 2) == round(share, 2)


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


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_a_budget_counts_its_own_environment(env: str) -> None:
    (counted,) = graph_of(env).one("Budget", "alerts-budget").inputs["costFilters"]
    assert counted["values"] == ["user:Project$tap-stack", f"user:Environment${env}"]


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
