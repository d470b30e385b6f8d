"""Attacks on the emulator: by pages of other sites, other users of the machine, other folders."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from demo.web import wait_until
from taplocal import emulator, keeper
from taplocal.access import Response, person_token, request, send
from taplocal.emulator import ACCOUNT, Emulator
from taplocal.session import Session
from tests.local.conftest import HANG_SECONDS, Call, taplocal

EVIL = "http://evil.example"
BUCKET = f"tap-stack-files-dev-{ACCOUNT}"
TARGET = {
    "x-amz-target": "DynamoDB_20120810.ListTables",
    "content-type": "application/x-amz-json-1.0",
}
FORM = {"content-type": "multipart/form-data; boundary=x"}
FUNCTIONS = "/2015-03-31/functions"
HINT = "python -m taplocal env"


def assert_refused(response: Response, *, cors: bool = False) -> None:
    """Fails if a request got in, or if the page that sent it can read the refusal."""
    assert response.status in (400, 403), response.body
    assert cors or not [name for name in response.headers if name.startswith("access-control")]
    assert "traceback" not in response.body.lower()


@pytest.fixture
def url(deployed: Session) -> str:
    return deployed.cloud.emulator.url


# By pages of other sites


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:4566", "127.0.0.1.evil.example", "localhost.evil.example", "",
     "evil.example.elb.amazonaws.com", "0123456789abcdef0123456789abcdef.lambda-url.x.evil.example"],
)  # fmt: skip
@pytest.mark.parametrize(
    "path", ["/", "/_ministack/health", "/login", "/_aws/execute-api/a/b/items"]
)
def test_a_name_that_leads_here_is_refused(url: str, host: str, path: str) -> None:
    response = request("GET", url + path, headers={"host": host})
    assert_refused(response)
    assert "use 127.0.0.1 or localhost" in response.body


@pytest.mark.parametrize(
    "where",
    [{"origin": EVIL}, {"origin": "null"}, {"origin": "http://localhost:3000"},
     {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/_ministack/reset", {"content-type": "text/plain"}),
        ("POST", "/_ministack/config", {"content-type": "text/plain"}),
        ("GET", "/_ministack/health", {}),
        ("POST", FUNCTIONS, FORM),
        ("GET", f"{FUNCTIONS}?X-Amz-Credential={ACCOUNT}/20260101/us-east-1/lambda/aws4_request", {}),
        ("POST", "/", TARGET),
        ("OPTIONS", "/", {"access-control-request-method": "POST"}),
        ("OPTIONS", FUNCTIONS, {"access-control-request-method": "POST"}),
        ("GET", f"/{BUCKET}", {}),
        ("POST", f"/{BUCKET}?delete", FORM),
    ],
)  # fmt: skip
def test_a_page_of_another_site_is_refused(
    url: str, where: dict[str, str], method: str, path: str, headers: dict[str, str]
) -> None:
    body = b"{}" if method == "POST" else None
    assert_refused(request(method, url + path, body, {**headers, **where}))


def test_even_a_signed_request_is_refused_to_a_page(url: str, deployed: Session) -> None:
    keys = keys_of(deployed.cloud.emulator)
    response = signed("POST", f"{url}/", keys, "dynamodb", b"{}", {**TARGET, "origin": EVIL})
    assert_refused(response)
    assert "a page of another site may call the API" in response.body


def test_pages_reach_what_is_meant_for_them(url: str, deployed: Session, ann: Call) -> None:
    page = {"origin": "http://localhost:3000", "sec-fetch-site": "same-site"}
    api = deployed.state.api_url
    assert request("GET", f"{api}/items", headers=page).status == 401
    assert request("GET", f"{url}/oauth2/authorize", headers=page).status == 400
    pool = deployed.outputs["user_pool_id"]
    assert request("GET", f"{url}/{pool}/.well-known/jwks.json", headers=page).status == 200
    form = ann("POST", "/files", '{"name": "a.txt", "content_type": "text/plain"}')
    assert send(form, b"hello", **page).status == 204
    key = form.json()["fields"]["key"]
    link = presigned(deployed, key)
    assert request("GET", link, headers=page).body == "hello"


def test_answers_of_aws_are_readable_by_no_page(url: str, deployed: Session) -> None:
    answer = signed("POST", f"{url}/", keys_of(deployed.cloud.emulator), "dynamodb", b"{}", TARGET)
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


# Without the folder's key


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/_ministack/reset", {}),
        ("POST", "/_ministack/config", {}),
        ("GET", "/_ministack/sqs/messages", {}),
        ("GET", "/_ministack/lambda-code/tap-stack-api-dev", {}),
        ("POST", "/_ministack/rds/iam-auth", {}),
        ("POST", "/", TARGET),
        ("POST", "/", {**TARGET, "x-amz-target": "AWSCognitoIdentityProviderService.ListUserPools"}),
        ("POST", "/v2/email/x", {"x-amz-target": "AWSCognitoIdentityProviderService.InitiateAuth"}),
        ("POST", FUNCTIONS, FORM),
        ("GET", f"/{BUCKET}", {}),
        ("GET", f"/{BUCKET}/.well-known/secret", {}),
        ("POST", f"/{BUCKET}?delete", FORM),
        ("POST", f"/{BUCKET}/key", FORM),
        ("GET", "/v2/_catalog", {}),
        ("GET", "/v2/_catalog", {"host": "12345678.execute-api.127.0.0.1"}),
        ("POST", "/Execute", {"host": "12345678.execute-api.127.0.0.1"}),
        ("GET", "/v20180820/mrap/instances", {"host": "12345678.execute-api.127.0.0.1"}),
        ("GET", "/_alb/none/", {}),
        ("GET", f"/{BUCKET}?AWSAccessKeyId={ACCOUNT}&Signature=x&Expires=9999999999", {}),
        ("GET", "/", {"authorization": f"AWS {ACCOUNT}:x"}),
        ("GET", "/", {"authorization": "Bearer x"}),
    ],
)  # fmt: skip
def test_an_unsigned_request_is_refused_and_told_what_to_set(
    url: str, method: str, path: str, headers: dict[str, str]
) -> None:
    response = request(method, url + path, b"{}" if method == "POST" else None, headers)
    assert_refused(response, cors="host" in headers)
    assert HINT in response.body


Keys = tuple[str, str, str | None]


def keys_of(running: Emulator) -> Keys:
    return running.access_key, running.secret_key, None


def signed(
    method: str, url: str, keys: Keys, service: str, body: bytes | None = None,
    headers: dict[str, str] | None = None, auth: Any = botocore.auth.SigV4Auth, **changed: Any,
) -> Response:  # fmt: skip
    """The response to a request that the SDK's own code signs; `changed` is what is sent then."""
    to_sign = AWSRequest(method, url, data=body, headers=headers or {})
    auth(Credentials(*keys), service, "us-east-1").add_auth(to_sign)
    sent = {**dict(to_sign.headers), **changed.get("header", {})}
    at = (
        to_sign.url.replace(url, url.rstrip("/") + changed["path"])
        if "path" in changed
        else to_sign.url
    )
    return request(method, at, changed.get("text", body), sent)


WRONG: dict[str, Any] = {
    "another secret": {"secret": "x" * 40},
    "another key": {"key": "AKIA" + "A" * 16},
    "the account as the key": {"key": ACCOUNT, "secret": "local"},
    "the key of a plain MiniStack": {"key": "test", "secret": "test"},
    "a token that it does not have": {"token": "x"},
    "another body": {"text": b'{"Limit": 1}'},
    "another header": {"header": {"x-amz-target": "DynamoDB_20120810.DeleteTable"}},
    "another path": {"path": "/other"},
    "a query": {"path": "/?x=1"},
    "20 minutes ago": {"minutes": -20},
    "in 20 minutes": {"minutes": 20},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("auth", [botocore.auth.SigV4Auth, botocore.auth.S3SigV4Auth])
def test_a_signature_that_is_wrong_or_out_of_time_is_refused(
    url: str, deployed: Session, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], auth: Any
) -> None:
    running, wrong = deployed.cloud.emulator, dict(wrong)
    keys = (wrong.pop("key", running.access_key), wrong.pop("secret", running.secret_key),
            wrong.pop("token", None))  # fmt: skip
    shift_clock(monkeypatch, wrong.pop("minutes", 0))
    response = signed("POST", f"{url}/", keys, "dynamodb", b"{}", TARGET, auth=auth, **wrong)
    assert_refused(response)


def shift_clock(monkeypatch: pytest.MonkeyPatch, minutes: float) -> None:
    """Makes the SDK sign at another time."""
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_: now.replace(tzinfo=None))


@pytest.mark.parametrize("minutes", [-14, 0, 14])
def test_a_right_signature_gets_in_and_may_be_replayed_in_time_as_on_aws(
    url: str, deployed: Session, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    shift_clock(monkeypatch, minutes)
    keys = keys_of(deployed.cloud.emulator)
    for _ in range(2):
        assert signed("POST", f"{url}/", keys, "dynamodb", b"{}", TARGET).status == 200


def test_the_emulators_own_paths_are_the_owners_alone(url: str, deployed: Session) -> None:
    role = f"arn:aws:iam::{ACCOUNT}:role/tap-stack-api-dev"
    found = deployed.cloud.client("sts").assume_role(RoleArn=role, RoleSessionName="test")
    names = ("AccessKeyId", "SecretAccessKey", "SessionToken")
    of_role = tuple(found["Credentials"][each] for each in names)
    for path in ("/_ministack/reset", "/_ministack/config", "/v2/_catalog"):
        assert_refused(signed("POST", url + path, of_role, "sts", b"{}"))
    owner = keys_of(deployed.cloud.emulator)
    assert signed("POST", f"{url}/_ministack/config", owner, "sts", b"{}").status == 200


def test_the_keys_of_a_functions_role_cannot_be_derived_from_its_names(
    url: str, deployed: Session
) -> None:
    name = "tap-stack-api-dev"
    function = f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:{name}"
    assert deployed.cloud.client("lambda").invoke(FunctionName=name, Payload=b"{}")  # has keys
    for arn in (function, f"{function}:1", f"{function}:$LATEST"):
        digest = hashlib.sha256(f"{arn}:arn:aws:iam::{ACCOUNT}:role/{name}".encode()).hexdigest()
        secret, token = (
            hashlib.sha256(f"{what}:{digest}".encode()).hexdigest() for what in ("secret", "token")
        )
        keys = f"ASIA{digest[:16].upper()}", secret, token
        response = signed("GET", f"{url}/?Action=GetCallerIdentity", keys, "sts")
        assert_refused(response)
        assert "security token" in response.body


# Presigned URLs, forms and streams


def presigned(deployed: Session, key: str, seconds: int = 60) -> str:
    """A URL of an object, signed by root."""
    config = Config(signature_version="s3v4")
    running = deployed.cloud.emulator
    s3 = boto3.client(
        "s3", endpoint_url=running.url, aws_access_key_id=running.access_key, config=config,
        aws_secret_access_key=running.secret_key, region_name="us-east-1",
    )  # fmt: skip
    parameters = {"Bucket": BUCKET, "Key": key}
    return str(s3.generate_presigned_url("get_object", parameters, ExpiresIn=seconds))


def test_a_presigned_url_is_good_for_what_and_when_it_was_signed(
    deployed: Session, fresh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = deployed.cloud.client("s3")
    for key in (fresh, f"{fresh}-2"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"hello")
    good = presigned(deployed, fresh)
    assert request("GET", good).body == "hello"
    assert_refused(request("PUT", good, b"changed"))
    assert_refused(request("GET", good.replace(fresh, f"{fresh}-2")))
    assert_refused(request("GET", good.replace("Expires=60", "Expires=6000")))
    assert_refused(request("GET", re.sub("Signature=..", "Signature=00", good)))
    assert_refused(request("GET", good.replace("AKIA", "AKIB")))
    assert_refused(request("POST", good.replace(f"/{BUCKET}/{fresh}", "/_ministack/reset"), b""))
    assert_refused(request("POST", good.replace(f"/{BUCKET}/{fresh}", FUNCTIONS), b"{}"))
    shift_clock(monkeypatch, -10)
    assert request("GET", presigned(deployed, fresh, 3_600)).body == "hello"
    assert_refused(request("GET", presigned(deployed, fresh, 60)))


def test_a_query_may_be_signed_for_other_services_too(url: str, deployed: Session) -> None:
    who = f"{url}/?Action=GetCallerIdentity&Version=2011-06-15"
    query: Any = {"auth": botocore.auth.SigV4QueryAuth}
    running = deployed.cloud.emulator
    assert ":root" in signed("GET", who, keys_of(running), "sts", **query).body
    assert_refused(signed("GET", who, (running.access_key, "x", None), "sts", **query))


def test_a_form_without_a_signature_or_with_another_is_refused(url: str, ann: Call) -> None:
    def posted(**changes: str) -> Response:
        form = ann("POST", "/files", '{"name": "a.txt", "content_type": "text/plain"}')
        body = form.json()
        body["fields"] = {key: changes.get(key, value) for key, value in body["fields"].items()}
        body["fields"] = {key: value for key, value in body["fields"].items() if value}
        return send(Response(form.status, form.headers, json.dumps(body)), b"hello")

    assert posted().status == 204
    assert_refused(posted(**{"x-amz-signature": "0" * 64}), cors=True)
    assert_refused(posted(key="anybody/else"), cors=True)
    gone = ("policy", "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature",
            "x-amz-security-token")  # fmt: skip
    unsigned = posted(**dict.fromkeys(gone, ""))
    assert (unsigned.status, "AccessDenied" in unsigned.body) == (403, True)


class Streaming(botocore.auth.S3SigV4Auth):  # type: ignore[misc]
    """Signs the headers of an upload in signed chunks, which the SDK for Python does not make."""

    def payload(self, request: Any) -> str:
        return "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"


@pytest.mark.parametrize(("sent", "status"), [(b"hello", 200), (b"hullo", 403)])
def test_each_chunk_of_a_stream_is_verified(
    url: str, deployed: Session, fresh: str, sent: bytes, status: int
) -> None:
    signer = Streaming(Credentials(*keys_of(deployed.cloud.emulator)), "s3", "us-east-1")
    headers = {"x-amz-decoded-content-length": "5", "content-encoding": "aws-chunked"}
    to_sign = AWSRequest("PUT", f"{url}/{BUCKET}/{fresh}", headers=headers)
    signer.add_auth(to_sign)
    empty, scope = hashlib.sha256(b"").hexdigest(), signer.credential_scope(to_sign)
    body, previous = b"", to_sign.headers["authorization"].partition("Signature=")[2]
    for chunk, claimed in ((sent, b"hello"), (b"", b"")):
        lines = ("AWS4-HMAC-SHA256-PAYLOAD", to_sign.headers["x-amz-date"], scope, previous, empty)
        text = "\n".join([*lines, hashlib.sha256(claimed).hexdigest()])
        previous = signer.signature(text, to_sign)
        body += b"%x;chunk-signature=%s\r\n%s\r\n" % (len(chunk), previous.encode(), chunk)
    response = request("PUT", to_sign.url, body, dict(to_sign.headers))
    assert response.status == status, response.body
    if status == 200:
        stored = deployed.cloud.client("s3").get_object(Bucket=BUCKET, Key=fresh)
        assert stored["Body"].read() == sent


# Other folders, other users


@pytest.fixture(scope="module")
def neighbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """The emulator of another folder."""
    folder = tmp_path_factory.mktemp("neighbour")
    yield emulator.ensure(folder, "us-east-1")
    emulator.stop(folder)


def test_two_folders_that_choose_the_same_port_at_once_get_one_each(
    neighbour: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose, taken = emulator._free_port, iter([int(neighbour.url.rpartition(":")[2])])
    monkeypatch.setattr(emulator, "_free_port", lambda ports: next(taken, 0) or choose([0]))
    try:
        own = emulator.ensure(tmp_path, "us-east-1")
        assert own.url != neighbour.url
        assert own.takes_its_keys()
        assert not replace(own, url=neighbour.url).takes_its_keys()
    finally:
        emulator.stop(tmp_path)


def test_a_new_cloud_leaves_the_port_of_one_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(emulator, "PREFERRED_PORT", emulator._free_port([0]))
    first, second = tmp_path / "first", tmp_path / "second"
    try:
        killed = emulator.ensure(first, "us-east-1")
        assert urlsplit(killed.url).port == emulator.PREFERRED_PORT
        key = {"aws_access_key_id": killed.access_key, "aws_secret_access_key": killed.secret_key}
        sqs = boto3.client("sqs", region_name="us-east-1", endpoint_url=killed.url, **key)
        sqs.create_queue(QueueName="something-to-keep")
        assert wait_until(lambda: keeper.kept(first))
        os.kill(killed.pid, signal.SIGKILL)
        emulator._free_port([emulator.PREFERRED_PORT])  # waits until it is
        assert emulator.ensure(second, "us-east-1").url != killed.url
        assert emulator.ensure(first, "us-east-1").url == killed.url
    finally:
        for folder in filter(Path.exists, (first, second)):
            emulator.stop(folder)
    assert emulator._ports_of_new(second) == [emulator.PREFERRED_PORT, 0]


def test_a_folder_has_keys_and_a_state_of_its_own(
    url: str, deployed: Session, neighbour: Emulator
) -> None:
    own = deployed.cloud.emulator
    assert neighbour.access_key != own.access_key
    for at, keys in ((url, neighbour), (neighbour.url, own)):
        assert_refused(signed("POST", f"{at}/", keys_of(keys), "dynamodb", b"{}", TARGET))
    token = person_token(deployed, "ann@example.com")
    reset = f"{neighbour.url}/_ministack/reset"
    assert signed("POST", reset, keys_of(neighbour), "sts", b"").status == 200
    assert signed("POST", reset, keys_of(neighbour), "sts", b"").status == 200, "its key stays"
    asked = {"authorization": f"Bearer {token}"}
    assert request("GET", f"{deployed.state.api_url}/items", headers=asked).status == 200
    assert person_token(deployed, "ann@example.com")


def is_open(path: Path, data: Path) -> bool:
    """Whether others have a right to a file, and to all folders that it is in below the data."""
    others, folders = stat.S_IRWXG | stat.S_IRWXO, [x for x in path.parents if data in x.parents]
    # The outermost first: what is in a closed one may be gone, as the last snapshot is.
    return all(each.stat().st_mode & others for each in [*reversed(folders), path])


def test_no_other_user_reads_what_is_secret(deployed: Session, data: Path) -> None:
    walked = os.walk(data)  # which passes over what is removed meanwhile
    found = [path for at, _, names in walked for x in names if (path := Path(at, x)).is_file()]
    assert [each for each in found if each.suffix == ".pem"], "tokens' signing keys"
    harmless = {".gitignore", "lock"}
    public = [each for each in found if is_open(each, data)]
    assert {each.name for each in public} <= harmless
    secret = deployed.cloud.emulator.secret_key.encode()
    process = Path(f"/proc/{deployed.cloud.emulator.pid}")
    if process.exists():
        for each in ("cmdline", "environ"):
            assert secret not in (process / each).read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_another_user_is_denied_the_key(deployed: Session, data: Path) -> None:
    read = subprocess.run(
        ["/bin/cat", data / "emulator.json"], user=65534, group=65534, extra_groups=[],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (read.returncode, read.stdout) == (1, "")
    assert "Permission denied" in read.stderr


# The owner


def test_env_makes_the_sdk_of_a_shell_find_the_local_cloud(data: Path) -> None:
    who = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])"
    script = (
        f'eval "$({sys.executable} -m taplocal env --data {data})"; {sys.executable} -c "{who}"'
    )
    stale = {"AWS_SESSION_TOKEN": "stale", "AWS_PROFILE": "none"}
    done = subprocess.run(
        ["sh", "-c", script], env={**os.environ, **stale}, capture_output=True, text=True,
        timeout=HANG_SECONDS, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"arn:aws:iam::{ACCOUNT}:root\n", "")


def test_aws_passes_on_to_the_aws_cli(deployed: Session, data: Path, tmp_path: Path) -> None:
    command = tmp_path / "aws"
    command.write_text('#!/bin/sh\necho "$@ $AWS_ENDPOINT_URL $AWS_ACCESS_KEY_ID"\nexit 3\n')
    command.chmod(0o755)
    arguments = ("s3", "ls", "--recursive", "--help", "--json")
    done = taplocal(
        "aws", "--data", str(data), *arguments, env={"PATH": f"{tmp_path}:/bin:/usr/bin"}
    )
    running = deployed.cloud.emulator
    passed = f"--endpoint-url {running.url} {' '.join(arguments)}"
    assert done.stdout == f"{passed} {running.url} {running.access_key}\n"
    assert done.returncode == 3
    missing = taplocal("aws", "--data", str(data), "s3", "ls", env={"PATH": str(data)})
    assert (missing.returncode, "get its version 2" in missing.stderr) == (1, True)


def test_an_emulator_of_a_folder_is_named_by_the_folder(url: str, tmp_path: Path) -> None:
    options = ("--program", "examples/api_only", "--data", str(tmp_path / "cloud"))
    done = taplocal("up", *options, "--emulator", url)
    assert (done.returncode, "up --emulator FOLDER" in done.stderr) == (1, True), done.stderr


# In a browser

PAGE = """<!doctype html><title>evil</title><body><script>
const url = "URL", target = {"content-type": "text/plain"}, results = [];
const attempt = async (name, path, options) => {
  try { results.push(name + ": " + (await fetch(url + path, options)).status); }
  catch { results.push(name + ": blocked"); }
};
(async () => {
  await attempt("read", "/_ministack/health", {});
  await attempt("reset", "/_ministack/reset", {method: "POST", headers: target});
  await attempt("blind reset", "/_ministack/reset", {method: "POST", mode: "no-cors"});
  await attempt("list", "/2015-03-31/functions", {headers: {authorization: "AWS4-HMAC-SHA256"}});
  await attempt("keys", "/POOL/.well-known/jwks.json", {});
  document.body.textContent = results.join("; ");
})();
</script>"""


@contextmanager
def site(page: str) -> Iterator[str]:
    """The URL of a site with one page; its name is that of another machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://evil.example:{server.server_port}/"
    finally:
        server.shutdown()


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
def test_a_page_in_a_browser_reads_and_changes_nothing(
    url: str, deployed: Session, ann: Call, tmp_path: Path
) -> None:
    def shown(page: str, address: str) -> str:
        """The text of a page after its script, in a browser that finds both names on loopback."""
        done = subprocess.run(
            [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
             "--host-resolver-rules=MAP evil.example 127.0.0.1", "--virtual-time-budget=20000",
             "--no-proxy-server", "--dump-dom", address],
            capture_output=True, text=True, timeout=HANG_SECONDS, check=True,
        )  # fmt: skip
        return re.sub("<[^>]*>", "", done.stdout)

    page = PAGE.replace("URL", url).replace("POOL", deployed.outputs["user_pool_id"])
    with site(page) as address:
        found = shown(page, address)
    assert "read: blocked; reset: blocked; blind reset: 0; list: blocked; keys: 200" in found
    rebound = url.replace("127.0.0.1", "evil.example") + "/_ministack/health"
    assert "use 127.0.0.1 or localhost" in shown("", rebound)
    assert ann("GET", "/items").status == 200, "nothing is reset"
