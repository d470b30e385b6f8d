"""The paging key stays under the stack's key, through rotations and a changed parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taplocal import access, session
from taplocal.session import Session

PROGRAM = """
import pulumi
import tap_stack

tap_stack.PAGING_KEY_DESCRIPTION = {description!r}
args = tap_stack.TapStackArgs(environment_suffix="dev-paging", systems=["api"])
for name, value in tap_stack.TapStack("tap", args).outputs.items():
    pulumi.export(name, value)
"""
PARAMETER = "/tap-stack/dev-paging/paging-key"


@pytest.fixture(scope="module")
def up(
    deployed: Session, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Session]]:
    """Deploys an API whose paging key has a description."""
    folder, data = tmp_path_factory.mktemp("program"), tmp_path_factory.mktemp("paging")
    (folder / "Pulumi.yaml").write_text("name: tap-stack\nruntime: python\nmain: program.py\n")
    (folder / "Pulumi.dev.yaml").write_text("config: {}\n")

    def deploy(description: str) -> Session:
        (folder / "program.py").write_text(PROGRAM.format(description=description))
        return session.up(
            folder, "dev", folder=data, emulator_url=deployed.cloud.emulator.url,
            say=lambda text: None, report=lambda step: None,
        )[0]  # fmt: skip

    yield deploy
    session.down(folder, None, folder=data, report=lambda step: None)


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
