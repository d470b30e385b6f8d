"""A bastion as its launch template makes it: logins by SSH with a key of one minute, and their count."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.agent import check_agent
from tests.lab.aws import Aws
from tests.lab.image import INTERNET, OPERATOR, OPERATORS
from tests.lab.vpc import SECONDS, Machine, Vpc, reached, sh, until
from tests.stack.conftest import graph_of


@dataclass
class Bastion:
    """A bastion, booted, and the key of a person."""

    aws: Aws
    machine: Machine
    key: Path
    log: str = "/var/log/secure"

    def login(self) -> str:
        """Who `ssh` says we are there, from the operators' address; empty if we are not let in."""
        options = [
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "IdentitiesOnly=yes",
        ]
        options += ["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=10"]
        command = ["ip", "netns", "exec", self.aws.vpc.internet, "ssh", *options, "-b", OPERATOR]
        command += [
            "-F",
            "/dev/null",
            "-i",
            str(self.key),
            f"ec2-user@{self.machine.public}",
            "whoami",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        return done.stdout.strip()

    def counted(self) -> int:
        """How many lines of the shipped log the registered filter counts: a phrase in quotes."""
        pattern = self.aws.vpc.graph.one("LogMetricFilter").inputs["pattern"]
        phrase = pattern.removeprefix('"').removesuffix('"')
        assert pattern == f'"{phrase}"' and '"' not in phrase
        return self.machine.run("cat", self.log).count(phrase)


@pytest.fixture(scope="module")
def bastion(built: Path, disk: Path) -> Iterator[Bastion]:
    """One that people of OPERATORS may reach."""
    graph = graph_of("dev", nat="single", bastion_cidrs=f'["{OPERATORS}"]')
    with Vpc(graph, built, disk) as vpc, Aws(vpc) as aws:
        machine = vpc.machine("bastion-0", "public-0", "bastion", "bastion-fleet").boot()
        assert machine.cloud_init() == [], machine.journal()
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", disk / "key")
        yield Bastion(aws, machine, disk / "key")


def test_a_login_with_a_key_that_was_sent_is_counted_and_no_other_succeeds(
    bastion: Bastion,
) -> None:
    assert bastion.aws.states == {"bastion-0": "CONTINUE"}
    assert bastion.login() == ""
    bastion.aws.keys["ec2-user"] = bastion.key.with_suffix(".pub").read_text()
    assert bastion.login() == "ec2-user"
    until(lambda: bastion.counted() == 1, bastion.machine)
    bastion.aws.keys.clear()  # after a minute
    assert bastion.login() == ""
    assert bastion.counted() == 1


def test_only_operators_reach_it(bastion: Bastion) -> None:
    target = {(bastion.machine.public, 22)}
    assert reached(bastion.aws.vpc.internet, target, OPERATOR) == target
    assert not reached(bastion.aws.vpc.internet, target, INTERNET)


def test_the_log_of_logins_is_shipped(bastion: Bastion) -> None:
    assert check_agent(bastion.machine, bastion.aws) == bastion.log
