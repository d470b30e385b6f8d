"""CloudWatch: log groups, alarms, dashboards."""

from __future__ import annotations

from taplocal.cloud import Cloud
from taplocal.resources.base import Handler, Inputs, Outputs, given, lost_tags, tag_list


class LogGroup(Handler):
    uses = "name retentionInDays kmsKeyId tags"
    replace_on = "name"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        logs, name = cloud.client("logs"), inputs["name"]
        logs.create_log_group(
            logGroupName=name, **given(kmsKeyId=inputs.get("kmsKeyId"), tags=inputs.get("tags"))
        )
        if days := inputs.get("retentionInDays"):
            logs.put_retention_policy(logGroupName=name, retentionInDays=days)
        return name, {"arn": cloud.arn("logs", f"log-group:{name}")}

    def update(
        self, cloud: Cloud, identity: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        logs = cloud.client("logs")
        if days := new.get("retentionInDays"):
            logs.put_retention_policy(logGroupName=identity, retentionInDays=days)
        else:
            logs.delete_retention_policy(logGroupName=identity)
        if new.get("kmsKeyId") and new.get("kmsKeyId") != old.get("kmsKeyId"):
            logs.associate_kms_key(logGroupName=identity, kmsKeyId=new["kmsKeyId"])
        if lost := lost_tags(old, new):
            logs.untag_resource(resourceArn=outputs["arn"], tagKeys=lost)
        if new.get("tags"):
            logs.tag_resource(resourceArn=outputs["arn"], tags=new["tags"])
        return outputs

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("logs").delete_log_group(logGroupName=identity)


class MetricAlarm(Handler):
    uses = """name alarmDescription namespace metricName dimensions statistic extendedStatistic
        comparisonOperator threshold period evaluationPeriods alarmActions okActions tags"""
    replace_on = "name"
    not_emulated = {
        "dimensions": "the evaluator joins all dimensions of a metric",
        "datapointsToAlarm": "the evaluator looks at all periods at once",
        "treatMissingData": "without data an alarm keeps its state",
    }

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        name = inputs["name"]
        cloud.client("cloudwatch").put_metric_alarm(
            AlarmName=name,
            MetricName=inputs["metricName"],
            Namespace=inputs["namespace"],
            Dimensions=tag_list(inputs.get("dimensions"), "Name"),
            ComparisonOperator=inputs["comparisonOperator"],
            EvaluationPeriods=inputs["evaluationPeriods"],
            Tags=tag_list(inputs.get("tags")),
            **given(
                AlarmDescription=inputs.get("alarmDescription"),
                Statistic=inputs.get("statistic"),
                ExtendedStatistic=inputs.get("extendedStatistic"),
                Threshold=inputs.get("threshold"),
                Period=inputs.get("period"),
                DatapointsToAlarm=inputs.get("datapointsToAlarm"),
                TreatMissingData=inputs.get("treatMissingData"),
                AlarmActions=inputs.get("alarmActions"),
                OKActions=inputs.get("okActions"),
            ),
        )
        return name, {"arn": cloud.arn("cloudwatch", f"alarm:{name}")}

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("cloudwatch").delete_alarms(AlarmNames=[identity])


class Dashboard(Handler):
    uses = "dashboardName dashboardBody"
    replace_on = "dashboardName"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        name = inputs["dashboardName"]
        cloud.client("cloudwatch").put_dashboard(
            DashboardName=name, DashboardBody=inputs["dashboardBody"]
        )
        return name, {"dashboardArn": f"arn:aws:cloudwatch::{cloud.account}:dashboard/{name}"}

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("cloudwatch").delete_dashboards(DashboardNames=[identity])

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        return str(inputs["dashboardName"])


class LogMetricFilter(Handler):
    uses = """name logGroupName pattern metricTransformation.namespace metricTransformation.name
        metricTransformation.value"""
    replace_on = "name logGroupName"
    not_emulated = {"metricTransformation": "nothing is counted"}

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        counted = inputs["metricTransformation"]
        transformation = {
            "metricNamespace": counted["namespace"],
            "metricName": counted["name"],
            "metricValue": counted["value"],
        }
        cloud.client("logs").put_metric_filter(
            logGroupName=inputs["logGroupName"],
            filterName=inputs["name"],
            filterPattern=inputs["pattern"],
            metricTransformations=[transformation],
        )
        return inputs["name"], {}

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("logs").delete_metric_filter(
            logGroupName=inputs["logGroupName"], filterName=identity
        )
