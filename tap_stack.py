"""tap-stack: a production AWS platform in one Pulumi program.

This file is what `pulumi up` runs and what `python -m taplocal up` deploys on a laptop. It holds
the settings, every AWS resource and the code of every Lambda function; importing it has no side
effects.

    people, machines --> Identity (Cognito): access tokens with scopes
            |
            v
    HTTP API (JWT, CORS, throttling, access log) --> api function (alias `live`) --> items table
            |                                              |
            | forms for uploads                            +--> paging key (SSM) <-- rotation
            v                                              +--> files table
    files bucket --> files function (what is it?) --> files table: versions, newest, totals

    internet --> load balancer --> web instances --> PostgreSQL <-- nightly snapshots
                 (public)          (private)         (isolated)     bastion: a way in for people

    Releases: each alias goes to a new version by a smoke test and a watched share, or goes back
    Monitoring: alarms --> Alerts (encrypted topic, budget); dashboard
    Encryption: one customer-managed key under all of it

Read it in this order: Settings say what can be chosen, Lambda functions and Web application what
runs, and the components what is built; TapStack composes them. The banners below are the table of
contents, and the same words name the headings of the README and the test files.
"""

from __future__ import annotations

import ast
import base64
import binascii
import builtins
import codecs
import contextlib
import functools
import gzip
import hashlib
import hmac
import ipaddress
import json
import os
import random
import re
import select
import ssl
import symtable
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from datetime import date, timedelta
from decimal import (
    Context,
    Decimal,
    DecimalException,
    Inexact,
    InvalidOperation,
    Overflow,
    Subnormal,
    Underflow,
)
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pulumi
import pulumi_aws as aws
from pulumi import Input, Output, ResourceOptions

###############################################################################
# Settings
###############################################################################

PER_TIER: Any = None  # a setting with this default takes its value from TIERS

#: What differs between the environments unless a stack says otherwise.
TIERS: dict[str, dict[str, Any]] = {
    "dev": {
        "cors_origins": ("http://localhost:3000",),
        "throttle_rate": 50,
        "throttle_burst": 100,
        "route_metrics": False,
        "canary_percent": 100,
        "canary_minutes": 1,
        "api_concurrency": 0,
        "provisioned_min": 0,
        "provisioned_max": 0,
        "files_concurrency": 0,
        "files_table_scaling": 1,
        "noncurrent_days": 7,
        "vpc_cidr": "10.0.0.0/16",
        "zones": 2,
        "nat": "instance",
        "plain_http": True,
        "domain_name": "",
        "instances_min": 1,
        "instances_max": 2,
        "spot_percent": 100,
        "database_class": "db.t4g.micro",
        "database_multi_az": False,
        "backup_days": 7,
        "bastion_hours": "8-18",
        "log_retention_days": 14,
        "deletion_protection": False,
        "budget_usd": 250,
    },
    "staging": {
        "cors_origins": (),
        "throttle_rate": 100,
        "throttle_burst": 200,
        "route_metrics": True,
        "canary_percent": 10,
        "canary_minutes": 1,
        "api_concurrency": 200,
        "provisioned_min": 0,
        "provisioned_max": 0,
        "files_concurrency": 10,
        "files_table_scaling": 1,
        "noncurrent_days": 30,
        "vpc_cidr": "10.1.0.0/16",
        "zones": 2,
        "nat": "single",
        "plain_http": False,
        "domain_name": "staging.example.com",
        "instances_min": 2,
        "instances_max": 4,
        "spot_percent": 50,
        "database_class": "db.t4g.small",
        "database_multi_az": True,
        "backup_days": 14,
        "bastion_hours": "",
        "log_retention_days": 90,
        "deletion_protection": False,
        "budget_usd": 350,
    },
    "prod": {
        "cors_origins": (),
        "throttle_rate": 500,
        "throttle_burst": 500,
        "route_metrics": True,
        "canary_percent": 10,
        "canary_minutes": 5,
        "api_concurrency": 500,
        "provisioned_min": 2,
        "provisioned_max": 20,
        "files_concurrency": 20,
        "files_table_scaling": 4,
        "noncurrent_days": 90,
        "vpc_cidr": "10.2.0.0/16",
        "zones": 3,
        "nat": "per_az",
        "plain_http": False,
        "domain_name": "app.example.com",
        "instances_min": 3,
        "instances_max": 12,
        "spot_percent": 0,
        "database_class": "db.m7g.large",
        "database_multi_az": True,
        "backup_days": 30,
        "bastion_hours": "",
        "log_retention_days": 365,
        "deletion_protection": True,
        "budget_usd": 700,
    },
}

SYSTEMS = ("api", "files", "web")
HTTP_API_TIMEOUT_SECONDS = 29  # an HTTP API integration ends at 30 s
TAG = r"[\w .:/=+\-@]"  # what IAM, DynamoDB and Lambda all accept in a tag
# What CloudWatch Logs accepts (PutRetentionPolicy).
RETENTION_DAYS = (
    1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922,
    3288, 3653,
)  # fmt: skip

#: A test of a value, and what the value must be in the words of an error.
Rule = tuple[Callable[[Any], bool], str]


class SettingsError(pulumi.RunError, ValueError):
    """All that is wrong with the settings, a line each; Pulumi prints it without a stack trace."""


def text_like(pattern: str, expectation: str) -> Rule:
    """A text that matches as a whole."""
    return (lambda text: re.fullmatch(pattern, text) is not None, expectation)


def texts_like(pattern: str, expectation: str) -> Rule:
    """A list of such texts."""
    return (lambda texts: all(re.fullmatch(pattern, text) for text in texts), expectation)


def between(low: int, high: int, why: str = "") -> Rule:
    """A number in a range, both ends included."""
    return (lambda number: low <= number <= high, f"{low} to {high}{why}")


def one_of(*values: Any) -> Rule:
    """One of a few values."""
    return (lambda value: value in values, f"one of {', '.join(map(str, values))}")


def good_tags(tags: Mapping[str, str]) -> bool:
    """Whether every AWS service takes these tags."""
    key, value = rf"(?!(?i:aws:)){TAG}{{1,128}}", f"{TAG}{{0,256}}"
    return all(re.fullmatch(key, k) and re.fullmatch(value, v) for k, v in tags.items())


ANYTHING: Rule = (lambda _: True, "anything")
A_TABLE_NAME = text_like(r"([A-Za-z0-9_.-]{3,255})?", "3 to 255 letters, digits and _.-, or empty")
A_TAG_VALUE = text_like(f"{TAG}{{1,256}}", "1 to 256 letters, digits, spaces and _.:/=+-@")


def setting(doc: str, default: Any = PER_TIER, rule: Rule = ANYTHING) -> Any:
    """A field of TapStackArgs: its meaning, its default, and what its type does not say of it."""
    return field(default=None, metadata={"doc": doc, "default": default, "rule": rule})


@dataclass(frozen=True, kw_only=True)
class TapStackArgs:
    """Everything that can be chosen about a stack, validated before any resource exists.

    `TapStackArgs(environment_suffix="prod")` has production's defaults, and None stands for the
    default of any field; `TapStackArgs.load()` reads the same names from the Pulumi configuration.
    Raises SettingsError with every mistake at once.
    """

    environment_suffix: str = setting(
        "`dev`, `staging` or `prod`, or one of them with a name behind it, as in `dev-jane`.",
        "dev",
        text_like(
            rf"(?=.{{1,16}}$)({'|'.join(TIERS)})(-[a-z0-9]+)*",
            "dev, staging or prod, or one of them with a name behind it (dev-jane), up to 16 long",
        ),
    )
    systems: Sequence[str] = setting(
        "Which systems the stack has: `api`, `files`, `web`.",
        SYSTEMS,
        (lambda v: v and set(v) <= set(SYSTEMS), f"a list of some of {', '.join(SYSTEMS)}"),
    )
    tags: Mapping[str, str] = setting(
        "Tags added to every resource; they win over the standard ones.",
        {},
        (
            good_tags,
            "tags as AWS takes them: keys of 1 to 128 letters, digits, spaces and _.:/=+-@, "
            "not starting with aws:, and values of up to 256",
        ),
    )
    project: str = setting(
        "First part of every name and the `Project` tag.",
        "tap-stack",
        text_like(
            r"(?=.{2,22}$)(?!.*(aws|amazon|cognito))[a-z][a-z0-9]*(-[a-z0-9]+)*",
            "2 to 22 lower-case letters, digits and single hyphens, starting with a letter, "
            "without aws, amazon and cognito, which a Cognito domain cannot have",
        ),
    )
    owner: str = setting(
        "The `Owner` tag: the team that answers for the stack.", "platform", A_TAG_VALUE
    )
    cost_center: str = setting("The `CostCenter` tag.", "engineering", A_TAG_VALUE)
    table_name: str = setting(
        "Name of the items table; empty for `<project>-items-<environment>`.", "", A_TABLE_NAME
    )
    cors_origins: Sequence[str] = setting(
        "Origins whose pages may call the API and upload; none turns CORS off. Never `*` in prod.",
        rule=texts_like(
            r"\*|https?://[a-z0-9.-]+(:\d{1,5})?",
            "a list of origins such as https://app.example.com, without a path",
        ),
    )
    callback_urls: Sequence[str] = setting(
        "Where Cognito may send people after they signed in; https, or http on localhost.",
        # RFC 8252, 7.3: an app on the user's own machine gets its code on the loopback interface.
        ("http://localhost:3000/callback",),
        (
            lambda urls: (
                urls and all(re.match(r"https://\S|http://localhost[:/]", u) for u in urls)
            ),
            "a list of at least one https URL, or http on localhost",
        ),
    )
    mfa: str = setting(
        "`OFF`, `OPTIONAL` or `ON`: second factor by authenticator app.",
        "OPTIONAL",
        one_of("OFF", "OPTIONAL", "ON"),
    )
    threat_protection: bool = setting(
        "Cognito threat protection; needs the Plus tier, $0.02 a monthly user.", False
    )
    throttle_rate: int = setting(
        "Requests per second that the API admits; more get 429.",
        rule=between(1, 10_000, ", the account's own limit"),
    )
    throttle_burst: int = setting(
        "Requests at once that the API admits above the rate.",
        rule=between(1, 5_000, ", the account's own limit"),
    )
    route_metrics: bool = setting("Metrics of each route; $0.30 a month for each of 48.")
    memory_mb: int = setting(
        "Memory of the api function, 128 to 10240 MB; CPU grows with it, and so does the price.",
        512,
        between(128, 10_240),
    )
    timeout_seconds: int = setting(
        "Longest run of the api function, 3 to 29 s.",
        15,
        between(3, HTTP_API_TIMEOUT_SECONDS, ": the API ends a request at 30 s"),
    )
    idempotency_hours: int = setting(
        "How long an `Idempotency-Key` is remembered.", 24, between(1, 168)
    )
    canary_percent: int = setting(
        "Share of the traffic that a new version of a function has while alarms are watched; 100 "
        "is all at once, unwatched.",
        rule=between(1, 100),
    )
    canary_minutes: int = setting(
        "How long it has its share before all is its own.", rule=between(1, 120)
    )
    versions_kept: int = setting(
        "How many of the newest versions of each function stay.", 5, between(2, 100)
    )
    api_concurrency: int = setting(
        "Concurrency reserved for the api function, which it cannot exceed; 0 is none. The account "
        "has 1,000 in all, a new one 10, and keeps 100 for functions without.",
        rule=between(0, 100_000),
    )
    provisioned_min: int = setting(
        "Environments of the api function that are always warm; 0 for none. $4.38 a month each, "
        "with 512 MB.",
        rule=between(0, 10_000),
    )
    provisioned_max: int = setting(
        "Up to how many there are while 70 % of them are busy.", rule=between(0, 10_000)
    )
    files_bucket_name: str = setting(
        "Name of the files bucket; empty for `<project>-files-<environment>-<account>`.",
        "",
        text_like(
            r"((?!xn--|sthree-|amzn-s3-demo-)(?!.*(--|-s3alias$))"
            r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9])?",
            "3 to 63 lower-case letters, digits and single hyphens, none at an end, or empty",
        ),
    )
    files_table_name: str = setting(
        "Name of the files table; empty for `<project>-files-<environment>`.", "", A_TABLE_NAME
    )
    files_table_capacity: int = setting(
        "Read and write units of the files table; 6 written units carry a file. $0.57 a month each "
        "pair, and $0.78 for the indexes.",
        100,
        between(6, 40_000, ", the quota of a table"),
    )
    files_table_scaling: int = setting(
        "Up to how many times its capacity the files table and its indexes grow; 1 is not at all.",
        rule=between(1, 100),
    )
    files_concurrency: int = setting(
        "Concurrency reserved for the files function; events above it wait. 0 is none.",
        rule=between(0, 100_000),
    )
    noncurrent_days: int = setting(
        "How long replaced and deleted versions of files are kept.", rule=between(1, 3_650)
    )
    upload_max_mb: int = setting(
        "Largest file that the API lets upload, in MB (1,000,000 bytes).",
        100,
        between(1, 5_000, ", what S3 takes in one POST"),
    )
    upload_types: Sequence[str] = setting(
        "Content types that the API lets upload, one by one or as `image/*`.",
        ("application/*", "audio/*", "font/*", "image/*", "text/*", "video/*"),
        texts_like(
            r"[a-z0-9.+-]+/(\*|[a-z0-9.+-]+)",
            "a list of content types such as image/png or image/*",
        ),
    )
    vpc_cidr: str = setting(
        "Address range of the network, /16 to /24; a zone has a sixteenth of it for each tier."
    )
    apart_from: Sequence[str] = setting(
        "Ranges of other networks that the network must not overlap with.", ()
    )
    zones: int = setting("Availability zones, 2 or 3.", rule=one_of(2, 3))
    nat: str = setting(
        "How private instances reach the internet: `per_az` or `single` NAT gateway ($33 a month "
        "each, and $0.045 a GB), `instance` or `instance_ha`, one in all or one a zone ($11 each), "
        "or `none`.",
        rule=one_of("per_az", "single", "instance", "instance_ha", "none"),
    )
    endpoints: Sequence[str] = setting(
        "Interface endpoints such as `ssm` or `logs`; $7.30 a month each in each zone.",
        (),
        texts_like(r"[a-z0-9.-]+", "a list of AWS services such as ssm or logs"),
    )
    plain_http: bool = setting("Serve the web environment without TLS; in dev only.")
    domain_name: str = setting(
        "Name that a certificate is requested for, unless `certificate_arn` is given.",
        rule=text_like(
            r"(?=.{0,253}$)(([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,})?",
            "a domain name such as app.example.com, or empty",
        ),
    )
    hosted_zone_id: str = setting(
        "Route 53 zone of the name; without it the certificate waits for your own DNS record.",
        "",
        text_like(r"(Z[A-Z0-9]{1,31})?", "a zone's id such as Z0123456789ABC, or empty"),
    )
    certificate_arn: str = setting(
        "Certificate of the load balancer, in the stack's region.",
        "",
        text_like(r"(arn:aws[a-z-]*:acm:\S+)?", "the ARN of an ACM certificate, or empty"),
    )
    image_id: str = setting(
        "Image of all instances; empty for the newest Amazon Linux 2023 at each `pulumi up`.",
        "",
        text_like(
            r"(ami-[0-9a-f]{8,17})?", "an image's id such as ami-0123456789abcdef0, or empty"
        ),
    )
    instance_types: Sequence[str] = setting(
        "Instance types of the web tier, arm64, the first one preferred.",
        ("t4g.small", "t4g.medium", "m7g.medium"),
        (
            lambda v: v and all(re.fullmatch(r"[a-z]+\d+g[a-z]*\.[a-z0-9]+", each) for each in v),
            "a list of Graviton types such as t4g.small",
        ),
    )
    instances_min: int = setting("Fewest web instances.", rule=between(1, 1_000))
    instances_max: int = setting("Most web instances.", rule=between(1, 1_000))
    spot_percent: int = setting(
        "Share of Spot among the web instances; some 60 % cheaper, and taken away at two minutes' "
        "notice.",
        rule=between(0, 100),
    )
    database_class: str = setting(
        "Instance class of the database.",
        rule=text_like(r"db\.[a-z0-9]+\.[a-z0-9]+", "a class such as db.t4g.small"),
    )
    database_gb: int = setting(
        "Storage of the database; it grows by itself to five times that. $0.115 a GB and month.",
        20,
        between(20, 13_000, ", a fifth of what RDS takes"),
    )
    database_multi_az: bool = setting(
        "A standby in another zone, which takes over in a minute or two; doubles the price."
    )
    backup_days: int = setting("How long automatic backups are kept.", rule=between(1, 35))
    snapshot_days: int = setting(
        "Age at which the stack's own daily snapshots are deleted.", 35, between(1, 3_650)
    )
    snapshot_keep: int = setting(
        "How many of the newest of them stay whatever their age.", 7, between(1, 100)
    )
    bastion_cidrs: Sequence[str] = setting(
        "Ranges that may reach the bastion by SSH; without any only Session Manager does.",
        (),
        (
            lambda v: all(_range(each, least=8) for each in v),
            "a list of ranges such as 203.0.113.0/24, none wider than /8: not the whole internet",
        ),
    )
    bastion_hours: str = setting(
        "Hours of working days, in UTC, at which the bastion runs, as `8-18`; empty for always.",
        rule=text_like(
            r"((1?\d|2[0-3])-(1?\d|2[0-3]))?", "two hours such as 8-18, or empty for always"
        ),
    )
    log_retention_days: int = setting(
        "How long logs are kept; $0.03 a GB and month.", rule=one_of(*RETENTION_DAYS)
    )
    deletion_protection: bool = setting("Refuse to delete tables, files bucket, user pool and key.")
    alarm_emails: Sequence[str] = setting(
        "Addresses that alarms and the budget write to; each confirms once.",
        (),
        texts_like(r"[^@\s]+@[^@\s]+\.[^@\s]+", "a list of e-mail addresses"),
    )
    budget_usd: int = setting(
        "Monthly budget; the topic hears of 80 % spent and of 100 % forecast.",
        rule=between(1, 1_000_000),
    )

    def __post_init__(self) -> None:
        tier = TIERS.get(str(self.environment_suffix or "dev").split("-")[0], TIERS["dev"])
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None:
                value = tier.get(each.name, each.metadata["default"])
            object.__setattr__(self, each.name, tuple(value) if isinstance(value, list) else value)
        if errors := _mistakes(self):
            lines = "\n".join(f"  - {error}" for error in errors)
            raise SettingsError(f"the settings are wrong:\n{lines}")

    @classmethod
    def load(cls) -> TapStackArgs:
        """The settings in the stack's Pulumi configuration, under the names of the fields."""
        config = pulumi.Config()
        texts = {each: config.get(each.name) for each in fields(cls)}
        return cls(
            **{
                each.name: _parsed(str(each.type), text)
                for each, text in texts.items()
                if text is not None
            }
        )

    @property
    def tier(self) -> str:
        """`dev`, `staging` or `prod`: the row of TIERS that this environment follows."""
        return self.environment_suffix.split("-")[0]

    def name(self, component: str) -> str:
        """The physical name of a component: `<project>-<component>-<environment>`."""
        return f"{self.project}-{component}-{self.environment_suffix}"

    def all_tags(self) -> dict[str, str]:
        """The tags of every resource, but for `Component`, which its component adds."""
        return {
            "Project": self.project,
            "Environment": self.environment_suffix,
            "ManagedBy": "pulumi",
            "Owner": self.owner,
            "CostCenter": self.cost_center,
            **self.tags,
        }


#: Annotation of a field -> the rule of its type.
TYPES: dict[str, Rule] = {
    "str": (lambda v: isinstance(v, str), "text"),
    "int": (lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
    "bool": (lambda v: isinstance(v, bool), "true or false"),
    "Sequence[str]": (
        lambda v: isinstance(v, tuple) and all(isinstance(x, str) for x in v),
        "a list of texts",
    ),
    "Mapping[str, str]": (
        lambda v: isinstance(v, Mapping) and all(isinstance(x, str) for p in v.items() for x in p),
        "an object of texts",
    ),
}

#: What prod promises, on top of the fields' own rules.
PROD_RULES: dict[str, Rule] = {
    "cors_origins": texts_like(r"https://[^*]+", "https origins without * in prod"),
    "deletion_protection": (lambda v: v is True, "true in prod"),
    "log_retention_days": (lambda v: v >= 90, "90 or more in prod"),
    "nat": (lambda v: v in ("per_az", "none"), "per_az or none in prod"),
    "database_multi_az": (lambda v: v is True, "true in prod"),
    "backup_days": (lambda v: v >= 7, "7 or more in prod"),
    "instances_min": (lambda v: v >= 2, "2 or more in prod"),
    "spot_percent": (lambda v: v <= 50, "50 or less in prod"),
}


def _parsed(annotation: str, text: str) -> Any:
    """A configuration value in its type; what does not parse stays text, to be refused."""
    try:
        return text if annotation == "str" else json.loads(text)
    except ValueError:
        return text


def _range(text: str, least: int = 0) -> bool:
    """Whether a text is an IPv4 range whose prefix has so many bits at least."""
    try:
        return ipaddress.IPv4Network(text).prefixlen >= least
    except ValueError:
        return False


def _contradictions(args: TapStackArgs) -> list[str]:
    """What is wrong with fields that are right each by itself."""
    rules = {"api": _api_contradictions, "web": _web_contradictions}
    return [error for each in rules if each in args.systems for error in rules[each](args)]


def _api_contradictions(args: TapStackArgs) -> list[str]:
    found, reserved = [], args.api_concurrency
    if 0 < reserved < args.throttle_burst:
        why = "the API answers what is too much with 429, and Lambda would with 503"
        pair = f"not {reserved} with a burst of {args.throttle_burst}"
        found.append(f"api_concurrency must be 0 or throttle_burst at least, {pair}: {why}")
    least, most = args.provisioned_min, args.provisioned_max
    if not (1 <= least <= most or least == most == 0):
        pair = f"not {least} with a maximum of {most}"
        found.append(f"provisioned_min must be 1 to provisioned_max, or both must be 0, {pair}")
    if 0 < reserved < args.provisioned_max:
        pair = f"{args.provisioned_max} is more than {reserved}"
        found.append(f"provisioned_max must be api_concurrency or less, but {pair}")
    return found


def _web_contradictions(args: TapStackArgs) -> list[str]:
    found = []
    try:
        plan_subnets(args.vpc_cidr, args.zones, args.apart_from)
    except PlanError as error:
        found.append(str(error))
    if args.plain_http and args.tier != "dev":
        found.append(f"plain_http must be false in {args.tier}: only dev may do without TLS")
    if not (args.plain_http or args.domain_name or args.certificate_arn):
        found.append("domain_name or certificate_arn must be given, unless plain_http is true")
    if args.instances_min > args.instances_max:
        pair = f"{args.instances_min} is more than instances_max, {args.instances_max}"
        found.append(f"instances_min must be instances_max or less, but {pair}")
    if args.nat == "none" and not args.image_id:
        why = "instances without a way out cannot install what they run"
        found.append(f"nat must not be 'none' without an image_id: {why}")
    if len(name := args.name("web")) > 32:
        found.append(
            f"project and environment_suffix are too long: {name} has {len(name)} "
            "characters, and the name of a load balancer 32 at most"
        )
    return found


def _mistakes(args: TapStackArgs) -> list[str]:
    """What is wrong with each field (its type, its own rule, prod's), then with their sum."""
    found = []
    in_prod = PROD_RULES if str(args.environment_suffix).split("-")[0] == "prod" else {}
    for each in fields(args):
        value = getattr(args, each.name)
        rules = (TYPES[str(each.type)], each.metadata["rule"], in_prod.get(each.name, ANYTHING))
        broken = (expectation for holds, expectation in rules if not holds(value))
        if expectation := next(broken, None):
            found.append(f"{each.name} must be {expectation}, not {value!r}")
    typed = all(TYPES[str(each.type)][0](getattr(args, each.name)) for each in fields(args))
    return found + (_contradictions(args) if typed else [])


###############################################################################
# Policies
###############################################################################


def allow(*actions: str, on: Any, when: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An IAM statement that allows the actions on one ARN or a list of them, under a condition."""
    return _statement("Allow", actions, on, when)


def trust(
    service: str, *actions: str, on: Any = None, when: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A statement of a resource or trust policy: the AWS service may do the actions."""
    return {**_statement("Allow", actions, on, when), "Principal": {"Service": service}}


def tls_only(actions: str, on: Any) -> dict[str, Any]:
    """The statement that refuses everybody who comes without TLS."""
    insecure = {"Bool": {"aws:SecureTransport": "false"}}
    return {**_statement("Deny", (actions,), on, insecure), "Principal": {"AWS": "*"}}


def policy(*statements: Mapping[str, Any]) -> Output[str]:
    """A policy document as JSON text; Outputs inside the statements are waited for."""
    return Output.json_dumps({"Version": "2012-10-17", "Statement": list(statements)})


def _statement(
    effect: str, actions: Sequence[str], on: Any, when: Mapping[str, Any] | None
) -> dict[str, Any]:
    optional = {"Resource": on, "Condition": when}
    return {
        "Effect": effect,
        "Action": list(actions),
        **{k: v for k, v in optional.items() if v is not None},
    }


###############################################################################
# Lambda functions
###############################################################################
# Standalone by construction: bundle() ships to each function the definitions of this section that
# its handler reaches, and nothing else. What they import at the top of the file costs cold start in
# every function that uses it, so the SDK is imported when its client is made, in the init phase.

ITEM_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")  # what a URL carries unescaped, RFC 3986
KEPT_FIELDS = ("id", "version", "created_at", "updated_at")  # the service's; a body's are ignored
BODY_LIMIT = 2_500_000  # bytes: 400 KB of item with every byte escaped as \u0001
PAGE_LIMIT = 1_000_000  # characters of a page; an answer above 6 MB would be lost by Lambda
MAX_DEPTH = 31  # DynamoDB nests 32 levels, and the item's fields are one below its own
CATEGORY_LIMIT = 1_024  # bytes: a partition key has 2,048, and the owner needs some
PATCH_ATTEMPTS = 10
OWNER = {"#owner": "owner"}  # the one attribute of ours whose name DynamoDB reserves
# 38 digits, 1E-130 to 9.99E+125: DynamoDB developer guide, "Supported data types", Number.
DYNAMODB_NUMBER = Context(
    prec=38, Emin=-130, Emax=125, traps=[Inexact, InvalidOperation, Overflow, Subnormal, Underflow]
)
TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    412: "Precondition Failed",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class Problem(Exception):  # noqa: N818 - the RFC's word
    """An answer that says what is wrong (RFC 9457), with the headers that the status wants."""

    def __init__(self, status: int, detail: str, **headers: str):
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class ConditionFailed(Exception):  # noqa: N818 - DynamoDB's word
    """DynamoDB refused a conditional write.

    `item` is what stands in its way, None if nothing does; `repeated` tells that the SDK sent the
    write more than once, so that an earlier attempt may have succeeded.
    """

    def __init__(self, item: dict[str, Any] | None, repeated: bool = False):
        super().__init__("the condition of a write did not hold")
        self.item, self.repeated = item, repeated


ATTEMPTS, CONNECT_SECONDS, ANSWER_SECONDS = 3, 1, 3
_clients: dict[str, Any] = {}


def client(name: str) -> Any:
    """The container's one SDK client of a service, with bounded time and retries.

    Three attempts with jittered, exponential backoff (botocore's standard mode), each with 1 s to
    connect and 3 s to answer: 12 s in the worst case, below the function's 15 s.
    """
    if name not in _clients:
        import boto3
        from botocore.config import Config

        retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
        config = Config(
            retries=retries, connect_timeout=CONNECT_SECONDS, read_timeout=ANSWER_SECONDS
        )
        _clients[name] = boto3.client(name, config=config)
    return _clients[name]


def service(name: str) -> Any:
    """The container's one `Service` of a name: what `client` is, without the SDK."""
    if name not in _clients:
        _clients[name] = Service(name)
    return _clients[name]


def open_services() -> None:
    """Makes ready in the init phase, when Lambda lends a whole core, what every request needs."""
    service("dynamodb")
    service("ssm")


# --- DynamoDB and SSM: their JSON over one kept connection, by the rules of the SDK
# The SDK would be most of a cold start and of a request's CPU: docs/decisions/0010, benchmarks.sdk.

#: Service -> the prefix of its operations, the version of its JSON.
SERVICES = {"dynamodb": ("DynamoDB_20120810", "1.0"), "ssm": ("AmazonSSM", "1.1")}
TRANSIENT_STATUSES = (500, 502, 503, 504)
#: Error codes that another attempt may mend, of botocore's standard mode.
TRANSIENT_CODES = frozenset(
    """RequestTimeout RequestTimeoutException PriorRequestNotComplete Throttling
    ThrottlingException ThrottledException RequestThrottledException TooManyRequestsException
    ProvisionedThroughputExceededException TransactionInProgressException RequestLimitExceeded
    BandwidthLimitExceeded LimitExceededException RequestThrottled SlowDown
    EC2ThrottledException""".split()
)
RETRY_TOKENS, RETRY_COST, TIMEOUT_COST = 500, 5, 10  # a failing service is not retried for long


class ServiceError(Exception):
    """An error that AWS answered, or that it did not answer; `response` is as in the SDK's."""

    def __init__(self, action: str, response: Mapping[str, Any], cost: int = 0):
        code, message = response["Error"]["Code"], response["Error"]["Message"]
        super().__init__(
            f"An error occurred ({code}) when calling the {action} operation: {message}"
        )
        self.response = {"ResponseMetadata": {"RetryAttempts": 0}, **response}
        self.cost = cost  # of another attempt, in retry tokens; 0: it would fail as well


class Service:
    """A service whose methods are its operations, named, called and answering as the SDK's.

    `service("dynamodb").get_item(TableName=..., Key=...)`. Raises ServiceError. For one thread.
    """

    def __init__(self, name: str):
        self.name, (self.prefix, self.version) = name, SERVICES[name]
        self.scheme, self.host = endpoint(name)
        self.connection = (
            HTTPSConnection(self.host, timeout=CONNECT_SECONDS, context=authorities())
            if self.scheme == "https"
            else HTTPConnection(self.host, timeout=CONNECT_SECONDS)  # an emulator, on this machine
        )
        self.tokens = RETRY_TOKENS

    def __getattr__(self, operation: str) -> Callable[..., dict[str, Any]]:
        return functools.partial(self.call, operation.title().replace("_", ""))

    def call(self, action: str, **arguments: Any) -> dict[str, Any]:
        """Up to three attempts, with jittered, exponential pauses, as long as there are tokens."""
        if action == "TransactWriteItems":  # by which DynamoDB knows another attempt at the same
            arguments.setdefault("ClientRequestToken", os.urandom(16).hex())
        body, retries, spent = json.dumps(arguments).encode(), 0, 1
        while True:
            try:
                answered = self._attempt(action, body)
                self.tokens = min(self.tokens + spent, RETRY_TOKENS)
                return answered
            except ServiceError as error:
                last = retries + 1 == ATTEMPTS or self.tokens < error.cost
                if last or not error.cost:
                    error.response["ResponseMetadata"]["RetryAttempts"] = retries
                    raise
                spent = error.cost
            self.tokens -= spent
            time.sleep(random.random() * 2**retries)  # noqa: S311 - jitter, not a secret
            retries += 1

    def _attempt(self, action: str, body: bytes) -> dict[str, Any]:
        try:
            status, headers, content = self._send(action, body)
        except (OSError, HTTPException) as error:
            self.connection.close()
            cost = TIMEOUT_COST if isinstance(error, TimeoutError) else RETRY_COST
            raise no_answer(action, told(error), cost) from error
        checksum = headers.get("x-amz-crc32")
        if checksum and int(checksum) != binascii.crc32(content):
            raise no_answer(action, "its checksum is wrong", RETRY_COST)
        try:
            said = dict(json.loads(content or b"{}"))
        except ValueError:
            if status == 200:
                raise no_answer(action, "it is no JSON", cost=0) from None
            said = {}
        if status == 200:
            return said
        raise answered_error(action, status, said)

    def _send(self, action: str, body: bytes) -> tuple[int, Any, bytes]:
        connection = self.connection
        if connection.sock and select.select([connection.sock], [], [], 0)[0]:
            connection.close()  # AWS has, while nobody asked
        if not connection.sock:
            connection.connect()
            connection.sock.settimeout(ANSWER_SECONDS)
        headers = {**self._headers(action, body), "content-length": str(len(body))}
        lines = ["POST / HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        connection.sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)  # one packet
        answer = HTTPResponse(connection.sock, method="POST")
        answer.begin()
        content = answer.read()
        if answer.will_close:
            connection.close()
        return answer.status, answer.headers, content

    def _headers(self, action: str, body: bytes) -> dict[str, str]:
        """The headers with their signature: IAM user guide, "Create a signed AWS API request"."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
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
        scope = credential_scope(stamp, self.name)
        whole = "\n".join(
            ["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()]
        )
        signature = signed(whole, secret_key, scope)
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={names}, "
            f"Signature={signature}"
        )
        if trace := os.environ.get("_X_AMZN_TRACE_ID"):
            headers["x-amzn-trace-id"] = trace  # by which Lambda notices an endless loop
        return headers


@functools.cache
def authorities() -> ssl.SSLContext:
    """Whom the connections trust: to read them takes longer than all else in the init phase."""
    return ssl.create_default_context()


def no_answer(action: str, why: str, cost: int) -> ServiceError:
    """The error of an attempt without a usable answer."""
    return ServiceError(action, {"Error": {"Code": "NoAnswer", "Message": why}}, cost)


def answered_error(action: str, status: int, said: dict[str, Any]) -> ServiceError:
    """The error in an answer: its code, its message, and what else the service says with it."""
    code = said.pop("__type", str(status)).rpartition("#")[2].partition(":")[0]
    message = said.pop("message", "") or said.pop("Message", "")
    transient = code in TRANSIENT_CODES or status in TRANSIENT_STATUSES
    error = {"Code": code, "Message": message}
    return ServiceError(action, {**said, "Error": error}, RETRY_COST if transient else 0)


def endpoint(name: str) -> tuple[str, str]:
    """Scheme and host of a service in the function's region; an emulator's where one is named."""
    own = os.environ.get(f"AWS_ENDPOINT_URL_{name.upper()}") or os.environ.get("AWS_ENDPOINT_URL")
    if own:
        scheme, _, host = own.rstrip("/").partition("://")
        return scheme, host
    region = os.environ["AWS_REGION"]
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return "https", f"{name}.{region}.{suffix}"


def credentials() -> tuple[str, str, str]:
    """Access key, secret key and session token of the function's role, which Lambda provides."""
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    access_key, secret_key = (os.environ[key] for key in keys)
    return access_key, secret_key, os.environ.get("AWS_SESSION_TOKEN", "")


def credential_scope(stamp: str, name: str) -> str:
    """What a signature is good for: a day, the region, a service."""
    return f"{stamp[:8]}/{os.environ['AWS_REGION']}/{name}/aws4_request"


def signed(text: str, secret_key: str, scope: str) -> str:
    """The signature of a text (version 4)."""
    return hmac.new(signing_key(secret_key, scope), text.encode(), "sha256").hexdigest()


@functools.lru_cache(maxsize=8)
def signing_key(secret_key: str, scope: str) -> bytes:
    """The key that signs for a scope."""
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


# --- Values: JSON text <-> DynamoDB attribute values, without loss


def parse_json(text: str) -> Any:
    """JSON with numbers as exact Decimals; ambiguous or non-standard text raises Problem 400."""
    try:
        return json.loads(
            text,
            parse_int=parse_number,
            parse_float=parse_number,
            parse_constant=refuse_constant,
            object_pairs_hook=unique_names,
        )
    except RecursionError:
        raise Problem(400, f"The body nests deeper than {MAX_DEPTH} levels.") from None
    except ValueError as error:
        raise Problem(400, f"The body is not JSON: {error}.") from None


def parse_number(text: str) -> Decimal:
    """A number that DynamoDB stores exactly, or Problem 422."""
    try:
        return DYNAMODB_NUMBER.create_decimal(text)
    except DecimalException:
        shown = text if len(text) <= 50 else text[:50] + "..."
        reason = "numbers have at most 38 digits and lie between 1E-130 and 9.99E+125"
        raise Problem(422, f"The number {shown} cannot be stored exactly: {reason}.") from None


def refuse_constant(text: str) -> None:
    """NaN and Infinity are Python's, not JSON's."""
    raise Problem(400, f"{text} is not JSON.")


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these members; a name given twice would lose a value, so it is refused."""
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Problem(400, f"The name {printable(twice)} stands twice in one object.")
    return members


def marshal(value: Any, depth: int = 0) -> dict[str, Any]:
    """A parsed JSON value as a DynamoDB attribute value."""
    if depth > MAX_DEPTH:
        raise Problem(400, f"The body nests deeper than {MAX_DEPTH} levels.")
    if isinstance(value, str):
        return {"S": storable(value)}
    if value is None or isinstance(value, bool):
        return {"NULL": True} if value is None else {"BOOL": value}
    if isinstance(value, Decimal):
        return {"N": format(value.normalize(DYNAMODB_NUMBER), "f") if value else "0"}
    if isinstance(value, list):
        return {"L": [marshal(each, depth + 1) for each in value]}
    return {"M": {storable_name(name): marshal(each, depth + 1) for name, each in value.items()}}


def storable(text: str) -> str:
    """The text itself, if it is Unicode that UTF-8 can carry."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Problem(422, f"{printable(text)} has half of a surrogate pair.") from None
    return text


def storable_name(name: str) -> str:
    """A field name; DynamoDB takes any but the empty one."""
    if not name:
        raise Problem(422, "A field name cannot be empty.")
    return storable(name)


def printable(text: str) -> str:
    """The start of a caller's text, quoted and escaped, for an error."""
    return json.dumps(text if len(text) <= 50 else text[:50] + "...")


def to_json(value: Mapping[str, Any]) -> str:
    """A DynamoDB attribute value as JSON text; a number keeps every digit."""
    ((kind, content),) = value.items()
    if kind == "S":
        return encode_basestring(content)
    if kind == "N":
        return str(content)
    if kind == "M":
        return (
            "{" + ",".join(f"{encode_basestring(k)}:{to_json(v)}" for k, v in content.items()) + "}"
        )
    if kind == "L":
        return "[" + ",".join(map(to_json, content)) + "]"
    return "null" if kind == "NULL" else "true" if content else "false"


def merge_patch(target: Mapping[str, Any], patch: Mapping[str, Any]) -> Mapping[str, Any]:
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


# --- Requests and answers


class Request:
    """One call of the API: what the gateway says about it, and what it has cost so far."""

    def __init__(self, event: Mapping[str, Any]):
        context = event["requestContext"]
        self.event = event
        self.id: str = context["requestId"]
        self.method: str = context["http"]["method"]
        self.route: str = event["routeKey"]
        self.headers: Mapping[str, str] = event.get("headers") or {}
        self.query: Mapping[str, str] = event.get("queryStringParameters") or {}
        self.claims: Mapping[str, Any] = (
            context.get("authorizer", {}).get("jwt", {}).get("claims", {})
        )
        self.caller: str = self.claims.get("sub") or self.claims.get("client_id") or ""
        self.revision = new_id()  # marks this request's write, so that a repeated one knows itself
        self.capacity = 0.0
        self.error: BaseException | None = None  # what went wrong below the answer, for the log

    def path_id(self) -> str:
        """The id in the path."""
        return str((self.event.get("pathParameters") or {}).get("id", ""))

    def item_id(self) -> str:
        """The id in the path; one that no item can have is as missing as any other."""
        item_id = self.path_id()
        if not ITEM_ID.fullmatch(item_id):
            raise not_found()
        return item_id

    def object(self, *media_types: str) -> dict[str, Any]:
        """The JSON object in the body."""
        content_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in media_types:
            accept = " or ".join(media_types)
            raise Problem(415, f"The body must be {accept}.", accept=", ".join(media_types))
        body = parse_json(self._text())
        if not isinstance(body, dict):
            raise Problem(422, "The body is a JSON object.")
        return body

    def fields(self, *media_types: str) -> tuple[str | None, dict[str, Any]]:
        """The id that the body names, if any, and its other fields as attribute values."""
        body = self.object(*media_types)
        item_id = body.get("id")
        if item_id is not None and not (isinstance(item_id, str) and ITEM_ID.fullmatch(item_id)):
            rule = "1 to 128 letters, digits and ._~-, starting with a letter or digit"
            raise Problem(422, f"An id is text of {rule}.")
        fields = marshal({name: body[name] for name in body if name not in KEPT_FIELDS})["M"]
        check_category(fields)
        return item_id, fields

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
            raise Problem(413, f"The body has {size} bytes; {BODY_LIMIT} are the most.")
        return body

    def etags(self, header: str) -> list[str]:
        """The entity tags of If-Match or If-None-Match, as they stand there; any item has `*`."""
        value = self.headers.get(header, "")
        return [tag.strip() for tag in value.split(",")] if value else []


def answer(status: int, body: str = "", **headers: str) -> dict[str, Any]:
    """A response to the gateway (payload format 2.0)."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    if body:
        names = {"content-type": "application/json", "cache-control": "private, no-cache", **names}
    return {"statusCode": status, "headers": names, "body": body}


def problem_answer(problem: Problem, request_id: str) -> dict[str, Any]:
    """The problem as application/problem+json."""
    body = {
        "type": "about:blank",
        "title": TITLES[problem.status],
        "status": problem.status,
        "detail": problem.detail,
        "request_id": request_id,
    }
    headers = {"content-type": "application/problem+json", "cache-control": "no-store"}
    return {
        "statusCode": problem.status,
        "headers": {**headers, **problem.headers},
        "body": json.dumps(body),
    }


def not_found() -> Problem:
    """The same words for a missing item and for somebody else's."""
    return Problem(404, "There is no such item.")


def busy() -> Problem:
    """What a caller should try again in a moment."""
    return Problem(503, "The service is busy; try again.", retry_after="1")


# --- Items table


def table(request: Request, operation: str, **arguments: Any) -> dict[str, Any]:
    """One call of DynamoDB for a request; a failure becomes ConditionFailed or a Problem."""
    try:
        if operation != "transact_write_items":
            arguments.setdefault("TableName", os.environ["TABLE_NAME"])
        call = getattr(service("dynamodb"), operation)
        response: dict[str, Any] = call(ReturnConsumedCapacity="TOTAL", **arguments)
    except Exception as error:
        raise explain(error) from error
    consumed = response.get("ConsumedCapacity", ())
    for each in consumed if isinstance(consumed, list) else (consumed,):
        request.capacity += each["CapacityUnits"] if each else 0
    return response


def explain(error: Exception) -> Exception:
    """What a failure of DynamoDB means to the caller; any other is our own mistake, unchanged."""
    if not isinstance(error, ServiceError):
        return error
    response = error.response
    code, message = response["Error"]["Code"], response["Error"]["Message"]
    reasons = response.get("CancellationReasons", [])
    failed = [each for each in reasons if each.get("Code") not in (None, "None")]
    if code == "ConditionalCheckFailedException":
        return ConditionFailed(
            response.get("Item"), response["ResponseMetadata"]["RetryAttempts"] > 0
        )
    if failed and all(each["Code"] == "ConditionalCheckFailed" for each in failed):
        return ConditionFailed(reasons[-1].get("Item"))
    if "exceeded the maximum allowed size" in f"{message} {failed}":
        return Problem(413, "An item has at most 400 KB.")
    if code == "ValidationException" or any(each["Code"] == "ValidationError" for each in failed):
        return Problem(422, "DynamoDB cannot store the item.")
    return busy()


def new_id() -> str:
    """A UUID of version 7 (RFC 9562): sorts by time, says nothing else."""
    milliseconds, noise = int(time.time() * 1000), int.from_bytes(os.urandom(10), "big")
    value = (
        milliseconds << 80 | 7 << 76 | (noise >> 62 & 0xFFF) << 64 | 2 << 62 | noise & (1 << 62) - 1
    )
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def now() -> str:
    """The time as RFC 3339 with microseconds, so that text order is time order."""
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{microseconds:06d}Z"


def item_json(item: Mapping[str, Any]) -> str:
    """A stored item as its caller sees it."""
    kept = {name: item[name] for name in KEPT_FIELDS}
    return to_json({"M": {**kept, **item["content"]["M"]}})


def item_answer(status: int, item: Mapping[str, Any], **headers: str) -> dict[str, Any]:
    """An answer that carries an item and its entity tag."""
    return answer(status, item_json(item), etag=etag(item), **headers)


def check_category(fields: Mapping[str, Any]) -> None:
    """A category is part of an index key, which has a limit."""
    if len(fields.get("category", {}).get("S", "").encode()) > CATEGORY_LIMIT:
        raise Problem(422, f"A category has at most {CATEGORY_LIMIT} bytes.")


def category_key(owner: str, category: str) -> dict[str, str]:
    """Partition key of the index by_category: one caller's items of one category."""
    return {"S": f"{owner}#{category}"}


def read_item(request: Request, item_id: str) -> dict[str, Any]:
    """The caller's own item, read consistently, or Problem 404."""
    response = table(request, "get_item", Key={"id": {"S": item_id}}, ConsistentRead=True)
    item: dict[str, Any] | None = response.get("Item")
    if not owned(item, request):
        raise not_found()
    return item or {}


def owned(item: Mapping[str, Any] | None, request: Request) -> bool:
    """Whether there is an item of the caller's; a record of the service's own has no content."""
    return bool(item and "content" in item and item["owner"]["S"] == request.caller)


def etag(item: Mapping[str, Any]) -> str:
    """The entity tag of a stored item: its revision, which no other write has."""
    return f'"{item["revision"]["S"]}"'


def matching(request: Request) -> tuple[str, dict[str, Any]]:
    """Condition and values that hold for the caller's own item at one of the If-Match revisions."""
    tags = request.etags("if-match")
    condition, values = "#owner = :owner", {":owner": {"S": request.caller}}
    if not tags or "*" in tags:
        return condition, values
    # A weak tag never matches (RFC 9110, 13.1.1): with its W/ it is no revision. IN takes 100
    # values.
    revisions = {f":r{n}": {"S": tag.strip('"')} for n, tag in enumerate(tags[:100])}
    return f"{condition} AND revision IN ({', '.join(revisions)})", {**values, **revisions}


def refused(failure: ConditionFailed, request: Request) -> Problem:
    """Why the caller's conditional write was refused."""
    return changed() if owned(failure.item, request) else not_found()


def changed() -> Problem:
    """The item is no longer the one that the caller has seen."""
    return Problem(412, "The item has changed: its ETag is not the one in If-Match.")


def write_fields(
    request: Request,
    item_id: str,
    fields: Mapping[str, Any],
    condition: str,
    values: Mapping[str, Any],
) -> dict[str, Any]:
    """Replaces the fields of an existing item in one atomic step and returns the item."""
    category = fields.get("category", {}).get("S")
    changes = (
        "content = :content, revision = :revision, updated_at = :now, version = version + :one"
    )
    by_category = " REMOVE owner_category" if category is None else ", owner_category = :category"
    given = {
        **values,
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
            Key={"id": {"S": item_id}},
            UpdateExpression=f"SET {changes}{by_category}",
            ConditionExpression=condition,
            **({"ExpressionAttributeNames": OWNER} if "#owner" in condition else {}),
            ExpressionAttributeValues=given,
            ReturnValues="ALL_NEW",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
    except ConditionFailed as failure:
        if failure.item and failure.item.get("revision") == {"S": request.revision}:
            return failure.item  # an attempt whose answer was lost had succeeded
        raise
    item: dict[str, Any] = response["Attributes"]
    return item


# --- Operations


def create_item(request: Request) -> dict[str, Any]:
    """POST /items: a new item under its own id or a generated one."""
    item_id, fields = request.fields("application/json")
    item = new_item(request, item_id or new_id(), fields)
    if "idempotency-key" in request.headers:
        item = create_once(request, item, item_id)
    else:
        create(request, [put(item)])
    return item_answer(201, item, location=f"/items/{item['id']['S']}")


def new_item(
    request: Request, item_id: str, fields: Mapping[str, Any], created: str = ""
) -> dict[str, Any]:
    """The first version of an item as the table holds it."""
    category = fields.get("category", {}).get("S")
    created = created or now()
    return {
        "id": {"S": item_id},
        "owner": {"S": request.caller},
        "version": {"N": "1"},
        "revision": {"S": request.revision},
        "created_at": {"S": created},
        "updated_at": {"S": created},
        "content": {"M": fields},
        **({} if category is None else {"owner_category": category_key(request.caller, category)}),
    }


def put(
    item: Mapping[str, Any], condition: str = "attribute_not_exists(id)", **values: Any
) -> dict[str, Any]:
    """A conditional put, as part of a transaction."""
    return {
        "TableName": os.environ["TABLE_NAME"],
        "Item": item,
        "ConditionExpression": condition,
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        **({"ExpressionAttributeValues": values} if values else {}),
    }


def create(request: Request, puts: list[dict[str, Any]]) -> None:
    """Puts an item that must be new, alone or together with what must be new as well."""
    try:
        if len(puts) == 1:
            table(request, "put_item", **{k: v for k, v in puts[0].items() if k != "TableName"})
        else:
            table(request, "transact_write_items", TransactItems=[{"Put": each} for each in puts])
    except ConditionFailed as failure:
        if failure.item and failure.item.get("revision") == {"S": request.revision}:
            return  # an attempt whose answer was lost had succeeded
        if len(puts) > 1:
            raise
        raise Problem(409, "The id is taken.") from None


def create_once(request: Request, item: dict[str, Any], wanted_id: str | None) -> dict[str, Any]:
    """Creates the item together with a record of its Idempotency-Key, or repeats the first answer.

    The record needs no copy of the answer: the same body, id, time and revision make it again.
    """
    key = request.headers["idempotency-key"]
    if not re.fullmatch(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?", key):
        raise Problem(400, "An Idempotency-Key has 1 to 255 printable ASCII characters.")
    body = json.dumps([wanted_id, item["content"]], sort_keys=True)
    seconds = int(time.time())
    record = {
        "id": {
            "S": "idempotency#" + hashlib.sha256(f"{request.caller}#{key}".encode()).hexdigest()
        },
        "fingerprint": {"S": hashlib.sha256(body.encode()).hexdigest()},
        "item_id": item["id"],
        "created_at": item["created_at"],
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
        raise Problem(409, "The id is taken.")
    if first["fingerprint"] != record["fingerprint"]:
        raise Problem(422, "The Idempotency-Key was used with another body.")
    request.revision = first["revision"]["S"]
    return new_item(request, first["item_id"]["S"], item["content"]["M"], first["created_at"]["S"])


def get_item(request: Request) -> dict[str, Any]:
    """GET /items/{id}: the caller's item, or 304 if it is still the one that the caller has."""
    item = read_item(request, request.item_id())
    tags = [tag.removeprefix("W/") for tag in request.etags("if-none-match")]
    if "*" in tags or etag(item) in tags:
        return answer(304, etag=etag(item))
    return item_answer(200, item)


def put_item(request: Request) -> dict[str, Any]:
    """PUT /items/{id}: replaces the fields of an item, all of them."""
    item_id = request.item_id()
    fields = replacement(request, item_id, "application/json")
    try:
        return item_answer(200, write_fields(request, item_id, fields, *matching(request)))
    except ConditionFailed as failure:
        raise refused(failure, request) from None


def replacement(request: Request, item_id: str, *media_types: str) -> dict[str, Any]:
    """The fields in the body of a write to this item; a body may repeat the id, not change it."""
    named, fields = request.fields(*media_types)
    if named not in (None, item_id):
        raise Problem(422, "The id in the body is not the one in the path.")
    return fields


def patch_item(request: Request) -> dict[str, Any]:
    """PATCH /items/{id}: merges the body into the item; of two at once, neither is lost."""
    item_id = request.item_id()
    patch = {"M": replacement(request, item_id, "application/merge-patch+json", "application/json")}
    tags = request.etags("if-match")
    for attempt in range(PATCH_ATTEMPTS):
        item = read_item(request, item_id)
        if tags and "*" not in tags and etag(item) not in tags:
            raise changed()
        fields = merge_patch(item["content"], patch)["M"]
        check_category(fields)
        try:
            seen = {":seen": item["revision"]}
            return item_answer(
                200, write_fields(request, item_id, fields, "revision = :seen", seen)
            )
        except ConditionFailed:
            pass  # somebody else was faster: merge into what they left
        time.sleep(random.uniform(0, 0.01 * 2 ** min(attempt, 5)))  # noqa: S311 - jitter, not a secret
    raise Problem(409, "The item is being changed by others; try again.", retry_after="1")


def delete_item(request: Request) -> dict[str, Any]:
    """DELETE /items/{id}: removes the item; a second time there is none."""
    item_id, (condition, values) = request.item_id(), matching(request)
    try:
        table(
            request,
            "delete_item",
            Key={"id": {"S": item_id}},
            ConditionExpression=condition,
            ExpressionAttributeNames=OWNER,
            ExpressionAttributeValues=values,
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
    except ConditionFailed as failure:
        if failure.item or not failure.repeated:
            raise refused(failure, request) from None
    return answer(204)


def list_items(request: Request) -> dict[str, Any]:
    """GET /items: the caller's items by time, all or of one category, a page at a time."""
    filters, order, limit = list_query(request.query, "category")
    index, key, value = "by_owner", "owner", {"S": request.caller}
    if (category := filters.get("category")) is not None:
        if len(category.encode()) > CATEGORY_LIMIT:
            raise Problem(400, f"A category has at most {CATEGORY_LIMIT} bytes.")
        index, key, value = "by_category", "owner_category", category_key(request.caller, category)
    scope = f"{request.caller}\n{category is None}\n{category}\n{order}"
    page = Page(request, "created_at", order, limit, scope)
    page.query({key: value}, IndexName=index)
    return answer(200, page.json("items", item_json))


def list_query(query: Mapping[str, str], *filters: str) -> tuple[dict[str, str], str, int]:
    """The filters that a list request names, its order and its limit, or Problem 400."""
    known = (*filters, "order", "limit", "next")
    if unknown := query.keys() - set(known):
        raise Problem(
            400, f"There is no parameter {printable(min(unknown))}; {', '.join(known)} are."
        )
    order, limit = query.get("order", "desc"), query.get("limit", "20")
    if order not in ("asc", "desc"):
        raise Problem(400, f"order is asc or desc, not {printable(order)}.")
    if not re.fullmatch("[1-9][0-9]?|100", limit):
        raise Problem(400, f"limit is 1 to 100, not {printable(limit)}.")
    return {each: storable(query[each]) for each in filters if each in query}, order, int(limit)


class Page:
    """One page of a query: where it begins, what it holds, and the token of the page behind it.

    Items are in the order of their attribute `sort`; `scope` binds tokens to caller and query.
    """

    def __init__(self, request: Request, sort: str, order: str, limit: int, scope: str):
        self.request, self.sort, self.order = request, sort, order
        self.limit, self.scope = limit, scope
        self.items: list[dict[str, Any]] = []
        self.more = False

    def query(
        self,
        key: Mapping[str, Any],
        also: str = "",
        values: Mapping[str, Any] | None = None,
        rest: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        """Reads the items under a partition key; `also` is a condition on #sort with its values.

        `rest` is what a place in the index has beyond this key, the sort key and the id.
        """
        ((name, value),) = key.items()
        names = {"#key": name, **({"#sort": self.sort} if also else {})}
        if "next" in self.request.query:
            place, item_id = open_token(self.request.query["next"], self.scope)
            start = {"id": {"S": item_id}, **key, self.sort: {"S": place}, **(rest or {})}
            arguments["ExclusiveStartKey"] = start
        response = table(
            self.request,
            "query",
            KeyConditionExpression=f"#key = :value{also}",
            ExpressionAttributeNames=names,
            ExpressionAttributeValues={":value": value, **(values or {})},
            ScanIndexForward=self.order == "asc",
            Limit=self.limit + 1,  # one more tells whether this page is the last
            **arguments,
        )
        self.items, self.more = response["Items"], "LastEvaluatedKey" in response

    def json(self, name: str, shown: Callable[[Mapping[str, Any]], str]) -> str:
        """The page as a JSON object, cut where it would grow too large."""
        texts: list[str] = []
        size = 0
        for item in self.items[: self.limit]:
            texts.append(shown(item))
            size += len(texts[-1])
            if size > PAGE_LIMIT:
                break
        token = ""
        if texts and (self.more or len(texts) < len(self.items)):
            last = self.items[len(texts) - 1]
            token = seal_token(last[self.sort]["S"], last["id"]["S"], self.scope)
        following = f',"next":"{token}"' if token else ""
        return f'{{"{name}":[{",".join(texts)}]{following}}}'


# --- Paging tokens: where the last page ended, signed for one caller and one query

PAGING_KEY_SECONDS = 300  # how long a container uses the keys that it has read
PAGING_KEY_STALE_SECONDS = 3_600  # how long it goes on with them while SSM cannot be asked
PAGING_KEY_MIN_SECONDS = 10  # how soon an unknown signature may make it ask again
_paging: dict[str, Any] = {"keys": [], "read": float("-inf"), "tried": float("-inf")}


def paging_keys(max_age: float) -> list[bytes]:
    """The keys that sign tokens, the current one first; Problem 503 if none can be had."""
    clock = time.monotonic()
    usable = _paging["keys"] and clock - _paging["read"] < PAGING_KEY_STALE_SECONDS
    # An outage must not slow every list by the SDK's attempts.
    waited = clock - _paging["tried"] >= PAGING_KEY_MIN_SECONDS
    if not usable or (clock - _paging["read"] >= max_age and waited):
        _paging["tried"] = clock
        try:
            _paging.update(keys=read_paging_keys(), read=clock)
        except Exception as error:
            if not usable:
                raise busy() from error
            print(json.dumps({"level": "WARN", "message": f"paging key is stale: {told(error)}"}))
    return list(_paging["keys"])


def read_paging_keys() -> list[bytes]:
    """The keys in the parameter; until the first rotation there are none, a ValueError."""
    answered = service("ssm").get_parameter(Name=os.environ["PAGING_KEY"], WithDecryption=True)
    keys = [bytes.fromhex(key) for key in parse_keys(answered["Parameter"]["Value"])]
    if not keys:
        raise ValueError("the paging key was never rotated")
    return keys


def parse_keys(value: str) -> list[str]:
    """The keys in the parameter, as hex; it is born as the text `unset`."""
    return [key for key in value.split(",") if key != "unset"]


def seal_token(created: str, item_id: str, scope: str) -> str:
    """An opaque token for the place behind this item."""
    place = f"{created}\n{item_id}"
    mac = hmac.digest(paging_keys(PAGING_KEY_SECONDS)[0], f"{place}\n{scope}".encode(), "sha256")
    return base64.urlsafe_b64encode(mac + place.encode()).decode().rstrip("=")


def open_token(token: str, scope: str) -> tuple[str, str]:
    """The place that a token stands for; Problem 400 if it is not of this caller and query."""
    try:
        raw = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), b"-_", validate=True)
        mac, place = raw[:32], raw[32:].decode()
    except ValueError:
        raise Problem(400, "next is no token of this service.") from None
    # Another container may know a newer key: look again before the token is refused.
    for max_age in (PAGING_KEY_SECONDS, PAGING_KEY_MIN_SECONDS):
        for key in paging_keys(max_age):
            if hmac.compare_digest(mac, hmac.digest(key, f"{place}\n{scope}".encode(), "sha256")):
                created, _, item_id = place.partition("\n")
                return created, item_id
    raise Problem(400, "next is not a token of this caller and query.")


# --- Files: operations of the API

UPLOAD_SECONDS = 900  # how long a form for an upload is good
PATH_STEP = r"(?!\.{1,2}(/|$))[^/\x00-\x1f\x7f]+"  # a name, or a folder in a path
KEY_LIMIT = 1_024  # bytes, S3's
TOTALS_DAYS = 92  # a quarter: one query a day
FILE_FIELDS = (
    "id", "name", "folder", "extension", "size", "content_type", "declared_type", "etag",
    "checksums", "version_id", "metadata", "uploaded_at", "width", "height", "failure",
)  # fmt: skip


def create_upload(request: Request) -> dict[str, Any]:
    """POST /files: the form by which a browser sends one file straight to S3 (a presigned POST)."""
    wanted = request.object("application/json")
    limit = int(os.environ["UPLOAD_BYTES"])
    if unknown := wanted.keys() - {"name", "folder", "content_type", "size"}:
        known = "name, folder, content_type, size"
        raise Problem(422, f"There is no field {printable(min(unknown))}; {known} are.")
    size = wanted.get("size")
    if size is not None and not (
        isinstance(size, Decimal) and size % 1 == 0 and 0 <= size <= limit
    ):
        raise Problem(422, f"size is a whole number of bytes, {limit} at most.")
    key = upload_key(request.caller, wanted.get("folder", ""), wanted.get("name"))
    content_type = upload_type(wanted.get("content_type"))
    least, most = (0, limit) if size is None else (int(size), int(size))
    form = upload_form(key, content_type, least, most)
    body = {"id": file_id(key), **form, "expires_in": UPLOAD_SECONDS}
    return answer(201, json.dumps(body), location=f"/files/{body['id']}", cache_control="no-store")


def upload_form(key: str, content_type: str, least: int, most: int) -> dict[str, Any]:
    """URL and fields of a form that S3 takes one object by: "Creating an HTML form", S3 API."""
    now, bucket = time.time(), os.environ["BUCKET_NAME"]
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    access_key, secret_key, token = credentials()
    scope = credential_scope(stamp, "s3")
    fields = {
        "Content-Type": content_type,
        "key": key,
        "x-amz-algorithm": "AWS4-HMAC-SHA256",
        "x-amz-credential": f"{access_key}/{scope}",
        "x-amz-date": stamp,
        **({"x-amz-security-token": token} if token else {}),
    }
    allowed = [{"bucket": bucket}, *({name: fields[name]} for name in fields)]
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + UPLOAD_SECONDS))
    limits = [*allowed, ["content-length-range", least, most]]
    text = json.dumps({"expiration": ends, "conditions": limits}).encode()
    fields["policy"] = base64.b64encode(text).decode()
    fields["x-amz-signature"] = signed(fields["policy"], secret_key, scope)
    scheme, host = endpoint("s3")
    # The host of the bucket is in its own region; an emulator has one host for all buckets.
    url = f"https://{bucket}.{host}/" if scheme == "https" else f"{scheme}://{host}/{bucket}"
    return {"url": url, "fields": fields}


def upload_key(owner: str, folder: Any, name: Any) -> str:
    """The key of a caller's file, below the caller's own prefix, or Problem 422."""
    if not isinstance(name, str) or not re.fullmatch(PATH_STEP, name):
        raise Problem(422, "name is a text without slashes and control characters.")
    if not isinstance(folder, str) or not re.fullmatch(f"({PATH_STEP}(/{PATH_STEP})*)?", folder):
        raise Problem(422, "folder is names with single slashes between them, or empty.")
    key = storable("/".join(part for part in (owner, folder, name) if part))
    if len(key.encode()) > KEY_LIMIT:
        raise Problem(422, f"folder and name have {KEY_LIMIT - len(owner) - 2} bytes at most.")
    if "${filename}" in key:
        raise Problem(422, "S3 would put another name in place of ${filename}.")
    return key


def upload_type(content_type: Any) -> str:
    """A content type that may be uploaded, or Problem 422."""
    allowed = os.environ["UPLOAD_TYPES"].split()
    if isinstance(content_type, str) and re.fullmatch(r"[a-z0-9.+-]+/[a-z0-9.+-]+", content_type):
        kind = content_type.partition("/")[0]
        if content_type in allowed or f"{kind}/*" in allowed:
            return content_type
    raise Problem(422, f"content_type is one of {', '.join(allowed)}.")


def list_files(request: Request) -> dict[str, Any]:
    """GET /files: the caller's files by time: all, or those of one folder, type or day."""
    filters, order, limit = list_query(request.query, "folder", "content_type", "day")
    if len(filters) > 1:
        raise Problem(400, f"Of {', '.join(filters)} only one can be asked for.")
    name, value = next(iter(filters.items()), ("", ""))
    if len(value.encode()) > KEY_LIMIT:
        raise Problem(400, f"{name} has {KEY_LIMIT} bytes at most.")
    index, key, attribute, also, values = "by_owner", "", "files_of", "", {}
    if name == "folder":
        index, key, attribute = "by_folder", value, "folder_of"
    if name == "content_type":
        index, key, attribute = "by_content_type", value, "type_of"
    if name == "day":
        day, also = str(a_day("day", value)), " AND #sort BETWEEN :from AND :to"
        values = {":from": {"S": day}, ":to": {"S": f"{day}U"}}  # U comes after the T of the time
    page = Page(request, "uploaded_at", order, limit, f"{request.caller}\n{name}\n{value}\n{order}")
    page.query(
        {attribute: {"S": f"{request.caller}/{key}"}},
        also,
        values,
        rest={"record": {"S": "newest"}},
        TableName=os.environ["FILES_TABLE_NAME"],
        IndexName=index,
    )
    return answer(200, page.json("files", file_json))


def get_file(request: Request) -> dict[str, Any]:
    """GET /files/{id}: the caller's file as it is now, and its versions a page at a time."""
    _, order, limit = list_query(request.query)
    key = {"S": request.path_id()}
    if not FILE_ID.fullmatch(key["S"]):
        raise Problem(404, "There is no such file.")
    files: dict[str, Any] = {"TableName": os.environ["FILES_TABLE_NAME"]}
    newest = {"id": key, "record": {"S": "newest"}}
    file = table(request, "get_item", Key=newest, ConsistentRead=True, **files).get("Item")
    if not file or file["owner"]["S"] != request.caller:
        raise Problem(404, "There is no such file.")
    page = Page(request, "record", order, limit, f"{request.caller}\nversions\n{key['S']}\n{order}")
    versions = {":versions": {"S": "version#"}}
    page.query({"id": key}, " AND begins_with(#sort, :versions)", versions, **files)
    return answer(200, f"{file_json(file)[:-1]},{page.json('versions', file_json)[1:]}")


def file_json(item: Mapping[str, Any]) -> str:
    """A file or a version of it as its owner sees it."""
    return to_json({"M": {name: item[name] for name in FILE_FIELDS if name in item}})


def list_totals(request: Request) -> dict[str, Any]:
    """GET /files/totals: what the caller uploaded, by day and content type, a page at a time."""
    filters, order, limit = list_query(request.query, "from", "to")
    last = a_day("to", filters.get("to", now()[:10]))
    first = a_day("from", filters.get("from", str(last)))
    count = (last - first).days + 1
    if not 1 <= count <= TOTALS_DAYS:
        raise Problem(400, f"from and to are 1 to {TOTALS_DAYS} days, the first one first.")
    days = [str(first + timedelta(n)) for n in range(count)][:: 1 if order == "asc" else -1]
    scope = f"{request.caller}\ntotals\n{first}\n{last}\n{order}"
    shown_day = shown_type = ""
    if "next" in request.query:
        shown_day, shown_type = open_token(request.query["next"], scope)
        days = days[days.index(shown_day) :]
    totals: list[dict[str, Any]] = []
    for day in days:
        found = totals_of(request, day)
        totals += [x for x in found if day != shown_day or x["content_type"] > shown_type]
        if len(totals) > limit:
            token = seal_token(totals[limit - 1]["day"], totals[limit - 1]["content_type"], scope)
            return answer(200, json.dumps({"totals": totals[:limit], "next": token}))
    return answer(200, json.dumps({"totals": totals}))


def totals_of(request: Request, day: str) -> list[dict[str, Any]]:
    """The caller's totals of one day, added up over their shards."""
    found: dict[str, dict[str, Any]] = {}
    more: dict[str, Any] = {}
    while True:
        response = table(
            request,
            "query",
            TableName=os.environ["FILES_TABLE_NAME"],
            KeyConditionExpression="id = :totals AND begins_with(#record, :owner)",
            ExpressionAttributeNames={"#record": "record"},
            ExpressionAttributeValues={
                ":totals": {"S": f"totals#{day}"},
                ":owner": {"S": f"{request.caller}/"},
            },
            **more,
        )
        for item in response["Items"]:
            content_type = item["record"]["S"].partition("/")[2].rpartition("/")[0]
            empty = {"day": day, "content_type": content_type, "count": 0, "bytes": 0}
            total = found.setdefault(content_type, empty)
            for name in ("count", "bytes"):
                total[name] += int(item[name]["N"])
        if "LastEvaluatedKey" not in response:
            return [found[each] for each in sorted(found)]
        more = {"ExclusiveStartKey": response["LastEvaluatedKey"]}


def a_day(name: str, text: str) -> date:
    """A day that the calendar has, or Problem 400."""
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
            return date.fromisoformat(text)
    except ValueError:
        pass  # 30 February
    raise Problem(400, f"{name} is a day such as 2026-11-30, not {printable(text)}.")


# --- Handlers

#: Route -> operation, scope that it needs, metric that it counts.
ROUTES: dict[str, tuple[Callable[[Request], dict[str, Any]], str, str]] = {
    "POST /items": (create_item, "items/write", "ItemsCreated"),
    "GET /items": (list_items, "items/read", "ItemsListed"),
    "GET /items/{id}": (get_item, "items/read", "ItemsRead"),
    "PUT /items/{id}": (put_item, "items/write", "ItemsReplaced"),
    "PATCH /items/{id}": (patch_item, "items/write", "ItemsPatched"),
    "DELETE /items/{id}": (delete_item, "items/write", "ItemsDeleted"),
}
#: The same where there is a file pipeline.
FILE_ROUTES: dict[str, tuple[Callable[[Request], dict[str, Any]], str, str]] = {
    "POST /files": (create_upload, "files/write", "UploadsAllowed"),
    "GET /files": (list_files, "files/read", "FilesListed"),
    "GET /files/totals": (list_totals, "files/read", "TotalsListed"),
    "GET /files/{id}": (get_file, "files/read", "FilesRead"),
}
ALL_ROUTES = {**ROUTES, **FILE_ROUTES}


def api(event: Mapping[str, Any], _context: Any) -> dict[str, Any]:
    """Lambda handler of the HTTP API: answers every request and logs one line for it."""
    started = time.perf_counter()
    request = Request(event)
    try:
        response = dispatch(request)
    except Problem as problem:
        request.error = problem.__cause__
        response = problem_answer(problem, request.id)
    except Exception as error:  # noqa: BLE001 - a caller gets an answer whatever happens, the log the error
        request.error = error
        response = problem_answer(Problem(500, "The service made a mistake."), request.id)
    print(log_line(request, response["statusCode"], (time.perf_counter() - started) * 1000))
    return response


def routes() -> Mapping[str, tuple[Callable[[Request], dict[str, Any]], str, str]]:
    """What this deployment answers."""
    return ALL_ROUTES if "FILES_TABLE_NAME" in os.environ else ROUTES


def dispatch(request: Request) -> dict[str, Any]:
    """Runs the route's operation for a caller who may."""
    if (route := routes().get(request.route)) is None:
        return unrouted(request)
    operation, scope, _ = route
    if not request.caller:
        raise Problem(401, "A bearer token is needed.", www_authenticate="Bearer")
    if scope not in request.claims.get("scope", "").split():
        challenge = f'Bearer error="insufficient_scope", scope="{scope}"'
        raise Problem(403, f"The token lacks the scope {scope}.", www_authenticate=challenge)
    return operation(request)


def unrouted(request: Request) -> dict[str, Any]:
    """What no route takes: OPTIONS says what one may do, the rest is 405 or 404."""
    parts = request.event.get("rawPath", "").split("/")
    allowed = [route.split()[0] for route in routes() if fits(route.split()[1].split("/"), parts)]
    if not allowed:
        raise Problem(404, "There is no such resource.")
    if request.method == "OPTIONS":
        return answer(204, allow=", ".join(allowed))
    raise Problem(405, f"{request.method} is not allowed here.", allow=", ".join(allowed))


def fits(template: list[str], parts: list[str]) -> bool:
    """Whether the segments of a path are an instance of a route's."""
    return len(template) == len(parts) and all(
        part == name or (name.startswith("{") and part)
        for name, part in zip(template, parts, strict=True)
    )


def log_line(request: Request, status: int, milliseconds: float) -> str:
    """The request as one JSON line, with its business metric."""
    metric = "RequestsFailed" if status >= 500 else "RequestsRefused"
    if status < 400:
        metric = ALL_ROUTES[request.route][2] if request.route in ALL_ROUTES else "RequestsOther"
    facts = {
        "route": request.route,
        "method": request.method,
        "status": status,
        "caller": request.caller,
        "latency_ms": round(milliseconds, 2),
        "request_id": request.id,
        "consumed_capacity": request.capacity,
    }
    if request.error:
        facts["error"] = told(request.error)
    return metric_line("request", metric, facts, failed=status >= 500)


def metric_line(message: str, metric: str, facts: Mapping[str, Any], failed: bool) -> str:
    """A JSON log line that counts one of a metric (CloudWatch's embedded metric format)."""
    line = {
        "level": "ERROR" if failed else "INFO",
        "message": message,
        **facts,
        "Environment": os.environ["ENVIRONMENT"],
        metric: 1,
        "_aws": {
            "Timestamp": int(time.time() * 1000),
            "CloudWatchMetrics": [
                {
                    "Namespace": os.environ["METRICS_NAMESPACE"],
                    "Dimensions": [["Environment"]],
                    "Metrics": [{"Name": metric, "Unit": "Count"}],
                }
            ],
        },
    }
    return json.dumps(line)


def told(error: BaseException) -> str:
    """An error as the logs have it."""
    return f"{type(error).__name__}: {error}"


ROTATION_ATTEMPTS = (
    6  # IAM is eventually consistent: a policy attached seconds ago may not hold yet
)


def rotate_paging_key(event: Mapping[str, Any], _context: Any) -> None:
    """Lambda handler: puts a new paging key before the current one, forgets older ones.

    With `{"dry_run": true}` it only reads them.
    """
    for attempt in range(1, ROTATION_ATTEMPTS + 1):
        try:
            name = os.environ["PAGING_KEY"]
            parameter = service("ssm").get_parameter(Name=name, WithDecryption=True)["Parameter"]
            keys = [os.urandom(32).hex(), *parse_keys(parameter["Value"])][:2]
            if event.get("dry_run"):
                return
            service("ssm").put_parameter(
                Name=name, Value=",".join(keys), Type="SecureString", Overwrite=True
            )
            line = {"level": "INFO", "message": "paging key rotated", "attempt": attempt}
            print(json.dumps(line))
            return
        except Exception as error:
            print(json.dumps({"level": "WARN", "message": told(error), "attempt": attempt}))
            if attempt == ROTATION_ATTEMPTS:
                raise
        time.sleep(2**attempt / 2)


# --- Files: what an object is, told by its first bytes

START_BYTES = 65_536  # what is read of an object, however large it is
#: Where a file of a type has which bytes (WHATWG MIME Sniffing, 6; libmagic for the others).
SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (8, b"WEBPVP8", "image/webp"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
    (0, b"8BPS\0\1", "image/vnd.adobe.photoshop"),
    (0, b"\0\0\1\0", "image/vnd.microsoft.icon"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "image/jp2"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"%!PS", "application/postscript"),
    (0, b"{\\rtf", "application/rtf"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/x-ole-storage"),
    (0, b"\x1f\x8b\x08", "application/gzip"),
    (4, b"1AY&SY", "application/x-bzip2"),
    (0, b"\xfd7zXZ\0", "application/x-xz"),
    (0, b"\x28\xb5\x2f\xfd", "application/zstd"),
    (0, b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (0, b"Rar!\x1a\7", "application/vnd.rar"),
    (257, b"ustar", "application/x-tar"),
    (0, b"PAR1", "application/vnd.apache.parquet"),
    (0, b"Obj\1", "application/avro"),
    (0, b"SQLite format 3\0", "application/vnd.sqlite3"),
    (0, b"\0asm", "application/wasm"),
    (0, b"\x7fELF", "application/x-elf"),
    (0, b"MZ\x90\0", "application/vnd.microsoft.portable-executable"),
    (0, b"MZP\0", "application/vnd.microsoft.portable-executable"),
    (0, b"wOFF", "font/woff"),
    (0, b"wOF2", "font/woff2"),
    (0, b"OTTO\0", "font/otf"),
    (0, b"\0\1\0\0\0", "font/ttf"),
    (0, b"OggS\0", "application/ogg"),
    (0, b"fLaC", "audio/flac"),
    (0, b"ID3\2", "audio/mpeg"),
    (0, b"ID3\3", "audio/mpeg"),
    (0, b"ID3\4", "audio/mpeg"),
    (0, b"\xff\xfb", "audio/mpeg"),
    (0, b"\xff\xf3", "audio/mpeg"),
    (0, b"MThd\0\0\0\6", "audio/midi"),
    (8, b"WAVE", "audio/wav"),
    (8, b"AVI ", "video/x-msvideo"),
    (31, b"webm", "video/webm"),
    (24, b"webm", "video/webm"),
    (0, b"\x1a\x45\xdf\xa3", "video/matroska"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftypavis", "image/avif"),
    (4, b"ftyphei", "image/heic"),
    (4, b"ftyphevc", "image/heic"),
    (4, b"ftypmif1", "image/heif"),
    (4, b"ftypM4A", "audio/mp4"),
    (4, b"ftypqt", "video/quicktime"),
    (4, b"ftyp3gp", "video/3gpp"),
    (4, b"ftyp", "video/mp4"),
)
OFFICE = "application/vnd.openxmlformats-officedocument."
#: What an archive is that holds a path which begins like this, beside a path of OFFICE_PATHS.
OFFICE_PARTS = {
    b"word/": f"{OFFICE}wordprocessingml.document",
    b"xl/": f"{OFFICE}spreadsheetml.sheet",
    b"ppt/": f"{OFFICE}presentationml.presentation",
}
OFFICE_PATHS = (b"[Content_Types].xml", b"_rels/.rels")
#: What an archive is that holds this path.
ARCHIVES = {
    b"AndroidManifest.xml": "application/vnd.android.package-archive",
    b"META-INF/MANIFEST.MF": "application/java-archive",
}


def content_type_of(start: bytes, whole: bool) -> str:
    """What a file is by its first bytes; `whole` tells that there are no others."""
    if not start:
        return "application/x-empty"
    if start.startswith((b"PK\3\4", b"PK\5\6")):
        return zip_type(start)
    if start.startswith(b"BM") and unsigned(start, 14, 4, "little") in (12, 40, 52, 56, 108, 124):
        return "image/bmp"
    for offset, signature, content_type in SIGNATURES:
        if start.startswith(signature, offset):
            return content_type
    return text_type(start, whole)


def zip_type(start: bytes) -> str:
    """What a ZIP archive is by the paths of its first files."""
    if start.startswith(b"mimetype", 30):  # Open Document and EPUB: the first file, as it is
        body = 38 + unsigned(start, 28, 2, "little")
        declared = start[body : body + unsigned(start, 22, 4, "little")]
        if re.fullmatch(rb"[\w.+-]{1,40}/[\w.+-]{1,100}", declared):
            return declared.decode()
    paths = zip_paths(start)
    for path, content_type in ARCHIVES.items():
        if path in paths:
            return content_type
    if any(path in paths for path in OFFICE_PATHS):
        for begin, content_type in OFFICE_PARTS.items():
            if any(path.startswith(begin) for path in paths):
                return content_type
    return "application/zip"


def zip_paths(start: bytes) -> list[bytes]:
    """The paths of the files whose headers lie in the first bytes of a ZIP archive."""
    paths, place = [], 0
    while place >= 0 and start.startswith(b"PK\3\4", place):
        body = place + 30 + unsigned(start, place + 26, 2, "little")
        paths.append(start[place + 30 : body])
        body += unsigned(start, place + 28, 2, "little")
        size = unsigned(start, place + 18, 4, "little")
        # A size of zero in a header may stand behind the content instead.
        place = body + size if size else start.find(b"PK\3\4", body)
    return paths


def text_type(start: bytes, whole: bool) -> str:
    """What kind of text it is, or that it is none."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text/plain"  # UTF-16 with its byte order mark
    if re.search(rb"[\0-\x08\x0b\x0e-\x1a\x1c-\x1f]", start):
        return "application/octet-stream"  # a binary data byte: WHATWG MIME Sniffing, 7.2
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(start, whole)
    except UnicodeDecodeError:
        return "text/plain"  # in an older encoding
    body = text.lstrip()
    if re.match(r"(?:<!--.*?-->\s*)*<(!doctype html|html|head|body)\b", body, re.I | re.S):
        return "text/html"
    if body.startswith(("<?xml", "<svg")):
        return "image/svg+xml" if re.search(r"<svg[\s>]", body) else "application/xml"
    if is_json(body, whole):
        return "application/json"
    lines = (text if whole else text.rpartition("\n")[0]).splitlines()[:10]
    commas = {line.count(",") for line in lines}
    return "text/csv" if len(lines) > 1 and len(commas) == 1 and commas != {0} else "text/plain"


def is_json(body: str, whole: bool) -> bool:
    """Whether a text is a JSON object or array, as far as it is there."""
    if not whole:
        return bool(re.match(r'\{\s*"|\[\s*([\[{"\d-]|true|false|null)', body))
    try:
        return isinstance(json.loads(body), dict | list)
    except (ValueError, RecursionError):
        return False


def dimensions(content_type: str, start: bytes) -> tuple[int, int]:
    """Width and height of an image in pixels, zeros if its header does not tell."""
    if content_type == "image/png":
        return unsigned(start, 16, 4), unsigned(start, 20, 4)
    if content_type == "image/gif":
        return unsigned(start, 6, 2, "little"), unsigned(start, 8, 2, "little")
    if content_type == "image/bmp":
        return bmp_dimensions(start)
    if content_type == "image/webp":
        return webp_dimensions(start)
    if content_type == "image/jpeg":
        return jpeg_dimensions(start)
    if content_type in ("image/avif", "image/heic", "image/heif"):
        box = start.find(b"ispe")  # image spatial extents, ISO/IEC 23008-12
        return (unsigned(start, box + 8, 4), unsigned(start, box + 12, 4)) if box > 0 else (0, 0)
    if content_type == "image/tiff":
        return tiff_dimensions(start)
    return 0, 0


def bmp_dimensions(start: bytes) -> tuple[int, int]:
    """Of a BMP; a negative height means rows from top to bottom."""
    if unsigned(start, 14, 4, "little") == 12:
        return unsigned(start, 18, 2, "little"), unsigned(start, 20, 2, "little")
    height = unsigned(start, 22, 4, "little")
    return unsigned(start, 18, 4, "little"), min(height, 2**32 - height)


def webp_dimensions(start: bytes) -> tuple[int, int]:
    """Of a WebP: lossy, lossless or extended (RFC 9649)."""
    if start[12:16] == b"VP8 ":
        return unsigned(start, 26, 2, "little") & 0x3FFF, unsigned(start, 28, 2, "little") & 0x3FFF
    if start[12:16] == b"VP8L":
        bits = unsigned(start, 21, 4, "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return unsigned(start, 24, 3, "little") + 1, unsigned(start, 27, 3, "little") + 1


def jpeg_dimensions(start: bytes) -> tuple[int, int]:
    """Of a JPEG: in its frame header, behind any number of other segments (ITU-T T.81, B.2)."""
    place = 2
    while start[place : place + 1] == b"\xff":
        marker = unsigned(start, place + 1, 1)
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers that stand alone
            place += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return unsigned(start, place + 7, 2), unsigned(start, place + 5, 2)
        else:
            place += 2 + unsigned(start, place + 2, 2)
    return 0, 0


def tiff_dimensions(start: bytes) -> tuple[int, int]:
    """Of a TIFF: tags 256 and 257 of its first directory, if that is near enough."""
    order = "little" if start.startswith(b"II") else "big"
    directory = unsigned(start, 4, 4, order)
    found = {256: 0, 257: 0}
    for n in range(min(unsigned(start, directory, 2, order), 512)):
        entry = directory + 2 + 12 * n
        tag, size = unsigned(start, entry, 2, order), unsigned(start, entry + 2, 2, order)
        if tag in found:
            found[tag] = unsigned(start, entry + 8, 2 if size == 3 else 4, order)
    return found[256], found[257]


def unsigned(data: bytes, place: int, size: int, order: Any = "big") -> int:
    """An unsigned number in a header, 0 behind its end."""
    part = data[place : place + size]
    return int.from_bytes(part, order) if len(part) == size else 0


# --- Files: one record of each version of each object, exactly once in effect

TRANSACTION_ATTEMPTS = 5  # a cancelled transaction is not repeated by the SDK
#: Why a transaction is cancelled that may succeed a moment later.
PASSING = {"ProvisionedThroughputExceeded", "ThrottlingError", "TransactionConflict"}
GONE = {"404", "405", "MethodNotAllowed", "NoSuchKey", "NoSuchVersion"}
SEQUENCER_DIGITS = 64
FILE_ID = re.compile(r"[0-9a-f]{40}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


class RecordsFailed(Exception):  # noqa: N818 - what the dead letter says
    """Some records of an event could not be kept: it is tried again, then set aside."""


class Upload:
    """One version of an object, as a record of an S3 event names it, or ValueError."""

    def __init__(self, record: Mapping[str, Any]):
        try:
            stored, self.time = record["s3"]["object"], record["eventTime"]
            self.bucket: str = record["s3"]["bucket"]["name"]
            self.key = unquote_plus(stored["key"], errors="strict")
            self.version_id: str = stored.get("versionId") or ""
            sequencer: str = stored["sequencer"]
            good = re.fullmatch(f"[0-9A-Fa-f]{{1,{SEQUENCER_DIGITS}}}", sequencer)
            if not (good and TIME.fullmatch(self.time) and self.bucket and self.key):
                raise ValueError(f"sequencer {sequencer!r}, time {self.time!r}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no record of an S3 object: {told(error)}") from None
        # The longer of two sequencers is not the later one: S3 user guide, "Event message
        # structure", wants zeros at the end of the shorter before the two are compared.
        self.sequencer = sequencer.upper().ljust(SEQUENCER_DIGITS, "0")
        self.id = file_id(self.key)
        self.owner, below, path = self.key.partition("/")
        if not below:  # no folder at all: nobody's
            self.owner, path = "", self.key
        self.folder, _, self.file_name = path.rpartition("/")

    def place(self) -> dict[str, str]:
        """Which object S3 should answer about."""
        version = {"VersionId": self.version_id} if self.version_id else {}
        return {"Bucket": self.bucket, "Key": self.key, **version}

    def attributes(self) -> dict[str, Any]:
        """What the event alone tells, as attributes of the version's record."""
        _, dot, extension = self.file_name.lstrip(".").rpartition(".")
        return {
            "id": {"S": self.id},
            "record": {"S": f"version#{self.sequencer}"},
            "sequencer": {"S": self.sequencer},
            "key": {"S": self.key},
            "owner": {"S": self.owner},
            "folder": {"S": self.folder},
            "name": {"S": self.file_name},
            "extension": {"S": extension.lower() if dot else ""},
            "version_id": {"S": self.version_id},
            "uploaded_at": {"S": self.time},
        }


def file_id(key: str) -> str:
    """The id of a file: 160 bits of a digest of its key, which may hold what no URL should."""
    return hashlib.sha256(key.encode()).hexdigest()[:40]


def open_file_clients() -> None:
    """Makes the clients in the init phase, when Lambda lends a whole core."""
    service("dynamodb")
    client("s3")


def record_files(event: Mapping[str, Any], context: Any) -> None:
    """Lambda handler of S3's notifications: keeps a record of each object version, once.

    Every record of the event gets its turn, whatever becomes of the others. Raises RecordsFailed if
    some could not be kept, so that Lambda tries the event again, twice, and then puts it into the
    dead-letter queue; those that were kept are recognised and not counted again.
    """
    records = event.get("Records") if isinstance(event, dict) else None
    if not isinstance(records, list) or not records:
        raise RecordsFailed("the event has no records: it is not from S3")
    failures = []
    for record in records:
        started = time.perf_counter()
        facts: dict[str, Any] = {"request_id": context.aws_request_id}
        try:
            outcome = record_file(record, facts)
        except Exception as error:  # noqa: BLE001 - one bad record must not hold back the others
            outcome, facts["error"] = "FilesRefused", told(error)
            failures.append(f"{facts.get('key', 'a record')}: {told(error)}")
        facts["latency_ms"] = round((time.perf_counter() - started) * 1000, 2)
        print(metric_line("file", outcome, facts, failed=outcome == "FilesRefused"))
    if failures:
        raise RecordsFailed(f"{len(failures)} of {len(records)} records: {'; '.join(failures)}")


def record_file(record: Mapping[str, Any], facts: dict[str, Any]) -> str:
    """Keeps what one record tells; returns the metric that it counts."""
    if not str(record.get("eventName", "")).removeprefix("s3:").startswith("ObjectCreated:"):
        facts["event"] = record.get("eventName")
        return "FilesIgnored"
    upload = Upload(record)
    facts.update(key=upload.key, version_id=upload.version_id)
    file = upload.attributes()
    try:
        file.update(examined(upload))
    except Exception as error:
        if error_code(error) not in GONE:
            raise
        facts["error"] = told(error)
        return keep_failure(file, "The object was gone before it could be read.")
    shown = ("size", "content_type", "declared_type")
    facts.update({name: next(iter(file[name].values())) for name in shown})
    return keep(file)


def examined(upload: Upload) -> dict[str, Any]:
    """What S3 and the first bytes of the object tell, as attributes: two calls, 64 KiB at most."""
    found = client("s3").head_object(**upload.place(), ChecksumMode="ENABLED")
    size = found["ContentLength"]
    start, readable = first_bytes(upload, size)
    content_type = content_type_of(start, len(start) >= size)
    width, height = dimensions(content_type, start)
    sums = {
        name[8:]: {"S": found[name]} for name in found if re.fullmatch("Checksum[A-Z0-9]+", name)
    }
    metadata = {name: {"S": value} for name, value in found["Metadata"].items()}
    return {
        "size": {"N": str(size)},
        "content_type": {"S": content_type if readable else "application/octet-stream"},
        "declared_type": {"S": found.get("ContentType", "")},
        "etag": {"S": found["ETag"].strip('"')},
        "checksums": {"M": sums},
        "metadata": {"M": metadata},
        **({"width": {"N": str(width)}, "height": {"N": str(height)}} if width and height else {}),
    }


def first_bytes(upload: Upload, size: int) -> tuple[bytes, bool]:
    """The first bytes of an object, and whether it can be read: an archived one cannot."""
    if not size:
        return b"", True
    try:
        answered = client("s3").get_object(**upload.place(), Range=f"bytes=0-{START_BYTES - 1}")
        return answered["Body"].read(START_BYTES), True
    except Exception as error:
        if error_code(error) != "InvalidObjectState":
            raise
        return b"", False


def error_code(error: Exception) -> str:
    """AWS's code in an error of the SDK, empty in any other."""
    response: Any = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def keep(file: Mapping[str, Any]) -> str:
    """Writes a version's record, the file's newest state and the totals in one transaction.

    The record exists once for each object and sequencer, so a repeated event changes nothing. An
    event that comes late, after a newer version's, leaves the newest state as it is.
    """
    version, newest, totals = version_put(file), newest_put(file), totals_update(file)
    refused = transact([version, totals, newest])
    if refused and refused[0] != "ConditionalCheckFailed":
        refused = transact([version, totals])
    return "FilesRepeated" if refused else "FilesRecorded"


def keep_failure(file: Mapping[str, Any], reason: str) -> str:
    """Writes the record of a version that will never be known better; it is in no total."""
    failed = {**file, "failure": {"S": reason}}
    return "FilesRepeated" if transact([version_put(failed)]) else "FilesFailed"


def transact(writes: list[dict[str, Any]]) -> list[str]:
    """Writes all or nothing; returns the codes of a refusal by a condition, else an empty list."""
    attempt = 1
    while True:
        try:
            service("dynamodb").transact_write_items(TransactItems=writes)
            return []
        except Exception as error:
            reasons = (getattr(error, "response", None) or {}).get("CancellationReasons", [])
            codes = [each.get("Code", "None") for each in reasons]
            if "ConditionalCheckFailed" in codes:
                return codes
            if attempt == TRANSACTION_ATTEMPTS or not PASSING.intersection(codes):
                raise
        time.sleep(random.uniform(0, 0.025 * 2**attempt))  # noqa: S311 - jitter, not a secret
        attempt += 1


def version_put(file: Mapping[str, Any]) -> dict[str, Any]:
    """The write of a version's record, which must be new."""
    return {"Put": files_put(file, "attribute_not_exists(id)")}


def newest_put(file: Mapping[str, Any]) -> dict[str, Any]:
    """The write of the file's newest state, which only this record of it shows in the indexes."""
    owner, sequencer = file["owner"]["S"], {":sequencer": file["sequencer"]}
    newest = {
        **file,
        "record": {"S": "newest"},
        "files_of": {"S": f"{owner}/"},
        "folder_of": {"S": f"{owner}/{file['folder']['S']}"},
        "type_of": {"S": f"{owner}/{file['content_type']['S']}"},
    }
    condition = "attribute_not_exists(id) OR sequencer < :sequencer"
    return {"Put": files_put(newest, condition, ExpressionAttributeValues=sequencer)}


def files_put(item: Mapping[str, Any], condition: str, **values: Any) -> dict[str, Any]:
    """A conditional put into the files table, as part of a transaction."""
    table_name = os.environ["FILES_TABLE_NAME"]
    return {"TableName": table_name, "Item": item, "ConditionExpression": condition, **values}


def totals_update(file: Mapping[str, Any]) -> dict[str, Any]:
    """The write that counts a version in the totals of its day, owner and content type.

    There are 16 such totals, by the first digit of the id: transactions that meet on one item are
    cancelled, and many files of a type are uploaded at once.
    """
    day, shard = file["uploaded_at"]["S"][:10], file["id"]["S"][0]
    record = f"{file['owner']['S']}/{file['content_type']['S']}/{shard}"
    return {
        "Update": {
            "TableName": os.environ["FILES_TABLE_NAME"],
            "Key": {"id": {"S": f"totals#{day}"}, "record": {"S": record}},
            "UpdateExpression": "ADD #count :one, #bytes :size",
            "ExpressionAttributeNames": {"#count": "count", "#bytes": "bytes"},
            "ExpressionAttributeValues": {":one": {"N": "1"}, ":size": file["size"]},
        }
    }


# --- Snapshots of the database


def take_snapshot(event: Mapping[str, Any], _context: Any) -> dict[str, Any]:
    """Lambda handler: takes a snapshot of the database, then deletes its own old ones.

    With `{"dry_run": true}` it only says what it would do. Raises what RDS answered when the
    snapshot could not be taken; one that could not be deleted is tried again the next day.
    """
    dry_run = bool(event.get("dry_run"))
    moment = time.gmtime()
    name = f"{os.environ['DATABASE']}-{time.strftime('%Y-%m-%d-%H%M', moment)}"
    if not dry_run:
        create_snapshot(name)
    found = own_snapshots()
    old = expired(
        found, time.time(), int(os.environ["SNAPSHOT_DAYS"]), int(os.environ["SNAPSHOT_KEEP"])
    )
    deleted = [each for each in old if dry_run or delete_snapshot(each)]
    facts = {"snapshot": name, "found": len(found), "deleted": deleted, "dry_run": dry_run}
    metric = "SnapshotsRehearsed" if dry_run else "SnapshotsTaken"
    print(metric_line("snapshot", metric, facts, failed=False))
    return facts


def create_snapshot(name: str) -> None:
    """Begins a snapshot; one that an earlier attempt began is as good."""
    tags = [{"Key": "CreatedBy", "Value": os.environ["CREATED_BY"]}]
    try:
        client("rds").create_db_snapshot(
            DBInstanceIdentifier=os.environ["DATABASE"], DBSnapshotIdentifier=name, Tags=tags
        )
    except Exception as error:
        if error_code(error) != "DBSnapshotAlreadyExists":
            raise


def own_snapshots() -> list[Mapping[str, Any]]:
    """All manual snapshots of the database that carry this function's tag."""
    pages = (
        client("rds")
        .get_paginator("describe_db_snapshots")
        .paginate(DBInstanceIdentifier=os.environ["DATABASE"], SnapshotType="manual")
    )
    tag = {"Key": "CreatedBy", "Value": os.environ["CREATED_BY"]}
    found = (each for page in pages for each in page["DBSnapshots"])
    return [each for each in found if tag in each.get("TagList", [])]


def expired(snapshots: Iterable[Mapping[str, Any]], now: float, days: int, keep: int) -> list[str]:
    """The names of the snapshots to delete: past their days, and not among the newest.

    What is still being made or copied, and what is not manual, neither counts nor goes.
    """
    whole = [
        (each["SnapshotCreateTime"].timestamp(), each["DBSnapshotIdentifier"])
        for each in snapshots
        if each["Status"] == "available" and each["SnapshotType"] == "manual"
    ]
    older = sorted(whole, reverse=True)[keep:]
    return [name for taken, name in older if now - taken > days * 86_400]


def delete_snapshot(name: str) -> bool:
    """Deletes a snapshot that is shared with nobody; says so in the log if it cannot."""
    try:
        answered = client("rds").describe_db_snapshot_attributes(DBSnapshotIdentifier=name)
        attributes = answered["DBSnapshotAttributesResult"].get("DBSnapshotAttributes", [])
        if any(each.get("AttributeValues") for each in attributes):
            print(json.dumps({"level": "INFO", "message": f"{name} is shared: it stays"}))
            return False
        client("rds").delete_db_snapshot(DBSnapshotIdentifier=name)
        return True
    except Exception as error:  # noqa: BLE001 - the others are still to be deleted
        facts = {"snapshot": name, "error": told(error)}
        print(metric_line("snapshot", "SnapshotsStuck", facts, failed=True))
        return False


###############################################################################
# Web application
###############################################################################
# What the instances of the web tier run, under gunicorn: shipped by bundle() like the functions,
# and tried by the tests with a real PostgreSQL. It counts visits: one table, two statements.

DATABASE_SECONDS = 8  # how long a request goes on trying, below the load balancer's 60
CONNECT_SECONDS = 3
STATEMENT_MS = 5_000
VISIT = re.compile(r"/visits/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_thread = threading.local()  # each thread has a connection of its own


def web(
    environ: Mapping[str, Any], start_response: Callable[[str, list[tuple[str, str]]], Any]
) -> list[bytes]:
    """The WSGI application: health, readiness, a page, and visits that can be counted again."""
    method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "/")
    headers: dict[str, str] = {}
    try:
        status, body = serve(method, path)
    except Exception as error:  # noqa: BLE001 - a caller gets an answer whatever happens, the log the error
        away = type(error).__module__.partition(".")[0] in ("psycopg", "botocore")
        status, body = "500 Internal Server Error", {"error": "The service made a mistake."}
        if away:
            status, body = "503 Service Unavailable", {"error": "The database is away."}
            headers["Retry-After"] = "1"
        print(json.dumps({"level": "ERROR", "path": path, "error": told(error)}), flush=True)
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
    if (
        path == "/healthz" and reading
    ):  # the process; what restarts it must not hang on the database
        return "200 OK", {"status": "ok"}
    if path == "/readyz" and reading:
        query("SELECT 1")
        return "200 OK", {"status": "ready"}
    if path == "/visits" and reading:
        return "200 OK", {"visits": query("SELECT count(*) FROM visits")[0][0]}
    if path == "/" and reading:
        count = query("SELECT count(*) FROM visits")[0][0]
        return "200 OK", f"<!doctype html><title>tap-stack</title><p>{count} visits.</p>"
    if (visit := VISIT.fullmatch(path)) and method == "PUT":
        query("INSERT INTO visits (id) VALUES (%s) ON CONFLICT DO NOTHING", visit[1])
        return "200 OK", {"id": visit[1]}
    if path in ("/", "/healthz", "/readyz", "/visits") or visit:
        return "405 Method Not Allowed", {"error": f"{method} is not allowed here."}
    return "404 Not Found", {"error": "There is no such page."}


def query(statement: str, *values: Any) -> list[Any]:
    """The rows of a statement that may be repeated: a lost connection is made again, in time.

    Goes on for DATABASE_SECONDS, through a restart or failover of the database and a rotation of
    its password; then raises psycopg's OperationalError.
    """
    import psycopg

    deadline, wait = time.monotonic() + DATABASE_SECONDS, 0.05
    while True:
        try:
            cursor = connection().execute(statement, values)
            return cursor.fetchall() if cursor.description else []
        except (psycopg.OperationalError, psycopg.InterfaceError):
            forget_connection()
            if time.monotonic() + wait > deadline:
                raise
        time.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - jitter, not a secret
        wait = min(2 * wait, 1.0)


def connection() -> Any:
    """This thread's connection, made with the password that holds now."""
    found = getattr(_thread, "connection", None)
    if found is None or found.closed:
        found = _thread.connection = connect()
    return found


def connect() -> Any:
    """A new connection over verified TLS; its secret is read each time, so it can be rotated."""
    import psycopg

    answered = client("secretsmanager").get_secret_value(SecretId=os.environ["SECRET_ARN"])
    secret = json.loads(answered["SecretString"])
    made = psycopg.connect(
        host=os.environ["DATABASE_HOST"],
        port=int(os.environ["DATABASE_PORT"]),
        dbname=os.environ["DATABASE_NAME"],
        user=secret["username"],
        password=secret["password"],
        sslmode="verify-full",
        sslrootcert=os.environ["DATABASE_CA"],
        connect_timeout=CONNECT_SECONDS,
        tcp_user_timeout=STATEMENT_MS,
        options=f"-c statement_timeout={STATEMENT_MS}",
        autocommit=True,
    )
    with contextlib.suppress(psycopg.errors.UniqueViolation):  # another thread makes it right now
        made.execute(
            "CREATE TABLE IF NOT EXISTS visits (id uuid PRIMARY KEY, at timestamptz DEFAULT now())"
        )
    return made


def forget_connection() -> None:
    """Closes this thread's connection, if it has one."""
    import psycopg

    found, _thread.connection = getattr(_thread, "connection", None), None
    if found is not None:
        with contextlib.suppress(psycopg.Error):  # it was no use any more
            found.close()


###############################################################################
# Bundles
###############################################################################

# What the python3.13 runtime can import.
LAMBDA_MODULES = sys.stdlib_module_names | {"boto3", "botocore"}
INSTANCE_MODULES = LAMBDA_MODULES | {"psycopg"}  # what WEB_PACKAGES adds


class BundleError(pulumi.RunError, ValueError):
    """A function needs a name that cannot be shipped to Lambda."""


def bundle(
    handler: Callable[..., Any],
    init: Callable[[], None] | None = None,
    modules: Set[str] = LAMBDA_MODULES,
) -> str:
    """The source of `index.py` for one Lambda function: the definitions that its handler reaches.

    Names are resolved from the syntax tree of the handler's own file, in its order, so that the
    text changes only when code that the function runs does. Annotations are not followed; they are
    never evaluated. `init` is called once, as the module's last line. Raises BundleError for a name
    that is neither defined in the file nor built in, and for a module that is not there.
    """
    path = Path(handler.__code__.co_filename)
    lines, definitions = _read(path, path.stat().st_mtime_ns)
    reached: dict[str, ast.stmt] = {}
    waiting = [(each.__name__, path.name) for each in (handler, init) if each]
    while waiting:
        name, user = waiting.pop()
        if name in reached:
            continue
        if name not in definitions:
            raise BundleError(
                f"{user} uses {name}, which {path.name} does not define at its top level"
            )
        reached[name] = definitions[name]
        _check_imports(name, definitions[name], modules)
        waiting += [(used, name) for used in _free_names(definitions[name])]
    parts = [
        _text(lines, node, reached)
        for node in dict.fromkeys(definitions.values())
        if node in reached.values()
    ]
    calls = [f"{init.__name__}()"] if init else []
    return "\n\n".join(["from __future__ import annotations", *dict.fromkeys(parts), *calls]) + "\n"


@functools.cache  # every function of a program comes from the same file
def _read(path: Path, _changed: int) -> tuple[list[str], dict[str, ast.stmt]]:
    """A file's lines and what its top level defines; read again when it has changed."""
    source = path.read_text(encoding="utf-8")
    return source.splitlines(), _definitions(ast.parse(source))


def _definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """Name -> statement of the top level that binds it."""
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update({alias.asname or alias.name.split(".")[0]: node for alias in node.names})
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [
                each
                for target in targets
                for each in ast.walk(target)
                if isinstance(each, ast.Name)
            ]
            found.update({each.id: node for each in names})
    return found


class _Unannotated(ast.NodeTransformer):
    """Drops annotations, whose names are never looked up."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        return self.generic_visit(
            ast.Assign([node.target], node.value) if node.value else ast.Pass()
        )


@functools.cache
def _free_names(node: ast.stmt) -> list[str]:
    """The global names that a definition uses, without built-ins and what it makes itself."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return []
    bare = _Unannotated().visit(node)  # in place: what is shipped is the text, by its lines
    top = symtable.symtable(ast.unparse(ast.fix_missing_locations(bare)), "<bundle>", "exec")
    own = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned()}
    names, tables = set(), [top]
    while tables:
        scope = tables.pop()
        tables += scope.get_children()
        names |= {
            each.get_name()
            for each in scope.get_symbols()
            if each.is_referenced() and (each.is_global() or scope is top)
        }
    return sorted(names - own - set(dir(builtins)) - {"__name__"})


def _check_imports(user: str, definition: ast.stmt, known: Set[str]) -> None:
    for node in ast.walk(definition):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if missing := [module for module in modules if module.split(".")[0] not in known]:
            raise BundleError(
                f"a Lambda function uses {user} of {missing[0]}, which its runtime does not have"
            )


def _text(lines: Sequence[str], node: ast.stmt, reached: Mapping[str, ast.stmt]) -> str:
    """A statement as it stands in the file; of an import only the names that are used."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        used = [
            alias for alias in node.names if (alias.asname or alias.name.split(".")[0]) in reached
        ]
        names = ", ".join(ast.unparse(alias) for alias in used)
        return (
            f"from {node.module} import {names}"
            if isinstance(node, ast.ImportFrom)
            else f"import {names}"
        )
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
    return "\n".join(lines[first - 1 : node.end_lineno])


###############################################################################
# Components
###############################################################################


def tagged(tags: Mapping[str, str]) -> ResourceOptions:
    """Options that tag every taggable descendant; tags nearer to the resource win."""

    def add(args: pulumi.ResourceTransformationArgs) -> pulumi.ResourceTransformationResult | None:
        if not isinstance(getattr(type(args.resource), "tags", None), property):
            return None
        props: dict[str, Any] = dict(args.props)
        near = props.get("tags") or {}
        if args.type_ != "aws:autoscaling/group:Group":
            return pulumi.ResourceTransformationResult(
                {**props, "tags": {**tags, **near}}, args.opts
            )
        # Alone among all, a group has its tags as a list, and may give them to its instances.
        whole = {**tags, **{each["key"]: each["value"] for each in near}}
        listed = [{"key": k, "value": v, "propagate_at_launch": False} for k, v in whole.items()]
        return pulumi.ResourceTransformationResult({**props, "tags": listed}, args.opts)

    return ResourceOptions(transformations=[add])


class Component(pulumi.ComponentResource):
    """Base of every part: typed by its class name, tagged, the parent of what it makes."""

    def __init__(self, name: str, args: TapStackArgs, opts: ResourceOptions | None, role: str):
        tags = {**args.all_tags(), "Component": role}
        super().__init__(
            f"tap:stack:{type(self).__name__}",
            name,
            None,
            ResourceOptions.merge(tagged(tags), opts),
        )
        self.name, self.args = name, args
        self.child = ResourceOptions(parent=self)
        #: Options of what must not be lost: protected where the settings say so.
        self.keep = ResourceOptions(parent=self, protect=args.deletion_protection)


@dataclass(frozen=True)
class Place:
    """Where the stack is: what ARNs and conditions are made of."""

    account: Output[str]
    region: Output[str]
    partition: Output[str]

    @classmethod
    def current(cls) -> Place:
        """The account, region and partition of the default provider."""
        return cls(
            account=aws.get_caller_identity_output().account_id,
            region=aws.get_region_output().region,
            partition=aws.get_partition_output().partition,
        )

    def global_name(self, name: str) -> Output[str]:
        """A name that no other account has: buckets of all accounts share one namespace."""
        return Output.concat(name, "-", self.account)

    def bucket_arn(self, bucket: Input[str]) -> Output[str]:
        """The ARN of a bucket."""
        return Output.format("arn:{0}:s3:::{1}", self.partition, bucket)

    def balancers_arn(self) -> Output[str]:
        """The ARNs of all load balancers here, as a pattern."""
        return self.arn("elasticloadbalancing", "loadbalancer/*")

    def arn(self, service: str, resource: Input[str]) -> Output[str]:
        """The ARN of something in this account and region."""
        return Output.format(
            "arn:{0}:{1}:{2}:{3}:{4}", self.partition, service, self.region, self.account, resource
        )


@dataclass(frozen=True)
class Alarm:
    """One row of the alarm table: `metric` beyond a threshold in so many of so many periods."""

    key: str  # names the alarm and, unless `section` does, its section in docs/operations.md
    metric: str  # "<namespace>/<name>"
    dimensions: Mapping[str, Input[str]]
    above: float | None = None
    below: float | None = None  # instead
    silence: str = "notBreaching"  # what missing data means
    statistic: str = "Sum"  # or a percentile such as p95
    seconds: int = 60
    datapoints: tuple[int, int] = (1, 1)  # M of N
    section: str = ""


RUNBOOK = "docs/operations.md"  # has a section for every alarm key


def metric_alarm(
    name: str,
    args: TapStackArgs,
    alarm: Alarm,
    actions: Sequence[Input[str]] = (),
    opts: ResourceOptions | None = None,
) -> aws.cloudwatch.MetricAlarm:
    """The resource for a row of the alarm table; $0.10 a month."""
    namespace, _, metric = alarm.metric.rpartition("/")
    percentile = alarm.statistic.startswith("p")
    section = alarm.section or alarm.key
    way, threshold = ("below", alarm.below) if alarm.above is None else ("above", alarm.above)
    return aws.cloudwatch.MetricAlarm(
        name,
        name=args.name(alarm.key),
        alarm_description=f"{metric} {way} {threshold:g}. What to do: {RUNBOOK}#{section}",
        namespace=namespace,
        metric_name=metric,
        dimensions=alarm.dimensions,
        statistic=None if percentile else alarm.statistic,
        extended_statistic=alarm.statistic if percentile else None,
        comparison_operator="GreaterThanThreshold" if way == "above" else "LessThanThreshold",
        threshold=threshold,
        period=alarm.seconds,
        datapoints_to_alarm=alarm.datapoints[0],
        evaluation_periods=alarm.datapoints[1],
        treat_missing_data=alarm.silence,
        alarm_actions=actions,
        ok_actions=actions,
        opts=opts,
    )


def target_tracking(
    name: str,
    physical_name: str,
    scaled: tuple[str, Input[str]],
    dimension: str,
    metric: str,
    limits: tuple[int, int],
    target: float,
    opts: ResourceOptions,
) -> aws.appautoscaling.Policy:
    """Lets a service's number follow its use: `scaled` is the service and which of its things.

    Application Auto Scaling is free; its alarms are its own.
    """
    service_name, identity = scaled
    within = aws.appautoscaling.Target(
        f"{name}-range",
        service_namespace=service_name,
        resource_id=identity,
        scalable_dimension=dimension,
        min_capacity=limits[0],
        max_capacity=limits[1],
        opts=opts,
    )
    return aws.appautoscaling.Policy(
        f"{name}-scaling",
        name=physical_name,
        policy_type="TargetTrackingScaling",
        service_namespace=within.service_namespace,
        resource_id=within.resource_id,
        scalable_dimension=within.scalable_dimension,
        target_tracking_scaling_policy_configuration={
            "target_value": target,
            "predefined_metric_specification": {"predefined_metric_type": metric},
        },
        opts=opts,
    )


@dataclass(frozen=True)
class Graph:
    """One graph of the dashboard: metrics as (namespace, name, dimensions, statistic)."""

    title: str
    metrics: Sequence[tuple[str, str, Mapping[str, Input[str]], str]]


###############################################################################
# Encryption
###############################################################################


KEY_USE = tuple(
    f"kms:{action}"
    for action in (
        "Decrypt DescribeKey Encrypt GenerateDataKey GenerateDataKeyWithoutPlaintext "
        "ReEncryptFrom ReEncryptTo"
    ).split()
)
KEY_MANAGEMENT = tuple(
    f"kms:{action}"
    for action in (
        "CancelKeyDeletion CreateAlias CreateGrant DeleteAlias DisableKey DisableKeyRotation "
        "EnableKey EnableKeyRotation GetKeyPolicy GetKeyRotationStatus ListGrants ListKeyPolicies "
        "ListKeyRotations ListResourceTags PutKeyPolicy RevokeGrant RotateKeyOnDemand "
        "ScheduleKeyDeletion TagResource UntagResource UpdateAlias UpdateKeyDescription"
    ).split()
)


#: What publishes to the encrypted topic, and so needs its key.
PUBLISHERS = ("cloudwatch.amazonaws.com", "budgets.amazonaws.com", "events.rds.amazonaws.com")


class Encryption(Component):
    """The customer-managed key of a stack, rotated every year, and its alias. $1 a month.

    Its policy hands the decision to IAM, action by action, and lets logs, alarms and budgets of
    this account, and the databases' events, encrypt what they deliver.
    """

    def __init__(self, name: str, args: TapStackArgs, opts: ResourceOptions | None = None):
        super().__init__(name, args, opts, role="encryption")
        self.place = Place.current()
        self.scaling_role = self._scaling_role() if "web" in args.systems else None
        #: ARN of the role that starts instances with encrypted volumes, empty without a web tier.
        self.scaling_role_arn: Input[str] = self.scaling_role.arn if self.scaling_role else ""
        self.key = self._key()
        #: ARN of the key, for every resource that encrypts.
        self.key_arn = self.key.arn
        self.alias = aws.kms.Alias(
            f"{name}-alias",
            name=f"alias/{args.project}-{args.environment_suffix}",
            target_key_id=self.key.key_id,
            opts=self.child,
        )
        self.register_outputs({"key_arn": self.key_arn})

    def _scaling_role(self) -> aws.iam.ServiceLinkedRole:
        # One of this stack's own: a key policy can name it before there is any group.
        return aws.iam.ServiceLinkedRole(
            f"{self.name}-scaling-role",
            aws_service_name="autoscaling.amazonaws.com",
            custom_suffix=f"{self.args.project}-{self.args.environment_suffix}",
            description="Starts instances with volumes under the stack's key",
            opts=self.child,
        )

    def _key(self) -> aws.kms.Key:
        return aws.kms.Key(
            f"{self.name}-key",
            description=f"Everything of {self.args.project} in {self.args.environment_suffix}",
            enable_key_rotation=True,
            deletion_window_in_days=30 if self.args.deletion_protection else 7,
            policy=self._policy(),
            opts=self.keep,
        )

    def _policy(self) -> Output[str]:
        place, this_key = self.place, "*"  # in a key's own policy, * is that key
        root = Output.format("arn:{0}:iam::{1}:root", place.partition, place.account)
        here = {"StringEquals": {"aws:SourceAccount": place.account}}
        groups = {
            "ArnLike": {"kms:EncryptionContext:aws:logs:arn": place.arn("logs", "log-group:*")}
        }
        logs = Output.format("logs.{0}.amazonaws.com", place.region)
        scaling = {"AWS": self.scaling_role_arn}
        granted = {"Bool": {"kms:GrantIsForAWSResource": "true"}}
        volumes = [
            {**allow(*KEY_USE, on=this_key), "Principal": scaling},
            {**allow("kms:CreateGrant", on=this_key, when=granted), "Principal": scaling},
        ]
        return policy(
            *(volumes if self.scaling_role else []),
            {**allow(*KEY_USE, *KEY_MANAGEMENT, on=this_key), "Principal": {"AWS": root}},
            {**allow(*KEY_USE, on=this_key, when=groups), "Principal": {"Service": logs}},
            *(
                trust(service, "kms:Decrypt", "kms:GenerateDataKey", on=this_key, when=here)
                for service in PUBLISHERS
            ),
        )


###############################################################################
# Alerts
###############################################################################


class Alerts(Component):
    """The encrypted topic of alarms and budget, its e-mail subscribers, the budget.

    The first two budgets of an account are free; e-mail costs nothing worth counting.
    """

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        *,
        key_arn: Input[str],
        opts: ResourceOptions | None = None,
    ):
        super().__init__(name, args, opts, role="alerts")
        self.topic = aws.sns.Topic(
            f"{name}-topic", name=args.name("alerts"), kms_master_key_id=key_arn, opts=self.child
        )
        #: ARN of the topic, for alarm actions.
        self.topic_arn = self.topic.arn
        self.topic_policy = self._topic_policy()
        self.emails = [self._email(address) for address in args.alarm_emails]
        self.budget = self._budget()
        self.register_outputs({"topic_arn": self.topic_arn})

    def _topic_policy(self) -> aws.sns.TopicPolicy:
        place = Place.current()
        account = {"StringEquals": {"aws:SourceAccount": place.account}}
        alarms = {**account, "ArnLike": {"aws:SourceArn": place.arn("cloudwatch", "alarm:*")}}
        databases = {**account, "ArnLike": {"aws:SourceArn": place.arn("rds", "db:*")}}
        document = policy(
            trust("cloudwatch.amazonaws.com", "sns:Publish", on=self.topic.arn, when=alarms),
            trust("budgets.amazonaws.com", "sns:Publish", on=self.topic.arn, when=account),
            trust("events.rds.amazonaws.com", "sns:Publish", on=self.topic.arn, when=databases),
            tls_only("sns:Publish", self.topic.arn),
        )
        return aws.sns.TopicPolicy(
            f"{self.name}-topic-policy", arn=self.topic.arn, policy=document, opts=self.child
        )

    def _email(self, address: str) -> aws.sns.TopicSubscription:
        return aws.sns.TopicSubscription(
            f"{self.name}-email-{address}",
            topic=self.topic.arn,
            protocol="email",
            endpoint=address,
            opts=self.child,
        )

    def _budget(self) -> aws.budgets.Budget:
        def notify(kind: str, percent: int) -> aws.budgets.BudgetNotificationArgsDict:
            return {
                "comparison_operator": "GREATER_THAN",
                "notification_type": kind,
                "threshold": percent,
                "threshold_type": "PERCENTAGE",
                "subscriber_sns_topic_arns": [self.topic.arn],
            }

        return aws.budgets.Budget(
            f"{self.name}-budget",
            name=self.args.name("monthly"),
            budget_type="COST",
            limit_amount=f"{self.args.budget_usd}.0",  # as AWS gives it back
            limit_unit="USD",
            time_unit="MONTHLY",
            # Counts what carries the tag, once Project is activated as a cost allocation tag.
            cost_filters=[{"name": "TagKeyValue", "values": [f"user:Project${self.args.project}"]}],
            notifications=[notify("ACTUAL", 80), notify("FORECASTED", 100)],
            opts=ResourceOptions(
                parent=self, depends_on=[self.topic_policy]
            ),  # AWS tests the topic on creation
        )


###############################################################################
# Releases
###############################################################################
# A release runs where `pulumi up` does: the provider below is pickled with what it uses, and the
# engine starts it in a process of its own, also to continue what an earlier run left half done.

WATCH_SECONDS = 10  # between two looks at the alarms; CloudWatch evaluates them every minute
CALM_SECONDS = 120  # how long alarms that are red already may take to calm down
SMOKE_PAUSES = (1, 2, 4, 8, 16)  # a policy attached seconds ago may not hold yet
BUSY_SECONDS = 600  # how long Lambda may take to publish a version or to allocate concurrency


class ReleaseError(Exception):
    """Why a version does not take the traffic, and which one has it."""


def shares_of(alias: Mapping[str, Any]) -> Mapping[str, float]:
    """Version -> the share that it has of the alias's traffic beside the alias's own version."""
    return (alias.get("RoutingConfig") or {}).get("AdditionalVersionWeights") or {}


class Release:
    """Moves an alias to a version: smoke test, a share of the traffic, all of it, or back.

    What has been done stands in the alias alone, and each step asks it first: a release that was
    killed anywhere is finished by the next one, and one of another version is taken back. Until the
    last step the alias's own version has all the traffic but the share. The plan has the inputs of
    `Rollout`; `functions` and `alarms` are the SDK's clients of Lambda and CloudWatch.

    While an alias has weights Lambda refuses to change its provisioned concurrency, which serves
    only the version that the alias names: the new one starts cold on its share (developer guide,
    "Configuring provisioned concurrency"). Both versions must have the same role and dead-letter
    queue, and be published ("Create an alias for a Lambda function", weighted alias).
    """

    def __init__(
        self,
        functions: Any,
        alarms: Any,
        plan: Mapping[str, Any],
        sleep: Callable[[float], None],
    ):
        self.functions, self.alarms, self.plan, self.sleep = functions, alarms, plan, sleep
        self.version, self.revision = plan["version"], ""
        self.label = f"{plan['function'].split(':')[-1]}: version {self.version}"

    def run(self) -> None:
        """All steps from where the alias stands; ReleaseError when the version is not good."""
        before, shares = self.alias()
        if shares:
            self.move(before)  # an earlier release was killed here
        self.smoke(before)
        if before != self.version:
            if self.plan["percent"] < 100:
                self.share(before)
            self.move(self.version)
        self.prune()

    def alias(self) -> tuple[str, Mapping[str, float]]:
        """The alias's version, and the shares that others have of its traffic."""
        alias = self.functions.get_alias(
            FunctionName=self.plan["function"], Name=self.plan["alias"]
        )
        self.revision = alias["RevisionId"]
        return alias["FunctionVersion"], shares_of(alias)

    def move(self, version: str, **shares: float) -> None:
        """Gives a version all the traffic, but for shares of others."""
        try:
            alias = self._patiently(
                self.functions.update_alias,
                Name=self.plan["alias"],
                FunctionVersion=version,
                RoutingConfig={"AdditionalVersionWeights": shares},
                RevisionId=self.revision,
            )
        except self.functions.exceptions.PreconditionFailedException as error:
            raise ReleaseError(
                f"{self.label} was given up: somebody else has moved the alias meanwhile"
            ) from error
        self.revision = alias["RevisionId"]

    def smoke(self, before: str) -> None:
        """Calls the version itself, before anybody else does, until it answers well."""
        for pause in SMOKE_PAUSES:
            if not self._failure():
                return
            self.sleep(pause)
        if failure := self._failure():
            raise ReleaseError(
                f"{self.label} failed its smoke test; {before} has the traffic: {failure}"
            )

    def _failure(self) -> str:
        answer = self._patiently(
            self.functions.invoke, Qualifier=self.version, Payload=self.plan["smoke"].encode()
        )
        text = answer["Payload"].read().decode()
        said = json.loads(text)
        status = said.get("statusCode", 200) if isinstance(said, dict) else 200
        return text[:500] if "FunctionError" in answer or status >= 400 else ""

    def share(self, before: str) -> None:
        """Gives the version its share while alarms are watched, and takes it back on trouble."""
        if red := self._red_after(CALM_SECONDS):
            raise ReleaseError(
                f"{self.label} was not begun, and {before} goes on, for there are alarms already: "
                f"{red}. Wait until they are over, or release all at once, unwatched: "
                "pulumi up -c canary_percent=100"
            )
        self.move(before, **{self.version: self.plan["percent"] / 100})
        try:
            self._watch()
        except Exception as error:
            self.move(before)
            raise ReleaseError(f"{self.label} was rolled back to {before}: {error}") from error

    def _red_after(self, seconds: float) -> str:
        for _ in range(int(seconds // WATCH_SECONDS)):
            if not self.red():
                return ""
            self.sleep(WATCH_SECONDS)
        return self.red()

    def _watch(self) -> None:
        waited = 0.0
        while waited < self.plan["seconds"]:
            pause = min(WATCH_SECONDS, self.plan["seconds"] - waited)
            self.sleep(pause)
            waited += pause
            if red := self.red():
                raise ReleaseError(red)

    def red(self) -> str:
        """The watched alarms that are in alarm, with their reasons; each of them must exist."""
        wanted = list(self.plan["alarms"])
        found = self.alarms.describe_alarms(AlarmNames=wanted)["MetricAlarms"]
        if missing := sorted(set(wanted) - {alarm["AlarmName"] for alarm in found}):
            raise ReleaseError(
                f"there is no alarm {', '.join(missing)}, and nothing would notice a bad version; "
                "create it, or set canary_percent to 100"
            )
        return "; ".join(
            f"{alarm['AlarmName']} ({alarm['StateReason']})"
            for alarm in found
            if alarm["StateValue"] == "ALARM"
        )

    def prune(self) -> None:
        """Deletes what is older than the versions to keep and named by no alias."""
        listed = self._pages("list_versions_by_function", "Versions")
        numbers = sorted(int(each["Version"]) for each in listed if each["Version"].isdigit())
        named = set()
        for alias in self._pages("list_aliases", "Aliases"):
            named |= {alias["FunctionVersion"], *shares_of(alias)}
        for number in numbers[: -int(self.plan["keep"])]:
            if str(number) not in named:
                self.functions.delete_function(
                    FunctionName=self.plan["function"], Qualifier=str(number)
                )

    def _pages(self, operation: str, key: str) -> list[Mapping[str, Any]]:
        pages = self.functions.get_paginator(operation).paginate(FunctionName=self.plan["function"])
        return [each for page in pages for each in page[key]]

    def _patiently(self, call: Callable[..., Any], **arguments: Any) -> Any:
        """A call of Lambda, repeated while it or the function is busy."""
        errors = self.functions.exceptions
        for _ in range(BUSY_SECONDS // WATCH_SECONDS):
            with contextlib.suppress(
                errors.ResourceConflictException, errors.TooManyRequestsException
            ):
                return call(FunctionName=self.plan["function"], **arguments)
            self.sleep(WATCH_SECONDS)
        return call(FunctionName=self.plan["function"], **arguments)


class RolloutProvider(pulumi.dynamic.ResourceProvider):
    """What the engine calls for a `Rollout`, with the credentials of whoever runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.profile: str | None = None
        self.sleep: Callable[[float], None] = time.sleep

    def configure(self, req: pulumi.dynamic.ConfigureRequest) -> None:
        """Takes the AWS profile from the stack's configuration."""
        self.profile = req.config.get("aws:profile")
        sys.tracebacklimit = 0  # the engine shows a failure as its traceback: the message says all

    def diff(
        self, _id: str, olds: dict[str, Any], news: dict[str, Any]
    ) -> pulumi.dynamic.DiffResult:
        """Another version or plan is a change; other code of this provider is not."""
        keys = [key for key in news if not key.startswith("__")]
        return pulumi.dynamic.DiffResult(
            changes=any(olds.get(key) != news[key] for key in keys),
            replaces=["function"] if olds["function"] != news["function"] else [],
        )

    def create(self, props: dict[str, Any]) -> pulumi.dynamic.CreateResult:
        """Brings the alias, whatever it names, to the version."""
        self.release(props)
        return pulumi.dynamic.CreateResult(f"{props['function']}:{props['alias']}", props)

    def update(
        self, _id: str, _olds: dict[str, Any], news: dict[str, Any]
    ) -> pulumi.dynamic.UpdateResult:
        """The same."""
        self.release(news)
        return pulumi.dynamic.UpdateResult(news)

    def read(self, id_: str, props: dict[str, Any]) -> pulumi.dynamic.ReadResult:
        """The version that the alias names now, for `pulumi refresh`; nothing if it is gone."""
        functions = self.client("lambda", props)
        try:
            live, _ = Release(functions, None, props, self.sleep).alias()
        except functions.exceptions.ResourceNotFoundException:
            return pulumi.dynamic.ReadResult("", {})
        return pulumi.dynamic.ReadResult(id_, {**props, "version": live})

    def release(self, plan: Mapping[str, Any]) -> None:
        """Runs a release against AWS."""
        functions, alarms = self.client("lambda", plan), self.client("cloudwatch", plan)
        Release(functions, alarms, plan, self.sleep).run()

    def client(self, service: str, plan: Mapping[str, Any]) -> Any:
        """The SDK's client of a service where the function is."""
        import boto3
        from botocore.config import Config

        session = boto3.Session(profile_name=self.profile)
        # A smoke test answers within the longest run of a function.
        patient = Config(read_timeout=920, retries={"mode": "standard", "total_max_attempts": 8})
        return session.client(service, region_name=plan["function"].split(":")[3], config=patient)


class Rollout(pulumi.dynamic.Resource, module="tap", name="Rollout"):
    """The only one that moves a function's alias: gradually, watched, and back on trouble.

    `version` takes the traffic that the alias gets, after a call with the `smoke` event, and then
    `percent` of the traffic for so many `seconds` without one of the `alarms`. `keep` is how many
    versions stay for going back. Fails the update with the reason when the version is not good.
    """

    def __init__(
        self,
        name: str,
        *,
        function: Input[str],
        alias: Input[str],
        version: Input[str],
        smoke: str,
        percent: int,
        seconds: int,
        alarms: Sequence[Input[str]],
        keep: int,
        opts: ResourceOptions | None = None,
    ):
        plan = {
            "function": function,
            "alias": alias,
            "version": version,
            "smoke": smoke,
            "percent": percent,
            "seconds": seconds,
            "alarms": alarms,
            "keep": keep,
        }
        super().__init__(RolloutProvider(), name, plan, opts)


###############################################################################
# Functions
###############################################################################


def metrics_environment(args: TapStackArgs) -> dict[str, Input[str]]:
    """What a function's log lines say of their metrics."""
    return {"ENVIRONMENT": args.environment_suffix, "METRICS_NAMESPACE": args.project}


EVENT_AGE_MS = 600_000  # attempts two and three come after 1 and 2 minutes: older events wait


class Function(Component):
    """A Lambda function from a Python handler: role, log group, published versions, alias `live`.

    `statements` is all that it may do beyond logging, tracing and opening its own environment. With
    `event_hours`, it is called asynchronously: three attempts within so many hours, and a queue
    that keeps for 14 days, with its error, what they could not do.
    A new version is called with the event `smoke` before it has traffic, and it has a share at
    first while the alarms of the keys `watch`, and two of its own, are quiet; without any, or where
    `canary_percent` is 100, all at once. `slow_ms` is what 95 % of the calls must be faster than,
    80 % of the timeout by default.
    `concurrency` is reserved for it and cannot be exceeded; 0 is the account's pool.
    Costs what runs: $0.20 a million calls and $0.0000133334 a GB-second (arm64); the queue is free
    when idle.
    """

    RUNTIME = "python3.13"

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        *,
        role: str,
        handler: Callable[..., Any],
        key_arn: Input[str],
        environment: Mapping[str, Input[str]],
        statements: Sequence[Mapping[str, Any]],
        timeout_seconds: int,
        smoke: Mapping[str, Any],
        watch: Sequence[str] = (),
        slow_ms: int = 0,
        memory_mb: int = 256,
        init: Callable[[], None] | None = None,
        event_hours: int = 0,
        concurrency: int = 0,
        opts: ResourceOptions | None = None,
    ):
        super().__init__(name, args, opts, role=role)
        self.concurrency = concurrency
        self.purpose, self.physical_name = role, args.name(role)
        self.key_arn, self.timeout_seconds = key_arn, timeout_seconds
        self.slow_ms = slow_ms or 800 * timeout_seconds
        self.dead_letter_queue = self._dead_letter_queue() if event_hours else None
        self.logs = self._logs()
        self.role = self._role()
        self.role_policy = self._role_policy(statements)
        self.function = self._function(handler, init, environment, memory_mb)
        #: What callers invoke: the alias `live`, which a release moves from version to version.
        self.alias = self._alias()
        #: Dimensions of the metrics of calls through the alias; a smoke test is not one.
        self.live: dict[str, Input[str]] = {
            "FunctionName": self.function.name,
            "Resource": Output.concat(self.function.name, ":live"),
        }
        self.rollout = self._rollout(smoke, watch)
        self.retries = self._retries(event_hours) if event_hours else None
        #: URL of the queue of dead letters, empty where there is none.
        queue = self.dead_letter_queue
        self.dead_letters_url: Input[str] = queue.url if queue else ""
        self.register_outputs({"function_name": self.function.name, "alias_arn": self.alias.arn})

    def _dead_letter_queue(self) -> aws.sqs.Queue:
        queue = aws.sqs.Queue(
            f"{self.name}-dead-letters",
            name=f"{self.physical_name}-dead-letters",
            kms_master_key_id=self.key_arn,
            message_retention_seconds=14 * 24 * 3600,
            opts=self.child,
        )
        document = policy(tls_only("sqs:*", queue.arn))  # a Deny: every action
        aws.sqs.QueuePolicy(
            f"{self.name}-dead-letters-policy",
            queue_url=queue.url,
            policy=document,
            opts=self.child,
        )
        return queue

    def _logs(self) -> aws.cloudwatch.LogGroup:
        return aws.cloudwatch.LogGroup(
            f"{self.name}-logs",
            name=f"/aws/lambda/{self.physical_name}",
            retention_in_days=self.args.log_retention_days,
            kms_key_id=self.key_arn,
            opts=self.child,
        )

    def _role(self) -> aws.iam.Role:
        document = policy(trust("lambda.amazonaws.com", "sts:AssumeRole"))
        return aws.iam.Role(
            f"{self.name}-role",
            name=self.physical_name,
            description=f"What {self.physical_name} may do",
            assume_role_policy=document,
            opts=self.child,
        )

    def _role_policy(self, statements: Sequence[Mapping[str, Any]]) -> aws.iam.RolePolicy:
        streams = Output.format("{0}:*", self.logs.arn)
        queue = self.dead_letter_queue
        document = policy(
            allow("logs:CreateLogStream", "logs:PutLogEvents", on=streams),
            allow(
                "xray:PutTelemetryRecords", "xray:PutTraceSegments", on="*"
            ),  # X-Ray has no resources to name
            allow("kms:Decrypt", "kms:GenerateDataKey", on=self.key_arn),
            *statements,
            *([allow("sqs:SendMessage", on=queue.arn)] if queue else []),
        )
        return aws.iam.RolePolicy(
            f"{self.name}-role-policy",
            name=self.physical_name,
            role=self.role.name,
            policy=document,
            opts=self.child,
        )

    def _function(
        self,
        handler: Callable[..., Any],
        init: Callable[[], None] | None,
        environment: Mapping[str, Input[str]],
        memory_mb: int,
    ) -> aws.lambda_.Function:
        source = pulumi.StringAsset(bundle(handler, init))
        return aws.lambda_.Function(
            f"{self.name}-function",
            name=self.physical_name,
            description=(handler.__doc__ or "").split("\n")[0],
            runtime=self.RUNTIME,
            architectures=["arm64"],
            handler=f"index.{handler.__name__}",
            code=pulumi.AssetArchive({"index.py": source}),
            role=self.role.arn,
            memory_size=memory_mb,
            timeout=self.timeout_seconds,
            reserved_concurrent_executions=self.concurrency or None,
            publish=True,
            environment={"variables": environment},
            kms_key_arn=self.key_arn,
            tracing_config={"mode": "Active"},
            logging_config={
                "log_format": "JSON",
                "log_group": self.logs.name,
                "application_log_level": "INFO",
                # START and REPORT lines would triple the bill; the metrics say the same.
                "system_log_level": "WARN",
            },
            # The policy must hold before the first call.
            opts=ResourceOptions(parent=self, depends_on=[self.role_policy]),
        )

    def _alias(self) -> aws.lambda_.Alias:
        # Made at the first version; from there on the rollout moves it, and nothing else here may
        # change: an update of this resource would write the version of its creation.
        moved = ["functionVersion", "routingConfig"]
        return aws.lambda_.Alias(
            f"{self.name}-live",
            name="live",
            description="The version that takes the traffic",
            function_name=self.function.name,
            function_version=self.function.version,
            opts=ResourceOptions(parent=self, ignore_changes=moved),
        )

    def _rollout(self, smoke: Mapping[str, Any], watch: Sequence[str]) -> Rollout:
        percent = self.args.canary_percent if watch else 100
        own = self._release_alarms() if percent < 100 else []
        made = [
            metric_alarm(f"{self.name}-{row.key}", self.args, row, opts=self.child) for row in own
        ]
        return Rollout(
            f"{self.name}-rollout",
            function=self.function.arn,
            alias=self.alias.name,
            version=self.function.version,
            smoke=json.dumps(smoke),
            percent=percent,
            seconds=self.args.canary_minutes * 60,
            alarms=[self.args.name(each) for each in (*watch, *(row.key for row in own))],
            keep=self.args.versions_kept,
            # The policies and the alarms of the new version, before it has any traffic.
            opts=ResourceOptions(parent=self, depends_on=[self.role_policy, *made]),
        )

    def _release_alarms(self) -> list[Alarm]:
        """Errors and slowness of the newest version alone, while it has its share."""
        version = {**self.live, "ExecutedVersion": self.function.version}
        return [
            Alarm(
                f"{self.purpose}-release-errors",
                "AWS/Lambda/Errors",
                version,
                above=0,
                section="release-errors",
            ),
            Alarm(
                f"{self.purpose}-release-duration",
                "AWS/Lambda/Duration",
                version,
                above=self.slow_ms,
                statistic="p95",
                section="release-duration",
            ),
        ]

    def _retries(self, event_hours: int) -> aws.lambda_.FunctionEventInvokeConfig:
        # A destination rather than a dead-letter queue: its message also says what went wrong.
        queue = self.dead_letter_queue
        return aws.lambda_.FunctionEventInvokeConfig(
            f"{self.name}-retries",
            function_name=self.function.name,
            qualifier=self.alias.name,
            maximum_retry_attempts=2,
            maximum_event_age_in_seconds=event_hours * 3600,
            destination_config={"on_failure": {"destination": queue.arn}} if queue else None,
            opts=self.child,
        )

    def provision(self, least: int, most: int) -> aws.appautoscaling.Policy:
        """Keeps environments of the live version warm: more of them while 70 % are busy.

        $0.0000033334 a GB-second for each, used or not. The scaler cannot change their number while
        a release has weights on the alias, nor may this: it waits for the rollout.
        """
        kept = aws.lambda_.ProvisionedConcurrencyConfig(
            f"{self.name}-warm",
            function_name=self.function.name,
            qualifier=self.alias.name,
            provisioned_concurrent_executions=least,
            opts=ResourceOptions(
                parent=self,
                depends_on=[self.rollout],
                ignore_changes=["provisionedConcurrentExecutions"],  # the scaler's
            ),
        )
        return target_tracking(
            f"{self.name}-warm",
            self.args.name(f"{self.purpose}-warm"),
            ("lambda", Output.concat("function:", self.live["Resource"])),
            "lambda:function:ProvisionedConcurrency",
            "LambdaProvisionedConcurrencyUtilization",
            (least, most),
            0.7,
            ResourceOptions(parent=self, depends_on=[kept]),
        )

    def every(self, expression: str, description: str) -> aws.scheduler.Schedule:
        """Runs the function on a schedule; what the scheduler cannot start it tries for an hour."""
        here = {"StringEquals": {"aws:SourceAccount": Place.current().account}}
        schedule_name = self.args.name(f"{self.purpose}-schedule")
        role = aws.iam.Role(
            f"{self.name}-schedule-role",
            name=schedule_name,
            description=f"Lets the scheduler start {self.physical_name}",
            assume_role_policy=policy(
                trust("scheduler.amazonaws.com", "sts:AssumeRole", when=here)
            ),
            opts=self.child,
        )
        granted = aws.iam.RolePolicy(
            f"{self.name}-schedule-role-policy",
            name=schedule_name,
            role=role.name,
            policy=policy(
                allow("lambda:InvokeFunction", on=self.alias.arn),
                allow("kms:Decrypt", on=self.key_arn),
            ),
            opts=self.child,
        )
        return aws.scheduler.Schedule(
            f"{self.name}-schedule",
            name=self.physical_name,
            description=description,
            schedule_expression=expression,
            flexible_time_window={"mode": "OFF"},
            kms_key_arn=self.key_arn,
            target={
                "arn": self.alias.arn,
                "role_arn": role.arn,
                "retry_policy": {
                    "maximum_retry_attempts": 10,
                    "maximum_event_age_in_seconds": 3600,
                },
            },
            opts=ResourceOptions(parent=self, depends_on=[granted]),
        )

    def alarms(self) -> list[Alarm]:
        """Errors, throttles and slowness of the function, and its dead letters."""
        function, key = {"FunctionName": self.function.name}, self.purpose
        rows = [
            Alarm(f"{key}-errors", "AWS/Lambda/Errors", self.live, above=0),
            Alarm(
                f"{key}-duration",
                "AWS/Lambda/Duration",
                self.live,
                above=self.slow_ms,
                statistic="p95",
                datapoints=(2, 3),
            ),
        ]
        if not (
            self.concurrency and self.dead_letter_queue
        ):  # where they are not what holds it back
            rows.append(Alarm(f"{key}-throttles", "AWS/Lambda/Throttles", function, above=0))
        if queue := self.dead_letter_queue:
            metric = "AWS/SQS/ApproximateNumberOfMessagesVisible"
            depth = {"QueueName": queue.name}
            rows += [
                Alarm(f"{key}-dead-letters", metric, depth, above=0, statistic="Maximum"),
                Alarm(
                    f"{key}-lost-letters",
                    "AWS/Lambda/DestinationDeliveryFailures",
                    function,
                    above=0,
                ),
                Alarm(
                    f"{key}-event-age",
                    "AWS/Lambda/AsyncEventAge",
                    function,
                    above=EVENT_AGE_MS,
                    statistic="Maximum",
                ),
            ]
        return rows

    def graph(self) -> Graph:
        """Calls, errors, throttles and duration of the function."""
        function = {"FunctionName": self.function.name}
        counts = [
            ("AWS/Lambda", metric, function, "Sum")
            for metric in ("Invocations", "Errors", "Throttles")
        ]
        return Graph(
            f"Function {self.physical_name}", [*counts, ("AWS/Lambda", "Duration", function, "p95")]
        )


###############################################################################
# Tables
###############################################################################

#: What a function needs of a table's key, beyond what opens its own environment.
TABLE_KEY_USE = ("kms:DescribeKey", "kms:Encrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo")


def index(
    name: str, partition_key: str, sort_key: str, **capacity: int
) -> aws.dynamodb.TableGlobalSecondaryIndexArgsDict:
    """A global secondary index that holds all of an item, so that a list needs no second read."""
    return {
        "name": name,
        "key_schemas": [
            {"attribute_name": partition_key, "key_type": "HASH"},
            {"attribute_name": sort_key, "key_type": "RANGE"},
        ],
        "projection_type": "ALL",
        **capacity,  # type: ignore[typeddict-item]
    }


def index_arns(table_of: aws.dynamodb.Table, indexes: Iterable[str]) -> list[Output[str]]:
    """The ARNs of a table's indexes."""
    return [Output.concat(table_of.arn, "/index/", each) for each in indexes]


def throttle_alarms(key: str, table_of: aws.dynamodb.Table, indexes: Iterable[str]) -> list[Alarm]:
    """Alarms for refused reads and writes of a table and of each of its indexes."""
    here: dict[str, Input[str]] = {"TableName": table_of.name}
    places = {key: here}
    for each in indexes:
        places[f"{key}-{each.replace('_', '-')}"] = {**here, "GlobalSecondaryIndexName": each}
    return [
        Alarm(f"{place}-{kind.lower()}-throttles", f"AWS/DynamoDB/{kind}ThrottleEvents", where, 0)
        for place, where in places.items()
        for kind in ("Read", "Write")
    ]


def capacity_graph(title: str, table_of: aws.dynamodb.Table) -> Graph:
    """What is read from and written to a table."""
    kinds = ("ConsumedReadCapacityUnits", "ConsumedWriteCapacityUnits")
    here = {"TableName": table_of.name}
    return Graph(title, [("AWS/DynamoDB", kind, here, "Sum") for kind in kinds])


###############################################################################
# Identity
###############################################################################

#: Scopes of the API: resource server, scope, what it lets its bearer do.
SCOPES = (
    ("items", "read", "Read and list one's own items"),
    ("items", "write", "Create, change and delete one's own items"),
    ("files", "read", "Read and list what is known of one's own files"),
    ("files", "write", "Upload files"),
)


class Identity(Component):
    """Who may call: a Cognito user pool with scopes, a client for people and one for machines.

    People are invited by an administrator. $0.015 a monthly user above 10,000 (Essentials), and
    $0.00225 a token of a machine.
    """

    def __init__(self, name: str, args: TapStackArgs, opts: ResourceOptions | None = None):
        super().__init__(name, args, opts, role="identity")
        self.pool = self._pool()
        self.servers = {
            server: self._server(server) for server in dict.fromkeys(row[0] for row in SCOPES)
        }
        self.scopes = [
            Output.concat(self.servers[server].identifier, "/", scope)
            for server, scope, _ in SCOPES
        ]
        self.people = self._people()
        self.machines = self._machines()
        self.domain = self._domain()
        #: Issuer of the tokens, as a JWT authorizer wants it.
        self.issuer = Output.concat("https://", self.pool.endpoint)
        #: Ids of the clients whose tokens are accepted.
        self.audience = [self.people.id, self.machines.id]
        #: Where people sign in and both clients fetch their tokens (OAuth 2.0).
        self.sign_in_url = Output.format(
            "https://{0}.auth.{1}.amazoncognito.com",
            self.domain.domain,
            aws.get_region_output().region,
        )
        self.register_outputs({"user_pool_id": self.pool.id})

    def _pool(self) -> aws.cognito.UserPool:
        args = self.args
        return aws.cognito.UserPool(
            f"{self.name}-pool",
            name=args.name("users"),
            user_pool_tier="PLUS" if args.threat_protection else "ESSENTIALS",
            username_attributes=["email"],
            username_configuration={"case_sensitive": False},
            auto_verified_attributes=["email"],
            admin_create_user_config={"allow_admin_create_user_only": True},
            password_policy={
                "minimum_length": 14,
                "require_lowercase": True,
                "require_uppercase": True,
                "require_numbers": True,
                "require_symbols": True,
                "temporary_password_validity_days": 3,
            },
            mfa_configuration=args.mfa,
            software_token_mfa_configuration=None if args.mfa == "OFF" else {"enabled": True},
            account_recovery_setting={
                "recovery_mechanisms": [{"name": "verified_email", "priority": 1}]
            },
            deletion_protection="ACTIVE" if args.deletion_protection else "INACTIVE",
            user_pool_add_ons={"advanced_security_mode": "ENFORCED"}
            if args.threat_protection
            else None,
            opts=self.keep,
        )

    def _server(self, server: str) -> aws.cognito.ResourceServer:
        return aws.cognito.ResourceServer(
            f"{self.name}-{server}",
            identifier=server,
            name=server,
            user_pool_id=self.pool.id,
            scopes=[
                {"scope_name": s, "scope_description": doc}
                for owner, s, doc in SCOPES
                if owner == server
            ],
            opts=self.child,
        )

    def _people(self) -> aws.cognito.UserPoolClient:
        return aws.cognito.UserPoolClient(
            f"{self.name}-people",
            name=self.args.name("people"),
            user_pool_id=self.pool.id,
            generate_secret=False,  # an app in a browser cannot keep one: PKCE takes its place
            allowed_oauth_flows_user_pool_client=True,
            allowed_oauth_flows=["code"],
            allowed_oauth_scopes=["openid", "email", *self.scopes],
            callback_urls=self.args.callback_urls,
            supported_identity_providers=["COGNITO"],
            explicit_auth_flows=["ALLOW_REFRESH_TOKEN_AUTH", "ALLOW_USER_SRP_AUTH"],
            opts=self.child,
            **self._tokens(refresh_days=30),
        )

    def _machines(self) -> aws.cognito.UserPoolClient:
        return aws.cognito.UserPoolClient(
            f"{self.name}-machines",
            name=self.args.name("machines"),
            user_pool_id=self.pool.id,
            generate_secret=True,
            allowed_oauth_flows_user_pool_client=True,
            allowed_oauth_flows=["client_credentials"],
            allowed_oauth_scopes=self.scopes,
            supported_identity_providers=["COGNITO"],
            explicit_auth_flows=[
                "ALLOW_REFRESH_TOKEN_AUTH"
            ],  # Cognito wants one; no user can sign in with it
            opts=self.child,
            **self._tokens(refresh_days=1),
        )

    @staticmethod
    def _tokens(refresh_days: int) -> dict[str, Any]:
        return {
            "access_token_validity": 60,
            "id_token_validity": 60,
            "refresh_token_validity": refresh_days,
            "token_validity_units": {
                "access_token": "minutes",
                "id_token": "minutes",
                "refresh_token": "days",
            },
            "enable_token_revocation": True,
            "prevent_user_existence_errors": "ENABLED",
        }

    def _domain(self) -> aws.cognito.UserPoolDomain:
        account = aws.get_caller_identity_output().account_id  # a prefix is unique in its region
        prefix = Output.concat(f"{self.args.project}-{self.args.environment_suffix}-", account)
        return aws.cognito.UserPoolDomain(
            f"{self.name}-domain", domain=prefix, user_pool_id=self.pool.id, opts=self.child
        )


###############################################################################
# Buckets
###############################################################################

#: Days after which an object moves to a cheaper class; S3 leaves those below 128 KB where they are.
COOLER = {30: "STANDARD_IA", 90: "GLACIER_IR"}
LOG_DELIVERY = "logging.s3.amazonaws.com"
BALANCER_LOGS = "logdelivery.elasticloadbalancing.amazonaws.com"


class Bucket(Component):
    """A private bucket: versioned, encrypted, TLS only, its owner's alone, with one lifecycle.

    Encrypted with S3's own keys (AES-256), which cost nothing and which log delivery needs, or
    under `key_arn`. With `delivers_to`, every access is logged there. $0.023 a GB and month, less
    as `COOLER` says.
    """

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        *,
        role: str,
        physical_name: Input[str],
        days: int = 0,
        key_arn: Input[str] | None = None,
        logs_of: Sequence[Input[str]] = (),
        balancer_logs: bool = False,
        delivers_to: Bucket | None = None,
        opts: ResourceOptions | None = None,
    ):
        super().__init__(name, args, opts, role=role)
        self.place = Place.current()
        self.bucket = self._bucket(physical_name)
        self.private = self._private()
        self.ownership = self._ownership()
        self.encryption = self._encryption(key_arn)
        self.versioning = self._versioning()
        self.policy = self._policy(logs_of, balancer_logs)
        self.lifecycle = self._lifecycle(days)
        self.logging = self._logging(delivers_to) if delivers_to else None
        self.register_outputs({"bucket_name": self.bucket.bucket})

    def _bucket(self, physical_name: Input[str]) -> aws.s3.Bucket:
        return aws.s3.Bucket(
            f"{self.name}-bucket",
            bucket=physical_name,
            force_destroy=self.args.tier == "dev",
            opts=self.keep,
        )

    def _private(self) -> aws.s3.BucketPublicAccessBlock:
        return aws.s3.BucketPublicAccessBlock(
            f"{self.name}-private",
            bucket=self.bucket.bucket,
            block_public_acls=True,
            block_public_policy=True,
            ignore_public_acls=True,
            restrict_public_buckets=True,
            opts=self.child,
        )

    def _ownership(self) -> aws.s3.BucketOwnershipControls:
        return aws.s3.BucketOwnershipControls(
            f"{self.name}-ownership",
            bucket=self.bucket.bucket,
            rule={"object_ownership": "BucketOwnerEnforced"},
            opts=self.child,
        )

    def _encryption(
        self, key_arn: Input[str] | None
    ) -> aws.s3.BucketServerSideEncryptionConfiguration:
        by_default: Any = {"sse_algorithm": "AES256"}
        if key_arn is not None:
            by_default = {"sse_algorithm": "aws:kms", "kms_master_key_id": key_arn}
        return aws.s3.BucketServerSideEncryptionConfiguration(
            f"{self.name}-encryption",
            bucket=self.bucket.bucket,
            rules=[
                {
                    "apply_server_side_encryption_by_default": by_default,
                    # One call of KMS for many objects, where there are any.
                    "bucket_key_enabled": key_arn is not None,
                }
            ],
            opts=self.child,
        )

    def _versioning(self) -> aws.s3.BucketVersioning:
        return aws.s3.BucketVersioning(
            f"{self.name}-versioning",
            bucket=self.bucket.bucket,
            versioning_configuration={"status": "Enabled"},
            opts=self.child,
        )

    def _policy(self, logs_of: Sequence[Input[str]], balancer_logs: bool) -> aws.s3.BucketPolicy:
        bucket, objects = self.bucket.arn, Output.concat(self.bucket.arn, "/*")
        sources = [self.place.bucket_arn(each) for each in logs_of]
        here = {"StringEquals": {"aws:SourceAccount": self.place.account}}
        delivery = {**here, "ArnEquals": {"aws:SourceArn": sources}}
        balancers = {**here, "ArnLike": {"aws:SourceArn": self.place.balancers_arn()}}
        own_logs = Output.concat(bucket, "/balancer/AWSLogs/", self.place.account, "/*")
        document = policy(
            tls_only("s3:*", [bucket, objects]),
            *(
                [trust(BALANCER_LOGS, "s3:PutObject", on=own_logs, when=balancers)]
                if balancer_logs
                else []
            ),
            *([trust(LOG_DELIVERY, "s3:PutObject", on=objects, when=delivery)] if sources else []),
        )
        return aws.s3.BucketPolicy(
            f"{self.name}-policy",
            bucket=self.bucket.bucket,
            policy=document,
            # S3 refuses two changes of a bucket's access at once.
            opts=ResourceOptions(parent=self, depends_on=[self.private]),
        )

    def _lifecycle(self, days: int) -> aws.s3.BucketLifecycleConfiguration:
        cooler: list[aws.s3.BucketLifecycleConfigurationRuleTransitionArgsDict] = [
            {"days": after, "storage_class": storage_class}
            for after, storage_class in COOLER.items()
            if not days or after < days
        ]
        every: dict[str, Any] = {"status": "Enabled", "filter": {"prefix": ""}}
        old = {"noncurrent_days": self.args.noncurrent_days}
        rules: list[Any] = [
            {
                **every,
                "id": "unfinished",
                "abort_incomplete_multipart_upload": {"days_after_initiation": 7},
            },
            {**every, "id": "noncurrent", "noncurrent_version_expiration": old},
        ]
        if days:
            rules.append({**every, "id": "expired", "expiration": {"days": days}})
        if cooler:
            rules.append({**every, "id": "cooler", "transitions": cooler})
        return aws.s3.BucketLifecycleConfiguration(
            f"{self.name}-lifecycle",
            bucket=self.bucket.bucket,
            rules=rules,
            # What is noncurrent is known once there are versions.
            opts=ResourceOptions(parent=self, depends_on=[self.versioning]),
        )

    def _logging(self, logs: Bucket) -> aws.s3.BucketLogging:
        return aws.s3.BucketLogging(
            f"{self.name}-logging",
            bucket=self.bucket.bucket,
            target_bucket=logs.bucket.bucket,
            target_prefix="access/",
            target_object_key_format={"partitioned_prefix": {"partition_date_source": "EventTime"}},
            opts=ResourceOptions(parent=self, depends_on=[logs.policy]),
        )


###############################################################################
# File pipeline
###############################################################################

#: Index of the files table -> its partition key; all sort by uploaded_at.
FILE_INDEXES = {"by_owner": "files_of", "by_folder": "folder_of", "by_content_type": "type_of"}


class FilePipeline(Component):
    """A bucket whose every object is described once in a table: S3, Lambda, DynamoDB.

    Costs $57 a month for the table's 100 units and $78 for its three indexes, whatever happens;
    then $0.0017 for a thousand files, with two reads of S3 and 100 ms of the function each.
    """

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        *,
        key_arn: Input[str],
        opts: ResourceOptions | None = None,
    ):
        super().__init__(name, args, opts, role="files")
        self.key_arn, self.place = key_arn, Place.current()
        own_name = self.place.global_name(args.name("files"))
        self.bucket_name: Input[str] = args.files_bucket_name or own_name
        self.logs = self._logs()
        self.uploads = self._uploads()
        self.cors = self._cors() if args.cors_origins else None
        self.table = self._table()
        self.scaling = self._scaling() if args.files_table_scaling > 1 else []
        self.function = self._function()
        self.notification = self._notification()
        self.register_outputs({"bucket_name": self.bucket_name, "table_name": self.table.name})

    def _logs(self) -> Bucket:
        return Bucket(
            f"{self.name}-logs",
            self.args,
            role="files-logs",
            physical_name=self.place.global_name(self.args.name("files-logs")),
            days=self.args.log_retention_days,
            logs_of=[self.bucket_name],
            opts=self.child,
        )

    def _uploads(self) -> Bucket:
        return Bucket(
            f"{self.name}-uploads",
            self.args,
            role="files",
            physical_name=self.bucket_name,
            delivers_to=self.logs,
            opts=self.child,
        )

    def _cors(self) -> aws.s3.BucketCorsConfiguration:
        return aws.s3.BucketCorsConfiguration(
            f"{self.name}-cors",
            bucket=self.uploads.bucket.bucket,
            cors_rules=[
                {
                    "allowed_methods": ["POST"],
                    "allowed_origins": self.args.cors_origins,
                    "allowed_headers": ["*"],
                    "expose_headers": ["etag", "x-amz-version-id"],
                    "max_age_seconds": 600,
                }
            ],
            opts=self.child,
        )

    def _table(self) -> aws.dynamodb.Table:
        units = self.args.files_table_capacity
        # An index takes at most half of what its table takes: docs/decisions/0007.
        own = {"write_capacity": -(-units // 2), "read_capacity": -(-units // 4)}
        scaled = ["readCapacity", "writeCapacity"]
        scaled += [f"globalSecondaryIndexes[*].{each}" for each in scaled]
        keys = ("id", "record", "uploaded_at", *FILE_INDEXES.values())
        return aws.dynamodb.Table(
            f"{self.name}-table",
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
            server_side_encryption={"enabled": True, "kms_key_arn": self.key_arn},
            deletion_protection_enabled=self.args.deletion_protection,
            opts=ResourceOptions(
                parent=self,
                protect=self.args.deletion_protection,
                # Where it scales, the capacity is the scaler's.
                ignore_changes=scaled if self.args.files_table_scaling > 1 else [],
            ),
        )

    def _scaling(self) -> list[aws.appautoscaling.Policy]:
        table, units = Output.concat("table/", self.table.name), self.args.files_table_capacity
        places = {"table": table}
        places |= {each: Output.concat(table, "/index/", each) for each in FILE_INDEXES}
        return [
            self._scale(place, kind, identity, units if place == "table" else -(-units // share))
            for place, identity in places.items()
            for kind, share in (("Read", 4), ("Write", 2))
        ]

    def _scale(
        self, place: str, kind: str, identity: Output[str], least: int
    ) -> aws.appautoscaling.Policy:
        level, what = "table" if place == "table" else "index", f"{place}-{kind}".lower()
        return target_tracking(
            f"{self.name}-{what.replace('_', '-')}",
            self.args.name(f"files-{what.replace('_', '-')}"),
            ("dynamodb", identity),
            f"dynamodb:{level}:{kind}CapacityUnits",
            f"DynamoDB{kind}CapacityUtilization",
            (least, least * self.args.files_table_scaling),
            70,
            self.child,
        )

    def _function(self) -> Function:
        bucket, table_of = self.uploads.bucket, self.table
        return Function(
            f"{self.name}-records",
            self.args,
            role="files",
            handler=record_files,
            init=open_file_clients,
            key_arn=self.key_arn,
            environment={
                "FILES_TABLE_NAME": table_of.name,
                **metrics_environment(self.args),
            },
            statements=[
                allow("s3:GetObject", "s3:GetObjectVersion", on=Output.concat(bucket.arn, "/*")),
                # Without it S3 answers 403 where an object is gone, not 404.
                allow("s3:ListBucket", on=bucket.arn),
                allow("dynamodb:PutItem", "dynamodb:UpdateItem", on=table_of.arn),
                allow(*TABLE_KEY_USE, on=self.key_arn),
            ],
            memory_mb=512,
            timeout_seconds=60,
            smoke={"Records": [{"eventName": "SmokeTest"}]},  # nothing that is recorded
            watch=["files-errors"],
            event_hours=6,
            concurrency=self.args.files_concurrency,
            opts=self.child,
        )

    def _notification(self) -> aws.s3.BucketNotification:
        function, bucket = self.function, self.uploads.bucket
        permission = aws.lambda_.Permission(
            f"{self.name}-invoke",
            statement_id="s3",
            action="lambda:InvokeFunction",
            principal="s3.amazonaws.com",
            function=function.function.name,
            qualifier=function.alias.name,
            source_arn=bucket.arn,
            source_account=self.place.account,  # a bucket's ARN does not name its account
            opts=self.child,
        )
        return aws.s3.BucketNotification(
            f"{self.name}-notification",
            bucket=bucket.bucket,
            lambda_functions=[
                {
                    "id": "record-files",
                    "lambda_function_arn": function.alias.arn,
                    "events": ["s3:ObjectCreated:*"],
                }
            ],
            # S3 tries the permission; events of the first moments would find no retries set.
            opts=ResourceOptions(
                parent=self,
                depends_on=[permission, *([function.retries] if function.retries else [])],
            ),
        )

    def api_environment(self) -> dict[str, Input[str]]:
        """What the api function has to know to offer the files."""
        return {
            "FILES_TABLE_NAME": self.table.name,
            "BUCKET_NAME": self.uploads.bucket.bucket,
            "UPLOAD_BYTES": str(self.args.upload_max_mb * 1_000_000),
            "UPLOAD_TYPES": " ".join(self.args.upload_types),
        }

    def api_statements(self) -> list[dict[str, Any]]:
        """What the api function has to be allowed; whoever holds its form uploads in its name."""
        return [
            allow("dynamodb:GetItem", on=self.table.arn),
            allow("dynamodb:Query", on=[self.table.arn, *index_arns(self.table, FILE_INDEXES)]),
            allow("s3:PutObject", on=Output.concat(self.uploads.bucket.arn, "/*")),
        ]

    def alarms(self) -> list[Alarm]:
        """Trouble of the function, events that wait, throttles and use of the table."""
        here, minute = {"TableName": self.table.name}, 60
        return [
            *self.function.alarms(),
            *throttle_alarms("files", self.table, FILE_INDEXES),
            *(
                Alarm(
                    f"files-{kind.lower()}-capacity",
                    f"AWS/DynamoDB/Consumed{kind}CapacityUnits",
                    here,
                    above=0.8 * self.args.files_table_capacity * minute,
                )
                for kind in ("Read", "Write")
            ),
        ]

    def graphs(self) -> list[Graph]:
        """Use of the pipeline for the dashboard."""
        outcomes = ("Recorded", "Repeated", "Failed", "Refused", "Ignored")
        business = {"Environment": self.args.environment_suffix}
        return [
            Graph(
                "Files", [(self.args.project, f"Files{each}", business, "Sum") for each in outcomes]
            ),
            capacity_graph("Files table", self.table),
            self.function.graph(),
        ]


###############################################################################
# Serverless API
###############################################################################

#: Index of the items table -> its partition key; all sort by created_at.
INDEXES = {"by_owner": "owner", "by_category": "owner_category"}
SLOW_MS = 2_000  # what 95 % of the requests must be faster than
#: What a new version of the api function is asked first: the items of somebody who has none.
SMOKE_REQUEST = {
    "version": "2.0",
    "routeKey": "GET /items",
    "rawPath": "/items",
    "queryStringParameters": {"limit": "1"},
    "requestContext": {
        "requestId": "smoke-test",
        "http": {"method": "GET"},
        "authorizer": {"jwt": {"claims": {"sub": "smoke-test", "scope": "items/read"}}},
    },
}


class ServerlessApi(Component):
    """Items behind an HTTP API: table, function, paging key and its rotation, routes, access log.

    With a file pipeline, its files as well: forms for uploads, lists, versions and totals.

    Costs what runs: $1.00 a million requests and DynamoDB on demand, $0.625 a million written KB
    and $0.125 a million read 4 KB; each item is written to two or three places, the table and its
    indexes.
    """

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        *,
        key_arn: Input[str],
        issuer: Input[str],
        audience: Sequence[Input[str]],
        files: FilePipeline | None = None,
        opts: ResourceOptions | None = None,
    ):
        super().__init__(name, args, opts, role="api")
        self.key_arn, self.place, self.files = key_arn, Place.current(), files
        self.routes_of = ALL_ROUTES if files else ROUTES
        self.items = self._items()
        self.paging_key = self._paging_key()
        self.rotation = self._rotation()
        self.first_rotation = self._first_rotation()
        self.schedule = self.rotation.every("rate(30 days)", "A new paging key every 30 days")
        self.function = self._function()
        if args.provisioned_max:
            self.function.provision(args.provisioned_min, args.provisioned_max)
        self.api = self._api()
        self.authorizer = self._authorizer(issuer, audience)
        self.integration = self._integration()
        self.routes = self._routes()
        self.stage = self._stage()
        #: Where the API answers.
        self.url = self.api.api_endpoint
        self.register_outputs({"url": self.url, "table_name": self.items.name})

    def _items(self) -> aws.dynamodb.Table:
        return aws.dynamodb.Table(
            f"{self.name}-items",
            name=self.args.table_name or self.args.name("items"),
            billing_mode="PAY_PER_REQUEST",
            hash_key="id",
            attributes=[
                {"name": key, "type": "S"} for key in ("id", "created_at", *INDEXES.values())
            ],
            global_secondary_indexes=[
                index(name, key, "created_at") for name, key in INDEXES.items()
            ],
            ttl={"attribute_name": "expires_at", "enabled": True},
            point_in_time_recovery={"enabled": True},
            server_side_encryption={"enabled": True, "kms_key_arn": self.key_arn},
            deletion_protection_enabled=self.args.deletion_protection,
            opts=self.keep,
        )

    def _paging_key(self) -> aws.ssm.Parameter:
        # The value is made by the rotation function and known to nobody else: a write-only value is
        # neither kept in Pulumi's state nor compared with what the parameter holds now.
        return aws.ssm.Parameter(
            f"{self.name}-paging-key",
            name=f"/{self.args.project}/{self.args.environment_suffix}/paging-key",
            description="Keys that sign paging tokens, the current one first",
            type="SecureString",
            key_id=self.key_arn,
            value_wo="unset",
            value_wo_version=1,
            opts=self.child,
        )

    def _rotation(self) -> Function:
        return Function(
            f"{self.name}-rotation",
            self.args,
            role="rotation",
            handler=rotate_paging_key,
            key_arn=self.key_arn,
            environment={"PAGING_KEY": self.paging_key.name},
            statements=[
                allow("ssm:GetParameter", "ssm:PutParameter", on=self.paging_key.arn),
                allow("kms:Encrypt", on=self.key_arn),
            ],
            timeout_seconds=90,
            smoke={"dry_run": True},
            event_hours=1,
            opts=self.child,
        )

    def _first_rotation(self) -> aws.lambda_.Invocation:
        return aws.lambda_.Invocation(
            f"{self.name}-first-rotation",
            function_name=self.rotation.function.name,
            qualifier=self.rotation.alias.name,
            input="{}",
            opts=self.child,
        )

    def _function(self) -> Function:
        return Function(
            f"{self.name}-items",
            self.args,
            role="api",
            handler=api,
            init=open_services,
            key_arn=self.key_arn,
            environment={
                "TABLE_NAME": self.items.name,
                "PAGING_KEY": self.paging_key.name,
                "IDEMPOTENCY_SECONDS": str(self.args.idempotency_hours * 3600),
                **metrics_environment(self.args),
                **(self.files.api_environment() if self.files else {}),
            },
            statements=[
                allow(
                    "dynamodb:DeleteItem",
                    "dynamodb:GetItem",
                    "dynamodb:PutItem",
                    "dynamodb:UpdateItem",
                    on=self.items.arn,
                ),
                allow("dynamodb:Query", on=index_arns(self.items, INDEXES)),
                allow(*TABLE_KEY_USE, on=self.key_arn),
                allow("ssm:GetParameter", on=self.paging_key.arn),
                *(self.files.api_statements() if self.files else []),
            ],
            memory_mb=self.args.memory_mb,
            timeout_seconds=self.args.timeout_seconds,
            smoke=SMOKE_REQUEST,
            watch=["api-5xx", "api-latency", "api-errors"],
            slow_ms=SLOW_MS,
            concurrency=self.args.api_concurrency,
            opts=self.child,
        )

    def _api(self) -> aws.apigatewayv2.Api:
        cors: aws.apigatewayv2.ApiCorsConfigurationArgsDict = {
            "allow_origins": self.args.cors_origins,
            "allow_methods": ["GET", "POST", "PUT", "PATCH", "DELETE"],
            "allow_headers": [
                "authorization",
                "content-type",
                "idempotency-key",
                "if-match",
                "if-none-match",
            ],
            "expose_headers": ["apigw-requestid", "etag", "location", "retry-after"],
            "max_age": 600,
        }
        return aws.apigatewayv2.Api(
            f"{self.name}-http",
            name=self.args.name("api"),
            description="Items and files of people and machines",
            protocol_type="HTTP",
            cors_configuration=cors if self.args.cors_origins else None,
            opts=self.child,
        )

    def _authorizer(
        self, issuer: Input[str], audience: Sequence[Input[str]]
    ) -> aws.apigatewayv2.Authorizer:
        return aws.apigatewayv2.Authorizer(
            f"{self.name}-tokens",
            name="tokens",
            api_id=self.api.id,
            authorizer_type="JWT",
            identity_sources=["$request.header.Authorization"],
            jwt_configuration={"issuer": issuer, "audiences": audience},
            opts=self.child,
        )

    def _integration(self) -> aws.apigatewayv2.Integration:
        alias = self.function.alias
        aws.lambda_.Permission(
            f"{self.name}-invoke",
            statement_id="http-api",
            action="lambda:InvokeFunction",
            principal="apigateway.amazonaws.com",
            function=self.function.function.name,
            qualifier=alias.name,
            source_arn=Output.concat(self.api.execution_arn, "/*"),
            opts=self.child,
        )
        return aws.apigatewayv2.Integration(
            f"{self.name}-integration",
            api_id=self.api.id,
            integration_type="AWS_PROXY",
            integration_method="POST",
            integration_uri=alias.invoke_arn,
            payload_format_version="2.0",
            timeout_milliseconds=(self.args.timeout_seconds + 1) * 1000,
            opts=self.child,
        )

    def _routes(self) -> dict[str, aws.apigatewayv2.Route]:
        """Every route with its scope; the function also answers what none takes, 404 or 405."""
        target = Output.concat("integrations/", self.integration.id)
        tokens: dict[str, Any] = {"authorization_type": "JWT", "authorizer_id": self.authorizer.id}
        secured: dict[str, Any] = {
            key: {**tokens, "authorization_scopes": [scope]}
            for key, (_, scope, _) in self.routes_of.items()
        }
        # A browser asks OPTIONS without a token, and $default with its authorizer would refuse it.
        fallback = {"$default": tokens, "OPTIONS /{proxy+}": {"authorization_type": "NONE"}}
        return {
            key: aws.apigatewayv2.Route(
                f"{self.name}-{_slug(key)}",
                api_id=self.api.id,
                route_key=key,
                target=target,
                opts=self.child,
                **security,
            )
            for key, security in {**secured, **fallback}.items()
        }

    def _stage(self) -> aws.apigatewayv2.Stage:
        logs = aws.cloudwatch.LogGroup(
            f"{self.name}-access-logs",
            # Groups under this prefix do not use up the account's resource policy for log delivery.
            name=f"/aws/vendedlogs/apis/{self.args.name('api')}",
            retention_in_days=self.args.log_retention_days,
            kms_key_id=self.key_arn,
            opts=self.child,
        )
        return aws.apigatewayv2.Stage(
            f"{self.name}-stage",
            api_id=self.api.id,
            name="$default",
            auto_deploy=True,
            access_log_settings={"destination_arn": logs.arn, "format": json.dumps(ACCESS_LOG)},
            default_route_settings={
                "detailed_metrics_enabled": self.args.route_metrics,
                "throttling_rate_limit": self.args.throttle_rate,  # alone it makes the other 0
                "throttling_burst_limit": self.args.throttle_burst,
            },
            opts=self.child,
        )

    def alarms(self) -> list[Alarm]:
        """Failures and slowness of the API, throttling of its table, trouble of its functions."""
        stage = {"ApiId": self.api.id, "Stage": self.stage.name}
        return [
            Alarm("api-5xx", "AWS/ApiGateway/5xx", stage, above=4, seconds=300),
            Alarm(
                "api-latency",
                "AWS/ApiGateway/Latency",
                stage,
                above=SLOW_MS,
                statistic="p95",
                datapoints=(3, 5),
            ),
            *throttle_alarms("items", self.items, INDEXES),
            *self.function.alarms(),
            *self.rotation.alarms(),
        ]

    def graphs(self) -> list[Graph]:
        """Health and use of the API for the dashboard."""
        stage = {"ApiId": self.api.id, "Stage": self.stage.name}
        business = {"Environment": self.args.environment_suffix}
        metrics = [
            *(metric for _, _, metric in self.routes_of.values()),
            "RequestsRefused",
            "RequestsFailed",
        ]
        return [
            Graph(
                "API requests",
                [("AWS/ApiGateway", metric, stage, "Sum") for metric in ("Count", "4xx", "5xx")],
            ),
            Graph(
                "API latency",
                [("AWS/ApiGateway", "Latency", stage, each) for each in ("p50", "p95", "p99")],
            ),
            Graph(
                "Operations", [(self.args.project, metric, business, "Sum") for metric in metrics]
            ),
            capacity_graph("Items table", self.items),
            self.function.graph(),
            self.rotation.graph(),
        ]


def _slug(route: str) -> str:
    """A route key as part of a logical name: `GET /items/{id}` -> `get-items-id`."""
    return re.sub(r"[^a-z0-9]+", "-", route.lower()).strip("-")


#: One access log line: who asked for what, what came, and where it failed.
ACCESS_LOG = {
    "requestId": "$context.requestId",
    "requestTime": "$context.requestTime",
    "ip": "$context.identity.sourceIp",
    "caller": "$context.authorizer.claims.sub",
    "method": "$context.httpMethod",
    "path": "$context.path",
    "routeKey": "$context.routeKey",
    "status": "$context.status",
    "responseLength": "$context.responseLength",
    "responseLatency": "$context.responseLatency",
    "integrationLatency": "$context.integrationLatency",
    "integrationError": "$context.integrationErrorMessage",
    "authorizerError": "$context.authorizer.error",
}


###############################################################################
# Network
###############################################################################

TIERS_OF_SUBNETS = ("public", "private", "isolated")


class PlanError(ValueError):
    """A range that cannot be divided into the subnets."""


def plan_subnets(cidr: str, zones: int, apart_from: Sequence[str] = ()) -> dict[str, list[str]]:
    """The ranges of the subnets of each tier, one for each zone.

    Each tier has a quarter of the range and each zone a quarter of its tier, used or not: another
    zone, up to four, renumbers nothing, and a quarter of all stays free. Raises PlanError if the
    range is none, is not /16 to /24 (a subnet has 16 addresses at least, a VPC 65,536 at most) or
    overlaps with one of the others.
    """
    try:
        network = ipaddress.IPv4Network(cidr)
        others = [ipaddress.IPv4Network(each) for each in apart_from]
    except ValueError as error:
        raise PlanError(
            f"vpc_cidr and apart_from must be ranges such as 10.0.0.0/16: {error}"
        ) from None
    if not 16 <= network.prefixlen <= 24:
        raise PlanError(
            f"vpc_cidr must be /16 to /24, 65,536 to 256 addresses; {cidr} has "
            f"{network.num_addresses:,}"
        )
    for other in others:
        if network.overlaps(other):
            shared = min(network.num_addresses, other.num_addresses)
            raise PlanError(
                f"vpc_cidr {cidr} overlaps with {other}: they share {shared:,} addresses"
            )
    quarters = network.subnets(prefixlen_diff=2)
    return {
        tier: [str(each) for each in quarter.subnets(prefixlen_diff=2)][:zones]
        for tier, quarter in zip(TIERS_OF_SUBNETS, quarters, strict=False)
    }


ANYWHERE = "0.0.0.0/0"
WEB_PORT, POSTGRES_PORT = 8080, 5432
#: Who may open a connection to whom, at which port; everything else is refused. `internet`,
#: `network` and `operators` (bastion_cidrs) are ranges, the others groups of instances.
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
)
GROUPS = ("balancer", "web", "database", "bastion", "nat", "endpoints")


class Network(Component):
    """A VPC over two or three zones: subnets, routes, NAT, endpoints, security groups, flow logs.

    Instances in public subnets reach the internet, those in private ones through NAT, those in
    isolated ones not at all. Costs what NAT costs (the setting `nat` says it), interface endpoints,
    and $0.50 a GB of flow logs; the gateway endpoints of S3 and DynamoDB are free.
    """

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        *,
        key_arn: Input[str],
        scaling_role_arn: Input[str],
        opts: ResourceOptions | None = None,
    ):
        super().__init__(name, args, opts, role="network")
        self.key_arn, self.place = key_arn, Place.current()
        self.scaling_role_arn = scaling_role_arn
        self.plan = plan_subnets(args.vpc_cidr, args.zones, args.apart_from)
        self.vpc = self._vpc()
        self.closed = self._closed()
        self.gateway = self._gateway()
        #: Tier -> its subnets, one for each zone.
        self.subnets = self._subnets()
        #: Tier -> its route tables; private subnets have one for each zone.
        self.tables = self._tables()
        #: Name in GROUPS -> security group, of those that have a use here.
        self.groups = {group: self._group(group) for group in GROUPS if self._needed(group)}
        self.rules = self._rules()
        self.gateway_endpoints = [self._gateway_endpoint(each) for each in ("s3", "dynamodb")]
        self.interface_endpoints = [self._interface_endpoint(each) for each in args.endpoints]
        self.flow_log = self._flow_log()
        self.nat_gateways: list[aws.ec2.NatGateway] = []
        self.nat_fleets: list[Fleet] = []
        self._nat()
        self.register_outputs({"vpc_id": self.vpc.id})

    def _named(self, name: str) -> dict[str, str]:
        return {"Name": self.args.name(name)}  # what the console shows

    def _vpc(self) -> aws.ec2.Vpc:
        return aws.ec2.Vpc(
            f"{self.name}-vpc",
            cidr_block=self.args.vpc_cidr,
            enable_dns_support=True,
            enable_dns_hostnames=True,
            tags=self._named("network"),
            opts=self.child,
        )

    def _closed(self) -> aws.ec2.DefaultSecurityGroup:
        """The group that every VPC comes with, emptied: what names no group reaches nothing."""
        return aws.ec2.DefaultSecurityGroup(
            f"{self.name}-default-group",
            vpc_id=self.vpc.id,
            ingress=[],
            egress=[],
            tags=self._named("unused"),
            opts=self.child,
        )

    def _gateway(self) -> aws.ec2.InternetGateway:
        return aws.ec2.InternetGateway(
            f"{self.name}-internet",
            vpc_id=self.vpc.id,
            tags=self._named("internet"),
            opts=self.child,
        )

    def _subnets(self) -> dict[str, list[aws.ec2.Subnet]]:
        zones = aws.get_availability_zones_output(
            state="available",
            filters=[{"name": "opt-in-status", "values": ["opt-in-not-required"]}],
        ).names
        return {
            tier: [
                aws.ec2.Subnet(
                    f"{self.name}-{tier}-{number}",
                    vpc_id=self.vpc.id,
                    cidr_block=cidr,
                    availability_zone=zones[number],
                    map_public_ip_on_launch=False,  # who needs an address asks for it
                    tags=self._named(f"{tier}-{number}"),
                    opts=self.child,
                )
                for number, cidr in enumerate(cidrs)
            ]
            for tier, cidrs in self.plan.items()
        }

    def _tables(self) -> dict[str, list[aws.ec2.RouteTable]]:
        counts = {"public": 1, "private": self.args.zones, "isolated": 1}
        tables = {
            tier: [
                aws.ec2.RouteTable(
                    f"{self.name}-{tier}-routes-{number}",
                    vpc_id=self.vpc.id,
                    tags=self._named(f"{tier}-{number}"),
                    opts=self.child,
                )
                for number in range(count)
            ]
            for tier, count in counts.items()
        }
        for tier, subnets in self.subnets.items():
            for number, subnet in enumerate(subnets):
                aws.ec2.RouteTableAssociation(
                    f"{self.name}-{tier}-{number}-routes",
                    subnet_id=subnet.id,
                    route_table_id=tables[tier][number % len(tables[tier])].id,
                    opts=self.child,
                )
        aws.ec2.Route(
            f"{self.name}-to-internet",
            route_table_id=tables["public"][0].id,
            destination_cidr_block=ANYWHERE,
            gateway_id=self.gateway.id,
            opts=self.child,
        )
        return tables

    def _needed(self, group: str) -> bool:
        return {
            "nat": self.args.nat.startswith("instance"),
            "endpoints": bool(self.args.endpoints),
        }.get(group, True)

    def _group(self, group: str) -> aws.ec2.SecurityGroup:
        return aws.ec2.SecurityGroup(
            f"{self.name}-{group}-group",
            name=self.args.name(group),
            description=f"What {group} may reach and be reached by",
            vpc_id=self.vpc.id,
            tags=self._named(group),
            opts=self.child,
        )

    def _rules(self) -> list[pulumi.CustomResource]:
        """Both sides of each flow, as a resource each."""
        ranges = {
            "internet": [ANYWHERE],
            "network": [self.args.vpc_cidr],
            "operators": list(self.args.bastion_cidrs),
        }
        made: list[pulumi.CustomResource] = []
        for source, target, port in FLOWS:
            if not {source, target} & set(GROUPS) <= self.groups.keys():
                continue
            if target in self.groups:
                for other in ranges.get(source, [source]):
                    made.append(self._rule("from", target, source, other, port))
            if source in self.groups:
                for other in ranges.get(target, [target]):
                    made.append(self._rule("to", source, target, other, port))
        return made

    def _rule(
        self, way: str, group: str, label: str, other: str, port: int
    ) -> pulumi.CustomResource:
        peer: dict[str, Any] = {"cidr_ipv4": other}
        if other in self.groups:
            peer = {"referenced_security_group_id": self.groups[other].id}
        ingress, egress = aws.vpc.SecurityGroupIngressRule, aws.vpc.SecurityGroupEgressRule
        kind: Callable[..., pulumi.CustomResource] = ingress if way == "from" else egress
        many = f"-{_slug(other)}" if label == "operators" else ""
        return kind(
            f"{self.name}-{group}-{way}-{label}-{port}{many}",
            security_group_id=self.groups[group].id,
            description=f"{group} {way} {label}",
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            opts=self.child,
            **peer,
        )

    def _gateway_endpoint(self, service: str) -> aws.ec2.VpcEndpoint:
        tables = [each.id for tables in self.tables.values() for each in tables]
        return aws.ec2.VpcEndpoint(
            f"{self.name}-{service}",
            vpc_id=self.vpc.id,
            service_name=Output.format("com.amazonaws.{0}.{1}", self.place.region, service),
            vpc_endpoint_type="Gateway",
            route_table_ids=tables,
            tags=self._named(service),
            opts=self.child,
        )

    def _interface_endpoint(self, service: str) -> aws.ec2.VpcEndpoint:
        return aws.ec2.VpcEndpoint(
            f"{self.name}-{_slug(service)}-interface",
            vpc_id=self.vpc.id,
            service_name=Output.format("com.amazonaws.{0}.{1}", self.place.region, service),
            vpc_endpoint_type="Interface",
            private_dns_enabled=True,
            subnet_ids=[each.id for each in self.subnets["private"]],
            security_group_ids=[self.groups["endpoints"].id],
            tags=self._named(_slug(service)),
            opts=self.child,
        )

    def _flow_log(self) -> aws.ec2.FlowLog:
        logs = aws.cloudwatch.LogGroup(
            f"{self.name}-flow-logs",
            name=f"/aws/vpc/{self.args.name('network')}",
            retention_in_days=self.args.log_retention_days,
            kms_key_id=self.key_arn,
            opts=self.child,
        )
        here = {
            "StringEquals": {"aws:SourceAccount": self.place.account},
            "ArnLike": {"aws:SourceArn": self.place.arn("ec2", "vpc-flow-log/*")},
        }
        role = aws.iam.Role(
            f"{self.name}-flow-log-role",
            name=self.args.name("flow-log"),
            description="Lets the VPC write its flow log",
            assume_role_policy=policy(
                trust("vpc-flow-logs.amazonaws.com", "sts:AssumeRole", when=here)
            ),
            opts=self.child,
        )
        aws.iam.RolePolicy(
            f"{self.name}-flow-log-role-policy",
            name=self.args.name("flow-log"),
            role=role.name,
            policy=policy(
                allow(
                    "logs:CreateLogStream",
                    "logs:DescribeLogStreams",
                    "logs:PutLogEvents",
                    on=Output.concat(logs.arn, ":*"),
                )
            ),
            opts=self.child,
        )
        return aws.ec2.FlowLog(
            f"{self.name}-flow-log",
            vpc_id=self.vpc.id,
            traffic_type="ALL" if self.args.tier == "prod" else "REJECT",
            log_destination=logs.arn,
            iam_role_arn=role.arn,
            max_aggregation_interval=600,
            tags=self._named("flow-log"),
            opts=self.child,
        )

    def _nat(self) -> None:
        """The way out of each zone's private subnet, as the setting `nat` says."""
        strategy, private = self.args.nat, self.tables["private"]
        if strategy == "none":
            return
        ways = range(self.args.zones if strategy in ("per_az", "instance_ha") else 1)
        instances = strategy.startswith("instance")
        exits = [self._nat_interface(n) if instances else self._nat_gateway(n) for n in ways]
        for number, table_of in enumerate(private):
            aws.ec2.Route(
                f"{self.name}-out-{number}",
                route_table_id=table_of.id,
                destination_cidr_block=ANYWHERE,
                opts=self.child,
                **exits[number % len(exits)],
            )

    def _address(self, number: int, **more: Any) -> aws.ec2.Eip:
        return aws.ec2.Eip(
            f"{self.name}-nat-address-{number}",
            domain="vpc",
            tags=self._named(f"nat-{number}"),
            opts=ResourceOptions(parent=self, depends_on=[self.gateway]),
            **more,
        )

    def _nat_gateway(self, number: int) -> dict[str, Input[str]]:
        gateway = aws.ec2.NatGateway(
            f"{self.name}-nat-{number}",
            allocation_id=self._address(number).allocation_id,
            subnet_id=self.subnets["public"][number].id,
            tags=self._named(f"nat-{number}"),
            opts=ResourceOptions(parent=self, depends_on=[self.gateway]),
        )
        self.nat_gateways.append(gateway)
        return {"nat_gateway_id": gateway.id}

    def _nat_interface(self, number: int) -> dict[str, Input[str]]:
        """An interface that keeps address and route, and a fleet of one that takes hold of it."""
        subnet = self.subnets["public"][number]
        interface = aws.ec2.NetworkInterface(
            f"{self.name}-nat-interface-{number}",
            description="What private instances reach the internet through",
            subnet_id=subnet.id,
            security_groups=[self.groups["nat"].id],
            source_dest_check=False,  # it forwards what is not its own
            tags=self._named(f"nat-{number}"),
            opts=self.child,
        )
        self._address(number, network_interface=interface.id)
        tagged_so = {"StringEquals": {"aws:ResourceTag/Environment": self.args.environment_suffix}}
        self.nat_fleets.append(
            Fleet(
                f"{self.name}-nat-{number}",
                self.args,
                role=f"nat-{number}" if number else "nat",
                key_arn=self.key_arn,
                scaling_role_arn=self.scaling_role_arn,
                group=self.groups["nat"],
                subnets=[subnet],
                instance_types=["t4g.nano"],
                public=True,
                user_data=Output.all(interface.id, self.place.region).apply(
                    lambda known: nat_script(known[0], known[1], self.args.vpc_cidr)
                ),
                statements=[
                    allow(
                        "ec2:AttachNetworkInterface",
                        on=[interface.arn, self.place.arn("ec2", "instance/*")],
                        when=tagged_so,
                    )
                ],
                opts=self.child,
            )
        )
        return {"network_interface_id": interface.id}

    def alarms(self) -> list[Alarm]:
        """Connections and packets that NAT gateways lose; NAT instances that are not there."""
        rows = []
        for number, gateway in enumerate(self.nat_gateways):
            here = {"NatGatewayId": gateway.id}
            for key, metric in (("ports", "ErrorPortAllocation"), ("drops", "PacketsDropCount")):
                rows.append(
                    Alarm(
                        f"nat-{number}-{key}",
                        f"AWS/NATGateway/{metric}",
                        here,
                        above=0,
                        seconds=300,
                        section=f"nat-{key}",
                    )
                )
        return rows + [alarm for fleet in self.nat_fleets for alarm in fleet.alarms()]


NAT_SCRIPT = """#!/bin/bash
# Takes hold of the interface that the private subnets route to, and forwards what arrives there.
set -euo pipefail
interface=@interface@ region=@region@ network=@network@
about() {
    local token
    token=$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 300' \
        http://169.254.169.254/latest/api/token)
    curl -sf -H "X-aws-ec2-metadata-token: $token" "http://169.254.169.254/latest/meta-data/$1"
}
dnf install -y -q nftables
instance=$(about instance-id)
attached=
for _ in $(seq 60); do  # the instance before may still hold it
    if aws ec2 attach-network-interface --region "$region" --network-interface-id "$interface" \
        --instance-id "$instance" --device-index 1; then attached=yes; break; fi
    sleep 5
done
[ "$attached" ]
device=
for _ in $(seq 60); do
    for mac in $(about network/interfaces/macs/); do
        if [ "$(about "network/interfaces/macs/${mac}interface-id")" = "$interface" ]; then
            device=$(ip -o link | awk -v mac="${mac%/}" '$0 ~ mac {sub(":", "", $2); print $2}')
        fi
    done
    if [ -n "$device" ] && ip -4 -o address show dev "$device" | grep -q inet; then break; fi
    sleep 1
done
[ "$device" ]
gateway=$(ip -4 route show default | awk '{print $3; exit}')
ip route replace default via "$gateway" dev "$device" metric 1
printf 'net.ipv4.ip_forward = 1\nnet.ipv4.conf.all.rp_filter = 0\n' > /etc/sysctl.d/90-nat.conf
sysctl --quiet --system
cat > /etc/sysconfig/nftables.conf <<RULES
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "$device" ip saddr $network masquerade
    }
}
RULES
systemctl enable --now nftables
"""


def nat_script(interface: str, region: str, network: str) -> str:
    """The user data of a NAT instance."""
    return filled(NAT_SCRIPT, interface=interface, region=region, network=network)


def filled(script: str, **values: str) -> str:
    """A script with its @names@ replaced."""
    for name, value in values.items():
        script = script.replace(f"@{name}@", value)
    return script


###############################################################################
# Fleets
###############################################################################

#: What an instance may do so that Session Manager reaches it, which has no ARNs to name.
SESSION_MANAGER = (
    "ssm:UpdateInstanceInformation",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
)
IMAGES = "al2023-ami-2023.*-kernel-*-arm64"


def newest_image() -> Output[str]:
    """The newest Amazon Linux 2023 at the time of `pulumi up`.

    Not `resolve:ssm:` in the template, which would be read at each launch: two instances could
    differ, and a refresh could not go back.
    """
    found = aws.ec2.get_ami_output(
        most_recent=True, owners=["amazon"], filters=[{"name": "name", "values": [IMAGES]}]
    )
    return found.id


class Fleet(Component):
    """Instances of one kind that replace themselves: launch template, role, Auto Scaling group.

    arm64, IMDSv2 with one hop, an encrypted gp3 volume of 8 GB, no key pair: people come by Session
    Manager or EC2 Instance Connect. A change of the template replaces instance after instance and
    goes back if the new ones fail. Costs its instances (t4g.nano $3.07 a month, t4g.small $12.26),
    $0.64 for each volume and $3.65 for each public address.
    """

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        *,
        role: str,
        key_arn: Input[str],
        scaling_role_arn: Input[str],
        group: aws.ec2.SecurityGroup,
        subnets: Sequence[aws.ec2.Subnet],
        instance_types: Sequence[str],
        user_data: Input[str],
        statements: Sequence[Mapping[str, Any]] = (),
        public: bool = False,
        least: int = 1,
        most: int = 1,
        spot_percent: int = 0,
        target_groups: Sequence[aws.lb.TargetGroup] = (),
        refresh_alarms: Sequence[str] = (),
        opts: ResourceOptions | None = None,
    ):
        super().__init__(name, args, opts, role=role)
        self.purpose, self.physical_name = role, args.name(role)
        self.key_arn, self.least, self.place = key_arn, least, Place.current()
        self.role = self._role(statements)
        self.profile = self._profile()
        self.template = self._template(instance_types[0], group, user_data, public)
        self.group = self._group(
            subnets,
            instance_types,
            spot_percent,
            most,
            target_groups,
            refresh_alarms,
            scaling_role_arn,
        )
        self.register_outputs({"group_name": self.group.name})

    def _role(self, statements: Sequence[Mapping[str, Any]]) -> aws.iam.Role:
        role = aws.iam.Role(
            f"{self.name}-role",
            name=self.physical_name,
            description=f"What instances of {self.physical_name} may do",
            assume_role_policy=policy(trust("ec2.amazonaws.com", "sts:AssumeRole")),
            opts=self.child,
        )
        aws.iam.RolePolicy(
            f"{self.name}-role-policy",
            name=self.physical_name,
            role=role.name,
            policy=policy(allow(*SESSION_MANAGER, on="*"), *statements),
            opts=self.child,
        )
        return role

    def _profile(self) -> aws.iam.InstanceProfile:
        return aws.iam.InstanceProfile(
            f"{self.name}-profile", name=self.physical_name, role=self.role.name, opts=self.child
        )

    def _template(
        self, instance_type: str, group: aws.ec2.SecurityGroup, user_data: Input[str], public: bool
    ) -> aws.ec2.LaunchTemplate:
        tags = {**self.args.all_tags(), "Component": self.purpose, "Name": self.physical_name}
        return aws.ec2.LaunchTemplate(
            f"{self.name}-template",
            name=self.physical_name,
            image_id=self.args.image_id or newest_image(),
            instance_type=instance_type,
            iam_instance_profile={"arn": self.profile.arn},
            metadata_options={
                "http_endpoint": "enabled",
                "http_tokens": "required",
                "http_put_response_hop_limit": 1,
            },
            block_device_mappings=[
                {
                    "device_name": "/dev/xvda",
                    "ebs": {
                        "volume_type": "gp3",
                        "volume_size": 8,
                        "encrypted": "true",
                        "kms_key_id": self.key_arn,
                        "delete_on_termination": "true",
                    },
                }
            ],
            network_interfaces=[
                {
                    "device_index": 0,
                    "associate_public_ip_address": str(public).lower(),
                    "security_groups": [group.id],
                    "delete_on_termination": "true",
                }
            ],
            monitoring={"enabled": True},
            user_data=Output.from_input(user_data).apply(encoded),
            tag_specifications=[
                {"resource_type": kind, "tags": tags} for kind in ("instance", "volume")
            ],
            opts=self.child,
        )

    def _group(
        self,
        subnets: Sequence[aws.ec2.Subnet],
        instance_types: Sequence[str],
        spot_percent: int,
        most: int,
        target_groups: Sequence[aws.lb.TargetGroup],
        refresh_alarms: Sequence[str],
        scaling_role_arn: Input[str],
    ) -> aws.autoscaling.Group:
        template: Any = {
            "launch_template_id": self.template.id,
            "version": self.template.latest_version.apply(str),  # $Latest would start no refresh
        }
        preferences: Any = {
            "min_healthy_percentage": 100 if most > 1 else 0,
            "max_healthy_percentage": 110 if most > 1 else 100,
            "auto_rollback": True,
            **({"alarm_specification": {"alarms": refresh_alarms}} if refresh_alarms else {}),
        }
        return aws.autoscaling.Group(
            f"{self.name}-group",
            name=self.physical_name,
            min_size=self.least,
            max_size=most,
            vpc_zone_identifiers=[each.id for each in subnets],
            mixed_instances_policy={
                "instances_distribution": {
                    "on_demand_percentage_above_base_capacity": 100 - spot_percent,
                    "spot_allocation_strategy": "price-capacity-optimized",
                },
                "launch_template": {
                    "launch_template_specification": template,
                    "overrides": [{"instance_type": each} for each in instance_types],
                },
            },
            capacity_rebalance=spot_percent > 0,
            target_group_arns=[each.arn for each in target_groups],
            health_check_type="ELB" if target_groups else "EC2",
            health_check_grace_period=180,
            default_instance_warmup=120,
            instance_refresh={"strategy": "Rolling", "preferences": preferences},
            enabled_metrics=[
                aws.autoscaling.Metric.GROUP_DESIRED_CAPACITY,
                aws.autoscaling.Metric.GROUP_IN_SERVICE_INSTANCES,
            ],
            metrics_granularity="1Minute",
            service_linked_role_arn=scaling_role_arn,
            # How many there are is the scaler's, once there are some.
            opts=ResourceOptions(parent=self, ignore_changes=["desiredCapacity"]),
        )

    def alarms(self) -> list[Alarm]:
        """Fewer instances in service than there should be."""
        return [
            Alarm(
                f"{self.purpose}-instances",
                "AWS/AutoScaling/GroupInServiceInstances",
                {"AutoScalingGroupName": self.group.name},
                below=self.least,
                statistic="Minimum",
                datapoints=(10, 10),
                section=f"{self.purpose.partition('-')[0]}-instances",
            )
        ]


SETUP = "/var/lib/setup.sh"


def encoded(script: str) -> str:
    """A script as user data: what cloud-init writes and runs once, packed as EC2 takes it."""
    config = {
        "write_files": [{"path": SETUP, "permissions": "0700", "content": script}],
        "runcmd": [["bash", SETUP]],
    }
    packed = gzip.compress(f"#cloud-config\n{json.dumps(config)}\n".encode(), mtime=0)
    if len(packed) > 16_384:
        raise ValueError(f"user data has {len(packed):,} compressed bytes; EC2 takes 16,384")
    return base64.b64encode(packed).decode()


###############################################################################
# Storage
###############################################################################


class Storage(Component):
    """Buckets of the web environment: assets, and the logs of the load balancer and of access."""

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        *,
        key_arn: Input[str],
        opts: ResourceOptions | None = None,
    ):
        super().__init__(name, args, opts, role="storage")
        place = Place.current()
        assets, logs = (place.global_name(args.name(each)) for each in ("assets", "web-logs"))
        self.logs = Bucket(
            f"{name}-logs",
            args,
            role="web-logs",
            physical_name=logs,
            days=args.log_retention_days,
            logs_of=[assets],
            balancer_logs=True,
            opts=self.child,
        )
        self.assets = Bucket(
            f"{name}-assets",
            args,
            role="assets",
            physical_name=assets,
            key_arn=key_arn,
            delivers_to=self.logs,
            opts=self.child,
        )
        self.register_outputs({"assets_bucket_name": self.assets.bucket.bucket})


###############################################################################
# Database
###############################################################################

#: Parameters of PostgreSQL that differ from RDS's own, and how they take effect.
PARAMETERS = (
    ("rds.force_ssl", "1", "immediate"),
    ("log_connections", "1", "immediate"),
    ("log_disconnections", "1", "immediate"),
    ("log_min_duration_statement", "1000", "immediate"),
    ("password_encryption", "scram-sha-256", "immediate"),
)
DATABASE_NAME = "app"
#: Megabytes of memory by size of the instance class, for the alarm at a tenth of it.
MEMORY_MB = {"micro": 1_024, "small": 2_048, "medium": 4_096, "large": 8_192, "xlarge": 16_384}


class Database(Component):
    """PostgreSQL on RDS in isolated subnets: TLS forced, encrypted, backed up, its password RDS's.

    The master password is in a secret that RDS makes and rotates; nobody else knows it. Costs its
    class (db.t4g.micro $11.68 a month, db.m7g.large $122.64), twice that with a standby, storage at
    $0.115 a GB and month (twice with a standby), and $0.40 for the secret.
    """

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        *,
        key_arn: Input[str],
        topic_arn: Input[str],
        network: Network,
        opts: ResourceOptions | None = None,
    ):
        super().__init__(name, args, opts, role="database")
        self.key_arn, self.place = key_arn, Place.current()
        self.subnets = self._subnets(network)
        self.parameters = self._parameters()
        self.logs = [self._logs(each) for each in ("postgresql", "upgrade")]
        self.monitoring_role = self._monitoring_role()
        self.instance = self._instance(network)
        self.events = self._events(topic_arn)
        #: ARN of the secret with the master password.
        self.secret_arn = self.instance.master_user_secrets[0].secret_arn
        self.snapshots = self._snapshots()
        self.schedule = self.snapshots.every("cron(30 1 * * ? *)", "A snapshot every night")
        self.register_outputs({"endpoint": self.instance.endpoint})

    def _subnets(self, network: Network) -> aws.rds.SubnetGroup:
        return aws.rds.SubnetGroup(
            f"{self.name}-subnets",
            name=self.args.name("database"),
            description="The isolated subnets",
            subnet_ids=[each.id for each in network.subnets["isolated"]],
            opts=self.child,
        )

    def _parameters(self) -> aws.rds.ParameterGroup:
        return aws.rds.ParameterGroup(
            f"{self.name}-parameters",
            name=self.args.name("database"),
            family="postgres17",
            description="TLS forced, connections and slow statements logged",
            parameters=[
                {"name": name, "value": value, "apply_method": method}
                for name, value, method in PARAMETERS
            ],
            opts=self.child,
        )

    def _logs(self, kind: str) -> aws.cloudwatch.LogGroup:
        return aws.cloudwatch.LogGroup(
            f"{self.name}-{kind}-logs",
            name=f"/aws/rds/instance/{self.args.name('database')}/{kind}",
            retention_in_days=self.args.log_retention_days,
            kms_key_id=self.key_arn,
            opts=self.child,
        )

    def _monitoring_role(self) -> aws.iam.Role:
        here = {"StringEquals": {"aws:SourceAccount": self.place.account}}
        role = aws.iam.Role(
            f"{self.name}-monitoring-role",
            name=self.args.name("database-monitoring"),
            description="Lets RDS publish the metrics of the database's machine",
            assume_role_policy=policy(
                trust("monitoring.rds.amazonaws.com", "sts:AssumeRole", when=here)
            ),
            opts=self.child,
        )
        streams = self.place.arn("logs", "log-group:RDSOSMetrics:log-stream:*")
        aws.iam.RolePolicy(
            f"{self.name}-monitoring-role-policy",
            name=self.args.name("database-monitoring"),
            role=role.name,
            policy=policy(
                allow(
                    "logs:CreateLogGroup",
                    "logs:PutRetentionPolicy",
                    on=self.place.arn("logs", "log-group:RDSOSMetrics"),
                ),
                allow(
                    "logs:CreateLogStream",
                    "logs:DescribeLogStreams",
                    "logs:GetLogEvents",
                    "logs:PutLogEvents",
                    on=streams,
                ),
            ),
            opts=self.child,
        )
        return role

    def _instance(self, network: Network) -> aws.rds.Instance:
        args, name = self.args, self.args.name("database")
        return aws.rds.Instance(
            f"{self.name}-instance",
            identifier=name,
            engine="postgres",
            engine_version="17",
            instance_class=args.database_class,
            allocated_storage=args.database_gb,
            max_allocated_storage=5 * args.database_gb,
            storage_type="gp3",
            storage_encrypted=True,
            kms_key_id=self.key_arn,
            db_name=DATABASE_NAME,
            username="master",
            manage_master_user_password=True,
            master_user_secret_kms_key_id=self.key_arn,
            iam_database_authentication_enabled=True,
            port=POSTGRES_PORT,
            publicly_accessible=False,
            db_subnet_group_name=self.subnets.name,
            vpc_security_group_ids=[network.groups["database"].id],
            parameter_group_name=self.parameters.name,
            ca_cert_identifier="rds-ca-rsa2048-g1",
            multi_az=args.database_multi_az,
            backup_retention_period=args.backup_days,
            backup_window="02:30-03:30",
            maintenance_window="sun:04:00-sun:05:00",
            copy_tags_to_snapshot=True,
            delete_automated_backups=not args.deletion_protection,
            deletion_protection=args.deletion_protection,
            skip_final_snapshot=args.tier == "dev",
            final_snapshot_identifier=None if args.tier == "dev" else f"{name}-final",
            auto_minor_version_upgrade=True,
            apply_immediately=args.tier == "dev",
            enabled_cloudwatch_logs_exports=["postgresql", "upgrade"],
            performance_insights_enabled=True,
            performance_insights_kms_key_id=self.key_arn,
            performance_insights_retention_period=7,
            monitoring_interval=60,
            monitoring_role_arn=self.monitoring_role.arn,
            opts=ResourceOptions(
                parent=self,
                protect=args.deletion_protection,
                depends_on=self.logs,  # which RDS would make itself, without an end
                ignore_changes=["allocatedStorage"],  # it grows by itself
            ),
        )

    def _events(self, topic_arn: Input[str]) -> aws.rds.EventSubscription:
        return aws.rds.EventSubscription(
            f"{self.name}-events",
            name=self.args.name("database"),
            sns_topic=topic_arn,
            source_type="db-instance",
            source_ids=[self.instance.identifier],
            event_categories=["availability", "backup", "failover", "failure", "low storage"],
            opts=self.child,
        )

    def _snapshots(self) -> Function:
        instance, name = self.instance, self.args.name("database")
        own = self.place.arn("rds", f"snapshot:{name}-*")
        created_by = self.args.name("snapshots")
        tagged_so = {"StringEquals": {"aws:ResourceTag/CreatedBy": created_by}}
        asked_so = {"StringEquals": {"aws:RequestTag/CreatedBy": created_by}}
        return Function(
            f"{self.name}-snapshots",
            self.args,
            role="snapshots",
            handler=take_snapshot,
            key_arn=self.key_arn,
            environment={
                "DATABASE": instance.identifier,
                "CREATED_BY": created_by,
                "SNAPSHOT_DAYS": str(self.args.snapshot_days),
                "SNAPSHOT_KEEP": str(self.args.snapshot_keep),
                **metrics_environment(self.args),
            },
            statements=[
                allow("rds:CreateDBSnapshot", on=[instance.arn, own]),
                allow("rds:AddTagsToResource", on=own, when=asked_so),
                allow("rds:DescribeDBSnapshots", on=[instance.arn, own]),
                allow("rds:DescribeDBSnapshotAttributes", on=own),
                allow("rds:DeleteDBSnapshot", on=own, when=tagged_so),
            ],
            timeout_seconds=120,
            smoke={"dry_run": True},
            event_hours=1,
            opts=self.child,
        )

    def alarms(self) -> list[Alarm]:
        """A database that is busy, full or overrun; no snapshot for 26 hours."""
        args, here = self.args, {"DBInstanceIdentifier": self.instance.identifier}
        memory = MEMORY_MB.get(args.database_class.rpartition(".")[2], 16_384) * 1_000_000
        storage = args.database_gb * 1_000_000_000
        # RDS's own default for max_connections: memory in bytes / 9,531,392.
        connections = 0.8 * memory / 9_531_392

        def row(key: str, metric: str, **beyond: Any) -> Alarm:
            return Alarm(
                f"database-{key}",
                f"AWS/RDS/{metric}",
                here,
                statistic="Average",
                seconds=300,
                datapoints=(3, 3),
                **beyond,
            )

        return [
            row("cpu", "CPUUtilization", above=80),
            row("storage", "FreeStorageSpace", below=0.15 * storage),
            row("memory", "FreeableMemory", below=0.1 * memory),
            row("connections", "DatabaseConnections", above=round(connections)),
            row("latency", "WriteLatency", above=0.1),
            Alarm(
                "snapshot-missing",
                f"{args.project}/SnapshotsTaken",
                {"Environment": args.environment_suffix},
                below=1,
                silence="breaching",
                seconds=3600,
                datapoints=(26, 26),
            ),
            *self.snapshots.alarms(),
        ]

    def graphs(self) -> list[Graph]:
        """Use of the database for the dashboard."""
        here = {"DBInstanceIdentifier": self.instance.identifier}

        def graph(title: str, *metrics: str) -> Graph:
            return Graph(title, [("AWS/RDS", metric, here, "Average") for metric in metrics])

        return [
            graph("Database load", "CPUUtilization", "DatabaseConnections"),
            graph("Database room", "FreeStorageSpace", "FreeableMemory"),
            self.snapshots.graph(),
        ]


###############################################################################
# Web tier
###############################################################################

TLS_POLICY = "ELBSecurityPolicy-TLS13-1-2-2021-06"
#: What the application needs from PyPI, for Python 3.11 on arm64: exactly these files.
WEB_PACKAGES = """
boto3==1.44.5 --hash=sha256:70c3e0409794b29ec1900bcaff0695b73234a2d32ffaed35045b94caa26212a5
botocore==1.44.5 --hash=sha256:8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921
gunicorn==27.0.1 --hash=sha256:378b26b9a38adcf4592f28828233c1716acc55e833ea06bf48719782efaa0d10
jmespath==1.1.0 --hash=sha256:a5663118de4908c91729bea0acadca56526eb2698e83de10cd116ae0f4e97c64
psycopg==3.3.9 --hash=sha256:d2d7d04a1ce6dab4f5b27316bea3b52585cafa2f2d631e5b09dd69823f5c26f6
psycopg-binary==3.3.9 --hash=sha256:9f6f4108a2e1d55303dfbb41d0f3b16a0aac95232a24ac8eb3df03f56fcb83aa
python-dateutil==2.9.0.post0 --hash=sha256:a8b2bc7bffae282281c8140a97d3aa9c14da0b136dfe83f850eea9a5f7470427
s3transfer==0.19.3 --hash=sha256:24eb7535804306355e31c952a90022bf5b2f9d760f9a11062c7493a217c08553
six==1.17.0 --hash=sha256:4721f391ed90541fddacab5acf947aa0d3dc7d27b2e1e8eda2be8970586c3274
typing-extensions==4.16.0 --hash=sha256:481caa481374e813c1b176ada14e97f1f67a4539ce9cfeb3f350d78d6370c2e8
urllib3==2.8.0 --hash=sha256:0cf3cae568d36aa9576b28dfb35f11328f1cb974ca7647d9475ebb86c75ac6e3
"""  # noqa: E501 - a line each
#: What the agent measures and ships; memory and disk are not in EC2's own metrics.
AGENT = {
    "agent": {"metrics_collection_interval": 60},
    "metrics": {
        "namespace": "CWAgent",
        "append_dimensions": {"AutoScalingGroupName": "${aws:AutoScalingGroupName}"},
        "aggregation_dimensions": [["AutoScalingGroupName"]],
        "metrics_collected": {
            "mem": {"measurement": ["mem_used_percent"]},
            "disk": {"measurement": ["used_percent"], "resources": ["/"]},
        },
    },
}
AGENT_SCRIPT = """
dnf install -y -q amazon-cloudwatch-agent
cat > /opt/aws/amazon-cloudwatch-agent/etc/agent.json <<'JSON'
@agent@
JSON
/opt/aws/amazon-cloudwatch-agent/bin/amazon-cloudwatch-agent-ctl -a fetch-config -m ec2 -s \\
    -c file:/opt/aws/amazon-cloudwatch-agent/etc/agent.json
"""
WEB_SCRIPT = """#!/bin/bash
# Installs the application and starts it under systemd.
set -euo pipefail
dnf install -y -q python3.11 python3.11-pip
id web > /dev/null 2>&1 || useradd --system --shell /sbin/nologin web
install -d /opt/web
cat > /opt/web/requirements.txt <<'PACKAGES'
@packages@
PACKAGES
python3.11 -m venv /opt/web/venv
/opt/web/venv/bin/python -c 'import gunicorn, psycopg, boto3' 2> /dev/null || \\
    /opt/web/venv/bin/pip install --quiet --require-hashes -r /opt/web/requirements.txt
[ -s /opt/web/rds.pem ] || curl -sSf --retry 5 -o /opt/web/rds.pem \\
    https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem
cat > /opt/web/index.py <<'SOURCE'
@source@
SOURCE
cat > /etc/systemd/system/web.service <<'UNIT'
[Unit]
Description=The web application
After=network-online.target
Wants=network-online.target
[Service]
User=web
WorkingDirectory=/opt/web
Environment=AWS_DEFAULT_REGION=@region@ SECRET_ARN=@secret@ DATABASE_HOST=@host@
Environment=DATABASE_PORT=@port@ DATABASE_NAME=@database@ DATABASE_CA=/opt/web/rds.pem
ExecStart=/opt/web/venv/bin/gunicorn --bind 0.0.0.0:@web_port@ --workers 2 --threads 8 \\
    --timeout 30 --graceful-timeout 30 --access-logfile - index:web
StandardOutput=append:/var/log/web.log
StandardError=append:/var/log/web.log
Restart=always
RestartSec=1
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
[Install]
WantedBy=multi-user.target
UNIT
printf '/var/log/web.log {\\n    daily\\n    rotate 3\\n    copytruncate\\n    missingok\\n}\\n' \\
    > /etc/logrotate.d/web
systemctl daemon-reload
systemctl enable --now web
"""


def agent_script(log_group: str, path: str) -> str:
    """The part of a user data script that ships a log file, memory and disk to CloudWatch."""
    shipped = {"file_path": path, "log_group_name": log_group, "log_stream_name": "{instance_id}"}
    logs = {"logs_collected": {"files": {"collect_list": [shipped]}}}
    return filled(AGENT_SCRIPT, agent=json.dumps({**AGENT, "logs": logs}))


def agent_statements(logs: aws.cloudwatch.LogGroup) -> list[dict[str, Any]]:
    """What an instance with the agent may do."""
    own_metrics = {"StringEquals": {"cloudwatch:namespace": "CWAgent"}}
    return [
        allow("cloudwatch:PutMetricData", on="*", when=own_metrics),  # it has no ARNs to name
        allow("ec2:DescribeTags", on="*"),  # the group's name is a tag; it has no ARNs to name
        allow(
            "logs:CreateLogStream",
            "logs:DescribeLogStreams",
            "logs:PutLogEvents",
            on=Output.concat(logs.arn, ":*"),
        ),
    ]


class WebTier(Component):
    """The application behind a load balancer: HTTPS, instances in private subnets, scaling.

    Costs $16.43 a month for the load balancer, $5.84 for each unit of its capacity, $3.65 for each
    of its public addresses, and the fleet.
    """

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        *,
        key_arn: Input[str],
        scaling_role_arn: Input[str],
        network: Network,
        storage: Storage,
        database: Database,
        opts: ResourceOptions | None = None,
    ):
        super().__init__(name, args, opts, role="web")
        self.key_arn, self.place = key_arn, Place.current()
        self.certificate_arn = self._certificate()
        self.balancer = self._balancer(network, storage)
        self.targets = self._targets(network)
        self.listeners = self._listeners()
        self.logs = self._logs()
        self.fleet = self._fleet(network, database, scaling_role_arn)
        self.scaling = [self._scaling(*each) for each in self._goals()]
        scheme = "http" if args.plain_http else "https"
        #: Where the application answers.
        self.url = Output.concat(f"{scheme}://", args.domain_name or self.balancer.dns_name)
        self.register_outputs({"url": self.url})

    def _certificate(self) -> Input[str]:
        args = self.args
        if args.certificate_arn or args.plain_http:
            return args.certificate_arn
        if args.domain_name.endswith("example.com"):
            pulumi.log.warn(f"domain_name is {args.domain_name}, which is nobody's: set your own")
        certificate = aws.acm.Certificate(
            f"{self.name}-certificate",
            domain_name=args.domain_name,
            validation_method="DNS",
            opts=self.child,
        )
        proof = certificate.domain_validation_options[0]
        if args.hosted_zone_id:
            aws.route53.Record(
                f"{self.name}-certificate-record",
                zone_id=args.hosted_zone_id,
                name=proof.resource_record_name,
                type=proof.resource_record_type,
                records=[proof.resource_record_value],
                ttl=300,
                opts=self.child,
            )
        return aws.acm.CertificateValidation(
            f"{self.name}-certificate-validation",
            certificate_arn=certificate.arn,
            opts=ResourceOptions(parent=self, custom_timeouts=pulumi.CustomTimeouts(create="20m")),
        ).certificate_arn

    def _balancer(self, network: Network, storage: Storage) -> aws.lb.LoadBalancer:
        return aws.lb.LoadBalancer(
            f"{self.name}-balancer",
            name=self.args.name("web"),
            load_balancer_type="application",
            subnets=[each.id for each in network.subnets["public"]],
            security_groups=[network.groups["balancer"].id],
            drop_invalid_header_fields=True,
            desync_mitigation_mode="strictest",
            enable_deletion_protection=self.args.deletion_protection,
            idle_timeout=60,
            access_logs={
                "bucket": storage.logs.bucket.bucket,
                "prefix": "balancer",
                "enabled": True,
            },
            opts=ResourceOptions(
                parent=self,
                protect=self.args.deletion_protection,
                depends_on=[storage.logs.policy],  # it tries to write on creation
            ),
        )

    def _targets(self, network: Network) -> aws.lb.TargetGroup:
        return aws.lb.TargetGroup(
            f"{self.name}-targets",
            name=self.args.name("web"),
            vpc_id=network.vpc.id,
            port=WEB_PORT,
            protocol="HTTP",
            target_type="instance",
            deregistration_delay=60,
            load_balancing_algorithm_type="least_outstanding_requests",
            # The process, not the database: its failure must not end all instances.
            health_check={
                "path": "/healthz",
                "interval": 10,
                "timeout": 5,
                "healthy_threshold": 2,
                "unhealthy_threshold": 3,
                "matcher": "200",
            },
            opts=self.child,
        )

    def _listeners(self) -> list[aws.lb.Listener]:
        forward: Any = {"type": "forward", "target_group_arn": self.targets.arn}
        redirect: Any = {
            "type": "redirect",
            "redirect": {"port": "443", "protocol": "HTTPS", "status_code": "HTTP_301"},
        }
        plain = aws.lb.Listener(
            f"{self.name}-http",
            load_balancer_arn=self.balancer.arn,
            port=80,
            protocol="HTTP",
            default_actions=[forward if self.args.plain_http else redirect],
            opts=self.child,
        )
        if self.args.plain_http:
            return [plain]
        secure = aws.lb.Listener(
            f"{self.name}-https",
            load_balancer_arn=self.balancer.arn,
            port=443,
            protocol="HTTPS",
            ssl_policy=TLS_POLICY,
            certificate_arn=self.certificate_arn,
            default_actions=[forward],
            opts=self.child,
        )
        return [plain, secure]

    def _logs(self) -> aws.cloudwatch.LogGroup:
        return aws.cloudwatch.LogGroup(
            f"{self.name}-logs",
            name=f"/{self.args.name('web')}",
            retention_in_days=self.args.log_retention_days,
            kms_key_id=self.key_arn,
            opts=self.child,
        )

    def _fleet(self, network: Network, database: Database, scaling_role_arn: Input[str]) -> Fleet:
        args, log_group = self.args, f"/{self.args.name('web')}"
        facts = {
            "region": self.place.region,
            "secret": database.secret_arn,
            "host": database.instance.address,
        }
        user_data = Output.all(**facts).apply(lambda known: web_script(log_group, **known))
        return Fleet(
            f"{self.name}-fleet",
            args,
            role="web",
            key_arn=self.key_arn,
            scaling_role_arn=scaling_role_arn,
            group=network.groups["web"],
            subnets=network.subnets["private"],
            instance_types=args.instance_types,
            user_data=user_data,
            statements=[
                allow("secretsmanager:GetSecretValue", on=database.secret_arn),
                allow("kms:Decrypt", on=self.key_arn),
                *agent_statements(self.logs),
            ],
            least=args.instances_min,
            most=args.instances_max,
            spot_percent=args.spot_percent,
            target_groups=[self.targets],
            refresh_alarms=[args.name("web-5xx"), args.name("web-unhealthy")],
            opts=self.child,
        )

    def _goals(self) -> list[tuple[str, dict[str, Any], float]]:
        """What the fleet is scaled by: average CPU, and requests a minute for each instance."""
        label = Output.concat(self.balancer.arn_suffix, "/", self.targets.arn_suffix)
        requests = {"predefined_metric_type": "ALBRequestCountPerTarget", "resource_label": label}
        return [
            ("cpu", {"predefined_metric_type": "ASGAverageCPUUtilization"}, 60),
            ("requests", requests, 3_000),
        ]

    def _scaling(self, key: str, metric: dict[str, Any], goal: float) -> aws.autoscaling.Policy:
        tracking: Any = {"predefined_metric_specification": metric, "target_value": goal}
        return aws.autoscaling.Policy(
            f"{self.name}-by-{key}",
            name=self.args.name(f"web-{key}"),
            autoscaling_group_name=self.fleet.group.name,
            policy_type="TargetTrackingScaling",
            target_tracking_configuration=tracking,
            opts=ResourceOptions(parent=self, depends_on=self.listeners),
        )

    def alarms(self) -> list[Alarm]:
        """Failures and slowness as callers see them, hosts that fail, machines that are full."""
        balancer = {"LoadBalancer": self.balancer.arn_suffix}
        targets = {**balancer, "TargetGroup": self.targets.arn_suffix}
        group = {"AutoScalingGroupName": self.fleet.group.name}
        alb, full = "AWS/ApplicationELB", (3, 3)

        def use(key: str, metric: str, above: float) -> Alarm:
            return Alarm(
                key, metric, group, above, statistic="Average", seconds=300, datapoints=full
            )

        return [
            Alarm("web-5xx", f"{alb}/HTTPCode_Target_5XX_Count", targets, 10, datapoints=(2, 3)),
            Alarm("balancer-5xx", f"{alb}/HTTPCode_ELB_5XX_Count", balancer, 10, datapoints=(2, 3)),
            Alarm(
                "web-latency",
                f"{alb}/TargetResponseTime",
                targets,
                1,
                statistic="p95",
                datapoints=(3, 5),
            ),
            Alarm("balancer-rejected", f"{alb}/RejectedConnectionCount", balancer, 0),
            Alarm(
                "web-unhealthy",
                f"{alb}/UnHealthyHostCount",
                targets,
                0,
                statistic="Maximum",
                datapoints=(3, 3),
            ),
            Alarm(
                "web-hosts",
                f"{alb}/HealthyHostCount",
                targets,
                below=self.args.instances_min,
                silence="breaching",
                statistic="Minimum",
                datapoints=(5, 5),
            ),
            use("web-cpu", "AWS/EC2/CPUUtilization", 80),
            use("web-memory", "CWAgent/mem_used_percent", 85),
            use("web-disk", "CWAgent/disk_used_percent", 85),
            *self.fleet.alarms(),
        ]

    def graphs(self) -> list[Graph]:
        """Health and use of the web tier for the dashboard."""
        balancer = {"LoadBalancer": self.balancer.arn_suffix}
        targets = {**balancer, "TargetGroup": self.targets.arn_suffix}
        group = {"AutoScalingGroupName": self.fleet.group.name}
        alb, counts = "AWS/ApplicationELB", ("RequestCount", "HTTPCode_Target_5XX_Count")
        times = [(alb, "TargetResponseTime", targets, each) for each in ("p50", "p95", "p99")]
        hosts = [(alb, f"{each}HostCount", targets, "Maximum") for each in ("Healthy", "UnHealthy")]
        use = [("AWS/EC2", "CPUUtilization", group, "Average")]
        use += [("CWAgent", f"{x}_used_percent", group, "Average") for x in ("mem", "disk")]
        return [
            Graph("Web requests", [(alb, each, balancer, "Sum") for each in counts]),
            Graph("Web latency", times),
            Graph("Web hosts", hosts),
            Graph("Web machines", use),
        ]


def web_script(log_group: str, region: str, secret: str, host: str) -> str:
    """The user data of a web instance."""
    install = filled(
        WEB_SCRIPT,
        packages=WEB_PACKAGES.strip(),
        region=region,
        secret=secret,
        host=host,
        port=str(POSTGRES_PORT),
        database=DATABASE_NAME,
        web_port=str(WEB_PORT),
        source=bundle(web, modules=INSTANCE_MODULES).rstrip(),
    )
    return install + agent_script(log_group, "/var/log/web.log")


###############################################################################
# Bastion
###############################################################################

BASTION_SCRIPT = """#!/bin/bash
# Sends the log of logins away, where who comes in cannot change it.
set -euo pipefail
dnf install -y -q rsyslog postgresql17
systemctl enable --now rsyslog
"""


class Bastion(Component):
    """A way in for people: Session Manager, or SSH from known ranges with a key of one minute.

    No key pair is stored: EC2 Instance Connect puts a person's public key there for 60 s, and IAM
    says who may. Every login is logged and alarmed. Costs $3.07 a month for a t4g.nano, less where
    `bastion_hours` stop it, and $3.65 for its address.
    """

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        *,
        key_arn: Input[str],
        scaling_role_arn: Input[str],
        network: Network,
        opts: ResourceOptions | None = None,
    ):
        super().__init__(name, args, opts, role="bastion")
        log_group = f"/{args.name('bastion')}"
        self.logs = aws.cloudwatch.LogGroup(
            f"{name}-logs",
            name=log_group,
            retention_in_days=args.log_retention_days,
            kms_key_id=key_arn,
            opts=self.child,
        )
        self.logins = self._logins()
        self.fleet = Fleet(
            f"{name}-fleet",
            args,
            role="bastion",
            key_arn=key_arn,
            scaling_role_arn=scaling_role_arn,
            group=network.groups["bastion"],
            subnets=network.subnets["public"],
            instance_types=["t4g.nano"],
            public=True,
            user_data=BASTION_SCRIPT + agent_script(log_group, "/var/log/secure"),
            statements=agent_statements(self.logs),
            opts=self.child,
        )
        self.hours = self._hours() if args.bastion_hours else []
        self.register_outputs({"group_name": self.fleet.group.name})

    def _logins(self) -> aws.cloudwatch.LogMetricFilter:
        return aws.cloudwatch.LogMetricFilter(
            f"{self.name}-logins",
            name=self.args.name("bastion-logins"),
            log_group_name=self.logs.name,
            pattern='"Accepted publickey"',
            metric_transformation={
                "namespace": self.args.project,
                "name": f"BastionLogins-{self.args.environment_suffix}",
                "value": "1",
            },
            opts=self.child,
        )

    def _hours(self) -> list[aws.autoscaling.Schedule]:
        begin, end = self.args.bastion_hours.split("-")
        return [
            aws.autoscaling.Schedule(
                f"{self.name}-{action}",
                scheduled_action_name=self.args.name(f"bastion-{action}"),
                autoscaling_group_name=self.fleet.group.name,
                recurrence=f"0 {hour} * * 1-5",
                min_size=count,
                max_size=1,
                desired_capacity=count,
                opts=self.child,
            )
            for action, hour, count in (("start", begin, 1), ("stop", end, 0))
        ]

    def alarms(self) -> list[Alarm]:
        """A login by SSH; a bastion that is not there, unless it is stopped by the hour."""
        metric = f"{self.args.project}/BastionLogins-{self.args.environment_suffix}"
        there = [] if self.args.bastion_hours else self.fleet.alarms()
        return [Alarm("bastion-logins", metric, {}, 0), *there]


###############################################################################
# Monitoring
###############################################################################


class Monitoring(Component):
    """The alarm and dashboard resources for the rows that the other components offer.

    $0.10 a month for each alarm; the first three dashboards of an account are free.
    """

    def __init__(
        self,
        name: str,
        args: TapStackArgs,
        *,
        alarms: Iterable[Alarm],
        graphs: Sequence[Graph],
        topic_arn: Input[str],
        opts: ResourceOptions | None = None,
    ):
        super().__init__(name, args, opts, role="monitoring")
        self.alarms = {
            row.key: metric_alarm(f"{name}-{row.key}", args, row, [topic_arn], self.child)
            for row in alarms
        }
        self.dashboard = self._dashboard(graphs)
        self.register_outputs({"dashboard_name": self.dashboard.dashboard_name})

    def _dashboard(self, graphs: Sequence[Graph]) -> aws.cloudwatch.Dashboard:
        body = {"widgets": [self._widget(place, graph) for place, graph in enumerate(graphs)]}
        return aws.cloudwatch.Dashboard(
            f"{self.name}-dashboard",
            dashboard_name=f"{self.args.project}-{self.args.environment_suffix}",
            dashboard_body=Output.json_dumps(body),
            opts=self.child,
        )

    @staticmethod
    def _widget(place: int, graph: Graph) -> dict[str, Any]:
        def line(
            namespace: str, metric: str, dimensions: Mapping[str, Input[str]], statistic: str
        ) -> list[Any]:
            return [
                namespace,
                metric,
                *(x for pair in dimensions.items() for x in pair),
                {"stat": statistic},
            ]

        properties = {
            "title": graph.title,
            "metrics": [line(*each) for each in graph.metrics],
            "region": aws.get_region_output().region,
            "period": 60,
            "view": "timeSeries",
        }
        column, row = place % 2 * 12, place // 2 * 6
        return {
            "type": "metric",
            "x": column,
            "y": row,
            "width": 12,
            "height": 6,
            "properties": properties,
        }


###############################################################################
# TapStack
###############################################################################

#: Name of each stack output -> what it is.
OUTPUTS = {
    "api_url": "Base URL of the API",
    "table_name": "Name of the items table",
    "function_name": "Name of the api function",
    "files_bucket_name": "Name of the bucket that takes files",
    "files_table_name": "Name of the table that describes them",
    "files_function_name": "Name of the function that does it",
    "files_dead_letters_url": "URL of the queue of events that it could not keep",
    "user_pool_id": "Id of the Cognito user pool",
    "people_client_id": "Client id of apps that people sign in to (PKCE)",
    "machine_client_id": "Client id of machines; its secret is read from Cognito by who may",
    "sign_in_url": "Base URL of the OAuth 2.0 endpoints, `/oauth2/authorize` and `/oauth2/token`",
    "web_url": "Where the web application answers",
    "vpc_id": "Id of the network",
    "assets_bucket_name": "Name of the bucket of assets",
    "database_name": "Identifier of the database",
    "database_secret_arn": "ARN of the secret with the database's password, which RDS rotates",
    "snapshots_function_name": "Name of the function that takes snapshots",
    "bastion_group_name": "Name of the bastion's group, to find its instance by",
    "alerts_topic_arn": "ARN of the topic that alarms and the budget publish to",
    "dashboard_name": "Name of the CloudWatch dashboard",
    "key_arn": "ARN of the customer-managed key",
}


class TapStack(pulumi.ComponentResource):
    """The systems of a stack and what they share, composed.

    Its outputs are attributes under the names in OUTPUTS, None where the system is left out.
    """

    def __init__(
        self, name: str, args: TapStackArgs | None = None, opts: ResourceOptions | None = None
    ):
        self.args = args = args or TapStackArgs()
        super().__init__("tap:stack:TapStack", name, None, opts)
        self.child = ResourceOptions(parent=self)
        #: What is exported.
        self.outputs: dict[str, Any] = {}
        self.alarms: list[Alarm] = []
        self.graphs: list[Graph] = []
        self.encryption = Encryption("encryption", args, self.child)
        self.key: dict[str, Input[str]] = {"key_arn": self.encryption.key_arn}
        self.alerts = Alerts("alerts", args, **self.key, opts=self.child)
        self.files = self._files() if "files" in args.systems else None
        self.api = self._api() if "api" in args.systems else None
        self.web = self._web() if "web" in args.systems else None
        self.monitoring = Monitoring(
            "monitoring",
            args,
            alarms=self.alarms,
            graphs=self.graphs,
            topic_arn=self.alerts.topic_arn,
            opts=self.child,
        )
        self.outputs |= {
            "alerts_topic_arn": self.alerts.topic_arn,
            "dashboard_name": self.monitoring.dashboard.dashboard_name,
            "key_arn": self.encryption.key_arn,
        }
        for output in OUTPUTS:
            setattr(self, output, self.outputs.get(output))
        self.register_outputs(self.outputs)

    def _watch(self, *parts: Any) -> None:
        for part in parts:
            self.alarms += part.alarms()
            self.graphs += part.graphs() if hasattr(part, "graphs") else []

    def _files(self) -> FilePipeline:
        files = FilePipeline("files", self.args, **self.key, opts=self.child)
        self._watch(files)
        self.outputs |= {
            "files_bucket_name": files.uploads.bucket.bucket,
            "files_table_name": files.table.name,
            "files_function_name": files.function.function.name,
            "files_dead_letters_url": files.function.dead_letters_url,
        }
        return files

    def _api(self) -> ServerlessApi:
        identity = Identity("identity", self.args, self.child)
        api = ServerlessApi(
            "api",
            self.args,
            **self.key,
            issuer=identity.issuer,
            audience=identity.audience,
            files=self.files,
            opts=self.child,
        )
        self._watch(api)
        self.outputs |= {
            "api_url": api.url,
            "table_name": api.items.name,
            "function_name": api.function.function.name,
            "user_pool_id": identity.pool.id,
            "people_client_id": identity.people.id,
            "machine_client_id": identity.machines.id,
            "sign_in_url": identity.sign_in_url,
        }
        return api

    def _web(self) -> WebTier:
        args, child = self.args, self.child
        keys = {**self.key, "scaling_role_arn": self.encryption.scaling_role_arn}
        network = Network("network", args, **keys, opts=child)
        storage = Storage("storage", args, **self.key, opts=child)
        database = Database(
            "database",
            args,
            **self.key,
            topic_arn=self.alerts.topic_arn,
            network=network,
            opts=child,
        )
        web = WebTier(
            "web", args, **keys, network=network, storage=storage, database=database, opts=child
        )
        bastion = Bastion("bastion", args, **keys, network=network, opts=child)
        self._watch(network, database, web, bastion)
        self.outputs |= {
            "web_url": web.url,
            "vpc_id": network.vpc.id,
            "assets_bucket_name": storage.assets.bucket.bucket,
            "database_name": database.instance.identifier,
            "database_secret_arn": database.secret_arn,
            "snapshots_function_name": database.snapshots.function.name,
            "bastion_group_name": bastion.fleet.group.name,
        }
        return web


###############################################################################
# Entry point
###############################################################################


def main() -> None:
    """Builds the stack that the Pulumi configuration describes and exports its outputs."""
    stack = TapStack("tap", TapStackArgs.load())
    for output, value in stack.outputs.items():
        pulumi.export(output, value)


if __name__ == "__main__":
    main()
