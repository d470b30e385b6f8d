"""Runs the saved queries of files and prints what they tell: one as CSV, or all as JSON.

    python -m ops.report --workgroup NAME [QUERY] [--json]

Uses the AWS credentials and region of the environment, as the AWS CLI does; docs/operations.md has
the policy that they need. The queries are those that are registered, read from Athena, which runs
them on the newest export. Each costs what Athena reads for it, $0.00005 at least.
"""

from __future__ import annotations

import csv
import difflib
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TextIO

import typer

POLL_SECONDS = 0.1
NUMBERS = {"bigint": int, "integer": int, "double": float}
LABEL, BAR = 36, 24  # columns of what a bar is of, and of the longest


class ReportError(Exception):
    """What is wrong, and how to mend it, in one line."""


@dataclass(frozen=True)
class Report:
    """The result of a saved query; its last column is what a chart shows, by the texts before."""

    name: str
    description: str
    columns: list[str]
    rows: list[list[Any]]

    def records(self) -> list[dict[str, Any]]:
        """The rows as objects."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def write_csv(self, file: TextIO) -> None:
        """Writes it as CSV, with the names of the columns first."""
        csv.writer(file).writerows([self.columns, *self.rows])


def saved_queries(athena: Any, workgroup: str, name: str | None = None) -> list[dict[str, Any]]:
    """The saved queries of a workgroup, by name, or the one of a name; ReportError without it."""
    pages = athena.get_paginator("list_named_queries").paginate(WorkGroup=workgroup)
    found: list[dict[str, Any]] = []
    for ids in (page["NamedQueryIds"] for page in pages):
        found += athena.batch_get_named_query(NamedQueryIds=ids)["NamedQueries"] if ids else []
    queries = {each["Name"]: each for each in sorted(found, key=lambda each: each["Name"])}
    if name is None:
        return list(queries.values())
    if name not in queries:
        near = difflib.get_close_matches(name, queries, 1)
        known = (
            f"use one of {', '.join(queries)}" if queries else f"the workgroup {workgroup} has none"
        )
        hint = f"did you mean {near[0]}?" if near else known
        raise ReportError(f"there is no report {json.dumps(name)}: {hint}")
    return [queries[name]]


def run(athena: Any, query: dict[str, Any]) -> Report:
    """Runs a saved query; raises ReportError with Athena's reason if it fails."""
    execution = athena.start_query_execution(
        QueryString=query["QueryString"],
        QueryExecutionContext={"Database": query["Database"]},
        WorkGroup=query["WorkGroup"],
    )["QueryExecutionId"]
    while True:
        found = athena.get_query_execution(QueryExecutionId=execution)["QueryExecution"]["Status"]
        if found["State"] not in ("QUEUED", "RUNNING"):
            break
        time.sleep(POLL_SECONDS)
    if found["State"] != "SUCCEEDED":
        raise ReportError(f"the query {query['Name']} failed: {found.get('StateChangeReason')}")
    pages = athena.get_paginator("get_query_results").paginate(QueryExecutionId=execution)
    results = [each["ResultSet"] for each in pages]
    columns = results[0]["ResultSetMetadata"]["ColumnInfo"]
    rows = [row["Data"] for page in results for row in page["Rows"]][1:]  # the first has the names
    return Report(
        query["Name"],
        query.get("Description", ""),
        [each["Name"] for each in columns],
        [[_value(*pair) for pair in zip(columns, row, strict=True)] for row in rows],
    )


def _value(column: dict[str, Any], datum: dict[str, str]) -> Any:
    text = datum.get("VarCharValue")
    return text if text is None else NUMBERS.get(column["Type"], str)(text)


def bars(report: Report) -> Iterable[str]:
    """For each row what it is of, a bar that is as long as its last value, and the value."""
    most = max((row[-1] for row in report.rows), default=0)
    for row in report.rows:
        texts = [each for each in row[:-1] if isinstance(each, str)]
        width = (LABEL + 1) // max(len(texts), 1) - 1
        label = " ".join(x if len(x) <= width else f"{x[: width - 1]}…" for x in texts)
        bar = "█" * (round(BAR * row[-1] / most) if most > 0 else 0)
        yield f"{label:{LABEL}} {bar} {row[-1]:,}"


app = typer.Typer()


@app.command()
def main(
    workgroup: Annotated[str, typer.Option(help="the stack's output files_workgroup_name")],
    name: Annotated[str | None, typer.Argument(help="a saved query; all by default")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, not CSV")] = False,
) -> None:
    """Runs the saved queries of files."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        if not (name or as_json):
            raise ReportError("name a report, or give --json")
        # The SDK's name for this variable is another.
        athena = boto3.client("athena", region_name=os.environ.get("AWS_REGION"))
        reports = [run(athena, each) for each in saved_queries(athena, workgroup, name)]
    except (BotoCoreError, ClientError, ReportError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps({each.name: each.records() for each in reports}, indent=2))
    else:
        reports[0].write_csv(sys.stdout)


if __name__ == "__main__":
    app()
