"""The bills of materials: CycloneDX, complete, the same bytes each time."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from tests.environments import ROOT, output_of

BILLS = {"deployment": "requirements.txt", "instances": "requirements-web.txt"}


def locked(name: str) -> dict[str, set[str]]:
    """Package -> the digests of its files, of a lock."""
    text = (ROOT / name).read_text()
    blocks = re.findall(r"^(\S+==\S+)(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    return {package: set(re.findall(r"sha256:(\w+)", rest)) for package, rest in blocks}


def made(folder: Path) -> dict[str, str]:
    """The bills that `make sbom` writes, which checks them against CycloneDX's schema."""
    shutil.rmtree(folder, ignore_errors=True)
    output_of("make", "sbom", f"SBOM={folder}", cwd=ROOT)
    return {each: (folder / f"{each}.cdx.json").read_text() for each in BILLS}


def test_the_bills_list_each_locked_package_with_the_digests_of_its_files(tmp_path: Path) -> None:
    bills = made(tmp_path / "a")
    assert bills == made(tmp_path / "b")
    for each, text in bills.items():
        bill = json.loads(text)
        assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
        assert bill["metadata"]["component"]["name"] == "tap-stack"
        assert locked(BILLS[each]) == {
            f"{x['name']}=={x['version']}": {
                digest["content"] for files in x["externalReferences"] for digest in files["hashes"]
            }
            for x in bill["components"]
        }
