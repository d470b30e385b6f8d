"""One request in a fresh process: `body.py INDEX BODY` prints status, CPU seconds, MB, bytes sent."""

import contextlib
import io
import json
import re
import sys
import time
from pathlib import Path


class Stub:
    """DynamoDB that stores nothing."""

    sent = 0

    def put_item(self, **arguments):
        self.sent = len(json.dumps(arguments))
        return {}


class Context:
    """Lambda's, of a function with 15 s."""

    def get_remaining_time_in_millis(self):
        return 15_000


index = {"__name__": "index"}
exec(compile(Path(sys.argv[1]).read_text(), "index.py", "exec"), index)  # noqa: S102 - our own code
stub = index["_clients"]["dynamodb"] = Stub()
claims = {"sub": "ann", "scope": "items/write"}
event = {
    "routeKey": "POST /items",
    "headers": {"content-type": "application/json"},
    "body": Path(sys.argv[2]).read_text(),
    "requestContext": {
        "requestId": "r",
        "http": {"method": "POST"},
        "authorizer": {"jwt": {"claims": claims}},
    },
}
started = time.process_time()
with contextlib.redirect_stdout(io.StringIO()):
    status = index["api"](event, Context())["statusCode"]
seconds = time.process_time() - started
# Not ru_maxrss, which counts the parent process before exec() as well.
megabytes = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps([status, seconds, megabytes, stub.sent]))
