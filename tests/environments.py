"""Environments as users have them: the package installed, another Python, the engine's host."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")
HANG_SECONDS = 120  # a guard against hanging, not a measure of speed


def output_of(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a program prints, which must succeed."""
    done = subprocess.run(
        command,
        cwd=cwd, env=clean(**environment), capture_output=True, text=True, timeout=HANG_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def clean(**environment: str) -> dict[str, str]:
    """This process's environment without what would change where Python finds its modules."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in hidden} | environment


def bare(folder: Path, python: Path = Path(sys.executable)) -> Path:
    """The Python of a new environment in a folder, which has no packages."""
    output_of(UV, "venv", "--quiet", "--python", python, folder, cwd=folder.parent)
    return folder / "bin" / "python"


def with_packages(folder: Path) -> Path:
    """The Python of a new environment with this one's packages, and without tap_stack."""
    python = bare(folder)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (packages / "these.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def wheel(folder: Path) -> Path:
    """The wheel, built in a folder without the network."""
    build = ["build", "--wheel", "--offline", "--no-build-isolation", "--python", sys.executable]
    output_of(UV, *build, "--quiet", "--out-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def installed(folder: Path) -> Path:
    """The Python of a new environment in which the package is installed."""
    python = with_packages(folder / "installed")
    options = ["--quiet", "--offline", "--no-deps", "--python", str(python)]
    output_of(UV, "pip", "install", *options, wheel(folder), cwd=folder)
    return python


@contextmanager
def engine_host(python: Path, folder: Path, **environment: str) -> Iterator[Any]:
    """The process that the Pulumi engine starts for dynamic resources, in a folder."""
    process = subprocess.Popen(
        [python, "-u", "-m", "pulumi.dynamic"],
        cwd=folder, env=clean(**environment), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout and select.select([process.stdout], [], [], HANG_SECONDS)[0]
        with grpc.insecure_channel(f"127.0.0.1:{process.stdout.readline().strip()}") as channel:
            stub = provider_pb2_grpc.ResourceProviderStub(channel)
            stub.Configure(provider_pb2.ConfigureRequest())
            yield stub
    finally:
        process.kill()
        process.wait()
