"""Environments as users have them: the package installed, another Python, the engine's host."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import struct_pb2
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc

from taplocal.emulator import Emulator

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")
HANG_SECONDS = 240  # a guard against hanging, not a measure of speed


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


def interpreter(version: str) -> Path | None:
    """A Python of this version: on PATH, of pyenv, of uv, or of GitHub's runner."""
    name = f"python{version}"
    found = [folder / name for folder in map(Path, os.get_exec_path())]
    pyenv = ["pyenv", "root"] if shutil.which("pyenv") else ["echo"]
    for root, pattern in (
        (output_of(*pyenv, cwd=ROOT).strip(), f"versions/{version}.*"),
        (output_of(UV, "python", "dir", cwd=ROOT).strip(), f"cpython-{version}.*"),
        (os.environ.get("RUNNER_TOOL_CACHE"), f"Python/{version}.*/*"),
    ):
        found += sorted(Path(root).glob(f"{pattern}/bin/{name}")) if root else []
    return next((each for each in found if _version(each) == version), None)


def _version(python: Path) -> str:
    if not python.exists():
        return ""
    show = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", show], capture_output=True, text=True, check=False)
    return done.stdout.strip()  # empty for a shim of pyenv that has no such version


def locked_packages(folder: Path, python: Path, lock: str = "requirements-local.txt") -> Path:
    """The Python of a new environment of some Python, with the packages of a lock."""
    made = bare(folder, python)
    packages = ["--require-hashes", "-r", str(ROOT / lock)]
    output_of(UV, "pip", "install", "--quiet", "--python", made, *packages, cwd=folder)
    return made


def with_packages(folder: Path) -> Path:
    """The Python of a new environment with this one's packages, and without tap_stack."""
    python = bare(folder)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (packages / "these.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def installed(folder: Path, *what: str) -> Path:
    """The Python of a new environment in which pip has installed the package, without network."""
    python = with_packages(folder / "installed")
    options = ["--quiet", "--offline", "--no-deps", "--no-build-isolation", "--python", str(python)]
    output_of(UV, "pip", "install", *options, *(what or [str(ROOT)]), cwd=folder)
    return python


def as_struct(values: dict[str, Any]) -> Any:
    """Properties as the engine sends them."""
    struct = struct_pb2.Struct()
    struct.update(values)
    return struct


def address_of(process: subprocess.Popen[str]) -> str:
    """Where a plugin of the engine listens: the first line that it prints is its port."""
    assert process.stdout and select.select([process.stdout], [], [], HANG_SECONDS)[0]
    return f"127.0.0.1:{process.stdout.readline().strip()}"


@contextmanager
def engine_host(python: Path, folder: Path, emulator: Emulator) -> Iterator[Any]:
    """The process that the Pulumi engine starts for dynamic resources, for an emulator's AWS."""
    process = subprocess.Popen(
        [python, "-u", "-m", "pulumi.dynamic"],
        cwd=folder, env=clean(**emulator.environment("us-east-1")), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        with grpc.insecure_channel(address_of(process)) as channel:
            stub = provider_pb2_grpc.ResourceProviderStub(channel)
            stub.Configure(provider_pb2.ConfigureRequest())
            yield stub
    finally:
        process.kill()
        process.wait()
