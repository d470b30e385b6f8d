"""Athena: queries of tables of the Data Catalog, run by DuckDB, as who asks may and no further.

MiniStack runs them by DuckDB as well, but with all of this machine's files and the network, and
with nobody's rights. Here DuckDB has nothing but the lines of the tables that a query names, as
Athena's JSON reader takes them: in any case of letters, and what is no JSON is empty. A workgroup's
limit, result location and encryption hold. Only what uses it imports DuckDB.
"""

from __future__ import annotations

import asyncio
import contextvars
import csv
import functools
import gzip
import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ministack import app
from ministack.core import iam_actions
from ministack.core.iam_evaluator import PrincipalInfo
from ministack.core.responses import get_account_id, get_region
from ministack.services import s3

from taplocal.server import exports, keys, rights

MEMORY, THREADS = "512MB", 2
SEALED = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
TO_READ = ("kms:Decrypt",)

Json = dict[str, Any]


class QueryError(Exception):
    """Why a query fails."""


@dataclass
class Asked:
    """Who asks, None for the account's root, by which workgroup; and what was read for it."""

    principal: PrincipalInfo | None
    settings: Mapping[str, Any]
    bytes: int = 0

    def may(self, action: str, *arns: str) -> None:
        """Raises QueryError if the caller may not do something with one of these."""
        for arn in arns if self.principal else ():
            if self.principal and rights.denial(self.principal, action, arn):
                raise QueryError(
                    "Insufficient permissions to execute the query. "
                    f"{self.principal.arn} may not {action} on {arn}"
                )

    def may_use(self, encrypted: keys.Encrypted, actions: tuple[str, ...]) -> None:
        """Raises QueryError if the caller may not use a key of S3's."""
        refusal = self.principal and keys.refused(self.principal, "s3", encrypted, actions)
        if refusal:
            raise QueryError(f"Insufficient permissions to execute the query. {refusal.message}")


asked: contextvars.ContextVar[Asked] = contextvars.ContextVar("asked")


@functools.cache
def patched() -> Any:
    """MiniStack's Athena with what is here in its place; imported at its first request."""
    from ministack.services import athena

    start = athena._start_query_execution

    def started(request: Json) -> Any:
        name = request.get("WorkGroup", "primary")
        if not (found := athena._workgroups.get(name)) or found["State"] != "ENABLED":
            why = f"WorkGroup {name} is not found or not enabled."
            return athena.error_response_json("InvalidRequestException", why, 400)
        settings = found["Configuration"]
        asked.set(Asked(keys.caller.get(None), settings))
        if settings.get("EnforceWorkGroupConfiguration"):
            request = {**request, "ResultConfiguration": settings["ResultConfiguration"]}
        return start(request)

    async def run(query: str, database: str, _catalog: Any = None) -> Json:
        return await asyncio.to_thread(answer, query, database)

    async def save(query_id: str) -> None:
        execution = athena._executions[query_id]
        execution["Statistics"]["DataScannedInBytes"] = asked.get().bytes
        store(execution["ResultConfiguration"]["OutputLocation"], execution["_results"])

    athena._start_query_execution, athena._run_duckdb = started, run
    athena._save_query_results = save
    return athena


def answer(query: str, database: str) -> Json:
    """Columns, their types and the rows of a query."""
    import duckdb
    from ministack.services import athena, glue

    caller, by_name = asked.get(), {}
    for each in athena._table_references(query):
        of = each.database or database
        if found := glue._tables.get(f"{of}/{each.table}"):
            by_name[of, each.table] = found
    config: Any = {"memory_limit": MEMORY, "threads": THREADS, **SEALED}
    with tempfile.TemporaryDirectory() as folder, duckdb.connect(config=config) as engine:
        for schema in {database, *(of for of, _ in by_name)}:
            engine.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
        for number, ((of, name), table) in enumerate(by_name.items()):
            path = Path(folder) / f"{number}.json"
            with path.open("w") as file:
                file.writelines(f"{json.dumps(row)}\n" for row in rows_of(table, of, name, caller))
            load(engine, f'"{of}"."{name}"', table, path)
        # From here on the query has what was loaded: no file, no extension, no network.
        for setting in ("enable_external_access = false", "lock_configuration = true"):
            engine.execute(f"SET {setting}")
        engine.execute(f'USE "{database}"')
        result = engine.execute(query)
        described = [(name, str(kind).partition("(")[0]) for name, kind, *_ in result.description]
        return {
            "columns": [name for name, _ in described],
            "column_types": [athena._DUCKDB_TYPE_MAP.get(kind, "varchar") for _, kind in described],
            "rows": [list(row) for row in result.fetchall()],
        }


def load(engine: Any, name: str, table: Mapping[str, Any], path: Path) -> None:
    """Makes a table of DuckDB from lines."""
    from ministack.services import firehose

    columns = {"$path": "VARCHAR"}
    for each in table["StorageDescriptor"]["Columns"]:
        columns[each["Name"].lower()] = firehose._hive_to_duckdb_type(each["Type"].lower())
    engine.read_json(str(path), columns=columns, format="newline_delimited").create(name)


def rows_of(table: Mapping[str, Any], database: str, name: str, caller: Asked) -> Iterator[Json]:
    """The lines of a table's objects, with the object's URL; its limit is checked before."""
    scope = f"arn:aws:glue:{get_region()}:{get_account_id()}"
    parents = (f"{scope}:catalog", f"{scope}:database/{database}")
    caller.may("glue:GetTable", *parents, f"{scope}:table/{database}/{name}")
    bucket, _, prefix = table["StorageDescriptor"]["Location"][5:].partition("/")
    caller.may("s3:ListBucket", f"arn:aws:s3:::{bucket}")
    stored = s3._buckets[bucket]["objects"] if bucket in s3._buckets else {}
    # Hive skips what begins with _ or a dot.
    names = [
        x for x in sorted(stored) if x.startswith(prefix) and x.rpartition("/")[2][:1] not in "_."
    ]
    caller.bytes += sum(stored[each]["size"] for each in names)
    most = caller.settings.get("BytesScannedCutoffPerQuery")
    if most and caller.bytes > most:
        raise QueryError("Query cancelled! : Bytes scanned limit was exceeded")
    for each in names:
        arn = f"arn:aws:s3:::{bucket}/{each}"
        caller.may("s3:GetObject", arn)
        caller.may_use(keys.of_object(arn, {}), TO_READ)
        body = s3._get_object_data(bucket, each) or b""
        text = (gzip.decompress(body) if each.endswith(".gz") else body).decode()
        for line in text.splitlines():
            yield {**read(line), "$path": f"s3://{bucket}/{each}"}


def read(line: str) -> Json:
    """A line as Athena's reader of JSON takes it, if told to ignore what is no JSON."""
    try:
        found = json.loads(line, object_pairs_hook=lambda x: {name.lower(): y for name, y in x})
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def store(location: str, results: Json) -> None:
    """Writes a result as CSV, each value in quotes, encrypted as the workgroup says."""
    caller, text = asked.get(), io.StringIO()
    rows = [results["columns"], *results["rows"]]
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
    bucket, _, name = location[5:].partition("/")
    chosen = caller.settings.get("ResultConfiguration", {}).get("EncryptionConfiguration", {})
    key = chosen.get("KmsKey")
    headers = {keys.SSE: "aws:kms", keys.SSE_KEY: key} if key else {}
    arn = f"arn:aws:s3:::{bucket}/{name}"
    caller.may("s3:PutObject", arn)
    caller.may_use(keys.of_new_object(arn, headers), exports.TO_WRITE)
    status, _, body = s3._put_object(bucket, name, text.getvalue().encode(), headers)
    if status >= 300:
        raise QueryError(body.decode())


def resource(of_request: Any, service: str, *request: Any) -> Any:
    """The resource of a request; that of an execution or of saved queries is the workgroup."""
    found, body = of_request(service, *request), request[3]
    if service != "athena" or found != "*" or not body.startswith(b"{"):
        return found
    named, athena = json.loads(body), patched()
    ids = [
        named.get("QueryExecutionId"),
        named.get("NamedQueryId"),
        *named.get("NamedQueryIds", []),
    ]
    known = [
        x for store in (athena._executions, athena._named_queries) for x in map(store.get, ids)
    ]
    group = next((each["WorkGroup"] for each in known if each), None)
    return (
        group and f"arn:aws:athena:{get_region()}:{get_account_id()}:workgroup/{group}"
    ) or found


def install() -> None:
    """Has Athena's requests answered by what is here."""

    async def handled(*request: Any) -> Any:
        return await patched().handle_request(*request)

    app.SERVICE_HANDLERS["athena"] = handled
    of_request = iam_actions.extract_resource_arn
    iam_actions.extract_resource_arn = functools.partial(resource, of_request)
