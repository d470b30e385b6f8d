"""One handler for each resource type: the table that the engine looks them up in."""

from __future__ import annotations

from taplocal.errors import UnsupportedError
from taplocal.resources import (
    apigateway,
    autoscaling,
    awslambda,
    budgets,
    cloudwatch,
    cognito,
    dynamodb,
    iam,
    kms,
    s3,
    scheduler,
    sns,
    sqs,
    ssm,
)
from taplocal.resources.base import Handler

#: Pulumi type -> handler.
HANDLERS: dict[str, Handler] = {
    "aws:apigatewayv2/api:Api": apigateway.Api(),
    "aws:apigatewayv2/authorizer:Authorizer": apigateway.Authorizer(),
    "aws:apigatewayv2/integration:Integration": apigateway.Integration(),
    "aws:apigatewayv2/route:Route": apigateway.Route(),
    "aws:apigatewayv2/stage:Stage": apigateway.Stage(),
    "aws:appautoscaling/policy:Policy": autoscaling.Policy(),
    "aws:appautoscaling/target:Target": autoscaling.Target(),
    "aws:budgets/budget:Budget": budgets.Budget(),
    "aws:cloudwatch/dashboard:Dashboard": cloudwatch.Dashboard(),
    "aws:cloudwatch/logGroup:LogGroup": cloudwatch.LogGroup(),
    "aws:cloudwatch/metricAlarm:MetricAlarm": cloudwatch.MetricAlarm(),
    "aws:cognito/resourceServer:ResourceServer": cognito.ResourceServer(),
    "aws:cognito/userPool:UserPool": cognito.UserPool(),
    "aws:cognito/userPoolClient:UserPoolClient": cognito.UserPoolClient(),
    "aws:cognito/userPoolDomain:UserPoolDomain": cognito.UserPoolDomain(),
    "aws:dynamodb/table:Table": dynamodb.Table(),
    "aws:iam/role:Role": iam.Role(),
    "aws:iam/rolePolicy:RolePolicy": iam.RolePolicy(),
    "aws:kms/alias:Alias": kms.Alias(),
    "aws:kms/key:Key": kms.Key(),
    "aws:lambda/alias:Alias": awslambda.Alias(),
    "aws:lambda/function:Function": awslambda.Function(),
    "aws:lambda/functionEventInvokeConfig:FunctionEventInvokeConfig": awslambda.EventInvokeConfig(),
    "aws:lambda/invocation:Invocation": awslambda.Invocation(),
    "aws:lambda/permission:Permission": awslambda.Permission(),
    "aws:s3/bucket:Bucket": s3.Bucket(),
    "aws:s3/bucketCorsConfiguration:BucketCorsConfiguration": s3.Cors(),
    "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration": s3.Lifecycle(),
    "aws:s3/bucketLogging:BucketLogging": s3.Logging(),
    "aws:s3/bucketNotification:BucketNotification": s3.Notification(),
    "aws:s3/bucketOwnershipControls:BucketOwnershipControls": s3.OwnershipControls(),
    "aws:s3/bucketPolicy:BucketPolicy": s3.Policy(),
    "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock": s3.PublicAccessBlock(),
    "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": (
        s3.Encryption()
    ),
    "aws:s3/bucketVersioning:BucketVersioning": s3.Versioning(),
    "aws:scheduler/schedule:Schedule": scheduler.Schedule(),
    "aws:sns/topic:Topic": sns.Topic(),
    "aws:sns/topicPolicy:TopicPolicy": sns.TopicPolicy(),
    "aws:sns/topicSubscription:TopicSubscription": sns.TopicSubscription(),
    "aws:sqs/queue:Queue": sqs.Queue(),
    "aws:sqs/queuePolicy:QueuePolicy": sqs.QueuePolicy(),
    "aws:ssm/parameter:Parameter": ssm.Parameter(),
}


def handler_of(resource_type: str, name: str) -> Handler:
    """The handler of a type; UnsupportedError names a type that there is none for."""
    if resource_type not in HANDLERS:
        raise UnsupportedError(
            f"{name} is a {resource_type}, which the local cloud does not know; "
            "add a handler for it in taplocal/resources/"
        )
    return HANDLERS[resource_type]


__all__ = ["HANDLERS", "Handler", "handler_of"]
