"""Whatever a stranger sends is read in linear time: steps are counted, not seconds."""

from __future__ import annotations

import ast
import itertools
import re
import sys
from collections.abc import Iterator
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest

import content_types
import tap_stack
from tests.unit.test_bundles import BUNDLES
from tests.unit.test_content_types import FILES, TEXTS

HANDLERS = {**BUNDLES, "record_files": (tap_stack.record_files, tap_stack.open_file_clients)}
LIMIT = 60  # steps a character; a quadratic pattern takes 100 and more of REPEATS characters
REPEATS = 300


class TooManyStepsError(Exception):
    """A pattern backtracks."""


class Matcher:
    """Matches as Python's own engine does, in the same order, and counts what it tries."""

    def __init__(self, pattern: Any, flags: int = 0):
        self.tree = parser.parse(pattern, flags)
        self.ignore_case = bool(self.tree.state.flags & re.I)
        self.dot_all = bool(self.tree.state.flags & re.S)

    def steps(self, text: str, everywhere: bool) -> int:
        """What one search takes, or one match at the beginning."""
        self.text, self.taken, self.limit = text, 0, LIMIT * (len(text) + 20)
        for start in range(len(text) + 1) if everywhere else [0]:
            if next(self.ends(list(self.tree), start), None) is not None:
                break
        return self.taken

    def ends(self, nodes: list[Any], at: int) -> Iterator[int]:
        """Where the nodes can end, the preferred place first."""
        if not nodes:
            yield at
            return
        for middle in self.node(nodes[0], at):
            yield from self.ends(nodes[1:], middle)

    def node(self, node: Any, at: int) -> Iterator[int]:
        self.taken += 1
        if self.taken > self.limit:
            raise TooManyStepsError
        kind, value = node
        if kind in SINGLE:
            if at < len(self.text) and self.is_one(kind, value, self.text[at]):
                yield at + 1
        elif kind in REPEATED:
            yield from self.repeat(kind, value, at)
        elif kind is sre.AT:
            yield at  # an anchor only makes it fail earlier
        else:
            yield from self.group(kind, value, at)

    def group(self, kind: Any, value: Any, at: int) -> Iterator[int]:
        """Branches, a group, one that is not taken back, or what is only looked at."""
        bodies = value[1] if kind is sre.BRANCH else [value if kind is ATOMIC else value[-1]]
        found = itertools.chain.from_iterable(self.ends(list(body), at) for body in bodies)
        if kind in (sre.ASSERT, sre.ASSERT_NOT):
            next(found, None)  # it only makes it fail earlier, but costs what it reads
            yield at
        else:
            yield from itertools.islice(found, 1 if kind is ATOMIC else None)

    def repeat(self, kind: Any, value: Any, at: int) -> Iterator[int]:
        """Greedy, lazy or possessive; of single characters without recursion, as the engine does."""
        least, most, nodes = value[0], value[1], list(value[2])
        limit = len(self.text) + 1 if most is sre.MAXREPEAT else most
        single = len(nodes) == 1 and nodes[0][0] in SINGLE
        if not single and kind is not sre.POSSESSIVE_REPEAT:
            yield from self.repeat_group(kind, least, limit, nodes, at)
            return
        reached = itertools.islice(self.in_turn(nodes, at), least, limit + 1)
        if kind is sre.MIN_REPEAT:
            yield from reached
        else:
            found = list(reached)[::-1]
            yield from found[:1] if kind is sre.POSSESSIVE_REPEAT else found

    def in_turn(self, nodes: list[Any], at: int) -> Iterator[int]:
        """Where no, one, two ... repetitions end, of which none is taken back."""
        following: int | None = at
        while following is not None:
            yield (at := following)
            following = next(self.ends(nodes, at), None)
            if following == at:
                return

    def repeat_group(
        self, kind: Any, least: int, most: int, nodes: list[Any], at: int
    ) -> Iterator[int]:
        if kind is sre.MIN_REPEAT and least <= 0:
            yield at
        for end in self.ends(nodes, at) if most > 0 else ():
            if end > at:
                yield from self.repeat_group(kind, least - 1, most - 1, nodes, end)
        if kind is sre.MAX_REPEAT and least <= 0:
            yield at

    def is_one(self, kind: Any, value: Any, character: str) -> bool:
        """Whether a node that stands for one character stands for this one."""
        if kind is sre.ANY:
            return self.dot_all or character != "\n"
        if kind is sre.NOT_LITERAL:
            return not self.is_one(sre.LITERAL, value, character)
        if kind is sre.LITERAL:
            same = chr(value)
            return character == same or (self.ignore_case and character.lower() == same.lower())
        assert kind is sre.IN, kind
        negated = value[0][0] is sre.NEGATE
        return negated != any(self.is_member(each, character) for each in value[negated:])

    def is_member(self, node: Any, character: str) -> bool:
        kind, value = node
        if kind is sre.RANGE:
            cases = {character, character.lower(), character.upper()}
            return any(value[0] <= ord(x) <= value[1] for x in cases if len(x) == 1)
        if kind is sre.CATEGORY:
            return bool(re.fullmatch(CATEGORIES[value], character))
        return self.is_one(kind, value, character)


ATOMIC = sre.ATOMIC_GROUP
SINGLE = {sre.ANY, sre.LITERAL, sre.NOT_LITERAL, sre.IN}
REPEATED = {sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT}
CATEGORIES = {
    sre.CATEGORY_DIGIT: r"\d",
    sre.CATEGORY_NOT_DIGIT: r"\D",
    sre.CATEGORY_SPACE: r"\s",
    sre.CATEGORY_NOT_SPACE: r"\S",
    sre.CATEGORY_WORD: r"\w",
    sre.CATEGORY_NOT_WORD: r"\W",
}
ALPHABET = ' a1<>-{}[]",;:.*/=&\n\t\0é!AZ09\ud800'


def shortest(matcher: Matcher, nodes: Any, parts: list[tuple[str, str]]) -> str:
    """A short text that the nodes match; into `parts` what stands before each repeat, and its body."""
    text = ""
    for kind, value in nodes:
        if kind in REPEATED:
            body = shortest(matcher, value[2], [])
            inner: list[tuple[str, str]] = []
            shortest(matcher, value[2], inner)
            parts += [(text + before, again) for before, again in inner] + [(text, body)]
            text += body * max(value[0], 1)
        elif kind is sre.SUBPATTERN:
            inner = []
            body = shortest(matcher, value[-1], inner)
            parts += [(text + before, again) for before, again in inner]
            text += body
        elif kind is ATOMIC:
            text += shortest(matcher, value, parts)
        elif kind is sre.BRANCH:
            text += shortest(matcher, value[1][0], parts)
        elif kind in SINGLE:
            candidates = ALPHABET + "".join(map(chr, range(256)))
            if kind is sre.LITERAL:
                candidates = chr(value)
            text += next(x for x in candidates if matcher.is_one(kind, value, x))
    return text


def adversaries(matcher: Matcher) -> Iterator[str]:
    """What a pattern matches, repeated, nested and cut, and then something that it does not match."""
    parts: list[tuple[str, str]] = []
    whole = shortest(matcher, matcher.tree, parts)
    for before, again in [*parts, ("", whole), ("", whole[: len(whole) // 2]), ("", whole[:1])]:
        for tail in ("", "\0", "é", before, whole[:-1]):
            yield before + again * REPEATS + tail
        for cut in range(1, min(len(again), 6)):
            yield before + again[:cut] * REPEATS + again[cut:] * REPEATS


def patterns(source: str) -> Iterator[tuple[str, Any, int, bool]]:
    """Each regular expression of a bundle: its text, flags, and whether it is searched for."""
    for function in ast.parse(source).body:
        arguments = {each.arg for each in ast.walk(function) if isinstance(each, ast.arg)}
        for node in ast.walk(function):
            method = method_of(node) if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and method and ast.unparse(node.args[0]) not in arguments:
                flags = next(
                    (ast.unparse(x) for x in node.args[1:] if "re." in ast.unparse(x)), "0"
                )
                found = eval(ast.unparse(node.args[0]), {**vars(tap_stack), **vars(content_types)})  # noqa: S307 - ours
                flag = int(eval(flags))  # noqa: S307 - ours
                if isinstance(found, re.Pattern):
                    found, flag = found.pattern, found.flags & ~re.U
                yield ast.unparse(node)[:70], found, flag, is_searched(method, function, source)


def is_searched(method: str, definition: ast.stmt, source: str) -> bool:
    """Whether a pattern is tried at each place of a text; a compiled one by what is done with it."""
    if method == "compile" and isinstance(definition, ast.Assign):
        name = ast.unparse(definition.targets[0])
        return bool(re.search(rf"\b{name}\.(search|find|sub|split)", source))
    return method not in ("match", "fullmatch", "is_like")


def method_of(call: ast.Call) -> str:
    """`match` of `re.match(...)`, "" of what takes no pattern."""
    name = ast.unparse(call.func)
    if name == "is_like":
        return name
    return name[3:] if re.fullmatch(r"re\.(?!escape)[a-z]+", name) else ""


HANDLED = {
    (str(pattern), flags, searched): (label, pattern, flags, searched)
    for handler, init in HANDLERS.values()
    for label, pattern, flags, searched in patterns(tap_stack.bundle(handler, init))
}


@pytest.fixture
def deep() -> Iterator[None]:
    """The matcher recurses once for each repetition of a group."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    yield
    sys.setrecursionlimit(before)


def takes_too_long(pattern: Any, flags: int, searched: bool) -> str:
    """An input for which a pattern takes more steps than LIMIT a character, or ""."""
    text = pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern
    matcher = Matcher(text, flags)
    for adversary in adversaries(matcher):
        try:
            matcher.steps(adversary, searched)
        except TooManyStepsError:
            return adversary
    return ""


@pytest.mark.parametrize(("label", "pattern", "flags", "searched"), HANDLED.values())
def test_no_pattern_of_a_handler_backtracks(
    deep: None, label: str, pattern: Any, flags: int, searched: bool
) -> None:
    adversary = takes_too_long(pattern, flags, searched)
    assert not adversary, f"{label} takes too long for {adversary[:80]!r}"


@pytest.mark.parametrize(
    ("pattern", "searched", "slow"),
    [
        (r"(?:<!--.*?-->\s*)*<p", False, True),  # every `-->` may be the end of the first comment
        (r"(?:(?><!--.*?-->)\s*+)*+<p", False, False),
        (r"(a+)+b", False, True),
        (r"(a|a)*b", False, True),
        (r"a*a*b", False, True),
        (r"a+b", True, True),
        (r"a+b", False, False),
        (r"\d{4}-\d\d", False, False),
    ],
)
def test_the_matcher_tells_what_backtracks(
    deep: None, pattern: str, searched: bool, slow: bool
) -> None:
    assert bool(takes_too_long(pattern, re.S, searched)) is slow


# What files hold


class Counted(content_types.Start):
    """Bytes that count how many of them are looked at."""

    looked_at = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.looked_at += len(found) if isinstance(found, bytes) else 1
        return found

    def find(self, what: Any, start: Any = 0, end: Any = None) -> int:
        found = super().find(what, start, end)
        last = len(self) if end is None else min(end, len(self))
        self.looked_at += max((found if found >= 0 else last) - start, 0)
        return found

    def count(self, what: Any, start: Any = 0, end: Any = None) -> int:
        self.looked_at += min(len(self), len(self) if end is None else end)
        return super().count(what, start, end)


def work(data: bytes) -> int:
    """Lines that run for the type and the size of a file, and bytes that they look at."""
    start, lines = Counted(data), 0
    start.whole, unread = False, iter([True])
    start.more = lambda offset: data if next(unread, False) else b""

    def count(frame: Any, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return count if frame.f_code.co_filename == content_types.__file__ else None

    before = sys.gettrace()
    sys.settrace(count)
    try:
        kind = content_types.content_type_of(start)
        content_types.dimensions(kind, start)
        for size in content_types.SIZED.values():
            size(start)
    finally:
        sys.settrace(before)
    return lines * 30 + start.looked_at


SEEDS = [
    *(data[:600] for data, _, _ in FILES if data),
    *(text[:600].encode() for text, _ in TEXTS if text),
    b"<!-- a -->",
    b"<!--",
    b"<?x ?>",
    b"<!doctype x [ ]   ",
    b'{"a":',
    b'"a"",',
    b"PK\3\4" + b"\0" * 26,
    b"OggS\0\2" + b"\0" * 21,
    b"ID3\4\0\0\0\0\0\0",
    b"\xff\xd8\xff\xff",
    b"\xff\xd8\xff\xe1\0\x10Exif\0\0MM\0*\0\0\0\x08\xff\xff",
    b"\0\0\0\x08ftypheic\0\0\0\x08meta",
    b"\0\0\0\x08ipma",
]


@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_a_file_twice_as_long_takes_at_most_twice_the_work(seed: bytes) -> None:
    for head, again in ((b"", seed), (seed, seed[-2:]), (seed[:40], seed[4:30])):
        once, twice = (
            work((head + (again or b" ") * length)[:length]) for length in (8_000, 16_000)
        )
        assert twice <= 2.3 * once + 300_000, (head[:20], again[:20], once, twice)
