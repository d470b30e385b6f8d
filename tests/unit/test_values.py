"""Values: JSON text <-> DynamoDB attribute values without loss; what cannot be stored is refused."""

from __future__ import annotations

import contextlib
import json
import sys
import tracemalloc
from collections.abc import Callable
from decimal import Context, Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_stack import (
    BODY_LIMIT,
    ITEM_LIMIT,
    MAX_DEPTH,
    Problem,
    Request,
    marshal,
    merge_patch,
    parse_json,
    to_json,
    unique_names,
)

WIDE = Context(prec=400)
numbers = st.builds(
    lambda digits, exponent: Decimal(digits).scaleb(exponent, WIDE),
    st.integers(-(10**38) + 1, 10**38 - 1),
    st.integers(-130, 125 - 37),
)
texts = st.text(st.characters(exclude_categories=["Cs"]))
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(names, inner, max_size=5),
    max_leaves=20,
)


def json_text(value: Any) -> str:
    """JSON text of a value with its Decimals digit by digit."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{json_text(v)}" for k, v in value.items()) + "}"
    return (
        "[" + ",".join(map(json_text, value)) + "]"
        if isinstance(value, list)
        else json.dumps(value)
    )


def exact(text: str) -> Any:
    return json.loads(text, parse_int=Decimal, parse_float=Decimal)


@given(values)
def test_every_storable_value_survives_exactly(value: Any) -> None:
    text = json_text(value)
    assert exact(to_json(marshal(parse_json(text)))) == exact(text)


@given(values)
def test_marshalled_values_have_the_shape_that_dynamodb_takes(value: Any) -> None:
    def check(attribute: dict[str, Any]) -> None:
        ((kind, content),) = attribute.items()
        assert kind in ("S", "N", "BOOL", "NULL", "L", "M")
        if kind == "N":
            assert isinstance(content, str)
            assert len(Decimal(content).normalize(WIDE).as_tuple().digits) <= 38
            assert len(content) <= 46  # a sign, 38 digits, a point, an exponent
        for each in content.values() if kind == "M" else content if kind == "L" else ():
            check(each)

    check(marshal(parse_json(json_text(value))))


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        ("", 400, "not JSON"),
        ("{", 400, "not JSON"),
        ("{'a': 1}", 400, "not JSON"),
        ('{"a": 01}', 400, "not JSON"),
        ('"a\nb"', 400, "not JSON"),
        ("\ufeff{}", 400, "not JSON"),
        ('{"a": NaN}', 400, "NaN is not JSON"),
        ('{"a": -Infinity}', 400, "-Infinity is not JSON"),
        ('{"a": 1, "a": 2}', 400, 'Duplicate member name "a"'),
        ('{"b": {"a": 1, "\\u0061": 2}}', 400, 'Duplicate member name "a"'),
        ("[" * 100_000, 400, "deeper than"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), 422, "deeper than"),
        ("1e400", 422, "cannot be stored exactly"),
        ("1e126", 422, "cannot be stored exactly"),
        ("1e-131", 422, "cannot be stored exactly"),
        ("1e999999999999999999999", 422, "cannot be stored exactly"),
        ("1" * 39, 422, "cannot be stored exactly"),
        ("0." + "1" * 39, 422, "cannot be stored exactly"),
        ("9" * 5000, 422, "cannot be stored exactly"),
        ('"\\ud800"', 422, "half of a surrogate pair"),
        ('{"\\udc00": 1}', 422, "half of a surrogate pair"),
        ('{"": 1}', 422, "cannot be empty"),
    ],
)
def test_what_cannot_be_stored_exactly_is_rejected_with_a_reason(
    text: str, status: int, reason: str
) -> None:
    with pytest.raises(Problem) as caught:
        marshal(parse_json(text))
    assert caught.value.status == status
    assert reason in caught.value.detail


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("0", "0"),
        ("-0", "0"),
        ("-0.0", "0"),
        ("1.10", "1.1"),
        ("1e3", "1000"),
        ("1" + "0" * 38, "1" + "0" * 38),
        ("1" + "0" * 60, "1E+60"),
        ("1E-130", "1E-130"),
        ("-1.25e125", "-1.25E+125"),
        ("0e-999", "0"),
        ("12345678901234567890123456789012345678", "12345678901234567890123456789012345678"),
    ],
)
def test_numbers_are_stored_in_plain_digits_unless_they_are_many(text: str, stored: str) -> None:
    assert marshal(parse_json(text)) == {"N": stored}


def test_deepest_value_is_stored() -> None:
    text = "[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH
    assert to_json(marshal(parse_json(text))) == text


def reference_merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2, word for word."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = reference_merge_patch(merged.get(name), value)
    return merged


objects = st.dictionaries(
    st.sampled_from("abc"), values | st.dictionaries(st.sampled_from("abc"), values), max_size=3
)


@given(objects, objects)
def test_merge_patch_is_the_rfcs(target: Any, patch: Any) -> None:
    merged = merge_patch(
        marshal(parse_json(json_text(target))), marshal(parse_json(json_text(patch)))
    )
    assert exact(to_json(merged)) == exact(json_text(reference_merge_patch(target, patch)))


def test_a_number_that_dynamodb_returns_in_plain_digits_is_written_short() -> None:
    assert to_json({"N": "1" + "0" * 125}) == "1E+125"
    assert to_json({"N": "-0." + "0" * 37 + "1"}) == "-0." + "0" * 37 + "1"


def body(unit: str, count: int) -> str:
    """An object with a list of so many times the same value."""
    return '{"a":[' + ",".join([unit] * count) + "]}"


#: Kind of adversarial body -> one that grows with a number.
WORST: dict[str, Callable[[int], str]] = {
    "empty lists": lambda n: body("[]", n),
    "nested lists": lambda n: body("[" * 25 + "]" * 25, n // 25),
    "numbers": lambda n: body("1", n),
    "large numbers": lambda n: body("1e125", n),
    "long numbers": lambda n: body("1" * 38, n // 16),
    "objects": lambda n: body('{"b":1}', n // 2),
    "texts": lambda n: body('""', n),
    "escapes": lambda n: '{"a":"' + "\\u0001" * n + '"}',
    "unterminated": lambda n: '{"a":"' + '\\"' * n,
    "names": lambda n: "{" + ",".join(f'"{x:06d}":1' for x in range(n)) + "}",
    "a duplicate name at the end": lambda n: (
        "{" + ",".join(f'"{x:06d}":1' for x in range(n)) + ',"000000":1}'
    ),
    "digits": lambda n: '{"a":' + "1" * n + "}",
    "open brackets": lambda n: "[" * n,
    "a mistake, then numbers": lambda n: body("1", n).replace("{", '{"":1,', 1),
    "mistakes": lambda n: body("1e999", n),
}


def read(text: str) -> None:
    """Reads the fields in a body as a request's."""
    event = {
        "requestContext": {"requestId": "request-1", "http": {"method": "POST"}},
        "routeKey": "POST /items",
        "headers": {"content-type": "application/json"},
        "body": text,
    }
    with contextlib.suppress(Problem):
        Request(event).fields("application/json")


def work(text: str) -> int:
    """How many calls, of Python and of C, it takes to convert a body or to reject it."""
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        read(text)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("kind", WORST)
def test_work_grows_no_faster_than_the_body(kind: str) -> None:
    few, many = work(WORST[kind](5_000)), work(WORST[kind](10_000))
    assert many <= 2.1 * few + 100


@pytest.mark.parametrize("kind", WORST)
def test_the_largest_bodies_take_little_memory(kind: str) -> None:
    text = WORST[kind](BODY_LIMIT // len(WORST[kind](1_000)) * 1_000)
    tracemalloc.start()
    try:
        read(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60_000_000
    assert work(text) < 2_000_000


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (body("[]", 200_000), 413),
        (body("1", 150_000), 413),
        ('{"a":"' + "x" * ITEM_LIMIT + '"}', 413),
        ('{"a":"' + "x" * (ITEM_LIMIT - 100) + '"}', 0),
        ('{"a":"' + "\u00e9" * (ITEM_LIMIT // 2) + '"}', 413),
        ('{"a":"' + "," * (ITEM_LIMIT - 100) + '"}', 0),
        ('{"a":"' + '\\\\\\"[' * 100_000 + '"}', 0),
        ('{"a":' + " " * 2_000_000 + "1}", 0),
    ],
    ids=range(8),
)
def test_what_is_larger_than_an_item_is_rejected_before_it_is_sent(text: str, status: int) -> None:
    try:
        marshal(parse_json(text))
        found = 0
    except Problem as problem:
        found = problem.status
    assert found == status


class Counted(str):
    """A text that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)


def test_a_duplicate_name_is_found_without_comparing_all_with_all() -> None:
    Counted.compared = 0
    pairs = [(Counted(f"{n:06d}"), 1) for n in range(2_000)]
    with pytest.raises(Problem, match='Duplicate member name "000000"'):
        unique_names([*pairs, (Counted("000000"), 2)])
    assert Counted.compared < 20
