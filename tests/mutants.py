"""Mutation testing: does a test notice when a line of logic is wrong? `make mutants`.

    python -m tests.mutants [--seed 1] [--count 300] [--again]

A mutant is the program with one place changed: a comparison, a number, an argument left out. It is
killed if a test fails, and survives if none does: then a test is missing, or the change makes no
difference. Survivors stand in docs/security.md with the reason; one without a reason, or fewer
than 95 % killed, are errors (exit status 1).

What is changed: `tap_stack.py` and `taplocal/`, by mutmut's operators and two of our own (`OWN`),
each operator as often as the others, so that the two thirds that only leave an argument out do not
hide the rest. What is not, as no test of logic could tell the difference, or others do (`LEFT_OUT`):
- texts, so mutmut's operator of strings; docstrings; lines that only tell something (`print` of
  JSON), as what matters in a log is asserted as a metric or a field;
- annotations, decorators, `cast`: they are for readers and mypy, or run at import;
- classes that are components: they declare resources, and rules, needs, costs and the tests of the
  graph read all that is declared;
- functions of the local cloud that no unit test runs: tests/local do, for minutes, with the
  emulator. In `tap_stack.py`, what no unit test reaches survives.

Each unit test file runs once with coverage.py, which says what test reaches which line, also in
processes that it starts. A mutant is then given to the tests that reach it, the files with short
ones first, until one fails; a hang is a failure. What survives in `tap_stack.py` is given to the
tests of all that is declared (`DECLARED`), too. All tests of a file count as reaching what one has
reached in a process, at import, or in a function with a decorator (a cache); what is set at import
is reached where its name is used, also in a test file. Of the tests of stack, those of settings and
documents take part; the others, and those of local and lab, take too long for each mutant.
All this is done in a copy of the checkout, as it is, by processes forked from one that has imported
what the tests use.
"""

from __future__ import annotations

import ast
import compileall
import contextlib
import ctypes
import hashlib
import importlib
import itertools
import json
import os
import py_compile
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import coverage
import libcst as cst
import libcst.matchers as m
import pytest
import typer
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation import mutators
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
#: What of tests/stack is run: few of its tests are about logic, and each file registers graphs.
STACK = ["tests/stack/test_settings.py", "tests/stack/test_docs.py"]
#: What reads all that the program declares: the last chance of a mutant of it to be seen.
DECLARED = [f"tests/stack/test_{name}.py" for name in ("needs", "components", "monitoring")]
RESULT = ROOT / "tests/mutants.json"
CACHE = Path(sys.prefix) / "mutants"  # what each test file reaches, until something changes
LEAST = 0.95  # of a sample that has to be killed
MEMORY_BYTES = 6 << 30  # of a process of tests: a mutant may allocate without end
SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER: orphans become children of this process
WARM = "boto3 botocore.session hypothesis jsonschema pulumi pulumi_aws rich typer yaml".split()
say = Console(highlight=False, soft_wrap=True).print

# === Mutants =======================================================================================


def leave_out_call(node: cst.Expr) -> Iterator[cst.Pass]:
    """A call for its effect is forgotten."""
    if m.matches(node.value, m.Call() | m.Await(m.Call())):
        yield cst.Pass()


def negate(node: cst.If | cst.While) -> Iterator[cst.If | cst.While]:
    """A condition is the other way round."""
    test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))


OWN: list[tuple[Any, Any]] = [(cst.Expr, leave_out_call), ((cst.If, cst.While), negate)]
OPERATORS = [
    *(x for x in mutators.mutation_operators if x[1] is not mutators.operator_string),
    *OWN,
]
#: Calls that only tell a person something.
TELLING = m.Expr(
    m.Call(func=m.Name("print"), args=[m.Arg(m.Call(m.Attribute(attr=m.Name("dumps"))))])
    | m.Call(func=m.Name("say") | m.Attribute(attr=m.Name("say") | m.Name("_say")))
    | m.Call(func=m.Attribute(value=m.Name("log")))
)
COMPONENT = m.Arg(m.Name("Component") | m.Attribute(attr=m.Name("ComponentResource")))
#: What stays as it is.
LEFT_OUT = {
    cst.Annotation: m.Annotation(),
    cst.Decorator: m.Decorator(),
    cst.Expr: TELLING,
    cst.Call: m.Call(func=m.Name("cast") | m.Name("TypeVar")),
    cst.ClassDef: m.ClassDef(bases=[m.ZeroOrMore(), COMPONENT, m.ZeroOrMore()]),
    cst.If: m.If(test=m.Name("TYPE_CHECKING") | m.Comparison(left=m.Name("__name__"))),
}


@dataclass(frozen=True)
class Mutant:
    """A possible change of a file."""

    file: str
    function: str
    shared: bool  # in a function with a decorator: others may use what it has returned before
    lines: range
    names: tuple[str, ...]  # what the statement gives a value, if it runs at import
    operator: str
    statement: cst.CSTNode  # of the module, that it is in
    node: cst.CSTNode
    mutated: cst.CSTNode

    @property
    def part(self) -> str:
        """The program, or the local cloud."""
        return self.file.partition("/")[0]

    def text(self, module: cst.Module) -> str:
        """The file with this change."""
        new = self.statement.deep_replace(self.node, self.mutated)
        body = [new if each is self.statement else each for each in module.body]
        return str(module.with_changes(body=body).code)


class Mutants(cst.CSTVisitor):  # type: ignore[misc] # mypy does not read libcst
    """All mutants of a file."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, file: str):
        super().__init__()
        self.file, self.found = file, list[Mutant]()
        self.around: list[cst.BaseStatement] = []  # the statements that a node is in

    def on_visit(self, node: cst.CSTNode) -> bool:
        if type(node) in LEFT_OUT and m.matches(node, LEFT_OUT[type(node)]):
            return False
        if isinstance(node, cst.BaseStatement):
            self.around.append(node)
        for kind, operator in OPERATORS:
            if isinstance(node, kind):
                self.found += [self._mutant(node, operator, new) for new in operator(node)]
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if self.around and self.around[-1] is original_node:
            self.around.pop()

    def _mutant(self, node: cst.CSTNode, operator: Any, new: cst.CSTNode) -> Mutant:
        statement = self._lines(self.around[-1])
        place = self._lines(node) or statement
        last = place.start if hasattr(node, "body") else place.stop - 1
        within = [x for x in self.around if isinstance(x, cst.FunctionDef | cst.ClassDef)]
        name = ".".join(each.name.value for each in within)
        functions = [each for each in within if isinstance(each, cst.FunctionDef)]
        shared = any(each.decorators for each in functions)
        lines = range(min(statement.start, place.start), last + 1)
        if functions and self.around[-1] is functions[-1]:  # its default values
            lines = self._lines(functions[-1].body)
        targets = m.Assign() | m.AnnAssign()
        names = () if functions else _names(m.findall(self.around[-1], targets))
        nodes = (self.around[0], node, new)
        return Mutant(self.file, name, shared, lines, names, operator.__name__, *nodes)

    def _lines(self, node: cst.CSTNode) -> range:
        place = self.get_metadata(PositionProvider, node, None)
        return range(place.start.line, place.end.line + 1) if place else range(0)


def _names(statements: Iterable[cst.CSTNode]) -> tuple[str, ...]:
    for each in statements:
        targets = getattr(each, "targets", None) or [each]
        return tuple(x.value for t in targets for x in m.findall(t.target, m.Name()))
    return ()


def mutants(path: Path, file: str) -> tuple[cst.Module, list[Mutant]]:
    """A file's syntax tree, and all that can be changed in it."""
    tree = MetadataWrapper(cst.parse_module(path.read_text()))
    visitor = Mutants(file)
    tree.visit(visitor)
    return tree.module, visitor.found


def in_turn(found: Iterable[Mutant], seed: int) -> Iterator[Mutant]:
    """All of them by chance, but by part and operator in turn, as far as there are."""
    chance = random.Random(seed)  # noqa: S311 - the same sample for the same seed
    rows: dict[tuple[str, str], list[Mutant]] = {}
    for each in found:
        rows.setdefault((each.operator, each.part), []).append(each)
    shuffled = [chance.sample(row, len(row)) for _, row in sorted(rows.items())]
    return (x for turn in itertools.zip_longest(*shuffled) for x in turn if x)


def difference(old: str, new: str) -> tuple[str, str]:
    """The lines that differ, each side as one."""
    a, b = old.splitlines(), new.splitlines()
    first = alike(a, b)
    last = alike(a[first:][::-1], b[first:][::-1])
    before, after = (" ".join(" ".join(x[first : len(x) - last]).split()) for x in (a, b))
    return before, after


def alike(a: list[str], b: list[str]) -> int:
    """How many lines at the beginning are the same."""
    return next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


# === Tests ========================================================================================

Places = dict[str, set[int]]  # file -> lines


def bodies(text: str) -> dict[int, str]:
    """The lines of a file that run when a function is called."""
    lines, functions = text.splitlines(), (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    found = [x for x in ast.walk(ast.parse(text)) if isinstance(x, functions)]
    firsts = [(x.body.lineno if isinstance(x, ast.Lambda) else x.body[0].lineno, x) for x in found]
    return {n: lines[n - 1] for first, x in firsts for n in range(first, (x.end_lineno or 0) + 1)}


@dataclass
class Reached:
    """What a test file does when nothing is changed: seconds of its tests, and who reaches what."""

    seconds: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    lines: dict[str, dict[int, list[str]]] = field(default_factory=dict)  # "": not by one test
    words: set[str] = field(default_factory=set)  # of the file

    def tests(self, mutant: Mutant, places: Places) -> dict[str, float]:
        """The tests that a mutant in these places is given to, and their seconds."""
        rows = ((self.lines.get(file, {}), lines) for file, lines in places.items())
        found = {x for file, lines in rows for line in lines for x in file.get(line, ())}
        named = mutant.names and self.words & {*mutant.names, *mutant.function.split(".")}
        if named or "" in found or (found and mutant.shared):
            found = set(self.seconds)
        return {x: self.seconds[x] for x in found if x in self.seconds and x not in self.failed}


class Measured:
    """A plugin of pytest: has coverage.py know which test runs, and how long each takes."""

    def __init__(self, measure: coverage.Coverage):
        self.measure, self.reached = measure, Reached()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.measure.switch_context(item.nodeid)
        began = time.monotonic()
        try:
            return (yield)
        finally:
            self.reached.seconds[item.nodeid] = time.monotonic() - began
            self.measure.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.reached.failed.append(report.nodeid)


class Chosen:
    """A plugin of pytest: runs these tests, and those that only a mutant has, by file the shortest
    first."""

    def __init__(self, chosen: dict[str, float], known: set[str], files: list[str]):
        self.chosen, self.known, self.files = chosen, known, files

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [x for x in items if x.nodeid in self.chosen or x.nodeid not in self.known]
        items.sort(key=lambda x: (self._place(x.nodeid), self.chosen.get(x.nodeid, 0.0)))

    def _place(self, name: str) -> int:
        return next(n for n, file in enumerate(self.files) if name.startswith(file))


class Checkout:
    """A copy of the checkout as it is now, and what runs its tests."""

    def __init__(self, work: Path):
        self.work, self.folder = work, work / "checkout"
        work.chmod(0o755)  # as root, what tests start is another user
        git = ["git", "-C", str(ROOT), "ls-files", "--exclude-standard"]
        subprocess.run(["git", "clone", "-q", "--shared", ROOT, self.folder], check=True)
        done = subprocess.run([*git, "-mo"], capture_output=True, text=True, check=True)
        for name in set(done.stdout.split()):
            (self.folder / name).unlink(missing_ok=True)
            if (ROOT / name).exists():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.folder / name)
        (self.folder / ".venv").symlink_to(sys.prefix)
        # A mutant has the time and often the size of what it replaces, and must not be taken for it.
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(self.folder, quiet=2, invalidation_mode=mode)
        self.data, self.settings = work / "coverage", work / "coveragerc"
        self.settings.write_text(COVERAGE.format(data=self.data / "data", folder=self.folder))
        unit = sorted((self.folder / "tests/unit").glob("test_*.py"))
        self.unit = [str(x.relative_to(self.folder)) for x in unit]
        found = sorted((self.folder / "taplocal").rglob("*.py"))
        self.programs = ["tap_stack.py", *(str(x.relative_to(self.folder)) for x in found)]
        self.words: dict[str, Places] = {}  # of what runs in functions: word -> its places
        for file in self.programs:
            for n, line in bodies((self.folder / file).read_text()).items():
                for word in re.findall(r"\w+", line):
                    self.words.setdefault(word, {}).setdefault(file, set()).add(n)

    def child(self, work: Callable[[], int], seconds: float) -> int | None:
        """Runs it in a process of its own; its status, or None if it takes longer than that."""
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                self._prepare()
                os._exit(work())
            os._exit(70)
        deadline, status = time.monotonic() + seconds, None
        try:
            while status is None and time.monotonic() < deadline:
                done, code = os.waitpid(pid, os.WNOHANG)
                status = os.waitstatus_to_exitcode(code) if done else None
                time.sleep(0 if done else 0.02)
        finally:
            end_children()
            shutil.rmtree(self.work / "tmp", ignore_errors=True)
        return status

    def _prepare(self) -> None:
        os.setsid()
        sys.dont_write_bytecode = False
        os.chdir(self.folder)
        sys.path[:] = [str(self.folder), *(x for x in sys.path if x not in ("", str(ROOT)))]
        sys.modules["__main__"] = types.ModuleType("__main__")  # what a spawned process imports
        for name in [x for x in sys.modules if x.partition(".")[0] == "tests"]:
            del sys.modules[name]
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
        (self.work / "tmp").mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.work / "tmp")
        output = os.open(self.work / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for each in (1, 2):
            os.dup2(output, each)

    def pytest(self, files: list[str], plugin: object, *options: str) -> int:
        """Runs test files in this process."""
        fixed = ["-p", "no:xdist", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
        return int(pytest.main([*fixed, *options, *files], plugins=[plugin] if plugin else None))

    def reached(self, file: str) -> Reached:
        """What a test file reaches: of the last run if nothing that it imports has changed."""
        parts = [x for x in sorted(self.folder.rglob("*.py")) if not x.name.startswith("test_")]
        parts = [x for x in parts if x.name != Path(__file__).name]
        digest = hashlib.sha256()
        for each in [*parts, self.folder / file]:
            digest.update(each.read_bytes())
        CACHE.mkdir(exist_ok=True)
        cache = CACHE / f"{file.replace('/', '-')}.{digest.hexdigest()[:16]}.json"
        if not cache.exists():
            for old in CACHE.glob(f"{file.replace('/', '-')}.*"):
                old.unlink()
            status = self.child(lambda: self._measure(file, cache), 1800)
            say(f"{file}: {status}")
        kept = json.loads(cache.read_text())
        kept["lines"] = {
            name: {int(n): tests for n, tests in rows.items()}
            for name, rows in kept["lines"].items()
        }
        return Reached(**kept, words=set(re.findall(r"\w+", (self.folder / file).read_text())))

    def _measure(self, file: str, cache: Path) -> int:
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir()
        os.environ["COVERAGE_PROCESS_START"] = str(self.settings)
        measure = coverage.Coverage(config_file=str(self.settings))
        measure.start()
        plugin = Measured(measure)
        status = self.pytest([file], plugin)
        measure.stop()
        measure.save()
        measure.combine([str(self.data)])
        data, reached = measure.get_data(), plugin.reached
        for each in data.measured_files():
            name = str(Path(each).relative_to(self.folder))
            reached.lines[name] = data.contexts_by_lineno(each)
        kept = {"seconds": reached.seconds, "failed": reached.failed, "lines": reached.lines}
        cache.write_text(json.dumps(kept))
        return status

    def places(self, mutant: Mutant) -> Places:
        """The lines that have to run for a mutant to matter: what is set at import, where it is used."""
        used = self._used(mutant.file, mutant.names) if mutant.names else {}
        local = mutant.names and mutant.part == "taplocal"
        return used if local or any(used.values()) else {mutant.file: set(mutant.lines)}

    def testable(self, found: list[Mutant], reached: Iterable[Reached]) -> set[int]:
        """Which are not in functions of the local cloud that no unit test runs, but the others do."""
        run: Places = {}
        for each in reached:
            for file, lines in each.lines.items():
                run.setdefault(file, set()).update(lines)

        def runs(mutant: Mutant) -> bool:
            places = self.places(mutant).items()
            return any(run.get(file, set()) & lines for file, lines in places)

        ran = {(x.file, x.function, x.names) for x in found if runs(x)}
        ours = (x.part != "taplocal" or (x.file, x.function, x.names) in ran for x in found)
        return {id(x) for x, each in zip(found, ours, strict=True) if each}

    def _used(self, file: str, names: tuple[str, ...]) -> Places:
        found: Places = {}
        for name in names:
            for where, lines in self.words.get(name, {}).items():
                found.setdefault(where, set()).update(lines)
        return {file: found[file]} if file in found else found

    def survives(self, mutant: Mutant, text: str, reached: Mapping[str, Reached]) -> bool:
        """Whether every test that reaches it passes with this mutant."""
        path, places = self.folder / mutant.file, self.places(mutant)
        plan = {file: x.tests(mutant, places) for file, x in reached.items()}
        old = path.read_text()
        path.write_text(text)
        try:
            return not (self._fails(plan, reached) or self._is_declared(mutant))
        finally:
            path.write_text(old)

    def _is_declared(self, mutant: Mutant) -> bool:
        """Whether a test of all that is declared fails."""
        run = lambda: self.pytest(DECLARED, None, "-x")  # noqa: E731
        return mutant.part == "tap_stack.py" and self.child(run, 1800) != 0

    def _fails(self, plan: dict[str, dict[str, float]], reached: Mapping[str, Reached]) -> bool:
        """Whether one of these tests of these files fails, or does not end."""
        files = [file for file, tests in plan.items() if tests]
        files.sort(key=lambda file: sum(plan[file].values()) / len(plan[file]))
        if not files:
            return False
        seconds = {name: x for file in files for name, x in plan[file].items()}
        chosen = Chosen(seconds, {x for file in files for x in reached[file].seconds}, files)
        each = f"timeout={20 + 10 * max(seconds.values()):.0f}"
        run = lambda: self.pytest(files, chosen, "-x", "-o", each)  # noqa: E731
        # 5: a mutant without tests
        return self.child(run, 60 + 10 * sum(seconds.values())) not in (0, 5)


COVERAGE = """[run]
source = {folder}
omit =
  {folder}/tests/*
parallel = true
data_file = {data}
sigterm = true
patch =
  _exit
  fork
disable_warnings =
  no-data-collected
  module-not-measured
"""


def end_children() -> None:
    """Ends what a test has left behind, and waits for it."""
    while True:
        for pid in children(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def children(pid: int) -> list[int]:
    """The processes that have this parent."""
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# === The command ==================================================================================


@dataclass
class Result:
    """What `make mutants` has found: tests/mutants.json."""

    seed: int = 1
    mutants: int = 0  # that the sample was taken from
    elsewhere: int = 0  # further ones, which only tests/local runs
    tried: dict[str, int] = field(default_factory=dict)  # of each part
    survived: list[dict[str, str]] = field(default_factory=list)

    def wrong(self) -> list[str]:
        """What has to be settled."""
        lines = [f"no reason: {x['file']} {x['function']}" for x in self.survived if not x["why"]]
        killed = 1 - len(self.survived) / max(sum(self.tried.values()), 1)
        return lines + [f"{killed:.1%} of the mutants are killed"] * (killed < LEAST)


class Run:
    """A sample in a copy of the checkout."""

    def __init__(self, checkout: Checkout, before: Result):
        self.checkout, self.before = checkout, before
        self.reached = {file: checkout.reached(file) for file in [*checkout.unit, *STACK]}
        for name in (x for each in self.reached.values() for x in each.failed):
            say(f"fails without any mutant, and is left out: {name}")
        if checkout.child(lambda: checkout.pytest(DECLARED, None), 1800):
            raise SystemExit(f"{', '.join(DECLARED)} fail without any mutant")
        found = {file: mutants(checkout.folder / file, file) for file in checkout.programs}
        self.trees = {file: tree for file, (tree, _) in found.items()}
        self.every = [x for _, row in found.values() for x in row]

    def sample(self, seed: int, count: int) -> Result:
        """Tries so many."""
        unit = [self.reached[file] for file in self.checkout.unit]
        testable = self.checkout.testable(self.every, unit)
        result = Result(seed, len(testable), len(self.every) - len(testable))
        say(f"{result.mutants} mutants, {result.elsewhere} more where no unit test is")
        chosen = (x for x in in_turn(self.every, seed) if id(x) in testable)
        with contextlib.suppress(KeyboardInterrupt):  # then it is a smaller sample
            self._try(list(itertools.islice(chosen, count)), result)
        return result

    def again(self) -> Result:
        """Tries those that survived before and have no reason to."""
        settled = [x for x in self.before.survived if x["why"]]
        left = [x for x in self.before.survived if not x["why"]]
        rows = {_key(each) for each in left}
        wanted = {(x["file"], x["function"], x["operator"]) for x in left}
        near = [x for x in self.every if (x.file, x.function, x.operator) in wanted]
        chosen = [x for x in near if _key(self._row(x, self._text(x))) in rows]
        if len(chosen) < len(rows):
            say(f"{len(rows) - len(chosen)} are in the program no more: take a new sample")
        result = replace(self.before, survived=settled)
        self._try(chosen, result)
        result.tried = self.before.tried
        return result

    def _text(self, mutant: Mutant) -> str:
        return mutant.text(self.trees[mutant.file])

    def _row(self, mutant: Mutant, text: str) -> dict[str, str]:
        before, after = difference(self.trees[mutant.file].code, text)
        names = {"file": mutant.file, "function": mutant.function, "operator": mutant.operator}
        return {**names, "before": before, "after": after}

    def _try(self, chosen: list[Mutant], result: Result) -> None:
        reasons = {_key(x): x["why"] for x in self.before.survived}
        for n, mutant in enumerate(chosen, 1):
            text, began = self._text(mutant), time.monotonic()
            survives = self.checkout.survives(mutant, text, self.reached)
            row = self._row(mutant, text)
            word = "SURVIVED" if survives else "killed"
            place = f"{mutant.file}:{mutant.lines.start} {mutant.function}, {mutant.operator}"
            say(f"{n}/{len(chosen)} {word} in {time.monotonic() - began:.0f} s: {place}")
            result.tried = {**result.tried, mutant.part: result.tried.get(mutant.part, 0) + 1}
            if survives:
                say(f"    {row['before']}\n    {row['after']}", markup=False)
                result.survived.append({**row, "why": reasons.get(_key(row), "")})


def _key(row: Mapping[str, str]) -> str:
    return json.dumps({name: row[name] for name in sorted(row) if name != "why"})


def main(
    seed: Annotated[int, typer.Option(help="Another one is another sample.")] = 1,
    count: Annotated[int, typer.Option(help="How many mutants.")] = 300,
    again: Annotated[
        bool, typer.Option(help="Only those that survived before without a reason.")
    ] = False,
) -> None:
    """Mutate, run the tests, and write tests/mutants.json; exit with 1 if something is to settle."""
    before = Result(**json.loads(RESULT.read_text())) if RESULT.exists() else Result()
    for name in [*WARM, *(x.module for x in metadata.entry_points(group="pytest11"))]:
        importlib.import_module(name)
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        run = Run(Checkout(Path(folder)), before)
        result = run.again() if again else run.sample(seed, count)
    RESULT.write_text(json.dumps(asdict(result), indent=1) + "\n")
    for line in result.wrong():
        say(line, markup=False)
    raise typer.Exit(1 if result.wrong() else 0)


if __name__ == "__main__":
    typer.run(main)
