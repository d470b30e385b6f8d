"""The snapshots as they are registered: what their function may do, and that their silence is noticed."""

from __future__ import annotations

from tests.stack.conftest import (
    Graph,
    statements,
)


def test_the_snapshot_function_may_touch_its_own_snapshots_only(graph: Graph, env: str) -> None:
    granted = statements(graph.one("RolePolicy", "database-snapshots-role-policy").inputs["policy"])
    rds = {each["Action"][0]: each for each in granted if each["Action"][0].startswith("rds:")}
    delete = rds["rds:DeleteDBSnapshot"]
    assert delete["Resource"].endswith(f":snapshot:tap-stack-database-{env}-*")
    assert delete["Condition"] == {
        "StringEquals": {"aws:ResourceTag/CreatedBy": f"tap-stack-snapshots-{env}"}
    }
    assert "Condition" in rds["rds:AddTagsToResource"]
    schedule = graph.one("Schedule", "database-snapshots-schedule").inputs
    assert schedule["scheduleExpression"] == "cron(30 1 * * ? *)"


def test_silence_of_the_snapshots_is_an_alarm_after_26_hours(graph: Graph) -> None:
    alarm = graph.one("MetricAlarm", "monitoring-snapshot-missing").inputs
    assert alarm["treatMissingData"] == "missing"
    assert alarm["insufficientDataActions"] == alarm["alarmActions"]
    assert alarm["comparisonOperator"] == "LessThanThreshold"
    assert alarm["period"] * alarm["evaluationPeriods"] == 26 * 3600
