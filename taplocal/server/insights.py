"""Logs Insights: the commands filter, fields, display, stats, sort, limit of its language.

MiniStack ignores what it does not know of a query, and so answers another one. Here that is refused
as malformed. A record has the fields of its JSON message, `a.b` and `a.0` for what is within, and
@timestamp, @message, @log, @logStream ("CloudWatch Logs Insights language query syntax" of AWS).
"""

from __future__ import annotations

import functools
import json
import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

from ministack.core.responses import get_account_id
from ministack.services import cloudwatch_logs

MOST_ROWS = 10_000  # of an answer; AWS's default, too
MOST_FIELDS = 1_000  # that are found in a record
MOST_DEPTH = 50  # of parentheses in a query
TOKEN = re.compile(
    r"""(?:\s|\#[^\n]*)*(?:
        (?P<text>"[^"]*"|'[^']*')
      | (?P<regex>/(?:\\.|[^/\\\n])+/i?)
      | (?P<period>\d+[smhd]\b)
      | (?P<number>-?\d+(?:\.\d+)?)
      | (?P<name>@?[A-Za-z_][\w.]*|`[^`]+`)
      | (?P<sign><=|>=|!=|[=<>(),*\[\]|])
    )""",
    re.VERBOSE,
)
END = re.compile(r"(?:\s|#[^\n]*)*\Z")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
ALWAYS = ("@timestamp", "@message")  # shown without `fields`

#: A record or a row: field -> its text.
Row = dict[str, str]
#: What an expression is in a row: a text, a number; None for a field that it does not have.
Value = Callable[[Row], Any]
#: What an aggregate makes of the values of a group's rows.
Aggregate = Callable[[list[Any]], Any]


class MalformedQueryError(Exception):
    """What of a query is not understood."""


def number(value: Any) -> float | None:
    """A finite number, also as a text."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def text_of(value: Any) -> str:
    """How a value is written in an answer."""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def numbers(values: list[Any]) -> list[float]:
    return [x for x in map(number, values) if x is not None]


def percentile(values: list[Any], percent: float) -> float | None:
    """The smallest value that is not below so many percent of them."""
    ordered = sorted(numbers(values))
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1] if ordered else None


AGGREGATES: Mapping[str, Aggregate] = {
    "count": len,
    "count_distinct": lambda values: len({*values}),
    "sum": lambda values: sum(numbers(values)),
    "avg": lambda values: sum(found) / len(found) if (found := numbers(values)) else None,
    "min": lambda values: min(numbers(values), default=None),
    "max": lambda values: max(numbers(values), default=None),
}


def instant(milliseconds: float) -> str:
    """A time as an answer has it."""
    at = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03}"


class Query:
    """A query that is understood; MalformedQueryError if it is not."""

    def __init__(self, text: str):
        self._tokens, self._at, self._depth = [*tokens(text)], 0, 0
        self.shown: list[str] = []  # empty: ALWAYS
        self.aggregated = False
        self._stages = [self._command()]
        while self._take("|"):
            self._stages.append(self._command())
        if self._at < len(self._tokens):
            self._fail()

    def run(self, rows: list[Row]) -> list[Row]:
        """The rows that come of records, each with the fields that are shown."""
        for stage in self._stages:
            rows = stage(rows)
        shown = self.shown or ALWAYS
        more = () if self.aggregated else ("@ptr",)
        return [
            {name: row[name] for name in (*shown, *more) if row.get(name) is not None}
            for row in rows[:MOST_ROWS]
        ]

    # Tokens: (kind, text)

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _take(self, *words: str) -> str:
        """The next token, if it is one of these words; or nothing."""
        kind, text = self._peek()
        if kind in ("name", "sign") and text.lower() in words:
            self._at += 1
            return text.lower()
        return ""

    def _need(self, *kinds: str) -> str:
        kind, text = self._peek()
        if kind not in kinds:
            self._fail()
        self._at += 1
        return text

    def _fail(self) -> NoReturn:
        kind, text = self._peek()
        raise MalformedQueryError(f"unexpected {text or kind!r}")

    def _expect(self, word: str) -> None:
        if not self._take(word):
            self._fail()

    def _list(self, part: Callable[[], Any]) -> list[Any]:
        found = [part()]
        while self._take(","):
            found.append(part())
        return found

    # Commands

    def _command(self) -> Callable[[list[Row]], list[Row]]:
        commands: Mapping[str, Callable[[], Callable[[list[Row]], list[Row]]]] = {
            "filter": self._filter,
            "fields": self._fields,
            "display": self._display,
            "stats": self._stats,
            "sort": self._sort,
            "limit": self._limit,
        }
        if not (word := self._take(*commands)):
            self._fail()
        return commands[word]()

    def _filter(self) -> Callable[[list[Row]], list[Row]]:
        holds = self._or()
        return lambda rows: [row for row in rows if holds(row)]

    def _fields(self) -> Callable[[list[Row]], list[Row]]:
        named = self._list(self._named)
        self.shown += [name for name, _ in named]
        return lambda rows: [{**row, **written(row, named)} for row in rows]

    def _display(self) -> Callable[[list[Row]], list[Row]]:
        self.shown = []
        return self._fields()

    def _stats(self) -> Callable[[list[Row]], list[Row]]:
        made = self._list(self._aggregate)
        by = self._list(self._named) if self._take("by") else []
        self.shown, self.aggregated = [*(name for name, _ in by), *(x for x, _ in made)], True

        def counted(rows: list[Row]) -> list[Row]:
            groups: dict[tuple[Any, ...], list[Row]] = {}
            for row in rows:
                groups.setdefault(tuple(value(row) for _, value in by), []).append(row)
            if not by:
                groups.setdefault((), [])
            found = []
            for key, group in groups.items():
                values = [*zip((x for x, _ in by), key, strict=True)]
                values += [(name, aggregate(group)) for name, aggregate in made]
                found.append({name: text_of(x) for name, x in values if x is not None})
            return found

        return counted

    def _sort(self) -> Callable[[list[Row]], list[Row]]:
        orders = self._list(lambda: (self._value(), self._take("asc", "desc") == "desc"))

        def ordered(rows: list[Row]) -> list[Row]:
            for value, down in reversed(orders):
                rows = sorted(rows, key=functools.partial(rank, value), reverse=down)
            return rows

        return ordered

    def _limit(self) -> Callable[[list[Row]], list[Row]]:
        most = int(float(self._need("number")))
        return lambda rows: rows[: max(most, 0)]

    # Expressions

    def _named(self) -> tuple[str, Value]:
        """The name of an expression, and the expression."""
        begin, value = self._at, self._value()
        return self._name(begin), value

    def _name(self, begin: int) -> str:
        """How what began there is called: as `as` says, or as it is written."""
        name = "".join(text for _, text in self._tokens[begin : self._at])
        return (self._need("name") if self._take("as") else name).strip("`")

    def _aggregate(self) -> tuple[str, Callable[[list[Row]], Any]]:
        begin, function, percent = self._at, self._need("name").lower(), 0.0
        self._expect("(")
        value: Value = (lambda _: True) if self._take("*") else self._value()
        if function == "pct":
            self._expect(",")
            percent = float(self._need("number"))
        elif function not in AGGREGATES:
            raise MalformedQueryError(f"{function} is none of pct, {', '.join(AGGREGATES)}")
        self._expect(")")
        name = self._name(begin)
        of = AGGREGATES.get(function) or functools.partial(percentile, percent=percent)

        def made(rows: list[Row]) -> Any:
            return of([found for row in rows if (found := value(row)) is not None])

        return name, made

    def _or(self) -> Value:
        parts = [self._and()]
        while self._take("or"):
            parts.append(self._and())
        return lambda row: any(part(row) for part in parts)

    def _and(self) -> Value:
        parts = [self._not()]
        while self._take("and"):
            parts.append(self._not())
        return lambda row: all(part(row) for part in parts)

    def _not(self) -> Value:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise MalformedQueryError(f"more than {MOST_DEPTH} parentheses in one another")
        if self._take("not"):
            inner = self._not()
            found: Value = lambda row: not inner(row)  # noqa: E731 - of this type
        elif self._take("("):
            found = self._or()
            self._expect(")")
        else:
            found = self._comparison()
        self._depth -= 1
        return found

    def _comparison(self) -> Value:
        left = self._value()
        if sign := self._take(*COMPARE):
            return functools.partial(compared, COMPARE[sign], left, self._value())
        negated = bool(self._take("not"))
        if self._take("like"):
            found = functools.partial(like, left, pattern(*self._peek()))
            self._need("text", "regex")
        elif self._take("in"):
            self._expect("[")
            among = self._list(self._value)
            self._expect("]")
            found = functools.partial(member, left, among)
        elif negated:
            self._fail()
        else:
            return left
        return (lambda row: not found(row)) if negated else found

    def _value(self) -> Value:
        kind, text = self._peek()
        self._need("text", "number", "name")
        if kind == "text":
            return lambda _: text[1:-1]
        if kind == "number":
            return lambda _: float(text)
        if not self._take("("):
            return lambda row: row.get(text.strip("`"))
        value = self._function(text.lower())
        self._expect(")")
        return value

    def _function(self, name: str) -> Value:
        if name == "bin":
            period = self._need("period")
            return functools.partial(binned, int(period[:-1]) * SECONDS[period[-1]] * 1000)
        if name == "ispresent":
            inner = self._value()
            return lambda row: inner(row) is not None
        raise MalformedQueryError(f"the local cloud has no function {name}")


def tokens(text: str) -> Iterator[tuple[str, str]]:
    """Kind and text of each token."""
    at = 0
    while not END.match(text, at):
        if not (found := TOKEN.match(text, at)):
            raise MalformedQueryError(f"unexpected {text[at : at + 20].strip()!r}")
        yield str(found.lastgroup), found[str(found.lastgroup)]
        at = found.end()


def written(row: Row, named: list[tuple[str, Value]]) -> Row:
    """The fields that expressions make of a row."""
    values = ((name, value(row)) for name, value in named)
    return {name: text_of(value) for name, value in values if value is not None}


def compared(holds: Callable[[Any, Any], bool], left: Value, right: Value, row: Row) -> bool:
    """Compares numbers as such, else texts; what is not there is like nothing."""
    a, b = left(row), right(row)
    if a is None or b is None:
        return False
    x, y = number(a), number(b)
    return holds(text_of(a), text_of(b)) if x is None or y is None else holds(x, y)


def member(left: Value, among: list[Value], row: Row) -> bool:
    return any(compared(COMPARE["="], left, each, row) for each in among)


def pattern(kind: str, text: str) -> Callable[[str], bool]:
    """Whether a text has what stands after `like` in it."""
    if kind == "text":
        return lambda found: text[1:-1] in found
    wanted = f"(?i){text[1:-2]}" if text.endswith("i") else text[1:-1]
    matches(wanted, "")  # refuses a wrong one, whatever the records are
    return functools.partial(matches, wanted)


def matches(wanted: str, text: str) -> bool:
    """Whether a text has a regular expression in it: by DuckDB's, which take linear time."""
    import duckdb

    try:
        found = duckdb.execute("SELECT regexp_matches(?, ?)", [text, wanted]).fetchall()
    except duckdb.Error as error:
        raise MalformedQueryError(f"the regular expression {wanted}: {error}") from None
    return bool(found[0][0])


def like(left: Value, holds: Callable[[str], bool], row: Row) -> bool:
    """Whether that holds of a field; not of one that is not there."""
    found = left(row)
    return found is not None and holds(text_of(found))


def binned(milliseconds: int, row: Row) -> str:
    """The beginning of a record's period."""
    at = datetime.fromisoformat(row["@timestamp"]).replace(tzinfo=UTC).timestamp() * 1000
    return instant(at // milliseconds * milliseconds)


def rank(value: Value, row: Row) -> tuple[int, float, str]:
    """Where a row stands in an order: numbers before texts, what is missing first."""
    found = value(row)
    as_number = number(found)
    if found is None:
        return (0, 0.0, "")
    return (1, as_number, "") if as_number is not None else (2, 0.0, text_of(found))


def record(found: Mapping[str, Any]) -> Row:
    """The fields of a record of MiniStack's."""
    message, row = str(found.get("@message", "")), Row()
    try:
        content = json.loads(message)
    except (ValueError, RecursionError):
        content = None
    inside = deque([("", content)] if isinstance(content, dict) else [])
    while inside and len(row) < MOST_FIELDS:
        name, value = inside.popleft()
        if isinstance(value, (dict, list)):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            inside += [(f"{name}.{key}".lstrip("."), each) for key, each in parts]
        elif value is not None:
            row[name] = text_of(value)
    own = {each: str(found.get(each, "")) for each in ("@ptr", "@logStream")}
    own["@log"] = f"{get_account_id()}:{found['@log']}"
    return {**row, **own, "@message": message, "@timestamp": instant(found["_timestamp_ms"])}


def start(asked: Mapping[str, Any]) -> Any:
    """StartQuery, which is done when it is answered. Replaces MiniStack's, which records it."""
    try:
        query = Query(asked.get("queryString", ""))
    except MalformedQueryError as error:
        return cloudwatch_logs.error_response_json("MalformedQueryException", str(error), 400)
    response = _start({**asked, "queryString": "", "startTime": 0, "endTime": 0})  # of no records
    if response[0] != 200:
        return response
    times = {"startTime": asked.get("startTime", 0), "endTime": asked.get("endTime", time.time())}
    groups = cloudwatch_logs._resolve_query_log_groups(asked)
    found = cloudwatch_logs._collect_query_records(groups, *times.values())
    rows = query.run([record(each) for each in reversed(found)])[: asked.get("limit") or MOST_ROWS]
    made = cloudwatch_logs._queries[json.loads(response[2])["queryId"]]
    made |= {**times, "queryString": asked.get("queryString", "")}
    made["results"] = [[{"field": x, "value": row[x]} for x in row] for row in rows]
    size = sum(len(each.get("@message", "")) for each in found)
    scanned = {"recordsScanned": len(found), "recordsMatched": len(rows), "bytesScanned": size}
    made["statistics"] = {name: float(value) for name, value in scanned.items()}
    return response


_start = cloudwatch_logs._start_query


def install() -> None:
    """Replaces MiniStack's function."""
    cloudwatch_logs._start_query = start
