"""Prints requirements-web.txt from a pylock.toml on standard input, for `make lock`."""

from __future__ import annotations

import sys
import tomllib


def packages(lock: str) -> str:
    """A line each: name, version, and the digest of the only wheel that fits the instances."""
    lines = ""
    for each in tomllib.loads(lock)["packages"]:
        (wheel,) = each["wheels"]
        digest = wheel["hashes"]["sha256"]
        lines += f"{each['name']}=={each['version']} --hash=sha256:{digest}\n"
    return lines


if __name__ == "__main__":
    sys.stdout.write(packages(sys.stdin.read()))
