"""Names in the documents, docstrings and comments exist: a renamed thing leaves no stale word.

A name is what stands between back-ticks, and each command line in an indented block. It must be
explained by the code (an identifier, a whole text, a path, a test, a make target, a verb of the
command line, an alarm), or be one of FOREIGN.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import tap_stack
from docs import tables
from tests.contract import operations
from tests.stack.conftest import ENVIRONMENTS, ROOT, graph_of

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md", "openapi.yaml")
COMMENTED = (
    "*.py", "taplocal/**/*.py", "cost/*.py", "docs/*.py", "ops/*.py", "demo/*.py", "policy/*.py",
    "bootstrap/*.py",
)  # fmt: skip
CODE = (*COMMENTED, "benchmarks/**/*.py", "tests/*.py", "tests/*/*.py", "examples/*/*.py")
#: Programs that are not ours; of their command lines only the settings are checked.
PROGRAMS = (
    "apt-get", "aws", "curl", "git", "pip", "pre-commit", "pulumi", "terraform", "uv", "uvx",
)  # fmt: skip
#: `cost.prices` must be a module of these; other dots stand between identifiers.
PACKAGES = (
    "benchmarks",
    "bootstrap",
    "cost",
    "demo",
    "docs",
    "examples",
    "ops",
    "policy",
    "taplocal",
    "tests",
)
#: What is no name of ours -> whose it is, or what it stands for.
FOREIGN = {
    "CREATE_FAILED": "the state of a pipe, by DescribePipe",
    "athena:GetDatabase": "an action that Athena's console needs",
    "athena:GetTableMetadata": "an action that Athena's console needs",
    "RenewalSummary": "of a certificate, by DescribeCertificate",
    "--install-completion": "Typer, of every command line",
    "ConcurrentExecutions": "a metric of Lambda that the runbook reads",
    "iam:PassRole": "of whoever runs `pulumi up`",
    "-c KEY=VALUE": "placeholders",
    "/oauth2/authorize": "Cognito",
    "FILE_MB": "a variable of `make cost`",
    "GB_OUT": "a variable of `make cost`",
    "InvokeFunction": "IAM, where the SDK has invoke",
    "MinimumLength": "AWS, where Pulumi has minimumLength",
    "MYPYPATH": "mypy",
    "Pulumi.<env>.yaml": "Pulumi",
    "Pulumi.<stack>.yaml": "Pulumi",
    "aws:assumeRole": "Pulumi's AWS provider",
    "get-items-id": "an example in tap_stack.py",
    'globals()["x"]': "Python",
    ".venv": "made by make",
    ". .venv/bin/activate": "Python's venv, in a shell",
    "STATE_URL": "a variable of the repository on GitHub",
    "/proc": "Linux",
    "CI=true": "GitHub Actions",
    "TransactionConflict": "DynamoDB",
    "OPTIONS": "HTTP",
    "StartSession": "Session Manager, in CloudTrail",
    "IPAddressDeny": "systemd",
    "ProtectSystem": "systemd",
    "kms:EncryptionContext": "the beginning of a condition key of KMS",
    "RandomPassword": "Pulumi's random provider",
    "Retry-After": "HTTP",
    "If-Match": "HTTP",
    "If-None-Match": "HTTP",
    "If-None-Match: *": "HTTP",
    "Idempotency-Key": "HTTP",
    "toJSON(needs)": "a workflow's expression",
    "work_mem": "PostgreSQL",
    "requestPayload": "Lambda's record of a failed event",
    "responsePayload": "Lambda's record of a failed event",
    "vX.Y.Z": "Semantic Versioning",
}


#: The name of a resource as the runbook has it, whose test looks it up.
RESOURCE = r"[\w/]*\$PROJECT-[\w-]*\$ENV[\w-]*"


def spans(text: str) -> set[str]:
    """What stands between back-ticks."""
    return set(re.findall(r"`([^`\n]+)`", text))


def document_names(text: str) -> set[str]:
    """The names in a document: back-ticks and indented command lines; not what is generated."""
    text = re.sub(r"<!-- (\w+) -->.*?<!-- end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    commands = re.findall(r"^ {4,}((?:\.venv/bin/|python -m |make |pulumi ).*)", text, re.MULTILINE)
    return spans(text) | {re.split(r"\s+#|\s+&&", command)[0] for command in commands}


def comments(text: str) -> Iterator[str]:
    """The comments and docstrings of a source file."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def paths(patterns: tuple[str, ...]) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


@functools.cache
def vocabulary() -> set[str]:
    """Identifiers and whole texts of the code, settings, alarms, routes."""
    found = {each.name for each in dataclasses.fields(tap_stack.TapStackArgs)} | set(operations())
    for path in paths(CODE):
        text = path.read_text()
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        found |= {token.string for token in tokens if token.type == tokenize.NAME}
        nodes = ast.walk(ast.parse(text))
        texts = {x.value for x in nodes if isinstance(x, ast.Constant) and isinstance(x.value, str)}
        if path != Path(__file__):  # the words that this file expects to be unknown
            found |= {each for each in texts if len(each) < 80}
    found |= {path.stem for path in paths(("queries/logs/*.txt",))}
    for env in ENVIRONMENTS:
        more = ("files_analytics", "files_events", "files_malware_protection")
        graph = graph_of(env, **dict.fromkeys(more, "true"))
        alarms = graph.of("aws:cloudwatch/metricAlarm:MetricAlarm")
        found |= {each.name.removeprefix("monitoring-") for each in alarms}
    return found


@functools.cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@functools.cache
def verbs() -> set[str]:
    """The commands of `python -m taplocal`."""
    tree = ast.parse((ROOT / "taplocal" / "commands.py").read_text())
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(each).startswith("app.command(") for each in node.decorator_list)
    }


@functools.cache
def options() -> set[str]:
    """The options of the command lines: texts, or made of a function's arguments."""
    found = {"--help"}
    for path in paths(("*/__main__.py", "taplocal/commands.py", "ops/*.py", "benchmarks/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.arg):
                found.add(f"--{node.arg.replace('_', '-')}")
            if isinstance(node, ast.Constant) and str(node.value).startswith("--"):
                found.add(str(node.value))
    return found


def is_test(name: str) -> bool:
    """`tests/unit/test_values.py::test_a_thing`."""
    path, _, test = name.partition("::")
    return (ROOT / path).is_file() and f"\ndef {test}(" in (ROOT / path).read_text()


def is_path(name: str) -> bool:
    """A file or folder of the repository."""
    return (
        bool(re.fullmatch(r"[\w./-]+", name))
        and any(c in name for c in "./")
        and ((ROOT / name).exists())
    )


def is_module(name: str) -> bool:
    """A module or package of the repository; of other packages only Pulumi's."""
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file() or name == "pulumi.dynamic"


def is_command(name: str) -> bool:
    """A command line: a make target, one of our modules with its verb and options, a program."""
    first, *rest = name.removeprefix(".venv/bin/").split()
    if first == "make":
        return all(target in make_targets() for target in rest[:1])
    if first == "python" and rest[:1] == ["-m"]:
        module, arguments = rest[1], rest[2:]
        is_verb = module != "taplocal" or not arguments or arguments[0] in {*verbs(), "COMMAND"}
        return is_module(module) and is_verb and all(map(is_argument, arguments))
    if first in PROGRAMS and rest:
        words = re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", name)
        return all(word in vocabulary() for word in words)
    return first in verbs() and all(map(is_argument, rest))


def is_argument(word: str) -> bool:
    """An option must be one of ours, a setting behind `-c` too."""
    if option := re.fullmatch(r"\[?(--[a-z-]+)\]?", word):
        return option[1] in options()
    setting = re.fullmatch(r"([a-z_]+)=.*", word)
    return setting is None or setting[1] in vocabulary()


def is_code(name: str) -> bool:
    """An expression of known identifiers and texts; `<placeholders>` may be anything."""
    if name in vocabulary() or is_module(name):
        return True
    if name.partition(".")[0] in PACKAGES or re.match(r"[A-Z]+ /", name):
        return False  # a module, a route: as a whole or not at all
    quoted = re.findall(r'"([^"]*)"', name)
    words = re.findall(r"[A-Za-z_]\w*(?:-\w+)*", re.sub(rf'<[^>]*>|"[^"]*"|{RESOURCE}', "", name))
    return all(x in vocabulary() or as_method(x) in vocabulary() for x in (*words, *quoted))


def as_method(action: str) -> str:
    """The SDK's method of an AWS action: `UpdateAlias` -> `update_alias`; no other word has one."""
    words = re.findall(r"[A-Z][a-z]+", action)
    return "_".join(words).lower() if len(words) > 1 and "".join(words) == action else action


def is_explained(name: str) -> bool:
    checks = (is_test,) if "::" in name else (is_path, is_command)
    if name in FOREIGN or any(check(name) for check in checks):
        return True
    looks_like_path = re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?|[\w.-]+\.(py|md|toml|yaml)", name)
    first, *rest = name.split()
    looks_like_command = first in {"make", "python", ".venv/bin/python", *PROGRAMS} or (
        first in verbs() and rest
    )
    if "::" in name or looks_like_command or (looks_like_path and name not in vocabulary()):
        return False
    return is_code(name)


@pytest.mark.parametrize("path", paths(DOCUMENTS), ids=lambda path: path.name)
def test_names_in_documents_exist(path: Path) -> None:
    unknown = {name for name in document_names(path.read_text()) if not is_explained(name)}
    assert not unknown


@pytest.mark.parametrize("path", paths(COMMENTED), ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_comments_exist(path: Path) -> None:
    text = "\n".join(comments(path.read_text()))
    unknown = {name for name in spans(text) if not is_explained(name)}
    assert not unknown


def setting_texts() -> str:
    return " ".join([*tables.meanings().values(), *tap_stack.OUTPUTS.values()])


def test_names_in_the_texts_of_settings_and_outputs_exist() -> None:
    assert not {name for name in spans(setting_texts()) if not is_explained(name)}


@pytest.mark.parametrize(
    "name",
    [
        "NO_SUCH_CONSTANT",
        "STATEMENTS",  # there are variables of this name, in small letters
        "no_such_function()",
        "self.no_such_attribute",
        "no_such_setting",
        "NoSuchMetric",
        "no-such-alarm",
        "GET /nowhere",
        "benchmarks.nowhere",
        "docs/nothing.md",
        "tests/nothing",
        "Pulumi.nothing.yaml",
        "tests/stack/test_words.py::test_nothing",
        "tests/stack/test_nothing.py::test_names_in_documents_exist",
        "make nothing",
        ".venv/bin/python -m nothing",
        "python -m taplocal nothing",
        "python -m taplocal up --nowhere",
        "python -m taplocal up -c no_such_setting=1",
        "up [--nowhere]",
        "pulumi config set no_such_setting 1",
    ],
)
def test_a_name_of_nothing_is_noticed(name: str) -> None:
    assert not is_explained(name)


def test_every_foreign_word_is_used() -> None:
    used = spans(setting_texts())
    for path in paths(DOCUMENTS):
        used |= document_names(path.read_text())
    for path in paths(COMMENTED):
        used |= spans("\n".join(comments(path.read_text())))
    assert FOREIGN.keys() <= used, FOREIGN.keys() - used
