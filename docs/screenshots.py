"""Writes the pictures of the page for the README, in both themes: a part of `make pictures`.

From a local cloud of its own, after some requests and files. Does nothing without a browser.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def taplocal(folder: str, *arguments: str) -> str:
    """What a command prints, which must succeed."""
    command = [sys.executable, "-m", "taplocal", *arguments, "--data", folder]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def use(folder: str) -> None:
    """Some work of a person, so that there is something to see."""
    person = ("--user", "ann@example.com")
    for number in range(8):
        taplocal(folder, "call", "POST", "/items", f'{{"name": "item {number}"}}', *person)
        taplocal(folder, "call", "GET", "/items?limit=5", *person)
    for name in ("README.md", "docs/architecture.svg", "openapi.yaml"):
        taplocal(folder, "upload", name, *person)


def main() -> None:
    """Writes docs/page-light.png and docs/page-dark.png."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("no picture of the page is written: that needs Chromium, and `make page`")
        return
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as run:
        taplocal(folder, "up")
        use(folder)
        browser = run.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 800})
            page.goto(taplocal(folder, "open", "--print").strip())
            page.locator(".part[data-part=api-items-function]").click()
            page.locator("#part li").first.wait_for()
            page.locator("#last td").first.wait_for()
            time.sleep(2)  # until each second's figures have come
            page.screenshot(path=ROOT / "docs" / f"page-{scheme}.png")
            print(f"wrote docs/page-{scheme}.png")
        browser.close()
        taplocal(folder, "down")


if __name__ == "__main__":
    main()
