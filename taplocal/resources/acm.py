"""ACM and Route 53: certificates, which the emulator issues at once, and their records."""

from __future__ import annotations

from taplocal.cloud import Cloud
from taplocal.resources.base import (
    Handler,
    Inputs,
    Outputs,
    Recorded,
    given,
    has_owner,
    removed_tags,
    tag_list,
    tag_map,
)


class Certificate(Handler):
    uses = "domainName subjectAlternativeNames validationMethod tags"
    replace_on = distinct = "domainName subjectAlternativeNames validationMethod"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        arn = cloud.client("acm").request_certificate(
            DomainName=inputs["domainName"],
            **given(SubjectAlternativeNames=inputs.get("subjectAlternativeNames")),
            ValidationMethod=inputs["validationMethod"],
            Tags=tag_list(inputs.get("tags")),
        )["CertificateArn"]
        records = [
            {
                "domainName": name,
                "resourceRecordName": f"_validation.{name}.",
                "resourceRecordType": "CNAME",
                "resourceRecordValue": "_validation.acm-validations.aws.",
            }
            for name in (inputs["domainName"], *inputs.get("subjectAlternativeNames", ()))
        ]
        return arn, {"arn": arn, "domainValidationOptions": records}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        acm = cloud.client("acm")
        if removed := removed_tags(old, new):
            tags = [{"Key": key} for key in removed]
            acm.remove_tags_from_certificate(CertificateArn=resource_id, Tags=tags)
        acm.add_tags_to_certificate(CertificateArn=resource_id, Tags=tag_list(new.get("tags")))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("acm").delete_certificate(CertificateArn=resource_id)

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        acm = cloud.client("acm")
        for page in acm.get_paginator("list_certificates").paginate():
            for each in page["CertificateSummaryList"]:
                arn = str(each["CertificateArn"])
                tags = acm.list_tags_for_certificate(CertificateArn=arn)["Tags"]
                if has_owner(tag_map(tags), inputs):
                    return arn
        return None


class CertificateValidation(Recorded):
    uses = "certificateArn"
    replace_on = "certificateArn"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        return inputs["certificateArn"], {}


class Record(Recorded):
    uses = "zoneId name type records aliases ttl allowOverwrite"
