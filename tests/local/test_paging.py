"""Paging over HTTP, and the key that its tokens are signed with."""

from __future__ import annotations

import json

from taplocal.session import Session
from tests.local.conftest import Call, assert_problem
from tests.local.test_policies import KEY


def test_lists_page_through_a_category_newest_first(ann: Call, bob: Call, fresh: str) -> None:
    ids = [ann("POST", "/items", json.dumps({"category": fresh})).json()["id"] for _ in range(5)]
    found, path = [], f"/items?category={fresh}&limit=2"
    while path:
        response = ann("GET", path).json()
        found.append([item["id"] for item in response["items"]])
        path = (
            f"/items?category={fresh}&limit=2&next={response['next']}" if "next" in response else ""
        )
    assert found == [[ids[4], ids[3]], [ids[2], ids[1]], [ids[0]]]
    oldest = ann("GET", f"/items?category={fresh}&order=asc&limit=5").json()
    assert ([item["id"] for item in oldest["items"]], "next" in oldest) == (ids, False)
    token = ann("GET", f"/items?category={fresh}&limit=2").json()["next"]
    assert_problem(bob("GET", f"/items?category={fresh}&next={token}"), 400)
    assert_problem(ann("GET", f"/items?category={fresh}&next={token[:-2]}AA"), 400)
    assert_problem(ann("GET", "/items?limit=1000"), 400)


def test_the_paging_key_is_made_by_the_rotation_and_stored_as_a_secret(deployed: Session) -> None:
    parameter = deployed.cloud.client("ssm").get_parameter(Name=KEY, WithDecryption=True)[
        "Parameter"
    ]
    assert parameter["Type"] == "SecureString"
    assert all(len(bytes.fromhex(each)) == 32 for each in parameter["Value"].split(","))
    state = deployed.state.path.read_text()
    assert not any(each in state for each in parameter["Value"].split(","))
