"""MiniStack's names that the additions use: all in the table, and as they were."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ministack.services import dynamodb

from taplocal.errors import TapLocalError
from taplocal.server import names

#: Its thread sleeps, whatever other tests make of time.sleep.
dynamodb.time = SimpleNamespace(**vars(time))


def lines() -> list[list[str]]:
    return [line.split() for line in names.TABLE.read_text().splitlines()]


def test_the_table_has_each_name_that_is_used_as_it_is() -> None:
    found = [["files", names.of_files(names.used())]]
    found += [[name, names.digest(name)] for name in names.used()]
    assert lines() == found, "python -m taplocal.server.names > taplocal/server/names.txt"
    assert "missing" not in {digest for _, digest in found}


def test_a_module_that_is_gone_is_another_file() -> None:
    assert names.of_files(["ministack.gone.main"]) != names.of_files(["ministack.app.main"])


@pytest.mark.parametrize(
    "name",
    ["services.lambda_svc._execute_function", "services.cloudwatch._metrics", "app.no_more"],
)
def test_a_name_that_changed_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "names.txt"
    table.write_text(f"files 0123\nministack.app.main {names.digest('ministack.app.main')}\n")
    monkeypatch.setattr(names, "TABLE", table)
    names.check()  # other files, the same names
    table.write_text(f"{table.read_text()}ministack.{name} 4567\n")
    with pytest.raises(TapLocalError, match=f"has another ministack.{name} than .*: install"):
        names.check()
