"""Writes WEB_PACKAGES in tap_stack.py from a pylock.toml on standard input, for `make lock`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "tap_stack.py"
LITERAL = re.compile(r'^(WEB_PACKAGES = """\n).*?(?=""")', re.DOTALL | re.MULTILINE)


def packages(lock: str) -> str:
    """A line each: name, version, and the digest of the only wheel that fits the instances."""
    lines = ""
    for each in tomllib.loads(lock)["packages"]:
        (wheel,) = each["wheels"]
        digest = wheel["hashes"]["sha256"]
        lines += f"{each['name']}=={each['version']} --hash=sha256:{digest}\n"
    return lines


def rewritten(program: str, lock: str) -> str:
    """The program with these packages; raises ValueError if it has no such literal."""
    text, found = LITERAL.subn(lambda match: match[1] + packages(lock), program)
    if found != 1:
        raise ValueError(f"{PROGRAM.name} must have WEB_PACKAGES once, and has it {found} times")
    return text


if __name__ == "__main__":
    PROGRAM.write_text(rewritten(PROGRAM.read_text(), sys.stdin.read()))
