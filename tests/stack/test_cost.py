"""The estimate: every chargeable type has a price, and the arithmetic is AWS's."""

from __future__ import annotations

import pytest

from cost import prices
from cost.estimate import FREE, PRICED, Estimate, estimate, unpriced
from taplocal.errors import TapLocalError
from tests.stack.conftest import ENVIRONMENTS, ROOT

API, FILES, WEB = (f'["{each}"]' for each in ("api", "files", "web"))


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_every_type_is_priced_or_known_to_be_free(env: str) -> None:
    assert unpriced(env, ROOT) == set()
    assert not {each[4:].rpartition(":")[0] for each in PRICED} & FREE


def test_a_type_without_a_price_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(PRICED, "aws:ec2/natGateway:NatGateway")
    assert unpriced("prod", ROOT) == {"aws:ec2/natGateway:NatGateway"}


def web(**settings: str) -> Estimate:
    return estimate(ROOT, "dev", {"systems": WEB, **settings})


def test_the_files_table_is_what_decision_7_says() -> None:
    rows = estimate(ROOT, "dev", {"systems": FILES}).fixed["files"]
    assert round(rows["tables, provisioned"]) == 135


def test_nat_costs_by_strategy() -> None:
    one = prices.HOURS * (prices.NAT_GATEWAY + prices.PUBLIC_ADDRESS)
    without = web(nat="none", image_id="ami-0123456789abcdef0").total()
    alarm = 2 * prices.ALARM  # each gateway has two
    assert round(web(nat="single").total() - without - alarm, 2) == round(one, 2)
    assert round(web(nat="per_az").total() - without - 2 * alarm, 2) == round(2 * one, 2)


def test_a_standby_doubles_the_database_but_not_its_secret() -> None:
    one, two = (web(database_multi_az=each).fixed["web"] for each in ("false", "true"))
    label = "database, storage, secret"
    assert round(two[label] - prices.SECRET, 2) == round(2 * (one[label] - prices.SECRET), 2)


def test_an_api_without_traffic_costs_its_key_and_alarms() -> None:
    found = estimate(ROOT, "dev", {"systems": API})
    assert set(found.fixed) == {"shared"}
    assert set(found.fixed["shared"]) == {"alarms", "key"}


def test_an_unknown_class_is_a_clear_error() -> None:
    with pytest.raises(TapLocalError, match=r"no price of db\.x2g\.large"):
        web(database_class="db.x2g.large")
