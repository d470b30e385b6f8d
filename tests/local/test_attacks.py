"""Attacks on the running API, each with the answer that it gets: tokens, forms, paths, framing, pages."""

from __future__ import annotations

import base64
import hmac
import json
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from taplocal import access
from taplocal.access import Response
from taplocal.session import Session
from tests.local.conftest import HANG_SECONDS, Call

pytestmark = pytest.mark.usefixtures("unthrottled")

# Tokens. The tests have the private keys of the pool, which an attacker has not: each check of the
# authorizer is attacked alone, by a token that is right in all else.

OWN_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def encoded(part: Any) -> str:
    content = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def decoded(part: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def rs(key: Any, algorithm: Any = None) -> Callable[[bytes], bytes]:
    """Signs with RSA, PKCS#1 v1.5."""
    return lambda text: bytes(key.sign(text, padding.PKCS1v15(), algorithm or hashes.SHA256()))


@dataclass
class Pool:
    """A good token of a machine, taken apart, and the keys of its pool."""

    header: dict[str, Any]
    claims: dict[str, Any]
    access: Any
    identity: Any
    keys: list[dict[str, Any]]

    def public(self, encoding: Encoding = Encoding.PEM) -> bytes:
        """The public key, as an attacker would use it for a secret."""
        return bytes(
            self.access.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
        )


@pytest.fixture(scope="module")
def pool(deployed: Session, data: Path) -> Pool:
    header, claims, _ = access.machine_token(deployed).split(".")
    pool_id, keys = deployed.outputs["user_pool_id"], {}
    jwks = f"{deployed.cloud.emulator.url}/{pool_id}/.well-known/jwks.json"
    known = access.request("GET", jwks).json()["keys"]  # which makes them
    for use in ("access", "id"):
        (path,) = data.glob(f"state/*/{pool_id}-{use}.pem")
        keys[use] = load_pem_private_key(path.read_bytes(), None)
    return Pool(decoded(header), decoded(claims), keys["access"], keys["id"], known)


Change = dict[str, Any]
GONE: Any = object()


def changed(whole: Change, changes: Change) -> Change:
    return {name: x for name, x in {**whole, **changes}.items() if x is not GONE}


@dataclass
class Forged:
    """A token: what differs from a good one in its header, its claims, its signature."""

    expected: int
    header: Change | Callable[[Pool], Change] = field(default_factory=dict)
    claims: Change | Callable[[Pool], Change] = field(default_factory=dict)
    sign: Callable[[Pool], Callable[[bytes], bytes]] = lambda pool: rs(pool.access)

    def token(self, pool: Pool) -> str:
        header, claims = (x(pool) if callable(x) else x for x in (self.header, self.claims))
        first = encoded(changed(pool.header, header))
        text = f"{first}.{encoded(changed(pool.claims, claims))}"
        return f"{text}.{encoded(self.sign(pool)(text.encode()))}"


def unsigned(_: Pool) -> Callable[[bytes], bytes]:
    return lambda text: b""


def hs256(secret: Callable[[Pool], bytes]) -> Callable[[Pool], Callable[[bytes], bytes]]:
    """Signs with HMAC, with what everybody knows for a secret."""
    return lambda pool: lambda text: hmac.digest(secret(pool), text, "sha256")


def own_key(_: Pool) -> Callable[[bytes], bytes]:
    return rs(OWN_KEY)


def own_jwk(_: Pool) -> Change:
    numbers = OWN_KEY.public_key().public_numbers()
    n, e = (encoded(x.to_bytes(size, "big")) for x, size in ((numbers.n, 256), (numbers.e, 3)))
    return {"jwk": {"kty": "RSA", "n": n, "e": e, "alg": "RS256"}, "kid": "mine"}


HOUR = 3_600
TOKENS: dict[str, Forged] = {
    "the good one": Forged(200),
    "a good one with another type": Forged(200, {"typ": "at+jwt"}),
    "a good one with an audience in place of the client": Forged(
        200, claims=lambda pool: {"aud": pool.claims["client_id"], "client_id": GONE}
    ),
    "a good one with one of several audiences": Forged(
        200, claims=lambda pool: {"aud": ["other", pool.claims["client_id"]]}
    ),
    "a good one that is valid since now": Forged(200, claims=lambda _: {"nbf": int(time.time())}),
    "a good one with scopes as scp": Forged(403, claims={"scope": GONE, "scp": ["items/read"]}),
    # Algorithm and key.
    **{
        f"algorithm {name}": Forged(401, {"alg": name}, sign=unsigned)
        for name in ("none", "None", "NONE", "nOnE", "", "RS256")
    },
    "no algorithm": Forged(401, {"alg": GONE}),
    "none, and signed": Forged(401, {"alg": "none"}),
    "HS256 with the public key": Forged(401, {"alg": "HS256"}, sign=hs256(Pool.public)),
    "HS256 with the public key's DER": Forged(
        401, {"alg": "HS256"}, sign=hs256(lambda pool: pool.public(Encoding.DER))
    ),
    "HS256 with the modulus": Forged(
        401, {"alg": "HS256"}, sign=hs256(lambda pool: pool.keys[0]["n"].encode())
    ),
    "HS256 with nothing": Forged(401, {"alg": "HS256"}, sign=hs256(lambda _: b"")),
    "HS256 in name alone": Forged(401, {"alg": "HS256"}),
    "RS512": Forged(401, {"alg": "RS512"}, sign=lambda pool: rs(pool.access, hashes.SHA512())),
    "RS256 over SHA-512": Forged(401, sign=lambda pool: rs(pool.access, hashes.SHA512())),
    "RS256 over SHA-1": Forged(401, sign=lambda pool: rs(pool.access, hashes.SHA1())),  # noqa: S303
    "ES256": Forged(401, {"alg": "ES256"}, sign=lambda _: lambda text: b"\0" * 64),
    "an algorithm that is a list": Forged(401, {"alg": ["RS256"]}),
    "a signature of zeros": Forged(401, sign=lambda _: lambda text: b"\0" * 256),
    "a signature that is too short": Forged(
        401, sign=lambda pool: lambda text: rs(pool.access)(text)[:-1]
    ),
    "a signature with more behind it": Forged(
        401, sign=lambda pool: lambda text: rs(pool.access)(text) + b"\0"
    ),
    "another key": Forged(401, sign=own_key),
    "the key for ID tokens": Forged(401, sign=lambda pool: rs(pool.identity)),
    "no key id": Forged(401, {"kid": GONE}),
    **{
        f"key id {name!r}": Forged(401, {"kid": name}, sign=own_key)
        for name in ("", "mine", "../../../dev/null", "' OR 1=1 --", "ministack-key-1")
    },
    **{
        f"a key id that is {json.dumps(kid)}": Forged(401, {"kid": kid})
        for kid in (None, 1, ["a"], {"a": 1}, True)
    },
    "its own key in the header": Forged(401, own_jwk, sign=own_key),
    "its own key in the header under the pool's id": Forged(
        401, lambda pool: {**own_jwk(pool), "kid": pool.header["kid"]}, sign=own_key
    ),
    "its own address of keys": Forged(
        401, {"jku": "http://127.0.0.1:9/jwks.json", "kid": "mine"}, sign=own_key
    ),
    "its own certificate": Forged(
        401, {"x5u": "http://127.0.0.1:9/cert.pem", "x5c": ["MIIB"]}, sign=own_key
    ),
    "an extension that must be understood": Forged(401, {"crit": ["exp"], "exp": 0}),
    # Claims.
    "another pool": Forged(401, claims={"iss": "https://cognito-idp.us-east-1.amazonaws.com/x_y"}),
    "an issuer with a slash behind it": Forged(
        401, claims=lambda pool: {"iss": pool.claims["iss"] + "/"}
    ),
    "an issuer in capitals": Forged(401, claims=lambda pool: {"iss": pool.claims["iss"].upper()}),
    "a list of issuers": Forged(401, claims=lambda pool: {"iss": [pool.claims["iss"]]}),
    "no issuer": Forged(401, claims={"iss": GONE}),
    "another client": Forged(401, claims={"client_id": "somebody"}),
    "no client": Forged(401, claims={"client_id": GONE}),
    "another audience": Forged(401, claims={"aud": "somebody"}),
    "an empty list of audiences": Forged(401, claims={"aud": []}),
    "expired": Forged(401, claims=lambda _: {"exp": int(time.time()) - 1}),
    "expired long ago": Forged(401, claims={"exp": 0}),
    "a negative end": Forged(401, claims={"exp": -1}),
    "an end in words": Forged(401, claims={"exp": "tomorrow"}),
    "an end that is null": Forged(401, claims={"exp": None}),
    "an end that is a list": Forged(401, claims={"exp": [9_999_999_999]}),
    "an end that is true": Forged(401, claims={"exp": True}),
    "an end beyond all numbers": Forged(401, claims={"exp": float("inf")}),
    "no end": Forged(401, claims={"exp": GONE}),
    "not yet": Forged(401, claims=lambda _: {"nbf": int(time.time()) + HOUR}),
    "a beginning in words": Forged(401, claims={"nbf": "yesterday"}),
    "issued in the future": Forged(401, claims=lambda _: {"iat": int(time.time()) + HOUR}),
    "issued in words": Forged(401, claims={"iat": {}}),
    # Scopes.
    "no scope": Forged(403, claims={"scope": GONE}),
    "an ID token": Forged(403, claims={"scope": GONE, "token_use": "id"}),
    **{
        f"scope {json.dumps(scope)}": Forged(403, claims={"scope": scope})
        for scope in (
            "", "items/write", "items/rea", "items/read/", "ITEMS/READ", "items/*", "*",
            "items/reads", "xitems/read", "items/write,items/read", ["items/read"],
            {"items/read": 1}, None, True,
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("token", TOKENS)
def test_a_forged_token_gets_what_it_deserves(deployed: Session, pool: Pool, token: str) -> None:
    forged = TOKENS[token]
    response = access.call(deployed, "GET", "/items", forged.token(pool))
    assert_answered(response, forged.expected)


def assert_answered(response: Response, status: int) -> None:
    """Fails if an attack got another answer, or a word about the inside."""
    assert response.status == status, response.body
    for word in ("traceback", "exception", "arn:aws", "ministack"):
        assert word not in response.body.lower()


#: What stands in place of "Bearer <token>" -> the answer; {good} is a good token.
AUTHORIZATIONS: dict[str, int] = {
    "Bearer {good}": 200,
    "bearer {good}": 200,
    "{good}": 200,  # as on AWS, without the scheme
    "": 401,
    "Bearer": 401,
    "Bearer ": 401,
    "Basic {good}": 401,
    "Basic YWRtaW46YWRtaW4=": 401,
    "Bearer {good} {good}": 401,
    "Bearer {good}, Bearer {good}": 401,
    "Bearer {good}.": 401,
    "Bearer {good}.{good}": 401,
    "Bearer {good}%00": 401,
    "Bearer garbage": 401,
    "Bearer .": 401,
    "Bearer ..": 401,
    "Bearer ....": 401,  # the parts of an encrypted one
    "Bearer a.b.c": 401,
    "Bearer W10.W10.": 401,  # lists
    "Bearer bnVsbA.bnVsbA.bnVsbA": 401,  # null
    "Bearer e30.e30.": 401,  # empty objects
    "Bearer //8.//8.//8": 401,  # no UTF-8
    f"Bearer {encoded(b'[' * 3_000)}.e30.": 401,
    f"Bearer {'a' * 7_000}.b.c": 401,
}


@pytest.mark.parametrize("value", AUTHORIZATIONS, ids=lambda value: value[:40])
def test_what_is_no_bearer_token_opens_nothing(deployed: Session, value: str) -> None:
    sent = value.replace("{good}", access.machine_token(deployed, "items/read"))
    response = access.call(deployed, "GET", "/items", "", headers={"authorization": sent})
    assert_answered(response, AUTHORIZATIONS[value])


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/items?access_token={good}", {}),
        ("/items?authorization=Bearer%20{good}", {}),
        ("/items", {"cookie": "authorization=Bearer {good}"}),
        ("/items", {"proxy-authorization": "Bearer {good}"}),
        ("/items", {"x-forwarded-authorization": "Bearer {good}"}),
        ("/items", {"x-amzn-remapped-authorization": "Bearer {good}"}),
        ("/items", {"x-amz-security-token": "{good}"}),
    ],
)
def test_a_token_in_another_place_is_none(
    deployed: Session, path: str, headers: dict[str, str]
) -> None:
    good = access.machine_token(deployed, "items/read")
    sent = {name: value.replace("{good}", good) for name, value in headers.items()}
    response = access.call(deployed, "GET", path.replace("{good}", good), "", headers=sent)
    assert_answered(response, 401)


# Forms: what somebody does with a form that the API gave out, for 3 bytes of text.


@dataclass
class Post:
    """What differs from the right use of a form."""

    expected: int
    fields: Change = field(default_factory=dict)
    content: bytes = b"abc"
    more: list[tuple[str, Any]] = field(default_factory=list)  # behind the others
    bucket: str = ""
    method: str = "POST"
    content_type: str = ""
    file: str = "file"


def other(value: str) -> str:
    """The same text but for its last character."""
    return value[:-1] + ("A" if value[-1] != "A" else "B")


FIELDS = ("key", "Content-Type", "policy", "x-amz-algorithm", "x-amz-credential", "x-amz-date",
          "x-amz-security-token", "x-amz-signature")  # fmt: skip
SIGNED = ("key", "Content-Type", "policy", "x-amz-signature")  # what they tell is compared
POLICY: dict[str, Callable[[Any], Any]] = {
    "that ends in a year": lambda policy: {**policy, "expiration": "2099-01-01T00:00:00Z"},
    "without conditions": lambda policy: {**policy, "conditions": []},
    "for any size": lambda policy: {**policy, "conditions": policy["conditions"][:-1]},
    "for any key": lambda policy: {
        **policy,
        "conditions": [x for x in policy["conditions"] if "key" not in x]
        + [["starts-with", "$key", ""]],
    },
    "that is a list": lambda policy: [policy],
    "that is null": lambda policy: None,
}
POSTS: dict[str, Post] = {
    **{
        f"{how} {name}": Post(403 if name in ("Content-Type", "x-amz-credential") else 400, {name: x})
        for name in FIELDS
        for how, x in (("without", GONE), ("with an empty", ""))
    },
    **{f"with another {x}": Post(403 if x in SIGNED else 400, {x: other}) for x in FIELDS},
    **{f"with a policy {name}": Post(403, {"policy": change}) for name, change in POLICY.items()},
    # What the form does not name.
    **{
        f"with {name} as well": Post(403, {name: value})
        for name, value in {
            "acl": "public-read", "x-amz-acl": "public-read", "x-amz-tagging": "a=b",
            "x-amz-storage-class": "GLACIER", "x-amz-website-redirect-location": "http://evil",
            "x-amz-meta-owner": "bob", "x-amz-server-side-encryption": "AES256",
            "x-amz-server-side-encryption-aws-kms-key-id": "alias/evil",
            "x-amz-server-side-encryption-customer-algorithm": "AES256",
            "x-amz-object-lock-mode": "COMPLIANCE", "x-amz-object-lock-legal-hold": "ON",
            "x-amz-checksum-sha256": "AAAA", "x-amz-grant-read": "uri=all",
            "Cache-Control": "public", "Content-Disposition": "inline",
            "Content-Encoding": "gzip", "Content-Language": "de", "Expires": "0",
            "success_action_redirect": "http://evil.example", "success_action_status": "200",
            "redirect": "http://evil.example", "bucket": "somebody-elses",
        }.items()
    },
    # Other names and kinds.
    **{
        f"under {name}": Post(403, {"key": value})
        for name, value in {
            "somebody else's folder": "bob/a.txt", "another name": "${filename}",
            "a path": "../a.txt", "its own path twice": lambda key: f"{key}/../b.txt",
            "the root": "/", "a longer name": lambda key: f"{key}.html",
            "a folder": lambda key: key.partition("/")[0] + "/",
            "a name in capitals": str.upper, "a name with a blank": lambda key: f"{key} ",
            "a name with a NUL": lambda key: f"{key}\0.html",
        }.items()
    },
    **{
        f"as {kind}": Post(403, {"Content-Type": kind})
        for kind in ("text/html", "text/plain; charset=utf-8", "TEXT/PLAIN", "text/plain,text/html")
    },
    "with a second key": Post(403, more=[("key", "bob/a.txt")]),
    "with a second type": Post(403, more=[("Content-Type", "text/html")]),
    "with a second signature": Post(403, more=[("x-amz-signature", "0" * 64)]),
    # Credentials.
    **{
        f"with {name} in the credential": Post(expected, {"x-amz-credential": change})
        for name, (expected, change) in {
            "another key": (403, lambda text: "AKIAIOSFODNN7EXAMPLE" + text[text.index("/") :]),
            "another region": (400, lambda text: text.replace("us-east-1", "eu-west-1")),
            "another service": (400, lambda text: text.replace("/s3/", "/sts/")),
            "another end": (400, lambda text: text.replace("aws4_request", "aws5_request")),
            "another day": (400, lambda text: text.replace("/20", "/19", 1)),
            "one part more": (400, lambda text: f"{text}/x"),
        }.items()
    },
    "with the date in words": Post(400, {"x-amz-date": "today"}),
    "with another time of its day": Post(403, {"x-amz-date": lambda text: text[:9] + "000000Z"}),
    "with a signature in capitals": Post(403, {"x-amz-signature": str.upper}),
    "with a longer signature": Post(403, {"x-amz-signature": lambda text: text + "00"}),
    "with another algorithm": Post(400, {"x-amz-algorithm": "AWS4-HMAC-SHA1"}),
    "signed by version 2": Post(
        403,
        {**{name: GONE for name in FIELDS if name.startswith("x-amz-")},
         "AWSAccessKeyId": "AKIAIOSFODNN7EXAMPLE", "signature": "AAAA"},
    ),
    "with a policy that is no base64": Post(403, {"policy": "{}"}),
    # Content.
    **{f"with {size} bytes": Post(400, content=b"x" * size) for size in (0, 2, 4, 10**6)},
    "without a file": Post(400, file="other"),
    # Places and methods.
    "to another bucket": Post(403, bucket="tap-stack-assets-dev-000000000000"),
    "to a bucket that is none": Post(404, bucket="no-such-bucket-anywhere"),
    "by PUT": Post(403, method="PUT"),
    "by PUT to its key": Post(403, method="PUT", bucket="{bucket}/{key}"),
    "by DELETE": Post(403, method="DELETE", bucket="{bucket}/{key}"),
    "by GET of its key": Post(403, method="GET", bucket="{bucket}/{key}"),
    "by POST to its key": Post(403, bucket="{bucket}/{key}"),
    "as a deletion of many": Post(403, bucket="{bucket}?delete"),
    "as a multipart upload": Post(403, bucket="{bucket}/{key}?uploads"),
    "as JSON": Post(403, content_type="application/json"),
    "without its boundary": Post(403, content_type="multipart/form-data"),
    "with another boundary": Post(403, content_type="multipart/form-data; boundary=x"),
}  # fmt: skip


@pytest.fixture(scope="module")
def form(ann: Call) -> Any:
    """A form for a text of 3 bytes."""
    wanted = {"name": "attacked.txt", "content_type": "text/plain", "size": 3}
    response = ann("POST", "/files", json.dumps(wanted))
    assert response.status == 201
    return response.json()


def posted(form: Any, post: Post) -> Response:
    from urllib3.filepost import encode_multipart_formdata

    fields = dict(form["fields"])
    for name, change in post.fields.items():
        if name == "policy" and change in POLICY.values():
            policy = change(json.loads(base64.b64decode(fields["policy"])))
            fields["policy"] = base64.b64encode(json.dumps(policy).encode()).decode()
        elif change is GONE:
            del fields[name]
        else:
            fields[name] = change(fields[name]) if callable(change) else change
    parts = [*fields.items(), *post.more, (post.file, ("file", post.content))]
    body, content_type = encode_multipart_formdata(parts)
    root, _, bucket = form["url"].rpartition("/")
    place = post.bucket.format(bucket=bucket, key=form["fields"]["key"]) or bucket
    headers = {"content-type": post.content_type or content_type}
    return access.request(post.method, f"{root}/{place}", body, headers)


@pytest.mark.parametrize("post", POSTS)
def test_a_form_is_good_for_nothing_else(deployed: Session, form: Any, post: str) -> None:
    response = posted(form, POSTS[post])
    assert_answered(response, POSTS[post].expected)
    s3, bucket = deployed.cloud.client("s3"), deployed.outputs["files_bucket_name"]
    folder = form["fields"]["key"].partition("/")[0]
    assert not s3.list_object_versions(Bucket=bucket, Prefix=f"{folder}/attacked").get("Versions")
    assert not s3.list_objects_v2(Bucket=bucket, Prefix="bob/").get("Contents")


# Paths, headers, framing: as bytes on the connection, which no client of HTTP would send.


def raw(deployed: Session, request: bytes) -> bytes:
    """All that comes back until the connection ends; {host} in the request is the API's."""
    address = urlsplit(deployed.cloud.emulator.url)
    with socket.create_connection((address.hostname, address.port), HANG_SECONDS) as connection:
        connection.sendall(request.replace(b"{host}", address.netloc.encode()))
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def head(deployed: Session, method: str, path: str, *headers: str) -> bytes:
    """The head of a request to the API; the path as it is."""
    root = urlsplit(str(deployed.state.api_url)).path
    lines = [f"{method} {path.replace('{root}', root)} HTTP/1.1", "host: {host}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def statuses(answer: bytes) -> list[int]:
    """The status of each response in what came back."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


@pytest.mark.parametrize(
    "path",
    ["/openapi.yaml/../items", "/health/../items", "/health/%2e%2e/items", "/health%2f..%2fitems",
     "/health/..;/items", "/health;/items", "/health\\..\\items", "//items", "/./items", "/items/.",
     "/items/..", "/items/", "/items//", "/ITEMS", "/items%00", "/items%20", "/items%2f",
     "/items?.yaml", "/items;.yaml", "/items.yaml", "/health/items", "/openapi.yaml%00/items",
     "/items/../../items", "/%2e%2e/items", "/items/%252e%252e/health"],
)  # fmt: skip
def test_no_path_leads_around_the_token(deployed: Session, path: str) -> None:
    answer = raw(deployed, head(deployed, "GET", "{root}" + path, "connection: close"))
    (status,) = statuses(answer)
    assert status in (400, 401, 403, 404), answer
    assert b'"items"' not in answer


@pytest.mark.parametrize(
    "header",
    ["x-original-url: /health", "x-rewrite-url: /health", "x-forwarded-path: /health",
     "x-http-method-override: OPTIONS", "x-method-override: HEAD", "x-forwarded-for: 127.0.0.1",
     "x-amzn-oidc-identity: ann", "x-amzn-requestcontext: {}", "x-apigateway-event: {}",
     "authorization : Bearer x", "forwarded: for=127.0.0.1;proto=https"],
)  # fmt: skip
def test_no_header_leads_around_the_token(deployed: Session, header: str) -> None:
    request = head(deployed, "GET", "{root}/items", header, "connection: close")
    (status,) = statuses(raw(deployed, request))
    assert status in (400, 401)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/items?limit=1&category=%0d%0aset-cookie:%20a=b", {}, 200),
        ("GET", "/items?limit=1&category=%E5%98%8A%E5%98%8Dset-cookie:%20a=b", {}, 200),
        ("GET", "/items?limit=1%0d%0aset-cookie:%20a=b", {}, 400),
        ("GET", "/items/a%0d%0aset-cookie:%20a=b", {}, 404),
        ("GET", "/nothing%0d%0aset-cookie:%20a=b", {}, 404),
        ("POST", "/items", {"idempotency_key": "a%0d%0aset-cookie: a=b"}, 201),
        ("GET", "/items", {"if_none_match": '"a%0d%0aset-cookie:a=b"'}, 200),
        ("GET", "/items", {"if_none_match": '"a", set-cookie: a=b'}, 400),
        ("POST", "/items", {"content_type": "application/json; x=%0d%0aset-cookie"}, 201),
    ],
)
def test_what_a_caller_sends_becomes_no_header(
    ann: Call, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    for category in ("\r\nset-cookie: a=b", "嘊嘍set-cookie: a=b"):
        for _ in range(2):  # more than a page, whose link has the query
            ann("POST", "/items", json.dumps({"category": category}))
    response = ann(method, path, "{}" if method == "POST" else None, **headers)
    assert_answered(response, status)
    assert "set-cookie" not in response.headers
    assert not [x for x in response.headers.values() if "\n" in x or "\r" in x]
    if "category" in path:
        assert "set-cookie" in response.headers["link"]  # as text in a URL


@pytest.mark.parametrize(
    "name", ["a\r\nset-cookie: a=b", 'a"; filename="b.html', "a/../b", "\u202egpj"]
)
def test_the_name_of_a_file_becomes_no_header(ann: Call, name: str) -> None:
    response = ann("POST", "/files", json.dumps({"name": name, "content_type": "text/plain"}))
    assert "set-cookie" not in response.headers
    if response.status == 201:  # S3 is told the name in a header, when it is downloaded
        assert response.json()["fields"]["key"].endswith("/" + name)
    else:
        assert_answered(response, 422)


NO, BOTH = [400], [201, 200]
CHUNKED = "transfer-encoding: chunked"
#: A request with another one behind it -> their headers, body, and what is answered: who takes the
#: end of the first for somewhere else hides the other one from who stands before, or shows it.
BEHIND: dict[str, tuple[list[str], str, list[int]]] = {
    "a length": (["content-length: 2"], "{}", BOTH),
    "chunks": ([CHUNKED], "2\r\n{}\r\n0\r\n\r\n", BOTH),
    "a bare line feed": (["x: a\ncontent-length: 2"], "{}", BOTH),  # as RFC 9112, 2.2, permits
    "a folded line": (["transfer-encoding:", " chunked"], "2\r\n{}\r\n0\r\n\r\n", BOTH),  # 5.2
    "a length and chunks": (  # 6.1: the chunks count
        ["content-length: 2", CHUNKED],
        "2\r\n{}\r\n0\r\n\r\n",
        BOTH,
    ),
    "two lengths": (["content-length: 2", "content-length: 90"], "{}", NO),
    "a list of lengths": (["content-length: 2, 90"], "{}", NO),
    "a negative length": (["content-length: -2"], "{}", NO),
    "a length with a sign": (["content-length: +2"], "{}", NO),
    "a length in hexadecimals": (["content-length: 0x2"], "{}", NO),
    "a length with a blank inside": (["content-length: 2 0"], "{}", NO),
    "a length of many digits": ([f"content-length: {'9' * 40}"], "{}", NO),
    "a blank before the colon": (["content-length : 2"], "{}", NO),
    "an unknown coding": (["transfer-encoding: xchunked"], "0\r\n\r\n", [501]),
    "chunks twice": ([CHUNKED, CHUNKED], "0\r\n\r\n", [501]),
    "chunks and another": ([f"{CHUNKED}, identity"], "0\r\n\r\n", [501]),
    "chunks behind a tab": (["transfer-encoding:\x0bchunked"], "0\r\n\r\n", NO),
    "a size that is none": ([CHUNKED], "g\r\n\r\n", NO),
    "a negative size": ([CHUNKED], "-1\r\n\r\n", NO),
    "a chunk that is longer than its size": ([CHUNKED], "1\r\nab\r\n0\r\n\r\n", NO),
    "a bare carriage return": (["x: a\rcontent-length: 2"], "{}", NO),
    "a NUL in a header": (["x: a\0b"], "{}", NO),
    "a header without a name": ([": a"], "{}", NO),
}


@pytest.mark.parametrize("behind", BEHIND)
def test_no_request_hides_behind_another(deployed: Session, behind: str) -> None:
    headers, body, expected = BEHIND[behind]
    token = f"authorization: Bearer {access.machine_token(deployed)}"
    kind = "content-type: application/json"
    first = head(deployed, "POST", "{root}/items", token, kind, *headers)
    second = head(deployed, "GET", "{root}/health", "connection: close")
    assert statuses(raw(deployed, first + body.encode() + second)) == expected


# Pages of other sites


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://localhost", "http://localhost:3001",
     "https://localhost:3000", "http://localhost:3000.evil.example", "http://evil.localhost:3000",
     "http://localhost:30000", "http://localhost:3000/", "*", "",
     "http://localhost:3000, https://evil.example", "http://user@localhost:3000", "file://"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["OPTIONS", "GET"])
def test_a_page_elsewhere_reads_nothing(
    deployed: Session, ann: Call, method: str, origin: str
) -> None:
    headers = {"origin": origin, "access_control_request_method": "GET"}
    response = ann(method, "/items", **headers)
    found = [x for x in response.headers if x.startswith("access-control-allow")]
    assert not found, response.headers


def test_a_page_that_may_read_gets_no_cookies_sent(ann: Call) -> None:
    response = ann("GET", "/items", origin="http://localhost:3000")
    assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "access-control-allow-credentials" not in response.headers
