"""What an account needs before the first `pulumi up` of tap-stack, once and on local state.

Pulumi's state bucket and the key of its secrets; roles that GitHub's workflows assume without a
stored key, and what bounds the roles of each stack; a budget, and a role for the day on which
nothing else works. docs/deploy.md has the commands, in order.

On AWS:    cd bootstrap && PYTHONPATH=.. pulumi up --stack prod-bootstrap
Locally:   python -m taplocal up --program bootstrap --env prod-bootstrap
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws
from pulumi import Output

from bootstrap.permissions import (
    Stack,
    boundary_statements,
    deploy_statements,
    documents,
    plan_statements,
)
from tap_stack import (
    ENVIRONMENT,
    KEY_MANAGEMENT,
    KEY_USE,
    Bucket,
    Component,
    Key,
    Options,
    Statement,
    TapStackArgs,
    allow,
    policy,
    setting,
    text_like,
    texts_like,
    tier_of,
    tls_only,
    trust,
)

GITHUB = "token.actions.githubusercontent.com"
SESSION_SECONDS = 3_600
DEPLOY_SECONDS = 10_800  # fleets may take two hours: a refresh, and its rollback
API_CALL = "AWS API Call via CloudTrail"
#: Stands in policies for the ARN of the state's key, and is as long.
STATE_KEY = f"arn:aws:kms:region-name-1:000000000000:key/{'0' * 36}"


@dataclass(frozen=True, kw_only=True)
class BootstrapArgs(TapStackArgs):
    """The settings of a stack that name, tag and notify, and those of this program alone.

    `project`, which has to be the stacks' own, `alarm_emails`, `budget_usd`, here of the whole
    account, `owner`, `cost_center` and `tags` count; the others change nothing.
    """

    repository: str = setting(
        "", text_like(r"[\w.-]+/[\w.-]+", "a repository of GitHub such as acme/tap-stack")
    )
    """The repository whose workflows deploy."""
    repository_ids: str = setting("", text_like(r"(\d+/\d+)?", "ids such as 1234/5678, or empty"))
    """Ids of its owner and of itself, which GitHub's tokens name if it was made, renamed or
    transferred since 2026-07-15, or opted in."""
    environments: Sequence[str] = setting(
        ("dev", "staging", "prod"), texts_like(ENVIRONMENT, "environments such as dev or prod-eu")
    )
    """The environments that workflows deploy, each with a role of its own."""
    github_provider: bool = setting(True)
    """Make GitHub's identity provider. An account has one, whatever its projects: false if it is
    there already."""

    def subject(self, claim: str) -> str:
        """The subject of a token that a workflow of the repository gets from GitHub."""
        names = self.repository.split("/")
        if self.repository_ids:
            ids = self.repository_ids.split("/")
            names = [f"{name}@{each}" for name, each in zip(names, ids, strict=True)]
        return f"repo:{'/'.join(names)}:{claim}"


class State(Component):
    """Pulumi's state: a versioned bucket that nobody deletes, and the key of what is in it.

    Costs the key, by the month.
    """

    def __init__(self, name: str, args: BootstrapArgs, opts: Options = None):
        super().__init__(name, args, None, opts, "state")
        self.kms_key = self._key()
        self.key = Key(self.kms_key.arn)
        self.alias = aws.kms.Alias(
            *self.child("alias"), name=f"alias/{args.name('state')}", target_key_id=self.kms_key.id
        )
        unique_name = self.aws_context.unique_name
        state, logs = unique_name(args.name("state")), unique_name(args.name("state-logs"))
        self.logs = Bucket(
            *self.part("logs"),
            component="state-logs",
            physical_name=logs,
            days=args.log_retention_days,
            access_logs_of=[state],
        )
        self.bucket = Bucket(
            *self.part("bucket"),
            component="state",
            physical_name=state,
            under_key=True,
            access_logs_to=self.logs,
        ).bucket
        self.register_outputs({"bucket_name": self.bucket.bucket})

    def _key(self) -> aws.kms.Key:
        context = self.aws_context
        root = Output.format("arn:{0}:iam::{1}:root", context.partition, context.account)
        publish = ("kms:Decrypt", "kms:GenerateDataKey")
        topic = context.arn("sns", self.args.name("account"))
        publishers: dict[str, Any] = {
            "budgets.amazonaws.com": context.same_account,
            # To the key of a topic EventBridge tells neither its account nor its rule.
            "events.amazonaws.com": {
                "StringEquals": {"kms:EncryptionContext:aws:sns:topicArn": topic}
            },
        }
        return aws.kms.Key(
            *self.child("key", protect=True, retain_on_delete=True),
            description=f"State and secrets of {self.args.project}, and what its account reports",
            enable_key_rotation=True,
            deletion_window_in_days=30,
            policy=policy(
                {**allow(*KEY_USE, *KEY_MANAGEMENT, on="*"), "Principal": {"AWS": root}},
                *(trust(x, *publish, on="*", when=publishers[x]) for x in publishers),
            ),
        )


class Access(Component):
    """GitHub's identity provider, and for each environment what its workflows may do.

    A boundary of the stack's roles, and the roles `plan`, of pull requests, `drift`, of the main
    branch by night, and `deploy`, of the environment with its reviewers. Costs nothing. The
    provider stays when the rest is deleted: other projects may use it.
    """

    def __init__(self, name: str, args: BootstrapArgs, state: State, opts: Options = None):
        super().__init__(name, args, state.key, opts, "access")
        self.settings, self.state_key = args, state.key.arn
        self.here = {
            "partition": aws.get_partition().partition,
            "region": aws.get_region().region,
            "account": aws.get_caller_identity().account_id,
        }
        self.provider_arn: Any = self._arn(f"iam::{{account}}:oidc-provider/{GITHUB}")
        if args.github_provider:
            self.provider_arn = aws.iam.OpenIdConnectProvider(
                *self.child("github", retain_on_delete=True),
                url=f"https://{GITHUB}",
                client_id_lists=["sts.amazonaws.com"],
            ).arn
        #: Environment -> ARN of its boundary, and of its roles by name.
        self.arns = {each: self._environment(each) for each in args.environments}
        self.register_outputs({"provider_arn": self.provider_arn})

    def _arn(self, place: str) -> str:
        return f"arn:{self.here['partition']}:{place.format(**self.here)}"

    def _environment(self, environment: str) -> dict[str, Output[str]]:
        project, claims = self.args.project, f"environment:{environment}"
        stack = Stack(**self.here, project=project, environment=environment)
        bucket = f"{self.args.name('state')}-{self.here['account']}"
        state: Any = {"state_bucket": self._arn(f"s3:::{bucket}"), "state_key": STATE_KEY}
        boundary_name = f"{project}-{environment}-boundary"
        own = [f"iam::{{account}}:{each}" for each in
               (f"role/{project}-{environment}-*", f"oidc-provider/{GITHUB}")]  # fmt: skip
        limits: Any = {
            "boundary": self._arn(f"iam::{{account}}:policy/{boundary_name}"),
            "guarded": [self._arn(each) for each in own],
            "protected": tier_of(environment) == "prod",
        }
        (boundary,) = self._policies(boundary_name, boundary_statements(stack, **state))
        plan = plan_statements(stack, **state)
        drift = plan_statements(stack, **state, secrets=True)
        return {
            "boundary": boundary.arn,
            "plan": self._role(f"{project}-{environment}-plan", plan, "pull_request"),
            "drift": self._role(f"{project}-{environment}-drift", drift, "ref:refs/heads/main"),
            "deploy": self._role(
                f"{project}-{environment}-deploy",
                deploy_statements(stack, **state, **limits),
                claims,
                DEPLOY_SECONDS,
            ),
        }

    def _policies(self, name: str, statements: list[Statement]) -> list[aws.iam.Policy]:
        """The statements as managed policies: so many that each is small enough."""
        texts = [json.dumps(each, separators=(",", ":")) for each in documents(statements)]

        def with_key(text: str) -> Output[str]:
            return Output.from_input(self.state_key).apply(lambda arn: text.replace(STATE_KEY, arn))

        return [
            aws.iam.Policy(
                *self.child(f"{name}-{number}"),
                name=name if len(texts) == 1 else f"{name}-{number}",
                policy=with_key(text),
            )
            for number, text in enumerate(texts)
        ]

    def _role(
        self, name: str, statements: list[Statement], claim: str, seconds: int = SESSION_SECONDS
    ) -> Output[str]:
        """ARN of a role that workflows assume whose token has this claim, and its policies."""
        token = {
            "Effect": "Allow",
            "Action": ["sts:AssumeRoleWithWebIdentity"],
            "Principal": {"Federated": self.provider_arn},
            "Condition": {
                "StringEquals": {
                    f"{GITHUB}:aud": "sts.amazonaws.com",
                    f"{GITHUB}:sub": self.settings.subject(claim),
                }
            },
        }
        role = aws.iam.Role(
            *self.child(name),
            name=name,
            description=f"Workflows of {self.settings.repository}: {claim}",
            assume_role_policy=policy(token),
            max_session_duration=seconds,
        )
        for number, each in enumerate(self._policies(name, statements)):
            aws.iam.RolePolicyAttachment(
                *self.child(f"{name}-{number}-attached"), role=role.name, policy_arn=each.arn
            )
        return role.arn


class Emergency(Component):
    """Who helps when no workflow can: an administrator with a second factor, for an hour, heard.

    Each use of the role notifies `alarm_emails`, if a trail of CloudTrail logs what is done in the
    account, and so does the budget of the whole account. Costs nothing.
    """

    def __init__(self, name: str, args: BootstrapArgs, state: State, opts: Options = None):
        super().__init__(name, args, state.key, opts, "emergency")
        self.topic = aws.sns.Topic(
            *self.child("topic"), name=args.name("account"), kms_master_key_id=self.key.arn
        )
        self.topic_policy = self._topic_policy()
        for address in args.alarm_emails:
            aws.sns.TopicSubscription(
                *self.child(f"email-{address}"),
                topic=self.topic.arn, protocol="email", endpoint=address,
            )  # fmt: skip
        self.role = self._role()
        self.rule = self._rule()
        self.budget = self._budget()
        self.register_outputs({"role_arn": self.role.arn})

    def _topic_policy(self) -> aws.sns.TopicPolicy:
        topic, context = self.topic.arn, self.aws_context
        document = policy(
            trust("budgets.amazonaws.com", "sns:Publish", on=topic, when=context.same_account),
            # EventBridge meets no condition in the policy of a topic.
            trust("events.amazonaws.com", "sns:Publish", on=topic),
            tls_only("sns:Publish", topic),
        )
        return aws.sns.TopicPolicy(*self.child("topic-policy"), arn=topic, policy=document)

    def _role(self) -> aws.iam.Role:
        context = self.aws_context
        people = {
            "Effect": "Allow",
            "Action": ["sts:AssumeRole"],
            "Principal": {
                "AWS": Output.format("arn:{0}:iam::{1}:root", context.partition, context.account)
            },
            "Condition": {
                "Bool": {"aws:MultiFactorAuthPresent": "true"},
                "NumericLessThan": {"aws:MultiFactorAuthAge": str(SESSION_SECONDS)},
                # CloudTrail tells of it in the region that is asked, and the rule is in one.
                "StringEquals": {"aws:RequestedRegion": context.region},
            },
        }
        role = aws.iam.Role(
            *self.child("role"),
            name=self.args.name("emergency"),
            description="Break glass: whoever assumes this notifies everybody",
            assume_role_policy=policy(people),
            max_session_duration=SESSION_SECONDS,
        )
        aws.iam.RolePolicyAttachment(
            *self.child("role-administrator"),
            role=role.name,
            # All of it: nobody knows what an emergency needs.
            policy_arn=Output.format(
                "arn:{0}:iam::aws:policy/AdministratorAccess", context.partition
            ),
        )
        return role

    def _rule(self) -> aws.cloudwatch.EventRule:
        detail = {"eventName": ["AssumeRole"], "requestParameters": {"roleArn": [self.role.arn]}}
        pattern = {"source": ["aws.sts"], "detail-type": [API_CALL], "detail": detail}
        rule = aws.cloudwatch.EventRule(
            *self.child("used"),
            name=self.args.name("emergency"),
            description="Somebody assumes the emergency role",
            event_pattern=Output.json_dumps(pattern),
            # AssumeRole counts as a read, which other states leave out.
            state="ENABLED_WITH_ALL_CLOUDTRAIL_MANAGEMENT_EVENTS",
        )
        aws.cloudwatch.EventTarget(
            *self.child("used-target", self.topic_policy),
            rule=rule.name, target_id="notify", arn=self.topic.arn,
        )  # fmt: skip
        return rule

    def _budget(self) -> aws.budgets.Budget:
        return aws.budgets.Budget(
            *self.child("budget", self.topic_policy),
            name=self.args.name("account"),
            budget_type="COST",
            limit_amount=f"{self.args.budget_usd}.0",
            limit_unit="USD",
            time_unit="MONTHLY",
            notifications=[
                {
                    "comparison_operator": "GREATER_THAN",
                    "notification_type": kind,
                    "threshold": percent,
                    "threshold_type": "PERCENTAGE",
                    "subscriber_sns_topic_arns": [self.topic.arn],
                }
                for kind, percent in (("ACTUAL", 80), ("FORECASTED", 100))
            ],
        )


def main() -> None:
    """The program."""
    args = BootstrapArgs.load()
    state = State("state", args)
    access = Access("access", args, state)
    emergency = Emergency("emergency", args, state)
    region = access.here["region"]
    pulumi.export("state_url", Output.concat("s3://", state.bucket.bucket, f"?region={region}"))
    pulumi.export(
        "secrets_provider", Output.concat("awskms://", state.alias.name, f"?region={region}")
    )
    pulumi.export("environments", access.arns)
    pulumi.export("emergency_role_arn", emergency.role.arn)


if __name__ == "__main__":
    main()
