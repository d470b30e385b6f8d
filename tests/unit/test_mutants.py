"""Mutation testing: what is changed, which sample is taken, and what the last run has found."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = '''
"""A program."""
from typing import cast

LIMIT: int = 5


class Part(Component):
    size = 1


@cache
def first(words: list[str], limit: int = LIMIT) -> str | None:
    """The first word."""
    if len(words) > limit:
        print(json.dumps({"message": "too many"}))
        forget(words)
    return cast(str, words[0]) + "!"
'''


@pytest.fixture
def mutants() -> ModuleType:
    pytest.importorskip("mutmut", reason="mutmut is installed by make mutants")
    from tests import mutants

    return mutants


def changes(mutants: Any, folder: Path) -> dict[tuple[str, str], Any]:
    """The lines that differ, before and after -> the mutant."""
    path = folder / "program.py"
    path.write_text(PROGRAM)
    tree, found = mutants.mutants(path, "tap_stack.py")
    return {mutants.difference(PROGRAM, each.text(tree)): each for each in found}


def test_logic_is_changed_and_no_text_annotation_or_declaration(
    mutants: Any, tmp_path: Path
) -> None:
    assert {after for _, after in changes(mutants, tmp_path)} == {
        "LIMIT: int = None",
        "LIMIT: int = 6",
        "if len(None) > limit:",
        "if len(words) >= limit:",
        "if not (len(words) > limit):",
        "forget(None)",
        "pass",
        'return cast(str, words[0]) - "!"',
    }


def test_a_mutant_knows_where_it_is_and_who_may_have_kept_what_it_returned(
    mutants: Any, tmp_path: Path
) -> None:
    found = changes(mutants, tmp_path)
    limit = found["LIMIT: int = 5", "LIMIT: int = 6"]
    assert (limit.function, limit.names, limit.shared) == ("", ("LIMIT",), False)
    call = found["forget(words)", "pass"]
    assert (call.function, call.names, call.shared) == ("first", (), True)
    line = PROGRAM.splitlines().index("        forget(words)") + 1
    assert call.lines == range(line, line + 1)
    test = found["if len(words) > limit:", "if not (len(words) > limit):"]
    assert test.lines == range(line - 2, line - 1)


def test_a_sample_is_the_same_for_a_seed_and_has_of_each_operator_as_many(mutants: Any) -> None:
    def mutant(part: str, operator: str, line: int) -> Any:
        return mutants.Mutant(
            part, "f", False, range(line, line + 1), (), operator, None, None, None
        )

    many = [mutant("taplocal/a.py", "common", n) for n in range(500)]
    few = [mutant(x, y, n) for n in range(9) for x in ("tap_stack.py", "b.py") for y in "rs"]
    chosen = list(mutants.in_turn([*many, *few], seed=1))
    assert chosen == list(mutants.in_turn([*many, *few], seed=1))
    assert chosen != list(mutants.in_turn([*many, *few], seed=2))
    assert set(Counter((each.file, each.operator) for each in chosen[:15]).values()) == {3}
    assert Counter(chosen) == Counter([*many, *few])


def test_what_is_set_at_import_is_reached_where_it_is_used(mutants: Any) -> None:
    lines = mutants.bodies("LIMIT = 1\ndef f():\n    return LIMIT\nx = lambda: LIMIT\n")
    assert lines == {3: "    return LIMIT", 4: "x = lambda: LIMIT"}


def test_a_test_is_chosen_by_the_lines_that_it_reaches(mutants: Any, tmp_path: Path) -> None:
    found = changes(mutants, tmp_path)
    seconds = {"a": 1.0, "b": 2.0, "broken": 1.0}
    reached = mutants.Reached(seconds, ["broken"], {"tap_stack.py": {3: ["a", "broken"], 4: [""]}})
    limit, shared = found["LIMIT: int = 5", "LIMIT: int = 6"], found["forget(words)", "pass"]
    assert reached.tests(limit, {"tap_stack.py": {3}}) == {"a": 1.0}
    assert reached.tests(limit, {"tap_stack.py": {4}}) == {"a": 1.0, "b": 2.0}
    assert reached.tests(shared, {"tap_stack.py": {3}}) == {"a": 1.0, "b": 2.0}
    assert reached.tests(limit, {"tap_stack.py": {5}, "taplocal/a.py": {3}}) == {}


def test_each_survivor_of_the_last_run_is_in_the_program_and_has_its_reason(subtests: Any) -> None:
    for each in json.loads((ROOT / "tests/mutants.json").read_text())["survived"]:
        with subtests.test(each["before"]):
            assert each["why"], each
            program = " ".join((ROOT / each["file"]).read_text().split())
            assert each["before"] in program, "is in the program no more: make mutants AGAIN=true"


def test_too_many_survivors_and_those_without_a_reason_are_to_settle(mutants: Any) -> None:
    kept = {"file": "a.py", "function": "f", "why": "equal"}
    assert not mutants.Result(tried={"a.py": 20}, survived=[kept]).wrong()
    lines = mutants.Result(tried={"a.py": 20}, survived=[kept, {**kept, "why": ""}]).wrong()
    assert lines == ["no reason: a.py f", "90.0% of the mutants are killed"]
