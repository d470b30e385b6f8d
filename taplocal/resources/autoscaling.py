"""Application Auto Scaling, of which the emulator knows nothing."""

from __future__ import annotations

from taplocal.resources.base import Recorded


class Target(Recorded):
    uses = "serviceNamespace resourceId scalableDimension minCapacity maxCapacity tags"
    not_emulated = {"resourceId": "nothing is scaled"}


class Policy(Recorded):
    uses = """name policyType serviceNamespace resourceId scalableDimension
        targetTrackingScalingPolicyConfiguration"""
    not_emulated = {"targetTrackingScalingPolicyConfiguration": "nothing is scaled"}
