"""`make scan`: findings against their rows; what cannot look is skipped by name, and never passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from policy import scan
from policy.rules import EXEMPTIONS
from policy.scan import Finding, NotRunError, Row

DOCUMENT = (scan.ROOT / "docs/security.md").read_text()
PAGE = """
### some

| rule | where | why |
| --- | --- | --- |
| B1 | a*.py | because |
| B2 | b.py (2) | because |

### other

| B3 | c.py | of the other scanner |
"""


def test_a_finding_without_a_row_and_a_row_without_a_finding_are_named() -> None:
    rows = scan.table(PAGE, "some")
    assert rows == [Row("B1", "a*.py", "because"), Row("B2", "b.py (2)", "because")]
    found = scan.counted([Finding("B1", "ab.py"), Finding("B2", "b.py"), Finding("B2", "b.py")])
    assert scan.differences(found, rows) == []
    assert scan.differences([Finding("B1", "b.py"), *found[1:]], rows) == [
        "B1 in b.py: mend it, or add a row with the reason",
        "B1 in a*.py: is found no more, delete the row",
    ]


@pytest.mark.parametrize("scanner", scan.SCANNERS)
def test_each_scanner_has_its_section_and_each_row_a_reason(scanner: str) -> None:
    _, _, section = DOCUMENT.partition(f"\n### {scanner}\n")
    section, _, _ = section.partition("\n#")
    lines = [x for x in section.splitlines() if x.startswith("|")]
    rows = scan.table(DOCUMENT, scanner)
    assert len(rows) == max(len(lines) - 2, 0)  # the head
    assert len({each[:2] for each in rows}) == len(rows)
    named = {x.why.split()[1] for x in rows if x.why.startswith("exemption ")}
    assert named <= {each.rule for each in EXEMPTIONS}


def test_a_scanner_without_a_section_is_an_error() -> None:
    with pytest.raises(ValueError, match="no heading third"):
        scan.table(PAGE, "third")


def scanners(monkeypatch: pytest.MonkeyPatch, **found: list[Finding] | str) -> int:
    """The exit status with these scanners in place of the real ones; a text: why it cannot look."""

    def run(result: list[Finding] | str) -> list[Finding]:
        if isinstance(result, str):
            raise NotRunError(result)
        return result

    fakes = {name: lambda _, x=x: run(x) for name, x in found.items()}
    monkeypatch.setattr(scan, "SCANNERS", fakes)
    with pytest.raises(typer.Exit) as end:
        scan.main()
    return end.value.exit_code


def test_the_exit_status_is_1_if_something_is_to_be_settled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settled = [Finding(x.rule, x.where.replace("*", "")) for x in scan.table(DOCUMENT, "bandit")]
    assert scanners(monkeypatch, bandit=settled) == 0
    assert scanners(monkeypatch, bandit=settled[1:]) == 1
    capsys.readouterr()
    assert scanners(monkeypatch, bandit="it is not there", checkov=[Finding("CKV_1", "x")]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "bandit: SKIPPED, it is not there"
    assert "  CKV_1 in x: mend it, or add a row with the reason" in said


def tool(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """All scanners' programs as one script, which gets its own name as $0."""
    for path in ("scan/bin/pip-audit", "scan/bin/bandit", "checkov/bin/checkov"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"#!/bin/sh\n{script}\n")
        (folder / path).chmod(0o755)
    monkeypatch.setattr(scan, "ENVIRONMENTS", folder)


@pytest.mark.parametrize("name", ["bandit", "pip-audit", "checkov"])
def test_a_scanner_that_crashes_is_skipped_with_what_it_said(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, monkeypatch, "echo 'no route to host' >&2; exit 2")
    with pytest.raises(NotRunError, match=f"{name} failed: no route to host"):
        scan.SCANNERS[name]("plan.json")


def test_advisories_that_the_index_lacks_are_no_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages: list[dict[str, Any]] = [{"name": "a", "skip_reason": "not found"}]
    tool(tmp_path, monkeypatch, f"echo '{json.dumps({'dependencies': packages})}'")
    with pytest.raises(NotRunError, match="the index has no advisories: not found"):
        scan.pip_audit("")
    packages += [{"name": "b", "vulns": [{"id": "PYSEC-1"}]}, {"name": "c", "vulns": []}]
    tool(tmp_path, monkeypatch, f"echo '{json.dumps({'dependencies': packages})}'")
    assert scan.pip_audit("") == [Finding("PYSEC-1", "b"), Finding("not audited", "a")]


def test_checkov_wants_a_plan() -> None:
    with pytest.raises(NotRunError, match="make scan PLAN="):
        scan.checkov("")


def test_a_policy_is_read_with_the_arns_of_aws() -> None:
    invented = '["arn:aws:test:eu-west-1:111122223333:Table/files-table/index/x"]'
    real = '["arn:aws:dynamodb:eu-west-1:111122223333:table/files-table/index/x"]'
    assert scan.as_on_aws(invented) == real
