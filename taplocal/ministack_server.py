"""MiniStack as the local cloud runs it, with the additions of `taplocal/server`.

It is a script: its working directory is the data folder, and the keys come by standard input.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Installs the additions and serves until it is killed."""
    from ministack.app import main as serve

    from taplocal import emulator, keeper
    from taplocal.page import server as page
    from taplocal.server import (
        alarms,
        athena,
        bounds,
        capacity,
        destinations,
        environments,
        events,
        exports,
        forms,
        further,
        gateway,
        guard,
        insights,
        keys,
        malware,
        metrics,
        names,
        networks,
        permissions,
        pipes,
        policies,
        recovery,
        releases,
        sizes,
        subjects,
        traces,
        versions,
        web,
        workers,
    )
    from taplocal.web import LOG

    names.check()
    log, lines = Path(emulator.LOG), Path(emulator.TRACES)
    traces.receive(lines)
    for each in (policies, subjects, athena, releases):
        each.install()
    exports.install(metrics.count)
    for each in (
        gateway,
        permissions,
        destinations,
        keys,
        further,
        sizes,
        versions,
        forms,
        networks,
        recovery,
    ):
        each.install()
    workers.install()
    metrics.install(environments.install())
    alarms.install()
    insights.install()
    capacity.install(metrics.count)
    bounds.install(log, lines, Path(LOG))
    queue = events.install()
    root, kept = json.load(sys.stdin), keeper.Keeper(Path(), queue.waiting)
    kept.install(queue.restore)
    pipes.install(metrics.count, kept.changed)
    malware.install(kept.changed)
    web.install({**root, "url": f"http://127.0.0.1:{os.environ['GATEWAY_PORT']}"}, kept.changed)
    guard.install(**root)
    page.serve(Path(), root["secret_key"])
    serve()


if __name__ == "__main__":
    os.umask(0o077)  # tokens' signing keys, functions' code and their files
    sys.dont_write_bytecode = False  # only functions shall not: else each start compiles MiniStack
    sys.path.insert(0, str(Path(__file__).parents[1]))  # a script is in no package
    from taplocal.errors import TapLocalError

    try:
        main()
    except TapLocalError as error:
        sys.exit(f"error: {error}")  # which `up` shows
