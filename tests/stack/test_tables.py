"""Tables as they are watched: each table and index, and how near the capacity its use is."""

from __future__ import annotations

import pytest

from taplocal.architecture import metrics_of
from tests.stack.conftest import (
    Graph,
    graph_of,
)
from tests.stack.test_monitoring import METRICS, watched


def test_every_table_and_index_is_watched(graph: Graph) -> None:
    for table in (each.inputs for each in graph.of("Table")):
        for metric in METRICS["AWS/DynamoDB"]:
            assert ("AWS/DynamoDB", metric, table["name"]) in watched(graph)
            for index in table["globalSecondaryIndexes"]:
                assert ("AWS/DynamoDB", metric, index["name"], table["name"]) in watched(graph)


@pytest.mark.parametrize("scaling", [1, 4])
def test_the_files_tables_use_alarms_at_80_percent_of_what_it_may_scale_to(scaling: int) -> None:
    graph = graph_of("prod", files_table_capacity="50", files_table_scaling=str(scaling))
    thresholds = {
        metric["metricName"]: each.inputs["threshold"]
        for each in graph.of("MetricAlarm")
        for metric in metrics_of(each.inputs)
        if metric["metricName"].startswith("Consumed")
    }
    units = ("ConsumedReadCapacityUnits", "ConsumedWriteCapacityUnits")
    assert thresholds == dict.fromkeys(units, 0.8 * 50 * scaling * 60)
