"""Tokens of IAM that let users into databases, as the SDK's `generate_db_auth_token` signs them."""

from __future__ import annotations

import datetime
import hmac
from collections.abc import Container
from dataclasses import dataclass, field
from functools import reduce
from hashlib import sha256
from urllib.parse import unquote

LONGEST_SECONDS = 900  # RDS's
FIXED = {"Action": "connect", "X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-SignedHeaders": "host"}
FIELDS = {*FIXED, "DBUser", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires"}


@dataclass(frozen=True)
class Token:
    """What a token says: a presigned GET of version 4. Only `signed_with` verifies it."""

    address: str  #: "host:port"
    user: str
    access_key: str
    session_token: str
    signed_at: float  #: seconds since 1970
    seconds: int  #: how long it is good from then on
    _scope: str = field(repr=False)
    _query: str = field(repr=False)
    _date: str = field(repr=False)
    _signature: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Token:
        """Raises ValueError for what is no token for a database."""
        address, _, query = text.partition("/?")
        pairs = dict(each.partition("=")[::2] for each in query.split("&"))
        signature, session = pairs.pop("X-Amz-Signature", ""), pairs.get("X-Amz-Security-Token", "")
        values = {name: unquote(value) for name, value in pairs.items()}
        key, _, scope = values.get("X-Amz-Credential", "").partition("/")
        day, _, service = scope.partition("/")
        date = values.get("X-Amz-Date", "")
        if (
            {*pairs} - {"X-Amz-Security-Token"} != FIELDS
            or query.count("&") != len(pairs)  # none twice
            or any(values[name] != value for name, value in FIXED.items())
            or service.split("/")[1:] != ["rds-db", "aws4_request"]
            or day != date[:8]
        ):
            raise ValueError("not a token of generate_db_auth_token")
        signed = datetime.datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
        return cls(
            address=address,
            user=values["DBUser"],
            access_key=key,
            session_token=unquote(session),
            signed_at=signed.timestamp(),
            seconds=int(values["X-Amz-Expires"]),
            _scope=scope,
            _query="&".join(sorted(f"{name}={value}" for name, value in pairs.items())),
            _date=date,
            _signature=signature,
        )

    def good_for(self, addresses: Container[str], user: str, now: float) -> bool:
        """Whether it is for one of these addresses and the user, not too old nor of the future."""
        in_time = -300 <= now - self.signed_at <= self.seconds <= LONGEST_SECONDS
        return in_time and self.user == user and self.address in addresses

    def signed_with(self, secret_key: str) -> bool:
        """Whether this key signed it."""
        nothing = sha256().hexdigest()  # the body
        request = f"GET\n/\n{self._query}\nhost:{self.address}\n\nhost\n{nothing}"
        digest = sha256(request.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{self._date}\n{self._scope}\n{digest}"
        key = reduce(_hmac, self._scope.split("/"), f"AWS4{secret_key}".encode())
        return hmac.compare_digest(_hmac(key, text).hex().encode(), self._signature.encode())


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
