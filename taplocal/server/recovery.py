"""Restored tables: as of a point in time, and under the key that is asked for.

MiniStack restores a table as it is now, without encryption. While recovery is on, what a change
replaces is kept in memory, as of its time, for the newest changes; a restore takes them back from
its copy, the newest first.
"""

from __future__ import annotations

import collections
import copy
import time
from collections.abc import Mapping
from typing import Any

from ministack.core.responses import get_account_id, get_region
from ministack.services import dynamodb

CHANGES = 20_000  # of a table
#: Account, region, table -> when, the item before and after.
_changes: dict[tuple[str, ...], collections.deque[tuple[float, Any, Any]]] = {}


def changes_of(table: str) -> collections.deque[tuple[float, Any, Any]]:
    """The newest changes of a table."""
    key = get_account_id(), get_region(), table
    return _changes.setdefault(key, collections.deque(maxlen=CHANGES))


def keep() -> None:
    """Keeps what each change of an item replaces."""
    emit = dynamodb._emit_stream_event

    def emitted(table: str, event: str, old: Any, new: Any, *more: Any, **named: Any) -> None:
        emit(table, event, old, new, *more, **named)
        if table in dynamodb._pitr_settings:
            changes_of(table).append((time.time(), copy.deepcopy(old), new))

    dynamodb._emit_stream_event = emitted


def take_back(table: dict[str, Any], since: float, changes: Any) -> None:
    """Makes a table what it was, by what has changed since."""
    for at, old, new in reversed(changes):
        if at > since:
            item = old or new
            key, sort = (
                dynamodb._extract_key_val(item[x]) if x else "__no_sort__"
                for x in (table["pk_name"], table["sk_name"])
            )
            if old:
                table["items"][key][sort] = copy.deepcopy(old)
            else:
                table["items"].get(key, {}).pop(sort, None)
    dynamodb._items_replaced(table)


def encrypt() -> None:
    """Gives a restored table the encryption that the request names."""
    request = dynamodb._restore_create_request

    def requested(target: str, keys: Any, types: Any, mode: str, units: Any, *more: Any) -> Any:
        made, (data, *_) = request(target, keys, types, mode, units, *more), more
        return made | {"SSESpecification": data.get("SSESpecificationOverride")}

    dynamodb._restore_create_request = requested


def install() -> None:
    """Replaces MiniStack's functions."""
    keep()
    encrypt()
    restore = dynamodb._restore_table_to_point_in_time

    def restored(data: Mapping[str, Any]) -> Any:
        response = restore(data)
        if response[0] == 200 and not data.get("UseLatestRestorableTime"):
            source = data.get("SourceTableName") or data["SourceTableArn"].rpartition("/")[2]
            since = float(data["RestoreDateTime"])
            take_back(dynamodb._tables[data["TargetTableName"]], since, changes_of(source))
        return response

    dynamodb._restore_table_to_point_in_time = restored
