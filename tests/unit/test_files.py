"""The files in the API: forms for uploads, lists, versions, totals, each for its owner only."""

from __future__ import annotations

import base64
import datetime
import itertools
import json
import time
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import boto3
import botocore.auth
import botocore.signers
import pytest
from botocore.config import Config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tap_stack
from content_types import Start, content_type_of
from tap_stack import download_url, file_id, sign_page_token, upload_form
from tests.fakes import FakeContext, client_error
from tests.unit.conftest import Api, Response, assert_problem
from tests.unit.test_file_pipeline import created, scanned
from tests.unit.test_transport import HANGS, KEYS, REGION, serve  # noqa: F401 - a fixture

NEW = {"name": "a.png", "content_type": "image/png"}


def upload(api: Api, key: str, body: bytes = b"x", at: str = "2026-11-21T10:00:00.000Z") -> str:
    """Puts an object and lets the pipeline record it; returns the file's id."""
    s3: Any = tap_stack._clients["s3"]
    number = len(s3.objects)
    s3.put(key, f"v{number}", body, ContentType="text/plain")
    record = created(key, f"{number:08X}", f"v{number}", eventTime=at)
    tap_stack.record_files({"Records": [record]}, FakeContext())
    return file_id(key)


def listed(api: Api, path: str, name: str = "files", caller: str = "ann") -> list[list[Any]]:
    """The pages of a list, to its end."""
    pages, token = [], ""
    while True:
        response = api("GET", path + token, caller=caller)
        assert response.status == 200, response.text
        pages.append(response.json[name])
        if "next" not in response.json:
            return pages
        token = f"{'&' if '?' in path else '?'}next={response.json['next']}"


# POST /files


def policy(response: Response) -> list[Any]:
    return list(json.loads(base64.b64decode(response.json["fields"]["policy"]))["conditions"])


def test_the_form_is_good_for_one_key_type_and_size(api: Api) -> None:
    response = api("POST", "/files", {**NEW, "folder": "2026/ü b", "size": 17})
    assert response.status == 201
    key = "ann/2026/ü b/a.png"
    assert response.headers["location"] == f"/files/{file_id(key)}"
    assert response.headers["cache-control"] == "no-store"
    assert response.json["id"] == file_id(key)
    assert response.json["url"] == "https://files-bucket.s3.eu-west-1.amazonaws.com/"
    assert response.json["fields"]["key"] == key
    assert response.json["fields"]["x-amz-algorithm"] == "AWS4-HMAC-SHA256"
    conditions = policy(response)
    assert {"bucket": "files-bucket"} in conditions
    assert {"key": key} in conditions
    assert {"Content-Type": "image/png"} in conditions
    assert ["content-length-range", 17, 17] in conditions
    assert ["content-length-range", 0, 1_000_000] in policy(api("POST", "/files", NEW))


@pytest.mark.parametrize(
    ("name", "value"), [("sha256", "A" * 43 + "="), ("crc64nvme", "B" * 11 + "=")]
)
def test_the_form_is_good_for_one_checksum(api: Api, name: str, value: str) -> None:
    response = api("POST", "/files", {**NEW, name: value})
    expected = {f"x-amz-checksum-{name}": value, "x-amz-checksum-algorithm": name.upper()}
    assert expected.items() <= response.json["fields"].items()
    assert all({each: expected[each]} in policy(response) for each in expected)


@pytest.mark.parametrize(
    "checksums",
    [
        {"sha256": "A" * 64},  # in hexadecimal
        {"sha256": 1},
        {"crc64nvme": "B" * 43 + "="},
        {"sha256": "A" * 43 + "=", "crc64nvme": "B" * 11 + "="},
    ],
)
def test_a_checksum_that_is_none_is_rejected(api: Api, checksums: dict[str, Any]) -> None:
    response = api("POST", "/files", {**NEW, **checksums})
    assert response.status == 422
    assert {each["pointer"] for each in response.json["errors"]} == {f"/{x}" for x in checksums}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The SDK's client, whose clock stands still as ours does."""
    for name, value in {**KEYS, "aws_region": REGION, "bucket_name": "files-bucket"}.items():
        monkeypatch.setenv(name.upper(), value)
    now = 1_795_000_000
    monkeypatch.setattr(tap_stack, "time", SimpleNamespace(
        time=lambda: now, gmtime=time.gmtime, strftime=time.strftime,
    ))  # fmt: skip
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC).replace(tzinfo=None)
    for module in (botocore.auth, botocore.signers):
        monkeypatch.setattr(module, "get_current_datetime", lambda **_: moment)
    config = Config(signature_version="s3v4", s3={"addressing_style": "virtual"})
    regional = f"https://s3.{REGION}.amazonaws.com"
    session = boto3.Session(**KEYS, region_name=REGION)
    return session.client("s3", config=config, endpoint_url=regional)


@pytest.mark.parametrize("key", ["ann/a.txt", "ann/ä ☕/+~(1)'&?#%41.png", "ann//../b"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_address_of_a_content_is_the_sdks(s3: Any, method: str, key: str) -> None:
    name = key.rpartition("/")[2]
    expected = s3.generate_presigned_url(
        f"{method.lower()}_object",
        {
            "Bucket": "files-bucket",
            "Key": key,
            "VersionId": "v/1+",
            "ResponseContentDisposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        },
        tap_stack.DOWNLOAD_SECONDS,
    )
    ours, sdks = (urlsplit(x) for x in (download_url(method, key, "v/1+", name), expected))
    assert (ours.netloc, ours.path) == (sdks.netloc, sdks.path)
    assert sorted(parse_qsl(ours.query)) == sorted(parse_qsl(sdks.query))


@pytest.mark.usefixtures("s3")
def test_an_emulator_has_the_bucket_in_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:4566/")
    url = urlsplit(download_url("GET", "ann/a.txt", "v1", "a.txt"))
    assert (url.scheme, url.netloc) == ("http", "localhost:4566")
    assert url.path == "/files-bucket/ann/a.txt"


@pytest.mark.parametrize("checksum", [{}, {"sha256": "4tD="}])
def test_the_form_for_an_upload_is_the_sdks(s3: Any, checksum: dict[str, str]) -> None:
    declared = {"Content-Type": "image/png", "x-amz-meta-request-id": "r1"}
    if checksum:
        declared |= {"x-amz-checksum-algorithm": "SHA256", "x-amz-checksum-sha256": "4tD="}
    expected = s3.generate_presigned_post(
        Bucket="files-bucket", Key="ann/ä ☕.png", Fields=dict(declared),
        Conditions=[*({name: declared[name]} for name in declared), ["content-length-range", 0, 10]],
        ExpiresIn=tap_stack.UPLOAD_SECONDS,
    )  # fmt: skip
    found = upload_form("ann/ä ☕.png", "image/png", 0, 10, "r1", **checksum)
    assert found["url"] == expected["url"]
    policies = [
        json.loads(base64.b64decode(form["fields"].pop("policy"))) for form in (found, expected)
    ]
    for each in policies:
        each["conditions"].sort(key=str)
    assert policies[0] == policies[1]
    signature = found["fields"].pop("x-amz-signature")
    assert len(signature) == len(expected["fields"].pop("x-amz-signature"))
    assert found["fields"] == expected["fields"]


def test_all_mistakes_of_a_form_are_named_at_once(api: Api) -> None:
    wrong = {"name": "a/b", "folder": "/", "size": -1, "a~/b": 1, **dict.fromkeys("zyxwv", 1)}
    response = api("POST", "/files", wrong)
    assert_problem(response, 422, "And more: see errors.", "invalid-fields")
    pointers = [each["pointer"] for each in response.json["errors"]]
    unknown = ["/a~0~1b", "/z", "/y", "/x", "/w", "/v"]  # as they stand, in each process
    assert pointers == [*unknown, "/name", "/folder", "/content_type", "/size"]


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": ".."}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a\x7f"}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"size": None}, "size"),
        ({"name": "${filename}"}, "and $"),
        ({"name": "5$.txt"}, "and $, which S3 may refuse."),
        ({"folder": "5$"}, "folder"),
        ({"name": "x" * 1_021}, "at most 1019 bytes"),
        ({"folder": "/a"}, "folder"),
        ({"folder": "a/"}, "folder"),
        ({"folder": "a//b"}, "folder"),
        ({"folder": "../bob"}, "folder"),
        ({"folder": "a/./b"}, "folder"),
        ({"folder": 5}, "folder"),
        ({"content_type": None}, "image/*, application/pdf"),
        ({"content_type": "image/*"}, "content_type"),
        ({"content_type": "application/zip"}, "content_type"),
        ({"content_type": "application/pdf; x=1"}, "content_type"),
        ({"size": -1}, "size"),
        ({"size": 1.5}, "size"),
        ({"size": "1"}, "size"),
        ({"size": True}, "size"),
        ({"size": 1e30}, "size"),
        ({"size": 1e-30}, "size"),
        ({"size": 1_000_001}, "1000000"),
        ({"key": "bob/a"}, "Unknown field"),
    ],
)
def test_a_form_that_may_not_be_is_rejected(api: Api, change: dict[str, Any], detail: str) -> None:
    assert_problem(api("POST", "/files", {**NEW, **change}), 422, detail)


def test_what_is_no_json_object_is_rejected(api: Api) -> None:
    assert_problem(api("POST", "/files", "{"), 400)
    assert_problem(api("POST", "/files", []), 422)
    assert_problem(api("POST", "/files", NEW, content_type="text/plain"), 415)


def test_names_with_dots_in_them_are_fine(api: Api) -> None:
    for name in ("...", "..a", "a..", ".a"):
        assert api("POST", "/files", {**NEW, "name": name}).status == 201


# GET /files, GET /files/{id}


def test_a_file_comes_with_its_versions_newest_first(api: Api) -> None:
    identity = upload(api, "ann/trip/a.txt", b"one")
    for body in (b"three", b'{"a": 1}'):
        upload(api, "ann/trip/a.txt", body)
    file = api("GET", f"/files/{identity}").json
    assert (file["id"], file["folder"], file["content_type"]) == (
        identity,
        "trip",
        "application/json",
    )
    assert [each["size"] for each in file["versions"]] == [8, 5, 3]
    pages = listed(api, f"/files/{identity}?limit=2&order=asc", "versions")
    assert [[each["size"] for each in page] for page in pages] == [[3, 5], [8]]


def test_a_failed_version_says_so(api: Api) -> None:
    identity = upload(api, "ann/a")
    deleted = created("ann/a", "FFFFFFFF", "none")
    tap_stack.record_files({"Records": [deleted]}, FakeContext())
    file = api("GET", f"/files/{identity}").json
    assert file["version_id"] == "v0"
    assert api("GET", f"/files/{identity}/content?version_id=none").status == 404
    assert [each.get("failure") for each in file["versions"]] == [
        "The object was gone before it could be read.",
        None,
    ]


def test_somebody_elses_file_is_as_missing_as_one_that_never_was(api: Api) -> None:
    identity = upload(api, "bob/a")
    nobodys = upload(api, "at-the-root")
    never = [file_id("ann/never"), "no-id", "totals#2026-11", ""]
    for each in (identity, nobodys, *never[:3]):
        assert_problem(api("GET", f"/files/{each}"), 404, "There is no such file.")
    assert api("GET", f"/files/{identity}", caller="bob").status == 200


def test_a_content_is_at_an_address_of_a_minute(api: Api) -> None:
    identity = upload(api, "ann/trip/a b.txt", b"one")
    upload(api, "ann/trip/a b.txt", b"two")
    found = api("GET", f"/files/{identity}/content")
    assert (found.status, found.text, found.headers["cache-control"]) == (302, "", "no-store")
    address = urlsplit(found.headers["location"])
    query = dict(parse_qsl(address.query))
    assert address.path == "/ann/trip/a%20b.txt"
    assert (query["versionId"], query["X-Amz-Expires"]) == ("v1", "60")
    assert query["response-content-disposition"] == "attachment; filename*=UTF-8''a%20b.txt"
    older = api("GET", f"/files/{identity}/content?version_id=v0").headers["location"]
    assert dict(parse_qsl(urlsplit(older).query))["versionId"] == "v0"
    missing = "There is no such version, or it is deleted."
    assert_problem(api("GET", f"/files/{identity}/content?version_id=v7"), 404, missing)
    assert_problem(
        api("GET", f"/files/{identity}/content?limit=1"),
        400,
        "Unknown parameter; expected version_id.",
        "invalid-parameters",
    )
    foreign = api("GET", f"/files/{identity}/content", caller="bob")
    assert_problem(foreign, 404, "There is no such file.")


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; q=0.9, text/plain, */*", 200),
        ("*/*", 302),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", 302),
        ("application/problem+json, application/jsonp", 302),
        ("", 302),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_page_gets_the_address_of_a_content_as_json(
    api: Api, accept: str, status: int, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = upload(api, "ann/a")
    monkeypatch.setattr(time, "time", lambda: 1_795_000_000.0)
    redirected = api(method, f"/files/{identity}/content")
    found = api(method, f"/files/{identity}/content", accept=accept)
    assert (found.status, found.headers["cache-control"]) == (status, "no-store")
    if status == 200:
        assert found.json == {"url": redirected.headers["location"], "expires_in": 60}
        assert "location" not in found.headers
    else:
        assert (found.headers, found.text) == (redirected.headers, "")
    assert_problem(api(method, f"/files/{file_id('ann/b')}/content", accept=accept), 404)


def test_a_version_with_a_threat_is_not_given_out_and_not_restored(api: Api) -> None:
    identity = upload(api, "ann/a.txt", b"one")
    tap_stack.record_files(scanned("ann/a.txt", "v0", "EICAR"), FakeContext())
    upload(api, "ann/a.txt", b"two")
    older = api("GET", f"/files/{identity}").json["versions"][1]
    assert (older["scan_result"], older["threats"]) == ("THREATS_FOUND", ["EICAR"])
    reason = "GuardDuty found a threat in this version: EICAR."
    found = api("GET", f"/files/{identity}/content?version_id=v0")
    assert_problem(found, 409, reason, "threat-found")
    restored = api("POST", f"/files/{identity}/versions", {"version_id": "v0"})
    assert_problem(restored, 409, reason, "threat-found")
    assert api("GET", f"/files/{identity}/content").status == 302


def test_with_malware_protection_only_what_was_scanned_is_given_out(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = upload(api, "ann/a.txt", b"one")
    path, kind = f"/files/{identity}/content", "not-scanned"
    assert api("GET", path).status == 302
    monkeypatch.setenv("MALWARE_PROTECTION", "on")
    again = "The version must be scanned, and is not yet; try again."
    waiting = api("GET", path)
    assert_problem(waiting, 409, again, kind)
    assert waiting.headers["retry-after"] == "5"
    for minute, (result, status) in enumerate(
        (("FAILED", 409), ("UNSUPPORTED", 302), ("ACCESS_DENIED", 409), ("NO_THREATS_FOUND", 302))
    ):
        event = scanned("ann/a.txt", "v0", result=result, at=f"10:0{minute}:00")
        tap_stack.record_files(event, FakeContext())
        response = api("GET", path)
        assert response.status == status
        if status == 409:
            why = f"The version must be scanned, and could not be: {result}."
            assert_problem(response, 409, why, kind)
            assert "retry-after" not in response.headers


def test_the_address_of_the_longest_name_is_one_that_s3_takes(api: Api) -> None:
    """S3 refuses a request whose line and headers have more than 8,192 bytes; a token has 1,100."""
    name = "ä" * 480 + ".pdf"
    location = api("GET", f"/files/{upload(api, f'ann/{name}')}/content").headers["location"]
    assert len(location) < 8_192 - 2_000
    assert "%25C3%25A4.pdf&" in location


def test_the_paths_of_totals_and_report_are_no_files(api: Api) -> None:
    for method, name in itertools.product(("DELETE", "PUT"), ("report", "totals")):
        response = api(method, f"/files/{name}", {} if method == "PUT" else None)
        assert_problem(response, 405, f"{method} is not allowed here.")
        assert response.headers["allow"] == "GET, HEAD"


def test_a_file_is_deleted_once_and_its_versions_stay(api: Api) -> None:
    identity = upload(api, "ann/a", b"one")
    assert_problem(api("DELETE", f"/files/{identity}", caller="bob"), 404, "There is no such file.")
    for condition in ({"if_match": '"x"'}, {"if_none_match": "*"}):
        assert_problem(api("DELETE", f"/files/{identity}", **condition), 412)
    assert api("DELETE", f"/files/{identity}", if_match="*").status == 204
    name = "ObjectRemoved:DeleteMarkerCreated"
    event = created("ann/a", f"{9:08X}", "m1", eventName=name)
    tap_stack.record_files({"Records": [event]}, FakeContext())
    assert_problem(api("DELETE", f"/files/{identity}"), 404, "The file is deleted already.")
    missing = "There is no such version, or it is deleted."
    assert_problem(api("GET", f"/files/{identity}/content"), 404, missing)
    assert api("GET", f"/files/{identity}/content?version_id=v0").status == 302
    assert [each["id"] for each in api("GET", "/files?deleted=true").json["files"]] == [identity]
    assert api("GET", "/files").json["files"] == []
    assert_problem(api("GET", "/files?deleted=no"), 400, 'deleted is true, not "no".')


def test_a_file_with_a_dollar_that_somebody_else_has_put_is_a_file(api: Api) -> None:
    identity = upload(api, "ann/5$.txt", b"one")
    assert api("GET", f"/files/{identity}").json["name"] == "5$.txt"
    assert "/ann/5%24.txt" in api("GET", f"/files/{identity}/content").headers["location"]


def test_a_version_is_restored_by_a_copy_that_becomes_the_newest(api: Api) -> None:
    identity = upload(api, "ann/a", b"one")
    upload(api, "ann/a", b"two")
    path = f"/files/{identity}/versions"
    assert_problem(api("POST", path, {"version_id": "v0"}, caller="bob"), 404, "no such file")
    assert_problem(api("POST", path, {"version_id": "v1"}), 409, "It is the newest version.")
    missing = "There is no such version, or it is deleted."
    assert_problem(api("POST", path, {"version_id": "v7"}), 404, missing)
    here, other = "/version_id", "/x~1"
    for wrong, pointers in (
        ({}, [here]),
        ({"version_id": 1}, [here]),
        ({"version_id": ""}, [here]),
        ({"version_id": "v0", "x/": 1}, [other]),
        ({"x/": 1}, [here, other]),
    ):
        response = api("POST", path, wrong)
        assert_problem(response, 422, kind="invalid-fields")
        assert [each["pointer"] for each in response.json["errors"]] == pointers
    assert_problem(api("POST", path, {"version_id": "v0"}, if_match='"x"'), 412)
    restored = api("POST", path, {"version_id": "v0"})
    assert (restored.status, restored.json) == (201, {"version_id": "c2"})
    assert restored.headers["location"] == f"/files/{identity}"
    assert tap_stack._clients["s3"].objects["ann/a", "c2"]["body"] == b"one"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tap_stack, "COPY_BYTES", 2)
        assert_problem(api("POST", path, {"version_id": "v0"}), 409, "It is larger than 500 MB")
    tap_stack._clients["s3"].remove("ann/a", "v0")  # and its event is to come
    assert_problem(api("POST", path, {"version_id": "v0"}), 404, missing)


@pytest.mark.parametrize(
    ("code", "by", "protected", "status", "detail"),
    [
        ("ObjectNotInActiveTierError", "", False, 409, "The version is archived."),
        ("InvalidObjectState", "", False, 409, "The version is archived."),
        (
            "AccessDenied",
            "a resource-based policy",
            True,
            409,
            "The version is gone, or its tag",
        ),
        ("AccessDenied", "a resource-based policy", False, 500, "Internal error."),
        ("AccessDenied", "an identity-based policy", True, 500, "Internal error."),
    ],
)
def test_what_s3_does_not_copy_as_it_is_gets_409(
    api: Api, code: str, by: str, protected: bool, status: int, detail: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    identity = upload(api, "ann/a", b"one")
    upload(api, "ann/a", b"two")
    if protected:
        harmless = scanned("ann/a", "v0", result="NO_THREATS_FOUND")
        tap_stack.record_files(harmless, FakeContext())
        monkeypatch.setenv("MALWARE_PROTECTION", "on")

    def refuse(operation: str, _: Any) -> None:
        raise client_error(code, operation, f"with an explicit deny in {by}")

    tap_stack._clients["s3"].before = refuse
    capsys.readouterr()
    response = api("POST", f"/files/{identity}/versions", {"version_id": "v0"})
    assert_problem(response, status, detail, "not-scanned" if protected and status == 409 else "")
    assert code in json.loads(capsys.readouterr().out)["error"]


def test_the_address_that_head_redirects_to_is_signed_for_head(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/files/{upload(api, 'ann/a')}/content"
    monkeypatch.setattr(time, "time", lambda: 1_795_000_000.0)
    found = [api(method, path).headers["location"] for method in ("GET", "HEAD", "HEAD")]
    assert found[0] != found[1] == found[2]


def test_the_log_counts_what_it_takes_to_find_a_version(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = upload(api, "ann/a", b"one")
    upload(api, "ann/a", b"two")
    path = f"/files/{identity}/content"
    for method, url, body, units in (
        ("GET", path, None, 1),
        ("GET", f"{path}?version_id=v0", None, 1.5),
        ("POST", f"/files/{identity}/versions", {"version_id": "v0"}, 1.5),
    ):
        capsys.readouterr()
        assert api(method, url, body).status < 400
        assert json.loads(capsys.readouterr().out)["consumed_capacity"] == units


def test_a_version_is_copied_once_however_long_s3_is_silent(
    api: Api,
    serve: Any,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    identity = upload(api, "ann/a", b"one")
    upload(api, "ann/a", b"two")
    head = b"HTTP/1.1 200 OK\r\nx-amz-version-id: c2\r\ncontent-length: 19\r\n\r\n"
    url, s3 = serve([[b""] * 60 + [head + b"<CopyObjectResult/>"]])  # 0.6 s of silence
    clients = {name: tap_stack._clients[name] for name in ("dynamodb", "ssm")}
    monkeypatch.setattr(tap_stack, "_clients", clients)
    monkeypatch.setattr(tap_stack, "READ_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(tap_stack, "CONNECT_TIMEOUT_SECONDS", HANGS)  # on a busy machine
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    tap_stack.sdk_client.cache_clear()
    restored = api("POST", f"/files/{identity}/versions", {"version_id": "v0"})
    tap_stack.sdk_client.cache_clear()
    assert (restored.status, restored.json) == (201, {"version_id": "c2"})
    assert len(s3.requests) == 1


def test_a_deleted_file_is_restored_too(api: Api) -> None:
    identity = upload(api, "ann/a", b"one")
    assert api("DELETE", f"/files/{identity}").status == 204
    event = created("ann/a", f"{9:08X}", "m1", eventName="ObjectRemoved:DeleteMarkerCreated")
    tap_stack.record_files({"Records": [event]}, FakeContext())
    assert "deleted_at" in api("GET", f"/files/{identity}").json
    assert_problem(api("GET", f"/files/{identity}/content"), 404)
    restored = api("POST", f"/files/{identity}/versions", {"version_id": "v0"}).json
    event = created("ann/a", f"{10:08X}", restored["version_id"])
    tap_stack.record_files({"Records": [event]}, FakeContext())
    assert api("GET", f"/files/{identity}").json["version_id"] == restored["version_id"]
    assert "deleted_at" not in api("GET", f"/files/{identity}").json


def test_lists_are_by_folder_by_type_by_time_or_of_all(api: Api) -> None:
    for key, body, day in (
        ("ann/a.txt", b"x", "20"),
        ("ann/f/b.pdf", b"%PDF-", "20"),
        ("ann/f/c.txt", b"x", "21"),
        ("ann/f/g/d.txt", b"x", "21"),
        ("ann2/f/e.txt", b"x", "21"),
        ("bob/f/f.txt", b"x", "21"),
    ):
        upload(api, key, body, f"2026-11-{day}T10:00:00.000Z")
    names = {
        "": ["d.txt", "c.txt", "b.pdf", "a.txt"],
        "order=asc": ["a.txt", "b.pdf", "c.txt", "d.txt"],
        "folder=f": ["c.txt", "b.pdf"],
        "folder=": ["a.txt"],
        "folder=none": [],
        "below=f": ["d.txt", "c.txt", "b.pdf"],
        "below=f/g": ["d.txt"],
        "below=": ["d.txt", "c.txt", "b.pdf", "a.txt"],
        "below=f&to=2026-11-20": ["b.pdf"],
        "content_type=text/plain": ["d.txt", "c.txt", "a.txt"],
        "from=2026-11-20&to=2026-11-20": ["b.pdf", "a.txt"],
        "from=2026-11-22": [],
        "to=2026-11-20T10:00:00Z": ["b.pdf", "a.txt"],
        "to=2026-11-20T09:59:59.999Z": [],
        "from=2026-11-21T10:00:00Z&folder=f": ["c.txt"],
        "from=2026-11-21&content_type=text/plain": ["d.txt", "c.txt"],
        "from=2026-11-22&deleted=true": [],
    }
    for query, expected in names.items():
        for limit in (100, 1):
            pages = listed(api, f"/files?limit={limit}&{query}".rstrip("&"))
            found = [each["name"] for page in pages for each in page]
            assert sorted(found) == sorted(expected), query
            assert max(map(len, pages)) <= limit


@pytest.mark.parametrize(
    "query",
    [
        "category=x",
        "folder=a&below=a",
        "from=today",
        "to=2026-02-30",
        "from=20261121",
        "from=2026-11-22&to=2026-11-21",
        "limit=0",
        "order=up",
        "next=AAAA",
        "folder=" + "x" * 1_025,
    ],
)
def test_a_list_that_cannot_be_is_400(api: Api, query: str) -> None:
    assert_problem(api("GET", f"/files?{query}"), 400)


def test_all_mistakes_of_a_query_are_named_at_once(api: Api) -> None:
    response = api("GET", "/files?limit=0&order=up&from=today&folder=f&x=1")
    assert_problem(response, 400, "And more", "invalid-parameters")
    wrong = {each["parameter"]: each["detail"] for each in response.json["errors"]}
    assert wrong.keys() == {"limit", "order", "from", "x"}
    assert wrong["limit"] == 'limit is 1 to 100, not "0".'
    both = api("GET", "/files?folder=f&from=2026-11-24&below=f").json["errors"]
    assert [each["parameter"] for each in both] == ["folder", "below"]


def test_a_token_is_good_for_its_caller_and_list_only(api: Api) -> None:
    for n in range(3):
        upload(api, f"ann/f/{n}")
        upload(api, f"bob/f/{n}")
    token = api("GET", "/files?folder=f&limit=1").json["next"]
    assert api("GET", f"/files?folder=f&limit=1&next={token}").status == 200
    assert_problem(api("GET", f"/files?folder=f&next={token}", caller="bob"), 400)
    for path in (
        "/files?",
        "/files?folder=g&",
        "/files?folder=f&from=2026-11-21&",
        "/files?below=f&",
        "/items?",
        "/files/totals?",
    ):
        assert_problem(api("GET", f"{path}next={token}"), 400)


# GET /files/totals


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    uploads=st.lists(
        st.tuples(
            st.integers(9, 12),
            st.integers(10, 14),
            st.sampled_from((b"x", b"%PDF-", b"")),
            st.booleans(),
        ),
        max_size=12,
    ),
    limit=st.integers(1, 5),
    order=st.sampled_from(("asc", "desc")),
)
def test_totals_add_up_whatever_the_page(
    api: Api, uploads: list[tuple[int, int, bytes, bool]], limit: int, order: str
) -> None:
    api.table.files.clear()
    tap_stack._clients["s3"].objects.clear()
    expected: dict[tuple[str, str], list[int]] = {}
    for n, (month, day, body, mine) in enumerate(uploads):
        at = f"2026-{month:02}-{day}T23:59:59.999Z"
        upload(api, f"{'ann' if mine else 'ann2'}/{n}", body, at)
        if mine and "2026-09-13" <= at[:10] <= "2026-12-12":
            group = at[:10], content_type_of(Start(body))
            count, size = expected.get(group, [0, 0])
            expected[group] = [count + 1, size + len(body)]
    query = f"from=2026-09-13&to=2026-12-12&limit={limit}&order={order}"
    pages = listed(api, f"/files/totals?{query}", "totals")
    found = [each for page in pages for each in page]
    assert {(x["day"], x["content_type"]): [x["count"], x["bytes"]] for x in found} == expected
    assert len(found) == len(expected)
    positions = [(each["day"], each["content_type"]) for each in found]
    assert positions == sorted(positions, reverse=order == "desc")
    assert max(map(len, pages)) <= limit


def test_totals_read_what_they_show(api: Api) -> None:
    for n in range(92):
        day = datetime.date(2026, 9, 1) + datetime.timedelta(n)
        upload(api, f"ann/{n}", at=f"{day}T00:00:00.000Z")
    api.table.calls.clear()
    query = "/files/totals?from=2026-09-01&to=2026-12-01"
    assert len(api("GET", f"{query}&limit=100").json["totals"]) == 92
    assert api.table.calls == ["Query"] * 4
    api.table.calls.clear()
    assert len(api("GET", f"{query}&limit=3&order=asc").json["totals"]) == 3
    assert api.table.calls == ["Query"], "a page reads no month that it does not show"


def test_totals_are_todays_unless_days_are_given(api: Api) -> None:
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    upload(api, "ann/a", at=f"{today}T00:00:00.000Z")
    upload(api, "ann/b", at="2020-01-01T00:00:00.000Z")
    assert [each["count"] for each in api("GET", "/files/totals").json["totals"]] == [1]
    old = api("GET", "/files/totals?to=2020-01-01").json["totals"]
    total = {"day": "2020-01-01", "content_type": "text/plain", "count": 1, "bytes": 1}
    assert old == [{**total, "stored_count": 1, "stored_bytes": 1}]


@pytest.mark.parametrize(
    ("kind", "scope"),
    [
        ("totals", ("totals", "ann", "2026-11-01", "2026-11-30", "desc")),
        ("report", ("report", "ann", "month", "2026-11-01", "2026-11-30")),
    ],
)
def test_a_token_of_the_release_before_is_400(api: Api, kind: str, scope: Any) -> None:
    token = sign_page_token("2026-11-05", "image/png", scope)
    path = f"/files/{kind}?from=2026-11-01&to=2026-11-30&next={token}"
    assert_problem(api("GET", path), 400)


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("first", ["", "&from=2026-11-29"])
def test_totals_go_on_when_midnight_comes_between_two_pages(
    api: Api, first: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, (day, body) in enumerate(itertools.product((29, 30), (b"x", b"%PDF-"))):
        upload(api, f"ann/{n}", body, f"2026-11-{day}T00:00:00.000Z")
    upload(api, "ann/new", at="2026-12-01T00:00:00.000Z")
    path = f"/files/totals?limit=1&order={order}{first}"
    monkeypatch.setattr(tap_stack, "now", lambda: "2026-11-30T23:59:59.999999Z")
    expected, start = listed(api, path, "totals"), api("GET", path).json
    monkeypatch.setattr(tap_stack, "now", lambda: "2026-12-01T00:00:00.000000Z")
    rest = listed(api, f"{path}&next={start['next']}", "totals")
    assert [start["totals"], *rest] == expected and len(expected) == (4 if first else 2)
    for other in ("&to=2026-11-30", "&from=2026-11-30"):
        assert_problem(api("GET", f"{path}{other}&next={start['next']}"), 400)


@pytest.mark.parametrize(
    "query",
    [
        "from=x",
        "from=2026-11-02&to=2026-11-01",
        "from=2026-01-01&to=2026-12-31",
        "from=0001-01-01&to=9999-12-31",
        "days=3",
    ],
)
def test_totals_that_cannot_be_are_400(api: Api, query: str) -> None:
    assert_problem(api("GET", f"/files/totals?{query}"), 400)


# GET /files/report


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    uploads=st.lists(
        st.tuples(
            st.sampled_from(("ann", "bob", "x y", "")),
            st.sampled_from(("2025-12-31", "2026-01-01", "2026-02-28", "2026-11-30")),
            st.sampled_from((b"x", b"%PDF-", b"")),
            st.booleans(),
        ),
        max_size=12,
    ),
    size=st.integers(1, 5),
    by=st.sampled_from(("day", "month", "type", "owner")),
)
def test_the_report_adds_up_whatever_the_page(
    api: Api, uploads: list[tuple[str, str, bytes, bool]], size: int, by: str
) -> None:
    api.table.files.clear()
    tap_stack._clients["s3"].objects.clear()
    expected: dict[str, list[int]] = {}
    for n, (owner, day, body, deleted) in enumerate(uploads):
        key = f"{owner}/{n}" if owner else f"{n}"
        upload(api, key, body, f"{day}T23:59:59.999Z")
        if deleted:
            event = created(key, f"{99:08X}", f"v{n}", eventName="ObjectRemoved:Delete")
            tap_stack.record_files({"Records": [event]}, FakeContext())
        if day >= "2026-01-01":
            content_type = content_type_of(Start(body))
            group = {"day": day, "month": day[:7], "owner": owner, "type": content_type}[by]
            added = (1, len(body), int(not deleted), 0 if deleted else len(body))
            expected[group] = [
                a + b for a, b in zip(expected.get(group, [0] * 4), added, strict=True)
            ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tap_stack, "REPORT_SHARDS", size)
        pages = listed(api, f"/files/report?from=2026-01-01&to=2026-12-31&by={by}", "report")
    found: dict[str, list[int]] = {}
    for row in (row for page in pages for row in page):
        counts = [row[x] for x in ("count", "bytes", "stored_count", "stored_bytes")]
        found[row[by]] = [a + b for a, b in zip(found.get(row[by], [0] * 4), counts, strict=True)]
    assert found == expected


def test_a_report_is_of_this_month_unless_days_are_given(api: Api) -> None:
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    upload(api, "ann/a", at=f"{today}T00:00:00.000Z")
    upload(api, "bob/b", at=f"{today}T00:00:00.000Z")
    upload(api, "bob/c", at="2020-01-01T00:00:00.000Z")
    counts = {"count": 2, "bytes": 2, "stored_count": 2, "stored_bytes": 2}
    assert api("GET", "/files/report").json == {"report": [{"month": today[:7], **counts}]}
    pages = listed(api, "/files/report?from=2019-01-01&by=owner", "report")
    old, *new = [row for page in pages for row in page]
    assert (old["owner"], [each["owner"] for each in new]) == ("bob", ["ann", "bob"])


@pytest.mark.parametrize("first", ["", "&from=2026-10-31"])
def test_the_report_goes_on_when_midnight_comes_between_two_pages(
    api: Api, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, day in enumerate(("10-31", "11-01", "11-29", "11-30", "12-01")):
        upload(api, f"ann/{n}", at=f"2026-{day}T00:00:00.000Z")
    monkeypatch.setattr(tap_stack, "REPORT_SHARDS", 1)
    path = f"/files/report?by=day{first}"
    monkeypatch.setattr(tap_stack, "now", lambda: "2026-11-30T23:59:59.999999Z")
    expected, start = listed(api, path, "report"), api("GET", path).json
    monkeypatch.setattr(tap_stack, "now", lambda: "2026-12-01T00:00:00.000000Z")
    rest = listed(api, f"{path}&next={start['next']}", "report")
    assert [start["report"], *rest] == expected
    days = [row["day"] for page in expected for row in page]
    assert days == ["2026-10-31"] * bool(first) + [f"2026-11-{x}" for x in ("01", "29", "30")]
    for other in ("&to=2026-11-30", "&from=2026-11-30"):
        assert_problem(api("GET", f"{path}{other}&next={start['next']}"), 400)


@pytest.mark.parametrize("letter", ["x", "я", '"', "\\", "\n", "\x01"])
def test_the_report_goes_on_behind_the_longest_owner(api: Api, letter: str) -> None:
    owner = letter * (tap_stack.OWNER_BYTES // len(letter.encode()))
    for name, day in (("a", "10"), ("b", "11")):
        upload(api, f"{owner}/{name}", at=f"2026-11-{day}T00:00:00.000Z")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tap_stack, "REPORT_SHARDS", 1)
        pages = listed(api, "/files/report?from=2026-11-01&to=2026-11-30&by=owner", "report")
    assert [[row["owner"] for row in page] for page in pages] == [[owner], [owner], []]


def queries_of(api: Api, path: str) -> list[dict[str, Any]]:
    """What a request asks the table for."""
    queries, query = list[dict[str, Any]](), api.table.query

    def noted(**arguments: Any) -> Any:
        queries.append(arguments)
        return query(**arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(api.table, "query", noted)
        assert api("GET", path).status == 200
    return queries


def test_a_page_of_totals_and_of_the_report_asks_for_what_it_still_needs(api: Api) -> None:
    for month, day in itertools.product(("09", "10", "11"), ("10", "11", "12")):
        upload(api, "ann/a", at=f"2026-{month}-{day}T00:00:00.000Z")
    totals = queries_of(api, "/files/totals?from=2026-09-01&to=2026-11-30&limit=5")
    assert [each["Limit"] for each in totals] == [96, 93]
    report = queries_of(api, "/files/report?from=2026-09-01&to=2026-11-30")
    assert [each["Limit"] for each in report] == [1_616, 1_613, 1_610]


def test_a_page_of_the_report_reads_a_year_at_most_and_the_next_one_goes_on(api: Api) -> None:
    for year in (2018, 2022, 2026):
        upload(api, "ann/a", at=f"{year}-06-10T00:00:00.000Z")
    path = "/files/report?from=2018-01-01&to=2026-12-31"
    assert len(queries_of(api, path)) == tap_stack.REPORT_MONTHS
    pages = listed(api, path, "report")
    assert [[row["month"] for row in page] for page in pages] == [
        ["2018-06"], [], [], [], ["2022-06"], [], [], [], ["2026-06"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    "query", ["by=size", "from=2026-11-02&to=2026-11-01", "from=2001-01-01", "limit=3", "next=AAAA"]
)
def test_a_report_that_cannot_be_is_400(api: Api, query: str) -> None:
    assert_problem(api("GET", f"/files/report?{query}"), 400)


# Without a pipeline


def test_without_a_pipeline_there_are_no_files(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FILES_TABLE_NAME")
    assert api.raw("GET", "/files", routeKey="$default").status == 404
