"""The reports of files as Athena answers them: pages, types, errors, bars."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from botocore.exceptions import NoCredentialsError
from typer.testing import CliRunner

from ops import report as reports
from ops.report import BAR, LABEL, Report, ReportError, app, bars, run, saved_queries
from tests.fakes import client_error

COLUMNS = [("owner", "varchar"), ("share", "double"), ("bytes", "bigint")]


class Athena:
    """Athena with saved queries, three on a page, and results, two rows on a page."""

    def __init__(self, *names: str, rows: Any = (), states: Any = ("SUCCEEDED",)):
        self.queries = {f"id-{name}": name for name in names}
        self.rows, self.states = [[x for x, _ in COLUMNS], *rows], [*states]
        self.asked: list[tuple[str, str]] = []

    def get_paginator(self, operation: str) -> Any:
        self.operation = operation
        return self

    def paginate(self, **which: Any) -> list[dict[str, Any]]:
        if self.operation == "list_named_queries":
            ids = [*self.queries]
            pages = [ids[at : at + 3] for at in range(0, len(ids), 3)] or [[]]
            return [{"NamedQueryIds": page} for page in pages]
        columns = [{"Name": name, "Type": kind} for name, kind in COLUMNS]
        data = [
            {"Data": [{} if x is None else {"VarCharValue": str(x)} for x in row]}
            for row in self.rows
        ]
        return [
            {"ResultSet": {"Rows": page, "ResultSetMetadata": {"ColumnInfo": columns}}}
            for page in (data[at : at + 2] for at in range(0, len(data), 2))
        ]

    def batch_get_named_query(self, NamedQueryIds: list[str]) -> dict[str, Any]:
        assert NamedQueryIds
        queries = [{"Name": self.queries[x], "QueryString": x} for x in NamedQueryIds]
        more = {"Description": "", "Database": "d", "WorkGroup": "w"}
        return {"NamedQueries": [{**more, **each} for each in queries]}

    def start_query_execution(self, **query: Any) -> dict[str, str]:
        self.asked.append((query["QueryString"], query["WorkGroup"]))
        return {"QueryExecutionId": "1"}

    def get_query_execution(self, **_: Any) -> dict[str, Any]:
        state = self.states.pop(0)
        status = {"State": state, "StateChangeReason": "Bytes scanned limit was exceeded"}
        return {"QueryExecution": {"Status": status}}


def test_saved_queries_come_from_all_pages_by_name() -> None:
    athena = Athena("storage", "growth", "own", "duplicates", "z")
    found = [each["Name"] for each in saved_queries(athena, "w")]
    assert found == ["duplicates", "growth", "own", "storage", "z"]
    assert [each["Name"] for each in saved_queries(athena, "w", "z")] == ["z"]
    assert saved_queries(Athena(), "w") == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [("storag", "did you mean storage?"), ("qqq", "use one of growth, storage")],
)
def test_an_unknown_report_says_which_there_are(name: str, hint: str) -> None:
    with pytest.raises(ReportError, match=f'there is no report "{name}": {hint}'):
        saved_queries(Athena("storage", "growth"), "w", name)


def test_a_workgroup_without_queries_says_so() -> None:
    with pytest.raises(ReportError, match='there is no report "x": the workgroup w has none'):
        saved_queries(Athena(), "w", "x")


def test_rows_have_their_types_and_the_header_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "POLL_SECONDS", 0)
    rows = [["ann", 0.5, 12], ["bob", None, 10**15], ["owner", 1.0, 0]]
    athena = Athena("storage", rows=rows, states=["QUEUED", "RUNNING", "SUCCEEDED"])
    (query,) = saved_queries(athena, "w")
    found = run(athena, query)
    assert found.rows == rows
    assert found.records()[0] == {"owner": "ann", "share": 0.5, "bytes": 12}
    assert athena.asked == [("id-storage", "w")]
    text = io.StringIO()
    found.write_csv(text)
    assert [*csv.reader(io.StringIO(text.getvalue()))][:2] == [
        ["owner", "share", "bytes"],
        ["ann", "0.5", "12"],
    ]


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED"])
def test_a_query_that_fails_says_why(state: str) -> None:
    athena = Athena("storage", states=[state])
    with pytest.raises(ReportError, match="the query storage failed: Bytes scanned limit"):
        run(athena, saved_queries(athena, "w")[0])


def test_bars_are_as_long_as_their_values_and_fit_a_terminal() -> None:
    long = "0ab8e15f-2a35-44c2-b0a5-09a0361421c6"
    rows = [[long, "application/vnd.oasis.opendocument.text", 5, 1_000], ["b", "t", 1, 500]]
    first, second = bars(Report("r", "", ["owner", "type", "n", "bytes"], rows))
    assert (first.count("█"), second.count("█")) == (BAR, BAR // 2)
    assert first[:LABEL].count("…") == 2
    assert first.startswith("0ab8e15f-2a35-44…")
    assert first.endswith("█ 1,000")
    assert (len(first), second[:LABEL].rstrip()) == (LABEL + 1 + BAR + 6, "b t")
    assert [*bars(Report("r", "", ["owner", "bytes"], [["a", 0]]))] == [f"{'a':{LABEL}}  0"]
    assert [*bars(Report("r", "", ["bytes"], [[7]]))] == [f"{'':{LABEL}} {'█' * BAR} 7"]
    assert [*bars(Report("r", "", ["bytes"], []))] == []


def invoked(monkeypatch: pytest.MonkeyPatch, athena: Any, *arguments: str) -> Any:
    def client(service: str, region_name: str) -> Any:
        assert (service, region_name) == ("athena", "eu-west-9")
        return athena

    monkeypatch.setattr("boto3.client", client)
    monkeypatch.setenv("AWS_REGION", "eu-west-9")
    return CliRunner().invoke(app, ["--workgroup", "w", *arguments])


def test_on_aws_it_prints_one_report_as_csv_or_all_as_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [["ann", 0.5, 12]]
    found = invoked(monkeypatch, Athena("storage", "growth", rows=rows), "storage")
    assert found.stdout.splitlines() == ["owner,share,bytes", "ann,0.5,12"]
    athena = Athena("storage", "growth", rows=rows, states=["SUCCEEDED"] * 2)
    told = json.loads(invoked(monkeypatch, athena, "--json").stdout)
    record = {"owner": "ann", "share": 0.5, "bytes": 12}
    assert told == {"growth": [record], "storage": [record]}


def test_on_aws_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    unnamed = invoked(monkeypatch, Athena("storage"))
    assert (unnamed.exit_code, unnamed.stderr) == (1, "error: name a report, or give --json\n")
    unknown = invoked(monkeypatch, Athena("storage"), "x")
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    for error in (NoCredentialsError(), client_error("AccessDeniedException", "ListNamedQueries")):
        athena = Athena("storage")
        monkeypatch.setattr(athena, "get_paginator", _raising(error))
        found = invoked(monkeypatch, athena, "storage")
        assert (found.exit_code, found.stderr) == (1, f"error: {error}\n")


def _raising(error: Exception) -> Any:
    def raised(*_: Any) -> Any:
        raise error

    return raised
