"""Each command in a document exists: its program's own parser, model or reference says so."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
import typer
from botocore import xform_name
from botocore.model import ListShape, OperationModel, Shape, StructureShape
from typer.core import TyperGroup
from typer.main import get_command

from taplocal import commands
from tests.stack.conftest import ROOT

DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("[!.]*/README.md"))
    if path.name != "CHANGELOG.md"  # which says what there was
)
MAKEFILE = (ROOT / "Makefile").read_text()
#: Command of Pulumi -> options of its own: "Pulumi CLI commands", its documentation, June 2026, and
#: `--ignore-protect` of version 3.256.
PULUMI = {
    "up": "--yes --skip-preview --diff --refresh --config --target --ignore-protect",
    "preview": "--diff --policy-pack --json --expect-no-changes --import-file",
    "refresh": "--preview-only --expect-no-changes --diff --yes --run-program",
    "destroy": "--yes --skip-preview --exclude-protected --run-program --ignore-protect",
    "new": "--yes --dir --stack --generate-only",
    "cancel": "--yes",
    "login": "--local",
    "import": "--file --yes --generate-code",
    "config set": "--path --secret --plaintext --type",
    "config rm": "--path",
    "stack": "--show-urns --show-ids --show-name --show-secrets",
    "stack select": "--create",
    "stack init": "--secrets-provider --copy-config-from --no-select",
    "stack output": "--json --shell --show-secrets",
    "stack export": "--file --show-secrets --version",
    "stack import": "--file --force",
    "state unprotect": "--all --yes",
}
EVERYWHERE = {"--stack", "--cwd", "--non-interactive", "--help"}
#: What the AWS CLI has beside an operation's own members, and commands of its own with theirs:
#: "AWS CLI command reference", version 2.
OF_THE_CLI = {"query", "cli-binary-format", "output", "max-items", "region"}
RENAMED = {"sns subscribe": {"endpoint": "notification-endpoint"}}
OF_NO_OPERATION = {
    "ec2-instance-connect ssh": {"--instance-id"},
    "s3 cp": {"--metadata-directive"},
    "s3 ls": {"--recursive"},
    "logs tail": {"--since", "--filter-pattern"},
    "s3 rm": {"--recursive"},
}
RUNNERS = ("taplocal", "as_json")  # functions of tests that run a command of the local cloud
PARSER: Any = get_command(commands.app)
#: Command of the local cloud that no test of a shell runs -> why.
NOT_RUN = {
    "psql": "it needs a terminal; tests/unit/test_ready.py has its arguments",
}


class Command(NamedTuple):
    """A command as a document has it; in running text it may only name a program."""

    document: str
    whole: bool
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: {' '.join(self.words)}"


def simple_commands(line: str) -> Iterator[tuple[str, ...]]:
    """The words of each command in a line of shell, those of `$(...)` too."""
    for inner in re.findall(r"\$\(((?:[^()]|\([^()]*\))*)\)", line):
        yield from simple_commands(inner)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            yield tuple(words)
            words = []
        elif words or not re.fullmatch(r"do|[A-Z_]+=.*", word):
            words.append(word)


def texts(path: Path) -> Iterator[tuple[bool, str]]:
    """The lines of a document's blocks, joined where they go on, and what is in back-ticks."""
    text = re.sub(r"<[^<>\n]+>", "PLACEHOLDER", path.read_text()).replace("\\\n", " ")
    blocks = re.findall(r"^```.*\n([\s\S]*?)^```", text, re.MULTILINE)
    lines = re.findall(r"^ {4,}(\S.*)$", text, re.MULTILINE)
    for line in [*lines, *"\n".join(blocks).splitlines()]:
        yield True, line
    for words in re.findall(r"`([^`\n]+)`", text):
        yield False, re.sub(r"[\[\]]", "", words)  # around what may be left out


@cache
def documented() -> list[Command]:
    """All commands of the programs that are checked here, each once in a document."""
    programs = r"(?:make|aws|pulumi|taplocal|(?:\S*/)?python3?)\b(?! *[.:=])"
    found = {
        Command(path.name, whole, words)
        for path in DOCUMENTS
        for whole, line in texts(path)
        if re.search(programs, line) and (whole or re.match(programs, line))
        for words in simple_commands(line)
        if words and re.fullmatch(programs, words[0])
    }
    return sorted(found)


def of(*programs: str, where: Callable[[Command], bool] = lambda _: True) -> list[Any]:
    """The commands of a program, of which something holds, as parameters of a test."""
    named = (each for each in documented() if Path(each.words[0]).name in programs)
    return [pytest.param(each, id=str(each)) for each in named if where(each)]


def test_a_line_of_shell_is_taken_apart() -> None:
    line = """for env in dev; do A=1 make smoke URL="$(pulumi stack output url)" | jq '.a | .b'; done"""
    assert [*filter(None, simple_commands(line))] == [
        ("pulumi", "stack", "output", "url"),
        ("for", "env", "in", "dev"),
        ("make", "smoke", "URL=$(pulumi stack output url)"),
        ("jq", ".a | .b"),
        ("done",),
    ]
    assert len(documented()) > 100


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_line_of_shell_has_what_zsh_reads_otherwise(path: Path) -> None:
    """By default an interactive zsh has no comments, and `$ENV:live` is `$ENV` in lower case."""
    program = re.compile(r" *(make|aws|pulumi|export|eval|for|git|\.?venv/\S+) ")
    lines = [line for whole, line in texts(path) if whole and program.match(f"{line} ")]
    assert [x for x in lines if re.search(r"\s#|\$[A-Za-z_]+:[a-zA-Z]", x)] == []


@pytest.mark.parametrize("command", of("make"))
def test_a_target_of_make_exists_and_its_variables_are_used(command: Command) -> None:
    for word in command.words[1:]:
        name, assigned, _ = word.partition("=")
        if assigned:
            assert re.search(rf"\$\(({name}\)|(filter \w+|if) ?,?\$\({name}\))", MAKEFILE), name
        else:
            assert re.search(rf"^{re.escape(name)}:", MAKEFILE, re.MULTILINE), name


@pytest.mark.parametrize("command", of("pulumi"))
def test_a_command_of_pulumi_is_in_its_reference(command: Command) -> None:
    words = [each for each in command.words[1:] if not each.startswith("-")]
    known = next((x for n in (2, 1) if (x := " ".join(words[:n])) in PULUMI), None)
    assert known or not words, f"pulumi {' '.join(words[:2])} is not among the known commands"
    options = {each.partition("=")[0] for each in command.words if each.startswith("-")}
    assert options <= EVERYWHERE | set(PULUMI.get(known or "", "").split())


def parser_of(module: str) -> Any:
    """The command of a module that typer makes one of; None for a module without options."""
    if module == "taplocal":
        return PARSER
    name = f"{module}.__main__" if (ROOT / module).is_dir() else module
    if "import typer" not in (ROOT / f"{name.replace('.', '/')}.py").read_text():
        return None
    app = typer.Typer()
    app.command()(importlib.import_module(name).main)
    return get_command(app)


def parse(command: Any, words: list[str], whole: bool) -> None:
    """Raises typer's UsageError for words that the command does not take."""
    try:
        context = command.make_context(command.name, words)
    except typer.BadParameter:  # one that is missing, too
        if whole:
            raise
        return
    if isinstance(command, TyperGroup):
        _, below, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        parse(below, rest, whole)


def of_this_project(command: Command) -> bool:
    """Whether it runs no script, and no module of another package."""
    _, option, module = (*command.words, "", "")[:3]
    others = ("venv", "pip", "pulumi.dynamic")
    return Path(command.words[0]).name == "taplocal" or (option == "-m" and module not in others)


@pytest.mark.parametrize("command", of("python", "python3", "taplocal", where=of_this_project))
def test_a_module_takes_the_arguments_of_its_command(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = list(command.words)
    if words[0].endswith("taplocal"):
        words[:1] = ["python", "-m", "taplocal"]
    monkeypatch.chdir(ROOT)
    parser, rest = parser_of(words[2]), words[3:]
    if parser and rest and rest[0] != "COMMAND":
        parse(parser, rest, command.whole)
    assert parser or not command.whole or not rest


@cache
def run_by_tests() -> set[str]:
    """The commands of the local cloud that its tests run, in this process or another."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tests/local").glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    lists = [x.args for x in nodes if isinstance(x, ast.Call) and ast.unparse(x.func) in RUNNERS]
    words = [[ast.unparse(x) for x in each if isinstance(x, ast.Constant)] for each in lists]
    others = [[ast.unparse(x) for x in each.elts] for each in nodes if isinstance(each, ast.List)]
    words += [each[each.index("'taplocal'") + 1 :] for each in others if "'taplocal'" in each]
    return {each[0].strip("'") for each in words if each}


@pytest.mark.parametrize("name", sorted(PARSER.commands))
def test_each_command_of_the_local_cloud_is_run_by_a_test(name: str) -> None:
    assert (name in run_by_tests()) != (name in NOT_RUN)


def operation_of(service: str, verb: str, rest: tuple[str, ...]) -> OperationModel:
    """The operation of a command of the AWS CLI, that of a waiter too."""
    client = boto3.client(service.removesuffix("api"), region_name="eu-west-1")
    if verb == "wait":
        waiter = client.get_waiter(rest[0].replace("-", "_"))
        verb = xform_name(waiter.config.operation, "-")
    names = client.meta.method_to_api_mapping.values()
    (operation,) = (each for each in names if xform_name(each, "-") == verb)
    return client.meta.service_model.operation_model(operation)


def names_within(shape: Shape | None, seen: tuple[str, ...] = ()) -> set[str]:
    """The members of a structure and of all that is in it."""
    if shape is None or shape.name in seen:
        return set()
    members = dict(getattr(shape, "members", {}))
    inner = [*members.values(), *(x for x in [getattr(shape, "member", None)] if x)]
    return {*members}.union(*(names_within(x, (*seen, shape.name)) for x in inner))


def shorthand_names(shape: Shape, value: str) -> Iterator[str]:
    """The members that a value in the CLI's shorthand has, and its structure has not."""
    shape = shape.member if isinstance(shape, ListShape) else shape
    if isinstance(shape, StructureShape) and "=" in value and value[:1] not in "[{":
        names = {each.partition("=")[0] for each in value.split(",")}
        yield from names - shape.members.keys()


@pytest.mark.parametrize("command", of("aws", where=lambda command: len(command.words) > 2))
def test_a_command_of_the_aws_cli_has_an_operation_and_all_that_it_needs(command: Command) -> None:
    _, service, verb, *rest = command.words
    if (options := OF_NO_OPERATION.get(f"{service} {verb}")) is not None:
        assert {each for each in rest if each.startswith("--")} <= options
        return
    operation = operation_of(service, verb, tuple(rest))
    shape = operation.input_shape
    members = {xform_name(name, "-"): each for name, each in shape.members.items()} if shape else {}
    renamed = RENAMED.get(f"{service} {verb}", {})
    members = {renamed.get(name, name): each for name, each in members.items()}
    for name in [name for name, each in members.items() if each.type_name == "boolean"]:
        members[f"no-{name}"] = members[name]
    named = {each.removeprefix("--") for each in rest if each.startswith("--")}
    assert named - members.keys() <= OF_THE_CLI
    for option, value in itertools.pairwise(rest):
        if option == "--query":
            found = re.findall(r"\b[A-Z]\w+", re.sub(r"'[^']*'", "", value))
            assert {*found} <= names_within(operation.output_shape), value
        if option.startswith("--") and option[2:] in members:
            assert not [*shorthand_names(members[option[2:]], value)], value
    needed = {xform_name(each, "-") for each in shape.required_members} if shape else set()
    needed = {renamed.get(each, each) for each in needed}
    if command.whole:
        assert needed <= {each.removeprefix("no-") for each in named}
