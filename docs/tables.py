"""Writes what the code already says into the documents that repeat it: `make docs`.

A generated block of a document stands between `<!-- name -->` and `<!-- end -->`; the rest of the
file is written by hand. A test fails when a block is not what this would write.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import itertools
import json
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cost import chart, prices, tables  # noqa: E402
from cost.estimate import estimate, with_defaults  # noqa: E402
from docs import faults  # noqa: E402
from policy import rules  # noqa: E402
from tap_stack import OUTPUTS, TIERS, TapStackArgs  # noqa: E402
from taplocal.architecture import SYSTEMS, Architecture, Drawing  # noqa: E402
from taplocal.differences import DIFFERENCES, by_meaning  # noqa: E402
from taplocal.program import run  # noqa: E402
from taplocal.project import Project  # noqa: E402
from taplocal.recorder import Recorder  # noqa: E402
from tests import needs  # noqa: E402

PROGRAM = ROOT / "tap_stack.py"
EXAMPLES = sorted(each for each in (ROOT / "examples").iterdir() if each.is_dir())
#: Section of tap_stack.py in lower case -> the name of its test files, where it is another one.
TEST_NAMES = {
    "types and policies": "policies",  # types have no behavior
    "serverless api: resources": "serverless_api",  # the chapter's component
    "file pipeline: files in the api": "files",  # as long a name says no more
    "file pipeline: resources": "file_pipeline",  # the chapter's component
    "web environment: application": "web_application",  # "application" could be any
    "tapstack": "tap_stack",  # a class: two words in one
}


def files() -> Iterator[tuple[Path, str]]:
    """Every picture, and every file with generated blocks, and the text that it should have."""
    yield from pictures()
    for name, blocks in BLOCKS.items():
        path = ROOT / name
        text = path.read_text()
        for block, rows in blocks.items():
            text = filled(text, block, rows())
        yield path, text


def filled(text: str, name: str, rows: Iterator[str]) -> str:
    """The text with a block's rows between its marks."""
    start, end = f"<!-- {name} -->\n", "<!-- end -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"there is no block {name}")
    return before + start + "".join(f"{row}\n" for row in rows) + end + after


def settings() -> Iterator[str]:
    """A heading and a table for each group of settings."""
    tiers = [TapStackArgs(environment_suffix=tier) for tier in TIERS]
    texts = meanings()
    for group, names in groups().items():
        yield ""
        yield f"## {group}"
        yield ""
        yield f"| setting | meaning | {' | '.join(TIERS)} |"
        yield "| --- | --- |" + " --- |" * len(TIERS)
        for name in names:
            doc = re.sub(r"{(\w+)}", price, texts[name])
            values = " | ".join(configured(getattr(args, name)) for args in tiers)
            yield f"| `{name}` | {doc} | {values} |"
    yield ""


def meanings() -> dict[str, str]:
    """Setting -> what it means: the text below its field."""
    program = ast.parse(PROGRAM.read_text()).body
    (args,) = (x for x in program if isinstance(x, ast.ClassDef) and x.name == "TapStackArgs")
    found = {}
    for field, text in itertools.pairwise(args.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(meaning))):
                found[name] = " ".join(meaning.split())
    return found


def groups() -> dict[str, list[str]]:
    """Group -> its settings; a group is the comment line above its first field."""
    found: dict[str, list[str]] = {}
    fields = {each.name for each in dataclasses.fields(TapStackArgs)}
    _, body = PROGRAM.read_text().split("\nclass TapStackArgs:\n")
    group, depth = "", 0
    for token in tokenize.generate_tokens(io.StringIO(body).readline):
        depth += {tokenize.INDENT: 1, tokenize.DEDENT: -1}.get(token.type, 0)
        if token.type == tokenize.NAME and token.string == "def":
            break
        at_margin = token.start[1] == 4
        if token.type == tokenize.COMMENT and at_margin:
            group = token.string.removeprefix("# ")
        if token.type == tokenize.NAME and at_margin and token.string in fields:
            found.setdefault(group, []).append(token.string)
    return found


def price(placeholder: re.Match[str]) -> str:
    """The price that a placeholder stands for."""
    return prices.PLACEHOLDERS[placeholder[1]]


def configured(value: Any) -> str:
    """A value as it is written in the configuration; a list with commas."""
    if isinstance(value, tuple):
        return f"`{','.join(value) or '[]'}`"
    return f"`{value}`" if value and isinstance(value, str) else f"`{json.dumps(value)}`"


def outputs() -> Iterator[str]:
    """The table of outputs."""
    yield "| output | meaning |"
    yield "| --- | --- |"
    for name, doc in OUTPUTS.items():
        yield f"| `{name}` | {doc} |"


def sections() -> list[str]:
    """The banners of tap_stack.py, in order."""
    return re.findall(r"^# === (.+?) =+$", PROGRAM.read_text(), re.MULTILINE)


def word(section: str) -> str:
    """What a section is called: the last part of its banner, in lower case."""
    return section.rpartition(": ")[2].lower()


def test_files(section: str) -> list[str]:
    """The test files of a section."""
    slug = TEST_NAMES.get(section.lower(), word(section).replace(" ", "_"))
    found = sorted(ROOT.glob(f"tests/*/test_{slug}.py"))
    return [str(path.relative_to(ROOT)) for path in found]


def section_rows() -> Iterator[str]:
    """Each section with the settings and the test files of its name."""
    yield "| section of `tap_stack.py` | settings | tests |"
    yield "| --- | --- | --- |"
    named = {group.lower(): group for group in groups()}
    for section in sections():
        group = named.get(word(section), "")
        link = f"[{group}](settings.md#{group.lower().replace(' ', '-')})" if group else ""
        tests = ", ".join(f"`{path}`" for path in test_files(section))
        yield f"| {section} | {link} | {tests} |"


def differences() -> Iterator[str]:
    """What is not as on AWS on the local cloud, by what it means to the user."""
    for meaning, rows in by_meaning(each.key for each in DIFFERENCES).items():
        yield f"| {meaning} | on AWS | on the local cloud |"
        yield "| --- | --- | --- |"
        for each in rows:
            yield f"| {each.key.replace('-', ' ')} | {each.aws} | {each.here} |"
        yield ""


def saved_queries() -> Iterator[str]:
    """The saved queries of Logs Insights, and what they answer."""
    yield "| query | answers |"
    yield "| --- | --- |"
    for path in sorted((ROOT / "queries" / "logs").glob("*.txt")):
        question = path.read_text().partition("\n")[0].partition(": ")[2]
        yield f"| `{path.stem}` | {question} |"


def rule_rows() -> Iterator[str]:
    """The rules of each resource type, and those for a resource beside another."""
    every: list[rules.Rule | rules.Companion] = [*rules.RULES, *rules.COMPANIONS]
    types = {each.type for each in every}
    yield f"{len(every)} rules for {len(types)} resource types:"
    yield ""
    yield "| resource type | id | what it asks for | source |"
    yield "| --- | --- | --- | --- |"
    for each in sorted(every, key=lambda rule: rule.type):
        yield f"| `{each.type}` | {each.id} | {each.text} | {each.source} |"


def exemption_rows() -> Iterator[str]:
    """Who need not follow a rule, and why."""
    yield f"{len(rules.EXEMPTIONS)} exemptions:"
    yield ""
    yield "| id | resource | environments | why |"
    yield "| --- | --- | --- | --- |"
    for each in rules.EXEMPTIONS:
        yield f"| {each.rule} | `{each.resource}` | {each.tiers} | {each.reason} |"


def types_without_rule() -> Iterator[str]:
    """Resource types that no rule is about, and why."""
    yield f"{len(rules.WITHOUT_RULE)} resource types have no rule:"
    yield ""
    yield "| resource type | why |"
    yield "| --- | --- |"
    for kind, reason in rules.WITHOUT_RULE.items():
        yield f"| `{kind}` | {reason} |"


def grants() -> Iterator[str]:
    """What is granted, and what of it `make prove-iam` takes away."""
    rows = [
        (holder, need)
        for holder, found in needs.NEEDS.items()
        for need in found
        for _ in need.grants(holder)
    ]
    proved, documented = ([x for x in rows if bool(x[1].step) is y] for y in (True, False))
    roles = {holder for holder, _ in rows if holder.endswith("-role")}
    yield (
        f"{len(rows)} grants, an action on a resource each, of {len(roles)} roles and of "
        f"{len(needs.NEEDS) - len(roles)} policies of resources. `make prove-iam` takes "
        f"{len(proved)} of them away, and tries what {sum(bool(x.forbidden) for _, x in rows)} "
        f"conditions forbid. It cannot show {len(documented)}, which are required by"
    )
    yield ""
    yield "| what requires them | grants | of |"
    yield "| --- | --- | --- |"
    whys = {need.why: [x for x in documented if x[1].why == need.why] for _, need in documented}
    for why, found in sorted(whys.items()):
        holders = ", ".join(f"`{each}`" for each in dict.fromkeys(holder for holder, _ in found))
        yield f"| {why} | {len(found)} | {holders} |"


def mutants() -> Iterator[str]:
    """What the last `make mutants` has found."""
    found = json.loads((ROOT / "tests/mutants.json").read_text())
    tried, survived = found["tried"], found["survived"]
    count = sum(tried.values())
    rest = "" if count >= 300 else " The rest of the sample of 300 has not run yet."
    parts = " and ".join(f"{n} of `{part}`" for part, n in sorted(tried.items()))
    yield (
        f"{count} mutants, {parts}, by seed {found['seed']} out of {found['mutants']:,}: "
        f"{count - len(survived)} are killed, {1 - len(survived) / count:.1%}.{rest} {found['elsewhere']:,} more "
        f"are in what no unit test runs of the local cloud. These survive:"
    )
    yield ""
    yield "| where | line | as a mutant | why no test fails |"
    yield "| --- | --- | --- | --- |"
    for each in sorted(survived, key=lambda x: (x["file"], x["function"])):
        lines = (f"`{each[x] or 'nothing'}`".replace("|", "\\|") for x in ("before", "after"))
        where = f"{each['file']}, `{each['function']}`" if each["function"] else each["file"]
        yield f"| {where} | {' | '.join(lines)} | {each['why']} |"


def pictures() -> Iterator[tuple[Path, str]]:
    """The costs of each tier; the architecture as prod registers it: all of it, and each system
    with what it touches."""
    yield ROOT / "docs/cost.svg", chart.svg({tier: tables.of(tier) for tier in TIERS})
    recorder = Recorder()
    run(with_defaults("prod", files_events="true"), recorder)
    whole = Architecture(recorder.deployed)
    yield ROOT / "docs/architecture.svg", Drawing(whole).svg("tap-stack")
    for system in SYSTEMS:
        if system != "Shared":
            path = ROOT / f"docs/{system.lower().replace(' ', '-')}.svg"
            yield path, Drawing(whole.of(system)).svg(system)


#: Document -> its generated blocks by name.
def costs(example: Path) -> Iterator[str]:
    """What a month of an example costs without traffic, in each of its environments."""
    names = [each.name.split(".")[1] for each in sorted(example.glob("Pulumi.*.yaml"))]
    fixed = [estimate(Project.load(example, each)).fixed for each in names]
    dollars = [sum(map(Counter, each.values()), Counter[str]()) for each in fixed]
    yield f"| dollars a month without traffic ([prices](../../docs/cost.md)) | {' | '.join(names)} |"
    yield "| --- |" + " ---: |" * len(names)
    for what in sorted({key for each in dollars for key in each}):
        yield f"| {what} | {' | '.join(f'{each[what]:,.2f}' for each in dollars)} |"
    yield f"| together | {' | '.join(f'{sum(each.values()):,.2f}' for each in dollars)} |"


BLOCKS: dict[str, dict[str, Callable[[], Iterator[str]]]] = {
    "docs/settings.md": {"settings": settings},
    "docs/outputs.md": {"outputs": outputs},
    "docs/faults.md": {"faults": faults.rows},
    "docs/cost.md": {
        "systems": tables.systems,
        "resources": tables.resources,
        "choices": tables.choices,
        "loads": tables.loads,
        "by_use": tables.by_use,
        "assumed": tables.assumed,
        "left_out": tables.left_out,
        "files": tables.files,
        "sign_ins": tables.sign_ins,
        "prices": tables.unit_prices,
    },
    "docs/scaling.md": {"load": tables.hourly, "parameters": tables.parameter_calls},
    "docs/decisions/0007-files-in-dynamodb.md": {"capacity": tables.capacity},
    "docs/operations.md": {"queries": saved_queries},
    "docs/security.md": {
        "rules": rule_rows,
        "exemptions": exemption_rows,
        "without_rule": types_without_rule,
        "grants": grants,
        "mutants": mutants,
    },
    "docs/architecture.md": {"differences": differences, "sections": section_rows},
    **{f"examples/{each.name}/README.md": {"cost": partial(costs, each)} for each in EXAMPLES},
}


if __name__ == "__main__":
    for path, text in list(files()):
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")
