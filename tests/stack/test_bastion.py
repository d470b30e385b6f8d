"""The bastion as it is registered: its hours, and an alarm on logins."""

from __future__ import annotations

from tests.stack.conftest import Graph, graph_of


def test_the_bastion_stops_outside_its_hours_where_it_has_some(graph: Graph, env: str) -> None:
    hours = {
        each.inputs["recurrence"]: each.inputs["desiredCapacity"]
        for each in graph.of("aws:autoscaling/schedule:Schedule")
    }
    assert hours == ({"0 8 * * 1-5": 1, "0 18 * * 1-5": 0} if env == "dev" else {})
    counted = graph.one("LogMetricFilter").inputs["metricTransformation"]
    logins = graph.one("MetricAlarm", "monitoring-bastion-logins").inputs
    assert (logins["namespace"], logins["metricName"]) == (counted["namespace"], counted["name"])


def test_a_stopped_bastion_is_no_drift(graph: Graph, env: str) -> None:
    """Its schedule sets the group's smallest size, too."""
    group = graph.one("aws:autoscaling/group:Group", "bastion-fleet-group")
    assert ("minSize" in group.ignore_changes) is (env == "dev")


def test_hours_over_night_end_on_the_next_day_that_of_friday_too() -> None:
    graph = graph_of("dev", systems="web", bastion_hours="22-6")
    hours = {
        each.inputs["recurrence"]: each.inputs["desiredCapacity"]
        for each in graph.of("aws:autoscaling/schedule:Schedule")
    }
    assert hours == {"0 22 * * 1-5": 1, "0 6 * * 2-6": 0}
