"""The page of the local cloud in the browser: where it is. `taplocal.page.server` serves it."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from taplocal import emulator as emulators

PORT = "page.port"  # in the data folder


def token(secret_key: str) -> str:
    """What opens the page of a folder: known to who can read its key, and good for nothing else."""
    return hmac.new(secret_key.encode(), b"taplocal page", hashlib.sha256).hexdigest()[:24]


def address(folder: Path, env: str) -> str | None:
    """The page's URL, which lets its reader in; None where another folder's emulator serves one.

    It stays the same when the emulator is started again.
    """
    emulator, path = emulators.recorded(folder), folder / PORT
    if emulator is None or not emulator.owned or not path.exists():
        return None
    return f"http://127.0.0.1:{path.read_text()}/?env={env}&token={token(emulator.secret_key)}"
