"""CloudWatch: log groups, alarms, dashboards."""

from __future__ import annotations

from taplocal.cloud import Cloud
from taplocal.resources.base import (
    Handler,
    Inputs,
    Named,
    Outputs,
    Recorded,
    given,
    removed_tags,
    tag_list,
)


class LogGroup(Named):
    uses = "name retentionInDays kmsKeyId tags"
    replace_on = "name"
    tag_operation = "logs list_tags_for_resource resourceArn tags"

    def name(self, cloud: Cloud, inputs: Inputs) -> str:
        return cloud.arn("logs", f"log-group:{inputs['name']}")

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        logs, name = cloud.client("logs"), inputs["name"]
        logs.create_log_group(
            logGroupName=name, **given(kmsKeyId=inputs.get("kmsKeyId"), tags=inputs.get("tags"))
        )
        if days := inputs.get("retentionInDays"):
            logs.put_retention_policy(logGroupName=name, retentionInDays=days)
        return name, {"arn": cloud.arn("logs", f"log-group:{name}")}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        logs = cloud.client("logs")
        if days := new.get("retentionInDays"):
            logs.put_retention_policy(logGroupName=resource_id, retentionInDays=days)
        else:
            logs.delete_retention_policy(logGroupName=resource_id)
        if new.get("kmsKeyId") and new.get("kmsKeyId") != old.get("kmsKeyId"):
            logs.associate_kms_key(logGroupName=resource_id, kmsKeyId=new["kmsKeyId"])
        if removed := removed_tags(old, new):
            logs.untag_resource(resourceArn=outputs["arn"], tagKeys=removed)
        if new.get("tags"):
            logs.tag_resource(resourceArn=outputs["arn"], tags=new["tags"])
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("logs").delete_log_group(logGroupName=resource_id)


class Alarm(Named):
    """What metric and composite alarms have in common."""

    overwrites = True
    tag_operation = "cloudwatch list_tags_for_resource ResourceARN Tags"

    def name(self, cloud: Cloud, inputs: Inputs) -> str:
        return cloud.arn("cloudwatch", f"alarm:{inputs[self.id_input]}")

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("cloudwatch").delete_alarms(AlarmNames=[resource_id])


class MetricAlarm(Alarm):
    uses = """name alarmDescription namespace metricName dimensions statistic extendedStatistic
        comparisonOperator threshold period evaluationPeriods datapointsToAlarm treatMissingData
        metricQueries alarmActions okActions insufficientDataActions tags"""
    replace_on = "name"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        name = inputs["name"]
        cloud.client("cloudwatch").put_metric_alarm(
            AlarmName=name,
            ComparisonOperator=inputs["comparisonOperator"],
            EvaluationPeriods=inputs["evaluationPeriods"],
            Tags=tag_list(inputs.get("tags")),
            **given(
                AlarmDescription=inputs.get("alarmDescription"),
                Metrics=[metric_query(each) for each in inputs.get("metricQueries", ())] or None,
                MetricName=inputs.get("metricName"),
                Namespace=inputs.get("namespace"),
                Dimensions=tag_list(inputs.get("dimensions"), "Name"),
                Statistic=inputs.get("statistic"),
                ExtendedStatistic=inputs.get("extendedStatistic"),
                Threshold=inputs.get("threshold"),
                Period=inputs.get("period"),
                DatapointsToAlarm=inputs.get("datapointsToAlarm"),
                TreatMissingData=inputs.get("treatMissingData"),
                AlarmActions=inputs.get("alarmActions"),
                OKActions=inputs.get("okActions"),
                InsufficientDataActions=inputs.get("insufficientDataActions"),
            ),
        )
        return name, {"arn": cloud.arn("cloudwatch", f"alarm:{name}")}


def metric_query(query: Inputs) -> Inputs:
    """A query of an alarm on metric math, as PutMetricAlarm takes it."""
    found: Inputs = {"Id": query["id"], "ReturnData": query.get("returnData", False)}
    if "expression" in query:
        return {**found, "Expression": query["expression"], **given(Label=query.get("label"))}
    metric = query["metric"]
    of = {
        "Namespace": metric["namespace"],
        "MetricName": metric["metricName"],
        "Dimensions": tag_list(metric.get("dimensions"), "Name"),
    }
    return {
        **found,
        "MetricStat": {"Metric": of, "Period": metric["period"], "Stat": metric["stat"]},
    }


class CompositeAlarm(Alarm):
    uses = "alarmName alarmDescription alarmRule alarmActions okActions actionsSuppressor tags"
    id_input = "alarmName"
    replace_on = "alarmName"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        name, suppressor = inputs["alarmName"], inputs.get("actionsSuppressor") or {}
        cloud.client("cloudwatch").put_composite_alarm(
            AlarmName=name,
            AlarmRule=inputs["alarmRule"],
            Tags=tag_list(inputs.get("tags")),
            **given(
                AlarmDescription=inputs.get("alarmDescription"),
                AlarmActions=inputs.get("alarmActions"),
                OKActions=inputs.get("okActions"),
                ActionsSuppressor=suppressor.get("alarm"),
                ActionsSuppressorWaitPeriod=suppressor.get("waitPeriod"),
                ActionsSuppressorExtensionPeriod=suppressor.get("extensionPeriod"),
            ),
        )
        return name, {"arn": cloud.arn("cloudwatch", f"alarm:{name}")}


class Dashboard(Named):
    uses = "dashboardName dashboardBody"
    id_input = "dashboardName"
    replace_on = "dashboardName"
    overwrites = True
    tag_operation = "cloudwatch get_dashboard DashboardName -"

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        if self.tags(cloud, inputs) is None:
            return None
        name = str(inputs["dashboardName"])
        found = cloud.client("cloudwatch").get_dashboard(DashboardName=name)
        return name if found["DashboardBody"] == inputs["dashboardBody"] else None

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        name = inputs["dashboardName"]
        cloud.client("cloudwatch").put_dashboard(
            DashboardName=name, DashboardBody=inputs["dashboardBody"]
        )
        return name, {"dashboardArn": f"arn:aws:cloudwatch::{cloud.account}:dashboard/{name}"}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("cloudwatch").delete_dashboards(DashboardNames=[resource_id])


class QueryDefinition(Recorded):
    uses = "name logGroupNames queryString"


class LogMetricFilter(Handler):
    uses = "name logGroupName pattern metricTransformation"
    replace_on = "name logGroupName"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        source = inputs["metricTransformation"]
        transformation = {
            "metricNamespace": source["namespace"],
            "metricName": source["name"],
            "metricValue": source["value"],
        }
        cloud.client("logs").put_metric_filter(
            logGroupName=inputs["logGroupName"],
            filterName=inputs["name"],
            filterPattern=inputs["pattern"],
            metricTransformations=[transformation],
        )
        return inputs["name"], {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("logs").delete_metric_filter(
            logGroupName=inputs["logGroupName"], filterName=resource_id
        )
