"""S3: buckets, and their configurations, which are resources of their own."""

from __future__ import annotations

from typing import Any

from taplocal.cloud import Cloud
from taplocal.resources.base import Handler, Inputs, Named, Outputs, given, pascal, tag_list


class Bucket(Named):
    uses = "bucket forceDestroy tags"
    id_input = "bucket"
    replace_on = "bucket"
    overwrites = True
    tag_operation = "s3 get_bucket_tagging Bucket TagSet"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        s3, name = cloud.client("s3"), inputs["bucket"]
        # S3 rejects us-east-1 as a location constraint.
        location = cloud.region if cloud.region != "us-east-1" else None
        configuration = given(LocationConstraint=location, Tags=tag_list(inputs.get("tags")))
        s3.create_bucket(Bucket=name, CreateBucketConfiguration=configuration)
        return name, {"arn": f"arn:aws:s3:::{name}"}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        tags = {"TagSet": tag_list(new.get("tags"))}
        cloud.client("s3").put_bucket_tagging(Bucket=resource_id, Tagging=tags)
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        s3 = cloud.client("s3")
        if inputs.get("forceDestroy"):
            for page in s3.get_paginator("list_object_versions").paginate(Bucket=resource_id):
                found = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
                objects = [{"Key": x["Key"], "VersionId": x["VersionId"]} for x in found]
                if objects:
                    s3.delete_objects(
                        Bucket=resource_id, Delete={"Objects": objects, "Quiet": True}
                    )
        s3.delete_bucket(Bucket=resource_id)


class BucketSetting(Handler):
    """One configuration of a bucket: an update overwrites it, its id is the bucket's name."""

    id_input = "bucket"
    replace_on = "bucket"
    put_operation = delete_operation = ""  # of boto3's client

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        """The arguments of the put operation, except the bucket."""
        raise NotImplementedError

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        getattr(cloud.client("s3"), self.put_operation)(
            Bucket=inputs["bucket"], **self.arguments(inputs)
        )
        return inputs["bucket"], {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        getattr(cloud.client("s3"), self.delete_operation)(Bucket=resource_id)


class PublicAccessBlock(BucketSetting):
    uses = "bucket blockPublicAcls blockPublicPolicy ignorePublicAcls restrictPublicBuckets"
    put_operation, delete_operation = "put_public_access_block", "delete_public_access_block"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        rules = {key: value for key, value in inputs.items() if key != "bucket"}
        return {"PublicAccessBlockConfiguration": pascal(rules)}


class OwnershipControls(BucketSetting):
    uses = "bucket rule.objectOwnership"
    put_operation, delete_operation = (
        "put_bucket_ownership_controls",
        "delete_bucket_ownership_controls",
    )

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {"OwnershipControls": {"Rules": [pascal(inputs["rule"])]}}


class Encryption(BucketSetting):
    uses = """bucket rules.applyServerSideEncryptionByDefault.sseAlgorithm rules.bucketKeyEnabled
        rules.applyServerSideEncryptionByDefault.kmsMasterKeyId"""
    put_operation, delete_operation = "put_bucket_encryption", "delete_bucket_encryption"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        rules = [
            {
                "ApplyServerSideEncryptionByDefault": given(
                    SSEAlgorithm=each["applyServerSideEncryptionByDefault"]["sseAlgorithm"],
                    KMSMasterKeyID=each["applyServerSideEncryptionByDefault"].get("kmsMasterKeyId"),
                ),
                "BucketKeyEnabled": each.get("bucketKeyEnabled", False),
            }
            for each in inputs["rules"]
        ]
        return {"ServerSideEncryptionConfiguration": {"Rules": rules}}


class Versioning(BucketSetting):
    uses = "bucket versioningConfiguration.status"
    put_operation = "put_bucket_versioning"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {"VersioningConfiguration": pascal(inputs["versioningConfiguration"])}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        suspended = {"Status": "Suspended"}  # S3 cannot turn versioning off
        cloud.client("s3").put_bucket_versioning(
            Bucket=resource_id, VersioningConfiguration=suspended
        )


class Policy(BucketSetting):
    uses = "bucket policy"
    put_operation, delete_operation = "put_bucket_policy", "delete_bucket_policy"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {"Policy": inputs["policy"]}


class Lifecycle(BucketSetting):
    uses = "bucket rules"
    put_operation, delete_operation = (
        "put_bucket_lifecycle_configuration",
        "delete_bucket_lifecycle",
    )

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        rules = [
            {("ID" if k == "Id" else k): v for k, v in pascal(x).items()} for x in inputs["rules"]
        ]
        return {"LifecycleConfiguration": {"Rules": rules}}


class Cors(BucketSetting):
    uses = """bucket corsRules.allowedMethods corsRules.allowedOrigins corsRules.allowedHeaders
        corsRules.exposeHeaders corsRules.maxAgeSeconds"""
    put_operation, delete_operation = "put_bucket_cors", "delete_bucket_cors"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {"CORSConfiguration": {"CORSRules": pascal(inputs["corsRules"])}}


class Logging(BucketSetting):
    uses = "bucket targetBucket targetPrefix targetObjectKeyFormat.partitionedPrefix"
    put_operation = "put_bucket_logging"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        target = {key: value for key, value in inputs.items() if key != "bucket"}
        return {"BucketLoggingStatus": {"LoggingEnabled": pascal(target)}}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("s3").put_bucket_logging(Bucket=resource_id, BucketLoggingStatus={})


class Notification(BucketSetting):
    uses = """bucket eventbridge lambdaFunctions.id lambdaFunctions.lambdaFunctionArn
        lambdaFunctions.events"""
    put_operation = "put_bucket_notification_configuration"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        functions = [
            {
                "Id": each["id"],
                "LambdaFunctionArn": each["lambdaFunctionArn"],
                "Events": each["events"],
            }
            for each in inputs["lambdaFunctions"]
        ]
        bus: dict[str, Any] = {"EventBridgeConfiguration": {}} if inputs.get("eventbridge") else {}
        return {"NotificationConfiguration": {"LambdaFunctionConfigurations": functions, **bus}}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("s3").put_bucket_notification_configuration(
            Bucket=resource_id, NotificationConfiguration={}
        )
