"""Requests to the emulator's own paths, which are its folder's owner's alone."""

from __future__ import annotations

import http.client
import json
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

SECONDS = 30.0
#: Without proxies: what it opens is on this machine.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def post(
    url: str, access_key: str, secret_key: str, path: str, told: Any, seconds: float = SECONDS
) -> Any:
    """Sends a value to one of the emulator's own paths, signed; the value that it answers.

    Raises OSError if it does not answer within `seconds`, or with an error.
    """
    address, body = urlsplit(url).netloc, json.dumps(told).encode()
    request = AWSRequest("POST", url + path, {"Host": address}, body)
    SigV4Auth(Credentials(access_key, secret_key), "sts", "us-east-1").add_auth(request)
    connection = http.client.HTTPConnection(address, timeout=seconds)
    try:
        # Else the emulator keeps what it has of each connection for 75 seconds.
        connection.request("POST", path, body, {**request.headers, "Connection": "close"})
        response = connection.getresponse()
        text = response.read()
    except http.client.HTTPException as error:
        raise OSError(f"{path}: {error!r}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise OSError(f"{path}: {response.status} {text[:300].decode(errors='replace')}")
    return json.loads(text)
