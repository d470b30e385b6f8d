"""The processes of execution environments, as MiniStack starts and keeps them.

MiniStack counts how deep functions invoke each other, and loads botocore for it before the handler:
half of a cold start. Here that happens when a handler itself loads botocore's sessions, without
which it invokes nothing. MiniStack keeps a process of each version for ever. Here it ends when an
alias moves from a version to another, as on AWS some minutes later. A function is told the alias
by which it is invoked. `taplocal dev --debug` has it wait for a debugger (debuggee.py).
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from ministack.core import lambda_runtime
from ministack.services import lambda_svc

from taplocal import emulator
from taplocal.errors import TapLocalError
from taplocal.server.releases import qualifier_of_call, weights_of

DEBUG = Path(emulator.DEBUG)  # the data folder is the working directory
DEBUGGEE = str(Path(__file__).with_name("debuggee.py"))
LIFTED_SECONDS = 86_400

COUNTS = "    _ms_install_invoke_depth()\n"
COUNTS_LATER = """
    class _BeforeSessions:
        def find_spec(self, name, path=None, target=None):
            if name == "botocore.session":
                sys.meta_path.remove(self)
                _ms_install_invoke_depth()

    sys.meta_path.insert(0, _BeforeSessions())
    if os.environ.get("TAPLOCAL_DEBUG"):
        import runpy

        _told = json.loads(os.environ["TAPLOCAL_DEBUG"])
        _program = runpy.run_path(_told["debuggee"])["Program"]
        sys.meta_path.insert(0, _program(code_dir, module_name, handler_name, _told))
"""


def change_script() -> None:
    """Has a process load botocore when its handler does, and a debugger where one is asked for."""
    script = lambda_runtime._PYTHON_WORKER_SCRIPT
    if script.count(COUNTS) != 1:
        raise TapLocalError("MiniStack starts functions in another way: adapt taplocal/server")
    lambda_runtime._PYTHON_WORKER_SCRIPT = script.replace(COUNTS, COUNTS_LATER)


def debugged() -> dict[str, Any]:
    """What `taplocal dev --debug` has written: the program's files, name of a function -> port.

    Nothing if its process has gone: one that is killed leaves the file.
    """
    try:
        told: dict[str, Any] = json.loads(DEBUG.read_text())
        os.kill(told["dev"], 0)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}
    return told


def debug() -> None:
    """Starts functions with a debugger, and without timeouts, as long as `dev --debug` says so."""
    spawn, acquire = lambda_runtime.Worker._spawn, lambda_svc.acquire_worker
    known = debugged()

    def spawned(worker: Any) -> None:
        told, config = debugged(), worker.config
        if port := told.get("ports", {}).get(config["FunctionName"]):
            own = {"port": port, "files": told["files"], "debuggee": DEBUGGEE}
            variables = {**config.get("Environment", {}).get("Variables", {})}
            variables["TAPLOCAL_DEBUG"] = json.dumps(own)
            more = {"Environment": {"Variables": variables}, "Timeout": LIFTED_SECONDS}
            worker.config = {**config, **more}
        spawn(worker)

    def acquired(*arguments: Any, **more: Any) -> Any:
        nonlocal known
        if (now := debugged()) != known:
            known = now
            lambda_runtime.kill_workers(idle("", set()))
        return acquire(*arguments, **more)

    lambda_runtime.Worker._spawn, lambda_svc.acquire_worker = spawned, acquired


def tell_alias() -> None:
    """Tells a function by which alias or version it is invoked, not only which version it is."""
    invoke = lambda_runtime.Worker.invoke

    def invoked(worker: Any, *arguments: Any, **more: Any) -> Any:
        if qualifier := qualifier_of_call.get():
            function = ":".join(worker.config["FunctionArn"].split(":")[:7])
            more["invoked_function_arn"] = f"{function}:{qualifier}"
        return invoke(worker, *arguments, **more)

    lambda_runtime.Worker.invoke = invoked


def let_go() -> None:
    """Ends the idle processes of versions that no alias has any more."""
    update = lambda_svc._update_alias

    def updated(name: str, alias_name: str, data: Any) -> Any:
        answer = update(name, alias_name, data)
        if function := lambda_svc._functions.get(name):
            aliases = function.get("aliases", {}).values()
            served = {x for each in aliases for x in (each["FunctionVersion"], *weights_of(each))}
            of_function = lambda_runtime._worker_key(name, function["config"], "")
            threading.Thread(
                target=lambda_runtime.kill_workers, args=[idle(of_function, served)]
            ).start()
        return answer

    lambda_svc._update_alias = updated


def idle(of_function: str, served: set[str]) -> list[Any]:
    """Takes the idle processes of a function's other versions, or all, out of MiniStack's pool."""
    found: list[Any] = []
    with lambda_runtime._lock:
        for key, workers in list(lambda_runtime._workers.items()):
            version = key.removeprefix(of_function or key.rpartition(":")[0] + ":")
            if version.isdigit() and version not in served:
                found += [each for each in workers if not each.in_use]
                lambda_runtime._workers[key] = [each for each in workers if each.in_use]
    return found


def install() -> None:
    """Replaces MiniStack's functions, after those that adapt aliases."""
    change_script()
    debug()
    tell_alias()
    let_go()
