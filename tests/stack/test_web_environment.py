"""The web environment as it is registered: instances, load balancer, database, bastion, promises."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import tap_stack
from taplocal.errors import TapLocalError
from tests.stack.conftest import Graph, graph_of, statements

WEB = '["web"]'
INSTANCES = ("web-fleet", "bastion-fleet", "network-nat-0")


def cloud_config(graph: Graph, name: str) -> str:
    """What cloud-init gets."""
    template = graph.one("LaunchTemplate", f"{name}-template").inputs
    return base64.b64decode(template["userData"]).decode()


def user_data(graph: Graph, name: str) -> str:
    """The script that an instance runs at its start."""
    config = yaml.safe_load(cloud_config(graph, name))
    (file,) = config["write_files"]
    assert config["runcmd"] == [["bash", file["path"]]]
    return str(file["content"])


def test_every_instance_is_locked_down(graph: Graph) -> None:
    assert len(graph.of("LaunchTemplate")) >= 2
    for each in graph.of("LaunchTemplate"):
        template = each.inputs
        options = template["metadataOptions"]
        assert (options["httpTokens"], options["httpPutResponseHopLimit"]) == ("required", 1)
        assert template["imageId"].startswith("ami-")
        assert "keyName" not in template
        (interface,) = template["networkInterfaces"]
        public = interface["associatePublicIpAddress"] == "true"
        assert public is ("web" not in each.name)
        assert len(base64.b64decode(template["userData"])) <= 16_384


def test_a_changed_template_replaces_the_instances_and_goes_back_on_alarms(graph: Graph) -> None:
    names = {each.inputs["name"] for each in graph.of("MetricAlarm")}
    for each in graph.of("aws:autoscaling/group:Group"):
        group = each.inputs
        refresh = group["instanceRefresh"]
        assert refresh["strategy"] == "Rolling"
        assert refresh["preferences"]["autoRollback"] is True
        template = group["mixedInstancesPolicy"]["launchTemplate"]["launchTemplateSpecification"]
        assert template["version"] == "1"  # a number: $Latest would start no refresh
        alarms = refresh["preferences"].get("alarmSpecification", {}).get("alarms", [])
        assert set(alarms) <= names
        if each.name == "web-fleet-group":
            assert len(alarms) == 2
            assert group["healthCheckType"] == "ELB"


def test_the_load_balancer_speaks_tls_and_nothing_else_outside_dev(graph: Graph, env: str) -> None:
    balancer = graph.one("LoadBalancer").inputs
    assert balancer["dropInvalidHeaderFields"] is True
    assert balancer["accessLogs"]["enabled"] is True
    assert balancer["enableDeletionProtection"] is (env == "prod")
    listeners = {each.inputs["port"]: each.inputs for each in graph.of("Listener")}
    actions = {port: each["defaultActions"][0]["type"] for port, each in listeners.items()}
    if env == "dev":
        assert actions == {80: "forward"}
        return
    assert actions == {80: "redirect", 443: "forward"}
    assert listeners[443]["sslPolicy"] == tap_stack.TLS_POLICY
    assert listeners[443]["certificateArn"]


def test_a_given_certificate_is_used_and_none_is_requested() -> None:
    arn = "arn:aws:acm:eu-west-1:111122223333:certificate/1"
    graph = graph_of("staging", systems=WEB, certificate_arn=arn)
    assert not graph.of("Certificate")
    assert graph.one("Listener", "web-https").inputs["certificateArn"] == arn


def test_the_zone_of_the_name_gets_the_proof() -> None:
    graph = graph_of("staging", systems=WEB, domain_name="a.tap.dev", hosted_zone_id="Z01")
    assert graph.one("Certificate").inputs["domainName"] == "a.tap.dev"
    assert graph.one("Record").inputs["zoneId"] == "Z01"
    assert graph.outputs["web_url"] == "https://a.tap.dev"


def test_the_database_is_private_encrypted_backed_up_and_protected(graph: Graph, env: str) -> None:
    tier, database = (
        tap_stack.TapStackArgs(environment_suffix=env),
        graph.one("aws:rds/instance:Instance").inputs,
    )
    assert database["publiclyAccessible"] is False
    assert database["manageMasterUserPassword"] is True
    assert "password" not in database
    assert database["iamDatabaseAuthenticationEnabled"] is True
    assert database["multiAz"] is tier.database_multi_az
    assert database["backupRetentionPeriod"] == tier.backup_days
    assert database["deletionProtection"] is (env == "prod")
    assert database["skipFinalSnapshot"] is (env == "dev")
    parameters = {
        each["name"]: each["value"] for each in graph.one("ParameterGroup").inputs["parameters"]
    }
    assert parameters["rds.force_ssl"] == "1"
    subnets = graph.one("aws:rds/subnetGroup:SubnetGroup").inputs["subnetIds"]
    assert all("isolated" in each for each in subnets)
    assert len(subnets) == tier.zones


def test_assets_are_under_the_key_and_logs_under_s3s_own(graph: Graph) -> None:
    kind = "BucketServerSideEncryptionConfiguration"
    for name, algorithm in (("storage-assets", "aws:kms"), ("storage-logs", "AES256")):
        (rule,) = graph.one(kind, f"{name}-encryption").inputs["rules"]
        by_default = rule["applyServerSideEncryptionByDefault"]
        assert by_default["sseAlgorithm"] == algorithm
        if algorithm == "aws:kms":
            assert by_default["kmsMasterKeyId"] == graph.outputs["key_arn"]
    granted = statements(graph.one("BucketPolicy", "storage-logs-policy").inputs["policy"])
    services = {each["Principal"].get("Service") for each in granted if each["Effect"] == "Allow"}
    assert services == {tap_stack.ACCESS_LOGS_SERVICE, tap_stack.LOAD_BALANCER_LOGS_SERVICE}


def test_the_snapshot_function_may_touch_its_own_snapshots_only(graph: Graph, env: str) -> None:
    granted = statements(graph.one("RolePolicy", "database-snapshots-role-policy").inputs["policy"])
    rds = {each["Action"][0]: each for each in granted if each["Action"][0].startswith("rds:")}
    delete = rds["rds:DeleteDBSnapshot"]
    assert delete["Resource"].endswith(f":snapshot:tap-stack-database-{env}-*")
    assert delete["Condition"] == {
        "StringEquals": {"aws:ResourceTag/CreatedBy": f"tap-stack-snapshots-{env}"}
    }
    assert "Condition" in rds["rds:AddTagsToResource"]
    schedule = graph.one("Schedule", "database-snapshots-schedule").inputs
    assert schedule["scheduleExpression"] == "cron(30 1 * * ? *)"


def test_silence_of_the_snapshots_is_an_alarm_after_26_hours(graph: Graph) -> None:
    alarm = graph.one("MetricAlarm", "monitoring-snapshot-missing").inputs
    assert alarm["treatMissingData"] == "breaching"
    assert alarm["comparisonOperator"] == "LessThanThreshold"
    assert alarm["period"] * alarm["evaluationPeriods"] == 26 * 3600


def test_the_bastion_stops_outside_its_hours_where_it_has_some(graph: Graph, env: str) -> None:
    hours = {
        each.inputs["recurrence"]: each.inputs["desiredCapacity"]
        for each in graph.of("aws:autoscaling/schedule:Schedule")
    }
    assert hours == ({"0 8 * * 1-5": 1, "0 18 * * 1-5": 0} if env == "dev" else {})
    counted = graph.one("LogMetricFilter").inputs["metricTransformation"]
    logins = graph.one("MetricAlarm", "monitoring-bastion-logins").inputs
    assert (logins["namespace"], logins["metricName"]) == (counted["namespace"], counted["name"])


@pytest.mark.parametrize("name", INSTANCES)
def test_user_data_is_a_script_without_errors_and_without_secrets(name: str) -> None:
    script = user_data(graph_of("dev"), name)
    assert script.startswith("#!/bin/bash\n")
    assert "set -euo pipefail" in script
    assert not re.search(r"@[a-z_]+@", script)  # every name is rendered in
    assert not re.search(r"AKIA|aws_secret|BEGIN [A-Z ]*PRIVATE KEY", script)
    for checker in (["bash", "-n"], ["shellcheck", "-"]):
        if shutil.which(checker[0]):
            checked = subprocess.run(
                checker, input=script, text=True, capture_output=True, check=False
            )
            assert checked.stdout + checked.stderr == ""


@pytest.mark.skipif(not shutil.which("cloud-init"), reason="there is no cloud-init here")
@pytest.mark.parametrize("name", INSTANCES)
def test_user_data_is_valid_to_cloud_init(name: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(cloud_config(graph_of("dev"), name))
    command = ["cloud-init", "schema", "--config-file", str(tmp_path / "config")]
    checked = subprocess.run(command, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def run(script: str, folder: Path, **stubs: str) -> subprocess.CompletedProcess[str]:
    """Runs a script below a folder, with stubs in place of programs that change the machine."""
    for name, body in stubs.items():
        (folder / "bin").mkdir(exist_ok=True)
        stub = folder / "bin" / name.replace("_", "-").replace("python3-11", "python3.11")
        stub.write_text(f'#!/bin/bash\necho {name} "$@" >> {folder}/calls\n{body}\n')
        stub.chmod(0o755)
    script = re.sub(r"(?<![\w.-])/(opt|etc|var/log)/", rf"{folder}/\1/", script)
    for path in (
        "opt/aws/amazon-cloudwatch-agent/etc",
        "opt/aws/amazon-cloudwatch-agent/bin",
        "etc/systemd/system",
        "etc/logrotate.d",
        "etc/sysctl.d",
        "etc/sysconfig",
    ):
        (folder / path).mkdir(parents=True, exist_ok=True)
    agent = folder / "opt/aws/amazon-cloudwatch-agent/bin/amazon-cloudwatch-agent-ctl"
    agent.write_text(f"#!/bin/bash\necho agent >> {folder}/calls\n")
    agent.chmod(0o755)
    environment = {"PATH": f"{folder}/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    return subprocess.run(
        ["bash"],
        input=script,
        text=True,
        capture_output=True,
        env=environment,
        cwd=folder,
        check=False,
        timeout=60,
    )


def test_the_web_script_installs_the_application_and_starts_it(tmp_path: Path) -> None:
    made = "mkdir -p $3/bin; printf '#!/bin/bash\\nexit 1\\n' > $3/bin/python; printf '#!/bin/bash\\ntouch $0.ran\\n' > $3/bin/pip; chmod +x $3/bin/*"
    fetched = 'while [ "$1" != -o ]; do shift; done; echo certificates > "$2"'
    done = run(
        user_data(graph_of("dev"), "web-fleet"),
        tmp_path,
        dnf="",
        useradd="",
        systemctl="",
        id="exit 1",
        python3_11=made,
        curl=fetched,
    )
    assert done.returncode == 0, done.stderr
    web = tmp_path / "opt/web"
    source = tap_stack.bundle(tap_stack.web, modules=tap_stack.INSTANCE_MODULES).rstrip()
    assert (web / "index.py").read_text().rstrip() == source
    assert (web / "requirements.txt").read_text().strip() == tap_stack.WEB_PACKAGES.strip()
    assert (web / "rds.pem").read_text() == "certificates\n"
    assert (web / "venv/bin/pip.ran").exists()
    unit = (tmp_path / "etc/systemd/system/web.service").read_text()
    assert "DATABASE_HOST=database.example" in unit
    assert "index:web" in unit
    agent = json.loads((tmp_path / "opt/aws/amazon-cloudwatch-agent/etc/agent.json").read_text())
    (shipped,) = agent["logs"]["logs_collected"]["files"]["collect_list"]
    assert shipped["log_group_name"] == "/tap-stack-web-dev"
    calls = (tmp_path / "calls").read_text()
    assert "systemctl enable --now web" in calls
    assert "agent" in calls


def nat(tmp_path: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    about = """case "$*" in
*api/token*) echo token;; *instance-id*) echo i-1;; *macs/) echo 0a:0b/;;
*interface-id*) echo network-nat-interface-0-id;; esac"""
    links = """case "$*" in
*link*) echo '3: ens6: <UP> mtu 9001 link/ether 0a:0b brd ff';;
*show\\ default*) echo 'default via 10.0.0.1 dev ens5';; *address*) echo '3: ens6 inet 10.0.0.9/20';; esac"""
    stubs = {
        "dnf": "",
        "aws": "",
        "curl": about,
        "ip": links,
        "sysctl": "",
        "systemctl": "",
        "sleep": "",
    }
    script = user_data(graph_of("dev"), "network-nat-0")
    return run(script, tmp_path, **{**stubs, **changes})


def test_the_nat_script_takes_its_interface_and_translates_the_network_only(tmp_path: Path) -> None:
    done = nat(tmp_path)
    assert done.returncode == 0, done.stderr
    rules = (tmp_path / "etc/sysconfig/nftables.conf").read_text()
    assert 'oifname "ens6" ip saddr 10.0.0.0/16 masquerade' in rules
    calls = (tmp_path / "calls").read_text()
    assert "--network-interface-id network-nat-interface-0-id --instance-id i-1" in calls
    assert "ip route replace default via 10.0.0.1 dev ens6 metric 1" in calls
    assert "systemctl enable --now nftables" in calls


def test_the_nat_script_fails_if_it_never_gets_its_interface(tmp_path: Path) -> None:
    assert nat(tmp_path, aws="exit 1").returncode != 0
    assert not (tmp_path / "etc/sysconfig/nftables.conf").exists()


def test_the_instances_get_the_application_and_exactly_these_packages() -> None:
    script = user_data(graph_of("dev"), "web-fleet")
    source = tap_stack.bundle(tap_stack.web, modules=tap_stack.INSTANCE_MODULES).rstrip()
    assert source in script
    compile(source, "index.py", "exec")
    packages = tap_stack.WEB_PACKAGES.split("\n")[1:-1]
    assert all(" --hash=sha256:" in each for each in packages)
    assert {each.partition("==")[0] for each in packages} >= {"gunicorn", "psycopg", "boto3"}


@pytest.mark.parametrize(
    ("tier", "settings", "expected"),
    [
        ("prod", {"nat": "single"}, "nat must be per_az or none in prod"),
        ("prod", {"nat": "instance"}, "nat must be per_az or none in prod"),
        ("prod", {"plain_http": "true"}, "plain_http must be false in prod"),
        ("prod", {"database_multi_az": "false"}, "database_multi_az must be true in prod"),
        ("prod", {"backup_days": "1"}, "backup_days must be 7 or more in prod"),
        ("prod", {"deletion_protection": "false"}, "deletion_protection must be true in prod"),
        ("prod", {"instances_min": "1"}, "instances_min must be 2 or more in prod"),
        ("prod", {"spot_percent": "100"}, "spot_percent must be 50 or less in prod"),
        ("prod", {"domain_name": ""}, "domain_name or certificate_arn must be given"),
        ("staging", {"plain_http": "true"}, "plain_http must be false in staging"),
        ("dev", {"nat": "none"}, "nat must not be none without an image_id"),
        ("dev", {"instances_min": "3"}, "3 is more than instances_max, 2"),
        ("dev", {"vpc_cidr": "10.0.0.0/28"}, "vpc_cidr must be /16 to /24"),
        ("dev", {"disjoint_cidrs": '["10.0.128.0/17"]'}, "share 32,768 addresses"),
        ("dev", {"backup_days": "0"}, "backup_days must be 1 to 35"),
        (
            "dev",
            {"systems": '["web", "mail"]'},
            "systems must be a list of some of api, files, web",
        ),
        ("dev", {"systems": "[]"}, "systems must be"),
        ("dev", {"bastion_hours": "8-25"}, "bastion_hours must be"),
        (
            "dev",
            {"environment_suffix": "dev-a-long-name1", "project": "a-long-name-of-it"},
            "32 at",
        ),
    ],
)
def test_what_breaks_a_promise_is_refused(
    tier: str, settings: dict[str, str], expected: str
) -> None:
    with pytest.raises(TapLocalError, match=expected):
        graph_of(tier, **settings)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(TapLocalError) as caught:
        graph_of("prod", nat="single", backup_days="1", plain_http="true", instances_max="2")
    for name in ("nat must", "backup_days must", "plain_http must", "3 is more than instances_max"):
        assert str(caught.value).count(name) == 1


@pytest.mark.parametrize(
    ("systems", "kinds", "others"),
    [
        ('["api"]', {"aws:apigatewayv2/api:Api"}, {"aws:s3/bucket:Bucket", "aws:ec2/vpc:Vpc"}),
        (
            '["files"]',
            {"aws:s3/bucket:Bucket"},
            {"aws:ec2/vpc:Vpc", "aws:cognito/userPool:UserPool"},
        ),
        ('["web"]', {"aws:ec2/vpc:Vpc"}, {"aws:apigatewayv2/api:Api", "aws:dynamodb/table:Table"}),
    ],
)
def test_each_system_can_be_alone(systems: str, kinds: set[str], others: set[str]) -> None:
    graph = graph_of("dev", systems=systems)
    found = {each.type for each in graph.custom()}
    assert kinds <= found
    assert not others & found
    assert graph.outputs.keys() < tap_stack.OUTPUTS.keys()
    assert {"alerts_topic_arn", "dashboard_name", "key_arn"} < graph.outputs.keys()
