"""AWS Budgets: budgets and their notifications."""

from __future__ import annotations

from typing import Any

from taplocal.cloud import Cloud
from taplocal.resources.base import Inputs, Named, Outputs, tag_list


class Budget(Named):
    uses = """name budgetType limitAmount limitUnit timeUnit costFilters notifications tags"""
    replace_on = "name"
    tag_operation = "budgets list_tags_for_resource ResourceARN ResourceTags"

    def name(self, cloud: Cloud, inputs: Inputs) -> str:
        return f"arn:aws:budgets::{cloud.account}:budget/{inputs['name']}"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("budgets").create_budget(
            AccountId=cloud.account,
            Budget=_budget(inputs),
            NotificationsWithSubscribers=[
                _notification(each) for each in inputs.get("notifications", [])
            ],
            ResourceTags=tag_list(inputs.get("tags")),
        )
        return inputs["name"], {"arn": self.name(cloud, inputs)}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        self.delete(cloud, resource_id, old, outputs)
        return self.create(cloud, new)[1]

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("budgets").delete_budget(AccountId=cloud.account, BudgetName=resource_id)


def _budget(inputs: Inputs) -> dict[str, Any]:
    return {
        "BudgetName": inputs["name"],
        "BudgetType": inputs["budgetType"],
        "TimeUnit": inputs["timeUnit"],
        "BudgetLimit": {"Amount": inputs["limitAmount"], "Unit": inputs["limitUnit"]},
        "CostFilters": {each["name"]: each["values"] for each in inputs.get("costFilters", [])},
    }


def _notification(each: Inputs) -> dict[str, Any]:
    return {
        "Notification": {
            "NotificationType": each["notificationType"],
            "ComparisonOperator": each["comparisonOperator"],
            "Threshold": each["threshold"],
            "ThresholdType": each["thresholdType"],
        },
        "Subscribers": [
            {"SubscriptionType": "SNS", "Address": arn}
            for arn in each.get("subscriberSnsTopicArns", [])
        ],
    }
