"""The processes of execution environments, as MiniStack starts and keeps them.

MiniStack counts how deep functions invoke each other, and loads botocore for it before the handler:
half of a cold start. Here that happens when a handler itself loads botocore's sessions, without
which it invokes nothing. MiniStack keeps a process of each version for ever. Here it ends when an
alias moves from a version to another, as on AWS some minutes later.
"""

from __future__ import annotations

import threading
from typing import Any

from ministack.core import lambda_runtime
from ministack.services import lambda_svc

from taplocal.errors import TapLocalError
from taplocal.server.releases import weights_of

COUNTS = "    _ms_install_invoke_depth()\n"
COUNTS_LATER = """
    class _BeforeSessions:
        def find_spec(self, name, path=None, target=None):
            if name == "botocore.session":
                sys.meta_path.remove(self)
                _ms_install_invoke_depth()

    sys.meta_path.insert(0, _BeforeSessions())
"""


def count_later() -> None:
    """Has a process load botocore when its handler does."""
    script = lambda_runtime._PYTHON_WORKER_SCRIPT
    if script.count(COUNTS) != 1:
        raise TapLocalError("MiniStack starts functions in another way: adapt taplocal/server")
    lambda_runtime._PYTHON_WORKER_SCRIPT = script.replace(COUNTS, COUNTS_LATER)


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
    """Takes the idle processes of a function's other versions out of MiniStack's pool."""
    found: list[Any] = []
    with lambda_runtime._lock:
        for key, workers in list(lambda_runtime._workers.items()):
            version = key.removeprefix(of_function)
            if version.isdigit() and version not in served:
                found += [each for each in workers if not each.in_use]
                lambda_runtime._workers[key] = [each for each in workers if each.in_use]
    return found


def install() -> None:
    """Replaces MiniStack's functions, after those that adapt aliases."""
    count_later()
    let_go()
