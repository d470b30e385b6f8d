"""The emulator of the local cloud, which counts what it stores: at SIGUSR1 it writes `stores.json`.

All dictionaries, lists and sets of MiniStack's modules and ours, by name, with all that is below them.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from ministack.core.responses import AccountRegionScopedDict, AccountScopedDict

from taplocal import ministack_server
from taplocal.server import bounds

SCOPED = AccountScopedDict | AccountRegionScopedDict
CONTAINERS = dict | list | set | tuple | SCOPED


def below(value: Any) -> int:
    """How many elements a container has, with those of the containers in it."""
    if isinstance(value, SCOPED):
        return below(value._data)
    if not isinstance(value, CONTAINERS):
        return 0
    elements = list(value.values() if isinstance(value, dict) else value)
    return len(elements) + sum(map(below, elements))


def modules() -> Iterator[ModuleType]:
    """MiniStack's and ours."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("ministack", "taplocal"):
            yield module


def write(*_: object) -> None:
    """Writes how many elements each store has, and the process has objects."""
    found = {
        f"{module.__name__}.{name}": below(value)
        for module in modules()
        for name, value in vars(module).items()
        if isinstance(value, CONTAINERS) and not name.startswith("__")
    }
    gc.collect()
    found["objects"] = len(gc.get_objects())
    Path("stores.new").write_text(json.dumps(found))
    Path("stores.new").rename("stores.json")


if __name__ == "__main__":
    os.umask(0o077)
    bounds.MOST = 1_000  # a tenth, so that a tenth of the requests shows it
    signal.signal(signal.SIGUSR1, write)
    ministack_server.main()
