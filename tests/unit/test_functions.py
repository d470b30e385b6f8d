"""What each function and instance runs: its bundle stands alone, with every name that it uses."""

from __future__ import annotations

import builtins
import dis
import types
from collections.abc import Iterator
from typing import Any

import pytest

import tap_stack
from tap_stack import INSTANCE_MODULES, LAMBDA_MODULES, bundle
from tests.unit.conftest import ENVIRONMENT

#: Every program that is shipped, as the stack bundles it.
PROGRAMS: dict[str, tuple[Any, ...]] = {
    "api": (tap_stack.api, tap_stack.open_services),
    "record_files": (tap_stack.record_files, tap_stack.open_file_clients),
    "rotate_paging_key": (tap_stack.rotate_paging_key,),
    "take_snapshot": (tap_stack.take_snapshot,),
    "web": (tap_stack.web, None, INSTANCE_MODULES),
    "rollout_provider": (tap_stack.rollout_provider, None, LAMBDA_MODULES | {"pulumi"}),
    "fleet_provider": (tap_stack.fleet_provider, None, LAMBDA_MODULES | {"pulumi"}),
}


def code_of(program: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a program and of every function, method and lambda in it."""
    yield program
    for each in program.co_consts:
        if isinstance(each, types.CodeType):
            yield from code_of(each)


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_program_runs_alone_and_has_every_name_that_it_uses(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    program = compile(bundle(*PROGRAMS[name]), "index.py", "exec")
    namespace: dict[str, Any] = {"__name__": "index", "__file__": "index.py"}
    exec(program, namespace)  # noqa: S102 - our own code
    assert callable(namespace[name])
    assert namespace[name].__globals__ is namespace
    known = namespace.keys() | set(dir(builtins))
    for each in code_of(program):
        used = {step.argval for step in dis.get_instructions(each) if step.opname == "LOAD_GLOBAL"}
        assert used <= known, each.co_qualname
