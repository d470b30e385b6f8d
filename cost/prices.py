"""What AWS charges, in US dollars, us-east-1, on demand, without free tiers.

As of 2026-11: those of findings that were read from AWS's price pages, the rest from memory of
those pages, as none can be reached from here. Look a price up before a decision hangs on it; other
regions differ by up to a third. Sources: aws.amazon.com/<ec2, rds, vpc, elasticloadbalancing,
dynamodb, cloudwatch, kms, secrets-manager, s3, lambda, api-gateway>/pricing.
"""

from __future__ import annotations

HOURS = 730  # of a month

#: Instance class -> dollars an hour, Linux or PostgreSQL, one zone.
HOURLY = {
    "t4g.nano": 0.0042,
    "t4g.micro": 0.0084,
    "t4g.small": 0.0168,
    "t4g.medium": 0.0336,
    "m7g.medium": 0.0408,
    "db.t4g.micro": 0.016,
    "db.t4g.small": 0.032,
    "db.t4g.medium": 0.065,
    "db.m7g.large": 0.168,
}
SPOT_DISCOUNT = 0.6  # a usual share off the price on demand
NAT_GATEWAY = 0.045  # an hour, and the same a GB
BALANCER = 0.0225  # an hour
BALANCER_UNIT = 0.008  # an hour of one unit of capacity
PUBLIC_ADDRESS = 0.005  # an hour
INTERFACE_ENDPOINT = 0.01  # an hour in each zone
READ_UNIT, WRITE_UNIT = 0.00013, 0.00065  # an hour of a provisioned unit
WARM_GB_SECOND = 0.0000033334  # of provisioned concurrency, arm64
KEY = 1.00  # a month, like all that follow
ALARM = 0.10
SECRET = 0.40
VOLUME_GB = 0.08
DATABASE_GB = 0.115
LOG_GB = 0.50
METRIC = 0.30
S3_GB = 0.023
