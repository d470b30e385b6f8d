"""S3: buckets and, each a resource of its own, what is set on them."""

from __future__ import annotations

from typing import Any

from taplocal.cloud import Cloud
from taplocal.resources.base import Handler, Inputs, Outputs, given, pascal, tag_list
from taplocal.resources.policies import adapted, policy_notes


class Bucket(Handler):
    uses = "bucket forceDestroy tags"
    replace_on = "bucket"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        s3, name = cloud.client("s3"), inputs["bucket"]
        elsewhere = cloud.region != "us-east-1"  # which S3 wants unsaid
        place = {"LocationConstraint": cloud.region} if elsewhere else None
        s3.create_bucket(Bucket=name, **given(CreateBucketConfiguration=place))
        self._tag(cloud, inputs)
        return name, {"arn": f"arn:aws:s3:::{name}"}

    def update(
        self, cloud: Cloud, identity: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        self._tag(cloud, new)
        return outputs

    @staticmethod
    def _tag(cloud: Cloud, inputs: Inputs) -> None:
        tags = {"TagSet": tag_list(inputs.get("tags"))}
        cloud.client("s3").put_bucket_tagging(Bucket=inputs["bucket"], Tagging=tags)

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        s3 = cloud.client("s3")
        if inputs.get("forceDestroy"):
            for page in s3.get_paginator("list_object_versions").paginate(Bucket=identity):
                found = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
                objects = [{"Key": x["Key"], "VersionId": x["VersionId"]} for x in found]
                if objects:
                    s3.delete_objects(Bucket=identity, Delete={"Objects": objects, "Quiet": True})
        s3.delete_bucket(Bucket=identity)

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        return str(inputs["bucket"])


class Setting(Handler):
    """Something that is set on a bucket, overwritten by a change; its id is the bucket's name."""

    replace_on = "bucket"
    put = ""  # the operation that sets it
    unset = ""  # the operation that takes it away

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        """What the operation takes beside the bucket."""
        raise NotImplementedError

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        getattr(cloud.client("s3"), self.put)(Bucket=inputs["bucket"], **self.arguments(inputs))
        return inputs["bucket"], {}

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        getattr(cloud.client("s3"), self.unset)(Bucket=identity)

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        return str(inputs["bucket"])


class PublicAccessBlock(Setting):
    uses = "bucket blockPublicAcls blockPublicPolicy ignorePublicAcls restrictPublicBuckets"
    put, unset = "put_public_access_block", "delete_public_access_block"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        rules = {key: value for key, value in inputs.items() if key != "bucket"}
        return {"PublicAccessBlockConfiguration": pascal(rules)}


class OwnershipControls(Setting):
    uses = "bucket rule.objectOwnership"
    put, unset = "put_bucket_ownership_controls", "delete_bucket_ownership_controls"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {"OwnershipControls": {"Rules": [pascal(inputs["rule"])]}}


class Encryption(Setting):
    uses = """bucket rules.applyServerSideEncryptionByDefault.sseAlgorithm rules.bucketKeyEnabled
        rules.applyServerSideEncryptionByDefault.kmsMasterKeyId"""
    put, unset = "put_bucket_encryption", "delete_bucket_encryption"

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


class Versioning(Setting):
    uses = "bucket versioningConfiguration.status"
    put = "put_bucket_versioning"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {"VersioningConfiguration": pascal(inputs["versioningConfiguration"])}

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        suspended = {"Status": "Suspended"}  # the nearest that S3 has to none
        cloud.client("s3").put_bucket_versioning(Bucket=identity, VersioningConfiguration=suspended)


class Policy(Setting):
    uses = "bucket policy"
    put, unset = "put_bucket_policy", "delete_bucket_policy"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {"Policy": adapted(inputs["policy"])[0]}

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        if '"Statement": []' in adapted(inputs["policy"])[0]:  # S3 wants at least one
            return inputs["bucket"], {}
        return super().create(cloud, inputs)

    def notes(self, inputs: Inputs) -> list[tuple[str, str]]:
        return policy_notes(inputs["policy"])


class Lifecycle(Setting):
    uses = """bucket rules.id rules.status rules.filter.prefix rules.abortIncompleteMultipartUpload
        rules.noncurrentVersionExpiration rules.expiration.days rules.transitions"""
    put, unset = "put_bucket_lifecycle_configuration", "delete_bucket_lifecycle"
    not_emulated = {"rules": "nothing is moved or removed with time"}

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        rules = [
            {("ID" if k == "Id" else k): v for k, v in pascal(x).items()} for x in inputs["rules"]
        ]
        return {"LifecycleConfiguration": {"Rules": rules}}


class Cors(Setting):
    uses = """bucket corsRules.allowedMethods corsRules.allowedOrigins corsRules.allowedHeaders
        corsRules.exposeHeaders corsRules.maxAgeSeconds"""
    put, unset = "put_bucket_cors", "delete_bucket_cors"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {"CORSConfiguration": {"CORSRules": pascal(inputs["corsRules"])}}


class Logging(Setting):
    uses = "bucket targetBucket targetPrefix targetObjectKeyFormat.partitionedPrefix"
    put = "put_bucket_logging"
    not_emulated = {"targetBucket": "no access logs are delivered"}

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        target = {key: value for key, value in inputs.items() if key != "bucket"}
        return {"BucketLoggingStatus": {"LoggingEnabled": pascal(target)}}

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("s3").put_bucket_logging(Bucket=identity, BucketLoggingStatus={})


class Notification(Setting):
    uses = "bucket lambdaFunctions.id lambdaFunctions.lambdaFunctionArn lambdaFunctions.events"
    put = "put_bucket_notification_configuration"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        functions = [
            {
                "Id": each["id"],
                "LambdaFunctionArn": each["lambdaFunctionArn"],
                "Events": each["events"],
            }
            for each in inputs["lambdaFunctions"]
        ]
        return {"NotificationConfiguration": {"LambdaFunctionConfigurations": functions}}

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("s3").put_bucket_notification_configuration(
            Bucket=identity, NotificationConfiguration={}
        )
