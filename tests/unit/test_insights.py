"""Logs Insights of the local cloud: what its queries answer, and which are refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ministack.services import cloudwatch_logs

from taplocal.server import insights

GROUP = "/aws/lambda/of-the-test"
BEGIN = 1_800_000_000_000  # 2027-01-15 08:00:00 UTC

LINES: list[Any] = [
    {"message": "request", "route": "GET /a", "status": 200, "latency_ms": 5, "caller": "ann"},
    {"message": "request", "route": "GET /a", "status": 200, "latency_ms": 20.5, "caller": "bob"},
    {"message": "request", "route": "PUT /b", "status": 500, "latency_ms": 100, "caller": "ann",
     "stack": ["a:1", "b:2"], "in": {"deep": True, "none": None}},
    {"message": "other", "status": "404", "ip": "-"},
    "START RequestId: 1",
]  # fmt: skip


@pytest.fixture
def logged() -> Iterator[None]:
    """A line each minute."""
    cloudwatch_logs._create_log_group({"logGroupName": GROUP})
    cloudwatch_logs._create_log_stream({"logGroupName": GROUP, "logStreamName": "s"})
    events = [
        {
            "timestamp": BEGIN + number * 60_000,
            "ingestionTime": BEGIN,
            "message": line if isinstance(line, str) else json.dumps(line),
        }
        for number, line in enumerate(LINES)
    ]
    stream = cloudwatch_logs._log_groups[GROUP]["streams"]["s"]
    cloudwatch_logs._append_log_events(stream, events)
    yield
    cloudwatch_logs._delete_log_group({"logGroupName": GROUP})


def answer(query: str, **more: Any) -> tuple[int, Any]:
    """Status, and the rows or the error."""
    times = {"startTime": BEGIN // 1000, "endTime": BEGIN // 1000 + 3600, **more}
    asked = {"logGroupNames": [GROUP], "queryString": query, **times}
    status, _, body = insights.start(asked)
    content = json.loads(body)
    if status != 200:
        return status, content
    _, _, body = cloudwatch_logs._get_query_results({"queryId": content["queryId"]})
    found = json.loads(body)
    assert found["status"] == "Complete"
    statistics = found["statistics"]
    assert statistics["recordsMatched"] == len(found["results"]) <= statistics["recordsScanned"]
    return status, [{x["field"]: x["value"] for x in row} for row in found["results"]]


def rows(query: str, **more: Any) -> list[dict[str, str]]:
    """The rows, without @ptr."""
    status, found = answer(query, **more)
    assert status == 200, found
    return [{name: row[name] for name in row if name != "@ptr"} for row in found]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("filter status >= 500 | fields route, stack.1", [{"route": "PUT /b", "stack.1": "b:2"}]),
        ("filter status > 404 | fields status", [{"status": "500"}]),
        ("filter status = 404 | fields ip", [{"ip": "-"}]),  # a number in a text
        ('filter ip = "-" | fields status', [{"status": "404"}]),
        ("filter in.deep = 1 | fields in.deep, in.none", [{"in.deep": "1"}]),
        ("filter caller = 'ann' and not status = 500 | display latency_ms", [{"latency_ms": "5"}]),
        ("filter (ip = '-' or caller = 'bob') and status = 200 | fields caller", [{"caller": "bob"}]),
        ("filter status != 200 | fields status | sort status", [{"status": "404"}, {"status": "500"}]),
        ("filter caller in ['bob', 'cy'] | fields caller", [{"caller": "bob"}]),
        ("filter caller not in ['ann'] and ispresent(caller) | fields caller", [{"caller": "bob"}]),
        ("filter @message like 'T RequestId:' | fields @message", [{"@message": LINES[4]}]),
        ("filter @message like /request.d: \\d/i | fields @message", [{"@message": LINES[4]}]),
        ("filter @message not like /e/ | fields @message", []),
        ("fields @timestamp | limit 1", [{"@timestamp": "2027-01-15 08:04:00.000"}]),
        ("fields @timestamp | sort @timestamp | limit 1", [{"@timestamp": "2027-01-15 08:00:00.000"}]),
        ("filter ip = '-' | fields @log, @logStream", [{"@log": f"000000000000:{GROUP}", "@logStream": "s"}]),
        ("fields route as r | filter r = 'PUT /b' # and so on", [{"r": "PUT /b"}]),
        (
            'filter message = "request"\n| stats count(*) as n, sum(latency_ms), pct(latency_ms, 50) as p by route\n'
            "| sort n desc",
            [{"route": "GET /a", "n": "2", "sum(latency_ms)": "25.5", "p": "5"},
             {"route": "PUT /b", "n": "1", "sum(latency_ms)": "100", "p": "100"}],
        ),
        (
            "stats max(latency_ms) as most, min(latency_ms) as least, avg(latency_ms) as mean by bin(2m)"
            " | sort least desc | limit 2",
            [{"bin(2m)": "2027-01-15 08:02:00.000", "most": "100", "least": "100", "mean": "100"},
             {"bin(2m)": "2027-01-15 08:00:00.000", "most": "20.5", "least": "5", "mean": "12.75"}],
        ),
        ("stats count_distinct(caller) as callers, count(caller) as n", [{"callers": "2", "n": "3"}]),
        ("filter status = 1 | stats count(*) as n, max(status) as most", [{"n": "0"}]),
        ("stats count(*) as n by ip | sort ip desc | limit 1", [{"ip": "-", "n": "1"}]),
    ],
)  # fmt: skip
def test_a_query_answers_as_logs_insights_does(
    logged: None, query: str, expected: list[dict[str, str]]
) -> None:
    assert rows(query) == expected


def test_a_record_has_a_pointer_and_a_group_has_none(logged: None) -> None:
    assert "@ptr" in answer("fields status")[1][0]
    assert "@ptr" not in answer("stats count(*)")[1][0]
    found = rows("filter ip = '-'")
    assert found == [{"@timestamp": "2027-01-15 08:03:00.000", "@message": json.dumps(LINES[3])}]


def test_a_query_has_its_time_and_its_limit(logged: None) -> None:
    assert len(rows("fields @message", limit=2)) == 2
    assert len(rows("fields @message", endTime=BEGIN // 1000 + 60)) == 2
    assert rows("fields @message", startTime=int(time.time()) + 10**9) == []


@pytest.mark.parametrize(
    "query",
    [
        "", "status = 1", "filter", "filter status >=", "filter (status = 1", "filter status = 1)",
        "fields a,", "stats count(*", "stats median(a)", "stats count(*) by", "limit x", "sort",
        "parse @message '*' as x", "filter a = 1 |", "filter a = 'x", "filter a ~ 1", "bin(5m)",
        "filter strlen(a) = 1", "filter a not = 1", "filter a like /(/", "filter a in []",
        "filter " + "(" * 60 + "a = 1" + ")" * 60, "filter " + "not " * 3_000 + "a = 1",
        "stats pct(a) as b", "fields a as",
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(logged: None, query: str) -> None:
    before = len(cloudwatch_logs._queries)
    status, found = answer(query)
    assert (status, found["__type"]) == (400, "MalformedQueryException")
    assert found["message"]
    assert len(cloudwatch_logs._queries) == before


def test_a_group_that_is_not_there_is_told() -> None:
    status, found = answer("fields a")
    assert (status, found["__type"]) == (400, "ResourceNotFoundException")


def test_deep_and_wide_messages_are_records(logged: None) -> None:
    wide = json.dumps({f"f{number}": number for number in range(5_000)})
    deep = '{"a":' * 20_000 + "1" + "}" * 20_000
    for message in (wide, deep):
        found = insights.record({"@message": message, "@log": "g", "_timestamp_ms": 0})
        assert found["@message"] == message
        assert len(found) <= insights.MOST_FIELDS + 5
