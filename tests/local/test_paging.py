"""Paging over HTTP, and the key that its tokens are signed with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taplocal import access, session
from taplocal.session import Session
from tests.local.conftest import Call, assert_problem
from tests.local.test_policies import KEY

pytestmark = pytest.mark.usefixtures("unthrottled")


def linked(caller: Call, path: str) -> list[list[str]]:
    """The ids on each page of a list, by the links of its pages."""
    found = []
    while path:
        response = caller("GET", path)
        found.append([item["id"] for item in response.json()["items"]])
        path = response.headers.get("link", "").partition(">")[0][1:]
    return found


def test_lists_page_through_a_category_newest_first(ann: Call, bob: Call, fresh: str) -> None:
    items = [ann("POST", "/items", json.dumps({"category": fresh})).json() for _ in range(5)]
    ids = [item["id"] for item in items]
    assert linked(ann, f"/items?category={fresh}&limit=2") == [
        [ids[4], ids[3]], [ids[2], ids[1]], [ids[0]]
    ]  # fmt: skip
    first, last = (items[n]["created_at"] for n in (1, 3))
    for query in ("", f"category={fresh}&"):
        path = f"/items?{query}from={first}&to={last}&order=asc&limit=2"
        assert linked(ann, path) == [[ids[1], ids[2]], [ids[3]]]
    assert linked(bob, f"/items?category={fresh}&from={first[:10]}") == [[]]
    assert_problem(ann("GET", f"/items?from={last}&to={first}"), 400)
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


PROGRAM = """
import pulumi
import tap_stack

tap_stack.PAGING_KEY_INPUTS = {{**tap_stack.PAGING_KEY_INPUTS, "description": {description!r}}}
args = tap_stack.TapStackArgs(environment_suffix="dev-paging", systems=["api"])
for name, value in tap_stack.TapStack("tap", args).outputs.items():
    pulumi.export(name, value)
"""
PARAMETER = "/tap-stack/dev-paging/paging-key"


@pytest.fixture(scope="module")
def up(
    deployed: Session, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Session]]:
    """Deploys an API whose paging key has a description."""
    folder, own = tmp_path_factory.mktemp("program"), tmp_path_factory.mktemp("paging")
    (folder / "Pulumi.yaml").write_text("name: tap-stack\nruntime: python\nmain: program.py\n")
    (folder / "Pulumi.dev.yaml").write_text("config: {}\n")

    def deploy(description: str) -> Session:
        (folder / "program.py").write_text(PROGRAM.format(description=description))
        return session.up(
            folder, "dev", folder=own, emulator=str(data),
            say=lambda text: None, report=lambda step: None,
        )[0]  # fmt: skip

    yield deploy
    session.down(folder, None, folder=own, report=lambda step: None)


def rotate(opened: Session) -> None:
    response = opened.cloud.client("lambda").invoke(
        FunctionName="tap-stack-rotation-dev-paging", Qualifier="live", Payload=b"{}"
    )
    assert "FunctionError" not in response


def history(opened: Session) -> list[dict[str, Any]]:
    ssm = opened.cloud.client("ssm")
    return list(ssm.get_parameter_history(Name=PARAMETER, WithDecryption=True)["Parameters"])


def test_every_version_is_under_the_stacks_key(
    up: Callable[[str], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    opened = up("one")
    for _ in range(3):
        rotate(opened)
    versions = history(opened)
    assert [each["Value"] == "unset" for each in versions] == [True, *[False] * 4]
    assert {each["KeyId"] for each in versions} == {opened.outputs["key_arn"]}

    changed = up("two")  # as an engineer edits it
    versions = history(changed)
    assert {each["KeyId"] for each in versions} == {changed.outputs["key_arn"]}
    assert versions[-1]["Value"] != "unset"
    token = access.machine_token(changed)
    assert access.call(changed, "GET", "/items", token).status == 200
