"""Runs the scanners, and compares what they find with docs/security.md: `make scan`.

    python -m policy.scan [--plan PLAN]

What a scanner finds is mended, or stands in its table of docs/security.md with the reason. A
finding without a row, and a row without a finding, are errors (exit status 1). A scanner that
cannot look is named, with the reason: it has neither passed nor failed. PLAN is a Terraform plan
of prod, as `terraform show -json` writes it, for checkov.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import typer

from cost.estimate import with_defaults
from taplocal.program import run
from taplocal.recorder import Recorder

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = Path(sys.prefix) / "envs"
#: Settings by which the stack has every resource type that it can have.
EVERYTHING = {
    **dict.fromkeys(("files_analytics", "files_events", "files_malware_protection"), "true"),
    **dict.fromkeys(("threat_protection", "waf"), "true"),
    "alarm_emails": "ops@tap.dev",
    "api_domain_name": "api.tap.dev",
    "bastion_cidrs": "203.0.113.0/24",
    "cors_origins": "https://app.tap.dev",
    "domain_name": "app.tap.dev",
    "hosted_zone_id": "Z0123456789ABC",
    "interface_endpoints": "ssm,logs",
}
#: What the recorder's ARNs look like on AWS: kind -> service, and what is before the name.
ARNS = {
    "Alias": "lambda:{place}:function:",
    "Bucket": "s3:::",
    "Eip": "ec2:{place}:elastic-ip/",
    "Function": "lambda:{place}:function:",
    "Instance": "rds:{place}:db:",
    "Key": "kms:{place}:key/",
    "LogGroup": "logs:{place}:log-group:",
    "Parameter": "ssm:{place}:parameter/",
    "Queue": "sqs:{place}:",
    "RouteTable": "ec2:{place}:route-table/",
    "Table": "dynamodb:{place}:table/",
    "UserPool": "cognito-idp:{place}:userpool/",
}
#: Licences that ask for nothing but a notice, as packages write them.
PERMISSIVE = {
    "3-Clause BSD License", "Apache Software License", "Apache-2.0", "Apache-2.0 OR BSD-2-Clause",
    "Apache-2.0 OR BSD-3-Clause", "BSD License", "BSD License, Apache Software License",
    "BSD-2-Clause", "BSD-3-Clause", "DFSG approved, MIT License", "ISC License (ISCL)", "MIT",
    "MIT License", "MIT OR Apache-2.0", "MIT-0", "PSF-2.0", "Python Software Foundation License",
}  # fmt: skip


class Finding(NamedTuple):
    """What a scanner found: its rule, and a file, resource or package."""

    rule: str
    where: str


class Row(NamedTuple):
    """A finding that stays, and why; * in `where` stands for any text."""

    rule: str
    where: str
    why: str


class NotRunError(Exception):
    """Why a scanner could not look."""


def output(environment: str, tool: str, *arguments: str | Path, cwd: Path = ROOT) -> str:
    """What a scanner prints. Its exit status says whether it found something, not that it ran."""
    command = [ENVIRONMENTS / environment / "bin" / tool, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if not done.stdout.strip() and done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise NotRunError(f"{tool} failed: {last[0]}")
    return done.stdout


def counted(found: Iterable[Finding]) -> list[Finding]:
    """Several of one rule in a file as one: `file (2)`."""
    return [
        Finding(each.rule, each.where if n == 1 else f"{each.where} ({n})")
        for each, n in Counter(found).items()
    ]


def tracked(*patterns: str) -> list[str]:
    """The files that git has under these patterns."""
    done = subprocess.run(
        ["git", "ls-files", *patterns],  # noqa: S607 - wherever it is installed
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


def bandit(_plan: str) -> list[Finding]:
    """Findings of medium and high severity in what is not a test; ruff has the rules of all."""
    files = tracked("*.py", ":!tests", ":!benchmarks", ":!docs")
    results = json.loads(output("scan", "bandit", "-q", "-ll", "-f", "json", *files))["results"]
    return counted(Finding(x["test_id"], x["filename"].removeprefix("./")) for x in results)


def checkov(plan: str) -> list[Finding]:
    """Failed checks of a Terraform plan."""
    if not plan:
        raise NotRunError("no plan was given: make scan PLAN=...")
    options = ("-o", "json", "--compact", "--quiet", "--skip-download")
    results = json.loads(output("checkov", "checkov", "-f", Path(plan).resolve(), *options))
    failed = results["results"]["failed_checks"]
    return [Finding(x["check_id"], x["resource"]) for x in failed]


def detect_secrets(_plan: str) -> list[Finding]:
    """What looks like a secret in any file of the repository, but for the digests of locks."""
    text = output("scan", "detect-secrets", "scan", "--exclude-files", r"^requirements.*\.txt$")
    found = json.loads(text)["results"].values()
    return counted(Finding(x["type"], x["filename"]) for rows in found for x in rows)


def licences(_plan: str) -> list[Finding]:
    """The licences of what is locked and installed here that ask for more than a notice."""
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)
    installed = {_normal(x.metadata["Name"]): x for x in metadata.distributions()}
    found = [(name, _licence(installed[name])) for name in locked if name in installed]
    if not found:
        raise NotRunError("nothing of requirements-dev.txt is installed: make dev")
    return [Finding(licence, name) for name, licence in found if licence not in PERMISSIVE]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _licence(package: metadata.Distribution) -> str:
    fields: Any = package.metadata
    classifiers = [x for x in fields.get_all("Classifier") or () if x.startswith("License ::")]
    names = [each.rpartition(" :: ")[2] for each in classifiers]
    return str(fields.get("License-Expression") or ", ".join(names) or fields.get("License"))


def parliament(_plan: str) -> list[Finding]:
    """Findings in the policies of all roles, dev's and prod's with everything."""
    with TemporaryDirectory() as folder:
        for name, policy in role_policies():
            (Path(folder) / f"{name}.json").write_text(policy)
        lines = output("scan", "parliament", "--directory", folder, "--json").splitlines()
    found = [json.loads(line) for line in lines]
    return sorted({Finding(x["issue"], Path(x["location"]["filepath"]).stem) for x in found})


def role_policies() -> Iterator[tuple[str, str]]:
    """Each role's policy with the ARNs that it would have on AWS."""
    for env, config in (("dev", {}), ("prod", EVERYTHING)):
        recorder = Recorder()
        run(with_defaults(env, **config), recorder)
        for each in recorder.resources:
            if each.type == "aws:iam/rolePolicy:RolePolicy":
                yield f"{env}-{each.name}", as_on_aws(each.inputs["policy"])


def as_on_aws(policy: str) -> str:
    """A policy with real ARNs in place of the recorder's."""

    def real(found: re.Match[str]) -> str:
        place, kind = found.groups()
        return f"arn:aws:{ARNS[kind].format(place=place)}"

    return re.sub(r"arn:aws:test:([^:]*:\d+):(\w+)/", real, policy)


def pip_audit(_plan: str) -> list[Finding]:
    """Known vulnerabilities of the locked packages, of the advisories on the package index."""
    found = []
    for lock in ("web", "dev", "policy"):  # the shortest first: it shows whether there are any
        options = ("--require-hashes", "--disable-pip", "--progress-spinner", "off", "-f", "json")
        text = output("scan", "pip-audit", "-r", f"requirements-{lock}.txt", *options)
        packages = json.loads(text)["dependencies"]
        if all("skip_reason" in each for each in packages):
            raise NotRunError(f"the index has no advisories: {packages[0]['skip_reason']}")
        found += [Finding("not audited", x["name"]) for x in packages if "skip_reason" in x]
        found += [Finding(v["id"], x["name"]) for x in packages for v in x.get("vulns", ())]
    return sorted(set(found))


def zizmor(_plan: str) -> list[Finding]:
    """Findings in GitHub's workflows, without asking GitHub."""
    results = json.loads(output("scan", "zizmor", "--offline", "--format", "json", ".github"))
    keys = [(x["ident"], x["locations"][0]["symbolic"]["key"]) for x in results]
    return counted(Finding(rule, key["Local"]["verbatim_path"]) for rule, key in keys)


#: Heading of the scanner's table in docs/security.md -> what runs it.
SCANNERS: dict[str, Callable[[str], list[Finding]]] = {
    "bandit": bandit,
    "checkov": checkov,
    "detect-secrets": detect_secrets,
    "licences": licences,
    "parliament": parliament,
    "pip-audit": pip_audit,
    "zizmor": zizmor,
}


def table(text: str, scanner: str) -> list[Row]:
    """The rows of a scanner's table: | rule | where | why |, below its head."""
    _, heading, rest = text.partition(f"\n### {scanner}\n")
    if not heading:
        raise ValueError(f"docs/security.md has no heading {scanner}")
    section, _, _ = rest.partition("\n#")
    lines = re.findall(r"^\| (.+?) \| (.+?) \| (.+) \|$", section, re.MULTILINE)
    return [Row(*each) for each in lines[2:]]


def differences(found: Iterable[Finding], rows: Iterable[Row]) -> list[str]:
    """Findings without a row, and rows without a finding, a line each."""
    findings, unused, lines = list(found), list(rows), []
    for each in findings:
        fitting = [x for x in rows if x.rule == each.rule and fnmatch(each.where, x.where)]
        unused = [x for x in unused if x not in fitting]
        if not fitting:
            lines.append(f"{each.rule} in {each.where}: mend it, or add a row with the reason")
    return lines + [f"{x.rule} in {x.where}: is found no more, delete the row" for x in unused]


def main(
    plan: Annotated[str, typer.Option(help="A Terraform plan of prod, as JSON.")] = "",
) -> None:
    """Run all scanners; exit with 1 if their tables in docs/security.md are not what they find."""
    text = (ROOT / "docs/security.md").read_text()
    wrong = 0
    for name, scan in SCANNERS.items():
        try:
            found = scan(plan)
        except NotRunError as reason:
            print(f"{name}: SKIPPED, {reason}")
            continue
        lines = differences(found, table(text, name))
        wrong += len(lines)
        print(f"{name}: {len(found)} findings, {len(lines)} of them or of their rows to settle")
        for line in lines:
            print(f"  {line}")
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
