"""Bundles: each function gets the definitions that it reaches, all of them and nothing else."""

from __future__ import annotations

import builtins
import dis
import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tap_stack
from tap_stack import BundleError, bundle
from tests.fakes import FakeContext
from tests.unit.conftest import ENVIRONMENT

BUNDLES = {
    "api": (tap_stack.api, tap_stack.open_services),
    "rotate_paging_key": (tap_stack.rotate_paging_key, None),
}


def module(folder: Path, source: str, **beside: str) -> Any:
    """A program of its own, imported from a file; the files beside it are only written."""
    for name, text in beside.items():
        (folder / f"{name}.py").write_text(text)
    path = folder / "program.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("program", path)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class Table:
    """Answers as DynamoDB does where nothing is stored."""

    def get_item(self, **arguments: Any) -> Any:
        return {"ConsumedCapacity": {"CapacityUnits": 0.5}}


@pytest.fixture
def lambda_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a function, without the SDK."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "boto3", None)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_runs_in_an_empty_namespace(name: str, lambda_runtime: None) -> None:
    namespace: dict[str, Any] = {"__name__": "index", "__file__": "index.py"}
    exec(compile(bundle(*BUNDLES[name]), "index.py", "exec"), namespace)  # noqa: S102 - our own code
    assert callable(namespace[name])
    for each in namespace.values():  # every global name that any function uses is there
        if isinstance(each, types.FunctionType) and each.__globals__ is namespace:
            used = {
                step.argval for step in dis.get_instructions(each) if step.opname == "LOAD_GLOBAL"
            }
            assert used <= set(namespace) | set(dir(builtins)), each.__name__


def test_the_shipped_handler_answers_as_the_imported_one(lambda_runtime: None) -> None:
    namespace: dict[str, Any] = {"__name__": "index"}
    exec(compile(bundle(*BUNDLES["api"]), "index.py", "exec"), namespace)  # noqa: S102 - our own code
    claims = {"sub": "ann", "scope": "items/read"}
    event = {
        "routeKey": "GET /items/{id}",
        "pathParameters": {"id": "a"},
        "requestContext": {
            "requestId": "r",
            "http": {"method": "GET"},
            "authorizer": {"jwt": {"claims": claims}},
        },
    }
    namespace["_clients"]["dynamodb"] = Table()
    answer = namespace["api"](event, FakeContext())
    assert (answer["statusCode"], json.loads(answer["body"])["request_id"]) == (404, "r")


def test_a_bundle_holds_no_infrastructure() -> None:
    for handler, init in BUNDLES.values():
        source = bundle(handler, init)
        assert "pulumi" not in source
        assert "class TapStackArgs" not in source
        assert len(source) < 120_000
    assert "def create_item" not in bundle(tap_stack.rotate_paging_key)


def test_two_bundles_of_the_same_code_are_the_same_text() -> None:
    assert bundle(*BUNDLES["api"]) == bundle(*BUNDLES["api"])


PROGRAM = """
from __future__ import annotations
import json as j, os
from collections import OrderedDict, deque
import pulumi

LIMIT: int = 3
TABLE = {"a": lambda: helper(1)}
first, second = 1, 2

def decorator(f):
    return f

class Base: size = LIMIT

class Thing(Base):
    def run(self) -> Unknown:
        return [helper(x) for x in range(first)]

def helper(n: Missing, d=second):
    os = 5
    return n + d + os

@decorator
def handler(event, context):
    from base64 import b64encode
    local = Thing()
    return j.dumps([local.run(), TABLE, deque()])

def other():
    return pulumi.Output

def uses_pulumi(event, context):
    return other()

def uses_nothing_there(event, context):
    return nowhere

def inner_import(event, context):
    import requests
"""


def test_only_what_is_reached_is_shipped_in_the_order_of_the_file(tmp_path: Path) -> None:
    source = bundle(module(tmp_path, PROGRAM).handler)
    assert [line for line in source.splitlines() if line and not line.startswith((" ", "@"))] == [
        "from __future__ import annotations",
        "from collections import deque",
        "import json as j",
        "LIMIT: int = 3",
        'TABLE = {"a": lambda: helper(1)}',
        "first, second = 1, 2",
        "def decorator(f):",
        "class Base: size = LIMIT",
        "class Thing(Base):",
        "def helper(n: Missing, d=second):",
        "def handler(event, context):",
    ]
    assert "@decorator\ndef handler" in source
    exec(compile(source, "index.py", "exec"), {"__name__": "index"})  # noqa: S102 - our own code


def test_infrastructure_around_a_function_does_not_change_its_bundle(tmp_path: Path) -> None:
    before = bundle(module(tmp_path, PROGRAM).handler)
    changed = PROGRAM.replace("TABLE", "# a comment\nTABLE", 1).replace(
        "def other():", "BUCKETS = 5\n\ndef other(x=BUCKETS):"
    )
    assert bundle(module(tmp_path, changed).handler) == before


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        ("uses_nothing_there", "uses_nothing_there uses nowhere, which program.py does not define"),
        ("uses_pulumi", "pulumi, which its runtime does not have"),
        ("inner_import", "inner_import of requests, which its runtime does not have"),
    ],
)
def test_a_name_that_cannot_be_shipped_is_an_error(
    tmp_path: Path, handler: str, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        bundle(getattr(module(tmp_path, PROGRAM), handler))


@pytest.mark.parametrize(
    "source",
    [
        "LIMIT = 1\nLIMIT = 2\n",
        "LIMIT = 1\nLIMIT += 1\n",
        "import math as LIMIT\nLIMIT = 2\n",
        "def LIMIT(): ...\nclass LIMIT: ...\n",
        "LIMIT = 1\nif LIMIT: LIMIT = 2\n",
    ],
)
def test_a_name_that_is_bound_twice_is_an_error_with_both_lines(
    tmp_path: Path, source: str
) -> None:
    program = module(tmp_path, f"{source}\ndef handler(event, context): return LIMIT\n")
    with pytest.raises(BundleError, match=r"program\.py binds LIMIT twice, in lines 1 and 2"):
        bundle(program.handler)


CONDITIONAL = """
import os

def there():
    return "there"

if "AWS_EXECUTION_ENV" in os.environ:
    PLACE = there()
else:
    PLACE = "here"

try:
    import {module} as codec
except ImportError:
    codec = None

def unused():
    return 1

def handler(event, context):
    return PLACE, codec
"""


def test_a_name_that_a_compound_statement_binds_is_shipped_with_all_of_it(tmp_path: Path) -> None:
    source = bundle(module(tmp_path, CONDITIONAL.format(module="json")).handler)
    assert "unused" not in source
    assert "def there()" in source  # reached from the branch that does not run here
    namespace: dict[str, Any] = {"__name__": "index"}
    exec(compile(source, "index.py", "exec"), namespace)  # noqa: S102 - our own code
    assert namespace["handler"](None, None) == ("here", json)


def test_a_compound_statement_cannot_hide_an_import_that_the_runtime_lacks(tmp_path: Path) -> None:
    program = module(tmp_path, CONDITIONAL.format(module="orjson"))
    with pytest.raises(BundleError, match="codec of orjson, which its runtime does not have"):
        bundle(program.handler)


# A handler in a file of its own, around one of tap_stack.py

OWN = """
import json
from typing import Any

from tap_stack import Event, Response, TapStack, api

RELEASE = "1"

def handler(event: Event, context: Any) -> Response:
    response = api(event, context)
    response["headers"]["x-release"] = json.loads(RELEASE)
    return response
"""


def test_what_a_file_imports_from_tap_stack_is_shipped_before_its_own(
    tmp_path: Path, lambda_runtime: None
) -> None:
    source = bundle(module(tmp_path, OWN).handler, tap_stack.open_services)
    assert "tap_stack" not in source
    assert "class TapStack" not in source  # imported, and not used by the handler
    assert source.index("\ndef api(") < source.index("\nRELEASE") < source.index("\ndef handler(")
    assert source.endswith("\nopen_services()\n")
    namespace: dict[str, Any] = {"__name__": "index"}
    exec(compile(source, "index.py", "exec"), namespace)  # noqa: S102 - our own code
    answer = namespace["handler"](
        {**tap_stack.probe_request("GET /items", "")[0], "routeKey": "$default", "rawPath": "/"},
        FakeContext(),
    )
    assert (answer["statusCode"], answer["headers"]["x-release"]) == (404, 1)


def test_the_rest_of_the_bundle_is_that_of_the_stacks_own_handler(tmp_path: Path) -> None:
    own = bundle(module(tmp_path, OWN).handler, tap_stack.open_services)
    theirs = bundle(tap_stack.api, tap_stack.open_services)
    end = "\n\nopen_services()\n"
    assert own.startswith(theirs.removesuffix(end))


def test_the_same_import_in_both_files_is_shipped_once(tmp_path: Path) -> None:
    source = bundle(module(tmp_path, OWN).handler)
    assert "import json" in bundle(tap_stack.api).splitlines()
    assert source.splitlines().count("import json") == 1


@pytest.mark.parametrize(
    ("name", "line"),
    [("dispatch", "def dispatch(request): return request"), ("json", "import pickle as json")],
)
def test_two_files_that_bind_a_name_to_different_things_are_an_error(
    tmp_path: Path, name: str, line: str
) -> None:
    source = OWN.replace("import json", line).replace("json.loads", name)
    files = r"(program\.py and tap_stack\.py|tap_stack\.py and program\.py)"
    with pytest.raises(BundleError, match=f"{files} bind {name} to different things: rename one"):
        bundle(module(tmp_path, source).handler)


# A handler whose definitions are in several files: Python imports them at run time, `bundle` reads them

SHAPES = """
import math
from tap_stack import EMPTY_NAME
PI = math.floor(3.5)
class Shape: path = EMPTY_NAME
def unused(): return PI
"""
CIRCLES = """
from shapes import PI, Shape
class Circle(Shape): area = PI
"""
DRAWING = """
def handler(event, context):
    return Circle.path, Circle.area, math.ceil(0.5)
from circles import Circle
import math
"""


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which modules are imported, and forgotten after the test."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_what_a_file_imports_from_those_beside_it_is_shipped_before_its_own(
    importable: Path,
) -> None:
    source = bundle(module(importable, DRAWING, shapes=SHAPES, circles=CIRCLES).handler)
    assert [line for line in source.splitlines() if line and not line.startswith(" ")] == [
        "from __future__ import annotations",
        "import math",
        f'EMPTY_NAME = "{tap_stack.EMPTY_NAME}"',
        "PI = math.floor(3.5)",
        "class Shape: path = EMPTY_NAME",
        "class Circle(Shape): area = PI",
        "def handler(event, context):",
    ]
    namespace: dict[str, Any] = {"__name__": "index"}
    exec(compile(source, "index.py", "exec"), namespace)  # noqa: S102 - our own code
    assert namespace["handler"](None, None) == (tap_stack.EMPTY_NAME, 3, 1)


@pytest.mark.parametrize(
    ("own", "beside", "message"),
    [
        ("from parts import PART as P", "PART = 1", "imports a definition of parts as P: import"),
        ("from parts import P", "OTHER = 1\ndef __getattr__(_): return 1", "handler uses P, which parts.py does not define"),
        ("from parts import P, f\nX = 1\ndef g(): return f()", "P = 0\nX = 2\ndef f(): return X", "(program.py and parts.py|parts.py and program.py) bind X to different things"),
        ("import parts\nP = parts.P", "P = 1", "P of parts, which its runtime does not have|parts of parts, which its"),
        ("from parts import P\nONE = 1", "P = lambda: ONE\nfrom program import ONE", "(program.py and parts.py|parts.py and program.py) use definitions of each other: keep them in one file"),
    ],
)  # fmt: skip
def test_a_definition_that_cannot_be_followed_to_another_file_is_an_error(
    importable: Path, own: str, beside: str, message: str
) -> None:
    uses = "g(), X" if "def g" in own else "P"
    source = f"{own}\ndef handler(event, context): return {uses}\n"
    (importable / "parts.py").write_text(beside)
    with pytest.raises(BundleError, match=message):
        bundle(module(importable, source).handler)


@given(st.data())
def test_every_chain_of_definitions_is_followed(tmp_path_factory: Any, data: Any) -> None:
    """Random programs: function i uses some of the functions before it; the bundle runs and is minimal."""
    size = data.draw(st.integers(1, 8))
    uses = [data.draw(st.sets(st.integers(0, n - 1))) if n else set() for n in range(size)]
    lines = [
        f"def f{n}():\n    return 1 + sum([{', '.join(f'f{u}()' for u in sorted(uses[n]))}])"
        for n in range(size)
    ]
    program = module(tmp_path_factory.mktemp("p"), "\n\n".join(lines))
    source = bundle(program.__dict__[f"f{size - 1}"])
    reached, waiting = set(), {size - 1}
    while waiting:
        each = waiting.pop()
        reached.add(each)
        waiting |= uses[each] - reached
    assert {n for n in range(size) if f"def f{n}()" in source} == reached
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # noqa: S102 - our own code
    assert namespace[f"f{size - 1}"]() == program.__dict__[f"f{size - 1}"]()
