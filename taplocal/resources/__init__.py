"""The handlers by resource type."""

from __future__ import annotations

from taplocal.errors import UnsupportedError
from taplocal.resources import (
    acm,
    apigateway,
    athena,
    autoscaling,
    awslambda,
    budgets,
    cloudwatch,
    cognito,
    dynamodb,
    ec2,
    elb,
    events,
    glue,
    guardduty,
    iam,
    kms,
    rds,
    s3,
    scheduler,
    sns,
    sqs,
    ssm,
    waf,
)
from taplocal.resources.base import Handler

#: Pulumi type -> handler.
HANDLERS: dict[str, Handler] = {
    "aws:acm/certificate:Certificate": acm.Certificate(),
    "aws:acm/certificateValidation:CertificateValidation": acm.CertificateValidation(),
    "aws:apigatewayv2/api:Api": apigateway.Api(),
    "aws:apigatewayv2/apiMapping:ApiMapping": apigateway.ApiMapping(),
    "aws:apigatewayv2/authorizer:Authorizer": apigateway.Authorizer(),
    "aws:apigatewayv2/domainName:DomainName": apigateway.DomainName(),
    "aws:apigatewayv2/integration:Integration": apigateway.Integration(),
    "aws:apigatewayv2/route:Route": apigateway.Route(),
    "aws:apigatewayv2/stage:Stage": apigateway.Stage(),
    "aws:appautoscaling/policy:Policy": autoscaling.Policy(),
    "aws:appautoscaling/target:Target": autoscaling.Target(),
    "aws:athena/namedQuery:NamedQuery": athena.NamedQuery(),
    "aws:athena/workgroup:Workgroup": athena.Workgroup(),
    "aws:autoscaling/group:Group": autoscaling.Group(),
    "aws:autoscaling/policy:Policy": autoscaling.GroupPolicy(),
    "aws:autoscaling/schedule:Schedule": autoscaling.Schedule(),
    "aws:budgets/budget:Budget": budgets.Budget(),
    "aws:cloudwatch/compositeAlarm:CompositeAlarm": cloudwatch.CompositeAlarm(),
    "aws:cloudwatch/dashboard:Dashboard": cloudwatch.Dashboard(),
    "aws:cloudwatch/eventRule:EventRule": events.Rule(),
    "aws:cloudwatch/eventTarget:EventTarget": events.Target(),
    "aws:cloudwatch/logGroup:LogGroup": cloudwatch.LogGroup(),
    "aws:cloudwatch/logMetricFilter:LogMetricFilter": cloudwatch.LogMetricFilter(),
    "aws:cloudwatch/metricAlarm:MetricAlarm": cloudwatch.MetricAlarm(),
    "aws:cloudwatch/queryDefinition:QueryDefinition": cloudwatch.QueryDefinition(),
    "aws:cognito/resourceServer:ResourceServer": cognito.ResourceServer(),
    "aws:cognito/userPool:UserPool": cognito.UserPool(),
    "aws:cognito/userPoolClient:UserPoolClient": cognito.UserPoolClient(),
    "aws:cognito/userPoolDomain:UserPoolDomain": cognito.UserPoolDomain(),
    "aws:dynamodb/table:Table": dynamodb.Table(),
    "aws:ec2/defaultSecurityGroup:DefaultSecurityGroup": ec2.DefaultSecurityGroup(),
    "aws:ec2/eip:Eip": ec2.Eip(),
    "aws:ec2/flowLog:FlowLog": ec2.FlowLog(),
    "aws:ec2/internetGateway:InternetGateway": ec2.InternetGateway(),
    "aws:ec2/launchTemplate:LaunchTemplate": ec2.LaunchTemplate(),
    "aws:ec2/natGateway:NatGateway": ec2.NatGateway(),
    "aws:ec2/route:Route": ec2.Route(),
    "aws:ec2/routeTable:RouteTable": ec2.RouteTable(),
    "aws:ec2/routeTableAssociation:RouteTableAssociation": ec2.RouteTableAssociation(),
    "aws:ec2/securityGroup:SecurityGroup": ec2.SecurityGroup(),
    "aws:ec2/subnet:Subnet": ec2.Subnet(),
    "aws:ec2/vpc:Vpc": ec2.Vpc(),
    "aws:ec2/vpcEndpoint:VpcEndpoint": ec2.VpcEndpoint(),
    "aws:glue/catalogDatabase:CatalogDatabase": glue.Database(),
    "aws:glue/catalogTable:CatalogTable": glue.Table(),
    "aws:guardduty/malwareProtectionPlan:MalwareProtectionPlan": guardduty.MalwareProtectionPlan(),
    "aws:iam/instanceProfile:InstanceProfile": iam.InstanceProfile(),
    "aws:iam/openIdConnectProvider:OpenIdConnectProvider": iam.OpenIdConnectProvider(),
    "aws:iam/policy:Policy": iam.Policy(),
    "aws:iam/role:Role": iam.Role(),
    "aws:iam/rolePolicy:RolePolicy": iam.RolePolicy(),
    "aws:iam/rolePolicyAttachment:RolePolicyAttachment": iam.RolePolicyAttachment(),
    "aws:iam/serviceLinkedRole:ServiceLinkedRole": iam.ServiceLinkedRole(),
    "aws:kms/alias:Alias": kms.Alias(),
    "aws:kms/key:Key": kms.Key(),
    "aws:lambda/alias:Alias": awslambda.Alias(),
    "aws:lambda/function:Function": awslambda.Function(),
    "aws:lambda/functionEventInvokeConfig:FunctionEventInvokeConfig": awslambda.EventInvokeConfig(),
    "aws:lambda/invocation:Invocation": awslambda.Invocation(),
    "aws:lambda/permission:Permission": awslambda.Permission(),
    "aws:lambda/provisionedConcurrencyConfig:ProvisionedConcurrencyConfig": (
        awslambda.ProvisionedConcurrency()
    ),
    "aws:lb/listener:Listener": elb.Listener(),
    "aws:lb/loadBalancer:LoadBalancer": elb.LoadBalancer(),
    "aws:lb/targetGroup:TargetGroup": elb.TargetGroup(),
    "aws:pipes/pipe:Pipe": events.Pipe(),
    "aws:rds/eventSubscription:EventSubscription": rds.EventSubscription(),
    "aws:rds/instance:Instance": rds.Instance(),
    "aws:rds/parameterGroup:ParameterGroup": rds.ParameterGroup(),
    "aws:rds/subnetGroup:SubnetGroup": rds.SubnetGroup(),
    "aws:route53/record:Record": acm.Record(),
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
    "aws:scheduler/scheduleGroup:ScheduleGroup": scheduler.ScheduleGroup(),
    "aws:sns/topic:Topic": sns.Topic(),
    "aws:sns/topicPolicy:TopicPolicy": sns.TopicPolicy(),
    "aws:sns/topicSubscription:TopicSubscription": sns.TopicSubscription(),
    "aws:sqs/queue:Queue": sqs.Queue(),
    "aws:sqs/queuePolicy:QueuePolicy": sqs.QueuePolicy(),
    "aws:ssm/parameter:Parameter": ssm.Parameter(),
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": ec2.EgressRule(),
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": ec2.IngressRule(),
    "aws:wafv2/webAcl:WebAcl": waf.WebAcl(),
    "aws:wafv2/webAclAssociation:WebAclAssociation": waf.WebAclAssociation(),
    "pulumi-python:dynamic/tap:FleetRollout": autoscaling.FleetRollout(),
    "pulumi-python:dynamic/tap:Rollout": awslambda.Rollout(),
}


def handler_of(resource_type: str, name: str) -> Handler:
    """The handler of a type; raises UnsupportedError if there is none."""
    if resource_type not in HANDLERS:
        raise UnsupportedError(
            f"{name} is a {resource_type}, which the local cloud does not support; "
            "add a handler for it in taplocal/resources/"
        )
    return HANDLERS[resource_type]


__all__ = ["HANDLERS", "Handler", "handler_of"]
