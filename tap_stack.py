"""tap-stack: a production AWS platform in one Pulumi program.

This file is what `pulumi up` runs and what `python -m taplocal up` deploys on a laptop. It holds
the settings, all AWS resources and the code of all Lambda functions, but for two libraries beside
it: content_types.py and http_connection.py. Importing it has no side effects.

    people, machines --> Identity (Cognito): access tokens with scopes
            |
            v
    HTTP API (JWT, CORS, throttling, access log) --> api function (alias `live`) --> items table
            |                                              |
            | forms for uploads                            +--> paging key (SSM) <-- rotation
            v                                              +--> files table
    files bucket --> files function (content type) --> files table: versions, newest, totals

    internet --> load balancer --> web instances --> PostgreSQL <-- nightly snapshots
                 (public)          (private)         (isolated)     bastion: a way in for people

    Releases: an alias moves to a new version after a smoke test and a watched share, or goes back
    Monitoring: alarms --> Alerts (encrypted topic, budget); dashboard
    Encryption: a customer-managed key for what is stored, another for the topic of pages

Read it in this order: Settings; the parts that all systems share, from Components to Fleets; then
one system after the other, each from its data and handler to its resources; Monitoring of them all;
TapStack, which composes them; last Transport and Tracing, which functions use. The banners below
are the table of contents, and their words name the groups of settings, test files and headings of
`docs/`.
"""

from __future__ import annotations

import ast
import base64
import binascii
import builtins
import contextlib
import difflib
import functools
import graphlib
import hashlib
import hmac
import ipaddress
import itertools
import json
import os
import re
import socket
import ssl
import symtable
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation, Subnormal
from json.encoder import encode_basestring
from math import ceil, exp, lgamma
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar
from urllib.parse import quote, unquote_plus, urlencode

import pulumi
import pulumi_aws as aws
from pulumi import Input, Output, ResourceOptions
from pulumi.runtime import config as pulumi_config

from content_types import SIGNATURES, Start, content_type_of, dimensions, signatures, table_text
from http_connection import Connection, within

# === Settings =====================================================================================

SYSTEMS = ("api", "files", "web")
TIERS = ("dev", "staging", "prod")
ENVIRONMENT = rf"(?=.{{1,16}}$)({'|'.join(TIERS)})(-[a-z0-9]+)*"
NO_COGNITO = "(?!.*(aws|amazon|cognito))"  # of a name that is part of a Cognito domain
HTTP_API_SECONDS = 29  # an HTTP API integration ends at 30 s
DATABASE_VERSIONS = ("17", "18")
#: What web instances and their agents call.
INSTANCE_SERVICES = {*"autoscaling ec2 logs monitoring secretsmanager ssm ssmmessages".split()}
MACHINE_CLIENTS = 48  # an authorizer accepts 50 audiences: those of people and synthetics, too
LOCAL_APP, LOCAL_CALLBACK = ("http://localhost:3000",), ("http://localhost:3000/callback",)
EMAIL = r"[^@\s]+@[^@\s]+\.[^@\s]+"
RESERVED_TAGS = ("Component", "CreatedBy", "Environment", "Project")
STANDARD_TAGS = ("CostCenter", "ManagedBy", "Owner")  # which `tags` may replace
MOST_TAGS = 43  # AWS allows 50, and a resource has up to seven of the stack's own
TAG = r"[\w .:/=+\-@]"  # what IAM, DynamoDB and Lambda all accept in a tag
# What CloudWatch Logs accepts (PutRetentionPolicy).
RETENTION_DAYS = (
    1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922,
    3288, 3653,
)  # fmt: skip

#: A test of a value, and what the value must be in the words of an error.
Rule = tuple[Callable[[Any], bool], str]


class SettingsError(pulumi.RunError, ValueError):
    """All errors in the settings, a line each; Pulumi prints it without a stack trace."""

    def __str__(self) -> str:
        return "\n".join(("the settings are wrong:", *(f"  - {error}" for error in self.args)))


class PerTier(NamedTuple):
    """A default that differs between the tiers."""

    dev: Any
    staging: Any
    prod: Any


def text_like(pattern: str, expectation: str) -> Rule:
    """A text that matches as a whole."""
    return (lambda text: re.fullmatch(pattern, text) is not None, expectation)


def texts_like(pattern: str, expectation: str) -> Rule:
    """A list of texts that each match as a whole."""
    return (lambda texts: all(re.fullmatch(pattern, text) for text in texts), expectation)


def between(low: int, high: int, why: str = "") -> Rule:
    """A number in a range, both ends included."""
    return (lambda number: low <= number <= high, f"{low} to {high}{why}")


def one_of(*values: Any) -> Rule:
    """One of a few values."""
    return (lambda value: value in values, f"one of {', '.join(map(str, values))}")


def redirects(least: int) -> Rule:
    """URLs that Cognito may redirect to; an app on a person's machine has localhost (RFC 8252)."""
    url = r"(?=.{1,1024}$)(https://[^\s/#]+|http://localhost(:\d{1,5})?)(/[^\s#]*)?"
    words = "https or http on localhost, without a fragment, of up to 1,024 characters"
    are_urls, _ = texts_like(url, words)
    expectation = f"a list of {least} to 100 URLs, {words}"
    return (lambda urls: least <= len(urls) <= 100 and are_urls(urls), expectation)


def valid_tags(tags: Mapping[str, str]) -> bool:
    """Whether all AWS services accept these tags, and no permission rests on them."""
    key = rf"(?!(?i:aws:|({'|'.join(RESERVED_TAGS)})$)){TAG}{{1,128}}"
    value, keys = f"{TAG}{{0,256}}", {*STANDARD_TAGS, *tags}
    distinct = len({each.casefold() for each in keys}) == len(keys)  # as IAM compares them
    sound = (re.fullmatch(key, k) and re.fullmatch(value, v) for k, v in tags.items())
    return distinct and len(tags) <= MOST_TAGS and all(sound)


ANYTHING: Rule = (lambda _: True, "anything")
A_CERTIFICATE = r"arn:aws[a-z-]*:acm:\S+", "the ARN of an ACM certificate"
DOMAIN_NAME = r"(?=.{0,253}$)(([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,})?"
A_DOMAIN_NAME = text_like(DOMAIN_NAME, "a domain name such as app.example.com, or empty")
A_PERCENTAGE: Rule = (lambda v: v == 0 or 95 <= v <= 99.99, "95 to 99.99, or 0 for none")
A_TABLE_NAME = r"[A-Za-z0-9_.-]{3,255}", "3 to 255 letters, digits and _.-"
A_TAG_VALUE = text_like(f"{TAG}{{1,256}}", "1 to 256 letters, digits, spaces and _.:/=+-@")


def setting(default: Any, rule: Rule = ANYTHING) -> Any:
    """A field of TapStackArgs: its default (one, or one per tier), and its rule. Its meaning stands
    below it, where editors and `make docs` find it; `{names}` in it are of `cost/prices.py`."""
    return field(default=None, metadata={"default": default, "rule": rule})


def optional(pattern: str, expectation: str) -> Any:
    """A field that is empty by default, or else a text that matches as a whole."""
    return setting("", text_like(f"({pattern})?", f"{expectation}, or empty"))


@dataclass(frozen=True, kw_only=True)
class TapStackArgs:
    """Everything that can be chosen about a stack, validated before any resource exists.
    `TapStackArgs(environment_suffix="prod")` has production's defaults, and None stands for the
    default of any field; `TapStackArgs.load()` reads the same names from the Pulumi configuration.
    Raises SettingsError with all errors at once."""

    # TapStack
    environment_suffix: str = setting(
        "dev",
        text_like(
            NO_COGNITO + ENVIRONMENT,
            "dev, staging or prod, or one of them with a name behind it (dev-jane), up to 16 long, "
            "without aws, amazon and cognito",
        ),
    )
    """`dev`, `staging` or `prod`, or one of them with a name behind it, as in `dev-jane`, which has
    the defaults of its tier. In the Pulumi configuration: the stack's name by default."""
    systems: Sequence[str] = setting(
        SYSTEMS, (lambda v: v and set(v) <= set(SYSTEMS), f"a list of some of {', '.join(SYSTEMS)}")
    )
    """The systems of the stack: some of `api`, `files`, `web`."""
    tags: Mapping[str, str] = setting(
        {},
        (
            valid_tags,
            f"up to {MOST_TAGS} tags as AWS accepts them: keys of 1 to 128 letters, digits, spaces "
            "and _.:/=+-@, not starting with aws:, no two, the stack's too, alike but for case, "
            f"and values of up to 256; not {', '.join(RESERVED_TAGS)}, "
            "which permissions and the budget rest on",
        ),
    )
    """Tags added to all resources, as a JSON object; they win over the standard ones, but for those
    that permissions and the budget rest on."""
    project: str = setting(
        "tap-stack",
        text_like(
            NO_COGNITO + r"(?!(internal|sg)(-|$)|ssm|sthree|amzn|.*(--|-$))[a-z][a-z0-9-]{1,21}",
            "2 to 22 lower-case letters, digits and single hyphens, starting with a letter, not "
            "with amzn, internal-, sg-, ssm, sthree, without aws, amazon and cognito: AWS's own",
        ),
    )
    """First part of all names and the `Project` tag."""
    owner: str = setting("platform", A_TAG_VALUE)
    """The `Owner` tag: the team responsible for the stack."""
    cost_center: str = setting("engineering", A_TAG_VALUE)
    """The `CostCenter` tag."""
    deletion_protection: bool = setting(PerTier(False, False, True))
    """Have AWS itself refuse to delete tables, database, load balancer and user pool."""
    permissions_boundary: str = optional(
        r"arn:aws[a-z-]*:iam::(\d{12}|aws):policy/\S+", "a policy's ARN"
    )
    """ARN of the policy that bounds what roles of the stack may do; `bootstrap` makes it."""
    hosted_zone_id: str = optional(r"Z[A-Z0-9]{1,31}", "a hosted zone's id such as Z0123456789ABC")
    """Route 53 hosted zone of `domain_name` and `api_domain_name`, which gets their records.
    Without it they are yours to add, and a certificate waits for its own."""

    # Serverless API
    api_domain_name: str = setting("", A_DOMAIN_NAME)
    """Domain name of the API; empty for the address that API Gateway gives it. A certificate is
    requested for it, unless `api_certificate_arn` is given."""
    api_certificate_arn: str = optional(*A_CERTIFICATE)
    """ARN of a certificate of `api_domain_name`, in the stack's region."""
    api_default_endpoint: bool = setting(False)
    """Keep the address that API Gateway gives beside `api_domain_name`, until all have moved."""
    table_name: str = optional(*A_TABLE_NAME)
    """Name of the items table; empty for `<project>-items-<environment>`."""
    cors_origins: Sequence[str] = setting(
        PerTier(LOCAL_APP, (), ()),
        texts_like(
            r"\*|https?://[a-z0-9.-]+(:\d{1,5})?",
            "a list of origins such as https://app.example.com, without a path",
        ),
    )
    """Origins whose pages may call the API and upload; none turn CORS off. Never `*` in prod."""
    throttle_rate: int = setting(PerTier(50, 100, 500), between(1, 10_000, ", the account's limit"))
    """Requests per second that the API admits; more get 429."""
    throttle_burst: int = setting(PerTier(100, 200, 500), between(1, 5000, ", the account's limit"))
    """Requests at once that the API admits above the rate."""
    detailed_metrics: bool = setting(PerTier(False, True, True))
    """CloudWatch metrics of each route; six a route, {metric} a month each."""
    memory_mb: int = setting(512, between(128, 10_240))
    """Memory of the api function, 128 to 10240 MB; CPU grows with it, and so does the price."""
    timeout_seconds: int = setting(
        15, between(5, HTTP_API_SECONDS, ": the API ends a request at 30 s")
    )
    """Longest run of the api function, 5 to 29 s; the last second is for the response."""
    api_client: str = setting("signed", one_of("signed", "sdk"))
    """How functions call DynamoDB and SSM: `signed`, our client, or `sdk`: a slower start."""
    idempotency_hours: int = setting(24, between(1, 168))
    """How long an `Idempotency-Key` is remembered."""
    api_concurrency: int = setting(PerTier(0, 200, 500), between(0, 100_000))
    """Concurrency reserved for the api function, which it cannot exceed; 0 reserves nothing. An
    account keeps 100 for functions without."""
    concurrency_quota: int = setting(1_000, between(10, 1_000_000))
    """Concurrent executions that the account may have in the region, 10 in a new one: Lambda's
    quota, which this does not change. An alarm tells when 80 % are claimed."""
    provisioned_concurrency_min: int = setting(PerTier(0, 0, 2), between(0, 10_000))
    """Provisioned concurrency of the api function, its lower limit; 0 turns it off. {warm_512} a
    month for each environment, with 512 MB."""
    provisioned_concurrency_max: int = setting(PerTier(0, 0, 20), between(0, 10_000))
    """Upper limit of provisioned concurrency; scales at 70 % utilization."""
    synthetics: bool = setting(PerTier(False, True, True))
    """Walk through the API [every five minutes](operations.md#walks): {synthetics} a month."""

    # Identity
    callback_urls: Sequence[str] = setting(
        PerTier(LOCAL_CALLBACK, LOCAL_CALLBACK, ("https://app.example.com/callback",)),
        redirects(1),
    )
    """Where Cognito sends people who signed in; https, and outside prod http on localhost, too."""
    logout_urls: Sequence[str] = setting(PerTier(LOCAL_APP, LOCAL_APP, ()), redirects(0))
    """Where it sends people who signed out, with the same rules."""
    machine_clients: Mapping[str, Sequence[str]] = setting(
        {"default": ("*",)},
        (
            lambda clients: (
                len(clients) <= MACHINE_CLIENTS
                and all(re.fullmatch(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?", each) for each in clients)
            ),
            f"up to {MACHINE_CLIENTS} names of 1 to 32 lower-case letters, digits and hyphens, "
            "starting with a letter",
        ),
    )
    """Machines that may call the API, as a JSON object: name -> list of its scopes, or `["*"]` for
    all. Each has an app client, a secret and data of its own, for {machine_client} a month."""
    mfa: str = setting(PerTier("OPTIONAL", "OPTIONAL", "ON"), one_of("OFF", "OPTIONAL", "ON"))
    """Authenticator app as second factor: `OPTIONAL` leaves it to people; never `OFF` in prod."""
    email_from: str = optional(EMAIL, "an e-mail address")
    """Sender of Cognito's invitations and codes, by SES; empty for Cognito's own sender,
    no-reply@verificationemail.com, with 50 mails a day."""
    email_identity_arn: str = optional(
        r"arn:aws[a-z-]*:ses:[a-z0-9-]+:\d{12}:identity/\S+",
        "an ARN such as arn:aws:ses:eu-west-1:111122223333:identity/example.com",
    )
    """ARN of the SES identity of `email_from`; empty for its domain in this account and region."""
    threat_protection: bool = setting(False)
    """Cognito threat protection; needs the Plus tier, {cognito_plus} for each monthly user."""

    # Releases
    canary_percent: int = setting(PerTier(100, 10, 10), between(1, 100))
    """Share of the traffic that a new version of a function has while it is watched; 100 shifts all
    at once, unwatched: for one release only, set the variable `UNWATCHED_RELEASE=1`."""
    canary_minutes: int = setting(PerTier(1, 5, 5), between(1, 120))
    """How long the new version has its share at least, 5 minutes outside dev; then the release
    waits for the metrics of that time, which take one to four minutes."""
    canary_inconclusive: str = setting("promote", one_of("promote", "roll_back"))
    """What becomes of a version with too few requests to judge: `promote` or `roll_back`."""
    versions_kept: int = setting(5, between(2, 100))
    """How many of the newest versions of each function are not deleted."""

    # File pipeline
    files_bucket_name: str = optional(
        r"(?!xn--|sthree-|amzn-s3-demo-)(?!.*(--|-s3alias$))[a-z0-9][a-z0-9-]{1,61}[a-z0-9]",
        "3 to 63 lower-case letters, digits and single hyphens, none at an end",
    )
    """Name of the files bucket; empty for `<project>-files-<environment>-<account>`."""
    files_table_name: str = optional(*A_TABLE_NAME)
    """Name of the files table; empty for `<project>-files-<environment>`."""
    files_table_capacity: int = setting(100, between(6, 32_000, ", the quota with indexes"))
    """Read and write units of the files table; a file needs 6 write units. {unit_pair} a month for
    each pair, and {index_units} for its indexes, with which 32,000 are an account's 80,000."""
    files_table_scaling: int = setting(PerTier(1, 1, 4), between(1, 100))
    """How many times its capacity the files table and indexes may grow to. 1 turns scaling off, by
    `pulumi up --refresh`: otherwise the capacity of that moment stays."""
    files_concurrency: int = setting(PerTier(10, 10, 20), between(0, 100_000))
    """Concurrency reserved for the files function; events above it wait. 0 reserves nothing: then a
    burst takes all that the account has, and waits for the table until events are dead letters."""
    files_events: bool = setting(False)
    """Send [events](extending.md#a-consumer-of-files-events) of files; {file_event} a million."""
    files_malware_protection: bool = setting(False)
    """Have GuardDuty scan each file, and give out only [what it finds no threat
    in](operations.md#malware-protection); {scan_gb} a GB and {scan_files} a thousand files."""
    files_analytics: bool = setting(False)
    """Export the files table each night, for [SQL](operations.md#analytics): {export_gb} a GB and
    night, and {query_tb} a TB that queries read. A million files are some 2 GB."""
    noncurrent_days: int = setting(PerTier(7, 30, 90), between(1, 3_650))
    """Days after which replaced and deleted versions of objects expire; sooner where objects do."""
    upload_max_mb: int = setting(100, between(1, 5_000, ", what S3 accepts in one POST"))
    """Largest file that the API lets upload, in MB (1,000,000 bytes); it restores up to 500."""
    upload_types: Sequence[str] = setting(
        ("application/*", "audio/*", "font/*", "image/*", "text/*", "video/*"),
        texts_like(
            r"[a-z0-9.+-]+/(\*|[a-z0-9.+-]+)",
            "a list of content types such as image/png or image/*",
        ),
    )
    """Content types that the API lets upload, one by one or as `image/*`."""

    # Network
    vpc_cidr: str = setting(PerTier("10.0.0.0/16", "10.1.0.0/16", "10.2.0.0/16"))
    """CIDR block of the VPC, /16 to /23; each tier of each zone has a sixteenth of it. It is
    chosen once: RDS refuses to move a database to the VPC that another one would make."""
    disjoint_cidrs: Sequence[str] = setting(())
    """CIDR blocks of other networks, which the VPC must not overlap."""
    zones: int = setting(PerTier(2, 2, 3), one_of(2, 3))
    """Availability zones, 2 or 3; fewer when the database is in those that stay, as RDS wants."""
    zone_names: Sequence[str] = setting(
        (), texts_like(r"[a-z]+(-[a-z]+)+-\d[a-z]", "a list of zones such as eu-west-1a")
    )
    """Their names, chosen once; empty for the region's first. EC2 refuses subnets of others."""
    nat: str = setting(
        PerTier("instance", "single", "per_az"),
        one_of("per_az", "single", "instance", "instance_ha", "none"),
    )
    """How private instances reach the internet: `per_az` or `single` NAT gateway ({nat_gateway} a
    month each, and {nat_gb} a GB), `instance` or `instance_ha`, one in all or one per zone
    ({nat_instance} each), or `none`."""
    interface_endpoints: Sequence[str] = setting(
        (), texts_like(r"[a-z0-9.-]+", "a list of AWS services such as ssm or logs")
    )
    """Interface endpoints such as `ssm` or `logs`; {interface_endpoint} a month each per zone."""

    # Web tier
    plain_http: bool = setting(PerTier(True, False, False))
    """Serve the web environment without TLS; in dev only."""
    domain_name: str = setting(PerTier("", "staging.example.com", "app.example.com"), A_DOMAIN_NAME)
    """Domain name that a certificate is requested for, unless `certificate_arn` is given."""
    alternative_names: Sequence[str] = setting(
        (), texts_like(rf"(?!$){DOMAIN_NAME}", "a list of domain names such as www.example.com")
    )
    """Further domain names of the web environment, in its certificate and the hosted zone."""
    certificate_arn: str = optional(*A_CERTIFICATE)
    """ARN of the load balancer's certificate, in the stack's region."""
    waf: bool = setting(False)
    """Amazon's managed rules of AWS WAF before the load balancer; they refuse bodies above 8 KB,
    among others. {waf} a month, and {waf_million} a million requests."""
    instance_types: Sequence[str] = setting(
        ("t4g.small", "t4g.medium", "m7g.medium"),
        (
            lambda v: v and all(re.fullmatch(r"[a-z]+\d+g[a-z]*\.[a-z0-9]+", each) for each in v),
            "a list of Graviton types such as t4g.small",
        ),
    )
    """Instance types of the web tier, arm64, the first one preferred."""
    instances_min: int = setting(PerTier(1, 2, 3), between(1, 1_000))
    """Fewest web instances."""
    instances_max: int = setting(PerTier(2, 4, 12), between(1, 1_000))
    """Most web instances."""
    spot_percent: int = setting(PerTier(100, 50, 0), between(0, 100))
    """Share of Spot among web instances; {spot_discount} cheaper, ended at two minutes' notice."""

    # Fleets
    image_id: str = optional(r"ami-[0-9a-f]{8,17}", "an id such as ami-0123456789abcdef0")
    """AMI of all instances; empty for the Amazon Linux 2023 that was the latest at the first
    deployment. Another one replaces all instances."""

    # Database
    database_class: str = setting(
        PerTier("db.t4g.micro", "db.t4g.small", "db.m7g.large"),
        text_like(r"db\.[a-z0-9]+\.[a-z0-9]+", "a class such as db.t4g.small"),
    )
    """Instance class of the database."""
    database_version: str = setting("17", one_of(*DATABASE_VERSIONS))
    """Major version of PostgreSQL. It can be raised, after the steps of
    [operations](operations.md#upgrading-postgresql), and never lowered."""
    database_gb: int = setting(20, between(20, 13_000, ", a fifth of RDS's limit"))
    """Storage of the database, in GB; RDS grows it up to five times that, which must be more than
    is allocated. A larger value grows it too, a tenth at least. {database_gb} a GB and month."""
    database_multi_az: bool = setting(PerTier(False, True, True))
    """A standby in another zone, which takes over in a minute or two; doubles the price."""
    backup_days: int = setting(PerTier(7, 14, 30), between(1, 35))
    """Retention of automatic backups."""

    # Snapshots
    snapshot_days: int = setting(PerTier(7, 35, 35), between(1, 3_650))
    """Age at which the stack's own daily snapshots are deleted. A region keeps 100 in all."""
    snapshot_keep: int = setting(7, between(1, 90, ": a region keeps 100 in all"))
    """How many of the newest are never deleted, whatever their age."""

    # Bastion
    bastion_cidrs: Sequence[str] = setting(
        (),
        (
            lambda v: all(_is_cidr(each, shortest_prefix=8) for each in v),
            "a list of CIDR blocks such as 203.0.113.0/24, none wider than /8",
        ),
    )
    """CIDR blocks that may reach the bastion by SSH; if empty only Session Manager does."""
    bastion_hours: str = setting(
        PerTier("8-18", "", ""),
        text_like(
            r"((1?\d|2[0-3])-(?!\2$)(1?\d|2[0-3]))?",
            "two different hours such as 8-18 or 22-6, or empty for always",
        ),
    )
    """UTC hours of working days, `8-18` or `22-6`; empty, set while it runs, for always."""

    # Monitoring
    log_retention_days: int = setting(PerTier(14, 90, 365), one_of(*RETENTION_DAYS))
    """Retention of all log groups; {log_storage} a GB and month."""
    availability_objective: float = setting(PerTier(0, 99.9, 99.9), A_PERCENTAGE)
    """Percentage of the API's and the web application's requests, of 30 days, that do not fail; 0
    leaves it out. The burn-rate alarms of both objectives and systems cost {burn_rates} a month."""
    latency_objective: float = setting(PerTier(0, 99, 99), A_PERCENTAGE)
    """Percentage that takes `latency_ms` at most; 0 leaves it out."""
    latency_ms: int = setting(2_000, between(100, 29_000))
    """What is slow, in milliseconds: for the objective, for alarms, and for releases."""

    # Alerts
    alarm_emails: Sequence[str] = setting((), texts_like(EMAIL, "a list of e-mail addresses"))
    """Addresses that alarms and the budget notify; each must be confirmed once."""
    page_emails: Sequence[str] = setting((), texts_like(EMAIL, "a list of e-mail addresses"))
    """Addresses that pages go to; empty for `alarm_emails`."""
    budget_usd: int = setting(PerTier(300, 400, 850), between(1, 1_000_000))
    """Monthly budget; notifies at 80 % actual and 100 % forecast spend."""

    def __post_init__(self) -> None:
        tier = tier_of(str(self.environment_suffix or ""))
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None:
                value = each.metadata["default"]
                value = getattr(value, tier) if isinstance(value, PerTier) else value
            object.__setattr__(self, each.name, tuple(value) if isinstance(value, list) else value)
        if errors := _errors(self):
            raise SettingsError(*errors)

    @classmethod
    def load(cls) -> Self:
        """The settings in the stack's Pulumi configuration, under the names of the fields. Lists
        are JSON or separated by commas. Without `environment_suffix` the stack's name is the
        environment, if it is one. Raises SettingsError, also for a key that is no setting."""
        config, stack = pulumi.Config(), pulumi.get_stack()
        types = {each.name: str(each.type) for each in fields(cls)}
        if unknown := _configured_keys(config.name) - types.keys():
            raise SettingsError(*(_unknown_key(key, types) for key in sorted(unknown)))
        texts = {key: config.get(key) for key in types}
        values = {key: _parsed(types[key], x) for key, x in texts.items() if x is not None}
        if re.fullmatch(ENVIRONMENT, stack):
            values.setdefault("environment_suffix", stack)
        args = cls(**values)
        if args.tier == "prod" and args.canary_percent == 100:
            pulumi.log.warn(
                "canary_percent is 100: no release in prod is watched. Remove it with "
                f"`pulumi config rm canary_percent`; for one release there is {UNWATCHED}=1"
            )
        if args.environment_suffix != stack:
            pulumi.log.warn(
                f"the stack {stack} deploys the environment {args.environment_suffix}: "
                "set environment_suffix, or name the stack after its environment"
            )
        return args

    @property
    def tier(self) -> str:
        """`dev`, `staging` or `prod`: whose defaults this environment has."""
        return tier_of(self.environment_suffix)

    def name(self, component: str) -> str:
        """The physical name of a component: `<project>-<component>-<environment>`."""
        return f"{self.project}-{component}-{self.environment_suffix}"

    def all_tags(self) -> dict[str, str]:
        """The tags of all resources, but for `Component`, which its component adds."""
        return {
            "Project": self.project,
            "Environment": self.environment_suffix,
            "ManagedBy": "pulumi",
            "Owner": self.owner,
            "CostCenter": self.cost_center,
            **self.tags,
        }


def tier_of(environment: str) -> str:
    """The tier of an environment, `dev` for one that is none: `prod-eu` -> `prod`."""
    tier = environment.partition("-")[0]
    return tier if tier in TIERS else "dev"


#: Annotation of a field -> the rule of its type.
TYPES: dict[str, Rule] = {
    "str": (lambda v: isinstance(v, str), "text"),
    "int": (lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
    "float": (lambda v: isinstance(v, int | float) and not isinstance(v, bool), "a number"),
    "bool": (lambda v: isinstance(v, bool), "true or false"),
    "Sequence[str]": (
        lambda v: isinstance(v, tuple) and {*map(type, v)} <= {str} and len({*v}) == len(v),
        "a list of texts, each once",
    ),
    "Mapping[str, str]": (
        lambda v: isinstance(v, Mapping) and all(isinstance(x, str) for p in v.items() for x in p),
        "an object of texts",
    ),
    "Mapping[str, Sequence[str]]": (
        lambda v: (
            isinstance(v, Mapping)
            and all(isinstance(x, list | tuple) for x in v.values())
            and all(isinstance(x, str) for key, texts in v.items() for x in (key, *texts))
        ),
        "an object of lists of texts, each name once",
    ),
}

#: What prod promises, on top of the fields' own rules.
PROD_RULES: dict[str, Rule] = {
    "cors_origins": texts_like(r"https://[^*]+", "https origins without * in prod"),
    "callback_urls": texts_like(r"https://.+", "https URLs in prod"),
    "logout_urls": texts_like(r"https://.+", "https URLs in prod"),
    "mfa": (lambda v: v != "OFF", "ON or OPTIONAL in prod"),
    "deletion_protection": (lambda v: v is True, "true in prod"),
    "log_retention_days": (lambda v: v >= 90, "90 or more in prod"),
    "nat": (lambda v: v in ("per_az", "none"), "per_az or none in prod"),
    "database_multi_az": (lambda v: v is True, "true in prod"),
    "backup_days": (lambda v: v >= 7, "7 or more in prod"),
    "instances_min": (lambda v: v >= 2, "2 or more in prod"),
    "spot_percent": (lambda v: v <= 50, "50 or less in prod"),
}


def _configured_keys(project: str) -> set[str]:
    """The keys that the Pulumi configuration has in the project's own namespace."""
    configured = {**pulumi_config.get_config_env(), **pulumi_config.CONFIG.get()}
    names = (key.partition(":") for key in configured)
    return {key for namespace, _, key in names if namespace == project}


def _unknown_key(key: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {nearest[0]}?" if nearest else "docs/settings.md lists all settings"
    return f"there is no setting {key}: {hint}"


def _parsed(annotation: str, text: str) -> Any:
    """A configuration value in its type; what cannot be parsed stays text, and is an error."""
    if annotation == "str":
        return text
    try:
        return json.loads(text, object_pairs_hook=_once)
    except ValueError:
        is_list = annotation == "Sequence[str]" and not text.lstrip().startswith("[")
        return [each.strip() for each in text.split(",")] if is_list else text


def _once(pairs: list[tuple[str, Any]]) -> Json:
    """The object of these members; ValueError for a name that is there twice."""
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError
    return found


#: System -> its settings that hold domain names and addresses.
NAMES = {
    "api": ("api_domain_name", "callback_urls", "cors_origins", "email_from", "logout_urls"),
    "web": ("alternative_names", "domain_name"),
}


def reject_placeholders(args: TapStackArgs) -> None:
    """Raises SettingsError for names of nobody (RFC 2606), defaults among them, on AWS. A provider
    with `aws:endpoints`, which the local cloud sets, reaches another cloud."""
    names = ["alarm_emails", "page_emails"]
    names += [name for each in args.systems for name in NAMES.get(each, ())]
    values = {name: json.dumps(getattr(args, name)) for name in names}
    found = [
        f"{name} must be your own, not {value}: example.com is a placeholder"
        for name, value in values.items()
        if re.search(r"(?<![\w-])example\.(com|net|org)(?![\w.-])", value)
    ]
    if found and not pulumi.Config("aws").get("endpoints"):
        raise SettingsError(*found)


def _is_cidr(text: str, shortest_prefix: int = 0) -> bool:
    """Whether a text is an IPv4 CIDR block whose prefix has at least so many bits."""
    try:
        return ipaddress.IPv4Network(text).prefixlen >= shortest_prefix
    except ValueError:
        return False


def _errors(args: TapStackArgs) -> list[str]:
    """What is wrong with each field (its type, its own rule, prod's), then with their sum."""
    found = []
    in_prod = PROD_RULES if tier_of(str(args.environment_suffix)) == "prod" else {}
    for each in fields(args):
        value = getattr(args, each.name)
        rules = (TYPES[str(each.type)], each.metadata["rule"], in_prod.get(each.name, ANYTHING))
        broken = (expectation for holds, expectation in rules if not holds(value))
        if expectation := next(broken, None):
            written = json.dumps(value, ensure_ascii=False, default=str)
            found.append(f"{each.name} must be {expectation}, not {written}")
    typed = all(TYPES[str(each.type)][0](getattr(args, each.name)) for each in fields(args))
    return found + (_cross_field_errors(args) if typed else [])


def _cross_field_errors(args: TapStackArgs) -> list[str]:
    """What is wrong with fields that are right each by itself."""
    rules = {"api": _api_errors, "web": _web_errors}
    found = [error for each in rules if each in args.systems for error in rules[each](args)]
    if args.canary_minutes < 5 and args.canary_percent < 100 and args.tier != "dev":
        why = f"not {args.canary_minutes}: metrics of a minute arrive one to four minutes later"
        found.append(f"canary_minutes must be 5 or more in {args.tier}, {why}")
    return found


def _api_errors(args: TapStackArgs) -> Iterable[str]:
    reserved, burst = args.api_concurrency, args.throttle_burst
    if 0 < reserved < burst:
        why = "the API rejects excess requests with 429, and Lambda would with 503"
        pair = f"not {reserved} with a burst of {burst}"
        yield f"api_concurrency must be 0 or throttle_burst at least, {pair}: {why}"
    low, high = args.provisioned_concurrency_min, args.provisioned_concurrency_max
    if not (1 <= low <= high or low == high == 0):
        limits = "1 to provisioned_concurrency_max, or both must be 0"
        yield f"provisioned_concurrency_min must be {limits}, not {low} with a maximum of {high}"
    if 0 < reserved < high:
        pair = f"{high} is more than {reserved}"
        yield f"provisioned_concurrency_max must be api_concurrency or less, but {pair}"
    yield from _caller_errors(args)


def _caller_errors(args: TapStackArgs) -> Iterable[str]:
    """What is wrong with the API's name, the mail to its people, and its machines."""
    if args.api_certificate_arn and not args.api_domain_name:
        yield "api_domain_name must be given with an api_certificate_arn"
    if "web" in args.systems and args.api_domain_name == args.domain_name != "":
        why = "a name points to the API or to the load balancer"
        yield f"api_domain_name must not be domain_name, {args.domain_name}: {why}"
    if args.email_identity_arn and not args.email_from:
        yield "email_from must be given with an email_identity_arn"
    known = scopes_of(args.systems)
    for client, scopes in args.machine_clients.items():
        each_once = 0 < len(scopes) == len(set(scopes)) and set(scopes) <= set(known)
        if not (each_once or list(scopes) == ["*"]):
            expected = f"a list of some of {', '.join(known)}, each once, or *"
            yield f"machine_clients.{client} must be {expected}, not {json.dumps(scopes)}"


def _web_errors(args: TapStackArgs) -> Iterable[str]:
    try:
        plan_subnets(args.vpc_cidr, args.zones, args.disjoint_cidrs)
    except PlanError as error:
        yield str(error)
    if args.zone_names and len(args.zone_names) != args.zones:
        names = json.dumps(args.zone_names)
        yield f"zone_names must be {args.zones} different ones, as zones says, not {names}"
    if args.plain_http and args.tier != "dev":
        yield f"plain_http must be false in {args.tier}: only dev may do without TLS"
    if not (args.plain_http or args.domain_name or args.certificate_arn):
        yield "domain_name or certificate_arn must be given, unless plain_http is true"
    if args.instances_min > args.instances_max:
        pair = f"{args.instances_min} is more than instances_max, {args.instances_max}"
        yield f"instances_min must be instances_max or less, but {pair}"
    taken = {args.domain_name, args.api_domain_name or "-"} & {"", *args.alternative_names}
    if args.alternative_names and taken:
        yield "domain_name must be given with alternative_names, which lack it and api_domain_name"
    yield from _isolation_errors(args) if args.nat == "none" else ()
    if len(name := args.name("web")) > 32:
        length = f"{len(name)} characters, and the name of a load balancer 32 at most"
        yield f"project and environment_suffix are too long: {name} has {length}"


def _isolation_errors(args: TapStackArgs) -> Iterable[str]:
    """What instances without internet access lack."""
    if not args.image_id:
        yield "nat must not be none without an image_id: instances cannot install what they run"
    if missing := INSTANCE_SERVICES - {*args.interface_endpoints}:
        names = ", ".join(sorted(missing))
        yield f"interface_endpoints must have {names} with nat none: instances call them"


# === Types and policies ===========================================================================

T = TypeVar("T")
Options = ResourceOptions | None  # of a component, as its caller gives them
Handler = Callable[..., Any]  # a function that Lambda calls with an event and a context
Event = Mapping[str, Any]  # what Lambda hands to it
Response = dict[str, Any]  # what it returns to API Gateway: payload format 2.0
AttributeValue = dict[str, Any]  # DynamoDB's: {"S": "text"}, {"N": "1"}, ...
Item = dict[str, AttributeValue]  # of a table, by attribute name
Scope = tuple[str | None, ...]  # of a paging token: the list, its caller, its filters, its order
Json = dict[str, Any]  # a JSON object, as AWS's operations take and return them
Reader = Callable[[str, str], Any]  # a parameter's name and text -> its value, or Problem 400
Write = dict[str, Any]  # of a DynamoDB transaction
Statement = dict[str, Any]  # of a policy document
Condition = Mapping[str, Any] | None  # of a statement, if it has one
Variables = Mapping[str, Input[str]]  # of a function's environment
Dimensions = Mapping[str, Input[str]]  # of a CloudWatch metric


def allow(*actions: str, on: Any, when: Condition = None) -> Statement:
    """An IAM statement that allows the actions on one ARN or a list of them, under a condition."""
    return _statement("Allow", actions, on, when)


def actions_of(service: str, names: str) -> tuple[str, ...]:
    """Actions of a service, as IAM names them."""
    return tuple(f"{service}:{name}" for name in names.split())


def trust(service: Input[str], *actions: str, on: Any = None, when: Condition = None) -> Statement:
    """A statement of a resource or trust policy: the AWS service may do the actions."""
    return {**_statement("Allow", actions, on, when), "Principal": {"Service": service}}


def deny(*actions: str, on: Any, when: Condition) -> Statement:
    """A statement of a resource policy: nobody may do the actions under a condition."""
    return {**_statement("Deny", actions, on, when), "Principal": {"AWS": "*"}}


def tls_only(action: str, on: Any) -> Statement:
    """The statement that denies requests for an action, or a pattern of some, without TLS."""
    return deny(action, on=on, when={"Bool": {"aws:SecureTransport": "false"}})


def policy(*statements: Statement) -> Output[str]:
    """A policy document as JSON text; Outputs inside the statements are waited for."""
    return Output.json_dumps({"Version": "2012-10-17", "Statement": list(statements)})


def _statement(effect: str, actions: Sequence[str], on: Any, when: Condition) -> Statement:
    optional = {"Resource": on, "Condition": when}
    given = {key: value for key, value in optional.items() if value is not None}
    return {"Effect": effect, "Action": list(actions), **given}


# === Components ===================================================================================

#: What writes to an existing log group.
WRITE_LOGS = ("logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents")


def tagged(tags: Mapping[str, str]) -> ResourceOptions:
    """Options that tag all taggable descendants; tags nearer to the resource win."""

    def add(args: pulumi.ResourceTransformationArgs) -> pulumi.ResourceTransformationResult | None:
        if not isinstance(getattr(type(args.resource), "tags", None), property):
            return None
        own: Any = args.props.get("tags") or {}
        if args.type_ == "aws:autoscaling/group:Group":
            # Alone among all it has its tags as a list, and may propagate them.
            pairs = {**tags, **{each["key"]: each["value"] for each in own}}.items()
            merged: Any = [{"key": k, "value": v, "propagate_at_launch": False} for k, v in pairs]
        else:
            merged = {**tags, **own}
        return pulumi.ResourceTransformationResult({**args.props, "tags": merged}, args.opts)

    return ResourceOptions(transformations=[add])


class AwsContext:
    """The account, region and partition of the stack: what ARNs and conditions are made of."""

    def __init__(self) -> None:
        self.account = aws.get_caller_identity_output().account_id
        self.region = aws.get_region_output().region
        self.partition = aws.get_partition_output().partition
        #: The condition that an AWS service acts for this account (the confused deputy problem).
        self.same_account = {"StringEquals": {"aws:SourceAccount": self.account}}

    def acting_for(self, arns: Any, operator: str = "ArnLike") -> dict[str, Any]:
        """The condition that it acts for resources of these ARNs in this account."""
        return {**self.same_account, operator: {"aws:SourceArn": arns}}

    def arn(self, service: str, resource: Input[str]) -> Output[str]:
        """The ARN of a resource in this account and region."""
        parts = (self.partition, service, self.region, self.account, resource)
        return Output.format("arn:{0}:{1}:{2}:{3}:{4}", *parts)

    def unique_name(self, name: str) -> Output[str]:
        """A name that no other account has: buckets of all accounts share one namespace."""
        return Output.concat(name, "-", self.account)


class Key(NamedTuple):
    """What components encrypt under; fleets also need the role that starts such instances."""

    arn: Input[str]
    scaling_role_arn: Input[str] = ""


class Component(pulumi.ComponentResource):
    """Base of all parts: typed by its class name, tagged, the parent of its resources. `component`
    is the `Component` tag and part of physical names, `key` what its data is under, if any."""

    def __init__(
        self, name: str, args: TapStackArgs, key: Key | None, opts: Options, component: str
    ):
        options = ResourceOptions.merge(tagged({**args.all_tags(), "Component": component}), opts)
        super().__init__(f"tap:stack:{type(self).__name__}", name, None, options)
        self.name, self.args, self.component = name, args, component
        self.key, self.parented = key or Key(""), ResourceOptions(parent=self)

    @functools.cached_property
    def aws_context(self) -> AwsContext:
        """The account, region and partition."""
        return AwsContext()

    def child(self, key: str, *after: pulumi.Resource, **own: Any) -> tuple[str, ResourceOptions]:
        """Logical name and options of a resource of this component, created after others. What
        holds data passes `protect=True`: Pulumi refuses to replace or to delete it."""
        return f"{self.name}-{key}", self.after(*after, **own)

    def part(self, key: str) -> tuple[str, TapStackArgs, Key, ResourceOptions]:
        """What a component within this one begins with: logical name, settings, key, options."""
        return f"{self.name}-{key}", self.args, self.key, self.parented

    def after(self, *resources: pulumi.Resource, **options: Any) -> ResourceOptions:
        """Options of a child that is created after other resources."""
        return ResourceOptions(parent=self, depends_on=resources, **options)

    def alarms(self) -> list[Alarm]:
        """Rows of the alarm table, for Monitoring."""
        return []

    def objectives(self) -> list[Objective]:
        """Service level objectives, for Monitoring."""
        return []

    def graphs(self) -> list[Graph]:
        """Graphs of the dashboard, for Monitoring."""
        return []

    def log_group(self, key: str, name: str) -> aws.cloudwatch.LogGroup:
        """An encrypted log group with the stack's retention; `key` is part of its logical name. In
        prod it outlives its resource."""
        kept: Any = {"retention_in_days": self.args.log_retention_days, "kms_key_id": self.key.arn}
        options = self.child(key, retain_on_delete=self.args.tier == "prod")
        return aws.cloudwatch.LogGroup(*options, name=name, **kept)

    def certificate(self, *domain_names: str) -> Output[str]:
        """ARN of a certificate that ACM has issued; waits up to 20 minutes for its DNS records. The
        records are in the stack's hosted zone or, without one, yours to add. Costs nothing."""
        made = aws.acm.Certificate(
            *self.child("certificate"),
            domain_name=domain_names[0],
            subject_alternative_names=domain_names[1:] or None,
            validation_method="DNS",
        )
        for domain_name in domain_names if self.args.hosted_zone_id else ():
            options = made.domain_validation_options  # which are in no order
            proof = options.apply(lambda found: {x.domain_name: x for x in found})[domain_name]
            aws.route53.Record(
                *self.child(f"certificate-record-{domain_name}"),
                zone_id=self.args.hosted_zone_id,
                name=proof.resource_record_name,
                type=proof.resource_record_type,
                records=[proof.resource_record_value],
                ttl=300,
                allow_overwrite=True,  # ACM wants one for all certificates of a name
            )
        wait = pulumi.CustomTimeouts(create="20m")
        return aws.acm.CertificateValidation(
            *self.child("certificate-validation", custom_timeouts=wait), certificate_arn=made.arn
        ).certificate_arn

    def point(self, domain_name: str, *kinds: str, target: Input[str], zone_id: Input[str]) -> None:
        """Records of these kinds, from a name in the stack's hosted zone, if any, to AWS."""
        for kind in kinds if self.args.hosted_zone_id and domain_name else ():
            aws.route53.Record(
                *self.child(f"{kind.lower()}-record-{domain_name}"),
                zone_id=self.args.hosted_zone_id,
                name=domain_name,
                type=kind,
                aliases=[{"name": target, "zone_id": zone_id, "evaluate_target_health": False}],
            )

    def key_use(self, service: str, *actions: str) -> Statement:
        """The statement that a role may use the stack's key, through one AWS service alone."""
        via = Output.format("{0}.{1}.amazonaws.com", service, self.aws_context.region)
        when = {"StringEquals": {"kms:ViaService": via}}
        return allow(*(f"kms:{each}" for each in actions), on=self.key.arn, when=when)

    def service_role(
        self,
        key: str,
        description: str,
        service: str,
        *statements: Statement,
        when: Condition = None,
        named: str = "",
    ) -> tuple[aws.iam.Role, aws.iam.RolePolicy]:
        """A role that an AWS service assumes, under a condition, and its one inline policy. `key`
        is part of the logical names; `guard-role` is `<component>-guard`, unless it is `named`."""
        role_name = self.args.name(named or f"{self.component}-{key}".removesuffix("-role"))
        role = aws.iam.Role(
            *self.child(key),
            name=role_name,
            description=description,
            assume_role_policy=policy(trust(service, "sts:AssumeRole", when=when)),
            permissions_boundary=self.args.permissions_boundary or None,
        )
        options, document = self.child(f"{key}-policy"), policy(*statements)
        return role, aws.iam.RolePolicy(*options, name=role_name, role=role.name, policy=document)

    def target_tracking(
        self,
        key: str,
        resource_id: Input[str],
        dimension: str,
        metric: str,
        limits: tuple[int, int],
        target: float,
        *after: pulumi.Resource,
    ) -> aws.appautoscaling.Policy:
        """Scales a dimension of a resource within limits, to keep a predefined metric at a target:
        a percentage for DynamoDB, a share of 1 for Lambda. Its own alarms are free."""
        tracked: Any = {"predefined_metric_specification": {"predefined_metric_type": metric}}
        tracked["target_value"] = target
        scaled = aws.appautoscaling.Target(
            *self.child(f"{key}-range", *after),
            service_namespace=dimension.partition(":")[0],
            resource_id=resource_id,
            scalable_dimension=dimension,
            min_capacity=limits[0],
            max_capacity=limits[1],
        )
        return aws.appautoscaling.Policy(
            *self.child(f"{key}-scaling", *after),
            name=self.args.name(f"{self.component}-{key}"),
            policy_type="TargetTrackingScaling",
            service_namespace=scaled.service_namespace,
            resource_id=scaled.resource_id,
            scalable_dimension=scaled.scalable_dimension,
            target_tracking_scaling_policy_configuration=tracked,
        )

    def scheduled(
        self, name: str, target: Json, *allowed: Statement, **more: Any
    ) -> aws.scheduler.Schedule:
        """A schedule with a role for its target; the scheduler retries a failed start an hour."""
        role, permissions = self.service_role(
            "schedule-role",
            f"Lets the scheduler start {name}",
            "scheduler.amazonaws.com",
            *allowed,
            self.key_use("scheduler", "Decrypt"),
            when=self.aws_context.same_account,
        )
        again = {"maximum_retry_attempts": 10, "maximum_event_age_in_seconds": 3600}
        started: Any = {**target, "role_arn": role.arn, "retry_policy": again}
        return aws.scheduler.Schedule(
            *self.child("schedule", permissions),
            name=name,
            flexible_time_window={"mode": "OFF"},
            kms_key_arn=self.key.arn,
            target=started,
            **more,
        )


# === Encryption ===================================================================================

KEY_USE = actions_of(
    "kms",
    "Decrypt Encrypt GenerateDataKey GenerateDataKeyWithoutPlaintext ReEncryptFrom ReEncryptTo",
)
KEY_MANAGEMENT = actions_of(
    "kms",
    "CancelKeyDeletion CreateAlias CreateGrant DeleteAlias DescribeKey DisableKey "
    "DisableKeyRotation EnableKey EnableKeyRotation GetKeyPolicy GetKeyRotationStatus ListGrants "
    "ListKeyPolicies ListKeyRotations ListResourceTags PutKeyPolicy RevokeGrant RotateKeyOnDemand "
    "ScheduleKeyDeletion TagResource UntagResource UpdateAlias UpdateKeyDescription",
)
THIS_KEY = "*"  # in a key's own policy
#: The services that publish to an encrypted topic, and so need its key; to that of pages the first.
PUBLISHERS = ("cloudwatch.amazonaws.com", "budgets.amazonaws.com", "events.rds.amazonaws.com")


class Encryption(Component):
    """The customer-managed keys of a stack, rotated yearly, and their aliases: one of its data, and
    one of the topic of pages, which must arrive also when the other is disabled. Policies delegate
    to IAM, action by action; that of data lets logs, alarms and budgets of this account, and the
    databases' events, encrypt what they deliver. Costs keys, by the month, and their requests."""

    def __init__(self, name: str, args: TapStackArgs, opts: Options = None):
        super().__init__(name, args, None, opts, "encryption")
        #: Empty without the web tier, as is the ARN that other components get.
        self.scaling_roles = [self._scaling_role().arn] if "web" in args.systems else []
        made = self._key("All data", *self._uses(), protect=True)
        #: What the other components encrypt under.
        self.key = Key(made.arn, *self.scaling_roles)
        paging = self._publish(*PUBLISHERS[:1])
        #: What the topic of pages is under.
        self.pages_key = Key(self._key("Pages", *paging, name="pages", protect=False).arn)
        self.register_outputs({"key_arn": made.arn})

    def _scaling_role(self) -> aws.iam.ServiceLinkedRole:
        # A role of this stack: a key policy can name it before there is any Auto Scaling group.
        return aws.iam.ServiceLinkedRole(
            *self.child("scaling-role"),
            aws_service_name="autoscaling.amazonaws.com",
            custom_suffix=f"{self.args.project}-{self.args.environment_suffix}",
            description="Starts instances with volumes under the stack's key",
        )

    def _key(self, holds: str, *uses: Statement, name: str = "", protect: bool) -> aws.kms.Key:
        """A key for these uses, and its alias; one of data is protected."""
        args, context, dashed = self.args, self.aws_context, name and f"{name}-"
        root = Output.format("arn:{0}:iam::{1}:root", context.partition, context.account)
        manage = {**allow(*KEY_USE, *KEY_MANAGEMENT, on=THIS_KEY), "Principal": {"AWS": root}}
        kept = protect and args.tier != "dev"  # the last backups are under it
        made = aws.kms.Key(
            *self.child(f"{dashed}key", protect=protect, retain_on_delete=kept),
            description=f"{holds} of {args.project} in {args.environment_suffix}",
            enable_key_rotation=True,
            deletion_window_in_days=30 if args.deletion_protection else 7,
            policy=policy(manage, *uses),
        )
        known = args.name(name) if name else f"{args.project}-{args.environment_suffix}"
        options = self.child(f"{dashed}alias")
        aws.kms.Alias(*options, name=f"alias/{known}", target_key_id=made.key_id)
        return made

    def _uses(self) -> list[Statement]:
        """Who encrypts data with the key, beside roles of this account."""
        logs = Output.format("logs.{0}.amazonaws.com", self.aws_context.region)
        groups = {"kms:EncryptionContext:aws:logs:arn": self.aws_context.arn("logs", "log-group:*")}
        return [
            *(each for arn in self.scaling_roles for each in volume_statements(arn)),
            trust(logs, *KEY_USE, on=THIS_KEY, when={"ArnLike": groups}),
            *self._publish(*PUBLISHERS),
        ]

    def _publish(self, *services: str) -> list[Statement]:
        """These publish to an encrypted topic."""
        use, account = actions_of("kms", "Decrypt GenerateDataKey"), self.aws_context.same_account
        return [trust(service, *use, on=THIS_KEY, when=account) for service in services]


def volume_statements(scaling_role_arn: Input[str]) -> list[Statement]:
    """Auto Scaling creates instances with encrypted volumes, and grants their use to EC2."""
    scaling = {"AWS": scaling_role_arn}
    granted = {"Bool": {"kms:GrantIsForAWSResource": "true"}}
    return [
        {**allow(*KEY_USE, "kms:DescribeKey", on=THIS_KEY), "Principal": scaling},
        {**allow("kms:CreateGrant", on=THIS_KEY, when=granted), "Principal": scaling},
    ]


# === Alerts =======================================================================================

RUNBOOK = "docs/operations.md"  # has a section for each alarm key


@dataclass(frozen=True)
class Alarm:
    """A row of the alarm table: a metric above or below a threshold in M of N periods. Names are
    those of CloudWatch's PutMetricAlarm."""

    key: str  # names the alarm and, unless `runbook` does, its section of RUNBOOK
    metric: str  # "<namespace>/<name>"
    dimensions: Dimensions
    above: float | None = None
    below: float | None = None  # instead
    statistic: str = "Sum"  # or a percentile such as p95
    period: int = 60  # seconds
    datapoints: tuple[int, int] = (1, 1)  # datapoints to alarm, evaluation periods
    treat_missing_data: str = "notBreaching"  # or missing: silence notifies, but not at the start
    runbook: str = ""
    notifies: str = "ticket"  # or page: users feel it now; or nobody, as part of another alarm
    queries: Sequence[Json] = ()  # instead of the metric, those of `alarm_queries`


@dataclass(frozen=True)
class Objective:
    """A service level objective: how many percent of a system's requests of 30 days are good, 0 for
    none. Burn-rate alarms tell how fast its error budget, the bad ones that it allows, is used."""

    key: str  # names its alarms
    percentage: float
    metrics: Mapping[str, tuple[str, Dimensions, str]]  # id -> metric, dimensions, statistic
    bad: str  # an expression of these ids: the number of bad requests
    total: str = "requests"  # of all requests

    def alarm(self, rate: BurnRate, window: str) -> Alarm:
        """Whether the budget burns at this rate in the `long` or the `short` window."""
        least = LEAST_BAD if window == "long" else 1
        burning = f"IF(bad >= {least}, 100 * bad / total, 0)"
        of = {"bad": self.bad, "total": self.total, "burning": burning}
        queries = alarm_queries(getattr(rate, window), self.metrics, **of)
        above = round(rate.rate * (100 - self.percentage), 6)
        key, runbook = f"{self.key}-{rate.key}-{window}", f"{self.key.partition('-')[0]}-burn-rate"
        more: Any = {"queries": queries, "notifies": "nobody", "runbook": runbook}
        return Alarm(key, "Percentage of bad requests", {}, above, **more)


#: The expression of slow requests by `quick`, the percentage of those that are not.
SLOW = "(100 - quick) / 100 * requests"


class BurnRate(NamedTuple):
    """How many times faster than the objective allows a budget burns, in both of two windows."""

    key: str
    rate: float
    long: int  # seconds: how much of the budget is at stake
    short: int  # seconds: whether it still burns
    notifies: str


#: A page for 2 % of the budget in an hour or 5 % in six, a ticket for 10 % in three days (Google,
#: The Site Reliability Workbook, "Alerting on SLOs").
BURN_RATES = (
    BurnRate("fast-burn", 14.4, 3_600, 300, "page"),
    BurnRate("burn", 6, 21_600, 1_800, "page"),
    BurnRate("slow-burn", 1, 259_200, 21_600, "ticket"),
)
LEAST_BAD = 5  # requests in the long window: fewer wake nobody, as at low traffic one is 14.4 x


def alarm_queries(period: int, metrics: Mapping[str, Any], **expressions: str) -> list[Json]:
    """The queries of an alarm on the last of some expressions of metrics."""
    found: list[Json] = []
    for name, (path, of_resource, statistic) in metrics.items():
        namespace, _, metric = path.rpartition("/")
        of = {"namespace": namespace, "metric_name": metric, "dimensions": of_resource}
        found.append({"id": name, "metric": {**of, "period": period, "stat": statistic}})
    found += [{"id": name, "expression": text} for name, text in expressions.items()]
    found[-1] |= {"label": found[-1]["id"], "return_data": True}
    return found


@dataclass(frozen=True)
class Graph:
    """A graph of a dashboard: metrics as (namespace, name, dimensions, statistic)."""

    title: str
    metrics: Sequence[tuple[str, str, Dimensions, str]]
    overview: bool = False  # on the overview, too


def lines(namespace: str, dimensions: Dimensions, *metrics: str) -> list[Any]:
    """Metrics of a graph, each as a name and its statistic: `Latency p95`; alone it is a sum."""
    named = (each.partition(" ") for each in metrics)
    return [(namespace, name, dimensions, statistic or "Sum") for name, _, statistic in named]


def certificate_alarm(key: str, arn: Input[str]) -> list[Alarm]:
    """An alarm below 30 days to the end of a certificate, none without its ARN. ACM renews it 45
    days before or sooner, if its DNS records are there."""
    metric, of, day = "AWS/CertificateManager/DaysToExpiry", {"CertificateArn": arn}, 86_400
    row = Alarm(key, metric, of, below=30, statistic="Minimum", period=day)
    return [] if arn == "" else [row]  # an Output has no truth


class Alerts(Component):
    """The encrypted topics of alarms, one of those that page, their subscriptions, the budget.
    Pages are under `pages_key`, or else `key`. It costs next to nothing: e-mail is nearly free, and
    so are budgets without actions."""

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        key: Key,
        opts: Options = None,
        *,
        pages_key: Key | None = None,
    ):
        super().__init__(name, args, key, opts, "alerts")
        self.topic, self.topic_policy = self._topic("topic", "alerts", key, PUBLISHERS)
        self.pages, _ = self._topic("pages", "pages", pages_key or key, PUBLISHERS[:1])
        self.budget = self._budget()
        self.register_outputs({"topic_arn": self.topic.arn})

    def alarms(self) -> list[Alarm]:
        """That a topic cannot deliver, which the other one tells."""
        failed, of = "AWS/SNS/NumberOfNotificationsFailed", "TopicName"
        return [
            Alarm("alerts-undelivered", failed, {of: self.topic.name}, above=0, notifies="page"),
            Alarm("pages-undelivered", failed, {of: self.pages.name}, above=0),
        ]

    def _topic(
        self, key: str, name: str, under: Key, publishers: Sequence[str]
    ) -> tuple[aws.sns.Topic, aws.sns.TopicPolicy]:
        """A topic that these services publish to, and its subscriptions by e-mail."""
        args, kms, context = self.args, under.arn, self.aws_context
        made = aws.sns.Topic(*self.child(key), name=args.name(name), kms_master_key_id=kms)
        paged = key == "pages"
        for address in (paged and args.page_emails) or args.alarm_emails:
            options = self.child(f"{'page' if paged else 'email'}-{address}")
            of: Any = {"topic": made.arn, "protocol": "email", "endpoint": address}
            aws.sns.TopicSubscription(*options, **of)
        conditions = {
            "cloudwatch.amazonaws.com": context.acting_for(context.arn("cloudwatch", "alarm:*")),
            "budgets.amazonaws.com": context.same_account,
            "events.rds.amazonaws.com": context.acting_for(context.arn("rds", "db:*")),
        }
        publish = (trust(x, "sns:Publish", on=made.arn, when=conditions[x]) for x in publishers)
        document = policy(*publish, tls_only("sns:Publish", made.arn))
        options = self.child(f"{key}-policy")
        return made, aws.sns.TopicPolicy(*options, arn=made.arn, policy=document)

    def _budget(self) -> aws.budgets.Budget:
        above: Any = {"comparison_operator": "GREATER_THAN", "threshold_type": "PERCENTAGE"}
        above["subscriber_sns_topic_arns"] = [self.topic.arn]
        limits = (("ACTUAL", 80), ("FORECASTED", 100))
        tags = {"Project": self.args.project, "Environment": self.args.environment_suffix}
        warned: list[Any] = [{**above, "notification_type": x, "threshold": y} for x, y in limits]
        return aws.budgets.Budget(
            *self.child("budget", self.topic_policy),  # AWS tests the topic at its creation
            name=self.args.name("monthly"),
            budget_type="COST",
            limit_amount=f"{self.args.budget_usd}.0",  # as AWS returns it
            limit_unit="USD",
            time_unit="MONTHLY",
            # Counts what carries both tags, once they are activated as cost allocation tags.
            cost_filters=[{"name": "TagKeyValue", "values": [f"user:{x}${tags[x]}" for x in tags]}],
            notifications=warned,
        )


# === Functions ====================================================================================

#: Attempts two and three come after 1 and 2 minutes: an event that is older than this waits.
ASYNC_EVENT_AGE_MS = 600_000


@dataclass(frozen=True, kw_only=True)
class Code:
    """What a function runs, with what, and within which limits."""

    handler: Handler
    init: Callable[[], None] | None = None  # runs once in the init phase, when Lambda lends a core
    files: Mapping[str, str] = field(default_factory=dict)  # name -> text, beside index.py
    environment: Variables
    memory_mb: int = 256
    timeout_seconds: int


@dataclass(frozen=True, kw_only=True)
class Canary:
    """How a new version of a function is judged before it takes all traffic. It must answer the
    `probes` first: events that do no harm, each with the status of its response. Then it has a
    share of the traffic while these are sent again and the alarms of these keys are watched;
    without any, or where `canary_percent` is 100, it takes all at once. `failures` is the metric of
    the requests that it answered with an error instead of raising. They must be faster than
    `latency_bound_ms`, 80 % of the timeout by default."""

    probes: Sequence[tuple[Event, int | None]]
    alarms: Sequence[str] = ()
    failures: str = ""
    latency_bound_ms: int = 0


class Function(Component):
    """A Lambda function from a Python handler: role, log group, published versions, alias `live`.
    `statements` is all that it may do beyond logging, tracing and decrypting its environment. With
    `max_event_age_hours` it is invoked asynchronously: three attempts within so many hours, then
    the event and its error go to a queue, which keeps them for 14 days. `concurrency` is reserved
    for it and cannot be exceeded; 0 reserves nothing. Costs calls and GB-seconds (arm64)."""

    RUNTIME = "python3.13"

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        key: Key,
        opts: Options = None,
        *,
        component: str,
        code: Code,
        canary: Canary,
        statements: Sequence[Statement],
        max_event_age_hours: int = 0,
        concurrency: int = 0,
    ):
        super().__init__(name, args, key, opts, component)
        self.physical_name = args.name(component)
        self.concurrency, self.canary = concurrency, canary
        self.latency_bound_ms = canary.latency_bound_ms or 800 * code.timeout_seconds
        self.dead_letter_queue = self._dead_letter_queue() if max_event_age_hours else None
        self.logs = self.log_group("logs", f"/aws/lambda/{self.physical_name}")
        self.role, self.role_policy = self._role(statements)
        self.function = self._function(code)
        #: What callers invoke: the alias `live`, which a rollout moves from version to version.
        self.alias = self._alias()
        live = Output.concat(self.function.name, ":live")
        #: Dimensions of the metrics of calls through the alias; a smoke test is not one of them.
        self.alias_dimensions = {"FunctionName": self.function.name, "Resource": live}
        self.rollout = self._rollout()
        self.warm = False  # whether it has provisioned concurrency
        self.async_config = self._async_config(max_event_age_hours) if max_event_age_hours else None
        queue = self.dead_letter_queue
        #: URL of the dead-letter queue, empty where there is none.
        self.dead_letters_url: Input[str] = queue.url if queue else ""
        self.register_outputs({"function_name": self.function.name, "alias_arn": self.alias.arn})

    def _dead_letter_queue(self) -> aws.sqs.Queue:
        queue = aws.sqs.Queue(
            *self.child("dead-letters"),
            name=f"{self.physical_name}-dead-letters",
            kms_master_key_id=self.key.arn,
            message_retention_seconds=14 * 24 * 3600,
        )
        document = policy(tls_only("sqs:*", queue.arn))  # a Deny: of all actions
        options = self.child("dead-letters-policy")
        aws.sqs.QueuePolicy(*options, queue_url=queue.url, policy=document)
        return queue

    def _role(self, statements: Sequence[Statement]) -> tuple[aws.iam.Role, aws.iam.RolePolicy]:
        queue, streams = self.dead_letter_queue, Output.concat(self.logs.arn, ":*")
        own = self.aws_context.arn("lambda", f"function:{self.physical_name}")
        versions = [own, Output.concat(own, ":*")]
        own_variables = {"kms:EncryptionContext:aws:lambda:FunctionArn": versions}
        use = self.key_use("sqs", "Decrypt", "GenerateDataKey")
        letters = [allow("sqs:SendMessage", on=queue.arn), use] if queue else []
        return self.service_role(
            "role",
            f"What {self.physical_name} may do",
            "lambda.amazonaws.com",
            allow("logs:CreateLogStream", "logs:PutLogEvents", on=streams),
            # X-Ray has no resources to name.
            allow("xray:PutTelemetryRecords", "xray:PutTraceSegments", on="*"),
            allow("kms:Decrypt", on=self.key.arn, when={"StringLike": own_variables}),
            *statements,
            *letters,
        )

    def _function(self, code: Code) -> aws.lambda_.Function:
        files = {**code.files, "index.py": bundle(code.handler, code.init)}
        return aws.lambda_.Function(
            *self.child("function", self.role_policy),  # in force at the first call
            name=self.physical_name,
            description=(code.handler.__doc__ or "").split("\n")[0],
            runtime=self.RUNTIME,
            architectures=["arm64"],
            handler=f"index.{code.handler.__name__}",
            code=pulumi.AssetArchive({k: pulumi.StringAsset(v) for k, v in files.items()}),
            role=self.role.arn,
            memory_size=code.memory_mb,
            timeout=code.timeout_seconds,
            reserved_concurrent_executions=self.concurrency or None,
            publish=True,
            environment={"variables": {"API_CLIENT": self.args.api_client, **code.environment}},
            kms_key_arn=self.key.arn,
            tracing_config={"mode": "Active"},
            logging_config={
                "log_format": "JSON",
                "log_group": self.logs.name,
                "application_log_level": "INFO",
                # START and REPORT lines would triple the bill; the metrics say the same.
                "system_log_level": "WARN",
            },
        )

    def _alias(self) -> aws.lambda_.Alias:
        # Made at the first version; from there on the rollout moves it, and nothing else in it may
        # change: an update of this resource would write the version of its creation.
        moved = ["functionVersion", "routingConfig"]
        return aws.lambda_.Alias(
            *self.child("live", ignore_changes=moved),
            name="live",
            description="The version that takes the traffic",
            function_name=self.function.name,
            function_version=self.function.version,
        )

    def _rollout(self) -> Rollout:
        percent = self.args.canary_percent if self.canary.alarms else 100
        role, permissions = self._guard_role() if percent < 100 else (None, None)
        metric = {"namespace": self.args.project, "environment": self.args.environment_suffix}
        return Rollout(
            f"{self.name}-rollout",
            function=self.function.arn,
            alias=self.alias.name,
            version=self.function.version,
            probes=json.dumps(self.canary.probes),
            percent=percent,
            bake_seconds=self.args.canary_minutes * 60,
            alarms=[self.args.name(key) for key in self.canary.alarms],
            failures={**metric, "metric": self.canary.failures} if self.canary.failures else {},
            latency_bound_ms=self.latency_bound_ms,
            inconclusive=self.args.canary_inconclusive,
            guard_role=role.arn if role else "",
            versions_kept=self.args.versions_kept,
            # The policies of the new version, before it has any traffic.
            opts=self.after(self.role_policy, *filter(None, [permissions])),
        )

    def _guard_role(self) -> tuple[aws.iam.Role, aws.iam.RolePolicy]:
        return self.service_role(
            "guard-role",
            f"Lets the scheduler take back the traffic of a version of {self.physical_name}",
            "scheduler.amazonaws.com",
            allow("lambda:UpdateAlias", on=self.function.arn),
            when=self.aws_context.same_account,
        )

    def _async_config(self, max_event_age_hours: int) -> aws.lambda_.FunctionEventInvokeConfig:
        # A destination rather than a dead-letter queue: its message has the error as well.
        queue = self.dead_letter_queue
        return aws.lambda_.FunctionEventInvokeConfig(
            *self.child("retries"),
            function_name=self.function.name,
            qualifier=self.alias.name,
            maximum_retry_attempts=2,
            maximum_event_age_in_seconds=max_event_age_hours * 3600,
            destination_config={"on_failure": {"destination": queue.arn}} if queue else None,
        )

    def provisioned_concurrency(self, minimum: int, maximum: int) -> aws.appautoscaling.Policy:
        """Keeps environments of the live version warm, between two limits, at 70 % utilization.
        Costs GB-seconds for each environment, used or not. Lambda refuses to change their number
        while the alias has weights ("Alias with weights can not be used with Provisioned
        Concurrency"): the scaling policy tries again, and this waits for the rollout."""
        self.warm = True
        warm = aws.lambda_.ProvisionedConcurrencyConfig(
            *self.child("warm", self.rollout, ignore_changes=["provisionedConcurrentExecutions"]),
            function_name=self.function.name,
            qualifier=self.alias.name,
            provisioned_concurrent_executions=minimum,
            # Their number is the scaling policy's.
        )
        resource_id = Output.concat("function:", self.alias_dimensions["Resource"])
        dimension = "lambda:function:ProvisionedConcurrency"
        used, limits = "LambdaProvisionedConcurrencyUtilization", (minimum, maximum)
        return self.target_tracking("warm", resource_id, dimension, used, limits, 0.7, warm)

    def permit(
        self, made: tuple[str, ResourceOptions], statement_id: str, service: str, **of: Input[str]
    ) -> aws.lambda_.Permission:
        """Lets a service invoke the live version; `made` is the permission's name and options."""
        which: Any = {"function": self.function.name, "qualifier": self.alias.name, **of}
        which |= {"statement_id": statement_id, "principal": f"{service}.amazonaws.com"}
        return aws.lambda_.Permission(*made, action="lambda:InvokeFunction", **which)

    def schedule(self, expression: str, description: str) -> aws.scheduler.Schedule:
        """Invokes the function on a schedule, in UTC."""
        target, invoke = {"arn": self.alias.arn}, allow("lambda:InvokeFunction", on=self.alias.arn)
        more = {"description": description, "schedule_expression": expression}
        return self.scheduled(self.physical_name, target, invoke, **more)

    def alarms(self) -> list[Alarm]:
        """Errors, throttles and latency of the function, and its dead letters."""
        key, function = self.component, {"FunctionName": self.function.name}
        live, slow = self.alias_dimensions, self.latency_bound_ms
        # What runs once a day or less has one minute with a point.
        p95: Any = {"statistic": "p95", "datapoints": (2, 3) if self.canary.alarms else (1, 1)}
        rows = [
            Alarm(f"{key}-errors", "AWS/Lambda/Errors", live, above=0),
            Alarm(f"{key}-duration", "AWS/Lambda/Duration", live, above=slow, **p95),
        ]
        if self.warm:
            metric = "AWS/Lambda/ProvisionedConcurrencySpilloverInvocations"
            rows.append(Alarm(f"{key}-spillover", metric, live, above=0, datapoints=(5, 5)))
        # Asynchronous events wait for reserved concurrency: their throttles are meant.
        if not (self.concurrency and self.dead_letter_queue):
            rows.append(Alarm(f"{key}-throttles", "AWS/Lambda/Throttles", function, above=0))
        return rows + self._dead_letter_alarms(function)

    def _dead_letter_alarms(self, function: Dimensions) -> list[Alarm]:
        if not self.dead_letter_queue:
            return []
        key, queue = self.component, {"QueueName": self.dead_letter_queue.name}
        depth, age = "AWS/SQS/ApproximateNumberOfMessagesVisible", "AWS/Lambda/AsyncEventAge"
        lost, most = "AWS/Lambda/DestinationDeliveryFailures", "Maximum"
        dropped = "AWS/Lambda/AsyncEventsDropped"  # dead letters among them
        return [
            Alarm(f"{key}-dead-letters", depth, queue, above=0, statistic=most),
            Alarm(f"{key}-destination-failures", lost, function, above=0),
            Alarm(f"{key}-async-events-dropped", dropped, function, above=0),
            Alarm(f"{key}-async-event-age", age, function, ASYNC_EVENT_AGE_MS, statistic=most),
        ]

    def graphs(self) -> list[Graph]:
        """Calls, errors, throttles and duration of the function."""
        metrics = ("Invocations", "Errors", "Throttles", "Duration p95")
        function = {"FunctionName": self.function.name}
        return [Graph(f"Function {self.physical_name}", lines("AWS/Lambda", function, *metrics))]


def metrics_environment(args: TapStackArgs) -> Variables:
    """The environment variables that `metric_line` needs."""
    return {"ENVIRONMENT": args.environment_suffix, "METRICS_NAMESPACE": args.project}


# === Handlers =====================================================================================
# What all handlers use. bundle() ships to each function the definitions that its handler reaches,
# and nothing else. What they import at the top of the file costs cold start in every function that
# uses it, so the SDK is imported when its client is made, in the init phase.

ATTEMPTS, CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS = 3, 1, 3
RESERVE_SECONDS = 1  # of a function's time: to respond and to log
_clients: dict[str, Any] = {}
_clock = {"end": float("inf")}  # of this invocation's waiting, in time.monotonic()'s seconds


def start_clock(context: Any) -> None:
    """Notes until when this invocation may wait for others; each handler begins with it."""
    left = context.get_remaining_time_in_millis() / 1000
    _clock["end"] = time.monotonic() + left - RESERVE_SECONDS


def seconds_left() -> float:
    """How long this invocation may wait; 0 or less if it has to respond now."""
    return _clock["end"] - time.monotonic()


def client(name: str, once: bool = False) -> Any:
    """The container's SDK client of a service, as `sdk_client` makes it, with its calls traced."""
    key = f"{name} once" if once else name
    if key not in _clients:
        _clients[key] = traced(sdk_client(name, once))
    return _clients[key]


@functools.cache
def sdk_client(name: str, once: bool = False) -> Any:
    """The process's SDK client of a service, with bounded waits and retries: three attempts with
    jittered, exponential backoff (botocore's standard mode), each with 1 s to connect and 3 s for
    each read; or one, with all the time of a request. `within` bounds their sum."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1 if once else ATTEMPTS},
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=HTTP_API_SECONDS if once else READ_TIMEOUT_SECONDS,
    )
    return boto3.client(name, config=config)


def service(name: str) -> Any:
    """The container's one client of DynamoDB or SSM, which the setting `api_client` chooses."""
    if os.environ.get("API_CLIENT") == "sdk":
        return SdkService(client(name))
    if name not in _clients:
        _clients[name] = Service(name)
    return _clients[name]


def error_code(error: Exception) -> str:
    """AWS's code in an error of the SDK, empty in any other."""
    response: Any = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def format_error(error: BaseException) -> str:
    """An error as the logs have it."""
    return f"{type(error).__name__}: {error}"


def stack_of(error: BaseException) -> list[str]:
    """Where an error was raised, outermost first: each function of this code, with the line in it.
    A line of the bundle would be none of this file; `python -m taplocal logs` names those."""
    found, at = [], error.__traceback__
    while at:
        code = at.tb_frame.f_code
        own = code.co_filename == stack_of.__code__.co_filename
        line = at.tb_lineno - code.co_firstlineno if own else at.tb_lineno
        found.append(f"{code.co_qualname if own else code.co_filename}:{line}")
        at = at.tb_next
    return found[-50:]  # of endless recursion


def metric_line(message: str, metric: str, log_fields: Json, failed: bool, value: int = 1) -> str:
    """A JSON log line that adds to a metric (CloudWatch's embedded metric format)."""
    root = os.environ.get("_X_AMZN_TRACE_ID", "").partition(";")[0].removeprefix("Root=")
    level, traced = "ERROR" if failed else "INFO", {"trace_id": root} if root else {}
    line = {"level": level, "message": message, **log_fields, **traced}
    timestamp = f'"_aws": {{"Timestamp": {int(time.time() * 1000)}'
    return f"{json.dumps(line)[:-1]}, {timestamp}, {metric_definition(metric, failed, value)}"


@functools.cache  # the same in each line: a third of what a line takes
def metric_definition(metric: str, failed: bool, value: int) -> str:
    """The rest of a line from what the format says of a metric on: the end of a JSON object."""
    by_version = [["Environment", "FunctionVersion"]] if failed else []  # for a release to read
    definition = {
        "Namespace": os.environ["METRICS_NAMESPACE"],
        "Dimensions": [["Environment"], *by_version],
        "Metrics": [{"Name": metric, "Unit": "Count"}],
    }
    version = os.environ.get("AWS_LAMBDA_FUNCTION_VERSION")
    counted = {"Environment": os.environ["ENVIRONMENT"], "FunctionVersion": version, metric: value}
    return f'"CloudWatchMetrics": {json.dumps([definition])}}}, {json.dumps(counted)[1:]}'


def jittered_pause(seconds: float) -> None:
    """Sleeps for a random part of so many seconds (full jitter), so that retries spread out, and no
    longer than the invocation may wait."""
    time.sleep(min(jitter() * seconds, max(seconds_left(), 0)))


def jitter() -> float:
    """A random number from 0 to 1; `random` would add 1 ms to a cold start."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


# === Bundles ======================================================================================

# What the python3.13 runtime can import.
LAMBDA_MODULES = sys.stdlib_module_names | {"boto3", "botocore", "urllib3"}
INSTANCE_MODULES = LAMBDA_MODULES | {"psycopg"}  # what requirements-web.txt has
THIS_MODULE, THIS_FILE = "tap_stack", Path(__file__).resolve()
IMPORTS = (ast.Import, ast.ImportFrom)


class BundleError(pulumi.RunError, ValueError):
    """A function needs a name that cannot be shipped to Lambda."""


def bundle(
    handler: Handler, init: Callable[[], None] | None = None, modules: Set[str] = LAMBDA_MODULES
) -> str:
    """The source of `index.py` for one Lambda function: the definitions that its handler reaches.
    Names are resolved from the syntax tree of the handler's own file; what that imports from this
    one or from a file beside it is followed. The text changes only when code that the function runs
    does. Annotations are not followed; they are never evaluated. `init` is called once, as the
    module's last line. Raises BundleError for a name that is neither defined at the top level of
    its file nor built in, or that is bound twice, and for a module that the runtime lacks."""
    reached: dict[str, tuple[Path, ast.stmt]] = {}
    files: dict[Path, list[Path]] = {}  # file -> those whose definitions it uses
    waiting = [(each.__name__, _file(each), _file(each).name) for each in (handler, init) if each]
    while waiting:
        name, path, user = waiting.pop()
        found = _definition(name, path, user)
        if found[0] not in (path, *files.setdefault(path, [])):
            files[path].append(found[0])
        if name not in reached:
            reached[name], text = found, _text(*found, [name])
            if "import" in text:
                _check_imports(name, found[1], modules)
            waiting += [(used, found[0], name) for used in _free_names(text)]
        elif _text(*reached[name], [name]) != _text(*found, [name]):
            both = f"{reached[name][0].name} and {found[0].name}"
            raise BundleError(f"{both} bind {name} to different things: rename one of them")
    return _source(reached, files, [f"{init.__name__}()"] if init else [])


def _file(function: Callable[..., Any]) -> Path:
    return Path(function.__code__.co_filename).resolve()


def _definition(name: str, path: Path, user: str) -> tuple[Path, ast.stmt]:
    """The file and the statement that bind a name at the top level."""
    nodes = _read(path, path.stat().st_mtime_ns)[1].get(name, [])
    if not nodes:
        raise BundleError(f"{user} uses {name}, which {path.name} does not define at its top level")
    if len(nodes) > 1:
        where = f"lines {nodes[0].lineno} and {nodes[1].lineno}"
        raise BundleError(f"{path.name} binds {name} twice, in {where}: rename one of them")
    (node,) = nodes
    if isinstance(node, ast.ImportFrom) and (origin := _imported_file(node, path)):
        if name not in {alias.name for alias in node.names}:
            problem = f"{path.name} imports a definition of {origin.stem} as {name}"
            raise BundleError(f"{problem}: import it under its own name")
        return _definition(name, origin, user)
    return path, node


def _imported_file(node: ast.ImportFrom, path: Path) -> Path | None:
    """The file of the module if it is this one or lies beside the file that imports it."""
    if node.module == THIS_MODULE:
        return THIS_FILE
    beside = path.with_name(f"{node.module}.py")
    return beside if beside.exists() else None


@functools.lru_cache(8)  # all functions of a program come from the same file
def _read(path: Path, _changed: int) -> tuple[list[str], dict[str, list[ast.stmt]]]:
    """A file's lines, and the statements of its top level by the names that they bind."""
    source = path.read_text(encoding="utf-8")
    definitions: dict[str, list[ast.stmt]] = {}
    for node in ast.parse(source, path).body:
        for name in _bound_names(node):
            definitions.setdefault(name, []).append(node)
    return source.splitlines(), definitions


def _bound_names(node: ast.stmt) -> set[str]:
    """The names that a statement of the top level binds."""
    match node:  # what the symbols say, too, but those of a whole program cost 0.1 s
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Import() | ast.ImportFrom():
            return {_bound_by(alias) for alias in node.names}
    symbols = symtable.symtable(ast.unparse(node), "<bundle>", "exec").get_symbols()
    return {x.get_name() for x in symbols if x.is_assigned() or x.is_imported()}


def _bound_by(alias: ast.alias) -> str:
    return alias.asname or alias.name.split(".")[0]


@functools.lru_cache(2_000)
def _free_names(source: str) -> list[str]:
    """The global names that a statement uses, without built-ins and what it makes itself."""
    deferred = f"from __future__ import annotations\n{source}"  # whose names are not looked up
    top = symtable.symtable(deferred, "<bundle>", "exec")
    own = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned()}
    names, scopes = set(), [top]
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        names |= {
            each.get_name()
            for each in scope.get_symbols()
            if each.is_referenced() and (each.is_global() or scope is top)
        }
    return sorted(names - own - set(dir(builtins)) - {"__name__", "__file__"})


def _check_imports(user: str, definition: ast.stmt, known: Set[str]) -> None:
    for node in ast.walk(definition):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if missing := [module for module in modules if module.split(".")[0] not in known]:
            unknown = f"{user} of {missing[0]}, which its runtime does not have"
            raise BundleError(f"a Lambda function uses {unknown}")


def _source(
    reached: Mapping[str, tuple[Path, ast.stmt]],
    files: Mapping[Path, Iterable[Path]],
    calls: Sequence[str],
) -> str:
    """The text of all imports, then of the definitions: of a file behind those that it uses."""
    try:
        order = [*graphlib.TopologicalSorter(files).static_order()]
    except graphlib.CycleError as error:
        names = " and ".join(path.name for path in error.args[1][1:])
        raise BundleError(f"{names} use definitions of each other: keep them in one file") from None
    found = set(reached.values())
    imports = {each for each in found if isinstance(each[1], IMPORTS)}
    definitions = sorted(found - imports, key=lambda at: (order.index(at[0]), at[1].lineno))
    lines = sorted({_text(*each, reached) for each in imports})
    parts = [*lines, *(_text(*each, reached) for each in definitions), *calls]
    return "\n\n".join(["from __future__ import annotations", *parts]) + "\n"


def _text(path: Path, node: ast.stmt, reached: Iterable[str]) -> str:
    """A statement as it stands in the file; of an import only the names that are used."""
    if isinstance(node, IMPORTS):
        used = [alias for alias in node.names if _bound_by(alias) in reached]
        names = ", ".join(ast.unparse(alias) for alias in used)
        origin = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
        return f"{origin}import {names}"
    lines, _ = _read(path, path.stat().st_mtime_ns)
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
    return "\n".join(lines[first - 1 : node.end_lineno])


# === Releases =====================================================================================
# A rollout runs where `pulumi up` does, in a process that the engine starts from its state.

WATCH_SECONDS = 10  # between two looks
EVALUATION_SECONDS = 120  # after the last metrics: CloudWatch evaluates its alarms each minute
LATE_SECONDS = 900  # how long a rollout waits for metrics; one to four minutes are usual
GUARD_SECONDS = 600  # after all of these AWS itself takes a share back
BUSY_SECONDS = 900  # how long Lambda may be busy, as when it initializes a version
SMOKE_PAUSES = (1, 2, 4, 8, 16)  # IAM is eventually consistent: a new policy may not hold yet
#: Errors that pass: AWS is busy, credentials are renewed, Lambda shifts weights, a role is new.
PASSING = re.compile(
    r"\((ResourceConflictException|TooManyRequestsException|ExpiredToken\w*|RequestExpired)\)"
    r"|\((InvalidParameterValue|Validation)Exception\).*(Provisioned Concurrency|execution role)"
    r"|\(KMSAccessDeniedException\)|\(AccessDeniedException\).*cannot be assumed by Lambda"
)
#: A version fails whose bad requests are chance with less than this probability. It is asked at
#: each look: with 0.001 a good version failed in 0 of 200 simulated releases (tests/unit).
DOUBT, DOUBT_IN_ALARM = 0.001, 0.05
CONCLUSIVE_REQUESTS = 30  # show a version that fails for 10 % in 96 % of the cases
USERS, PROBES = "requests", "our own requests"
PROBE_ID = "release-probe"  # of requests, and of their caller, who owns nothing
UNWATCHED = "UNWATCHED_RELEASE"  # an environment variable, because `pulumi up -c` saves a setting


class Counts(NamedTuple):
    """Requests of a version: those that failed or were slow, and all."""

    bad: int
    total: int


class RolloutError(Exception):
    """Why a version was not rolled out, and which one is in its place."""


def chance(new: Counts, old: Counts) -> float:
    """How likely chance alone gives the new version so many of the bad requests, or more. Fisher's
    exact test, one-sided: right also for few requests, where rates say little."""
    bad = new.bad + old.bad

    def ways(total: int, chosen: int) -> float:  # its logarithm
        return lgamma(total + 1) - lgamma(chosen + 1) - lgamma(total - chosen + 1)

    return sum(
        exp(ways(new.total, n) + ways(old.total, bad - n) - ways(new.total + old.total, bad))
        for n in range(new.bad, min(new.total, bad) + 1)
    )


class Run:
    """A rollout of a version. What AWS has is its only state: the next run ends a killed one.
    `connect` makes the SDK's clients, `clock` is `time`, `say` gets a line at each change."""

    key: str  #: the input with the ARN of what gets the version
    release: Callable[[], str]  #: all steps from where AWS stands; the verdict, or RolloutError
    current: Callable[[], str]  #: the version that is there; empty where nothing can have one

    def __init__(self, connect: Callable[[str], Any], inputs: Json, clock: Any, say: Any):
        self.client, self.inputs = functools.cache(connect), inputs
        self.clock, self.say, self.version = clock, say, inputs["version"]
        self.name = re.split("[:/]", inputs[self.key])[-1]
        self.label = f"{self.name}: version {self.version}"

    def run(self) -> str:
        """The verdict on the version, also said; RolloutError if it is not good."""
        try:
            verdict = f"{self.label}: {self.release()}"
        except RolloutError as error:
            raise RolloutError(f"{self.label} {error}") from None
        self.say(verdict)
        return verdict

    def call(
        self, service: str, operation: str, none: str = "", wait: int = BUSY_SECONDS, **more: Any
    ) -> Any:
        """A call of AWS, repeated while that is refused for now, for so many seconds at most; None
        if `none` is in the code of the error, else it is raised."""
        while True:
            try:
                return getattr(self.client(service), operation)(**more)
            except Exception as error:
                if none and none in error_code(error):
                    return None
                self.client.cache_clear()  # the next client reads credentials again
                if wait <= 0 or not PASSING.search(str(error)):
                    raise
            wait -= WATCH_SECONDS
            self.clock.sleep(WATCH_SECONDS)


class RolloutRun(Run):
    """Moves an alias to a version: smoke test, a share of the traffic, all of it, or back. Until
    the last step the version before has all the traffic but the share. On an alias with provisioned
    concurrency that step only begins a shift: Lambda itself gives the old version a weight of 1.0
    until the new one is initialized, and leaves it there if that fails (terraform-provider-aws
    #48116). Both versions must have the same role and dead-letter queue."""

    key = "function"

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.function = functools.partial(self.call, "lambda", FunctionName=self.inputs["function"])
        self.schedule = functools.partial(self.call, "scheduler", Name=f"{self.name}-guard")
        self.probes = json.loads(self.inputs["probes"])
        self.watched = self.inputs["percent"] < 100 and not os.environ.get(UNWATCHED)
        self.before = self.revision = ""  # the version before, and the alias's revision
        self.answered = self.measured = 0  # probes of the new version, and those in its metrics
        self.old_alarms = set(self.inputs["alarms"])  # in ALARM since before the share
        self.new_alarms = ""  # the others in ALARM, with their reasons
        self.failure = ""  # of the new version's last probe that failed

    def release(self) -> str:
        self.before = self.settle()
        self.remove_guard()  # of a rollout that was killed
        self.prune()
        self.smoke()
        if self.before == self.version:
            return "has the traffic"
        asked = f", as {UNWATCHED} asks for" if self.inputs["percent"] < 100 else ""
        verdict = self.share() if self.watched else f"promoted all at once, unwatched{asked}"
        self.point_alias(self.version)
        self.remove_guard()
        if problem := self.shift_problem():
            self.point_alias(self.before)
            raise RolloutError(f"was rolled back to {self.before}: {problem}")
        return verdict

    def current(self) -> str:
        alias = self.function("get_alias", Name=self.inputs["alias"], none="NotFound")
        return str(alias["FunctionVersion"]) if alias else ""

    def settle(self) -> str:
        """The version that has all the traffic, once no weight is left of what went on before."""
        version, weights = self.alias()
        if 1 in weights.values():  # Lambda's own shift to the version, not a share of a rollout
            if self.shift_problem():
                (version,) = weights
            _, weights = self.alias()
        if weights:
            self.point_alias(version)  # an earlier rollout was killed here, or its version failed
        return version

    def shift_problem(self) -> str:
        """Waits until provisioned concurrency serves the alias's version; why it does not."""
        operation, alias = "get_provisioned_concurrency_config", self.inputs["alias"]
        for look in range(BUSY_SECONDS // WATCH_SECONDS):
            found = self.function(operation, Qualifier=alias, none="NotFound")
            _, weights = self.alias()
            if not found or (found["Status"] == "READY" and not weights):
                return ""
            if found["Status"] == "FAILED" and look:  # the first may be of an earlier shift
                return f"its provisioned concurrency failed: {found.get('StatusReason', '')}"
            self.clock.sleep(WATCH_SECONDS)
        return f"its provisioned concurrency is not ready after {BUSY_SECONDS} s"

    def alias(self) -> tuple[str, Mapping[str, float]]:
        """The alias's version; other versions -> their shares of its traffic."""
        alias = self.function("get_alias", Name=self.inputs["alias"])
        routing, self.revision = alias.get("RoutingConfig") or {}, alias["RevisionId"]
        return alias["FunctionVersion"], routing.get("AdditionalVersionWeights") or {}

    def route(self, version: str, **weights: float) -> Json:
        """What UpdateAlias takes: a version gets all the traffic but for the weights of others."""
        routing = {"AdditionalVersionWeights": weights}
        return {"Name": self.inputs["alias"], "FunctionVersion": version, "RoutingConfig": routing}

    def point_alias(self, version: str, **weights: float) -> None:
        """Changes the alias; RolloutError if somebody else did since the last look."""
        route = {**self.route(version, **weights), "RevisionId": self.revision}
        changed = self.function("update_alias", none="PreconditionFailed", **route)
        if not changed:
            raise RolloutError("was given up: the alias was moved by another meanwhile")
        self.revision = changed["RevisionId"]

    def smoke(self) -> None:
        """Invokes the version itself, before anybody else does, until it responds well."""
        for pause in (*SMOKE_PAUSES, 0):
            answers = (self.invoke(probe, self.version) for probe in self.probes)
            if not (failure := next(filter(None, answers), "")):
                return
            self.clock.sleep(pause)
        raise RolloutError(f"failed its smoke test; {self.before} has the traffic: {failure}")

    def invoke(self, probe: tuple[Json, int | None], version: str, wait: int = BUSY_SECONDS) -> str:
        """Sends a probe to a version; what is wrong with the answer."""
        payload, status = json.dumps(probe[0]).encode(), probe[1]
        answer = self.function("invoke", wait=wait, Qualifier=version, Payload=payload)
        text = answer["Payload"].read().decode()
        found = json.loads(text or "null")
        answered = found.get("statusCode") if isinstance(found, dict) else None
        return text[:500] if "FunctionError" in answer or answered != status else ""

    def share(self) -> str:
        """Gives the version its share, watched; the verdict. However that ends, the share does."""
        versions, self.since = (self.version, self.before), self.clock.time()
        self.counts = {each: dict.fromkeys(versions, Counts(0, 0)) for each in (USERS, PROBES)}
        self.look_at_alarms()
        if not self.guard("create_schedule"):
            raise RolloutError(f"was given up: another release of {self.name} goes on")
        percent, minutes = self.inputs["percent"], self.inputs["bake_seconds"] / 60
        try:
            self.point_alias(self.before, **{self.version: percent / 100})
            self.say(f"{self.label} has {percent:g} % of the traffic for {minutes:g} min at least")
            self.guard("update_schedule", RevisionId=self.revision)
            return self.watch()
        except BaseException as error:
            if (weights := self.alias()[1]).keys() == {self.version}:  # if only the answer was lost
                self.point_alias(self.before)
            if weights.keys() <= {self.version}:  # the guard of another's share stays
                self.remove_guard()
            if not isinstance(error, Exception):  # Ctrl-C, or the end of the process
                raise
            raise RolloutError(f"was rolled back to {self.before}: {error}") from None

    def guard(self, operation: str, **revision: str) -> Any:
        """Has AWS take the share back when the watch must have ended; None if it does already. With
        the revision of the share it does nothing once the alias was changed."""
        function, at = self.inputs["function"], self.clock.time() + LATE_SECONDS + GUARD_SECONDS
        due = time.gmtime(at + self.inputs["bake_seconds"])
        back = {"FunctionName": function, **self.route(self.before), **revision}
        arn = f"arn:{function.split(':')[1]}:scheduler:::aws-sdk:lambda:updateAlias"
        return self.schedule(
            operation,
            "Conflict",
            ScheduleExpression=time.strftime("at(%Y-%m-%dT%H:%M:%S)", due),
            FlexibleTimeWindow={"Mode": "OFF"},
            ActionAfterCompletion="DELETE",
            Target={"Arn": arn, "RoleArn": self.inputs["guard_role"], "Input": json.dumps(back)},
        )

    def remove_guard(self) -> None:
        """Deletes the schedule, if there is one."""
        if self.inputs["guard_role"]:
            self.schedule("delete_schedule", none="NotFound")

    def watch(self) -> str:
        """Looks at the version until all that is known of its share is good; the verdict. Then the
        metrics of all `bake_seconds` have come, as our own requests show, and alarms have them."""
        ripe = self.clock.monotonic() + self.inputs["bake_seconds"]
        expected, unknown_at = 0, 0.0
        while (now := self.clock.monotonic()) < ripe + LATE_SECONDS:
            self.announce()
            self.probe()
            self.read_metrics()
            not_evaluated = self.look_at_alarms()
            self.judge()
            if now < ripe:
                expected = self.answered
            if now < ripe or not_evaluated or self.measured < expected:
                unknown_at = now
            elif now - unknown_at >= EVALUATION_SECONDS:
                return self.verdict()
            self.clock.sleep(WATCH_SECONDS)
        return self.verdict(f"metrics or alarms are more than {LATE_SECONDS} s late; ")

    def announce(self) -> None:
        """Tells the alarms that wait for its verdict that the watch goes on."""
        if failures := self.inputs["failures"]:
            of = [{"Name": "Environment", "Value": failures["environment"]}]
            data = [{"MetricName": "Releasing", "Dimensions": of, "Value": 1}]
            space = failures["namespace"]
            self.call("cloudwatch", "put_metric_data", Namespace=space, MetricData=data)

    def probe(self) -> None:
        """Sends our own requests to both versions in turns: the old one shows what is usual."""
        counts = self.counts[PROBES]
        for probe, version in itertools.product(self.probes, counts):
            began = self.clock.time()
            try:
                failure = self.invoke(probe, version, wait=0)
            except Exception as error:
                if not PASSING.search(str(error)):
                    raise
                continue  # a throttled request says nothing about the version
            slow = (self.clock.time() - began) * 1000 > self.inputs["latency_bound_ms"]
            bad, total = counts[version]
            counts[version] = Counts(bad + bool(failure or slow), total + 1)
            if version == self.version:
                self.answered, self.failure = self.answered + 1, failure or self.failure

    def read_metrics(self) -> None:
        """Counts the requests of users by version, and our own that are in the metrics already."""
        failures, bound = self.inputs["failures"], self.inputs["latency_bound_ms"]
        of = {"FunctionName": self.name, "Resource": f"{self.name}:{self.version}"}
        self.measured = round(sum(self.metric("AWS/Lambda/Invocations", of).values()))
        for version in self.counts[USERS]:
            alias = f"{self.name}:{self.inputs['alias']}"
            of = {"FunctionName": self.name, "Resource": alias, "ExecutedVersion": version}
            totals = self.metric("AWS/Lambda/Invocations", of)
            failed = sum(self.metric("AWS/Lambda/Errors", of).values())
            quick = self.metric("AWS/Lambda/Duration", of, f"PR(:{bound:g})")  # in percent
            slow = sum((1 - rank / 100) * totals.get(at, 0) for at, rank in quick.items())
            if failures:
                of = {"Environment": failures["environment"], "FunctionVersion": version}
                path = f"{failures['namespace']}/{failures['metric']}"
                failed += sum(self.metric(path, of).values())
            total = round(sum(totals.values()))
            # One that ran out of time is both. Failures may come before the total that has them.
            self.counts[USERS][version] = Counts(min(round(max(failed, slow)), total), total)

    def metric(self, path: str, of: Mapping[str, str], statistic: str = "Sum") -> Json:
        """A metric of these dimensions since the share began, by the minute."""
        namespace, _, metric = path.rpartition("/")
        named = [{"Name": name, "Value": value} for name, value in of.items()]
        asked = {"Namespace": namespace, "MetricName": metric, "Dimensions": named}
        query = {"Id": "it", "MetricStat": {"Metric": asked, "Period": 60, "Stat": statistic}}
        times = {"StartTime": self.since - self.since % 60, "EndTime": self.clock.time() + 60}
        data = self.call("cloudwatch", "get_metric_data", MetricDataQueries=[query], **times)
        (found,) = data["MetricDataResults"]
        return dict(zip(found["Timestamps"], found["Values"], strict=True))

    def look_at_alarms(self) -> bool:
        """Notes the alarms that fire since the share began; whether one was not evaluated yet.
        Metrics are late, so one may still be of a version that was rolled back a moment ago: it
        decides at the end, and before that only with `DOUBT_IN_ALARM`. One that was in ALARM before
        the share counts again once it has been OK."""
        wanted, types = list(self.inputs["alarms"]), ["MetricAlarm", "CompositeAlarm", "LogAlarm"]
        found = self.call("cloudwatch", "describe_alarms", AlarmNames=wanted, AlarmTypes=types)
        alarms = {x["AlarmName"]: x for kind in types for x in found.get(f"{kind}s", ())}
        if missing := ", ".join(sorted(set(wanted) - alarms.keys())):
            problem = f"would go bad unnoticed, because there is no alarm {missing}"
            raise RolloutError(f"{problem}: create it, or set canary_percent to 100")
        firing = {name for name, alarm in alarms.items() if alarm["StateValue"] == "ALARM"}
        self.old_alarms &= firing
        new = sorted(firing - self.old_alarms)
        self.new_alarms = "; ".join(f"{name} ({alarms[name].get('StateReason')})" for name in new)
        return any(alarm["StateValue"] == "INSUFFICIENT_DATA" for alarm in alarms.values())

    def judge(self) -> None:
        """RolloutError when our own requests, or those of users, are worse than those before."""
        doubt = DOUBT_IN_ALARM if self.new_alarms else DOUBT
        for whose, counts in self.counts.items():
            if (likely := chance(*counts.values())) < doubt:
                seen = "; ".join(filter(None, [self.new_alarms, self.failure]))
                raise RolloutError(f"{self.compared(whose)} (p = {likely:.1g}) {seen}")

    def compared(self, whose: str) -> str:
        """The requests of both versions in words."""
        new, old = self.counts[whose].values()
        bad = f"failed or took more than {self.inputs['latency_bound_ms']:g} ms"
        before = f"{old.bad} of {old.total} of {self.before}"
        return f"{new.bad} of {new.total} {whose} {bad}, and {before}"

    def verdict(self, problem: str = "") -> str:
        """What the promotion rests on; RolloutError where that is not enough."""
        if self.new_alarms:
            raise RolloutError(self.new_alarms)
        quiet = ", ".join(sorted(set(self.inputs["alarms"]) - self.old_alarms)) or "none"
        test = f"no worse by Fisher's exact test (p < {DOUBT}); alarms that did not fire: {quiet}"
        evidence = f"{self.compared(USERS)}; {self.compared(PROBES)}; {test}"
        if self.counts[USERS][self.version].total < CONCLUSIVE_REQUESTS:
            problem += f"fewer than {CONCLUSIVE_REQUESTS} requests; "
        if not problem:
            return f"promoted: {evidence}"
        choice = self.inputs["inconclusive"]
        text = f"inconclusive, and canary_inconclusive is {choice}: {problem}{evidence}"
        if choice == "roll_back":
            raise RolloutError(text)
        return text

    def prune(self) -> None:
        """Deletes what is older than the newest versions; Lambda keeps what another alias names."""
        pages = self.client("lambda").get_paginator("list_versions_by_function")
        found = pages.paginate(FunctionName=self.inputs["function"]).build_full_result()["Versions"]
        numbers = sorted(int(each["Version"]) for each in found if each["Version"].isdigit())
        for number in map(str, numbers[: -int(self.inputs["versions_kept"])]):
            if number not in (self.version, self.before):
                self.function("delete_function", Qualifier=number, none="ResourceConflict")


class RolloutProvider(pulumi.dynamic.ResourceProvider):
    """What the engine calls for rollouts of a kind, with the credentials of whoever runs it."""

    def __init__(self, kind: type[Run]) -> None:
        super().__init__()
        self.kind, self.key = kind, kind.key
        self.profile: str | None = None
        self.clock: Any = time

    def configure(self, req: pulumi.dynamic.ConfigureRequest) -> None:
        """Takes the AWS profile from the stack's configuration."""
        self.profile = req.config.get("aws:profile")
        sys.tracebacklimit = 0  # the engine shows a failure as its traceback: the message is enough

    def diff(self, _id: str, olds: Json, news: Json) -> pulumi.dynamic.DiffResult:
        """Other inputs are a change; other code of this provider is not."""
        keys = [key for key in news if not key.startswith("__") and key != "verdict"]
        return pulumi.dynamic.DiffResult(
            changes=any(olds.get(key) != news[key] for key in keys),
            replaces=[self.key] if olds[self.key] != news[self.key] else [],
        )

    def create(self, props: Json) -> pulumi.dynamic.CreateResult:
        """Brings what is there, whatever it is, to the version."""
        return pulumi.dynamic.CreateResult(props[self.key], self.update("", {}, props).outs)

    def update(self, _id: str, _olds: Json, news: Json) -> pulumi.dynamic.UpdateResult:
        """Releases another version, as `create` does the first."""
        return pulumi.dynamic.UpdateResult({**news, "verdict": self.rollout(news).run()})

    def read(self, id_: str, props: Json) -> pulumi.dynamic.ReadResult:
        """The version that is there, for `pulumi refresh`; nothing where none can be."""
        version = self.rollout(props).current()
        found = (id_, {**props, "version": version}) if version else ("", {})
        return pulumi.dynamic.ReadResult(*found)

    def rollout(self, inputs: Json) -> Run:
        """The rollout of these inputs, whose lines go where the engine reads and shows them."""
        say = functools.partial(print, file=sys.stderr, flush=True)
        return self.kind(functools.partial(self.client, inputs=inputs), inputs, self.clock, say)

    def client(self, service: str, inputs: Json) -> Any:
        """The SDK's client of a service in the region of the rollout."""
        import boto3
        from botocore.config import Config

        session = boto3.Session(profile_name=self.profile)
        # A smoke test responds within the longest run of a function.
        config = Config(read_timeout=920, retries={"mode": "standard", "total_max_attempts": 8})
        return session.client(service, region_name=inputs[self.key].split(":")[3], config=config)


def rollout_provider() -> RolloutProvider:
    """Where bundle() begins, to ship the provider to the state."""
    return RolloutProvider(RolloutRun)


class PortableProvider(pulumi.dynamic.ResourceProvider):
    """Pickles a provider as source: refresh and destroy have the state alone, in any Python."""

    def __init__(self, maker: Callable[[], RolloutProvider]) -> None:
        super().__init__()
        self.maker = maker

    def __reduce__(self) -> tuple[Any, ...]:
        source = bundle(self.maker, modules=LAMBDA_MODULES | {"pulumi"})
        load = f"exec({source!r}, names) or names['{self.maker.__name__}']()"
        return eval, (f"(lambda names: {load})({{'__name__': 'rollout'}})",)


class Rollout(pulumi.dynamic.Resource, module="tap", name="Rollout"):
    """The only one that moves a function's `alias`: to `version`, watched, and back on failure. The
    inputs are those of `Canary`, and how `Function` has them. `failures` is a namespace, a metric
    and its environment. AWS takes back a share that nobody watches any more as `guard_role`. Fails
    the update with the reason when the version is bad. Costs probes, and a cent for metrics."""

    maker = rollout_provider
    #: What became of the newest version, and the evidence.
    verdict: Output[str]

    def __init__(self, name: str, *, opts: Options = None, **inputs: Any):
        provider = PortableProvider(type(self).maker)
        super().__init__(provider, name, {**inputs, "verdict": None}, opts)


# === Tables =======================================================================================

#: What DynamoDB documents that it does with a table's key in the name of who uses the table.
TABLE_KEY_USE = "Decrypt DescribeKey Encrypt GenerateDataKey ReEncryptFrom ReEncryptTo".split()
#: The newest minute says nothing while it is late, and filled ("Using metric math", FILL).
LATE: Mapping[str, Any] = {"datapoints": (1, 5)}


def index(
    name: str, partition_key: str, sort_key: str, **capacity: int
) -> aws.dynamodb.TableGlobalSecondaryIndexArgsDict:
    """A global secondary index that holds all of an item, so that a list needs no second read."""
    keys = {partition_key: "HASH", sort_key: "RANGE"}
    return {
        "name": name,
        "key_schemas": [{"attribute_name": each, "key_type": keys[each]} for each in keys],
        "projection_type": "ALL",
        **capacity,  # type: ignore[typeddict-item]
    }


def index_arns(table: aws.dynamodb.Table, indexes: Iterable[str]) -> list[Output[str]]:
    """The ARNs of a table's indexes."""
    return [Output.concat(table.arn, "/index/", each) for each in indexes]


def throttle_alarms(key: str, table: aws.dynamodb.Table, indexes: Iterable[str]) -> list[Alarm]:
    """Alarms for throttled reads and writes of a table and of each of its indexes."""
    whole: dict[str, Input[str]] = {"TableName": table.name}
    parts = {f"{key}-{_slug(x)}": {**whole, "GlobalSecondaryIndexName": x} for x in indexes}
    throttles = "AWS/DynamoDB/{}ThrottleEvents"
    return [
        Alarm(f"{each}-{kind.lower()}-throttles", throttles.format(kind), of, above=0, **LATE)
        for each, of in {key: whole, **parts}.items()
        for kind in ("Read", "Write")
    ]


def capacity_graph(title: str, table: aws.dynamodb.Table, overview: bool = False) -> Graph:
    """What is read from and written to a table."""
    kinds = ("ConsumedReadCapacityUnits", "ConsumedWriteCapacityUnits")
    return Graph(title, lines("AWS/DynamoDB", {"TableName": table.name}, *kinds), overview)


# === Buckets ======================================================================================

#: Days after which an object moves to a cheaper class; S3 leaves those below 128 KB where they are.
TRANSITIONS = {30: "STANDARD_IA", 90: "GLACIER_IR"}
#: What a bucket can have of public access, all of which is off.
PUBLIC = "block_public_acls block_public_policy ignore_public_acls restrict_public_buckets".split()
ACCESS_LOGS_SERVICE = "logging.s3.amazonaws.com"
LOAD_BALANCER_LOGS_SERVICE = "logdelivery.elasticloadbalancing.amazonaws.com"


class Bucket(Component):
    """A private bucket: versioned, encrypted, TLS only, without ACLs, with one lifecycle. Encrypted
    with S3's own keys (AES-256), which log delivery needs, or `under_key`. `days` is when objects
    expire; 0 is never. `access_logs_of` are the names of buckets that deliver their access logs to
    this one, and `access_logs_to` is the bucket that it delivers its own to. With `unscanned_for`
    only these roles, by name, read what GuardDuty has not found harmless, or tag. Costs what it
    stores, by the GB and month, less after the days of TRANSITIONS; S3's own keys cost nothing."""

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        key: Key,
        opts: Options = None,
        *,
        component: str,
        physical_name: Input[str],
        days: int = 0,
        under_key: bool = False,
        access_logs_of: Sequence[Input[str]] = (),
        access_logs_to: Bucket | None = None,
        load_balancer_logs: bool = False,
        unscanned_for: Sequence[str] = (),
    ):
        super().__init__(name, args, key, opts, component)
        options, emptied = self.child("bucket", protect=True), args.tier == "dev"
        self.bucket = aws.s3.Bucket(*options, bucket=physical_name, force_destroy=emptied)
        on = dict.fromkeys(PUBLIC, True)
        self.public_access_block = self._setting(aws.s3.BucketPublicAccessBlock, "private", **on)
        owner = {"object_ownership": "BucketOwnerEnforced"}
        self.ownership = self._setting(aws.s3.BucketOwnershipControls, "ownership", rule=owner)
        self.encryption = self._encryption(under_key)
        versions = {"versioning_configuration": {"status": "Enabled"}}
        self.versioning = self._setting(aws.s3.BucketVersioning, "versioning", **versions)
        self.policy = self._policy(access_logs_of, load_balancer_logs, unscanned_for)
        self.lifecycle = self._lifecycle(days)
        self.logging = self._logging(access_logs_to) if access_logs_to else None
        self.register_outputs({"bucket_name": self.bucket.bucket})

    def _setting(self, kind: Callable[..., T], key: str, *after: pulumi.Resource, **own: Any) -> T:
        return kind(*self.child(key, *after), bucket=self.bucket.bucket, **own)

    def _encryption(self, under_key: bool) -> aws.s3.BucketServerSideEncryptionConfiguration:
        by_default: Any = {"sse_algorithm": "AES256"}
        if under_key:
            by_default = {"sse_algorithm": "aws:kms", "kms_master_key_id": self.key.arn}
        # With a bucket key: one call of KMS for many objects, where there are any.
        rule: Any = {"bucket_key_enabled": under_key}
        rule["apply_server_side_encryption_by_default"] = by_default
        kind = aws.s3.BucketServerSideEncryptionConfiguration
        return self._setting(kind, "encryption", rules=[rule])

    def _policy(
        self, access_logs_of: Sequence[Input[str]], balancer: bool, unscanned_for: Sequence[str]
    ) -> aws.s3.BucketPolicy:
        context, bucket = self.aws_context, self.bucket.arn
        objects = Output.concat(bucket, "/*")
        statements = [tls_only("s3:*", [bucket, objects])]
        if balancer:
            # Of this service AWS documents no `aws:SourceAccount`; its ARNs name the account.
            source = {"aws:SourceArn": context.arn("elasticloadbalancing", "loadbalancer/*")}
            logs = Output.concat(bucket, "/balancer/AWSLogs/", context.account, "/*")
            when: Json = {"ArnLike": source}
            statements.append(trust(LOAD_BALANCER_LOGS_SERVICE, "s3:PutObject", on=logs, when=when))
        if access_logs_of:
            arn = Output.concat("arn:", context.partition, ":s3:::")
            sources = [Output.concat(arn, each) for each in access_logs_of]
            when = context.acting_for(sources, "ArnEquals")
            statements.append(trust(ACCESS_LOGS_SERVICE, "s3:PutObject", on=objects, when=when))
        if unscanned_for:
            role = Output.format("arn:{0}:iam::{1}:role/", context.partition, context.account)
            readers = [Output.concat(role, each) for each in unscanned_for]
            others: Json = {"ArnNotEquals": {"aws:PrincipalArn": readers}}
            unknown = {"StringNotEquals": {f"s3:ExistingObjectTag/{SCAN_TAG}": list(HARMLESS)}}
            forged = {"ForAnyValue:StringEquals": {"s3:RequestObjectTagKeys": SCAN_TAG}}
            reads = actions_of("s3", "GetObject GetObjectVersion")
            tags = actions_of("s3", "PutObject PutObjectTagging PutObjectVersionTagging")
            statements.append(deny(*reads, on=objects, when=unknown | others))
            statements.append(deny(*tags, on=objects, when=forged | others))
        # S3 rejects two changes of a bucket's access at once.
        kind, after = aws.s3.BucketPolicy, self.public_access_block
        return self._setting(kind, "policy", after, policy=policy(*statements))

    def _lifecycle(self, days: int) -> aws.s3.BucketLifecycleConfiguration:
        cooler = {x: kind for x, kind in TRANSITIONS.items() if not days or x < days}
        transitions = [{"days": x, "storage_class": cooler[x]} for x in cooler]
        enabled: dict[str, Any] = {"status": "Enabled", "filter": {"prefix": ""}}
        noncurrent = {"noncurrent_days": min(self.args.noncurrent_days, days or 3_650)}
        unfinished = {"days_after_initiation": 7}
        gone: Json = {"days": days} if days else {"expired_object_delete_marker": True}
        rules: list[Any] = [
            {**enabled, "id": "unfinished", "abort_incomplete_multipart_upload": unfinished},
            {**enabled, "id": "noncurrent", "noncurrent_version_expiration": noncurrent},
            {**enabled, "id": "expired", "expiration": gone},
        ]
        if transitions:
            rules.append({**enabled, "id": "cooler", "transitions": transitions})
        kind, after = aws.s3.BucketLifecycleConfiguration, self.versioning  # makes them noncurrent
        return self._setting(kind, "lifecycle", after, rules=rules)

    def _logging(self, logs: Bucket) -> aws.s3.BucketLogging:
        by_day = {"partitioned_prefix": {"partition_date_source": "EventTime"}}
        to: Json = {"target_bucket": logs.bucket.bucket, "target_prefix": "access/"}
        to["target_object_key_format"] = by_day
        return self._setting(aws.s3.BucketLogging, "logging", logs.policy, **to)


# === Fleets =======================================================================================

#: What an instance may do so that Session Manager reaches it; none of it has a resource to name.
CHANNELS = "CreateControlChannel CreateDataChannel OpenControlChannel OpenDataChannel"
SESSION_MANAGER = ("ssm:UpdateInstanceInformation", *actions_of("ssmmessages", CHANNELS))
SCALING_GROUP = "autoScalingGroup:*:autoScalingGroupName/{}".format  # of an ARN
READY_HOOK, READY_SECONDS = "ready", 900  # an instance that is silent for so long is replaced
REFRESH_SECONDS, ROUND_SECONDS = 3_000, 300  # how long a refresh may take, and more a round
#: States in which an instance refresh has ended.
REFRESH_ENDS = ("Successful", "Failed", "Cancelled", "RollbackSuccessful", "RollbackFailed")
AMI_NAMES = "al2023-ami-2023.*-kernel-*-arm64"
SETUP_PATH = "/var/lib/setup.sh"
#: Of a group's policy what a rollout changes; not the template, as a group of another name has its.
ROLLED_OUT = """instancesDistribution launchTemplate.overrides
    launchTemplate.launchTemplateSpecification.version""".split()
USER_DATA_LIMIT = 16_384  # bytes, EC2's, before base64


@dataclass(frozen=True, kw_only=True)
class Instances:
    """The instances of a fleet: how they start, what they may do, how many there are."""

    component: str  # the fleet's
    user_data: Input[str]  # a script, whose failure has the instance replaced
    after: Sequence[pulumi.Resource] = ()  # what instances need at their start: routes, rules
    security_group: aws.ec2.SecurityGroup
    subnets: Sequence[aws.ec2.Subnet]
    types: Sequence[str]  # arm64, the first one preferred
    statements: Sequence[Statement] = ()  # beyond Session Manager
    public: bool = False  # has a public address
    minimum: int = 1
    maximum: int = 1
    scheduled: Sequence[str] = ()  # inputs of the group that a schedule changes
    spot_percent: int = 0
    target_groups: Sequence[aws.lb.TargetGroup] = ()  # whose health checks replace instances
    alarms: Sequence[str] = ()  # names; one that fires rolls a changed fleet back


class Fleet(Component):
    """Instances of one kind that replace themselves: launch template, role, Auto Scaling group.
    arm64, IMDSv2 with one hop, an encrypted gp3 volume of 8 GB, no key pair: people come by Session
    Manager or EC2 Instance Connect. An instance comes into service when its user data ends well, or
    is replaced; the first ones are waited for. A change of the template is a FleetRollout's.
    Without `image_id` the image is the latest of the first deployment. Costs instances by the hour,
    a volume and, if public, an IPv4 address for each."""

    def __init__(
        self, name: str, args: TapStackArgs, key: Key, opts: Options = None, *, instances: Instances
    ):
        super().__init__(name, args, key, opts, instances.component)
        self.physical_name, self.instances = args.name(self.component), instances
        self.role, _ = self._role()
        self.template = self._template()
        self.scaling_group = self._scaling_group()
        self.rollout = self._rollout()
        self.register_outputs({"group_name": self.scaling_group.name})

    def _role(self) -> tuple[aws.iam.Role, aws.iam.RolePolicy]:
        group = self.aws_context.arn("autoscaling", SCALING_GROUP(self.physical_name))
        return self.service_role(
            "role",
            f"What instances of {self.physical_name} may do",
            "ec2.amazonaws.com",
            allow(*SESSION_MANAGER, on="*"),
            allow("autoscaling:CompleteLifecycleAction", on=group),
            *self.instances.statements,
        )

    def _template(self) -> aws.ec2.LaunchTemplate:
        instances, name = self.instances, self.physical_name
        tags = {**self.args.all_tags(), "Component": self.component, "Name": name}
        profile = aws.iam.InstanceProfile(*self.child("profile"), name=name, role=self.role.name)
        script = functools.partial(rendered, "start.sh", group=name, hook=READY_HOOK)
        known = Output.all(region=self.aws_context.region, script=instances.user_data)
        gone, public = {"delete_on_termination": "true"}, str(instances.public).lower()
        volume: Any = {"volume_type": "gp3", "volume_size": 8, **gone}
        volume |= {"encrypted": "true", "kms_key_id": self.key.arn}
        interface: Any = {"device_index": 0, "associate_public_ip_address": public, **gone}
        interface["security_groups"] = [instances.security_group.id]
        by_token: Any = {"http_endpoint": "enabled", "http_tokens": "required"}
        by_token["http_put_response_hop_limit"] = 1
        described = ("instance", "volume", "network-interface")
        return aws.ec2.LaunchTemplate(
            # Another image is a choice of its own: no other change must bring it along.
            *self.child("template", ignore_changes=[] if self.args.image_id else ["imageId"]),
            name=name,
            image_id=self.args.image_id or latest_ami(),
            instance_type=instances.types[0],
            iam_instance_profile={"arn": profile.arn},
            metadata_options=by_token,
            block_device_mappings=[{"device_name": "/dev/xvda", "ebs": volume}],
            network_interfaces=[interface],
            monitoring={"enabled": True},
            user_data=known.apply(lambda values: encode_user_data(script(**values))),
            tag_specifications=[{"resource_type": kind, "tags": tags} for kind in described],
        )

    def _scaling_group(self) -> aws.autoscaling.Group:
        instances, metric = self.instances, aws.autoscaling.Metric
        moved = ["desiredCapacity", *(f"mixedInstancesPolicy.{each}" for each in ROLLED_OUT)]
        version = self.template.latest_version.apply(str)  # $Latest could not be left again
        chosen: Any = {"launch_template_id": self.template.id, "version": version}
        template: Any = {"launch_template_specification": chosen}
        template["overrides"] = [{"instance_type": each} for each in instances.types]
        spread: Any = {"on_demand_percentage_above_base_capacity": 100 - instances.spot_percent}
        spread["spot_allocation_strategy"] = "price-capacity-optimized"
        hook: Any = {"name": READY_HOOK, "heartbeat_timeout": READY_SECONDS}
        hook["lifecycle_transition"] = "autoscaling:EC2_INSTANCE_LAUNCHING"
        hook["default_result"] = "ABANDON"
        return aws.autoscaling.Group(
            # Within the limits the desired capacity is the scaling policies', and the policy the
            # rollout's: what the group has when a refresh begins is what it goes back to.
            *self.child("group", *instances.after, ignore_changes=[*moved, *instances.scheduled]),
            name=self.physical_name,
            min_size=instances.minimum,
            max_size=instances.maximum,
            vpc_zone_identifiers=[each.id for each in instances.subnets],
            mixed_instances_policy={"instances_distribution": spread, "launch_template": template},
            capacity_rebalance=instances.spot_percent > 0,
            target_group_arns=[each.arn for each in instances.target_groups],
            health_check_type="ELB" if instances.target_groups else "EC2",
            health_check_grace_period=180,
            default_instance_warmup=120,
            initial_lifecycle_hooks=[hook],
            wait_for_capacity_timeout="0",  # another minimum would have to be the exact number
            enabled_metrics=[metric.GROUP_DESIRED_CAPACITY, metric.GROUP_IN_SERVICE_INSTANCES],
            metrics_granularity="1Minute",
            service_linked_role_arn=self.key.scaling_role_arn,
        )

    def _rollout(self) -> FleetRollout:
        return FleetRollout(
            f"{self.name}-rollout",
            group=self.scaling_group.arn,
            version=self.template.latest_version.apply(str),
            types=self.instances.types,
            spot_percent=self.instances.spot_percent,
            max_healthy_percent=110 if self.instances.maximum > 1 else 200,
            alarms=self.instances.alarms,
            opts=self.parented,
        )

    def alarms(self) -> list[Alarm]:
        """Fewer instances in service than the minimum."""
        group = {"AutoScalingGroupName": self.scaling_group.name}
        few: Any = {"below": self.instances.minimum, "statistic": "Minimum", "datapoints": (10, 10)}
        few["runbook"] = f"{self.component.partition('-')[0]}-instances"
        metric = "AWS/AutoScaling/GroupInServiceInstances"
        return [Alarm(f"{self.component}-instances", metric, group, **few)]


class FleetRun(Run):
    """Gives a group version, types and share of Spot, instance by instance, or goes back. AWS
    writes them to the group at the end, and launches instances by them from the beginning on."""

    key = "group"

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.label += " of the launch template"
        self.group = functools.partial(self.call, "autoscaling", AutoScalingGroupName=self.name)

    def release(self) -> str:
        for each in self.refreshes():  # of a rollout that was killed, or of somebody else
            if each["Status"] not in REFRESH_ENDS:
                self.end_of(each["InstanceRefreshId"])
        policy = self.groups()[0]["MixedInstancesPolicy"]
        template, spread = policy["LaunchTemplate"], policy["InstancesDistribution"]
        chosen = template["LaunchTemplateSpecification"]
        share = "OnDemandPercentageAboveBaseCapacity"
        chosen.pop("LaunchTemplateName", None)  # AWS takes the id or the name
        types = [{"InstanceType": each} for each in self.inputs["types"]]
        has = (chosen["Version"], template["Overrides"], spread[share])
        wants = (self.version, types, 100 - int(self.inputs["spot_percent"]))
        if has == wants:
            self.fill()
            return "is in place"
        chosen["Version"], template["Overrides"], spread[share] = wants
        most = int(self.inputs["max_healthy_percent"])  # the engine makes floats of integers
        preferences: Json = {"MinHealthyPercentage": 100, "MaxHealthyPercentage": most}
        preferences |= {"AutoRollback": True, "SkipMatching": has[2] == wants[2]}  # sees no shares
        if alarms := self.inputs["alarms"] and self.quiet_alarms():
            preferences |= {"AlarmSpecification": {"Alarms": alarms}, "BakeTime": 300}
        wanted: Json = {"DesiredConfiguration": {"MixedInstancesPolicy": policy}}
        started = self.group("start_instance_refresh", Preferences=preferences, **wanted)
        self.say(f"{self.label} replaces instances of version {has[0]}, one after the other")
        end = self.end_of(started["InstanceRefreshId"])
        if (status := end["Status"]) != "Successful":
            failures = self.failures(end["StartTime"])
            reasons = "; ".join([end.get("StatusReason", "no reason"), *failures])
            kept = f"the group keeps version {has[0]}"
            raise RolloutError(f"failed, and {kept} ({status}): {reasons}")
        return f"has replaced instances of version {has[0]}"

    def fill(self) -> None:
        """Waits for the minimum in service, healthy to a balancer too, unless launches fail."""
        since = datetime.now(UTC)
        for _ in range(0, REFRESH_SECONDS, WATCH_SECONDS):
            (group,) = self.groups()
            ready = [sum(x["LifecycleState"] == "InService" for x in group["Instances"])]
            for arn in group["TargetGroupARNs"]:
                found = self.call("elbv2", "describe_target_health", TargetGroupArn=arn)
                states = [x["TargetHealth"]["State"] for x in found["TargetHealthDescriptions"]]
                ready.append(states.count("healthy"))
            if min(ready) >= group["MinSize"]:
                return
            if len(failed := self.failures(since)) == 3:
                break
            self.clock.sleep(WATCH_SECONDS)
        why = "; ".join(failed) or "they do not become healthy"
        raise RolloutError(f"has {min(ready)} of {group['MinSize']} instances in service: {why}")

    def current(self) -> str:
        found = [each["MixedInstancesPolicy"]["LaunchTemplate"] for each in self.groups()]
        return str(found[0]["LaunchTemplateSpecification"]["Version"]) if found else ""

    def groups(self) -> list[Json]:
        """The group, if it exists."""
        operation, names = "describe_auto_scaling_groups", [self.name]
        found = self.call("autoscaling", operation, AutoScalingGroupNames=names)
        return list(found["AutoScalingGroups"])

    def quiet_alarms(self) -> list[str]:
        """Those that can take it back: AWS refuses a refresh with one that is in ALARM already."""
        states = {"AlarmNames": self.inputs["alarms"], "StateValue": "ALARM"}
        found = self.call("cloudwatch", "describe_alarms", **states)["MetricAlarms"]
        if firing := [each["AlarmName"] for each in found]:
            self.say(f"{self.label} is not watched by {', '.join(firing)}: in ALARM already")
        return [each for each in self.inputs["alarms"] if each not in firing]

    def refreshes(self, *ids: str) -> list[Json]:
        """These instance refreshes, or all, the newest first."""
        which: Json = {"InstanceRefreshIds": list(ids)} if ids else {}
        return list(self.group("describe_instance_refreshes", **which)["InstanceRefreshes"])

    def end_of(self, refresh_id: str) -> Json:
        """The refresh when it has ended; one that takes too long is rolled back first."""
        count, most = self.groups()[0]["DesiredCapacity"], int(self.inputs["max_healthy_percent"])
        limit = REFRESH_SECONDS + ROUND_SECONDS * ceil(count / (count * (most - 100) // 100 or 1))
        for second in range(0, 2 * limit, WATCH_SECONDS):
            (refresh,) = self.refreshes(refresh_id)
            if refresh["Status"] in REFRESH_ENDS:
                return refresh
            if second == limit and refresh["Status"] not in ("Cancelling", "RollbackInProgress"):
                self.group("rollback_instance_refresh")
            self.clock.sleep(WATCH_SECONDS)
        raise RolloutError(f"waits for the instance refresh {refresh_id}, which does not end")

    def failures(self, since: datetime) -> list[str]:
        """What AWS says of launches that failed, three at most."""
        found = self.group("describe_scaling_activities")["Activities"]
        failed = [each for each in found if each["StatusCode"] in ("Failed", "Cancelled")]
        new = [each for each in failed if each["EndTime"] >= since]
        return [each.get("StatusMessage") or each["Description"] for each in new[:3]]


def fleet_provider() -> RolloutProvider:
    """As rollout_provider."""
    return RolloutProvider(FleetRun)


class FleetRollout(Rollout, module="tap", name="FleetRollout"):
    """The only one that gives a `group` (ARN) another `version` of its launch template, instance
    `types` or `spot_percent`, within `max_healthy_percent`. One of `alarms` takes it back. Fails
    the update with AWS's reason if the group went back, and the next one tries again."""

    maker = fleet_provider


def latest_ami() -> Output[str]:
    """The latest Amazon Linux 2023. Not `resolve:ssm:` in the template, which would be read at each
    launch: two instances could differ, and a refresh could not go back."""
    named: Any = {"name": "name", "values": [AMI_NAMES]}
    return aws.ec2.get_ami_output(most_recent=True, owners=["amazon"], filters=[named]).id


def rendered(name: str, /, **values: str) -> str:
    """A file of the folder `scripts` with its @names@ replaced."""
    script = text_beside(f"scripts/{name}")
    for key, value in values.items():
        script = script.replace(f"@{key}@", value)
    return script


def encode_user_data(script: str) -> str:
    """A script as user data: cloud-config that runs it once, in base64; ValueError above the limit.
    Not compressed: the bytes of two zlibs differ, and another text would replace all instances."""
    file = {"path": SETUP_PATH, "permissions": "0700", "content": script}
    config = {"write_files": [file], "runcmd": [["bash", SETUP_PATH]]}
    text = f"#cloud-config\n{json.dumps(config)}\n".encode()
    if len(text) > USER_DATA_LIMIT:
        raise ValueError(f"user data has {len(text):,} bytes; EC2 accepts {USER_DATA_LIMIT:,}")
    return base64.b64encode(text).decode()


# === Serverless API ===============================================================================
# The handler answers all requests of the HTTP API. A request goes through it from top to bottom:
# api, dispatch, an operation (Items, Files), the table, a response.
#
# The items table has two types of items, by `owner`, the caller, and `id`:
#
#   type                 id                         attributes
#   item                 the item's id              content (the caller's fields), version,
#                                                   revision (its ETag), created_at, updated_at,
#                                                   owner_category (<owner>#<category>, if any)
#   Idempotency-Key      idempotency#<digest of     item_id, item_created_at and revision of what it
#                        the key>                   created, fingerprint of the body, expires_at
#
# For GET /items two indexes have all attributes, sorted by created_at.

#: Index of the items table -> its partition key: all items of a caller, those of one category.
ITEM_INDEXES = {"by_owner": "owner", "by_category": "owner_category"}
ITEM_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")  # what a URL carries unescaped, RFC 3986
ETAG = r'(?:W/)?"[^"\x00-\x20\x7f]*"'
ETAGS = rf"\*|(,[ \t]*)*{ETAG}([ \t]*,([ \t]*{ETAG})?)*"  # with empty elements: RFC 9110, 5.6.1.2
ETAGS_LIMIT = 100  # what IN takes in a condition of DynamoDB
PATCH_TYPES = ("application/merge-patch+json", "application/json")
CONTRACT = "openapi.yaml"  # beside this file, here and in the deployment package
BODY_LIMIT = 2_500_000  # bytes: 400 KB of item with each byte escaped as \u0001
#: Type of a problem -> its status and title. Without a type of its own, a problem has the first one
#: of its status. Types are stable: clients tell problems apart by them.
PROBLEM_TYPES = {
    "bad-request": (400, "Bad Request"),
    "invalid-parameters": (400, "Invalid Parameters"),
    "unauthorized": (401, "Unauthorized"),
    "forbidden": (403, "Forbidden"),
    "not-found": (404, "Not Found"),
    "method-not-allowed": (405, "Method Not Allowed"),
    "conflict": (409, "Conflict"),
    "id-taken": (409, "Id Taken"),
    "not-scanned": (409, "Not Scanned"),
    "threat-found": (409, "Threat Found"),
    "precondition-failed": (412, "Precondition Failed"),
    "content-too-large": (413, "Content Too Large"),
    "unsupported-media-type": (415, "Unsupported Media Type"),
    "unprocessable-content": (422, "Unprocessable Content"),
    "invalid-fields": (422, "Invalid Fields"),
    "idempotency-key-reused": (422, "Idempotency-Key Reused"),
    "internal-server-error": (500, "Internal Server Error"),
    "service-unavailable": (503, "Service Unavailable"),
}
STATUS_TYPES = {status: name for name, (status, _) in reversed(PROBLEM_TYPES.items())}
ERRORS_LIMIT = 20  # mistakes that one problem names
POINTER_LIMIT = 1_000  # characters
#: Of a route: the operation, the scope that callers need (none: no token), the metric it counts.
Route = namedtuple("Route", "operation scope metric")  # typing's would add 2 ms to a cold start


@functools.cache  # a function, so that it may stand before the operations
def all_routes(files: bool = True) -> dict[str, Route]:
    """The routes of an API with a file pipeline or without, and HEAD beside each GET (RFC 9110,
    9.1). The gateway drops HEAD's body, and states its length, which an empty one would make 0."""
    table = {
        "GET /health": Route(health, "", "RequestsOther"),
        "GET /openapi.yaml": Route(read_contract, "", "RequestsOther"),
        "POST /items": Route(create_item, "items/write", "ItemsCreated"),
        "GET /items": Route(list_items, "items/read", "ItemsListed"),
        "GET /items/{id}": Route(get_item, "items/read", "ItemsRead"),
        "PUT /items/{id}": Route(put_item, "items/write", "ItemsReplaced"),
        "PATCH /items/{id}": Route(patch_item, "items/write", "ItemsPatched"),
        "DELETE /items/{id}": Route(delete_item, "items/write", "ItemsDeleted"),
        "POST /files": Route(create_upload, "files/write", "UploadsAllowed"),
        "GET /files": Route(list_files, "files/read", "FilesListed"),
        "GET /files/totals": Route(list_totals, "files/read", "TotalsListed"),
        "GET /files/report": Route(list_report, "files/report", "ReportsRead"),
        "GET /files/{id}": Route(get_file, "files/read", "FilesRead"),
        "GET /files/{id}/content": Route(get_content, "files/read", "DownloadsAllowed"),
        "POST /files/{id}/versions": Route(restore_version, "files/write", "FileRestores"),
        "DELETE /files/{id}": Route(delete_file, "files/write", "FileDeletions"),
    }
    heads = {key.replace("GET", "HEAD", 1): table[key] for key in table if key.startswith("GET ")}
    return {key: x for key, x in {**table, **heads}.items() if files or "/files" not in key}


def routes() -> dict[str, Route]:
    """The routes of this deployment."""
    return all_routes("FILES_TABLE_NAME" in os.environ)


def open_services() -> None:
    """Makes the clients in the init phase, when Lambda lends a whole core."""
    service("dynamodb")
    service("ssm")


def api(event: Event, context: Any) -> Response:
    """Lambda handler of the HTTP API: responds to all requests and logs one line for each."""
    start_clock(context)
    started = time.perf_counter()
    request = Request(event)
    try:
        response = dispatch(request)
    except Problem as problem:
        request.error = problem.__cause__
        response = problem_response(problem, request.id)
    except Exception as error:  # noqa: BLE001 - whatever happens, the caller gets a response
        request.error, passes = error, getattr(error, "transient", False)
        failed = service_unavailable() if passes else Problem(500, "Internal error.")
        response = problem_response(failed, request.id)
    print(log_line(request, response["statusCode"], (time.perf_counter() - started) * 1000))
    return response


def dispatch(request: Request) -> Response:
    """Runs the operation of the request's route, if the caller's token has its scope."""
    if (route := routes().get(request.route)) is None:
        return no_route(request)
    if route.scope and not request.caller:
        raise Problem(401, "A bearer token is needed.", www_authenticate="Bearer")
    if route.scope and route.scope not in request.claims.get("scope", "").split():
        challenge = f'Bearer error="insufficient_scope", scope="{route.scope}"'
        raise Problem(403, f"The token lacks the scope {route.scope}.", www_authenticate=challenge)
    for header in sorted({"if-match", "if-none-match"} & request.headers.keys()):
        request.etags(header)  # malformed, it is 400 everywhere, also where nothing is found
    response: Response = route.operation(request)
    return response


def no_route(request: Request) -> Response:
    """OPTIONS on a path gets its methods; another request without a route is 405 or 404."""
    raw = request.event.get("rawPath", "")
    keys = [key.split() for key in routes()]
    allowed = [method for method, path in keys if path == raw] or [
        method for method, path in keys if matches_path(path.split("/"), raw.split("/"))
    ]
    if not allowed:
        raise Problem(404, "There is no such resource.")
    if request.method == "OPTIONS":
        patch = {"accept_patch": ", ".join(PATCH_TYPES)} if "PATCH" in allowed else {}
        return respond(204, allow=", ".join(allowed), **patch)
    raise Problem(405, f"{request.method} is not allowed here.", allow=", ".join(allowed))


def matches_path(template: list[str], parts: list[str]) -> bool:
    """Whether the segments of a path are an instance of a route's."""
    return len(template) == len(parts) and all(
        part == name or (name.startswith("{") and part)
        for name, part in zip(template, parts, strict=True)
    )


def health(_request: Request) -> Response:
    """GET /health: the gateway and this function respond. No table is read for who has no token."""
    return respond(200, '{"status":"ok"}', cache_control="no-store")


def read_contract(request: Request) -> Response:
    """GET /openapi.yaml: the contract of this version."""
    text, tag = contract()
    headers = {"etag": tag, "cache_control": "public, max-age=300"}
    if has_current(request, tag):
        return respond(304, **headers)
    return respond(200, text, content_type="application/yaml", **headers)


@functools.cache
def contract() -> tuple[str, str]:
    """The contract and its entity tag; read when it is first asked for."""
    text = text_beside(CONTRACT)
    return text, f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def text_beside(name: str) -> str:
    """A file that lies beside this one, here and in the deployment package."""
    with open(os.path.join(os.path.dirname(__file__), name), encoding="utf-8") as file:
        return file.read()


def has_current(request: Request, tag: str = "") -> bool:
    """Whether a reader has what is under this tag; Problem 412 (RFC 9110, 13.2.2). A weak tag never
    matches If-Match. A write to what If-None-Match names is 412 as well. Files have no tag."""
    wanted = request.etags("if-match")
    seen = [each.removeprefix("W/") for each in request.etags("if-none-match")]
    if wanted and "*" not in wanted and tag not in wanted:
        raise precondition_failed()
    if "*" not in seen and tag not in seen:
        return False
    if request.method not in ("GET", "HEAD"):
        raise precondition_failed()
    return True


def log_line(request: Request, status: int, milliseconds: float) -> str:
    """The request as one JSON line, with its business metric."""
    metric = "RequestsFailed" if status >= 500 else "RequestsRejected"
    if status < 400:
        route = routes().get(request.route)
        metric = route.metric if route else "RequestsOther"
    if request.id == PROBE_ID:
        metric = "RequestsProbed"  # which is nobody's, and not counted as a user's failure
    log_fields = {
        "route": request.route,
        "method": request.method,
        "status": status,
        "caller": request.caller,
        "latency_ms": round(milliseconds, 2),
        "request_id": request.id,
        "consumed_capacity": request.capacity,
    }
    if request.error:
        log_fields["error"] = format_error(request.error)
        if status >= 500:
            log_fields["stack"] = stack_of(request.error)
    return metric_line("request", metric, log_fields, failed=status >= 500)


class Problem(Exception):  # noqa: N818 - the RFC's word
    """A response that says what is wrong (RFC 9457), with the headers that its status needs. `kind`
    is one of PROBLEM_TYPES; `errors` names each mistake in a body or a query."""

    def __init__(
        self, status: int, detail: str, kind: str = "", errors: Sequence[Json] = (), **headers: str
    ):
        super().__init__(detail)
        self.status, self.detail, self.errors = status, detail, errors
        self.kind = kind or STATUS_TYPES[status]
        self.headers = headers


class Request:
    """A request of the API (payload format 2.0), and the table's capacity that it has used."""

    def __init__(self, event: Event):
        context = event["requestContext"]
        self.event = event
        self.id: str = context["requestId"]
        self.method: str = context["http"]["method"]
        self.route: str = event["routeKey"]
        self.headers: Mapping[str, str] = event.get("headers") or {}
        self.query: Mapping[str, str] = event.get("queryStringParameters") or {}
        token = context.get("authorizer", {}).get("jwt", {})
        self.claims: Mapping[str, Any] = token.get("claims", {})
        self.caller: str = self.claims.get("sub") or self.claims.get("client_id") or ""
        self.capacity = 0.0
        self.error: BaseException | None = None  # the cause of a failure, for the log

    @functools.cached_property
    def revision(self) -> str:
        """Of what it writes; by it a repeated write is recognised."""
        return new_id()

    def path_id(self) -> str:
        """The id in the path."""
        return str((self.event.get("pathParameters") or {}).get("id", ""))

    def item_id(self) -> str:
        """The id in the path; Problem 404 if no item can have it."""
        item_id = self.path_id()
        if not ITEM_ID.fullmatch(item_id):
            raise not_found()
        return item_id

    def object(self, *media_types: str) -> Json:
        """The JSON object in the body."""
        self._check_media_type(media_types)
        body = parse_json(self._text())
        if not isinstance(body, dict):
            raise Problem(422, "The body must be a JSON object.")
        return body

    def fields(self, *media_types: str) -> tuple[str | None, Item]:
        """The id that the body names, if any, and its other fields as attribute values."""
        body = self.object(*media_types)
        item_id, found = body.get("id"), dict[str, str]()
        if "id" in body and not (isinstance(item_id, str) and ITEM_ID.fullmatch(item_id)):
            rule = "1 to 128 letters, digits and ._~-, starting with a letter or digit"
            found["/id"] = f"An id is text of {rule}."
        own = {name: body[name] for name in body if name not in READ_ONLY_FIELDS}
        try:
            fields: Item = marshal(own)["M"]
        except Unstorable:
            fields = {}
            found |= itertools.islice(unstorable(own), ERRORS_LIMIT)
        category = own.get("category")
        if isinstance(category, str) and len(category.encode("utf-8", "replace")) > CATEGORY_LIMIT:
            found["/category"] = f"A category has at most {CATEGORY_LIMIT} bytes."
        if found:
            raise invalid_fields(found)
        return item_id, fields

    def _check_media_type(self, media_types: Sequence[str]) -> None:
        """Problem 415 for another media type, charset or content coding (RFC 9110, 15.5.16)."""
        content_type = re.sub('[ \t"]', "", self.headers.get("content-type", "").lower())
        kind, *parameters = content_type.split(";")
        charsets = {each for each in parameters if each.startswith("charset=")}
        if kind not in media_types or charsets - {"charset=utf-8"}:
            problem = Problem(415, f"The body must be {' or '.join(media_types)} in UTF-8.")
            # For PATCH its own header as well: RFC 5789, 2.2.
            for name in ("accept", *(["accept-patch"] if self.method == "PATCH" else [])):
                problem.headers[name] = ", ".join(media_types)
            raise problem
        if self.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise Problem(415, "The body must have no content coding.", accept_encoding="identity")

    def _text(self) -> str:
        """The body as text, within its limit."""
        body: str = self.event.get("body") or ""
        try:
            if self.event.get("isBase64Encoded"):
                body = base64.b64decode(body, validate=True).decode()
            size = len(body) if body.isascii() else len(body.encode())
        except ValueError:
            raise Problem(400, "The body is not UTF-8.") from None
        if size > BODY_LIMIT:
            raise Problem(413, f"The body has {size} bytes; the limit is {BODY_LIMIT}.")
        return body

    def etags(self, header: str) -> list[str]:
        """The entity tags of If-Match or If-None-Match (RFC 9110, 13.1); `*` is any item's."""
        value = self.headers.get(header)
        if value is None:
            return []
        if not re.fullmatch(ETAGS, value.strip()):
            raise Problem(400, f'{header.title()} is * or a list of tags such as "a", "b".')
        tags = re.findall(rf"\*|{ETAG}", value)
        if len(tags) > ETAGS_LIMIT:
            raise Problem(400, f"{header.title()} has more than {ETAGS_LIMIT} tags.")
        return tags


def respond(status: int, body: str = "", **headers: str) -> Response:
    """A response to the gateway (payload format 2.0)."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    if body:
        names = {"content-type": "application/json", "cache-control": "private, no-cache", **names}
    return {"statusCode": status, "headers": names, "body": body}


def problem_response(problem: Problem, request_id: str) -> Response:
    """The problem as application/problem+json."""
    body = {
        "type": f"/{CONTRACT}#{problem.kind}",
        "title": PROBLEM_TYPES[problem.kind][1],
        "status": problem.status,
        "detail": problem.detail,
        "request_id": request_id,
        **({"errors": problem.errors} if problem.errors else {}),
    }
    headers = {"content_type": "application/problem+json", "cache_control": "no-store"}
    return respond(problem.status, json.dumps(body), **headers, **problem.headers)


def mistakes(status: int, kind: str, key: str, found: Mapping[str, str]) -> Problem:
    """One problem for all mistakes: where it is -> what is expected there."""
    places = list(found.items())[:ERRORS_LIMIT]
    detail = places[0][1] + (" And more: see errors." if len(places) > 1 else "")
    return Problem(status, detail, kind, [{key: where, "detail": why} for where, why in places])


#: Problems that several places raise; mistakes in a body are named by JSON pointer (RFC 6901).
invalid_fields = functools.partial(mistakes, 422, "invalid-fields", "pointer")
invalid_parameters = functools.partial(mistakes, 400, "invalid-parameters", "parameter")
id_taken = functools.partial(Problem, 409, "The id is taken.", "id-taken")
not_found = functools.partial(Problem, 404, "There is no such item.")
no_version = functools.partial(Problem, 404, "There is no such version, or it is deleted.")
precondition_failed = functools.partial(
    Problem, 412, "The current ETag is not what If-Match or If-None-Match asks for."
)
service_unavailable = functools.partial(
    Problem, 503, "The service is unavailable; try again.", retry_after="1"
)


# === Serverless API: Items ========================================================================

# Set by the service; those of a body are ignored.
READ_ONLY_FIELDS = ("id", "version", "created_at", "updated_at")
CATEGORY_LIMIT = 1_024  # bytes: a partition key has 2,048, and the owner needs some
WRITE_ATTEMPTS = 10


def create_item(request: Request) -> Response:
    """POST /items: a new item under its own id or a generated one."""
    item_id, fields = request.fields("application/json")
    item = new_item(request, item_id or new_id(), fields)
    if "idempotency-key" in request.headers:
        item = create_once(request, item, item_id)
    else:
        create(request, [put(item)])
    return item_response(201, item, location=f"/items/{item['id']['S']}")


def new_item(request: Request, item_id: str, fields: Item, created: str = "") -> Item:
    """The first version of an item as the table holds it."""
    category = fields.get("category", {}).get("S")
    created = created or now()
    return {
        **item_key(request, item_id),
        "version": {"N": "1"},
        "revision": {"S": request.revision},
        "created_at": {"S": created},
        "updated_at": {"S": created},
        "content": {"M": fields},
        **({} if category is None else {"owner_category": category_key(request.caller, category)}),
    }


def item_key(request: Request, item_id: str) -> Item:
    """The key of a caller's item: two callers may have the same id, and neither learns of it."""
    return {"owner": {"S": request.caller}, "id": {"S": item_id}}


def put(item: Item, condition: str = "attribute_not_exists(id)", **values: AttributeValue) -> Write:
    """A conditional put, as part of a transaction."""
    return {
        "TableName": os.environ["TABLE_NAME"],
        "Item": item,
        "ConditionExpression": condition,
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        **({"ExpressionAttributeValues": values} if values else {}),
    }


def create(request: Request, puts: list[Write]) -> None:
    """Puts an item that must be new, alone or together with what must be new as well."""
    try:
        if len(puts) == 1:
            table(request, "put_item", **puts[0])
        else:
            table(request, "transact_write_items", TransactItems=[{"Put": each} for each in puts])
    except ConditionFailed as failure:
        if failure.item and failure.item.get("revision") == {"S": request.revision}:
            return  # an attempt whose response was lost had succeeded
        if len(puts) > 1:
            raise
        if failure.repeated:  # that attempt may have made the item, and another have changed it
            raise service_unavailable() from None
        raise id_taken() from None


def create_once(request: Request, item: Item, wanted_id: str | None) -> Item:
    """Creates an item with its Idempotency-Key, or repeats the first response. The key needs no
    copy of the response: the same body, id, time and revision make it again."""
    key = request.headers["idempotency-key"]
    if not re.fullmatch(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?", key):
        raise Problem(400, "An Idempotency-Key has 1 to 255 printable ASCII characters.")
    body = json.dumps([wanted_id, item["content"]], sort_keys=True)
    seconds = int(time.time())
    record = {
        **item_key(request, "idempotency#" + hashlib.sha256(key.encode()).hexdigest()),
        "fingerprint": {"S": hashlib.sha256(body.encode()).hexdigest()},
        "item_id": item["id"],
        "item_created_at": item["created_at"],  # with a created_at it would be in by_owner
        "revision": item["revision"],
        "expires_at": {"N": str(seconds + int(os.environ["IDEMPOTENCY_SECONDS"]))},
    }
    condition = "attribute_not_exists(id) OR expires_at < :now"
    try:
        create(request, [put(item), put(record, condition, **{":now": {"N": str(seconds)}})])
        return item
    except ConditionFailed as failure:
        first = failure.item
    if not first or "fingerprint" not in first:
        raise id_taken()
    if first["fingerprint"] != record["fingerprint"]:
        text = "The Idempotency-Key was used with another body."
        raise Problem(422, text, "idempotency-key-reused")
    request.revision = first["revision"]["S"]
    item_id, created = first["item_id"]["S"], first["item_created_at"]["S"]
    return new_item(request, item_id, item["content"]["M"], created)


def get_item(request: Request) -> Response:
    """GET /items/{id}: the caller's item, or 304 if If-None-Match has its ETag."""
    item = read_item(request, request.item_id())
    if has_current(request, etag(item)):
        return respond(304, etag=etag(item), cache_control="private, no-cache")
    return item_response(200, item)


def put_item(request: Request) -> Response:
    """PUT /items/{id}: replaces the fields of an item, all of them."""
    item_id = request.item_id()
    fields = replacement(request, item_id, "application/json")
    return change_item(request, item_id, lambda _: fields)


def patch_item(request: Request) -> Response:
    """PATCH /items/{id}: merges the body into the item; of two at once none is lost."""
    item_id = request.item_id()
    patch = {"M": replacement(request, item_id, *PATCH_TYPES)}
    return change_item(request, item_id, lambda item: merge_patch(item["content"], patch)["M"])


def replacement(request: Request, item_id: str, *media_types: str) -> Item:
    """The fields in the body of a write; the body may repeat the item's id, not change it."""
    named, fields = request.fields(*media_types)
    if named not in (None, item_id):
        raise invalid_fields({"/id": "The id in the body is not the one in the path."})
    return fields


def change_item(request: Request, item_id: str, changed: Callable[[Item], Item]) -> Response:
    """Writes the changed fields of an item, once, if it is still as it was read. Problem 412 if a
    precondition does not hold, 409 if others change it all the time, and 503 if it is unknown
    whether the write took place: its response was lost, and another has come after it."""
    for attempt in range(WRITE_ATTEMPTS):
        item = read_item(request, item_id)
        has_current(request, etag(item))
        fields = changed(item)
        try:
            return item_response(200, write_fields(request, item, fields))
        except ConditionFailed as failure:
            if failure.repeated:
                raise service_unavailable() from None
        jittered_pause(0.01 * 2 ** min(attempt, 5))
    raise Problem(409, "The item is being changed by others; try again.", retry_after="1")


def delete_item(request: Request) -> Response:
    """DELETE /items/{id}: deletes the item; a second time it is 404."""
    key = item_key(request, request.item_id())
    only = {**delete_condition(request), "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
    try:
        table(request, "delete_item", Key=key, **only)
    except ConditionFailed as failure:
        if failure.item:
            raise precondition_failed() from None
        if not failure.repeated:
            raise not_found() from None
    return respond(204)


def list_items(request: Request) -> Response:
    """GET /items: the caller's items by time, of a category or not, from a time to another."""
    readers = {"category": read_text, "from": parse_time, "to": parse_time}
    filters, order, limit = list_query(request.query, readers)
    condition, values = created_between(filters)
    index, value = "by_owner", {"S": request.caller}
    if (category := filters.get("category")) is not None:
        index, value = "by_category", category_key(request.caller, category)
    times = [each["S"] for each in values.values()]
    scope = ("items", request.caller, category, *times, order)
    page = Page(request, "created_at", order, limit, scope)
    start_key = {"owner": {"S": request.caller}}
    page.query({ITEM_INDEXES[index]: value}, condition, values, start_key, IndexName=index)
    return page.response("items", item_json)


def write_fields(request: Request, item: Item, fields: Item) -> Item:
    """Replaces the fields of an item in one atomic step, if it is unchanged; returns the item."""
    category = fields.get("category", {}).get("S")
    sets = "content = :content, revision = :revision, updated_at = :now, version = version + :one"
    by_category = " REMOVE owner_category" if category is None else ", owner_category = :category"
    values = {
        ":seen": item["revision"],
        ":content": {"M": fields},
        ":revision": {"S": request.revision},
        ":now": {"S": now()},
        ":one": {"N": "1"},
        **({} if category is None else {":category": category_key(request.caller, category)}),
    }
    try:
        response = table(
            request,
            "update_item",
            Key=item_key(request, item["id"]["S"]),
            UpdateExpression=f"SET {sets}{by_category}",
            ConditionExpression="revision = :seen",
            ExpressionAttributeValues=values,
            ReturnValues="ALL_NEW",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
    except ConditionFailed as failure:
        if failure.item and failure.item.get("revision") == {"S": request.revision}:
            return failure.item  # an attempt whose response was lost had succeeded
        raise
    written: Item = response["Attributes"]
    return written


def read_item(request: Request, item_id: str) -> Item:
    """The caller's own item, read consistently, or Problem 404."""
    response = table(request, "get_item", Key=item_key(request, item_id), ConsistentRead=True)
    item: Item | None = response.get("Item")
    if item is None:
        raise not_found()
    return item


def etag(item: Item) -> str:
    """The entity tag of a stored item: its revision, which no other write has."""
    return f'"{item["revision"]["S"]}"'


def delete_condition(request: Request) -> Json:
    """Condition with its values: the item exists, as If-Match and If-None-Match want it."""
    condition, values = "id = :id", {":id": {"S": request.item_id()}}
    # A weak tag never matches If-Match (RFC 9110, 13.1.1): with its W/ it is no revision.
    wanted = request.etags("if-match")
    seen = [tag.removeprefix("W/") for tag in request.etags("if-none-match")]
    if "*" in seen:
        condition += " AND attribute_not_exists(id)"
    for operator, tags in (("revision", wanted), ("NOT revision", seen)):
        if tags and "*" not in tags:
            names = [f":r{len(values) + n}" for n in range(len(tags))]
            condition += f" AND {operator} IN ({', '.join(names)})"
            values |= {name: {"S": tag.strip('"')} for name, tag in zip(names, tags, strict=True)}
    return {"ConditionExpression": condition, "ExpressionAttributeValues": values}


def category_key(owner: str, category: str) -> AttributeValue:
    """Partition key of the index by_category: one caller's items of one category."""
    return {"S": f"{owner}#{category}"}


def item_json(item: Item) -> str:
    """A stored item as its caller sees it."""
    own = {name: item[name] for name in READ_ONLY_FIELDS}
    return to_json({"M": {**own, **item["content"]["M"]}})


def item_response(status: int, item: Item, **headers: str) -> Response:
    """A response with an item and its entity tag."""
    return respond(status, item_json(item), etag=etag(item), **headers)


def new_id() -> str:
    """A UUID of version 7 (RFC 9562): sorts by time, says nothing else."""
    time_ms, noise = int(time.time() * 1000), int.from_bytes(os.urandom(10), "big")
    value = time_ms << 80 | 7 << 76 | (noise >> 62 & 0xFFF) << 64 | 2 << 62 | noise & (1 << 62) - 1
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def now() -> str:
    """The time as RFC 3339 with microseconds, so that text order is time order."""
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{second(seconds)}.{microseconds:06d}Z"


@functools.lru_cache(maxsize=2)  # a request needs it for the item and for its signature
def second(seconds: int) -> str:
    """A second since 1970 as RFC 3339, without the zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class ConditionFailed(Exception):  # noqa: N818 - DynamoDB's word
    """The condition of a write failed. `item` is what exists, if anything; `repeated` tells that
    the write was sent more than once, so that an earlier attempt may have succeeded."""

    def __init__(self, item: Item | None, repeated: bool = False):
        super().__init__("the condition of a write did not hold")
        self.item, self.repeated = item, repeated


def table(request: Request, operation: str, **arguments: Any) -> Json:
    """One call of DynamoDB for a request; a failure becomes ConditionFailed or a Problem."""
    try:
        if operation != "transact_write_items" and "TableName" not in arguments:
            arguments["TableName"] = os.environ["TABLE_NAME"]
        call = getattr(service("dynamodb"), operation)
        response: Json = call(ReturnConsumedCapacity="TOTAL", **arguments)
    except Exception as error:
        raise as_problem(error) from error
    consumed = response.get("ConsumedCapacity", ())
    for each in consumed if isinstance(consumed, list) else (consumed,):
        request.capacity += each["CapacityUnits"] if each else 0
    return response


def as_problem(error: Exception) -> Exception:
    """What a failure of DynamoDB means to the caller; another exception is returned unchanged."""
    if not isinstance(error, ServiceError):
        return error
    response = error.response
    code, message = response["Error"]["Code"], response["Error"]["Message"]
    reasons = response.get("CancellationReasons", [])
    failed = [each for each in reasons if each.get("Code") not in (None, "None")]
    if code == "ConditionalCheckFailedException":
        retries = response["ResponseMetadata"]["RetryAttempts"]
        return ConditionFailed(response.get("Item"), repeated=retries > 0)
    if failed and all(each["Code"] == "ConditionalCheckFailed" for each in failed):
        return ConditionFailed(reasons[-1].get("Item"))
    if "exceeded the maximum allowed size" in f"{message} {failed}":
        return item_too_large()
    if code == "ValidationException" or any(each["Code"] == "ValidationError" for each in failed):
        return Problem(422, "DynamoDB cannot store the item.")
    busy = {code.removesuffix("Exception"), *(each["Code"] for each in failed)} & BUSY_REASONS
    # Without permission, or without the table, another attempt would fail as well.
    return service_unavailable() if error.transient or busy else error


# === Serverless API: Paging =======================================================================

TEXT_LIMIT = 1_024  # bytes of a parameter: what categories and keys of S3 have
PAGE_LIMIT = 1_000_000  # characters of a page; Lambda drops a response above 6 MB
FILTERED_READ = 101  # items for a page, whatever a filter leaves of them: as for the longest page


def list_query(query: Mapping[str, str], filters: Mapping[str, Reader]) -> tuple[Json, str, int]:
    """The filters that a list request names, its order and its limit, or Problem 400."""
    readers = {**filters, "order": read_one_of("asc", "desc"), "limit": read_limit}
    values = read_query(query, readers)
    given = {name: values[name] for name in filters if name in values}
    return given, values.get("order", "desc"), values.get("limit", 20)


def read_query(query: Mapping[str, str], readers: Mapping[str, Reader]) -> Json:
    """The parameters of a request for a page, or Problem 400."""
    readers = {**readers, "next": read_text}
    values, found = dict[str, Any](), dict[str, str]()
    for name, text in query.items():
        if name not in readers:
            expected = f"expected one of {', '.join(readers)}"
            found[name] = f"Unknown parameter {printable(name)}; {expected}."
            continue
        try:
            values[name] = readers[name](name, text)
        except Problem as problem:
            found[name] = problem.detail
    if found:
        raise invalid_parameters(found)
    return values


def read_one_of(*choices: str) -> Reader:
    """What reads one of these texts."""

    def read(name: str, text: str) -> str:
        if text not in choices:
            raise Problem(400, f"{name} is {' or '.join(choices)}, not {printable(text)}.")
        return text

    return read


def read_limit(_name: str, text: str) -> int:
    """1 to 100."""
    if not re.fullmatch("[1-9][0-9]?|100", text):
        raise Problem(400, f"limit is 1 to 100, not {printable(text)}.")
    return int(text)


def read_text(name: str, text: str) -> str:
    """A text of a length that a key can hold."""
    if byte_length(text) > TEXT_LIMIT:
        raise Problem(400, f"{name} has at most {TEXT_LIMIT} bytes.")
    return text


class Page:
    """One page of a query: where it begins, its items, and the token of the next page. Items are in
    the order of their attribute `sort`; `scope` binds tokens to caller and query."""

    def __init__(self, request: Request, sort: str, order: str, limit: int, scope: Scope):
        self.request, self.sort, self.order = request, sort, order
        self.limit, self.scope = limit, scope
        self.items: list[Item] = []
        self.end: Item = {}  # where the query ended, if there is more

    def query(self, key: Item, condition: str, values: Item, start_key: Item, **more: Any) -> None:
        """Reads the items under a partition key, and under a condition on #sort with its values.
        `start_key` is what ExclusiveStartKey needs beyond this key, the sort key and the id."""
        ((name, value),) = key.items()
        names = {"#key": name, **({"#sort": self.sort} if "#sort" in condition else {})}
        if "next" in self.request.query:
            position, item_id = verify_page_token(self.request.query["next"], self.scope)
            start = {"id": {"S": item_id}, **key, self.sort: {"S": position}, **start_key}
            more["ExclusiveStartKey"] = start
        response = table(
            self.request,
            "query",
            KeyConditionExpression=f"#key = :value{condition}",
            ExpressionAttributeNames=names,
            ExpressionAttributeValues={":value": value, **values},
            ScanIndexForward=self.order == "asc",
            # One more tells whether this page is the last; a filter may leave few of what is read.
            Limit=FILTERED_READ if "FilterExpression" in more else self.limit + 1,
            **more,
        )
        self.items, self.end = response["Items"], response.get("LastEvaluatedKey", {})

    def response(self, name: str, show: Callable[[Item], str], /, **members: str) -> Response:
        """The page behind these members, as JSON texts; it ends where it would grow too large."""
        texts: list[str] = []
        size = 0
        for item in self.items[: self.limit]:
            texts.append(show(item))
            size += len(texts[-1])
            if size > PAGE_LIMIT:
                break
        members[name] = f"[{','.join(texts)}]"
        last = self.end if len(texts) == len(self.items) else self.items[len(texts) - 1]
        if not last:
            return respond(200, json_object(members))
        token = sign_page_token(last[self.sort]["S"], last["id"]["S"], self.scope)
        return respond_more(self.request, members, token)


def respond_more(request: Request, members: dict[str, str], token: str) -> Response:
    """A page that is not the last: the token of the next in its body, and in a Link (RFC 8288)."""
    query = urlencode({**request.query, "next": token}, quote_via=quote)
    link = f'<{request.event["rawPath"]}?{query}>; rel="next"'
    return respond(200, json_object({**members, "next": f'"{token}"'}), link=link)


#: A day, or a time of RFC 3339, which has no 24:00.
TIME = re.compile(r"\d{4}-\d\d-\d\d(T(?!24)\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d))?", re.ASCII)


def created_between(filters: Mapping[str, str]) -> tuple[str, Item]:
    """Condition and values of the sort key from `from` to `to`, if given, both included."""
    if not filters.keys() & {"from", "to"}:
        return "", {}
    first, last = filters.get("from", str(date.min)), filters.get("to", str(date.max))
    end = f"{last}U" if len(last) == len("2026-11-30") else last  # U is after the T of a time
    if end < first:
        raise invalid_parameters(dict.fromkeys(("from", "to"), "from is later than to."))
    return " AND #sort BETWEEN :from AND :to", {":from": {"S": first}, ":to": {"S": end}}


def parse_time(name: str, text: str) -> str:
    """A day as it is, or a time as items have it, or Problem 400."""
    try:
        if TIME.fullmatch(text):
            found = datetime.fromisoformat(text)
            if found.tzinfo is None:
                return text
            return found.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"
    except (OverflowError, ValueError):
        pass  # 30 February; a time that is in the year 0 in UTC
    examples = "2026-11-30 or 2026-11-30T08:00:00Z"
    raise Problem(400, f"{name} is a day or a time such as {examples}, not {printable(text)}.")


def page_mac(key: bytes, position: str, item_id: str, scope: Scope) -> bytes:
    """The MAC of a position in one list, as JSON: no text can move the boundary to the next."""
    return hmac.digest(key, json.dumps([position, item_id, *scope]).encode(), "sha256")


def sign_page_token(position: str, item_id: str, scope: Scope) -> str:
    """An opaque token of the position behind this item: a MAC and what it signs."""
    mac = page_mac(paging_keys(PAGING_KEY_SECONDS)[0], position, item_id, scope)
    text = f"{position}\n{item_id}"  # no position has a line's end
    return base64.urlsafe_b64encode(mac + text.encode()).decode().rstrip("=")


def verify_page_token(token: str, scope: Scope) -> tuple[str, str]:
    """Position and id in a token; Problem 400 if it is not of this caller and query."""
    try:
        raw = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), b"-_", validate=True)
        position, _, item_id = raw[32:].decode().partition("\n")
    except ValueError:
        raise Problem(400, "next is no token of this service.") from None
    # Another container may know a newer key: read the keys again before the token is rejected.
    for max_age in (PAGING_KEY_SECONDS, PAGING_KEY_MIN_SECONDS):
        for key in paging_keys(max_age):
            if hmac.compare_digest(raw[:32], page_mac(key, position, item_id, scope)):
                return position, item_id
    raise Problem(400, "next is not a token of this caller and query.")


PAGING_KEY_SECONDS = 300  # how long a container uses the keys that it has read
PAGING_KEY_STALE_SECONDS = 3_600  # how long while SSM is unavailable
PAGING_KEY_MIN_SECONDS = 10  # how soon an unknown signature makes it read them again
_paging: dict[str, Any] = {"keys": [], "read": float("-inf"), "tried": float("-inf")}


def paging_keys(max_age: float) -> list[bytes]:
    """The keys that sign tokens, the current one first; Problem 503 if there are none."""
    clock = time.monotonic()
    usable = _paging["keys"] and clock - _paging["read"] < PAGING_KEY_STALE_SECONDS
    # An outage must not slow all lists by the attempts at a call.
    waited = clock - _paging["tried"] >= PAGING_KEY_MIN_SECONDS
    if not usable or (clock - _paging["read"] >= max_age and waited):
        _paging["tried"], end = clock, _clock["end"]
        if usable:  # the list itself needs time as well
            _clock["end"] = clock + seconds_left() / 2
        try:
            _paging.update(keys=read_paging_keys(), read=clock)
        except (ServiceError, ValueError) as error:
            if not usable:  # a ValueError ends with the first rotation
                transient = getattr(error, "transient", True)
                raise (service_unavailable() if transient else error) from error
            message = f"paging key is stale: {format_error(error)}"
            print(json.dumps({"level": "WARN", "message": message}))
        finally:
            _clock["end"] = end
    return list(_paging["keys"])


def read_paging_keys() -> list[bytes]:
    """The keys in the parameter; ValueError before the first rotation."""
    response = service("ssm").get_parameter(Name=os.environ["PAGING_KEY"], WithDecryption=True)
    keys = [bytes.fromhex(key) for key in parse_keys(response["Parameter"]["Value"])]
    if not keys:
        raise ValueError("the paging key was never rotated")
    return keys


def parse_keys(value: str) -> list[str]:
    """The keys in the parameter's value, as hex; its first value is `unset`."""
    return [key for key in value.split(",") if key != "unset"]


# IAM is eventually consistent: a policy that was attached seconds ago may not hold yet.
ROTATION_ATTEMPTS = 6


def rotate_paging_key(event: Event, context: Any) -> None:
    """Lambda handler: puts a new paging key before the current one, drops older ones.
    With `{"dry_run": true}` it only reads them."""
    start_clock(context)
    new = os.urandom(32).hex()  # one: an attempt may have put it whose response was lost
    for attempt in range(1, ROTATION_ATTEMPTS + 1):
        try:
            name = os.environ["PAGING_KEY"]
            parameter = service("ssm").get_parameter(Name=name, WithDecryption=True)["Parameter"]
            keys = list(dict.fromkeys([new, *parse_keys(parameter["Value"])]))[:2]
            if event.get("dry_run"):
                return
            service("ssm").put_parameter(
                Name=name,
                Value=",".join(keys),
                Type="SecureString",
                KeyId=os.environ["KEY_ARN"],  # without it SSM would encrypt with its own key
                Overwrite=True,
            )
            line = {"level": "INFO", "message": "paging key rotated", "attempt": attempt}
            print(json.dumps(line))
            return
        except Exception as error:
            print(json.dumps({"level": "WARN", "message": format_error(error), "attempt": attempt}))
            if attempt == ROTATION_ATTEMPTS or seconds_left() <= 2**attempt / 2:
                raise
        time.sleep(2**attempt / 2)


# === Serverless API: Values =======================================================================

MAX_DEPTH = 31  # DynamoDB nests 32 levels, and the item's fields are one below its own
TOO_DEEP = f"The body nests deeper than {MAX_DEPTH} levels."
EMPTY_NAME = "A field name cannot be empty."
ITEM_LIMIT = 409_600  # bytes, DynamoDB's
item_too_large = functools.partial(Problem, 413, f"An item has at most 400 KB, {ITEM_LIMIT} bytes.")
VALUES_LIMIT = ITEM_LIMIT // 2  # a value in a list or an object takes 2 bytes at least
PLAIN_DIGITS = 40  # a longer number is written with an exponent
# 38 digits, 1E-130 to 9.99E+125: DynamoDB developer guide, "Supported data types", Number.
# What is above or below is inexact as well, or subnormal.
DYNAMODB_NUMBER = Context(38, Emin=-130, Emax=125, traps=[Inexact, InvalidOperation, Subnormal])


def parse_json(text: str) -> Any:
    """JSON with numbers as exact Decimals; ambiguous or non-standard text raises Problem 400. Takes
    time and memory linear in the text, and little of both for what no item can hold."""
    check_values(text)
    try:
        return json_decoder().decode(text)
    except RecursionError:
        raise Problem(400, TOO_DEEP) from None
    except ValueError as error:
        raise Problem(400, f"The body is not JSON: {error}.") from None


@functools.cache  # json.loads would make one for each body
def json_decoder() -> json.JSONDecoder:
    """The decoder of bodies."""
    return json.JSONDecoder(
        parse_int=parse_number,
        parse_float=parse_number,
        parse_constant=reject_constant,
        object_pairs_hook=unique_names,
    )


def check_values(text: str) -> None:
    """Problem 413 for more values than an item can hold, before each becomes an object."""
    if len(text) <= VALUES_LIMIT:
        return
    parts = text.replace("\\\\", "").replace('\\"', "").split('"')
    outside = "".join(parts[::2])  # of strings
    if sum(map(outside.count, ",[{")) > VALUES_LIMIT:
        raise Problem(413, f"The body has more than {VALUES_LIMIT} values.")


def parse_number(text: str) -> Decimal:
    """A number that DynamoDB stores exactly, or NaN."""
    try:
        return DYNAMODB_NUMBER.create_decimal(text)
    except DecimalException:
        return Decimal("NaN")  # which JSON has not; it is refused where it would be stored


def reject_constant(text: str) -> None:
    """NaN and Infinity are Python's, not JSON's."""
    raise Problem(400, f"{text} is not JSON.")


def unique_names(pairs: list[tuple[str, Any]]) -> Json:
    """The object of these members; Problem 400 for a duplicate name, which would lose a value."""
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise Problem(400, f"Duplicate member name {printable(name)}.")  # RFC 8259, 4
            seen.add(name)
    return members


class Unstorable(Problem):
    """A part of a body that no item can hold; `unstorable` says which."""

    def __init__(self, detail: str):
        super().__init__(422, detail, "invalid-fields")


def unstorable(value: Any, path: tuple[str, ...] = ()) -> Iterable[tuple[str, str]]:
    """JSON pointer and reason of each part of a value that no item can hold."""
    if not isinstance(value, list | dict):
        try:
            scalar(value)
        except Unstorable as error:
            yield pointer(path), error.detail
    elif len(path) > MAX_DEPTH:
        yield pointer(path), TOO_DEEP
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from unstorable(each, (*path, str(number)))
    else:
        for name, each in value.items():
            below = (*path, name)
            if not name:
                yield pointer(below), EMPTY_NAME
            yield from unstorable(name, below)
            yield from unstorable(each, below)


def pointer(path: Iterable[str]) -> str:
    """The JSON pointer of a part (RFC 6901), or of what it is in if that would be very long."""
    text = ""
    for name in path:
        if len(text) + len(name) > POINTER_LIMIT:
            break
        text += "/" + name.replace("~", "~0").replace("/", "~1")
    return text


def marshal(value: Any) -> AttributeValue:
    """A parsed JSON value as a DynamoDB attribute value; Problem 413 where no item can hold it."""
    return Marshaller().convert(value, 0)


class Marshaller:
    """Converts values up to an item's size: developer guide, "DynamoDB item sizes and formats"."""

    def __init__(self) -> None:
        self.size = 0

    def convert(self, value: Any, depth: int) -> AttributeValue:
        """A value that is nested so deep."""
        if isinstance(value, list | dict):
            return self._container(value, depth)
        kind, content, size = scalar(value)
        self._add(size)
        return {kind: content}

    def _container(self, value: Any, depth: int) -> AttributeValue:
        if depth > MAX_DEPTH:
            raise Unstorable(TOO_DEEP)
        self._add(3 + len(value))
        if isinstance(value, list):
            return {"L": [self.convert(each, depth + 1) for each in value]}
        if "" in value:
            raise Unstorable(EMPTY_NAME)
        self._add(sum(map(byte_length, value)))
        return {"M": {name: self.convert(each, depth + 1) for name, each in value.items()}}

    def _add(self, size: int) -> None:
        self.size += size
        if self.size > ITEM_LIMIT:
            raise item_too_large()


def scalar(value: Any) -> tuple[str, Any, int]:
    """DynamoDB's type of a value that is no container, its content, its size in bytes."""
    if isinstance(value, str):
        return "S", value, byte_length(value)
    if isinstance(value, Decimal):
        text = number_text(value)
        digits = text.partition("E")[0].replace(".", "").strip("-0")
        return "N", text, 1 + (len(digits) + 1) // 2
    return ("NULL", True, 1) if value is None else ("BOOL", value, 1)


def number_text(number: Decimal) -> str:
    """A number as DynamoDB takes it: in plain digits, unless they are many."""
    text = str(number)
    if text.isdigit() and len(text) <= PLAIN_DIGITS:  # as most are
        return text
    if number.is_nan():
        reason = "numbers have at most 38 digits and lie between 1E-130 and 9.99E+125"
        raise Unstorable(f"The number cannot be stored exactly: {reason}.")
    if not number:
        return "0"
    short = number.normalize(DYNAMODB_NUMBER)
    _, digits, exponent = short.as_tuple()
    plain = len(digits) + abs(int(exponent)) <= PLAIN_DIGITS
    return format(short, "f") if plain else str(short)


def byte_length(text: str) -> int:
    """The length of a text in UTF-8, or Unstorable."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise Unstorable(f"{printable(text)} has half of a surrogate pair.") from None


def printable(text: str) -> str:
    """The beginning of a caller's text, quoted and escaped, for an error."""
    return json.dumps(text if len(text) <= 50 else text[:50] + "...")


def to_json(value: AttributeValue) -> str:
    """A DynamoDB attribute value as JSON text; numbers keep all digits."""
    ((kind, content),) = value.items()
    if kind == "S":
        return encode_basestring(content)
    if kind == "N":
        return content if len(content) <= PLAIN_DIGITS + 2 else number_text(Decimal(content))
    if kind == "M":
        members = [f"{encode_basestring(name)}:{to_json(content[name])}" for name in content]
        return "{" + ",".join(members) + "}"
    if kind == "L":
        return "[" + ",".join(map(to_json, content)) + "]"
    return "null" if kind == "NULL" else "true" if content else "false"


def json_object(members: Mapping[str, str]) -> str:
    """The JSON object of members whose values are JSON texts."""
    return "{" + ",".join(f"{encode_basestring(k)}:{v}" for k, v in members.items()) + "}"


def merge_patch(target: AttributeValue, patch: AttributeValue) -> AttributeValue:
    """RFC 7396 on DynamoDB attribute values; an absent target is {}."""
    if "M" not in patch:
        return patch
    merged = dict(target.get("M", {}))
    for name, value in patch["M"].items():
        if "NULL" in value:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name, {}), value)
    return {"M": merged}


# === Serverless API: Identity =====================================================================

#: Scopes of the API: resource server, scope, what it permits.
SCOPES = (
    ("items", "read", "Read and list one's own items"),
    ("items", "write", "Create, change and delete one's own items"),
    ("files", "read", "Read, list and download one's own files"),
    ("files", "write", "Upload, restore and delete one's own files"),
    ("files", "report", "Read the totals of all owners' files"),
)
MACHINE_SCOPES = {"files/report"}  # which no person gets by signing in


def scopes_of(systems: Sequence[str]) -> list[str]:
    """The scopes of a stack with these systems, as tokens have them: `items/read`, ..."""
    return [f"{server}/{scope}" for server, scope, _ in SCOPES if server in ("items", *systems)]


class Identity(Component):
    """A Cognito user pool with the API's scopes, a client for people and one for each machine.
    People are invited by an administrator. Costs monthly users above 10,000 (the Essentials tier),
    each machine by the month, and each of its tokens."""

    def __init__(self, name: str, args: TapStackArgs, opts: Options = None):
        super().__init__(name, args, None, opts, "identity")
        self.pool = self._pool()
        self.scopes = scopes_of(args.systems)
        servers = dict.fromkeys(each.partition("/")[0] for each in self.scopes)
        self.servers = {server: self._server(server) for server in servers}
        self.people = self._people()
        machines = args.machine_clients.items()
        #: Name of each machine -> its app client.
        self.machines = {name: self._machine(f"machine-{name}", x) for name, x in machines}
        self.walkers = [self._machine("synthetics", self.scopes[:2])] if args.synthetics else []
        # A prefix is unique in its region, in all accounts.
        prefix = self.aws_context.unique_name(f"{args.project}-{args.environment_suffix}")
        of: Any = {"domain": prefix, "user_pool_id": self.pool.id}
        self.domain = aws.cognito.UserPoolDomain(*self.child("domain"), **of)
        #: Issuer of the tokens, as a JWT authorizer wants it.
        self.issuer = Output.concat("https://", self.pool.endpoint)
        ids: Any = {name: each.id for name, each in self.machines.items()}
        self.machine_ids: Output[dict[str, str]] = Output.from_input(ids)
        #: Ids of the clients whose tokens are accepted.
        self.audience = [x.id for x in (self.people, *self.machines.values(), *self.walkers)]
        url, region = "https://{0}.auth.{1}.amazoncognito.com", self.aws_context.region
        #: Where people sign in and all clients fetch their tokens (OAuth 2.0).
        self.sign_in_url = Output.format(url, self.domain.domain, region)
        self.register_outputs({"user_pool_id": self.pool.id})

    def _pool(self) -> aws.cognito.UserPool:
        args = self.args
        by_email: Any = {"name": "verified_email", "priority": 1}
        enforced: Any = {"advanced_security_mode": "ENFORCED"}
        kinds = ("lowercase", "uppercase", "numbers", "symbols")
        strong: Any = {"minimum_length": 14, **{f"require_{each}": True for each in kinds}}
        strong["temporary_password_validity_days"] = 3
        return aws.cognito.UserPool(
            *self.child("pool", protect=True),
            name=args.name("users"),
            user_pool_tier="PLUS" if args.threat_protection else "ESSENTIALS",
            username_attributes=["email"],
            username_configuration={"case_sensitive": False},
            auto_verified_attributes=["email"],
            admin_create_user_config={"allow_admin_create_user_only": True},
            password_policy=strong,
            mfa_configuration=args.mfa,
            software_token_mfa_configuration=None if args.mfa == "OFF" else {"enabled": True},
            account_recovery_setting={"recovery_mechanisms": [by_email]},
            email_configuration=self._sender(),
            deletion_protection="ACTIVE" if args.deletion_protection else "INACTIVE",
            user_pool_add_ons=enforced if args.threat_protection else None,
        )

    def _server(self, server: str) -> aws.cognito.ResourceServer:
        own = [(scope, doc) for owner, scope, doc in SCOPES if owner == server]
        return aws.cognito.ResourceServer(
            *self.child(server),
            identifier=server,
            name=server,
            user_pool_id=self.pool.id,
            scopes=[{"scope_name": scope, "scope_description": doc} for scope, doc in own],
        )

    def _sender(self) -> aws.cognito.UserPoolEmailConfigurationArgsDict:
        if not (mail := self.args.email_from):
            return {"email_sending_account": "COGNITO_DEFAULT"}
        domain = mail.partition("@")[2]
        arn = self.args.email_identity_arn or self.aws_context.arn("ses", f"identity/{domain}")
        return {"email_sending_account": "DEVELOPER", "from_email_address": mail, "source_arn": arn}

    def _people(self) -> aws.cognito.UserPoolClient:
        return self._client(
            "people",
            ["code"],
            ["openid", "email", *(each for each in self.scopes if each not in MACHINE_SCOPES)],
            generate_secret=False,  # an app in a browser cannot keep one: PKCE takes its place
            callback_urls=self.args.callback_urls,
            logout_urls=self.args.logout_urls,
            explicit_auth_flows=["ALLOW_REFRESH_TOKEN_AUTH", "ALLOW_USER_SRP_AUTH"],
            refresh_token_validity=30,
        )

    def _machine(self, key: str, scopes: Sequence[str]) -> aws.cognito.UserPoolClient:
        return self._client(
            key,
            ["client_credentials"],
            self.scopes if "*" in scopes else scopes,
            generate_secret=True,
            # Cognito requires a flow; no user can sign in with this one.
            explicit_auth_flows=["ALLOW_REFRESH_TOKEN_AUTH"],
            refresh_token_validity=1,
        )

    def _client(
        self, key: str, flows: Sequence[str], scopes: Sequence[str], **own: Any
    ) -> aws.cognito.UserPoolClient:
        units: Any = {"access_token": "minutes", "id_token": "minutes", "refresh_token": "days"}
        return aws.cognito.UserPoolClient(
            *self.child(key, *self.servers.values()),
            name=self.args.name(key),
            user_pool_id=self.pool.id,
            allowed_oauth_flows_user_pool_client=True,
            allowed_oauth_flows=flows,
            allowed_oauth_scopes=scopes,
            supported_identity_providers=["COGNITO"],
            access_token_validity=60,
            id_token_validity=60,
            token_validity_units=units,
            enable_token_revocation=True,
            prevent_user_existence_errors="ENABLED",
            **own,
        )


# === Serverless API: Resources ====================================================================

OPEN_ROUTE_RATE = 10  # requests per second of a route that anybody may call
#: Inputs of the paging key's parameter: another one makes a new parameter, and rotates it at once.
PAGING_KEY_INPUTS: dict[str, Any] = {
    "description": "Keys that sign paging tokens, the current one first",
    "type": "SecureString",
    "value_wo": "unset",
    "value_wo_version": 1,
}
CORS_REQUEST_HEADERS = "authorization content-type idempotency-key if-match if-none-match".split()


def probe_request(route_key: str, scope: str) -> tuple[Event, int]:
    """A request that a release sends to a version, of what is not there, and its status."""
    path, missing = route_key.split()[1], "0" * 40  # what the id of an item and of a file may be
    claims = {"sub": PROBE_ID, "scope": scope}
    # Nobody had anything then: it costs half a read unit.
    where, status = {"queryStringParameters": {"to": "2000-01-01"}}, 200
    if "{id}" in path:
        where, status = {"pathParameters": {"id": missing}}, 404
    context = {"requestId": PROBE_ID, "http": {"method": "GET"}}
    context["authorizer"] = {"jwt": {"claims": claims}}
    raw = path.replace("{id}", missing)
    event: Json = {"version": "2.0", "routeKey": route_key, "rawPath": raw, **where}
    return {**event, "requestContext": context}, status


class ServerlessApi(Component):
    """Items behind an HTTP API: table, function, paging key and its rotation, routes, access log.
    With a file pipeline, its files as well: forms for uploads, lists, versions and totals. `issuer`
    and `audience` are of the tokens; `handler` may wrap `api`, in a file of its own. Costs
    requests, and DynamoDB on demand: an item is written to the table and one or two indexes."""

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        key: Key,
        opts: Options = None,
        *,
        issuer: Input[str],
        audience: Sequence[Input[str]],
        files: FilePipeline | None = None,
        handler: Handler = api,
    ):
        super().__init__(name, args, key, opts, "api")
        self.files = files
        self.route_table = all_routes(files is not None)
        self.items = self._items()
        self.paging_key = self._paging_key()
        self.rotation = self._rotation()
        self.first_rotation = self._first_rotation()
        self.schedule = self.rotation.schedule("rate(30 days)", "A new paging key every 30 days")
        self.function = self._function(handler)
        if maximum := args.provisioned_concurrency_max:
            self.function.provisioned_concurrency(args.provisioned_concurrency_min, maximum)
        self.api = self._api()
        self.authorizer = aws.apigatewayv2.Authorizer(
            *self.child("tokens"),
            name="tokens",
            api_id=self.api.id,
            authorizer_type="JWT",
            identity_sources=["$request.header.Authorization"],
            jwt_configuration={"issuer": issuer, "audiences": audience},
        )
        self.integration = self._integration()
        self.routes = self._routes()
        self.stage = self._stage()
        #: The API's own domain name, and where it must point, if it has one.
        self.domain_target: Output[str] | None = None
        self.certificate_arn: Input[str] = ""
        self.domain = self._domain() if args.api_domain_name else None
        own = self.domain and Output.concat("https://", self.domain.domain_name)
        #: Base URL of the API.
        self.url = own or self.api.api_endpoint
        self.register_outputs({"url": self.url, "table_name": self.items.name})

    def _items(self) -> aws.dynamodb.Table:
        keys = ("id", "created_at", *ITEM_INDEXES.values())
        return aws.dynamodb.Table(
            *self.child("items", protect=True),
            name=self.args.table_name or self.args.name("items"),
            billing_mode="PAY_PER_REQUEST",
            hash_key="owner",
            range_key="id",
            attributes=[{"name": key, "type": "S"} for key in keys],
            global_secondary_indexes=[
                index(name, key, "created_at") for name, key in ITEM_INDEXES.items()
            ],
            ttl={"attribute_name": "expires_at", "enabled": True},
            point_in_time_recovery={"enabled": True},
            server_side_encryption={"enabled": True, "kms_key_arn": self.key.arn},
            deletion_protection_enabled=self.args.deletion_protection,
        )

    def _paging_key(self) -> aws.ssm.Parameter:
        # The value is the rotation function's, and nobody else's: a write-only value is neither
        # stored in Pulumi's state nor compared with the parameter's. The provider updates such a
        # parameter with an empty value, which SSM rejects, so a change replaces it: but not one of
        # valueWo, which is missing after a refresh.
        replaced = ["description", "keyId", "type", "valueWoVersion"]
        return aws.ssm.Parameter(
            *self.child("paging-key", replace_on_changes=replaced, delete_before_replace=True),
            name=f"/{self.args.project}/{self.args.environment_suffix}/paging-key",
            key_id=self.key.arn,
            **PAGING_KEY_INPUTS,
        )

    def _rotation(self) -> Function:
        environment = {"PAGING_KEY": self.paging_key.name, "KEY_ARN": self.key.arn}
        replace = allow("ssm:GetParameter", "ssm:PutParameter", on=self.paging_key.arn)
        return Function(
            *self.part("rotation"),
            component="rotation",
            code=Code(handler=rotate_paging_key, environment=environment, timeout_seconds=90),
            canary=Canary(probes=[({"dry_run": True}, None)]),
            statements=[replace, self.key_use("ssm", "Decrypt", "Encrypt")],
            max_event_age_hours=1,
        )

    def _first_rotation(self) -> aws.lambda_.Invocation:
        return aws.lambda_.Invocation(
            *self.child("first-rotation", self.rotation.rollout),
            function_name=self.rotation.function.name,
            qualifier=self.rotation.alias.name,
            input="{}",
            # Again for a parameter that is replaced, also if that run was interrupted in between.
            triggers={"parameter": Output.concat(self.key.arn, " ", str(PAGING_KEY_INPUTS))},
        )

    def _function(self, handler: Handler) -> Function:
        code = Code(
            handler=handler,
            init=open_services,
            files={CONTRACT: contract()[0]},
            environment={
                "TABLE_NAME": self.items.name,
                "PAGING_KEY": self.paging_key.name,
                "IDEMPOTENCY_SECONDS": str(self.args.idempotency_hours * 3600),
                **metrics_environment(self.args),
                **(self.files.api_environment() if self.files else {}),
            },
            memory_mb=self.args.memory_mb,
            timeout_seconds=self.args.timeout_seconds,
        )
        reads = [each for each in self.route_table.items() if each[0].startswith("GET ")]
        writes = actions_of("dynamodb", "DeleteItem GetItem PutItem UpdateItem")
        return Function(
            *self.part("items"),
            component="api",
            code=code,
            canary=Canary(
                probes=[probe_request(key, route.scope) for key, route in reads],
                alarms=["api-5xx", "api-latency", "api-errors"],
                failures="RequestsFailed",
                latency_bound_ms=self.args.latency_ms,
            ),
            statements=[
                allow(*writes, on=self.items.arn),
                allow("dynamodb:Query", on=index_arns(self.items, ITEM_INDEXES)),
                self.key_use("dynamodb", *TABLE_KEY_USE),
                allow("ssm:GetParameter", on=self.paging_key.arn),
                self.key_use("ssm", "Decrypt"),
                *(self.files.api_statements() if self.files else []),
            ],
            concurrency=self.args.api_concurrency,
        )

    def _api(self) -> aws.apigatewayv2.Api:
        cors: aws.apigatewayv2.ApiCorsConfigurationArgsDict = {
            "allow_origins": self.args.cors_origins,
            "allow_methods": ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            "allow_headers": CORS_REQUEST_HEADERS,
            "expose_headers": ["apigw-requestid", "etag", "link", "location", "retry-after"],
            "max_age": 600,
        }
        one_address = bool(self.args.api_domain_name) and not self.args.api_default_endpoint
        return aws.apigatewayv2.Api(
            *self.child("http"),
            name=self.args.name("api"),
            description="Items and files of people and machines",
            protocol_type="HTTP",
            cors_configuration=cors if self.args.cors_origins else None,
            # One address: what guards the name cannot be passed by.
            disable_execute_api_endpoint=one_address or None,
        )

    def _domain(self) -> aws.apigatewayv2.DomainName:
        name = self.args.api_domain_name
        self.certificate_arn = self.args.api_certificate_arn or self.certificate(name)
        domain = aws.apigatewayv2.DomainName(
            *self.child("domain"),
            domain_name=name,
            domain_name_configuration={
                "certificate_arn": self.certificate_arn,
                "endpoint_type": "REGIONAL",
                "security_policy": "TLS_1_2",  # and 1.3
                "ip_address_type": "dualstack",
            },
        )
        joined: Any = {"api_id": self.api.id, "domain_name": domain.id, "stage": self.stage.name}
        aws.apigatewayv2.ApiMapping(*self.child("mapping"), **joined)
        made: Any = domain.domain_name_configuration
        self.domain_target = made.target_domain_name
        self.point(name, "A", "AAAA", target=self.domain_target, zone_id=made.hosted_zone_id)
        return domain

    def _integration(self) -> aws.apigatewayv2.Integration:
        source_arn = Output.concat(self.api.execution_arn, "/*")
        self.function.permit(self.child("invoke"), "http-api", "apigateway", source_arn=source_arn)
        return aws.apigatewayv2.Integration(
            *self.child("integration"),
            api_id=self.api.id,
            integration_type="AWS_PROXY",
            integration_method="POST",
            integration_uri=self.function.alias.invoke_arn,
            payload_format_version="2.0",
            timeout_milliseconds=(self.args.timeout_seconds + 1) * 1000,
        )

    def _routes(self) -> dict[str, aws.apigatewayv2.Route]:
        """All routes with their scopes; other requests get the function's 404 or 405."""
        target = Output.concat("integrations/", self.integration.id)
        free: Json = {"api_id": self.api.id, "target": target, "authorization_type": "NONE"}
        tokens = {**free, "authorization_type": "JWT", "authorizer_id": self.authorizer.id}
        secured: dict[str, Any] = {
            key: {**tokens, "authorization_scopes": [route.scope]} if route.scope else free
            for key, route in self.route_table.items()
        }
        # A browser sends OPTIONS without a token, which $default with its authorizer would reject.
        fallback = {"$default": tokens, "OPTIONS /{proxy+}": free}
        return {
            key: aws.apigatewayv2.Route(*self.child(_slug(key)), route_key=key, **own)
            for key, own in {**secured, **fallback}.items()
        }

    def _stage(self) -> aws.apigatewayv2.Stage:
        # Groups under this prefix do not use up the account's resource policy for log delivery.
        prefix = "/aws/vendedlogs/apis"
        logs = self.log_group("access-logs", f"{prefix}/{self.args.name('api')}")
        throttles = self._throttles()
        # What a route has of its own takes the place of all default settings.
        own: Any = [{"route_key": key, **self._limits(x, burst=10)} for key, x in throttles.items()]
        return aws.apigatewayv2.Stage(
            *self.child("stage", *(self.routes[key] for key in throttles)),  # they must exist
            api_id=self.api.id,
            name="$default",
            auto_deploy=True,
            access_log_settings={"destination_arn": logs.arn, "format": json.dumps(ACCESS_LOG)},
            default_route_settings=self._limits(self.args.throttle_rate, self.args.throttle_burst),
            route_settings=own,
        )

    def _throttles(self) -> dict[str, float]:
        """Requests per second of routes that have a limit of their own: without a token, costly."""
        open_routes = [key for key, route in self.route_table.items() if not route.scope]
        rate = min(OPEN_ROUTE_RATE, self.args.throttle_rate)
        costly = self.files.api_throttles() if self.files else {}
        if not self.args.cors_origins:  # a page's preflights have the stage's rate
            open_routes.append("OPTIONS /{proxy+}")
        return {**dict.fromkeys(open_routes, rate), **costly}

    def _limits(self, rate: float, burst: int) -> Any:
        return {
            "detailed_metrics_enabled": self.args.detailed_metrics,
            "throttling_rate_limit": rate,  # one without the other would be 0
            "throttling_burst_limit": burst,
        }

    def alarms(self) -> list[Alarm]:
        """Failures and latency of the API, throttles of its table, alarms of its functions."""
        stage = {"ApiId": self.api.id, "Stage": self.stage.name}
        errors, latency = "AWS/ApiGateway/5xx", "AWS/ApiGateway/Latency"
        p95: dict[str, Any] = {"statistic": "p95", "datapoints": (3, 5)}
        claimed, most = "AWS/Lambda/ClaimedAccountConcurrency", 0.8 * self.args.concurrency_quota
        here, project = {"Environment": self.args.environment_suffix}, self.args.project
        return [
            Alarm("api-release", f"{project}/Releasing", here, above=0, notifies="nobody"),
            Alarm("api-5xx", errors, stage, 0.05, statistic="Average", datapoints=(3, 3)),
            Alarm("api-latency", latency, stage, above=self.args.latency_ms, **p95),
            Alarm("claimed-concurrency", claimed, {}, above=most, statistic="Maximum"),
            *certificate_alarm("api-certificate", self.certificate_arn),
            *throttle_alarms("items", self.items, ITEM_INDEXES),
            *self.function.alarms(),
            *self.rotation.alarms(),
        ]

    def objectives(self) -> list[Objective]:
        """That requests succeed, and are quick."""
        stage, args = {"ApiId": self.api.id, "Stage": self.stage.name}, self.args
        requests = ("AWS/ApiGateway/Count", stage, "SampleCount")
        succeed = {"failed": ("AWS/ApiGateway/5xx", stage, "Sum"), "requests": requests}
        latency = ("AWS/ApiGateway/Latency", stage, f"PR(:{args.latency_ms})")
        quick = {"quick": latency, "requests": requests}
        return [
            Objective("api-availability", args.availability_objective, succeed, "failed"),
            Objective("api-latency", args.latency_objective, quick, SLOW),
        ]

    def graphs(self) -> list[Graph]:
        """Objectives, requests, latency and operations of the API, its table and functions."""
        stage = {"ApiId": self.api.id, "Stage": self.stage.name}
        environment = {"Environment": self.args.environment_suffix}
        operations = dict.fromkeys(route.metric for route in self.route_table.values())
        rejected = ("RequestsRejected", "RequestsFailed")
        latency = [f"Latency {each}" for each in ("p50", "p95", "p99")]
        good = ("5xx Average", f"Latency PR(:{self.args.latency_ms})")
        concurrency = lines("AWS/Lambda", {}, "ClaimedAccountConcurrency Maximum")
        return [
            Graph("API objectives", lines("AWS/ApiGateway", stage, *good), overview=True),
            Graph("Concurrency of the account", concurrency, overview=True),
            Graph("API requests", lines("AWS/ApiGateway", stage, "Count", "4xx", "5xx")),
            Graph("API latency", lines("AWS/ApiGateway", stage, *latency)),
            Graph("Operations", lines(self.args.project, environment, *operations, *rejected)),
            capacity_graph("Items table", self.items),
            *self.function.graphs(),
            *self.rotation.graphs(),
        ]


def _slug(text: str) -> str:
    """A text as part of a logical name: `GET /items/{id}` -> `get-items-id`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


#: A line of the access log: caller, request, response, and where it failed.
ACCESS_LOG = {
    "requestId": "$context.requestId", "requestTime": "$context.requestTime",
    "ip": "$context.identity.sourceIp", "caller": "$context.authorizer.claims.sub",
    "method": "$context.httpMethod", "path": "$context.path", "routeKey": "$context.routeKey",
    "status": "$context.status", "responseLength": "$context.responseLength",
    "responseLatency": "$context.responseLatency",
    "integrationLatency": "$context.integrationLatency",
    "integrationError": "$context.integrationErrorMessage",
    "authorizerError": "$context.authorizer.error",
}  # fmt: skip


# === Serverless API: Synthetics ===================================================================

#: The life of an item: request, outcome, body, headers; braces hold what the first response has.
WALK: Sequence[tuple[str, str, Any, Json]] = (
    ("POST /items", "201 {id} walk", {"name": "walk"}, {"idempotency-key": "{key}"}),
    ("POST /items", "201 {id} walk", {"name": "walk"}, {"idempotency-key": "{key}"}),
    ("GET /items/{id}", "200 {id} walk", None, {}),
    ("GET /items/{id}", "304", None, {"if-none-match": "{etag}"}),
    ("GET /items", "200", None, {}),
    ("PATCH /items/{id}", "412 Precondition Failed", {"name": "x"}, {"if-match": '"another"'}),
    ("PATCH /items/{id}", "200 {id} changed", {"name": "changed"}, {"if-match": "{etag}"}),
    ("PATCH /items/{id}", "422 Invalid Fields", {"id": None}, {}),
    ("DELETE /items/{id}", "204", None, {}),
    ("GET /items/{id}", "404 Not Found", None, {}),
)
WALK_SECONDS = 90  # until Lambda ends one


def walk_item(url: str, headers: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    """Takes an item of an API through its life: each request, the outcome that it must have, and
    its own. An outcome is a status, and the item's id and name or the problem's title."""
    known = {"key": os.urandom(16).hex()}
    for request, expected, value, own in WALK:
        method, path = request.format(**known).split()
        more = {name: text.format(**known) for name, text in own.items()}
        body = json.dumps(value) if value else None
        status, named, found = fetch(method, url + path, body=body, headers={**headers, **more})
        known = {"id": found.get("id", ""), "etag": named.get("etag", ""), **known}
        shown = (found[name] for name in ("id", "name", "title", "message") if name in found)
        wanted = " ".join(expected.format(**known).split())
        yield request, wanted, " ".join(map(str, (status, *shown)))
        if not known["id"]:
            return


def walk_api(_event: Event, context: Any) -> None:
    """Lambda handler: walks through the API from outside, as a machine of its own.
    Logs each step that failed, and counts 1 for a walk without any, else 0."""
    start_clock(context)
    url, failed = os.environ["API_URL"], list[tuple[str, ...]]()
    try:
        token = walker_token(int(time.time() / 3_500))  # which is good for an hour
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        found = fetch("GET", f"{url}/items", headers=headers)[2].get("items", [])
        over = second(int(time.time()) - WALK_SECONDS)
        for each in found:  # of walks that were killed; a release's own may be under way
            if each["created_at"] < over:
                fetch("DELETE", f"{url}/items/{each['id']}", headers=headers)
        failed.extend(step for step in walk_item(url, headers) if step[1] != step[2])
    except Exception as error:  # noqa: BLE001 - a step without a response
        failed.append(("the walk", "its end", format_error(error)))
    for request, expected, found in failed:
        print(json.dumps({"level": "ERROR", "message": f"{request}: {found}, not {expected}"}))
        walker_token.cache_clear()  # which may be the reason
    print(metric_line("walk", "WalksPassed", {}, failed=False, value=int(not failed)))


@functools.lru_cache(1)
def walker_token(_period: int) -> str:
    """An access token of the function's app client, whose secret is in no variable and not kept."""
    ids = {"UserPoolId": os.environ["USER_POOL_ID"], "ClientId": os.environ["CLIENT_ID"]}
    known = client("cognito-idp").describe_user_pool_client(**ids)["UserPoolClient"]
    form = {"client_id": known["ClientId"], "client_secret": known["ClientSecret"]}
    form["grant_type"] = "client_credentials"
    url = os.environ.get("AWS_ENDPOINT_URL") or os.environ["SIGN_IN_URL"]  # an emulator's is named
    status, _, found = fetch("POST", f"{url}/oauth2/token", fields=form, encode_multipart=False)
    if status != 200:
        raise ValueError(f"POST /oauth2/token: {status} {found}")
    return str(found["access_token"])


def fetch(method: str, url: str, **request: Any) -> tuple[int, Any, Json]:
    """Status, headers and JSON of a response; urllib3's error if there is none."""
    from urllib3 import PoolManager

    response = PoolManager(timeout=5, retries=False).request(method, url, **request)
    return response.status, response.headers, json.loads(response.data or "{}")


class Synthetics(Function):
    """A function that walks through the API from outside every five minutes, as a machine of its
    own: what alarms see without traffic. Costs an app client, tokens, a metric, its requests."""

    def __init__(self, name: str, *shared: Any, identity: Identity, api_url: Input[str]):
        urls: Json = {"API_URL": api_url, "SIGN_IN_URL": identity.sign_in_url}
        ids: Json = {"CLIENT_ID": identity.walkers[0].id, "USER_POOL_ID": identity.pool.id}
        variables = {**urls, **ids, **metrics_environment(shared[0])}
        super().__init__(
            name,
            *shared,
            component="synthetics",
            code=Code(handler=walk_api, environment=variables, timeout_seconds=WALK_SECONDS),
            canary=Canary(probes=[({}, None)]),
            statements=[allow("cognito-idp:DescribeUserPoolClient", on=identity.pool.arn)],
        )
        # In the middle of the alarm's periods: at their ends two walks could be in one of them.
        self.timer = self.schedule("cron(2/5 * * * ? *)", "A walk through the API")
        self.of = {"Environment": self.args.environment_suffix}

    def alarms(self) -> list[Alarm]:
        """Walks that fail or do not take place, for whatever reason."""
        walks = f"{self.args.project}/WalksPassed"
        rule: Any = {"period": 300, "datapoints": (2, 3), "treat_missing_data": "missing"}
        rule["notifies"] = "page"
        return [Alarm("synthetics", walks, self.of, below=1, statistic="Minimum", **rule)]

    def graphs(self) -> list[Graph]:
        """Walks that passed, and the function's calls."""
        walks = lines(self.args.project, self.of, "WalksPassed Average")
        return [Graph("Synthetics", walks), *super().graphs()]


# === File pipeline ================================================================================
# S3 notifies the handler of each object version that is made or deleted; it records what it is.
#
# The files table has three types of items, by `id` and `record`:
#
#   type        id                     record                  attributes
#   version     digest of the key      version#<sequencer>     all that is known of a version, or of
#                                                              a delete marker; of a scan later
#   newest      digest of the key      newest                  the same of the newest version, with
#                                                              the keys of the three indexes
#   total       totals#<month>         <owner>/<day>/<type>/   count, bytes; deleted_count and
#                                      <shard>                 deleted_bytes of them
#
# GET /files/{id} reads newest and versions, GET /files/totals the totals, GET /files the indexes,
# which hold the newest versions with all attributes, sorted by uploaded_at.

#: Index of the files table -> its partition key: `<owner>/`, and behind it `deleted`, the folder or
#: the content type.
FILE_INDEXES = {"by_owner": "files_of", "by_folder": "folder_of", "by_content_type": "type_of"}
INDEX_SHARES = {"Read": 4, "Write": 2}  # an index has a part of the table's: docs/decisions/0007
START_BYTES = 65_536  # of an object in one read; there are two at most, however large it is
MISSING_OBJECT_CODES = {"404", "405", "MethodNotAllowed", "NoSuchKey", "NoSuchVersion"}
ARCHIVED_CODES = {"InvalidObjectState", "ObjectNotInActiveTierError"}
SEQUENCER_DIGITS = 64
FILES_TIMEOUT_SECONDS = 60
CLOCK_SKEW_SECONDS = 30  # between S3 and Lambda, generously
VERSION_LOOKS = 8  # for an upload that is under way; 6 s with the pauses between
VERSIONS_READ = 20  # at once; most files have fewer
TOTAL_SHARDS = 16  # one for each hexadecimal digit
FILE_ID = re.compile(r"[0-9a-f]{40}")
OWNER_BYTES = 512  # a total's sort key begins with it, and may have 1,024 bytes
#: GuardDuty's tag, its results that let a file be given out, what it puts beside the files.
SCAN_TAG, HARMLESS = "GuardDutyMalwareScanStatus", ("NO_THREATS_FOUND", "UNSUPPORTED")
VALIDATION_OBJECT = "malware-protection-resource-validation-object"
EVENT_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


class RecordsFailed(Exception):  # noqa: N818 - what the dead letter says
    """Some records of an event failed: Lambda retries it, then sends it to the queue."""


def open_file_clients() -> None:
    """Makes the clients and reads the signatures in the init phase, on a whole core."""
    service("dynamodb")
    client("s3")
    signatures()


def record_files(event: Event, context: Any) -> None:
    """Lambda handler of S3's notifications and GuardDuty's scans: records each version once.
    All records of the event are processed, whatever becomes of the others. Raises RecordsFailed if
    some failed, so that Lambda retries the event, twice, and then puts it into the dead-letter
    queue; those that succeeded are recognised and not counted again."""
    start_clock(context)
    told = event if isinstance(event, dict) else {}
    records = [told] if "detail" in told else told.get("Records")  # an event of EventBridge is one
    if not isinstance(records, list) or not records:
        raise RecordsFailed("the event has no records: it is not from S3")
    failures = []
    for record in records:
        started = time.perf_counter()
        log_fields: Json = {"request_id": context.aws_request_id}
        try:
            outcome = record_file(record, log_fields)
        except Exception as error:  # noqa: BLE001 - one bad record must not hold back the others
            outcome = "FilesFailed"
            log_fields.update(error=format_error(error), stack=stack_of(error))
            failures.append(f"{log_fields.get('key', 'a record')}: {format_error(error)}")
        log_fields["latency_ms"] = round((time.perf_counter() - started) * 1000, 2)
        print(metric_line("file", outcome, log_fields, failed=outcome == "FilesFailed"))
    if failures:
        raise RecordsFailed(f"{len(failures)} of {len(records)} records: {'; '.join(failures)}")


def record_file(record: Event, log_fields: Json) -> str:
    """Records what an S3 event record, or a scan, tells of a version; returns the metric."""
    if "detail" in record:
        return record_scan(record, log_fields)
    name = str(record.get("eventName", "")).removeprefix("s3:")
    if not name.startswith(("ObjectCreated:", "ObjectRemoved:", "LifecycleExpiration:")):
        log_fields["event"] = record.get("eventName")
        return "FilesIgnored"
    creation = name.startswith("ObjectCreated:")
    upload = Upload(record, creation)
    log_fields.update(key=upload.key, version_id=upload.version_id)
    if upload.key == VALIDATION_OBJECT:
        return "FilesIgnored"
    if creation:
        return record_upload(upload, log_fields)
    return record_deletion(upload, marker=name.endswith(":DeleteMarkerCreated"))


def record_scan(event: Event, log_fields: Json) -> str:
    """Records what GuardDuty found in a version; of several scans the last one counts. A version
    that is not recorded yet is waited for, then RecordsFailed has Lambda try again."""
    of, result = event["detail"]["s3ObjectDetails"], event["detail"]["scanResultDetails"]
    stored = {"key": quote(of["objectKey"]), "versionId": of.get("versionId")}  # as S3's events are
    where = {"bucket": {"name": of["bucketName"]}, "object": stored}
    scanned = Upload({"s3": where, "eventTime": event["time"]}, creation=False)
    found, threats = result["scanResultStatus"], [x["name"] for x in result.get("threats") or ()]
    log_fields.update(key=scanned.key, version_id=scanned.version_id, scan=found, threats=threats)
    if scanned.key == VALIDATION_OBJECT:
        return "FilesIgnored"
    file = scanned.attributes()
    version = await_version(file, scanned)
    if not version:
        raise RecordsFailed(f"version {scanned.version_id} is scanned, and not recorded yet")
    later = "attribute_not_exists(scanned_at) OR scanned_at < :scanned_at"
    names: AttributeValue = {"L": [{"S": each} for each in threats]}
    new = {"scan_result": {"S": found}, "threats": names, "scanned_at": {"S": event["time"]}}
    repeated = transact([version_update(version, later, **new)])
    record_newest(file)
    if repeated:
        return "FilesRepeated"
    outcome = "Infected" if threats else "Scanned" if found in HARMLESS else "Unscanned"
    return f"Files{outcome}"


def record_upload(upload: Upload, log_fields: Json) -> str:
    """Records a new version; returns the metric that it counts."""
    file = upload.attributes()
    try:
        file.update(within(seconds_left(), inspect_upload, upload))
    except Exception as error:
        if error_code(error) not in MISSING_OBJECT_CODES:
            raise
        log_fields["error"] = format_error(error)
        return record_failure(file, "The object was gone before it could be read.")
    logged = ("size", "content_type", "declared_type")
    log_fields.update({name: next(iter(file[name].values())) for name in logged})
    if asked := file["metadata"]["M"].get("request-id"):
        log_fields["upload_request_id"] = asked["S"]
    return record_version(file)


class Upload:
    """An object version or delete marker, as an S3 event names it; ValueError if it names none."""

    def __init__(self, record: Mapping[str, Any], creation: bool = True):
        try:
            stored, self.uploaded_at = record["s3"]["object"], record["eventTime"]
            self.bucket: str = record["s3"]["bucket"]["name"]
            self.key = unquote_plus(stored["key"], errors="strict")
            self.version_id: str = stored.get("versionId") or ""
            # Lifecycle may delete without one; then only what S3 says of the file counts.
            sequencer: str = stored["sequencer"] if creation else stored.get("sequencer", "")
            valid = re.fullmatch(f"[0-9A-Fa-f]{{0,{SEQUENCER_DIGITS}}}", sequencer)
            named = self.bucket and self.key and (sequencer or not creation)
            if not (valid and named and EVENT_TIME.fullmatch(self.uploaded_at)):
                raise ValueError(f"sequencer {sequencer!r}, time {self.uploaded_at!r}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no record of an S3 object: {format_error(error)}") from None
        # The longer of two sequencers is not the later one: S3 user guide, "Event message
        # structure", wants zeros at the end of the shorter before the two are compared.
        self.sequencer = sequencer.upper().ljust(SEQUENCER_DIGITS, "0")
        self.id = file_id(self.key)
        self.owner, below, path = self.key.partition("/")
        if not below or len(self.owner.encode()) > OWNER_BYTES:  # then it is nobody's
            self.owner, path = "", self.key
        self.folder, _, self.name = path.rpartition("/")
        _, dot, extension = self.name.lstrip(".").rpartition(".")
        self.extension = extension.lower() if dot else ""

    def object_version(self) -> dict[str, str]:
        """The SDK's arguments that name it."""
        version = {"VersionId": self.version_id} if self.version_id else {}
        return {"Bucket": self.bucket, "Key": self.key, **version}

    def attributes(self) -> Item:
        """What is known from the event alone, as attributes of the version's item."""
        names = "id sequencer key owner folder name extension version_id uploaded_at".split()
        known = {name: {"S": getattr(self, name)} for name in names}
        return {**known, "record": {"S": f"version#{self.sequencer}"}}


def file_id(key: str) -> str:
    """The id of a file: 160 bits of a digest of its key, as a key may have any characters."""
    return hashlib.sha256(key.encode()).hexdigest()[:40]


def inspect_upload(upload: Upload) -> Item:
    """What S3 and the object's bytes tell, as attributes: two calls, three for a few formats."""
    found = client("s3").head_object(**upload.object_version(), ChecksumMode="ENABLED")
    size = found["ContentLength"]
    try:
        start = Start(read_bytes(upload, 0, size))
        start.whole, start.extension = len(start) == size, upload.extension
        beyond = iter([] if start.whole else [True])
        start.more = lambda at: read_bytes(upload, at, size) if next(beyond, False) else b""
        content_type = content_type_of(start)
        width, height = dimensions(content_type, start)
    except Exception as error:
        if error_code(error) not in ARCHIVED_CODES:
            raise
        content_type, width, height = "application/octet-stream", 0, 0  # it is archived
    checksums = [name for name in found if re.fullmatch("Checksum[A-Z0-9]+", name)]
    metadata = {name: {"S": value} for name, value in found["Metadata"].items()}
    return {
        "size": {"N": str(size)},
        "content_type": {"S": content_type},
        "declared_type": {"S": found.get("ContentType", "")},
        "etag": {"S": found["ETag"].strip('"')},
        "checksums": {"M": {name[8:]: {"S": found[name]} for name in checksums}},
        "metadata": {"M": metadata},
        **({"width": {"N": str(width)}, "height": {"N": str(height)}} if width and height else {}),
    }


def read_bytes(upload: Upload, offset: int, size: int) -> bytes:
    """What an object of `size` bytes has at an offset, START_BYTES at most; EOFError if cut."""
    wanted = min(START_BYTES, size - offset)
    if wanted <= 0:
        return b""
    where = f"bytes={offset}-{offset + wanted - 1}"
    response = client("s3").get_object(**upload.object_version(), Range=where)
    part: bytes = response["Body"].read(START_BYTES)
    if len(part) != wanted:  # it would be taken for another type
        raise EOFError(f"S3 sent {len(part)} of {wanted} bytes from {offset} on")
    return part


def record_version(file: Item) -> str:
    """Writes a version, the file's newest version and the totals in one transaction. A version
    exists once for each object and sequencer, so a repeated event changes nothing. An event that
    comes after that of a newer version leaves the newest version as it is."""
    later = "attribute_not_exists(id) OR sequencer < :sequencer"
    newest = newest_put(newest_item(file), later, {":sequencer": file["sequencer"]})
    version, totals = files_put(file), totals_update(file)
    failed = transact([version, totals, newest])
    if failed:
        if failed[0] != "ConditionalCheckFailed":
            failed = transact([version, totals])
        record_newest(file)  # which an event of a later deletion may have written without it
    return "FilesRepeated" if failed else "FilesRecorded"


def record_failure(file: Item, reason: str) -> str:
    """Writes a version about which nothing more will be known; it counts in no total. If S3 has no
    other version of its file, that is among the deleted ones, with the reason."""
    repeated = transact([files_put({**file, "failure": {"S": reason}})])
    record_newest(file)
    return "FilesRepeated" if repeated else "FilesMissing"


def record_deletion(deleted: Upload, marker: bool) -> str:
    """Records a delete marker, or that a version or a marker is gone; returns the metric. A version
    that is not recorded may be about to be: the function that saw it before it was deleted has
    ended when FILES_TIMEOUT_SECONDS have passed, for S3 is consistent. Until then this waits a
    little, then RecordsFailed has Lambda try again; afterwards there is nothing to record."""
    file, repeated = deleted.attributes(), True
    if marker and int(deleted.sequencer, 16):
        # S3 answers 405 for one that it still has (HeadObject, S3 API).
        there = head_object(deleted.object_version())[1] not in ("", "404")
        gone = {} if there else {"deleted_at": file["uploaded_at"]}
        recorded = {**file, "delete_marker": {"BOOL": True}, **gone}
        repeated = bool(transact([files_put(recorded)]))
    elif marker:
        repeated = False
    elif version := await_version(file, deleted):
        once = "attribute_not_exists(deleted_at)"
        writes = [version_update(version, once, deleted_at=file["uploaded_at"])]
        if "size" in version:  # else it is in no total
            writes.append(totals_update(version, "deleted_"))
        repeated = "deleted_at" in version or bool(transact(writes))
    elif is_recent(deleted):
        raise RecordsFailed(f"version {deleted.version_id} is deleted, and not recorded yet")
    record_newest(file)
    return "FilesRepeated" if repeated else "FilesDeleted"


def head_object(target: dict[str, str]) -> tuple[str, str]:
    """The version that S3 has of an object, or the code of its answer where it has none."""
    try:
        found = within(seconds_left(), client("s3").head_object, **target)
    except Exception as error:
        if error_code(error) not in MISSING_OBJECT_CODES:
            raise
        return "", error_code(error)
    return str(found.get("VersionId", "null")), ""


def await_version(file: Item, deleted: Upload) -> Item | None:
    """What is recorded of a deleted version; waits for an upload that may be under way."""
    for attempt in range(VERSION_LOOKS):
        version = find_version(file, deleted.version_id)
        if version or not (is_recent(deleted) and may_repeat(attempt)):
            return version
    return find_version(file, deleted.version_id)


def is_recent(deleted: Upload) -> bool:
    """Whether a function that read a version before it was deleted may still be at work."""
    age = datetime.now(UTC) - datetime.fromisoformat(deleted.uploaded_at)
    return age.total_seconds() < FILES_TIMEOUT_SECONDS + CLOCK_SKEW_SECONDS


def record_newest(file: Item) -> None:
    """Writes the newest item of a file as S3 has the file now, in whatever order events come. The
    item is read before S3 is asked, and written only if nobody has written it since."""
    key, table_name = {"id": file["id"], "record": {"S": "newest"}}, os.environ["FILES_TABLE_NAME"]
    for attempt in itertools.count():
        found = service("dynamodb").get_item(TableName=table_name, Key=key, ConsistentRead=True)
        old = found.get("Item", {})
        revision = old.pop("revision", None)
        new = newest_of(file, old)
        if new in (None, old):
            return
        same, values = "attribute_not_exists(id)", {}
        if revision:
            same, values = "revision = :revision", {":revision": revision}
        if not transact([newest_put(new, same, values)]):
            return
        if not may_repeat(attempt):
            raise RecordsFailed(f"{file['key']['S']} changes faster than it can be recorded")


def newest_of(file: Item, old: Item) -> Item | None:
    """That item by S3 and the recorded versions; None if the event of the newest is to come."""
    target = {"Bucket": os.environ["BUCKET_NAME"], "Key": file["key"]["S"]}
    if current := head_object(target)[0]:
        version = find_version(file, current)
        return newest_item(version) if version and "failure" not in version else None
    records, known, others = itertools.tee(versions(file), 3)
    ends, sized = filter(None, map(end_of, records)), (x for x in known if "size" in x)
    last = next(itertools.chain(sized, (x for x in others if "delete_marker" not in x)), file)
    sequencers = (x["sequencer"]["S"] for x in (file, old) if x)
    return {
        **last,
        "record": {"S": "newest"},
        "sequencer": {"S": max(sequencers)},
        "deleted_at": next(ends, old.get("deleted_at", file["uploaded_at"])),
        "files_of": {"S": f"{last['owner']['S']}/deleted"},
    }


def end_of(version: Item) -> AttributeValue | None:
    """When a version was deleted, or a delete marker made, which may be gone itself."""
    return version.get("uploaded_at" if "delete_marker" in version else "deleted_at")


def find_version(file: Item, version_id: str, query: Any = None) -> Item | None:
    """What is recorded of a version of a file, or of a delete marker."""
    return next((x for x in versions(file, query) if x["version_id"]["S"] == version_id), None)


def versions(file: Item, query: Callable[..., Json] | None = None) -> Iterable[Item]:
    """What is recorded of all versions of a file and its delete markers, the newest first."""
    return every_page(
        query or service("dynamodb").query,
        TableName=os.environ["FILES_TABLE_NAME"],
        KeyConditionExpression="id = :id AND begins_with(#record, :versions)",
        ExpressionAttributeNames={"#record": "record"},
        ExpressionAttributeValues={":id": file["id"], ":versions": {"S": "version#"}},
        ScanIndexForward=False,
        ConsistentRead=True,
        Limit=VERSIONS_READ,
    )


def every_page(query: Callable[..., Json], **arguments: Any) -> Iterable[Item]:
    """The items of a query, a page after the other, as they are asked for."""
    more: Json = {}
    while True:
        response = query(**arguments, **more)
        yield from response["Items"]
        if "LastEvaluatedKey" not in response:
            return
        more = {"ExclusiveStartKey": response["LastEvaluatedKey"]}


def transact(writes: list[Write]) -> list[str]:
    """Writes all or nothing; returns the cancellation codes if a condition failed, else []. While
    DynamoDB throttles, or another transaction has one of the items, it tries again, for as long as
    this invocation may wait: docs/decisions/0007."""
    for attempt in itertools.count():
        try:
            service("dynamodb").transact_write_items(TransactItems=writes)
            break
        except Exception as error:
            reasons = (getattr(error, "response", None) or {}).get("CancellationReasons", [])
            codes = [each.get("Code", "None") for each in reasons]
            if "ConditionalCheckFailed" in codes:
                return codes
            passing = BUSY_REASONS | THROTTLING_CODES
            if passing.isdisjoint([*codes, error_code(error)]) or not may_repeat(attempt):
                raise
    return []


def may_repeat(attempt: int) -> bool:
    """Whether there is time to try again; if so, after a pause below 50 ms, 100 ms... 6.4 s."""
    pause = jitter() * 0.05 * 2 ** min(attempt, 7)
    if seconds_left() <= pause + RESERVE_SECONDS:
        return False
    time.sleep(pause)
    return True


def version_update(version: Item, condition: str, **attributes: AttributeValue) -> Write:
    """The write that sets attributes of a version, under a condition, which has them as values."""
    return files_write(
        "Update",
        Key={name: version[name] for name in ("id", "record")},
        UpdateExpression="SET " + ", ".join(f"{name} = :{name}" for name in attributes),
        ConditionExpression=condition,
        ExpressionAttributeValues={f":{name}": value for name, value in attributes.items()},
    )


def newest_item(version: Item) -> Item:
    """The newest item of a file, with the keys of the indexes, which have no others."""
    owner = version["owner"]["S"]
    return {
        **version,
        "record": {"S": "newest"},
        "files_of": {"S": f"{owner}/"},
        "folder_of": {"S": f"{owner}/{version['folder']['S']}"},
        "type_of": {"S": f"{owner}/{version['content_type']['S']}"},
    }


def newest_put(newest: Item, condition: str, values: Item) -> Write:
    """The write of a file's newest item, which each time has another revision."""
    revised = {**newest, "revision": {"S": os.urandom(4).hex()}}
    return files_put(revised, condition, **values)


def files_put(item: Item, condition: str = "attribute_not_exists(id)", **values: Any) -> Write:
    """A conditional put into the files table, by default of an item that must be new."""
    optional = {"ExpressionAttributeValues": values} if values else {}
    return files_write("Put", Item=item, ConditionExpression=condition, **optional)


def files_write(kind: str, **arguments: Any) -> Write:
    """A write to the files table, as part of a transaction."""
    return {kind: {"TableName": os.environ["FILES_TABLE_NAME"], **arguments}}


def totals_update(file: Item, prefix: str = "") -> Write:
    """The write that counts a version in the totals of the owner, day and type of its upload; with
    the prefix `deleted_` one that is gone. A total has 16 shards, by the first digit of the id:
    transactions that meet on one item are cancelled, and many files of a type come at once."""
    day, shard = file["uploaded_at"]["S"][:10], file["id"]["S"][0]
    record = f"{file['owner']['S']}/{day}/{file['content_type']['S']}/{shard}"
    return files_write(
        "Update",
        Key={"id": {"S": f"totals#{day[:7]}"}, "record": {"S": record}},
        UpdateExpression="ADD #count :one, #bytes :size",
        ExpressionAttributeNames={"#count": f"{prefix}count", "#bytes": f"{prefix}bytes"},
        ExpressionAttributeValues={":one": {"N": "1"}, ":size": file["size"]},
    )


# === File pipeline: Files in the API ==============================================================

UPLOAD_SECONDS = 900  # how long a form for an upload is good
DOWNLOAD_SECONDS = 60  # how long the address of a content is good
# A name, or a folder in a path. In a form S3 has its own escape for $, and refuses some with it.
PATH_STEP = r"(?!\.{1,2}(/|$))[^/$\x00-\x1f\x7f]+"
FOLDER = f"({PATH_STEP}(/{PATH_STEP})*)?"
CONTENT_TYPE = r"[a-z0-9.+-]+/[a-z0-9.+-]+"
CHECKSUMS = {"sha256": 44, "crc64nvme": 12}  # by which S3 compares an upload -> its Base64's length
UPLOAD_FIELDS = ("name", "folder", "content_type", "size", *CHECKSUMS)
KEY_LIMIT = 1_024  # bytes, S3's
COPY_BYTES = 500_000_000  # in 6 of 14 s, at S3's 85 MB/s ("Performance design patterns")
TOTALS_DAYS = 92  # a quarter: four queries at most
TOTALS_READ_UNITS = 40  # of the longest page: 101 x 16 shards of 171 bytes, in 12 queries
REPORT_DAYS, REPORT_MONTHS = 3_660, 12  # ten years; of a page, as an empty month takes half a unit
REPORT_SHARDS = 101 * 16  # as many items as the longest page of totals
LEAST_TEXT = "\0"  # before any that a key can be
FILE_FIELDS = (
    "id", "name", "folder", "extension", "size", "content_type", "declared_type", "etag",
    "checksums", "version_id", "metadata", "uploaded_at", "width", "height", "failure",
    "delete_marker", "deleted_at", "scan_result", "threats", "scanned_at",
)  # fmt: skip


def upload_time(name: str, text: str) -> str:
    """A day as it is, or a time as S3's events have it, in milliseconds; or Problem 400."""
    found = parse_time(name, text)
    return found if len(found) == len("2026-11-30") else f"{found[:23]}Z"


def create_upload(request: Request) -> Response:
    """POST /files: the form by which a browser sends one file straight to S3 (a presigned POST)."""
    wanted = request.object("application/json")
    limit = int(os.environ["UPLOAD_BYTES"])
    if found := dict(upload_mistakes(wanted, limit)):
        raise invalid_fields(found)
    key = "/".join(filter(None, (request.caller, wanted.get("folder"), wanted["name"])))
    if len(key.encode()) > KEY_LIMIT:
        most = KEY_LIMIT - len(request.caller) - 2
        raise invalid_fields({"/name": f"folder and name have at most {most} bytes."})
    size = wanted.get("size")
    least, most = (0, limit) if size is None else (int(size), int(size))
    checksum = {name: wanted[name] for name in CHECKSUMS if name in wanted}
    form = upload_form(key, wanted["content_type"], least, most, request.id, **checksum)
    body = {"id": file_id(key), **form, "expires_in": UPLOAD_SECONDS}
    return respond(201, json.dumps(body), location=f"/files/{body['id']}", cache_control="no-store")


def upload_mistakes(wanted: Json, limit: int) -> Iterable[tuple[str, str]]:
    """JSON pointer and reason of each member that is unknown, missing or not as it must be."""
    for name in [x for x in wanted if x not in UPLOAD_FIELDS]:
        expected = f"expected one of {', '.join(UPLOAD_FIELDS)}"
        yield pointer([name]), f"Unknown field {printable(name)}; {expected}."
    if not is_like(PATH_STEP, wanted.get("name")):
        why = "name is a text without slashes, control characters and $, which S3 may refuse."
        yield "/name", why
    if not is_like(FOLDER, wanted.get("folder", "")):
        yield "/folder", "folder is such names with single slashes between them, or empty."
    allowed, content_type = os.environ["UPLOAD_TYPES"].split(), wanted.get("content_type", "")
    known = is_like(CONTENT_TYPE, content_type) and (
        content_type in allowed or content_type.partition("/")[0] + "/*" in allowed
    )
    if not known:
        yield "/content_type", f"content_type is one of {', '.join(allowed)}."
    size = wanted.get("size", Decimal(0))
    # What cannot be stored exactly is NaN, which compares with nothing.
    number = isinstance(size, Decimal) and size.is_finite()
    if not (number and 0 <= size <= limit and size % 1 == 0):
        yield "/size", f"size is a whole number of bytes, {limit} at most."
    given = [name for name in CHECKSUMS if name in wanted]
    for name in given:
        valid = is_like("[A-Za-z0-9+/]+=", wanted[name]) and len(wanted[name]) == CHECKSUMS[name]
        if len(given) > 1 or not valid:
            yield f"/{name}", f"{name} is in Base64; one of {', '.join(CHECKSUMS)} is enough."


def is_like(pattern: str, value: Any) -> bool:
    """Whether a value is a text of this form that UTF-8 can carry."""
    text = isinstance(value, str) and not re.search(r"[\ud800-\udfff]", value)
    return text and bool(re.fullmatch(pattern, value))


def upload_form(
    key: str, content_type: str, least: int, most: int, request_id: str, **checksum: str
) -> Json:
    """URL and fields of a form that S3 takes one object by: "Creating an HTML form", S3 API. The
    object keeps the request's id, by which its record and log line lead back to it."""
    now, bucket = time.time(), os.environ["BUCKET_NAME"]
    signer, scope, secret_key = signer_fields(now)
    named = {f"x-amz-{name.lower()}": value for name, value in signer.items()}
    for name, value in checksum.items():
        named |= {"x-amz-checksum-algorithm": name.upper(), f"x-amz-checksum-{name}": value}
    traced = {"x-amz-meta-request-id": request_id}
    fields = {"Content-Type": content_type, "key": key, **traced, **named}
    allowed = [{"bucket": bucket}, *({name: fields[name]} for name in fields)]
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + UPLOAD_SECONDS))
    limits = [*allowed, ["content-length-range", least, most]]
    text = json.dumps({"expiration": ends, "conditions": limits}).encode()
    fields["policy"] = base64.b64encode(text).decode()
    fields["x-amz-signature"] = sign(fields["policy"], secret_key, scope)
    scheme, host, path = bucket_address()
    return {"url": f"{scheme}://{host}{path}", "fields": fields}


def bucket_address() -> tuple[str, str, str]:
    """Scheme and host of the bucket, and its path there. The host of the bucket is in its own
    region; an emulator has one host for all buckets."""
    bucket, (scheme, host) = os.environ["BUCKET_NAME"], endpoint("s3")
    return (scheme, f"{bucket}.{host}", "/") if scheme == "https" else (scheme, host, f"/{bucket}")


def signer_fields(at: float) -> tuple[dict[str, str], str, str]:
    """Who signs a request of S3, and when, without the prefix X-Amz-; the scope, the secret key."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
    access_key, secret_key, token = credentials()
    scope = credential_scope(stamp, "s3")
    signer = {
        "Algorithm": "AWS4-HMAC-SHA256",
        "Credential": f"{access_key}/{scope}",
        "Date": stamp,
        **({"Security-Token": token} if token else {}),
    }
    return signer, scope, secret_key


def download_url(method: str, key: str, version_id: str, name: str) -> str:
    """Where S3 gives a version to whoever has the URL: "Using query parameters", S3 API."""
    signer, scope, secret_key = signer_fields(time.time())
    scheme, host, path = bucket_address()
    name = quote(name[-100:], safe="")  # S3 takes 8,192 bytes of a request's line and headers
    query = {
        **{f"X-Amz-{each}": value for each, value in signer.items()},
        "X-Amz-Expires": str(DOWNLOAD_SECONDS),
        "X-Amz-SignedHeaders": "host",
        "response-content-disposition": f"attachment; filename*=UTF-8''{name}",
        "versionId": version_id,
    }
    shown = "&".join(f"{quote(x, safe='')}={quote(query[x], safe='')}" for x in sorted(query))
    target = f"{path.rstrip('/')}/{quote(key)}"
    request = f"{method}\n{target}\n{shown}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = f"{signer['Algorithm']}\n{signer['Date']}\n{scope}\n{digest}"
    return f"{scheme}://{host}{target}?{shown}&X-Amz-Signature={sign(text, secret_key, scope)}"


def list_files(request: Request) -> Response:
    """GET /files: the caller's files by time: all, or of a folder, below it, or of a type."""
    readers = {
        **dict.fromkeys(("folder", "below", "content_type"), read_text),
        **dict.fromkeys(("from", "to"), upload_time),
        "deleted": read_one_of("true"),
    }
    filters, order, limit = list_query(request.query, readers)
    condition, values = created_between(filters)
    if len(chosen := [name for name in filters if name not in ("from", "to")]) > 1:
        reason = f"Only one of {', '.join(chosen)} can be given."
        raise invalid_parameters(dict.fromkeys(chosen, reason))
    name = chosen[0] if chosen else ""
    value, times = filters.get(name, ""), [each["S"] for each in values.values()]
    index, key = f"by_{name}", value
    if index not in FILE_INDEXES:
        index, key = "by_owner", "deleted" if name == "deleted" else ""
    where: Json = {"TableName": os.environ["FILES_TABLE_NAME"], "IndexName": index}
    if name == "below" and value:
        where["FilterExpression"] = "folder = :folder OR begins_with(folder, :below)"
        values = {**values, ":folder": {"S": value}, ":below": {"S": f"{value}/"}}
    scope = ("files", request.caller, name, value, *times, order)
    page = Page(request, "uploaded_at", order, limit, scope)
    of = {FILE_INDEXES[index]: {"S": f"{request.caller}/{key}"}}
    page.query(of, condition, values, {"record": {"S": "newest"}}, **where)
    return page.response("files", file_json)


def get_file(request: Request) -> Response:
    """GET /files/{id}: the caller's file as it is now, and its versions a page at a time."""
    _, order, limit = list_query(request.query, {})
    file = own_file(request)
    scope = ("versions", request.caller, file["id"]["S"], order)
    page = Page(request, "record", order, limit, scope)
    condition, values = " AND begins_with(#sort, :versions)", {":versions": {"S": "version#"}}
    name = os.environ["FILES_TABLE_NAME"]
    page.query({"id": file["id"]}, condition, values, {}, TableName=name)
    return page.response("versions", file_json, **file_members(file))


def own_file(request: Request) -> Item:
    """The newest item of the file in the path; Problem 404 unless it is the caller's."""
    key = {"id": {"S": request.path_id()}, "record": {"S": "newest"}}
    if FILE_ID.fullmatch(request.path_id()):
        name = os.environ["FILES_TABLE_NAME"]
        found = table(request, "get_item", TableName=name, Key=key, ConsistentRead=True)
        file: Item = found.get("Item", {})
        if file and file["owner"]["S"] == request.caller:
            return file
    raise Problem(404, "There is no such file.")


def get_content(request: Request) -> Response:
    """GET /files/{id}/content: where the file's content is for a minute, or that of a version. As
    JSON for a page of a browser, which S3 would not let read what a redirect leads to."""
    file = own_file(request)
    if unknown := [x for x in request.query if x != "version_id"]:
        raise invalid_parameters(dict.fromkeys(unknown, "Unknown parameter; expected version_id."))
    version = with_content(request, file, request.query.get("version_id", ""))
    names = (version[each]["S"] for each in ("key", "version_id", "name"))
    url = download_url(request.method, *names)
    if "application/json" in re.split("[,; ]+", request.headers.get("accept", "").lower()):
        body = json.dumps({"url": url, "expires_in": DOWNLOAD_SECONDS})
        return respond(200, body, cache_control="no-store")
    return respond(302, location=url, cache_control="no-store")


def restore_version(request: Request) -> Response:
    """POST /files/{id}/versions: a copy of an older version, which becomes the newest. The first
    one of an environment loads the SDK, half a second."""
    file, wanted = own_file(request), request.object("application/json")
    has_current(request)
    right = is_like(".{1,1024}", wanted.get("version_id"))
    if wrong := [x for x in {"version_id": 0, **wanted} if x != "version_id" or not right]:
        why = "version_id, the only field, is one of versions."
        raise invalid_fields({pointer([x]): why for x in wrong})
    version = with_content(request, file, wanted["version_id"])
    if version["sequencer"] == file["sequencer"] and "deleted_at" not in file:
        raise Problem(409, "It is the newest version.")
    if int(version["size"]["N"]) > COPY_BYTES:
        raise Problem(409, "It is larger than 500 MB: download it, and upload it again.")
    target = {"Bucket": os.environ["BUCKET_NAME"], "Key": file["key"]["S"]}
    source = {**target, "VersionId": wanted["version_id"]}
    # Tags would need two more actions; who tags objects decides anew.
    copying = {**target, "CopySource": source, "TaggingDirective": "REPLACE"}
    try:
        # S3 is silent while it copies: another attempt would be another copy.
        copied = SdkService(client("s3", once=True)).copy_object(**copying)
    except Exception as error:
        if (code := error_code(error)) in MISSING_OBJECT_CODES:
            raise no_version() from None
        if code in ARCHIVED_CODES:
            raise Problem(409, "The version is archived.") from error
        by_bucket = code == "AccessDenied" and "resource-based policy" in str(error)
        if by_bucket and "MALWARE_PROTECTION" in os.environ:
            why = "The version is gone, or its tag does not say that it is harmless."
            raise Problem(409, why, "not-scanned") from error
        raise
    body = json.dumps({"version_id": copied["VersionId"]})
    return respond(201, body, location=f"/files/{file['id']['S']}")


def with_content(request: Request, file: Item, version_id: str) -> Item:
    """A file, or a recorded version of it, whose content is given out; Problem 404 if it has none,
    409 for one with a threat, or one that is not scanned where it must be."""
    query = functools.partial(table, request, "query")
    version = find_version(file, version_id, query) if version_id else file
    if not version or end_of(version) or "failure" in version:
        raise no_version()
    if threats := ", ".join(each["S"] for each in version.get("threats", {"L": []})["L"]):
        raise Problem(409, f"GuardDuty found a threat in this version: {threats}.", "threat-found")
    result = version.get("scan_result", {}).get("S")
    if "MALWARE_PROTECTION" in os.environ and result not in HARMLESS:
        why = f"could not be: {result}" if result else "is not yet; try again"
        again: Json = {} if result else {"retry_after": "5"}
        raise Problem(409, f"The version must be scanned, and {why}.", "not-scanned", **again)
    return version


def delete_file(request: Request) -> Response:
    """DELETE /files/{id}: a delete marker; the versions stay, for as long as the bucket keeps them.
    The first one of an environment loads the SDK, half a second."""
    if request.path_id() in ("report", "totals"):  # whose GET is another resource's
        return no_route(request)
    file = own_file(request)
    has_current(request)
    if "deleted_at" in file:
        raise Problem(404, "The file is deleted already.")
    target = {"Bucket": os.environ["BUCKET_NAME"], "Key": file["key"]["S"]}
    SdkService(client("s3")).delete_object(**target)
    return respond(204)


def file_json(item: Item) -> str:
    """A file or a version of it as its owner sees it."""
    return json_object(file_members(item))


def file_members(item: Item) -> dict[str, str]:
    """The members of that, as JSON texts."""
    return {name: to_json(item[name]) for name in FILE_FIELDS if name in item}


def list_totals(request: Request) -> Response:
    """GET /files/totals: what the caller uploaded, by day and content type, a page at a time."""
    filters, order, limit = list_query(request.query, {"from": parse_day, "to": parse_day})
    scope = ("totals until", request.caller, *map(request.query.get, ("from", "to")), order)
    last, *shown = until(request, filters, scope)
    first = filters.get("from") or last
    if not 1 <= (last - first).days + 1 <= TOTALS_DAYS:
        reason = f"from and to are 1 to {TOTALS_DAYS} days, the first one first."
        raise invalid_parameters(dict.fromkeys(filters, reason))
    low, high = str(first), f"{last}0"  # 0 comes after the slash behind a day
    if shown:
        begin = "/".join(shown)
        low, high = (f"{begin}/g", high) if order == "asc" else (low, f"{begin}/")
    totals: list[Json] = []
    ends = (date.fromisoformat(position[:10]) for position in (low, high))
    months = sorted(months_between(*ends), reverse=order == "desc")
    values = {f":{x}": {"S": f"{request.caller}/{y}"} for x, y in (("from", low), ("to", high))}
    queries, most = dict.fromkeys(months, values).items(), (limit + 1) * TOTAL_SHARDS
    shards = month_shards(request, queries, "BETWEEN :from AND :to", most, order)
    for (_, day, content_type), group in itertools.groupby(shards, total_of):
        if len(totals) == limit:
            position = f"{last} {totals[-1]['day']}"
            token = sign_page_token(position, totals[-1]["content_type"], scope)
            return respond_more(request, {"totals": json.dumps(totals)}, token)
        totals.append({"day": day, "content_type": content_type, **sums(list(group))})
    return respond(200, json.dumps({"totals": totals}))


def until(request: Request, filters: Json, scope: Scope) -> tuple[Any, ...]:
    """The last day of a list, and position and id in its token, if there is one. The token has that
    day, too: a list that begins before midnight ends with what was today then."""
    if "next" not in request.query:
        return (filters.get("to") or parse_day("to", now()[:10]),)
    position, item_id = verify_page_token(request.query["next"], scope)
    last, _, position = position.partition(" ")
    return date.fromisoformat(last), position, item_id


def sums(shards: list[Item]) -> Json:
    """What was uploaded of a day and type, and what of it is stored."""
    count, size, deleted, deleted_size = (
        sum(int(each[name]["N"]) for each in shards if name in each)
        for name in ("count", "bytes", "deleted_count", "deleted_bytes")
    )
    stored = {"stored_count": count - deleted, "stored_bytes": size - deleted_size}
    return {"count": count, "bytes": size, **stored}


def month_shards(
    request: Request, months: Iterable[tuple[str, Item]], where: str, most: int, order: str = "asc"
) -> Iterable[Item]:
    """The items of months' totals whose sort key is where this condition, with the values of each
    month, says: a query a month, for as many as are still wanted, as they are asked for."""
    for month, values in months:
        found = every_page(
            functools.partial(table, request, "query"),
            TableName=os.environ["FILES_TABLE_NAME"],
            KeyConditionExpression=f"id = :totals AND #record {where}",
            ExpressionAttributeNames={"#record": "record"},
            ExpressionAttributeValues={":totals": {"S": f"totals#{month}"}, **values},
            ScanIndexForward=order == "asc",
            Limit=most,
        )
        for shard in itertools.islice(found, most):  # none asks for nothing
            most -= 1
            yield shard


def months_between(first: date, last: date) -> list[str]:
    """The months of these days, in their order."""
    days = range(0, (last - first).days + 1, 28)
    return sorted({str(each)[:7] for each in (*(first + timedelta(n) for n in days), last)})


def total_of(item: Item) -> tuple[str, str, str]:
    """Owner, day and content type of a total."""
    owner, day, content_type = item["record"]["S"].rpartition("/")[0].split("/", 2)
    return owner, day, content_type


def list_report(request: Request) -> Response:
    """GET /files/report: what all owners uploaded, and what of it is stored, by day, month, ...
    A page sums up one part of the totals, of a year at most: the same group may stand on several
    pages, which whoever wants it adds up. It costs as much as a page of GET /files/totals."""
    groups = read_one_of("day", "month", "type", "owner")
    readers = {"by": groups, "from": parse_day, "to": parse_day}
    wanted = read_query(request.query, readers)
    by, asked = wanted.get("by", "month"), map(request.query.get, ("from", "to"))
    scope = ("report until", request.caller, by, *asked)
    last, *begin = until(request, wanted, scope)
    first = wanted.get("from", last.replace(day=1))
    if not 1 <= (last - first).days + 1 <= REPORT_DAYS:
        reason = f"from and to are 1 to {REPORT_DAYS} days, the first one first."
        raise invalid_parameters(dict.fromkeys(("from", "to"), reason))
    month, after = begin or (str(first)[:7], LEAST_TEXT)
    months = [x for x in months_between(first, last) if x >= month]
    starts = [after, *[LEAST_TEXT] * (REPORT_MONTHS - 1)]
    queries = ((x, {":after": {"S": y}}) for x, y in zip(months, starts, strict=False))
    shards = list(month_shards(request, queries, "> :after", REPORT_SHARDS))
    sorted_out = dict[str, list[Item]]()
    for shard in shards:
        owner, day, content_type = total_of(shard)
        if str(first) <= day <= str(last):
            group = {"day": day, "month": day[:7], "owner": owner, "type": content_type}[by]
            sorted_out.setdefault(group, []).append(shard)
    rows = [{by: group, **sums(sorted_out[group])} for group in sorted(sorted_out)]
    last_shards = shards[REPORT_SHARDS - 1 :]  # if there are as many
    ends = [(x["id"]["S"].partition("#")[2], x["record"]["S"]) for x in last_shards]
    ends += [(x, LEAST_TEXT) for x in months[REPORT_MONTHS:]]
    if not ends:
        return respond(200, json.dumps({"report": rows}))
    token = sign_page_token(f"{last} {ends[0][0]}", ends[0][1], scope)
    return respond_more(request, {"report": json.dumps(rows)}, token)


def parse_day(name: str, text: str) -> date:
    """A day of the calendar, or Problem 400."""
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
            return date.fromisoformat(text)
    except ValueError:
        pass  # 30 February
    raise Problem(400, f"{name} is a day such as 2026-11-30, not {printable(text)}.")


# === File pipeline: Resources =====================================================================

GUARDDUTY = "malware-protection-plan.guardduty.amazonaws.com"
SCAN_RESULT = "GuardDuty Malware Protection Object Scan Result"
#: Event -> the changes of the files table that it tells: which record was inserted or modified,
#: whether it was deleted before, and is now; last, one whose upload is recorded after its deletion.
FILE_EVENTS = {
    "recorded": (("INSERT", "version#", False, False), ("MODIFY", "newest", True, False)),
    "deleted": (("MODIFY", "version#", False, True), ("INSERT MODIFY", "newest", False, True),
                ("MODIFY", "newest", True, True)),
}  # fmt: skip


def event_pattern(changes: str, record: str, was_deleted: bool, deleted: bool) -> str:
    """The changes as a pattern. What could not be read and delete markers have no size; neither had
    what was deleted before and is told now."""
    new: Json = {"record": {"S": [{"prefix": record}]}, "size": {"N": [{"exists": True}]}}
    new["deleted_at"], old = ({"S": [{"exists": x}]} for x in (deleted, was_deleted))
    unknown = {"size": {"N": [{"exists": False}]}} if was_deleted and deleted else {}
    images = {"NewImage": new, "OldImage": {"deleted_at": old, **unknown}}
    return json.dumps({"eventName": changes.split(), "dynamodb": images})


def event_template(bucket: Input[str], event: str) -> Output[str]:
    """The detail of an event: Pipes put what is at a path into quotes, numbers of DynamoDB too."""
    names = "id record key owner version_id size content_type etag uploaded_at".split()
    names += ["deleted_at"] if event == "deleted" else []
    paths = {x: f"dynamodb.NewImage.{x}.{'N' if x == 'size' else 'S'}" for x in names}
    values = (f'"{x}": <$.{path}>' for x, path in {"change_id": "eventID", **paths}.items())
    return Output.concat('{"bucket": "', bucket, '", ', ", ".join(values), "}")


class FilePipeline(Component):
    """A bucket whose objects are described in a table, each version once: S3, Lambda, DynamoDB.
    Costs the table's provisioned units and those of its three indexes, whatever happens; then for
    each file two reads of S3 and 100 ms of the function."""

    def __init__(self, name: str, args: TapStackArgs, key: Key, opts: Options = None):
        super().__init__(name, args, key, opts, "files")
        unique_name = self.aws_context.unique_name(args.name("files"))
        self.bucket_name: Input[str] = args.files_bucket_name or unique_name
        self.logs = Bucket(
            *self.part("logs"),
            component="files-logs",
            physical_name=self.aws_context.unique_name(args.name("files-logs")),
            days=args.log_retention_days,
            access_logs_of=[self.bucket_name],
        )
        readers = [args.name("files"), args.name("files-malware")]
        self.uploads = Bucket(
            *self.part("uploads"),
            component="files",
            physical_name=self.bucket_name,
            access_logs_to=self.logs,
            unscanned_for=readers if args.files_malware_protection else (),
        )
        self.cors = self._cors() if args.cors_origins else None
        self.table = self._table()
        self.scaling = self._scaling() if args.files_table_scaling > 1 else []
        self.function = self._function()
        self.notification = self._notification()
        self.pipes = self._pipes() if args.files_events else {}
        self.scans = self._scans() if args.files_malware_protection else None
        exported = (*self.part("analytics"), self.table)
        self.analytics = FileAnalytics(*exported) if args.files_analytics else None
        self.register_outputs({"bucket_name": self.bucket_name, "table_name": self.table.name})

    def _cors(self) -> aws.s3.BucketCorsConfiguration:
        bucket, origins = self.uploads.bucket.bucket, self.args.cors_origins
        rule: Any = {"allowed_methods": ["POST"], "allowed_origins": origins}
        rule |= {"allowed_headers": ["*"], "expose_headers": ["etag", "x-amz-version-id"]}
        rule["max_age_seconds"] = 600
        return aws.s3.BucketCorsConfiguration(*self.child("cors"), bucket=bucket, cors_rules=[rule])

    def _table(self) -> aws.dynamodb.Table:
        units = self.args.files_table_capacity
        own = {f"{x.lower()}_capacity": ceil(units / y) for x, y in INDEX_SHARES.items()}
        scaled = ["readCapacity", "writeCapacity", "globalSecondaryIndexes"]  # a set: as a whole
        moved = scaled if self.args.files_table_scaling > 1 else []  # by the scaler
        keys = ("id", "record", "uploaded_at", *FILE_INDEXES.values())
        return aws.dynamodb.Table(
            *self.child("table", protect=True, ignore_changes=moved),
            name=self.args.files_table_name or self.args.name("files"),
            billing_mode="PROVISIONED",
            read_capacity=units,
            write_capacity=units,
            hash_key="id",
            range_key="record",
            attributes=[{"name": key, "type": "S"} for key in keys],
            global_secondary_indexes=[
                index(name, key, "uploaded_at", **own) for name, key in FILE_INDEXES.items()
            ],
            point_in_time_recovery={"enabled": True},
            server_side_encryption={"enabled": True, "kms_key_arn": self.key.arn},
            deletion_protection_enabled=self.args.deletion_protection,
            stream_enabled=self.args.files_events,
            stream_view_type="NEW_AND_OLD_IMAGES" if self.args.files_events else None,
        )

    def _scaling(self) -> list[aws.appautoscaling.Policy]:
        table, units = Output.concat("table/", self.table.name), self.args.files_table_capacity
        indexes = {each: Output.concat(table, "/index/", each) for each in FILE_INDEXES}
        scaled = {"table": table, **indexes}
        return [
            self._scale(key, kind, resource_id, units if key == "table" else ceil(units / share))
            for key, resource_id in scaled.items()
            for kind, share in INDEX_SHARES.items()
        ]

    def _scale(
        self, key: str, kind: str, resource_id: Output[str], minimum: int
    ) -> aws.appautoscaling.Policy:
        level, suffix = "table" if key == "table" else "index", _slug(f"{key}-{kind}")
        units, used = f"dynamodb:{level}:{kind}CapacityUnits", f"DynamoDB{kind}CapacityUtilization"
        limits = (minimum, minimum * self.args.files_table_scaling)
        return self.target_tracking(suffix, resource_id, units, used, limits, 70)

    def _names(self) -> Variables:
        return {"FILES_TABLE_NAME": self.table.name, "BUCKET_NAME": self.uploads.bucket.bucket}

    def _function(self) -> Function:
        bucket, table = self.uploads.bucket, self.table
        ignored = {"Records": [{"eventName": "Probe"}]}
        return Function(
            *self.part("records"),
            component="files",
            code=Code(
                handler=record_files,
                init=open_file_clients,
                files={SIGNATURES: table_text()},
                environment={**self._names(), **metrics_environment(self.args)},
                memory_mb=512,
                timeout_seconds=FILES_TIMEOUT_SECONDS,
            ),
            canary=Canary(probes=[(ignored, None)], alarms=["files-errors"]),
            statements=[
                allow("s3:GetObject", "s3:GetObjectVersion", on=Output.concat(bucket.arn, "/*")),
                # Without it S3 responds with 403 where an object is gone, not with 404.
                allow("s3:ListBucket", on=bucket.arn),
                allow(*actions_of("dynamodb", "GetItem PutItem Query UpdateItem"), on=table.arn),
                self.key_use("dynamodb", *TABLE_KEY_USE),
            ],
            max_event_age_hours=6,
            concurrency=self.args.files_concurrency,
        )

    def _notification(self) -> aws.s3.BucketNotification:
        function, bucket = self.function, self.uploads.bucket
        # A bucket's ARN does not name the account.
        source = {"source_arn": bucket.arn, "source_account": self.aws_context.account}
        permission = function.permit(self.child("invoke"), "s3", "s3", **source)
        kinds = ("LifecycleExpiration", "ObjectCreated", "ObjectRemoved")
        told: Any = {"id": "record-files", "lambda_function_arn": function.alias.arn}
        told["events"] = [f"s3:{each}:*" for each in kinds]
        return aws.s3.BucketNotification(
            *self.child("notification", permission, *filter(None, [function.async_config])),
            bucket=bucket.bucket,
            lambda_functions=[told],
            eventbridge=self.args.files_malware_protection or None,  # GuardDuty turns it on
            # S3 tests the permission, and the first events need the retries.
        )

    def _pipes(self) -> dict[str, aws.pipes.Pipe]:
        name, context = self.args.name, self.aws_context
        bus = context.arn("events", "event-bus/default")
        pipes = [context.arn("pipes", f"pipe/{name(f'files-{each}')}") for each in FILE_EVENTS]
        reads = actions_of("dynamodb", "DescribeStream GetRecords GetShardIterator ListStreams")
        role, permissions = self.service_role(
            "events-role",
            "Lets pipes publish what becomes of files",
            "pipes.amazonaws.com",
            allow(*reads, on=self.table.stream_arn),
            self.key_use("dynamodb", "Decrypt"),
            allow("events:PutEvents", on=bus),
            when=context.acting_for(pipes, "ArnEquals"),
        )
        return {
            event: aws.pipes.Pipe(  # two, as DetailType is no path; more cannot read a shard
                *self.child(f"{event}-events", permissions, self.function.rollout),  # IAM is late
                name=name(f"files-{event}"),
                role_arn=role.arn,
                source=self.table.stream_arn,
                source_parameters={
                    "dynamodb_stream_parameters": {"starting_position": "TRIM_HORIZON"},
                    "filter_criteria": {"filters": [{"pattern": event_pattern(*x)} for x in told]},
                },
                target=bus,
                target_parameters={
                    "eventbridge_event_bus_parameters": {
                        "source": self.args.project,
                        "detail_type": f"File{event.title()}",
                    },
                    "input_template": event_template(self.uploads.bucket.bucket, event),
                },
            )
            for event, told in FILE_EVENTS.items()
        }

    def _scans(self) -> aws.guardduty.MalwareProtectionPlan:
        bucket, function, context = self.uploads.bucket, self.function, self.aws_context
        service, objects = GUARDDUTY, Output.concat(bucket.arn, "/*")
        own = context.arn("events", "rule/DO-NOT-DELETE-AmazonGuardDutyMalwareProtectionS3*")
        managed = {"StringEquals": {"events:ManagedBy": service}}
        manage = actions_of("events", "DeleteRule PutRule PutTargets RemoveTargets")
        setup = actions_of("s3", "GetBucketNotification ListBucket PutBucketNotification")
        scan = actions_of("s3", "GetObject GetObjectTagging PutObjectTagging")
        scan += actions_of("s3", "GetObjectVersion GetObjectVersionTagging PutObjectVersionTagging")
        role, permissions = self.service_role(
            "malware-role",
            "Lets GuardDuty scan files and tag them with the result",
            service,
            allow(*manage, on=own, when=managed),
            allow("events:DescribeRule", "events:ListTargetsByRule", on=own),
            allow(*setup, on=bucket.arn),
            allow("s3:PutObject", on=Output.concat(bucket.arn, f"/{VALIDATION_OBJECT}")),
            allow(*scan, on=objects),
            when=context.acting_for(context.arn("guardduty", "malware-protection-plan/*")),
        )
        detail = {"s3ObjectDetails": {"bucketName": [bucket.bucket]}}
        pattern = {"source": ["aws.guardduty"], "detail-type": [SCAN_RESULT], "detail": detail}
        rule = aws.cloudwatch.EventRule(
            *self.child("scans"),
            name=self.args.name("files-scans"),
            description="What GuardDuty finds in files",
            event_pattern=Output.json_dumps(pattern),
        )
        invoke = function.permit(self.child("scans-invoke"), "scans", "events", source_arn=rule.arn)
        told: Any = {"rule": rule.name, "target_id": "record-scans", "arn": function.alias.arn}
        target = aws.cloudwatch.EventTarget(*self.child("scans-target", invoke), **told)
        return aws.guardduty.MalwareProtectionPlan(
            *self.child("malware-protection", permissions, target, self.notification),
            role=role.arn,
            protected_resource={"s3_bucket": {"bucket_name": bucket.bucket}},
            actions=[{"taggings": [{"status": "ENABLED"}]}],
        )

    def api_environment(self) -> Variables:
        """Environment variables of the api function."""
        return {
            **self._names(),
            "UPLOAD_BYTES": str(self.args.upload_max_mb * 1_000_000),
            "UPLOAD_TYPES": " ".join(self.args.upload_types),
            **({"MALWARE_PROTECTION": "on"} if self.args.files_malware_protection else {}),
        }

    def api_throttles(self) -> dict[str, float]:
        """Requests a second of the API's costly routes, which leave half of the table to others."""
        rate, most = self.args.files_table_capacity / 2 / TOTALS_READ_UNITS, self.args.throttle_rate
        shares = {"GET /files/totals": 0.6, "HEAD /files/totals": 0.05}
        shares |= {"GET /files/report": 0.3, "HEAD /files/report": 0.05}
        return {key: min(max(round(x * rate, 2), 0.01), most) for key, x in shares.items()}

    def api_statements(self) -> list[Statement]:
        """Statements of the api function, in whose name a form for an upload is signed."""
        uses = ("s3:DeleteObject", "s3:GetObjectVersion", "s3:PutObject")
        return [
            allow("dynamodb:GetItem", on=self.table.arn),
            allow("dynamodb:Query", on=[self.table.arn, *index_arns(self.table, FILE_INDEXES)]),
            allow(*uses, on=Output.concat(self.uploads.bucket.arn, "/*")),
            allow("s3:ListBucket", on=self.uploads.bucket.arn),  # as the files function
        ]

    def alarms(self) -> list[Alarm]:
        """Alarms of the function, throttles and consumed capacity of the table."""
        most = self.args.files_table_capacity * self.args.files_table_scaling
        table, limit = {"TableName": self.table.name}, 0.8 * most * 60
        consumed = "AWS/DynamoDB/Consumed{}CapacityUnits"
        failed, pipes = "AWS/EventBridge/Pipes/ExecutionFailed", self.pipes.items()
        environment = {"Environment": self.args.environment_suffix}
        dropped = "AWS/Scheduler/InvocationDroppedCount"
        groups = [{"ScheduleGroup": self.analytics.group.name}] if self.analytics else []
        return [
            *self.function.alarms(),
            *throttle_alarms("files", self.table, FILE_INDEXES),
            Alarm("files-read-capacity", consumed.format("Read"), table, above=limit, **LATE),
            Alarm("files-write-capacity", consumed.format("Write"), table, above=limit, **LATE),
            *(Alarm(f"files-{x}-events", failed, {"PipeName": y.name}, above=0) for x, y in pipes),
            *(
                Alarm(f"files-{x.lower()}", f"{self.args.project}/Files{x}", environment, above=0)
                for x in (("Infected", "Unscanned") if self.scans else ())
            ),
            *(Alarm("analytics-export", dropped, x, above=0) for x in groups),
        ]

    def graphs(self) -> list[Graph]:
        """Outcomes of the function, its table and calls."""
        names = "Recorded Deleted Repeated Missing Failed Ignored"
        names += " Scanned Infected Unscanned" if self.scans else ""
        outcomes = [f"Files{each}" for each in names.split()]
        environment = {"Environment": self.args.environment_suffix}
        return [
            Graph("Files", lines(self.args.project, environment, *outcomes)),
            capacity_graph("Files table", self.table, overview=True),
            *self.function.graphs(),
        ]


# === File pipeline: Analytics =====================================================================

EXPORTS = "AWSDynamoDB"  # the folder that DynamoDB exports into
EXPORT_DAYS = 3  # how long an export is kept; a query reads all, and uses the newest
#: Attributes of an item that queries know, all texts, beside its size.
EXPORTED = "id record key owner content_type etag version_id uploaded_at deleted_at"
QUERIES = ("storage", "growth", "duplicates")  # in the folder of this name
QUERY_GB = 100  # a query that reads more is cancelled


class FileAnalytics(Component):
    """SQL over what is recorded of files: a nightly export of their table, and Athena's queries.
    Costs each export by the table's size, and each query by what it reads. Nobody may query by
    this: docs/operations.md has the policy of who is to."""

    def __init__(
        self, name: str, args: TapStackArgs, key: Key, opts: Options, table: aws.dynamodb.Table
    ):
        super().__init__(name, args, key, opts, "analytics")
        self.physical_name = args.name("analytics")
        self.exports = Bucket(
            *self.part("exports"),
            component="analytics",
            physical_name=self.aws_context.unique_name(self.physical_name),
            days=EXPORT_DAYS,
            under_key=True,
        )
        #: URL of the bucket.
        self.url = Output.concat("s3://", self.exports.bucket.bucket)
        self.group = aws.scheduler.ScheduleGroup(*self.child("group"), name=self.physical_name)
        self.schedule = self._schedule(table.arn)
        database_name = self.physical_name.replace("-", "_")  # Athena reads no hyphens in it
        self.database = aws.glue.CatalogDatabase(*self.child("database"), name=database_name)
        self.catalog = self._catalog()
        self.workgroup = self._workgroup()
        self.queries = [self._query(each) for each in QUERIES]
        self.register_outputs({"workgroup_name": self.workgroup.name})

    def _schedule(self, table_arn: Input[str]) -> aws.scheduler.Schedule:
        bucket, encryption = self.exports.bucket, {"S3SseAlgorithm": "KMS"}
        to = {"S3Bucket": bucket.bucket, "S3SseKmsKeyId": self.key.arn, **encryption}
        writes = ("s3:AbortMultipartUpload", "s3:PutObject", "s3:PutObjectAcl")
        export = ":scheduler:::aws-sdk:dynamodb:exportTableToPointInTime"
        return self.scheduled(
            self.physical_name,
            {
                "arn": Output.concat("arn:", self.aws_context.partition, export),
                "input": Output.json_dumps({"TableArn": table_arn, **to}),
            },
            allow("dynamodb:ExportTableToPointInTime", on=table_arn),
            allow(*writes, on=Output.concat(bucket.arn, f"/{EXPORTS}/*")),
            self.key_use("dynamodb", "Decrypt"),
            self.key_use("s3", "Decrypt", "GenerateDataKey"),
            group_name=self.group.name,  # whose metrics are of this schedule alone
            schedule_expression="cron(0 3 * * ? *)",
            description="An export of the files table every night",
        )

    def _catalog(self) -> aws.glue.CatalogTable:
        item = [f"{x}:struct<s:string>" for x in EXPORTED.split()] + ["size:struct<n:string>"]
        hive = "org.apache.hadoop.{}Format".format
        return aws.glue.CatalogTable(
            *self.child("catalog"),
            name="exports",
            database_name=self.database.name,
            table_type="EXTERNAL_TABLE",
            parameters={"classification": "json"},
            storage_descriptor={
                "location": Output.concat(self.url, f"/{EXPORTS}/"),
                "columns": [{"name": "item", "type": f"struct<{','.join(item)}>"}],
                "input_format": hive("mapred.TextInput"),
                "output_format": hive("hive.ql.io.HiveIgnoreKeyTextOutput"),
                "ser_de_info": {
                    "serialization_library": "org.openx.data.jsonserde.JsonSerDe",
                    "parameters": {"ignore.malformed.json": "true"},  # the checksums' files
                },
            },
        )

    def _workgroup(self) -> aws.athena.Workgroup:
        encryption = {"encryption_option": "SSE_KMS", "kms_key_arn": self.key.arn}
        results: Any = {"output_location": Output.concat(self.url, "/results/")}
        return aws.athena.Workgroup(
            *self.child("workgroup"),
            name=self.physical_name,
            force_destroy=self.args.tier == "dev",  # with the queries that people saved
            configuration={
                "bytes_scanned_cutoff_per_query": QUERY_GB * 1_000_000_000,
                "enforce_workgroup_configuration": True,
                "engine_version": {"selected_engine_version": "Athena engine version 3"},
                "result_configuration": results | {"encryption_configuration": encryption},
            },
        )

    def _query(self, name: str) -> aws.athena.NamedQuery:
        text = text_beside(f"queries/{name}.sql")
        return aws.athena.NamedQuery(
            *self.child(name),
            name=name,
            description=text.partition("\n")[0].removeprefix("-- "),
            database=self.database.name,
            workgroup=self.workgroup.name,
            query=text_beside("queries/versions.sql") + text,
        )


# === Web environment: Application =================================================================

DATABASE_USER = "app"
DATABASE_SECONDS = 8  # how long a request goes on trying, below the load balancer's 60
DATABASE_CONNECT_SECONDS = 3
CONNECTIONS = 8  # of each process; the other threads wait a moment for one, or answer health checks
CONNECTION_WAIT_SECONDS = 1
STATEMENT_MS = 5_000
VISIT_PATH = re.compile(r"/visits/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
MIGRATIONS = (
    "SELECT pg_advisory_xact_lock(1)",  # one instance after the other
    f"DO $$ BEGIN CREATE ROLE {DATABASE_USER} LOGIN; EXCEPTION WHEN duplicate_object THEN END $$",
    f"GRANT rds_iam TO {DATABASE_USER}",
    "CREATE TABLE IF NOT EXISTS visits (id uuid PRIMARY KEY, at timestamptz DEFAULT now())",
    f"GRANT SELECT, INSERT ON visits TO {DATABASE_USER}",
)
_idle: list[Any] = []  # connections that no request uses
_free = threading.BoundedSemaphore(CONNECTIONS)
_outage = threading.Event()  # set while the database is known to be down


def web(
    environ: Mapping[str, Any], start_response: Callable[[str, list[tuple[str, str]]], Any]
) -> list[bytes]:
    """The WSGI application: health, readiness, a page, and visits that can be counted again."""
    method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "/")
    headers: dict[str, str] = {}
    try:
        status, body = serve(method, path)
    except Exception as error:  # noqa: BLE001 - whatever happens, the caller gets a response
        status, body = "500 Internal Server Error", {"error": "Internal error."}
        if type(error).__module__.partition(".")[0] in ("psycopg", "botocore"):
            status, body = "503 Service Unavailable", {"error": "The database is unavailable."}
            headers["Retry-After"] = "1"
        line = {"level": "ERROR", "path": path, "error": format_error(error)}
        print(json.dumps(line), flush=True)
    if isinstance(body, dict):
        content, kind = json.dumps(body).encode(), "application/json"
    else:
        content, kind = body.encode(), "text/html; charset=utf-8"
    headers |= {"Content-Type": kind, "Content-Length": str(len(content))}
    headers |= {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    start_response(status, list(headers.items()))
    return [b"" if method == "HEAD" else content]


def serve(method: str, path: str) -> tuple[str, Any]:
    """Status and body of one request."""
    reading = method in ("GET", "HEAD")
    if path == "/healthz" and reading:  # without the database: the target group says why
        return "200 OK", {"status": "ok"}
    if path == "/readyz" and reading:
        query("SELECT 1")
        return "200 OK", {"status": "ready"}
    if path == "/visits" and reading:
        return "200 OK", {"visits": query("SELECT count(*) FROM visits")[0][0]}
    if path == "/" and reading:
        count = query("SELECT count(*) FROM visits")[0][0]
        return "200 OK", f"<!doctype html><title>tap-stack</title><p>{count} visits.</p>"
    if (visit := VISIT_PATH.fullmatch(path)) and method == "PUT":
        query("INSERT INTO visits (id) VALUES (%s) ON CONFLICT DO NOTHING", visit[1])
        return "200 OK", {"id": visit[1]}
    if path in ("/", "/healthz", "/readyz", "/visits") or visit:
        return "405 Method Not Allowed", {"error": f"{method} is not allowed here."}
    return "404 Not Found", {"error": "There is no such page."}


def query(statement: str, *values: Any) -> list[Any]:
    """The rows of an idempotent statement, which is repeated when the connection is lost. Goes on
    for DATABASE_SECONDS, through a restart or failover of the database; then raises psycopg's
    OperationalError. In an outage only as many requests as there are connections wait like that;
    the others fail at once, and threads stay free for health checks."""
    import psycopg

    if not _free.acquire(timeout=0 if _outage.is_set() else CONNECTION_WAIT_SECONDS):
        raise psycopg.OperationalError("all connections are in use")
    deadline, wait = time.monotonic() + DATABASE_SECONDS, 0.05
    try:
        while True:
            try:
                rows = execute(statement, values)
                _outage.clear()
                return rows
            except (psycopg.OperationalError, psycopg.InterfaceError):
                _outage.set()
                if time.monotonic() + wait > deadline:
                    raise
            jittered_pause(wait)
            wait = min(2 * wait, 1.0)
    finally:
        _free.release()


def execute(statement: str, values: Sequence[Any]) -> list[Any]:
    """The rows of a statement, on an idle connection or a new one; a failure closes all idle."""
    try:
        connection = _idle.pop()
    except IndexError:
        connection = connect()
    try:
        cursor = connection.execute(statement, values)
        rows = cursor.fetchall() if cursor.description else []
    except Exception:
        lost, _idle[:] = [connection, *_idle], []
        for each in lost:
            each.close()
        raise
    _idle.append(connection)
    return rows


def connect(user: str = DATABASE_USER, password: str = "") -> Any:
    """A new connection over verified TLS, as `user`: with a password, or the newest token."""
    import psycopg

    try:
        password = password or Path(os.environ["DATABASE_TOKEN"]).read_text().strip()
    except OSError as error:  # the instance has just started
        raise psycopg.OperationalError(f"there is no token yet: {error}") from None
    return psycopg.connect(
        host=os.environ["DATABASE_HOST"],
        port=int(os.environ["DATABASE_PORT"]),
        dbname=os.environ["DATABASE_NAME"],
        user=user,
        password=password,
        sslmode="verify-full",
        sslrootcert=os.environ["DATABASE_CA"],
        connect_timeout=DATABASE_CONNECT_SECONDS,
        tcp_user_timeout=STATEMENT_MS,
        options=f"-c statement_timeout={STATEMENT_MS}",
        autocommit=True,
    )


def run_command() -> None:
    """What root runs of this file, with the role of the instance, which the application has not:
    with the argument `migrate` at its start, with `token` again and again."""
    commands = {"migrate": migrate, "token": print_token}
    if command := commands.get(" ".join(sys.argv[1:])):
        command()


def migrate() -> None:
    """Makes role and table as the database's master."""
    found = sdk_client("secretsmanager").get_secret_value(SecretId=os.environ["SECRET_ARN"])
    secret = json.loads(found["SecretString"])
    with connect(secret["username"], secret["password"]) as made, made.transaction():
        for each in MIGRATIONS:
            made.execute(each)


def print_token() -> None:
    """Prints a token, by which IAM lets the application connect as its user, for 15 minutes."""
    host, port = os.environ["DATABASE_HOST"], int(os.environ["DATABASE_PORT"])
    print(sdk_client("rds").generate_db_auth_token(host, port, DATABASE_USER))


# === Web environment: Network =====================================================================

SUBNET_TIERS = ("public", "private", "isolated")


class PlanError(ValueError):
    """A CIDR block that cannot be divided into the subnets."""


def plan_subnets(cidr: str, zones: int, disjoint: Sequence[str] = ()) -> dict[str, list[str]]:
    """The CIDR blocks of the subnets of each tier, one for each zone. Each tier has a quarter of
    the block and each zone a quarter of its tier, used or not: another zone, up to four, renumbers
    nothing, and a quarter of all stays free. Raises PlanError if `cidr` is no CIDR block, is not
    /16 to /23 (a balancer needs 32 addresses, a VPC has 65,536 at most), overlaps a `disjoint`."""
    try:
        network = ipaddress.IPv4Network(cidr)
        others = [ipaddress.IPv4Network(each) for each in disjoint]
    except ValueError as error:
        blocks = f"CIDR blocks such as 10.0.0.0/16: {error}"
        raise PlanError(f"vpc_cidr and disjoint_cidrs must be {blocks}") from None
    if not 16 <= network.prefixlen <= 23:
        size = f"{cidr} has {network.num_addresses:,}"
        raise PlanError(f"vpc_cidr must be /16 to /23, 65,536 to 512 addresses; {size}")
    for other in others:
        if network.overlaps(other):
            shared = min(network.num_addresses, other.num_addresses)
            raise PlanError(f"vpc_cidr {cidr} overlaps {other}: they share {shared:,} addresses")
    quarters = network.subnets(prefixlen_diff=2)
    return {
        tier: [str(each) for each in quarter.subnets(prefixlen_diff=2)][:zones]
        for tier, quarter in zip(SUBNET_TIERS, quarters, strict=False)
    }


def chosen_zones(args: TapStackArgs, known: Sequence[str]) -> Sequence[str]:
    """The zones of the subnets; SettingsError for more than there are, or one that is not there."""
    chosen = args.zone_names or known[: args.zones]
    if len(chosen) < args.zones or not set(chosen) <= set(known):
        wanted = json.dumps(args.zone_names or args.zones)
        key = "zone_names" if args.zone_names else "zones"
        raise SettingsError(f"{key} must be among {', '.join(known)}, not {wanted}")
    return chosen


ANYWHERE = "0.0.0.0/0"
WEB_PORT, POSTGRES_PORT = 8080, 5432
#: Source, destination and TCP port of all connections that are allowed. `internet`, `network` and
#: `operators` (bastion_cidrs) are CIDR blocks, the others security groups.
FLOWS = (
    ("internet", "balancer", 443),
    ("internet", "balancer", 80),
    ("balancer", "web", WEB_PORT),
    ("web", "database", POSTGRES_PORT),
    ("bastion", "web", 22),
    ("operators", "bastion", 22),
    ("web", "internet", 443),
    ("bastion", "internet", 443),
    ("network", "nat", 443),
    ("nat", "internet", 443),
    ("web", "endpoints", 443),
    ("bastion", "endpoints", 443),
    ("nat", "endpoints", 443),
)
SECURITY_GROUPS = ("balancer", "web", "database", "bastion", "nat", "endpoints")


class Network(Component):
    """A VPC over two or three zones: subnets, routes, NAT, endpoints, security groups, flow logs.
    Instances in public subnets reach the internet, those in private ones through NAT, those in
    isolated ones not at all. Costs what the setting `nat` says, interface endpoints by the hour and
    zone, and flow logs by the GB; the gateway endpoints of S3 and DynamoDB are free."""

    def __init__(self, name: str, args: TapStackArgs, key: Key, opts: Options = None):
        super().__init__(name, args, key, opts, "network")
        self.plan = plan_subnets(args.vpc_cidr, args.zones, args.disjoint_cidrs)
        dns: Any = {"enable_dns_support": True, "enable_dns_hostnames": True}
        tags = self._named("network")
        self.vpc = aws.ec2.Vpc(*self.child("vpc"), cidr_block=args.vpc_cidr, tags=tags, **dns)
        self.default_security_group = self._default_security_group()
        here: Any = {"vpc_id": self.vpc.id, "tags": self._named("internet")}
        self.internet_gateway = aws.ec2.InternetGateway(*self.child("internet"), **here)
        #: Tier -> its subnets, one for each zone.
        self.subnets = self._subnets()
        #: Of NAT, in the names of address and private tables: two kinds may be there at once.
        self.kind = {"per_az": "gateway", "single": "gateway"}.get(args.nat, args.nat[:8])
        #: Tier -> its route tables; private subnets have one for each zone.
        self.route_tables = self._route_tables()
        way, table = {"gateway_id": self.internet_gateway.id}, self.route_tables["public"][0]
        self.public_routes = [self._way_out("to-internet", table, **way), *self._join("public")]
        self._join("isolated")
        #: Name in SECURITY_GROUPS -> security group, of those that this network needs.
        optional = {"nat": self.kind == "instance", "endpoints": args.interface_endpoints}
        needed = (group for group in SECURITY_GROUPS if optional.get(group, True))
        self.security_groups = {group: self._security_group(group) for group in needed}
        self.rules = self._rules()
        gateways = map(self._gateway_endpoint, ("s3", "dynamodb"))
        self.endpoints = [*gateways, *map(self._interface_endpoint, args.interface_endpoints)]
        self.flow_log = self._flow_log()
        self.nat_gateways: list[aws.ec2.NatGateway] = []
        self.nat_fleets: list[Fleet] = []
        #: What private instances wait for, to reach the internet.
        self.ways_out: list[pulumi.Resource] = []
        self._nat()
        self.ways_out += self._join("private", *self.ways_out)
        self.register_outputs({"vpc_id": self.vpc.id})

    def _named(self, name: str) -> dict[str, str]:
        return {"Name": self.args.name(name)}  # what the console shows

    def _default_security_group(self) -> aws.ec2.DefaultSecurityGroup:
        """The security group that a VPC comes with, emptied: what names none reaches nothing."""
        own: Any = {"ingress": [], "egress": [], "tags": self._named("unused")}
        return aws.ec2.DefaultSecurityGroup(*self.child("default-group"), vpc_id=self.vpc.id, **own)

    def _subnets(self) -> dict[str, list[aws.ec2.Subnet]]:
        usual: Any = {"name": "opt-in-status", "values": ["opt-in-not-required"]}
        known = aws.get_availability_zones_output(filters=[usual]).names
        zones = known.apply(lambda names: chosen_zones(self.args, names))
        return {
            tier: [
                aws.ec2.Subnet(
                    *self.child(f"{tier}-{number}"),
                    vpc_id=self.vpc.id,
                    cidr_block=cidr,
                    availability_zone=zones[number],
                    map_public_ip_on_launch=False,  # a fleet asks for addresses
                    tags=self._named(f"{tier}-{number}"),
                )
                for number, cidr in enumerate(cidrs)
            ]
            for tier, cidrs in self.plan.items()
        }

    def _route_tables(self) -> dict[str, list[aws.ec2.RouteTable]]:
        counts = {"public": 1, f"private-{self.kind}": self.args.zones, "isolated": 1}
        return {
            key.partition("-")[0]: [
                aws.ec2.RouteTable(
                    *self.child(f"{key}-routes-{number}"),
                    vpc_id=self.vpc.id,
                    tags=self._named(f"{key}-{number}"),
                )
                for number in range(count)
            ]
            for key, count in counts.items()
        }

    def _join(self, tier: str, *after: pulumi.Resource) -> list[pulumi.Resource]:
        """Has the subnets of a tier use its route tables."""
        tables = self.route_tables[tier]
        return [
            aws.ec2.RouteTableAssociation(
                *self.child(f"{tier}-{number}-routes", *after),
                subnet_id=subnet.id,
                route_table_id=tables[number % len(tables)].id,
            )
            for number, subnet in enumerate(self.subnets[tier])
        ]

    def _way_out(self, key: str, table: aws.ec2.RouteTable, **way: Input[str]) -> aws.ec2.Route:
        to: Any = {"route_table_id": table.id, "destination_cidr_block": ANYWHERE, **way}
        return aws.ec2.Route(*self.child(key), **to)

    def _security_group(self, group: str) -> aws.ec2.SecurityGroup:
        return aws.ec2.SecurityGroup(
            *self.child(f"{group}-group"),
            name=self.args.name(group),
            description=f"What {group} may reach and be reached by",
            vpc_id=self.vpc.id,
            tags=self._named(group),
        )

    def _rules(self) -> list[pulumi.CustomResource]:
        """Both sides of each flow, as a resource each."""
        cidrs = {"internet": [ANYWHERE], "network": [self.args.vpc_cidr]}
        cidrs["operators"] = list(self.args.bastion_cidrs)
        groups, made = self.security_groups, []
        for source, target, port in FLOWS:
            if not {source, target} & set(SECURITY_GROUPS) <= groups.keys():
                continue
            for direction, group, other in (("from", target, source), ("to", source, target)):
                peers = cidrs.get(other, [other]) if group in groups else []
                made += [self._rule(direction, group, other, peer, port) for peer in peers]
        return made

    def _rule(
        self, direction: str, group: str, label: str, peer: str, port: int
    ) -> pulumi.CustomResource:
        other: dict[str, Any] = {"cidr_ipv4": peer}
        if peer in self.security_groups:
            other = {"referenced_security_group_id": self.security_groups[peer].id}
        ingress, egress = aws.vpc.SecurityGroupIngressRule, aws.vpc.SecurityGroupEgressRule
        kind: Callable[..., pulumi.CustomResource] = ingress if direction == "from" else egress
        suffix = f"-{_slug(peer)}" if label == "operators" else ""
        return kind(
            f"{self.name}-{group}-{direction}-{label}-{port}{suffix}",
            security_group_id=self.security_groups[group].id,
            description=f"{group} {direction} {label}",
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            opts=self.parented,
            **other,
        )

    def _gateway_endpoint(self, service: str) -> aws.ec2.VpcEndpoint:
        route_tables = [each.id for tables in self.route_tables.values() for each in tables]
        return self._endpoint(service, service, "Gateway", route_table_ids=route_tables)

    def _interface_endpoint(self, service: str) -> aws.ec2.VpcEndpoint:
        return self._endpoint(
            f"{_slug(service)}-interface",
            service,
            "Interface",
            private_dns_enabled=True,
            subnet_ids=[each.id for each in self.subnets["private"]],
            security_group_ids=[self.security_groups["endpoints"].id],
        )

    def _endpoint(self, key: str, service: str, kind: str, **own: Any) -> aws.ec2.VpcEndpoint:
        return aws.ec2.VpcEndpoint(
            *self.child(key),
            vpc_id=self.vpc.id,
            service_name=Output.format("com.amazonaws.{0}.{1}", self.aws_context.region, service),
            vpc_endpoint_type=kind,
            tags=self._named(_slug(service)),
            **own,
        )

    def _flow_log(self) -> aws.ec2.FlowLog:
        context = self.aws_context
        logs = self.log_group("flow-logs", f"/aws/vpc/{self.args.name('network')}")
        role, _ = self.service_role(
            "flow-log-role",
            "Lets the VPC write its flow log",
            "vpc-flow-logs.amazonaws.com",
            allow(*WRITE_LOGS, on=Output.concat(logs.arn, ":*")),
            when=context.acting_for(context.arn("ec2", "vpc-flow-log/*")),
            named="flow-log",
        )
        return aws.ec2.FlowLog(
            *self.child("flow-log"),
            vpc_id=self.vpc.id,
            traffic_type="ALL" if self.args.tier == "prod" else "REJECT",
            log_destination=logs.arn,
            iam_role_arn=role.arn,
            max_aggregation_interval=600,
            tags=self._named("flow-log"),
        )

    def _nat(self) -> None:
        """The default route of the private subnets of each zone, as the setting `nat` says."""
        route_tables, counts = self.route_tables["private"], {"none": 0, "single": 1, "instance": 1}
        count = counts.get(self.args.nat, self.args.zones)
        make = self._nat_instance if self.kind == "instance" else self._nat_gateway
        for number in range(count):
            make(number, route_tables[number::count])

    def _address(self, number: int) -> aws.ec2.Eip:
        return aws.ec2.Eip(
            *self.child(f"nat-{self.kind}-address-{number}", self.internet_gateway),
            domain="vpc",
            tags=self._named(f"nat-{number}"),
        )

    def _nat_gateway(self, number: int, route_tables: Sequence[aws.ec2.RouteTable]) -> None:
        gateway = aws.ec2.NatGateway(
            *self.child(f"nat-{number}", self.internet_gateway),
            allocation_id=self._address(number).allocation_id,
            subnet_id=self.subnets["public"][number].id,
            tags=self._named(f"nat-{number}"),
        )
        self.nat_gateways.append(gateway)
        for each in route_tables:
            key = f"out-{self.route_tables['private'].index(each)}"
            self.ways_out.append(self._way_out(key, each, nat_gateway_id=gateway.id))

    def _nat_instance(self, number: int, route_tables: Sequence[aws.ec2.RouteTable]) -> None:
        """A fleet of one; the newest takes the address and the routes, which no resource has."""
        component, arn = f"nat-{number}" if number else "nat", self.aws_context.arn
        address, machines = self._address(number), arn("ec2", "instance/*")
        own = {"aws:ResourceTag/Name": self.args.name(component)}
        unchecked = {**own, "ec2:Attribute/SourceDestCheck": "false"}
        interfaces = arn("ec2", "network-interface/*")
        group = arn("autoscaling", SCALING_GROUP(self.args.name(component)))
        statements = [
            allow("autoscaling:SetInstanceHealth", on=group),
            allow("ec2:CreateRoute", "ec2:ReplaceRoute", on=[each.arn for each in route_tables]),
            allow("ec2:AssociateAddress", on=address.arn),
            allow("ec2:AssociateAddress", on=[machines, interfaces], when={"StringEquals": own}),
            allow("ec2:ModifyInstanceAttribute", on=machines, when={"StringEquals": unchecked}),
        ]
        known = Output.all(address.allocation_id, *(each.id for each in route_tables))
        instances = Instances(
            component=component,
            user_data=known.apply(lambda values: nat_script(self.args.vpc_cidr, *values)),
            after=[*self.rules, *self.public_routes],
            security_group=self.security_groups["nat"],
            subnets=[self.subnets["public"][number]],
            types=["t4g.nano"],
            statements=statements,
            public=True,
        )
        fleet = Fleet(*self.part(f"nat-{number}"), instances=instances)
        self.nat_fleets.append(fleet)
        self.ways_out.append(fleet.rollout)

    def alarms(self) -> list[Alarm]:
        """Connections and packets that NAT gateways lose; NAT instances that are missing."""
        rows = []
        for number, gateway in enumerate(self.nat_gateways):
            of = {"NatGatewayId": gateway.id}
            for key, metric in (("ports", "ErrorPortAllocation"), ("drops", "PacketsDropCount")):
                alarm_key, name = f"nat-{number}-{key}", f"AWS/NATGateway/{metric}"
                rows.append(Alarm(alarm_key, name, of, above=0, period=300, runbook=f"nat-{key}"))
        return rows + [alarm for fleet in self.nat_fleets for alarm in fleet.alarms()]


def nat_script(cidr: str, address: str, *route_tables: str) -> str:
    """The user data of a NAT instance."""
    network = ipaddress.IPv4Network(cidr)
    return rendered(
        "nat.sh",
        inside=f"{network[-2]}/{network.prefixlen}",
        address=address,
        tables=" ".join(route_tables),
        anywhere=ANYWHERE,
    )


# === Web environment: Storage =====================================================================


class Storage(Component):
    """Buckets of the web environment: assets, and the logs of the load balancer and of access."""

    def __init__(self, name: str, args: TapStackArgs, key: Key, opts: Options = None):
        super().__init__(name, args, key, opts, "storage")
        unique_name = self.aws_context.unique_name
        assets, logs = unique_name(args.name("assets")), unique_name(args.name("web-logs"))
        self.logs = Bucket(
            *self.part("logs"),
            component="web-logs",
            physical_name=logs,
            days=args.log_retention_days,
            access_logs_of=[assets],
            load_balancer_logs=True,
        )
        self.assets = Bucket(
            *self.part("assets"),
            component="assets",
            physical_name=assets,
            under_key=True,
            access_logs_to=self.logs,
        )
        self.register_outputs({"assets_bucket_name": self.assets.bucket.bucket})


# === Web environment: Database ====================================================================

#: Parameters of PostgreSQL and how they are applied: RDS keeps its own way for a default's value.
DATABASE_PARAMETERS = (
    ("rds.force_ssl", "1", "pending-reboot"),
    ("log_disconnections", "1", "immediate"),
    ("log_min_duration_statement", "1000", "immediate"),
    ("password_encryption", "scram-sha-256", "pending-reboot"),
)
RDS_EVENTS = "availability,configuration change,failover,failure,low storage,maintenance".split(",")
LOG_CONNECTIONS = {"17": "1", "18": "all"}  # by version: 18 logs stages of a connection
DATABASE_NAME = "app"
#: Memory by size of the instance class, from xlarge on times their number ("DB instance classes").
MEMORY_GIB = {"micro": 1, "small": 2, "medium": 4, "large": 8, "xlarge": 16}


def memory_of(database_class: str) -> int:
    """Bytes of memory of an instance class such as db.r7g.2xlarge."""
    _, family, size = database_class.split(".")
    gib = MEMORY_GIB.get(size) or 16 * int(re.sub(r"\D", "", size) or 1)
    return gib * {"r": 2, "x": 4}.get(family[0], 1) * 2**30


class Database(Component):
    """PostgreSQL on RDS in isolated subnets: TLS forced, encrypted, backed up, with snapshots. The
    master password is in a secret that RDS creates and rotates; the application has a user of its
    own, without a password: IAM lets it in. `topic_arn` is notified of the database's events. Costs
    its class by the hour, storage by the GB and month, both twice with a standby, the secret."""

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        key: Key,
        opts: Options = None,
        *,
        topic_arn: Input[str],
        network: Network,
    ):
        super().__init__(name, args, key, opts, "database")
        self.physical_name = args.name("database")
        self.subnets = aws.rds.SubnetGroup(
            *self.child("subnets"),
            name=self.physical_name,
            description="The isolated subnets",
            subnet_ids=[each.id for each in network.subnets["isolated"]],
        )
        #: Of each version, so that an upgrade's old one is there until the maintenance window.
        self.parameters = {each: self._parameters(each) for each in DATABASE_VERSIONS}
        kinds, path = ("postgresql", "upgrade"), f"/aws/rds/instance/{self.physical_name}"
        self.logs = [self.log_group(f"{each}-logs", f"{path}/{each}") for each in kinds]
        self.monitoring_role = self._monitoring_role()
        self.instance = self._instance(network)
        self.events = self._events(topic_arn)
        #: ARN of the secret with the master password.
        self.secret_arn = self.instance.master_user_secrets[0].secret_arn
        user = Output.format("dbuser:{0}/{1}", self.instance.resource_id, DATABASE_USER)
        #: ARN of the application's user, who comes with a token of IAM.
        self.user_arn = self.aws_context.arn("rds-db", user)
        self.snapshots = self._snapshots()
        self.schedule = self.snapshots.schedule("cron(30 1 * * ? *)", "A snapshot every night")
        self.register_outputs({"endpoint": self.instance.endpoint})

    def _parameters(self, version: str) -> aws.rds.ParameterGroup:
        logged = ("log_connections", LOG_CONNECTIONS[version], "immediate")
        return aws.rds.ParameterGroup(
            *self.child(f"parameters-{version}"),
            name=self.args.name(f"database-{version}"),
            family=f"postgres{version}",
            description="TLS forced, connections and slow statements logged",
            parameters=[
                {"name": name, "value": value, "apply_method": method}
                for name, value, method in (*DATABASE_PARAMETERS, logged)
            ],
        )

    def _monitoring_role(self) -> aws.iam.Role:
        # A log group's creation is authorized on its ARN with a suffix.
        logs = self.aws_context.arn("logs", "log-group:RDSOSMetrics:*")
        role, _ = self.service_role(
            "monitoring-role",
            "Lets RDS publish the metrics of the database's machine",
            "monitoring.rds.amazonaws.com",
            allow("logs:CreateLogGroup", "logs:PutRetentionPolicy", *WRITE_LOGS, on=logs),
            allow("logs:GetLogEvents", on=logs),
            when=self.aws_context.same_account,
        )
        return role

    def _instance(self, network: Network) -> aws.rds.Instance:
        args, name = self.args, self.physical_name
        # The VPC's id is new in each life of the stack, and so is the name.
        final = Output.concat(f"{name}-final-", network.vpc.id)
        return aws.rds.Instance(
            # RDS would create the log groups, without retention.
            *self.child("instance", *self.logs, protect=True),
            identifier=name,
            engine="postgres",
            engine_version=args.database_version,
            allow_major_version_upgrade=True,  # never on its own: engine_version has it
            instance_class=args.database_class,
            allocated_storage=args.database_gb,
            max_allocated_storage=5 * args.database_gb,
            storage_type="gp3",
            iops=12_000 if args.database_gb >= 400 else None,  # free; RDS refuses to grow without
            storage_encrypted=True,
            kms_key_id=self.key.arn,
            db_name=DATABASE_NAME,
            username="master",
            manage_master_user_password=True,
            master_user_secret_kms_key_id=self.key.arn,
            iam_database_authentication_enabled=True,
            port=POSTGRES_PORT,
            publicly_accessible=False,
            db_subnet_group_name=self.subnets.name,
            vpc_security_group_ids=[network.security_groups["database"].id],
            parameter_group_name=self.parameters[args.database_version].name,
            ca_cert_identifier="rds-ca-rsa2048-g1",
            multi_az=args.database_multi_az,
            backup_retention_period=args.backup_days,
            backup_window="02:30-03:30",
            maintenance_window="sun:04:00-sun:05:00",
            copy_tags_to_snapshot=True,
            delete_automated_backups=not args.deletion_protection,
            deletion_protection=args.deletion_protection,
            skip_final_snapshot=args.tier == "dev",
            final_snapshot_identifier=None if args.tier == "dev" else final,
            auto_minor_version_upgrade=True,
            apply_immediately=args.tier == "dev",
            enabled_cloudwatch_logs_exports=["postgresql", "upgrade"],
            performance_insights_enabled=True,
            performance_insights_kms_key_id=self.key.arn,
            performance_insights_retention_period=7,
            monitoring_interval=60,
            monitoring_role_arn=self.monitoring_role.arn,
        )

    def _events(self, topic_arn: Input[str]) -> aws.rds.EventSubscription:
        return aws.rds.EventSubscription(
            *self.child("events"),
            name=self.physical_name,
            sns_topic=topic_arn,
            source_type="db-instance",
            source_ids=[self.instance.identifier],
            event_categories=RDS_EVENTS,
        )

    def _snapshots(self) -> Function:
        instance, arn, created_by = self.instance, self.aws_context.arn, self.args.name("snapshots")
        own = arn("rds", f"snapshot:{self.physical_name}-*")
        has_tag = {"StringEquals": {"aws:ResourceTag/CreatedBy": created_by}}
        requests_tag = {"StringEquals": {"aws:RequestTag/CreatedBy": created_by}}
        environment = {
            "DATABASE": instance.identifier,
            "DATABASE_ID": instance.resource_id,
            "CREATED_BY": created_by,
            "SNAPSHOT_DAYS": str(self.args.snapshot_days),
            "SNAPSHOT_KEEP": str(self.args.snapshot_keep),
            **metrics_environment(self.args),
        }
        return Function(
            *self.part("snapshots"),
            component="snapshots",
            code=Code(handler=take_snapshot, environment=environment, timeout_seconds=120),
            canary=Canary(probes=[({"dry_run": True}, None)]),
            statements=[
                allow("rds:CreateDBSnapshot", on=[instance.arn, own]),
                allow("rds:AddTagsToResource", on=own, when=requests_tag),
                # The call names no snapshot, so AWS may ask for the right to all of them.
                allow("rds:DescribeDBSnapshots", on=[instance.arn, arn("rds", "snapshot:*")]),
                allow("rds:DescribeDBSnapshotAttributes", on=own),
                allow("rds:DeleteDBSnapshot", on=own, when=has_tag),
            ],
            max_event_age_hours=1,
        )

    def alarms(self) -> list[Alarm]:
        """A database that is busy, full or slow; no snapshot for 26 hours."""
        args, of = self.args, {"DBInstanceIdentifier": self.instance.identifier}
        memory, storage = memory_of(args.database_class), args.database_gb * 1_000_000_000
        # RDS's default for max_connections: LEAST(DBInstanceClassMemory / 9531392, 5000), of which
        # the first is what it leaves of the memory. A micro has about 80.
        connections = 0.8 * min((memory - 300_000_000) / 9_531_392, 5_000)
        quarter_hour: dict[str, Any] = {"statistic": "Average", "period": 300, "datapoints": (3, 3)}
        here = {"Environment": args.environment_suffix}
        hours: Any = {"period": 3600, "datapoints": (26, 26), "treat_missing_data": "missing"}

        def row(key: str, metric: str, **threshold: Any) -> Alarm:
            return Alarm(f"database-{key}", f"AWS/RDS/{metric}", of, **threshold, **quarter_hour)

        return [
            row("cpu", "CPUUtilization", above=80),
            row("storage", "FreeStorageSpace", below=0.15 * storage),
            row("memory", "FreeableMemory", below=0.05 * memory),
            row("connections", "DatabaseConnections", above=round(connections)),
            row("latency", "WriteLatency", above=0.1),
            row("read-latency", "ReadLatency", above=0.1),
            row("io-credits", "EBSIOBalance%", below=10),
            row("byte-credits", "EBSByteBalance%", below=10),
            row("transaction-ids", "MaximumUsedTransactionIDs", above=1_000_000_000),
            Alarm("snapshot-missing", f"{args.project}/SnapshotsTaken", here, below=1, **hours),
            *self.snapshots.alarms(),
        ]

    def graphs(self) -> list[Graph]:
        """Load and free resources of the database, and the snapshot function's calls."""
        of = {"DBInstanceIdentifier": self.instance.identifier}
        load = ("CPUUtilization Average", "DatabaseConnections Average")
        room = ("FreeStorageSpace Average", "FreeableMemory Average")
        return [
            Graph("Database load", lines("AWS/RDS", of, *load), overview=True),
            Graph("Database room", lines("AWS/RDS", of, *room)),
            *self.snapshots.graphs(),
        ]


# === Web environment: Snapshots ===================================================================


def take_snapshot(event: Event, context: Any) -> Json:
    """Lambda handler: deletes its own snapshots past retention, then takes the day's.
    In this order, because RDS refuses one above the region's quota. With `{"dry_run": true}` it
    only says what it would do. Raises RDS's error when the snapshot could not be taken; one that
    could not be deleted is tried again the next day."""
    start_clock(context)
    dry_run = bool(event.get("dry_run"))
    name = f"{os.environ['DATABASE']}-{time.strftime('%Y-%m-%d', time.gmtime())}"
    days, keep = int(os.environ["SNAPSHOT_DAYS"]), int(os.environ["SNAPSHOT_KEEP"])
    found = within(seconds_left(), own_snapshots)
    old = past_retention(found, time.time(), days, keep)
    deleted = [each for each in old if dry_run or delete_snapshot(each)]
    if not dry_run:
        within(seconds_left(), create_snapshot, name)
    log_fields = {"snapshot": name, "found": len(found), "deleted": deleted, "dry_run": dry_run}
    metric = "SnapshotDryRuns" if dry_run else "SnapshotsTaken"
    print(metric_line("snapshot", metric, log_fields, failed=False))
    return log_fields


def create_snapshot(name: str) -> None:
    """Begins a snapshot. RDS's error may be due to an earlier attempt of this day and database."""
    tags = [{"Key": "CreatedBy", "Value": os.environ["CREATED_BY"]}]
    try:
        client("rds").create_db_snapshot(
            DBInstanceIdentifier=os.environ["DATABASE"], DBSnapshotIdentifier=name, Tags=tags
        )
    except Exception:
        begun = [x for x in own_snapshots() if x["Status"] != "failed"]
        this = {"DBSnapshotIdentifier": name, "DbiResourceId": os.environ["DATABASE_ID"]}
        if not any(this.items() <= each.items() for each in begun):
            raise


def own_snapshots() -> list[Json]:
    """All manual snapshots of the database that carry this function's tag."""
    paginator = client("rds").get_paginator("describe_db_snapshots")
    pages = paginator.paginate(DBInstanceIdentifier=os.environ["DATABASE"], SnapshotType="manual")
    tag = {"Key": "CreatedBy", "Value": os.environ["CREATED_BY"]}
    found = (each for page in pages for each in page["DBSnapshots"])
    return [each for each in found if tag in each.get("TagList", [])]


def past_retention(snapshots: Iterable[Json], now: float, days: int, keep: int) -> list[str]:
    """The names of the snapshots to delete: older than `days`, and not among the `keep` newest.
    Those that failed all go. Those that are still being created or copied, and those that are not
    manual, neither count nor are deleted. `now` is in seconds since 1970."""
    manual = [each for each in snapshots if each["SnapshotType"] == "manual"]
    failed = [each["DBSnapshotIdentifier"] for each in manual if each["Status"] == "failed"]
    complete = [
        (each["SnapshotCreateTime"].timestamp(), each["DBSnapshotIdentifier"])
        for each in manual
        if each["Status"] == "available"
    ]
    older = sorted(complete, reverse=True)[keep:]
    return failed + [name for taken, name in older if now - taken > days * 86_400]


def delete_snapshot(name: str) -> bool:
    """Deletes a snapshot that is not shared; logs it if that fails."""
    try:
        # A quarter of the time that is left: the day's snapshot is still to be taken.
        return bool(within(seconds_left() / 4, delete_unshared, name))
    except Exception as error:  # noqa: BLE001 - the others are still to be deleted
        log_fields = {"snapshot": name, "error": format_error(error), "stack": stack_of(error)}
        print(metric_line("snapshot", "SnapshotDeleteFailures", log_fields, failed=True))
        return False


def delete_unshared(name: str) -> bool:
    """Deletes a snapshot unless it is shared."""
    response = client("rds").describe_db_snapshot_attributes(DBSnapshotIdentifier=name)
    attributes = response["DBSnapshotAttributesResult"].get("DBSnapshotAttributes", [])
    if any(each.get("AttributeValues") for each in attributes):
        print(json.dumps({"level": "INFO", "message": f"{name} is shared: not deleted"}))
        return False
    client("rds").delete_db_snapshot(DBSnapshotIdentifier=name)
    return True


# === Web environment: Web tier ====================================================================

#: Groups of rules of AWS WAF, in the order in which they see a request.
MANAGED_RULES = (
    "AWSManagedRulesAmazonIpReputationList",
    "AWSManagedRulesCommonRuleSet",
    "AWSManagedRulesKnownBadInputsRuleSet",
)
TLS_POLICY = "ELBSecurityPolicy-TLS13-1-2-2021-06"
ALB = "AWS/ApplicationELB/{}"  # a metric of the load balancer


class WebTier(Component):
    """The application behind a load balancer: HTTPS, instances in private subnets, scaling. Costs
    the balancer and its capacity units by the hour, an IPv4 address in each zone, the fleet."""

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        key: Key,
        opts: Options = None,
        *,
        network: Network,
        storage: Storage,
        database: Database,
    ):
        super().__init__(name, args, key, opts, "web")
        self.certificate_arn: Input[str] = args.certificate_arn
        if not (args.certificate_arn or args.plain_http):
            self.certificate_arn = self.certificate(args.domain_name, *args.alternative_names)
        self.load_balancer = self._load_balancer(network, storage)
        self.target_group = self._target_group(network)
        self.listeners = self._listeners()
        self.firewall = self._firewall() if args.waf else None
        self.logs = self.log_group("logs", f"/{args.name('web')}")
        self.fleet = self._fleet(network, database)
        self.scaling = [self._scaling(*each) for each in self._scaling_targets()]
        balancer = self.load_balancer
        for each in (args.domain_name, *args.alternative_names):
            self.point(each, "A", target=balancer.dns_name, zone_id=balancer.zone_id)
        scheme = "http" if args.plain_http else "https"
        #: URL of the application.
        self.url = Output.concat(f"{scheme}://", args.domain_name or self.load_balancer.dns_name)
        self.register_outputs({"url": self.url})

    def _load_balancer(self, network: Network, storage: Storage) -> aws.lb.LoadBalancer:
        logs, ready = storage.logs, (storage.logs.policy, network.internet_gateway)
        return aws.lb.LoadBalancer(
            # It tries to write its log on creation.
            *self.child("balancer", *ready, protect=self.args.deletion_protection),
            name=self.args.name("web"),
            load_balancer_type="application",
            subnets=[each.id for each in network.subnets["public"]],
            security_groups=[network.security_groups["balancer"].id],
            drop_invalid_header_fields=True,
            desync_mitigation_mode="strictest",
            enable_deletion_protection=self.args.deletion_protection,
            idle_timeout=60,
            access_logs={"bucket": logs.bucket.bucket, "prefix": "balancer", "enabled": True},
        )

    def _target_group(self, network: Network) -> aws.lb.TargetGroup:
        check: Any = {"path": "/healthz", "matcher": "200", "interval": 10, "timeout": 5}
        check |= {"healthy_threshold": 2, "unhealthy_threshold": 3}
        return aws.lb.TargetGroup(
            *self.child("targets"),
            name=self.args.name("web"),
            vpc_id=network.vpc.id,
            port=WEB_PORT,
            protocol="HTTP",
            target_type="instance",
            deregistration_delay=60,
            load_balancing_algorithm_type="least_outstanding_requests",
            # Of the process alone: an unavailable database must not have all instances replaced.
            health_check=check,
        )

    def _listeners(self) -> list[aws.lb.Listener]:
        forward: Any = {"type": "forward", "target_group_arn": self.target_group.arn}
        to = {"port": "443", "protocol": "HTTPS", "status_code": "HTTP_301"}
        redirect: Any = {"type": "redirect", "redirect": to}

        def listen(key: str, port: int, action: Any, **tls: Any) -> aws.lb.Listener:
            return aws.lb.Listener(
                *self.child(key),
                load_balancer_arn=self.load_balancer.arn,
                port=port,
                protocol=key.upper(),
                default_actions=[action],
                **tls,
            )

        if self.args.plain_http:
            return [listen("http", 80, forward)]
        tls = {"ssl_policy": TLS_POLICY, "certificate_arn": self.certificate_arn}
        return [listen("http", 80, redirect), listen("https", 443, forward, **tls)]

    def _firewall(self) -> aws.wafv2.WebAcl:
        """What none of the groups refuses is admitted."""

        def seen(name: str) -> Any:
            enabled = ("cloudwatch_metrics_enabled", "sampled_requests_enabled")
            return {"metric_name": name, **dict.fromkeys(enabled, True)}

        rules: list[Any] = [
            {
                "name": name,
                "priority": priority,
                "override_action": {"none": {}},
                "statement": {"managed_rule_group_statement": {"vendor_name": "AWS", "name": name}},
                "visibility_config": seen(name),
            }
            for priority, name in enumerate(MANAGED_RULES)
        ]
        acl = aws.wafv2.WebAcl(
            *self.child("firewall"),
            name=self.args.name("web"),
            description="Amazon's managed rules before the load balancer",
            scope="REGIONAL",
            default_action={"allow": {}},
            rules=rules,
            visibility_config=seen(self.args.name("web")),
        )
        options, balancer = self.child("firewall-association"), self.load_balancer.arn
        aws.wafv2.WebAclAssociation(*options, resource_arn=balancer, web_acl_arn=acl.arn)
        return acl

    def _fleet(self, network: Network, database: Database) -> Fleet:
        args = self.args
        values = {"secret": database.secret_arn, "host": database.instance.address}
        values |= {"log_group": self.logs.name, "region": self.aws_context.region}
        instances = Instances(
            component="web",
            user_data=Output.all(**values).apply(lambda x: web_script(**x)),
            after=[*network.rules, *network.ways_out, *network.endpoints, *self.listeners],
            security_group=network.security_groups["web"],
            subnets=network.subnets["private"],
            types=args.instance_types,
            statements=[
                allow("rds-db:connect", on=database.user_arn),
                allow("secretsmanager:GetSecretValue", on=database.secret_arn),  # to migrate
                self.key_use("secretsmanager", "Decrypt"),
                *agent_statements(self.logs),
            ],
            minimum=args.instances_min,
            maximum=args.instances_max,
            spot_percent=args.spot_percent,
            target_groups=[self.target_group],
            alarms=[args.name("web-5xx"), args.name("web-unhealthy")],
        )
        return Fleet(*self.part("fleet"), instances=instances)

    def _scaling_targets(self) -> list[tuple[str, Json, float]]:
        """Metrics and their targets: average CPU, and requests a minute for each instance."""
        label = Output.concat(self.load_balancer.arn_suffix, "/", self.target_group.arn_suffix)
        requests = {"predefined_metric_type": "ALBRequestCountPerTarget", "resource_label": label}
        cpu = {"predefined_metric_type": "ASGAverageCPUUtilization"}
        return [("cpu", cpu, 60), ("requests", requests, 3_000)]

    def _scaling(self, key: str, metric: Json, target: float) -> aws.autoscaling.Policy:
        tracking: Any = {"predefined_metric_specification": metric, "target_value": target}
        return aws.autoscaling.Policy(
            *self.child(f"by-{key}", *self.listeners),
            name=self.args.name(f"web-{key}"),
            autoscaling_group_name=self.fleet.scaling_group.name,
            policy_type="TargetTrackingScaling",
            target_tracking_configuration=tracking,
        )

    def _dimensions(self) -> tuple[Dimensions, Dimensions, Dimensions]:
        """Of the load balancer, the target group, the Auto Scaling group."""
        balancer = {"LoadBalancer": self.load_balancer.arn_suffix}
        targets = {**balancer, "TargetGroup": self.target_group.arn_suffix}
        return balancer, targets, {"AutoScalingGroupName": self.fleet.scaling_group.name}

    def alarms(self) -> list[Alarm]:
        """Failures and latency as callers see them, hosts that fail, machines that are full."""
        balancer, targets, group = self._dimensions()
        elb, least, slow = ALB.format, self.args.instances_min, self.args.latency_ms / 1000
        failures: Any = {"above": 10, "datapoints": (2, 3)}
        p95: Any = {"statistic": "p95", "datapoints": (3, 5)}
        # Longer than an instance may take to start (health_check_grace_period).
        unhealthy: Any = {"above": 0, "statistic": "Maximum", "datapoints": (5, 5)}
        few: Any = {"statistic": "Minimum", "datapoints": (10, 10), "treat_missing_data": "missing"}
        use: Any = {"period": 300, "datapoints": (3, 3)}
        fullest = {"above": 85, "statistic": "Maximum", **use}  # of the fleet's instances
        return [
            Alarm("web-5xx", elb("HTTPCode_Target_5XX_Count"), targets, **failures),
            Alarm("balancer-5xx", elb("HTTPCode_ELB_5XX_Count"), balancer, **failures),
            Alarm("web-latency", elb("TargetResponseTime"), targets, slow, **p95),
            Alarm("balancer-rejected", elb("RejectedConnectionCount"), balancer, above=0),
            Alarm("web-unhealthy", elb("UnHealthyHostCount"), targets, **unhealthy),
            Alarm("web-hosts", elb("HealthyHostCount"), targets, below=least, **few),
            *certificate_alarm("web-certificate", self.certificate_arn),
            Alarm("web-cpu", "AWS/EC2/CPUUtilization", group, 80, statistic="Average", **use),
            Alarm("web-memory", "CWAgent/mem_used_percent", group, **fullest),
            Alarm("web-disk", "CWAgent/disk_used_percent", group, **fullest),
            *self.fleet.alarms(),
        ]

    def objectives(self) -> list[Objective]:
        """That requests succeed, at the balancer and behind it, and are quick."""
        balancer, targets, _ = self._dimensions()
        elb, rank = ALB.format, f"PR(:{self.args.latency_ms / 1000:g})"
        requests = (elb("RequestCount"), balancer, "Sum")  # which reached a target
        failed = (elb("HTTPCode_Target_5XX_Count"), targets, "Sum")
        refused = (elb("HTTPCode_ELB_5XX_Count"), balancer, "Sum")
        succeed = {"failed": failed, "refused": refused, "requests": requests}
        bad, total = (f"FILL({x}, 0) + FILL(refused, 0)" for x in ("failed", "requests"))
        quick = {"quick": (elb("TargetResponseTime"), targets, rank), "requests": requests}
        return [
            Objective("web-availability", self.args.availability_objective, succeed, bad, total),
            Objective("web-latency", self.args.latency_objective, quick, SLOW),
        ]

    def graphs(self) -> list[Graph]:
        """Objective, requests, latency, hosts and machines."""
        balancer, targets, group = self._dimensions()
        alb, counts = "AWS/ApplicationELB", ("RequestCount", "HTTPCode_Target_5XX_Count")
        good = f"TargetResponseTime PR(:{self.args.latency_ms / 1000:g})"
        times = [f"TargetResponseTime {each}" for each in ("p50", "p95", "p99")]
        hosts = ("HealthyHostCount Maximum", "UnHealthyHostCount Maximum")
        use = lines("CWAgent", group, "mem_used_percent Maximum", "disk_used_percent Maximum")
        return [
            Graph("Web objectives", lines(alb, targets, good, counts[1]), overview=True),
            Graph("Web requests", lines(alb, balancer, *counts)),
            Graph("Web latency", lines(alb, targets, *times)),
            Graph("Web hosts", lines(alb, targets, *hosts)),
            Graph("Web machines", lines("AWS/EC2", group, "CPUUtilization Average") + use, True),
        ]


def web_script(log_group: str, region: str, secret: str, host: str) -> str:
    """The user data of a web instance."""
    install = rendered(
        "web.sh",
        packages=text_beside("requirements-web.txt").strip(),
        region=region,
        secret=secret,
        host=host,
        port=str(POSTGRES_PORT),
        database=DATABASE_NAME,
        web_port=str(WEB_PORT),
        source=bundle(web, run_command, INSTANCE_MODULES).rstrip(),
    )
    return f"{install}\n{agent_script(log_group, '/var/log/web.log')}"


def agent_script(log_group: str, path: str) -> str:
    """The part of a user data script that ships a log file, memory and disk to CloudWatch."""
    config = json.loads(rendered("agent.json", log_group=log_group, path=path))
    return rendered("agent.sh", agent=json.dumps(config))


def agent_statements(logs: aws.cloudwatch.LogGroup) -> list[Statement]:
    """What an instance with the agent may do."""
    own_metrics = {"StringEquals": {"cloudwatch:namespace": "CWAgent"}}
    return [
        allow("cloudwatch:PutMetricData", on="*", when=own_metrics),  # has no resources to name
        allow("ec2:DescribeTags", on="*"),  # the group's name is a tag; has no resources to name
        allow(*WRITE_LOGS, on=Output.concat(logs.arn, ":*")),
    ]


# === Web environment: Bastion =====================================================================


class Bastion(Component):
    """A way in for people: Session Manager, or SSH from known CIDR blocks with a key of one minute.
    There is no key pair: EC2 Instance Connect pushes a person's public key for 60 s, if IAM allows
    it. Each login by SSH is logged and alarmed; sessions of Session Manager are in CloudTrail.
    Costs a t4g.micro by the hour, less where `bastion_hours` stop it, and its IPv4 address."""

    def __init__(
        self, name: str, args: TapStackArgs, key: Key, opts: Options = None, *, network: Network
    ):
        super().__init__(name, args, key, opts, "bastion")
        log_group_name = f"/{args.name('bastion')}"
        self.logs = self.log_group("logs", log_group_name)
        metric = f"BastionLogins-{args.environment_suffix}"
        self.logins = aws.cloudwatch.LogMetricFilter(
            *self.child("logins"),
            name=args.name("bastion-logins"),
            log_group_name=self.logs.name,
            pattern='"Accepted publickey"',
            metric_transformation={"namespace": args.project, "name": metric, "value": "1"},
        )
        agent = agent_script(log_group_name, "/var/log/secure")
        instances = Instances(
            component="bastion",
            user_data=f"{rendered('bastion.sh')}\n{agent}",
            after=[*network.rules, *network.public_routes],
            security_group=network.security_groups["bastion"],
            subnets=network.subnets["public"],
            types=["t4g.micro"],  # dnf is killed for want of memory on a t4g.nano
            statements=agent_statements(self.logs),
            public=True,
            scheduled=["minSize"] if args.bastion_hours else [],
        )
        self.fleet = Fleet(*self.part("fleet"), instances=instances)
        self.hours = self._hours() if args.bastion_hours else []
        self.register_outputs({"group_name": self.fleet.scaling_group.name})

    def _hours(self) -> list[aws.autoscaling.Schedule]:
        begin, end = map(int, self.args.bastion_hours.split("-"))
        stop_days = "1-5" if begin < end else "2-6"
        actions = (("start", begin, "1-5", 1), ("stop", end, stop_days, 0))
        # An update sends the start that AWS told, which has passed: it refuses that.
        anew: Any = {"replace_on_changes": ["recurrence"], "delete_before_replace": True}
        return [
            aws.autoscaling.Schedule(
                *self.child(action, **anew),
                scheduled_action_name=self.args.name(f"bastion-{action}"),
                autoscaling_group_name=self.fleet.scaling_group.name,
                recurrence=f"0 {hour} * * {days}",
                min_size=count,
                max_size=1,
                desired_capacity=count,
            )
            for action, hour, days, count in actions
        ]

    def alarms(self) -> list[Alarm]:
        """A login by SSH; a bastion that is missing, unless it has hours."""
        metric = f"{self.args.project}/BastionLogins-{self.args.environment_suffix}"
        missing = [] if self.args.bastion_hours else self.fleet.alarms()
        return [Alarm("bastion-logins", metric, {}, above=0), *missing]


# === Monitoring ===================================================================================

#: What a saved query says that it reads -> the system of that log group, and how its name begins.
LOG_GROUPS = {
    "access": ("api", "/aws/vendedlogs/apis/"),
    "api": ("api", "/aws/lambda/"),
    "files": ("files", "/aws/lambda/"),
}
#: Component -> the system on whose dashboard it is, unless that is its own.
DASHBOARDS = {"database": "web", "synthetics": "api"}


class Monitoring(Component):
    """The alarms and the dashboards of other components. Alarms notify the topic, or that of pages.
    Costs each metric of an alarm by the month; of the dashboards, one for each system and an
    overview, an account has three for nothing."""

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        opts: Options = None,
        *,
        components: Iterable[Component],
        topic_arn: Input[str],
        pages_topic_arn: Input[str] | None = None,
    ):
        super().__init__(name, args, None, opts, "monitoring")
        self.components = list(components)
        pages = [topic_arn if pages_topic_arn is None else pages_topic_arn]
        self.topics = {"ticket": [topic_arn], "page": pages, "nobody": []}
        rows = [row for part in self.components for row in part.alarms()]
        #: Key of the alarm table -> alarm.
        self.metric_alarms = {row.key: self._alarm(row) for row in rows}
        #: Key -> alarm of a system's objectives.
        self.burn_alarms = {
            f"{part.component}-{rate.key}": self._burn_alarm(part.component, rate, objectives)
            for part in self.components
            if (objectives := [each for each in part.objectives() if each.percentage])
            for rate in BURN_RATES
        }
        if args.tier == "prod" and not args.alarm_emails:
            heard = len(self.burn_alarms) + sum(row.notifies != "nobody" for row in rows)
            topics = f"{args.name('alerts')} and {args.name('pages')}"
            pulumi.log.warn(
                f"alarm_emails is empty: the {heard} alarms of {args.environment_suffix} notify "
                f"nobody. Set it, or subscribe to the topics {topics} yourself"
            )
        self._save_queries()
        self.dashboards = self._dashboards()
        self.dashboard = self._overview()
        self.register_outputs({"dashboard_name": self.dashboard.dashboard_name})

    def _alarm(self, alarm: Alarm) -> aws.cloudwatch.MetricAlarm:
        """The resource of a row of the alarm table."""
        side, threshold = ("below", alarm.below) if alarm.above is None else ("above", alarm.above)
        actions, what = self.topics[alarm.notifies], alarm.metric.rpartition("/")[2]
        runbook = f"{RUNBOOK}#{alarm.runbook or alarm.key}"
        return aws.cloudwatch.MetricAlarm(
            *self.child(alarm.key),
            name=self.args.name(alarm.key),
            alarm_description=f"{what} {side} {threshold:g}. What to do: {runbook}",
            comparison_operator="GreaterThanThreshold" if side == "above" else "LessThanThreshold",
            threshold=threshold,
            datapoints_to_alarm=alarm.datapoints[0],
            evaluation_periods=alarm.datapoints[1],
            treat_missing_data=alarm.treat_missing_data,
            alarm_actions=actions,
            ok_actions=actions,
            insufficient_data_actions=actions if alarm.treat_missing_data == "missing" else [],
            **measured(alarm),
        )

    def _burn_alarm(
        self, component: str, rate: BurnRate, objectives: Iterable[Objective]
    ) -> aws.cloudwatch.CompositeAlarm:
        """Fires while one of a component's objectives burns its budget in both windows."""
        rules = []
        for each in objectives:
            windows = [self._alarm(each.alarm(rate, x)).name for x in ("long", "short")]
            rules.append(Output.format("(ALARM({0}) AND ALARM({1}))", *windows))
        key, actions = f"{component}-{rate.key}", self.topics[rate.notifies]
        runbook, share = f"{RUNBOOK}#{component}-burn-rate", rate.rate * rate.long / 25_920
        release = self.metric_alarms.get(f"{component}-release")
        waits: Any = {"alarm": release and release.name, "wait_period": 60, "extension_period": 180}
        return aws.cloudwatch.CompositeAlarm(
            *self.child(key),
            alarm_name=self.args.name(key),
            alarm_description=f"{share:g} % of the error budget of 30 days was used up in "
            f"{rate.long // 3600} h, and it burns on. What to do: {runbook}",
            alarm_rule=Output.all(*rules).apply(" OR ".join),
            # A release takes its version back itself; who is paged all the same hears of it after.
            actions_suppressor=waits if release else None,
            alarm_actions=actions,
            ok_actions=actions,
        )

    def _save_queries(self) -> None:
        """Saves queries of Logs Insights, for the questions of an incident."""
        present = {each.component for each in self.components}
        for path in sorted(Path(__file__).with_name("queries").glob("logs/*.txt")):
            read, _, question = path.read_text().removeprefix("# ").partition(": ")
            groups = [LOG_GROUPS[name] for name in read.split()]
            names = [begin + self.args.name(x) for x, begin in groups if x in present]
            if names:
                aws.cloudwatch.QueryDefinition(
                    *self.child(f"query-{path.stem}"),
                    name=f"{self.args.project}/{self.args.environment_suffix}/{path.stem}",
                    log_group_names=names,
                    query_string=f"# {question}",
                )

    def _dashboards(self) -> dict[str, aws.cloudwatch.Dashboard]:
        """System -> its dashboard."""
        name, graphs = self.args.name, dict[str, list[Graph]]()
        for part in self.components:
            if found := part.graphs():
                system = DASHBOARDS.get(part.component, part.component)
                graphs.setdefault(system, []).extend(found)
        return {
            x: self._dashboard(self.child(f"{x}-dashboard"), name(x), graphs[x]) for x in graphs
        }

    def _overview(self) -> aws.cloudwatch.Dashboard:
        """The alarms that notify somebody, objectives, saturation, charges. Depends on all there
        is, so that `pulumi destroy` deletes it first: as it is protected, nothing is deleted at all
        without `--ignore-protect`."""
        graphs = [x for part in self.components for x in part.graphs() if x.overview]
        charges = lines("AWS/Billing", {"Currency": "USD"}, "EstimatedCharges Maximum")
        graphs.append(Graph("Estimated charges of the account", charges))
        alarms: list[Any] = [*self.burn_alarms.values(), *self.metric_alarms.values()]
        states = {"title": "Alarms", "alarms": [each.arn for each in alarms]}
        widget = {"type": "alarm", "x": 0, "y": 0, "width": 24, "height": 8, "properties": states}
        after = [*self.components, *alarms, *self.dashboards.values()]
        return self._dashboard(
            self.child("dashboard", *after, protect=True),
            f"{self.args.project}-{self.args.environment_suffix}",
            graphs,
            *([widget] if alarms else []),
        )

    def _dashboard(
        self, made: tuple[str, ResourceOptions], name: str, graphs: Iterable[Graph], *above: Json
    ) -> aws.cloudwatch.Dashboard:
        """The graphs as widgets in two columns, below others."""
        drawn = [
            _widget(self.aws_context.region, 8 * len(above), *each) for each in enumerate(graphs)
        ]
        body = Output.json_dumps({"widgets": [*above, *drawn]})
        return aws.cloudwatch.Dashboard(*made, dashboard_name=name, dashboard_body=body)


def measured(alarm: Alarm) -> dict[str, Any]:
    """What an alarm's resource measures. DynamoDB's metrics have no points without a throttle, and
    an alarm that keeps its state then would hear of one only (PutMetricAlarm, TreatMissingData)."""
    namespace, _, metric = alarm.metric.rpartition("/")
    if namespace == "AWS/DynamoDB":
        of = {"metric": (alarm.metric, alarm.dimensions, alarm.statistic)}
        return {"metric_queries": alarm_queries(alarm.period, of, filled="FILL(metric, 0)")}
    if alarm.queries:
        return {"metric_queries": alarm.queries}
    kind = "extended_statistic" if alarm.statistic[0] in "pP" else "statistic"
    of_metric: Json = {"namespace": namespace, "metric_name": metric, "period": alarm.period}
    return {**of_metric, "dimensions": alarm.dimensions, kind: alarm.statistic}


def _widget(region: Output[str], top: int, number: int, graph: Graph) -> Json:
    """The graph as a widget of a dashboard with two columns."""
    lines = [
        [namespace, name, *(x for pair in dimensions.items() for x in pair), {"stat": statistic}]
        for namespace, name, dimensions, statistic in graph.metrics
    ]
    place = {"x": number % 2 * 12, "y": top + number // 2 * 6, "width": 12, "height": 6}
    where = "us-east-1" if graph.metrics[0][0] == "AWS/Billing" else region  # that is its only one
    content = {"title": graph.title, "metrics": lines, "region": where}
    properties = {**content, "period": 60, "view": "timeSeries"}
    return {"type": "metric", **place, "properties": properties}


# === TapStack =====================================================================================


class StackOutput(Generic[T]):
    """An attribute of TapStack, None without its system. `path`: a component, then attributes."""

    def __init__(self, path: str, doc: str):
        self.path, self.doc = path.split("."), doc

    def __get__(self, stack: TapStack | None, _owner: type) -> Output[T] | None:
        found: Any = stack and stack.components.get(self.path[0])
        for name in self.path[1:]:
            found = found and getattr(found, name)
        return found  # type: ignore[no-any-return]


Text = StackOutput[str]


class TapStack(pulumi.ComponentResource):
    """The systems of a stack and what they share, composed; `api_handler` may wrap `api`."""

    api_url = Text("api.url", "Base URL of the API")
    api_domain_target = Text(
        "api.domain_target",
        "Where `api_domain_name` must point, as a CNAME, if its hosted zone is not the stack's",
    )
    table_name = Text("api.items.name", "Name of the items table")
    function_name = Text("api.function.function.name", "Name of the api function")
    api_release = Text("api.function.rollout.verdict", "What became of its newest version, and why")
    files_bucket_name = Text("files.uploads.bucket.bucket", "Name of the bucket for files")
    files_table_name = Text("files.table.name", "Name of the table that describes them")
    files_function_name = Text("files.function.function.name", "Name of the files function")
    files_dead_letters_url = Text("files.function.dead_letters_url", "URL of its dead-letter queue")
    files_workgroup_name = Text("files.analytics.workgroup.name", "Name of the Athena workgroup")
    user_pool_id = Text("identity.pool.id", "Id of the Cognito user pool")
    people_client_id = Text("identity.people.id", "Client id of apps that people sign in to (PKCE)")
    machine_client_ids = StackOutput[dict[str, str]](
        "identity.machine_ids",
        "Client id of each machine; its secret is read with cognito-idp:DescribeUserPoolClient",
    )
    sign_in_url = Text("identity.sign_in_url", "Base URL of `/oauth2/authorize`, `/oauth2/token`")
    web_url = Text("web.url", "URL of the web application")
    web_domain_target = Text(
        "web.load_balancer.dns_name",
        "The load balancer's name, where `domain_name` must point if its hosted zone is another",
    )
    vpc_id = Text("network.vpc.id", "Id of the VPC")
    assets_bucket_name = Text("storage.assets.bucket.bucket", "Name of the bucket of assets")
    database_name = Text("database.instance.identifier", "Identifier of the database instance")
    database_secret_arn = Text("database.secret_arn", "ARN of the master's secret; RDS rotates it")
    snapshots_function_name = Text(
        "database.snapshots.function.name", "Name of the snapshot function"
    )
    bastion_group_name = Text(
        "bastion.fleet.scaling_group.name", "Name of the bastion's Auto Scaling group"
    )
    alerts_topic_arn = Text("alerts.topic.arn", "ARN of the topic of alarms and budget")
    pages_topic_arn = Text("alerts.pages.arn", "ARN of the topic of alarms that page")
    dashboard_name = Text("monitoring.dashboard.dashboard_name", "Name of the CloudWatch dashboard")
    key_arn = Text("encryption.key.arn", "ARN of the customer-managed key")

    def __init__(
        self,
        name: str,
        args: TapStackArgs | None = None,
        opts: Options = None,
        *,
        api_handler: Handler = api,
    ):
        super().__init__("tap:stack:TapStack", name, None, opts)
        self.args = args = args or TapStackArgs()
        reject_placeholders(args)
        self.parented = ResourceOptions(parent=self)
        encryption = Encryption("encryption", args, self.parented)
        self.shared = (args, encryption.key, self.parented)
        self.alerts = Alerts("alerts", *self.shared, pages_key=encryption.pages_key)
        #: By their logical names.
        self.components: dict[str, Component] = {"encryption": encryption, "alerts": self.alerts}
        files = FilePipeline("files", *self.shared) if "files" in args.systems else None
        self._add(files)
        if "api" in args.systems:
            self._add_api(files, api_handler)
        if "web" in args.systems:
            self._add_web()
        arns: Any = {"topic_arn": self.alerts.topic.arn, "pages_topic_arn": self.alerts.pages.arn}
        parts = [*self.components.values()]
        self._add(Monitoring("monitoring", args, self.parented, components=parts, **arns))
        values = {name: getattr(self, name) for name in OUTPUTS}
        #: Name -> value of those whose system is there.
        self.outputs = {name: x for name, x in values.items() if x is not None}
        self.register_outputs(self.outputs)

    def _add(self, *made: Component | None) -> None:
        self.components |= {each.name: each for each in made if each}

    def _add_api(self, files: FilePipeline | None, handler: Handler) -> None:
        identity = Identity("identity", self.args, self.parented)
        tokens: Any = {"issuer": identity.issuer, "audience": identity.audience}
        api = ServerlessApi("api", *self.shared, **tokens, files=files, handler=handler)
        self._add(identity, api)
        if self.args.synthetics:
            self._add(Synthetics("synthetics", *self.shared, identity=identity, api_url=api.url))

    def _add_web(self) -> None:
        shared = self.shared
        network, storage = Network("network", *shared), Storage("storage", *shared)
        topic_arn = self.alerts.topic.arn
        database = Database("database", *shared, topic_arn=topic_arn, network=network)
        web = WebTier("web", *shared, network=network, storage=storage, database=database)
        self._add(network, storage, database, web, Bastion("bastion", *shared, network=network))


#: Name of each stack output -> what it is.
OUTPUTS = {name: each.doc for name, each in vars(TapStack).items() if isinstance(each, StackOutput)}


def main() -> None:
    """Builds the stack that the Pulumi configuration describes and exports its outputs."""
    stack = TapStack("tap", TapStackArgs.load())
    for output, value in stack.outputs.items():
        pulumi.export(output, value)


# === Transport ====================================================================================
# A client of DynamoDB and SSM: their JSON over one kept connection, by the rules of the SDK, which
# would be most of a cold start and of a request's CPU: docs/decisions/0010, benchmarks.sdk.

#: Service -> the prefix of its operations, the version of its JSON.
SERVICES = {"dynamodb": ("DynamoDB_20120810", "1.0"), "ssm": ("AmazonSSM", "1.1")}
TRANSIENT_STATUSES = (500, 502, 503, 504)
#: Error codes of transient failures, as in botocore's standard mode.
THROTTLING_CODES = frozenset(
    """PriorRequestNotComplete Throttling ThrottlingException ThrottledException
    RequestThrottledException TooManyRequestsException ProvisionedThroughputExceededException
    TransactionInProgressException RequestLimitExceeded BandwidthLimitExceeded
    LimitExceededException RequestThrottled SlowDown EC2ThrottledException""".split()
)
TRANSIENT_CODES = THROTTLING_CODES | {"RequestTimeout", "RequestTimeoutException"}
#: Reasons of a cancelled transaction, or another write, that may succeed a moment later.
BUSY_REASONS = set("ProvisionedThroughputExceeded ThrottlingError TransactionConflict".split())
# Botocore's retry quota: an unavailable service is not retried for long.
RETRY_TOKENS, RETRY_COST, TIMEOUT_COST = 500, 5, 10


class ServiceError(Exception):
    """An error response of AWS, or none at all; `response` is as in the SDK's ClientError."""

    def __init__(self, action: str, response: Json, cost: int = 0, transient: bool = False):
        code, message = response["Error"]["Code"], response["Error"]["Message"]
        text = f"An error occurred ({code}) when calling the {action} operation: {message}"
        super().__init__(text)
        self.response = {"ResponseMetadata": {"RetryAttempts": 0}, **response}
        self.cost = cost  # of another attempt, in retry tokens; 0: none is made
        self.transient = transient or cost > 0


class Service:
    """A service whose methods are its operations, with the names and results of the SDK's.
    `service("dynamodb").get_item(TableName=..., Key=...)`. A call takes 15 s at most, and no longer
    than the invocation may wait: three attempts with 1 s to connect and 3 s for the rest, pauses up
    to 1 s and 2 s. Raises ServiceError. For one thread."""

    def __init__(self, name: str):
        self.name, (self.prefix, self.version) = name, SERVICES[name]
        scheme, self.host = endpoint(name)
        try:
            self.connection = Connection(scheme, self.host, tls_context, seconds_left)
        except ValueError as error:
            raise ValueError(f"AWS_ENDPOINT_URL: {error}") from None
        self.tokens = RETRY_TOKENS
        self.metadata: Json = {}  # the SDK's ResponseMetadata of the last attempt

    def __getattr__(self, operation: str) -> Callable[..., Json]:
        return functools.partial(self.call, operation.title().replace("_", ""))

    def call(self, action: str, **arguments: Any) -> Json:
        """`attempts` at an operation; X-Ray gets one subsegment for all of them."""
        end = functools.partial(trace, self.name, action, arguments, time.time())
        try:
            response = self.attempts(action, arguments)
        except ServiceError as error:
            end(self.metadata, error.response["Error"])
            raise
        end(self.metadata, None)
        return response

    def attempts(self, action: str, arguments: Json) -> Json:
        """Up to three attempts, with jittered, exponential pauses, while there are tokens, time."""
        if action == "TransactWriteItems":  # by which DynamoDB knows another attempt at the same
            arguments.setdefault("ClientRequestToken", os.urandom(16).hex())
        body, retries, spent = json.dumps(arguments).encode(), 0, 1
        while True:
            self.metadata = {"RetryAttempts": retries}
            try:
                response = self._attempt(action, body)
                self.tokens = min(self.tokens + spent, RETRY_TOKENS)
                return response
            except ServiceError as error:
                pause = jitter() * 2**retries
                last = retries + 1 == ATTEMPTS or self.tokens < error.cost
                if last or not error.cost or seconds_left() <= pause:
                    error.response["ResponseMetadata"]["RetryAttempts"] = retries
                    raise
                spent = error.cost
            self.tokens -= spent
            time.sleep(pause)
            retries += 1

    def _attempt(self, action: str, body: bytes) -> Json:
        try:
            status, headers, content = self.connection.exchange(
                self._request(action, body), CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS
            )
        except OSError as error:
            cost = TIMEOUT_COST if isinstance(error, TimeoutError) else RETRY_COST
            raise connection_error(action, format_error(error), cost) from error
        request_id = headers.get("x-amzn-requestid", "")
        self.metadata.update(HTTPStatusCode=status, RequestId=request_id)
        checksum = headers.get("x-amz-crc32")
        if checksum and checksum != str(binascii.crc32(content)):
            raise connection_error(action, "its checksum is wrong", RETRY_COST)
        try:
            payload = json.loads(content)
        except (ValueError, RecursionError):
            payload = None
        if status != 200:
            raise service_error(action, status, payload if isinstance(payload, dict) else {})
        if not isinstance(payload, dict):
            raise connection_error(action, "it is no JSON object", cost=0)
        return payload

    def _request(self, action: str, body: bytes) -> bytes:
        """A signed request: IAM user guide, "Create a signed AWS API request"."""
        stamp = second(int(time.time())).replace("-", "").replace(":", "") + "Z"
        access_key, secret_key, token = credentials()
        headers = {
            "content-type": f"application/x-amz-json-{self.version}",
            "host": self.host,
            "x-amz-date": stamp,
            **({"x-amz-security-token": token} if token else {}),
            "x-amz-target": f"{self.prefix}.{action}",
        }
        names, lines = ";".join(headers), [f"{name}:{value}" for name, value in headers.items()]
        digest = hashlib.sha256(body).hexdigest()
        canonical = "\n".join(["POST", "/", "", *lines, "", names, digest])
        scope, hashed = credential_scope(stamp, self.name), hashlib.sha256(canonical.encode())
        whole = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashed.hexdigest()])
        signature = sign(whole, secret_key, scope)
        credential = f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}"
        lines.append(f"authorization:{credential}, SignedHeaders={names}, Signature={signature}")
        if trace := os.environ.get("_X_AMZN_TRACE_ID"):
            lines.append(f"x-amzn-trace-id:{trace}")  # by which Lambda notices an endless loop
        lines.append(f"content-length:{len(body)}")
        return "\r\n".join(["POST / HTTP/1.1", *lines, "", ""]).encode() + body


#: Amazon Root CA 1 to 4, by the place and the beginning of their serial numbers in PEM.
AMAZON_ROOT = re.compile("-{5}BEGIN CERTIFICATE-{5}\n.{16}AgITBmyf[^-]+-{5}END CERTIFICATE-{5}\n")


class SdkService:
    """What `Service` is, by a client of the SDK: the same operations, results and errors. A write
    whose time is over may still happen, as one whose response is lost."""

    def __init__(self, sdk_client: Any):
        self.client = sdk_client

    def __getattr__(self, operation: str) -> Callable[..., Json]:
        return functools.partial(self.call, operation)

    def call(self, operation: str, **arguments: Any) -> Json:
        """An operation, with the SDK's own attempts, within the time that is left."""
        from botocore import exceptions

        action, call = operation.title().replace("_", ""), getattr(self.client, operation)
        try:
            response: Json = within(seconds_left(), call, **arguments)
        except exceptions.ClientError as error:
            code, metadata = error_code(error), error.response["ResponseMetadata"]
            transient = code in TRANSIENT_CODES or metadata["HTTPStatusCode"] in TRANSIENT_STATUSES
            raise ServiceError(action, error.response, transient=transient) from error
        except exceptions.ParamValidationError:  # a mistake of the program's
            raise
        except (TimeoutError, exceptions.BotoCoreError) as error:
            raise connection_error(action, format_error(error), cost=0) from error
        return {name: response[name] for name in response if name != "ResponseMetadata"}


@functools.cache
def tls_context(all_authorities: bool) -> ssl.SSLContext:
    """What a connection trusts: Amazon's authorities, or all of the system's. To load all, some
    140, takes 20 ms; to pick Amazon's, 2 ms. If they are not found it is all."""
    path = ssl.get_default_verify_paths().cafile
    picked: list[str] = []
    if path and not all_authorities:
        with open(path, encoding="latin-1") as file:
            picked = AMAZON_ROOT.findall(file.read())
    return ssl.create_default_context(cadata="".join(picked) or None)


def connection_error(action: str, why: str, cost: int) -> ServiceError:
    """The error of an attempt without a usable response; another would cost so many tokens."""
    error = {"Error": {"Code": "ConnectionError", "Message": why}}
    return ServiceError(action, error, cost, transient=True)


def service_error(action: str, status: int, payload: Json) -> ServiceError:
    """The error in a response: its code, its message, and the payload's other members."""
    code = str(payload.pop("__type", status)).rpartition("#")[2].partition(":")[0]
    message = payload.pop("message", "") or payload.pop("Message", "")
    transient = code in TRANSIENT_CODES or status in TRANSIENT_STATUSES
    error = {"Code": code, "Message": message}
    return ServiceError(action, {**payload, "Error": error}, RETRY_COST if transient else 0)


def endpoint(name: str) -> tuple[str, str]:
    """Scheme and host of a service in the function's region; an emulator's where one is named."""
    url = os.environ.get(f"AWS_ENDPOINT_URL_{name.upper()}") or os.environ.get("AWS_ENDPOINT_URL")
    if url:
        scheme, _, host = url.rstrip("/").partition("://")
        return scheme, host
    region = os.environ["AWS_REGION"]
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return "https", f"{name}.{region}.{suffix}"


def credentials() -> tuple[str, str, str]:
    """Access key, secret key and session token of the function's role, which Lambda provides."""
    env = os.environ
    return env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], env.get("AWS_SESSION_TOKEN", "")


def credential_scope(stamp: str, name: str) -> str:
    """The scope of a signature: a day, the region, a service."""
    return f"{stamp[:8]}/{os.environ['AWS_REGION']}/{name}/aws4_request"


def sign(text: str, secret_key: str, scope: str) -> str:
    """The signature of a text (version 4)."""
    return hmac.digest(signing_key(secret_key, scope), text.encode(), "sha256").hex()


@functools.lru_cache(maxsize=8)
def signing_key(secret_key: str, scope: str) -> bytes:
    """The key that signs for a scope."""
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


# === Tracing ======================================================================================
# Each call of a service is a subsegment of the function's segment, which Lambda itself sends: X-Ray
# developer guide, "Segment documents". It goes to Lambda's daemon when the call has ended.

#: Arguments that name what a call is about. Keys of items and objects are the callers' data.
NAMING = ("TableName", "Bucket", "Name", "DBSnapshotIdentifier", "DBInstanceIdentifier")


def trace(name: str, action: str, call: Json, began: float, meta: Json, error: Json | None) -> None:
    """Sends a call that has ended to the daemon, if this invocation is sampled. Takes 40 us then,
    else 1 us (benchmarks.sdk). `began` is in seconds since 1970; `meta` and `error` are the
    SDK's ResponseMetadata and Error. Never fails or waits: a packet may get lost."""
    header = os.environ.get("_X_AMZN_TRACE_ID", "")
    if "Sampled=1" not in header or not (daemon := xray_daemon()):
        return
    ids = dict(each.partition("=")[::2] for each in header.split(";"))
    status, names = meta.get("HTTPStatusCode"), resource_names(call)
    aws_data = {
        "operation": action,
        "region": os.environ["AWS_REGION"],
        "request_id": meta.get("RequestId"),
        "retries": meta.get("RetryAttempts", 0),
        "resource_names": names,
        "table_name": names[0] if name == "dynamodb" and len(names) == 1 else None,
    }
    subsegment = {
        "type": "subsegment",
        "id": os.urandom(8).hex(),
        "trace_id": ids.get("Root"),
        "parent_id": ids.get("Parent"),
        "name": name,
        "namespace": "aws",
        "start_time": began,
        "end_time": time.time(),
        "aws": {key: value for key, value in aws_data.items() if value not in (None, "", [])},
        **({"http": {"response": {"status": status}}} if status else {}),
        **(failure(status, error) if error else {}),
    }
    with contextlib.suppress(OSError):  # no daemon, or no room in its queue
        daemon.send(b'{"format": "json", "version": 1}\n' + json.dumps(subsegment).encode())


def failure(status: int | None, error: Json) -> Json:
    """What a subsegment says of an error: the caller's, a throttled call, or the service's."""
    code, client_error = error["Code"], status is not None and 400 <= status < 500
    exception = {"id": os.urandom(8).hex(), "type": code, "message": error.get("Message", "")[:250]}
    return {
        "error" if client_error else "fault": True,
        **({"throttle": True} if status == 429 or code in THROTTLING_CODES else {}),
        "cause": {"exceptions": [{**exception, "remote": status is not None}]},
    }


def resource_names(arguments: Json) -> list[str]:
    """The tables, buckets, parameters and so on that a call names, each once."""
    writes = [write for each in arguments.get("TransactItems", ()) for write in each.values()]
    calls = (arguments, *writes)
    return list(dict.fromkeys(each[name] for each in calls for name in NAMING if name in each))


@functools.cache
def xray_daemon() -> socket.socket | None:
    """The way to the daemon, by the address that Lambda gives; None outside of Lambda."""
    host, _, port = os.environ.get("AWS_XRAY_DAEMON_ADDRESS", "").rpartition(":")
    daemon = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    daemon.setblocking(False)
    try:
        daemon.connect((host, int(port)))  # sends nothing
    except (OSError, OverflowError, ValueError):  # not an address
        daemon.close()
        return None
    return daemon


def traced(sdk_client: Any) -> Any:
    """The client of the SDK, with its calls traced as those of `Service` are."""

    def begin(params: Json, model: Any, context: Json, **_: Any) -> None:
        prefix = model.service_model.endpoint_prefix
        context["trace"] = functools.partial(trace, prefix, model.name, params, time.time())

    def end(parsed: Json, context: Json, **_: Any) -> None:
        context["trace"](parsed["ResponseMetadata"], parsed.get("Error"))

    def fail(exception: Exception, context: Json, **_: Any) -> None:
        context["trace"]({}, {"Code": type(exception).__name__, "Message": str(exception)})

    events = {"before-parameter-build": begin, "after-call": end, "after-call-error": fail}
    for event, handle in events.items():
        sdk_client.meta.events.register(event, handle)
    return sdk_client


if __name__ == "__main__":
    main()
